"""Tests of findings of our own: two readings of the same rows, edited prompts against rephrases,
rows that no edit reaches, stored codes that no longer fit, sums that fit worse than nothing.

Each function makes a `Test`, as in `lib.claim_tests`; bounds are judged by 95 % intervals.
"""

import pandas as pd

from lib.findings import (
    FAILS,
    HOLDS,
    LEVEL,
    UNKNOWN,
    Finding,
    Material,
    Test,
    bounded,
    decide,
    one_bound,
    scores,
)
from lib.metrics.intervals import facts, mean_interval, paired_difference

BASE = "base"  # the route of rows that the unedited model answers


def mean_within(
    editor: str,
    metric: str,
    subset: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    moment: str = "end",
) -> Test:
    """The mean score of an editor on the rows of `subset` is at least, or at most, so large."""
    one_bound("mean_within", at_least, at_most)

    def test(material: Material) -> Finding:
        rows = _rows(material, editor, metric, subset, moment)
        found = mean_interval(rows[metric].astype(float), groups=facts(rows["record"]))
        return bounded(found, f"{metric}, {subset}, {editor}", at_least, at_most)

    return test


def left_to_backbone(
    editor: str,
    subset: str = "edits",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    moment: str = "end",
) -> Test:
    """The share of decoded prompts of `subset` that an editor's own routing gives to the unedited
    model is at least, or at most, so large."""
    one_bound("left_to_backbone", at_least, at_most)

    def test(material: Material) -> Finding:
        rows = _rows(material, editor, "route", subset, moment)
        found = mean_interval((rows["route"] == BASE).astype(float), groups=facts(rows["record"]))
        what = f"Share of {subset} prompts that {editor} leaves to the unedited model"
        return bounded(found, what, at_least, at_most)

    return test


def reads_higher(
    editor: str,
    metric: str,
    other: str,
    subset: str = "edits",
    *,
    moment: str = "end",
    margin: float = 0.02,
    strictly: bool = True,
) -> Test:
    """The same rows score higher read as `metric` than read as `other`; not `strictly`: at most
    `margin` lower. Verdicts as in `decide`."""

    def test(material: Material) -> Finding:
        rows = _rows(material, editor, metric, subset, moment)
        if other not in rows:
            return Finding(UNKNOWN, f"No run scored {other}.")
        rows = rows[rows[other].notna()]
        left, right = (rows[name].astype(float) for name in (metric, other))
        pair = (f"{metric} minus {other}", paired_difference(left, right, groups=_facts(rows)))
        return decide([pair], f"readings of {subset}, {editor}", margin, strictly=strictly)

    return test


def hidden_by_forcing(editor: str, *, moment: str = "end") -> Test:
    """There are edits that score in full when the model is fed the answer and the editor may see it
    (`answer_accuracy`), and not when it decides on the prompt alone (`prompt_accuracy`).

    One such edit is enough; none does not show that there can be none.
    """

    def test(material: Material) -> Finding:
        rows = _rows(material, editor, "prompt_accuracy", "edits", moment)
        fed, alone = (rows[name].astype(float) for name in ("answer_accuracy", "prompt_accuracy"))
        hidden = (fed == 1.0) & (alone < 1.0)
        evidence = (
            f"{int(hidden.sum())} of {len(rows)} edits of {editor} are right when the answer is "
            "fed and counted, and not when the prompt alone decides what is edited."
        )
        return Finding(HOLDS if hidden.any() else UNKNOWN, evidence)

    return test


def ahead_on_subset(
    editor: str,
    metric: str,
    subset: str,
    other: str,
    *,
    moment: str = "end",
    margin: float = 0.02,
) -> Test:
    """Prompts of `subset` score better than those of `other` about the same facts.

    A pair is a fact (and seed): the mean of its prompts in each subset.
    """

    def test(material: Material) -> Finding:
        sides = [
            rows.groupby([_facts(rows), "seed"])[metric].mean()
            for name in (subset, other)
            for rows in [_rows(material, editor, metric, name, moment)]
        ]
        joined = pd.concat(sides, axis=1, join="inner", keys=["a", "b"]).astype(float)
        units = joined.index.get_level_values(0)
        pair = (
            f"{subset} minus {other} of the same facts",
            paired_difference(joined["a"], joined["b"], groups=units, level=LEVEL),
        )
        return decide([pair], f"{metric}, {editor}", margin, strictly=True)

    return test


def codes_move(editor: str, *, at_least: float) -> Test:
    """After the last edit the code that is stored for an edit differs from the one that its prompt
    now gets, for at least this share of the edits. Observations of ELDER: column own_stored, the
    distance between the two in digits."""

    def test(material: Material) -> Finding:
        rows = material.observations
        if "own_stored" not in rows:
            return Finding(UNKNOWN, f"No run of {editor} observed its codes.")
        rows = rows[(rows["editor"] == editor) & (rows["sweep"] == "")]
        rows = rows[(rows["subset"] == "edits") & rows["own_stored"].notna()]
        digits = rows["own_stored"].astype(float)
        found = mean_interval((digits > 0).astype(float), groups=facts(rows["record"]))
        judged = bounded(found, f"Share of edits of {editor} with another code", at_least, None)
        more = f" They differ in {digits.mean():.1f} digits on average." if len(rows) else ""
        return Finding(judged.verdict, judged.evidence + more)

    return test


def sum_overshoots(editor: str) -> Test:
    """On the rows of the largest m the plain sum of rank-one shifts fits what the rows want worse
    than no shift at all, in every edited layer, and the least-squares shift better than none.

    Observations of MALMEN: relative residuals |K S - D| / |D|, which no shift makes 1. They are
    exact numbers of one training; no interval stands for another training.
    """

    def test(material: Material) -> Finding:
        rows = material.observations
        if "summed_residual" not in rows:
            return Finding(UNKNOWN, f"No run of {editor} observed its residuals.")
        rows = rows[(rows["editor"] == editor) & (rows["kind"] == "module")]
        if rows.empty:
            return Finding(UNKNOWN, f"No run of {editor} observed its residuals.")
        rows = rows[rows["m"] == rows["m"].max()].drop_duplicates(["run", "path"])
        summed, solved = rows["summed_residual"].astype(float), rows["residual"].astype(float)
        evidence = (
            f"At m = {rows['m'].iloc[0]:g}, {len(rows)} layers: relative residual of the plain sum "
            f"{summed.min():.3g} to {summed.max():.3g}, of least squares {solved.min():.2g} to "
            f"{solved.max():.2g}; no shift at all gives 1."
        )
        if summed.min() > 1 and solved.max() < 1:
            return Finding(HOLDS, evidence)
        return Finding(FAILS, evidence)

    return test


def _rows(material: Material, editor: str, metric: str, subset: str, moment: str) -> pd.DataFrame:
    rows = scores(material.records, metric, subset, None)
    return rows[(rows["editor"] == editor) & (rows["moment"] == moment)]


def _facts(rows: pd.DataFrame) -> pd.Series:
    return pd.Series(facts(rows["record"]), index=rows.index, dtype=object)
