"""All scores of one batch of rows under an editor, by as few passes as they need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lib.backbones.backbone import Backbone
from lib.backbones.passes import decoding
from lib.backbones.passes.logits import TargetScores, WholeRows, score_whole, scores_at
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.editors.base import Editor
from lib.editors.parts.stand_in import StandIn, tell


@dataclass(frozen=True)
class Scored:
    """What one row got: decoded ids and text (empty where nothing is decoded), then teacher-forced
    scores.

    `nll`, `token_accuracy`: of the target with its end mark. `answer`: the argmax at each token of
    the answer (no end mark), `answer_nll` its mean NLL, `other_nll` the competing answer's (NaN
    without one); `prompt_answer`: as `answer`, what is applied being decided on the prompt alone;
    `answer_nll_released`: as `answer_nll`, decided on the row with its target, as MELO's official
    code does; `tokens`: how many tokens the answer has.
    """

    ids: tuple[int, ...]
    text: str
    nll: float
    token_accuracy: float
    answer: tuple[int, ...]
    answer_nll: float
    other_nll: float
    prompt_answer: tuple[int, ...]
    answer_nll_released: float
    tokens: int


def needs_whole_passes(editor: Editor) -> bool:
    """Whether answers are scored by whole passes over prompt and answer."""
    return editor.backbone.family.kind == "causal" and editor.scope_sees_target


def score_batch(
    editor: Editor,
    batch: decoding.PromptBatch,
    decode: Sequence[str],
    score: Sequence[str],
    max_new_tokens: int,
) -> list[Scored]:
    """Decoded and teacher-forced scores of each row under the given routes.

    `decode` are the routes of the prompts: they hold for what is decoded and for all scores of the
    answers. `score` are those of the rows with their targets: they hold for `nll` and
    `token_accuracy`, and for the answers where the batch brings whole passes. With
    `max_new_tokens` 0 nothing is decoded. A classifier's answer is its likeliest class.
    """
    backbone = editor.backbone
    if backbone.family.kind == "classifier":
        return _classified(editor, batch, decode)
    with editor.routed(batch.prompts, decode):
        ids, prompted, rivals = _continued(backbone, editor.prefix, batch, max_new_tokens)
    forced = prompted
    if score != decode:
        with editor.routed(batch.prompts, score):
            forced = decoding.Continuation(backbone, editor.prefix, batch).score()
    on_prompt = prompted.without(backbone.eos_id)
    answers, nll, others = list(on_prompt.argmax), on_prompt.nll, rivals
    if batch.whole is not None:
        whole = _whole_pass(editor, batch.whole, score)
        for place, row in enumerate(batch.whole.rows):
            answers[row], nll[row] = whole.argmax[place], whole.nll[place]
    if batch.whole_others is not None:
        whole = _whole_pass(editor, batch.whole_others, score)
        for place, row in enumerate(batch.whole_others.rows):
            others[row] = whole.nll[place]
    return _rows(backbone, ids, forced, answers, nll, others, on_prompt)


def score_stand_ins(
    batch: decoding.PromptBatch, stand_ins: Sequence[StandIn | None], max_new_tokens: int
) -> dict[int, Scored]:
    """Scores of the rows that have a stand-in, by row: what is decoded and all scores of the
    answers come from one pass of that backbone over these rows alone, each behind its text."""
    rows = [row for row, stand_in in enumerate(stand_ins) if stand_in is not None]
    backbone = stand_ins[rows[0]].backbone
    chosen = torch.tensor(rows, device=batch.targets.device)
    told = tell(backbone, [stand_ins[row].text for row in rows], batch.prompts.select(chosen))
    asked = decoding.PromptBatch(
        told,
        batch.targets[chosen],
        PrefixState(None, {}, {}, len(rows)),
        None,
        None if batch.others is None else batch.others[chosen],
    )
    ids, scores, rivals = _continued(backbone, FrozenPrefix(backbone, 0), asked, max_new_tokens)
    answers = scores.without(backbone.eos_id)
    scored = _rows(backbone, ids, scores, answers.argmax, answers.nll, rivals, answers)
    return dict(zip(rows, scored, strict=True))


def _continued(
    backbone: Backbone, prefix: FrozenPrefix, batch: decoding.PromptBatch, max_new_tokens: int
) -> tuple[list[list[int]], TargetScores, list[float]]:
    """Decoded ids, the targets' scores and the competing answers' NLL (NaN where whole passes score
    these, or there are none), from one pass over the prompts."""
    onward = decoding.Continuation(backbone, prefix, batch)
    ids = onward.greedy(max_new_tokens) if max_new_tokens else [[] for _ in batch.prompts.input_ids]
    scores = onward.score()
    if batch.others is None or batch.whole_others is not None:
        return ids, scores, [math.nan] * len(ids)
    return ids, scores, onward.score(others=True).nll


def _rows(
    backbone: Backbone,
    ids: list[list[int]],
    forced: TargetScores,
    answers: Sequence[tuple[int, ...]],
    nll: Sequence[float],
    others: Sequence[float],
    on_prompt: TargetScores,
) -> list[Scored]:
    texts = backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
    columns = (
        map(tuple, ids),
        map(str.strip, texts),
        forced.nll,
        forced.token_accuracy,
        answers,
        nll,
        others,
        on_prompt.argmax,
        forced.without(backbone.eos_id).nll,
        map(len, on_prompt.ids),
    )
    return [Scored(*row) for row in zip(*columns, strict=True)]


@torch.no_grad()
def _classified(editor: Editor, batch: decoding.PromptBatch, routes: Sequence[str]) -> list[Scored]:
    """One pass: the class as id and as text, and its scores as those of a one-token answer."""
    with editor.routed(batch.prompts, routes), editor.prefix.replay(batch.state):
        logits = editor.model(**batch.prompts.inputs()).logits
    scores = scores_at(logits, batch.targets[:, 0], [1] * len(routes))
    rows = zip(scores.argmax, scores.nll, scores.token_accuracy, strict=True)
    return [
        Scored(found, str(found[0]), nll, right, found, nll, math.nan, found, nll, len(found))
        for found, nll, right in rows
    ]


def _whole_pass(editor: Editor, whole: WholeRows, routes: Sequence[str]) -> TargetScores:
    with editor.routed(whole.encoded, [routes[row] for row in whole.rows]):
        return score_whole(editor.backbone, editor.prefix, whole)
