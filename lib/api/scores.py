"""Scores of facts before and after they were edited: what is decoded, and what is fed in."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from lib.api.supplies import stream_of
from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids
from lib.data.records import SUBSETS, Edit, Stream
from lib.editors.base import Editor
from lib.evaluation.evaluator import Evaluator, Protocol, ScoredRow

KINDS = {"edits": "edit", "holdout": "rephrase", "near": "locality", "portability": "portability"}
BATCH = 32  # rows of an evaluation batch
MOST_TOKENS = 30  # that are decoded of an answer


def score(editor: Editor, facts: Sequence[Edit]) -> pd.DataFrame:
    """A row for each prompt of the facts, as `lib.api.editing.Edited.score` describes it; edits in
    force are lifted for the time of the scores before."""
    stream, blank = stream_of(facts, len(facts)), set()
    if editor.backbone.family.kind == "classifier":
        # A class must be there to be scored; what is said of it is not told.
        blank = {probe.identity for probe in stream.near if not probe.target}
        near = tuple(replace(p, target=p.target or "0") for p in stream.near)
        stream = replace(stream, near=near)
    evaluator = Evaluator(editor, stream, protocol_for(editor.backbone, stream))
    with editor.lifted():
        evaluator.score_unedited()
        before = pd.DataFrame(_rows(evaluator, "before"))
    after = pd.DataFrame(_rows(evaluator, "end"))
    kind = after["subset"].map(KINDS)
    told = (after["target"] != "") & ~after["record"].isin(blank)
    frame = pd.DataFrame(
        {
            "fact": after["edit_index"],
            "kind": kind,
            "prompt": after["prompt"],
            "target": after["target"].where(told, ""),
            "before": before["prediction"],
            "after": after["prediction"],
            "right_before": _right(before).where(told),
            "right_after": _right(after).where(told),
            "forced_before": _share(before["prompt_accuracy"]).where(told),
            "forced_after": _share(after["prompt_accuracy"]).where(told),
            "probability_before": _probability(before["answer_nll"]).where(told),
            "probability_after": _probability(after["answer_nll"]).where(told),
            "unchanged": before["prediction"] == after["prediction"],
        }
    )
    return frame.sort_values("fact", kind="stable", ignore_index=True)


def protocol_for(backbone: Backbone, stream: Stream, **others: object) -> Protocol:
    """Every prompt is decoded as far as the longest answer goes."""
    rows = (row for subset in SUBSETS for row in getattr(stream, subset) if row.target)
    longest = 1
    if backbone.family.kind != "classifier":
        longest = max((len(answer_ids(backbone, row.target)) for row in rows), default=1)
    return Protocol(
        max_new_tokens=min(longest, MOST_TOKENS), evaluation_batch=BATCH, rivals=False, **others
    )


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each kind of prompt: how many, the share that is decoded right and forced right
    before and after, and the share whose decoded answer did not change."""
    columns = ["right_before", "right_after", "forced_before", "forced_after", "unchanged"]
    values = scores.assign(**{name: scores[name].astype(float) for name in columns})
    found = values.groupby("kind", sort=False)[columns].mean()
    found.insert(0, "prompts", values.groupby("kind", sort=False).size())
    return found.reset_index()


def _rows(evaluator: Evaluator, moment: str) -> Iterator[ScoredRow]:
    for subset in KINDS:
        yield from evaluator.records(subset, moment, evaluator.editor.n_edits)


def _right(rows: pd.DataFrame) -> pd.Series:
    """1 where what is decoded begins with the answer (a classifier: is the class), else 0."""
    begins = rows["begins_with"].astype(float)
    return begins.where(begins.notna(), rows["exact_match"].astype(float))


def _share(accuracy: pd.Series) -> pd.Series:
    """1 where every token of the answer is the first choice when the answer is fed in, else 0."""
    values = accuracy.astype(float)
    return (values == 1).astype(float).where(values.notna())


def _probability(nll: pd.Series) -> pd.Series:
    """Of the answer, fed in: the geometric mean over its tokens."""
    return nll.astype(float).map(lambda value: math.exp(-value) if value == value else math.nan)
