"""All scores of one batch of rows under an editor, by as few passes as they need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lib import decoding
from lib.editors.base import Editor
from lib.teacher_forcing import TargetScores, WholeRows, score_whole


@dataclass(frozen=True)
class Scored:
    """What one row got: decoded ids and text, then teacher-forced scores.

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
    `token_accuracy`, and for the answers where the batch brings whole passes.
    """
    backbone = editor.backbone
    with editor.routed(batch.prompts, decode):
        onward = decoding.Continuation(backbone, editor.prefix, batch)
        ids = onward.greedy(max_new_tokens)
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


def _whole_pass(editor: Editor, whole: WholeRows, routes: Sequence[str]) -> TargetScores:
    with editor.routed(whole.encoded, [routes[row] for row in whole.rows]):
        return score_whole(editor.backbone, editor.prefix, whole)
