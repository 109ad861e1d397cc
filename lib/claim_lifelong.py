"""Tests of claims about one long sequence of edits: rivals at the same number of edits, variants of
a sweep, and which prompts a rule leaves to the unedited model."""

from collections.abc import Sequence

import pandas as pd

from lib.findings import (
    LEVEL,
    UNKNOWN,
    Finding,
    Material,
    Test,
    bounded,
    decide,
    one_bound,
    paired,
    scores,
)
from lib.metrics.intervals import facts, mean_interval


def ahead_at_equal_edits(
    editor: str,
    others: Sequence[str],
    metric: str,
    subset: str = "edits",
    *,
    strictly: bool = False,
    margin: float = 0.05,
    setting: str | None = None,
    missing: str = "",
) -> Test:
    """After as many edits `editor` scores at least as well as each of `others` on the same prompts.

    Each rival is met at its own last edit: by the checkpoint of `editor` with as many edits, or by
    its end. Fails, holds and stays open as `decide` says; `strictly`: it must score better.
    `missing` names, in the evidence, rivals that the claim means and that were not planned.
    """

    def test(material: Material) -> Finding:
        rows = scores(material.records, metric, subset, setting)
        mine = rows[(rows["editor"] == editor) & rows["moment"].isin(["checkpoint", "end"])]
        level = 1 - (1 - LEVEL) / max(len(others), 1)
        pairs = []
        for other in others:
            theirs = rows[(rows["editor"] == other) & (rows["moment"] == "end")]
            edits = theirs["n_edits"].max()
            then = mine[mine["n_edits"] == edits]
            met = f" after {edits:g} edits" if edits < mine["n_edits"].max() else ""
            pairs.append((f"against {other}{met}", paired(then, theirs, metric, level)))
        found = decide(pairs, f"{metric}, {subset}, {editor}", margin, strictly=strictly)
        return Finding(found.verdict, f"{found.evidence} {missing}".strip())

    return test


def better_variant(
    editor: str,
    sweep: str,
    value: str,
    others: Sequence[str],
    metric: str,
    subset: str = "edits",
    *,
    margin: float = 0.02,
    setting: str | None = None,
) -> Test:
    """With the swept value `value` an editor ends better than with each of `others`."""

    def test(material: Material) -> Finding:
        rows = _swept(material, editor, sweep, metric, subset, setting)
        mine = rows[rows["value"] == value]
        level = 1 - (1 - LEVEL) / max(len(others), 1)
        pairs = [
            (f"{value} against {other}", paired(mine, rows[rows["value"] == other], metric, level))
            for other in others
        ]
        return decide(pairs, f"{metric}, {subset}, {editor} by {sweep}", margin, strictly=True)

    return test


def better_at_largest(
    editor: str,
    sweep: str,
    metric: str,
    subset: str = "edits",
    *,
    margin: float = 0.02,
    setting: str | None = None,
) -> Test:
    """An editor ends better with the largest swept value than with the smallest."""

    def test(material: Material) -> Finding:
        rows = _swept(material, editor, sweep, metric, subset, setting)
        by_value = dict(list(rows.groupby(rows["value"].astype(float))))
        if len(by_value) < 2:
            known = ", ".join(f"{value:g}" for value in by_value) or "none"
            return Finding(UNKNOWN, f"Too few values of {sweep} were run with {editor} ({known}).")
        low, high = min(by_value), max(by_value)
        pairs = [
            (f"{high:g} against {low:g}", paired(by_value[high], by_value[low], metric)),
        ]
        return decide(pairs, f"{metric}, {subset}, {editor} by {sweep}", margin, strictly=True)

    return test


def defers(
    editor: str,
    subsets: Sequence[str],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    setting: str | None = None,
) -> Test:
    """The share of the prompts of `subsets` that an editor's own rule leaves to the unedited model
    is at least, or at most, so large. Observations of ELDER: columns subset, record, deferred.

    Holds and fails by the 95 % interval of the share; in between it cannot be told.
    """
    one_bound("defers", at_least, at_most)

    def test(material: Material) -> Finding:
        rows = material.observations
        if rows.empty or "deferred" not in rows:
            return Finding(UNKNOWN, f"No run of {editor} observed what it defers.")
        chosen = (rows["editor"] == editor) & (rows["sweep"] == "")
        rows = rows[chosen & rows["subset"].isin(subsets)]
        rows = rows if setting is None else rows[rows["setting"] == setting]
        found = mean_interval(rows["deferred"].astype(float), groups=facts(rows["record"]))
        what = f"Share of prompts ({', '.join(subsets)}) that {editor} defers"
        return bounded(found, what, at_least, at_most)

    return test


def _swept(
    material: Material, editor: str, sweep: str, metric: str, subset: str, setting: str | None
) -> pd.DataFrame:
    rows = scores(material.records, metric, subset, setting, sweep)
    return rows[(rows["editor"] == editor) & (rows["moment"] == "end")]
