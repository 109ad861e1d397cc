"""All scores of one batch of rows under an editor, by as few passes as they need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lib import decoding
from lib.editors.base import Editor
from lib.teacher_forcing import TargetScores, WholeRows, score_whole, scores_at


@dataclass(frozen=True)
class Scored:
    """What one row got: decoded ids and text (empty where nothing is decoded), then teacher-forced
    scores.

    `nll`, `token_accuracy`: of the target with its end mark. `answer`: the argmax at each token of
    the answer (no end mark), `answer_nll` its mean NLL, `other_nll` the competing answer's (NaN
    without one); `prompt_answer`: as `answer`, what is applied being decided on the prompt alone.
    """

    ids: tuple[int, ...]
    text: str
    nll: float
    token_accuracy: float
    answer: tuple[int, ...]
    answer_nll: float
    other_nll: float
    prompt_answer: tuple[int, ...]


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
        onward = decoding.Continuation(backbone, editor.prefix, batch)
        ids = onward.greedy(max_new_tokens) if max_new_tokens else [[] for _ in decode]
        forced = prompted = onward.score()
        rivals = None
        if batch.others is not None and batch.whole_others is None:
            rivals = onward.score(batch.others)
    if score != decode:
        with editor.routed(batch.prompts, score):
            forced = decoding.Continuation(backbone, editor.prefix, batch).score()
    on_prompt = prompted.without(backbone.eos_id)
    answers, nll = list(on_prompt.argmax), on_prompt.nll
    others = [math.nan] * len(ids) if rivals is None else rivals.nll
    if batch.whole is not None:
        whole = _whole_pass(editor, batch.whole, score)
        for place, row in enumerate(batch.whole.rows):
            answers[row], nll[row] = whole.argmax[place], whole.nll[place]
    if batch.whole_others is not None:
        whole = _whole_pass(editor, batch.whole_others, score)
        for place, row in enumerate(batch.whole_others.rows):
            others[row] = whole.nll[place]
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
        Scored(found, str(found[0]), nll, right, found, nll, math.nan, found)
        for found, nll, right in rows
    ]


def _whole_pass(editor: Editor, whole: WholeRows, routes: Sequence[str]) -> TargetScores:
    with editor.routed(whole.encoded, [routes[row] for row in whole.rows]):
        return score_whole(editor.backbone, editor.prefix, whole)
