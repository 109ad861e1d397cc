"""Tests of claims about m, the number of facts edited at once: who is better, where, how far.

Records need the column `m`; rows of all m stand under one sweep name. Every test compares scores
of the same prompts; `usual` is the m of the main table.
"""

import itertools
import math
from collections.abc import Sequence

import pandas as pd

from lib.findings import (
    FAILS,
    HOLDS,
    LEVEL,
    UNKNOWN,
    Finding,
    Material,
    Test,
    decide,
    paired,
    scores,
)
from lib.metrics.intervals import Difference

METRIC = "answer_accuracy"  # share of answer tokens that are the teacher-forced argmax (malmen 5)
SWEEP = "m"
NAMES = {"edits": "ES", "holdout": "GS", "upstream": "LS"}
Pairs = list[tuple[str, Difference]]


def better_at_sizes(
    editor: str,
    others: Sequence[str],
    subset: str,
    usual: int,
    *,
    metric: str = METRIC,
    margin: float = 0.02,
    setting: str | None = None,
    behind: bool = False,
) -> Test:
    """`editor` scores better than each of `others`, at the usual m and at the largest common one;
    with `behind` each of `others` better than `editor`.

    All comparisons count together (Holm); the verdict is that of `decide`, strictly.
    """
    duels = [(other, editor) if behind else (editor, other) for other in others]

    def test(material: Material) -> Finding:
        rows = _right_after(material, metric, subset, setting)
        pairs = [pair for duel in duels for pair in _pairs(rows, *duel, usual, metric, len(duels))]
        return decide(pairs, _what(metric, subset), margin, strictly=True)

    return test


def better_on_some(
    editor: str,
    others: Sequence[str],
    subsets: Sequence[str],
    usual: int,
    *,
    metric: str = METRIC,
    margin: float = 0.02,
    setting: str | None = None,
) -> Test:
    """`editor` scores better than all `others` on at least one of `subsets`.

    Each subset is a test of its own at a level divided by their number; fails if all of them fail.
    """

    def test(material: Material) -> Finding:
        found = []
        for subset in subsets:
            rows = _right_after(material, metric, subset, setting)
            pairs = [
                pair
                for other in others
                for pair in _pairs(rows, editor, other, usual, metric, len(others) * len(subsets))
            ]
            # Bonferroni over the subsets: any of them may carry the claim.
            pairs = [(name, _sterner(d, len(subsets))) for name, d in pairs]
            found.append(decide(pairs, _what(metric, subset), margin, strictly=True))
        verdicts = [one.verdict for one in found]
        verdict = HOLDS if HOLDS in verdicts else FAILS if set(verdicts) == {FAILS} else UNKNOWN
        return Finding(verdict, " ".join(one.evidence for one in found))

    return test


def gap_grows(
    editor: str,
    other: str,
    subsets: Sequence[str],
    *,
    metric: str = METRIC,
    margin: float = 0.02,
    setting: str | None = None,
) -> Test:
    """The lead of `editor` over `other` on a prompt is larger at the largest common m than at the
    smallest; differences of differences on the same prompts, all `subsets` together."""

    def test(material: Material) -> Finding:
        pairs: Pairs = []
        sizes: list[int] = []
        for subset in subsets:
            rows = _right_after(material, metric, subset, setting)
            sizes = _common(rows, editor, other)
            if len(sizes) < 2:
                return Finding(
                    UNKNOWN, f"{editor} and {other} ran together at {_listed(sizes)} only."
                )
            leads = [
                _lead(rows[rows["m"] == m], editor, other, metric) for m in (sizes[-1], sizes[0])
            ]
            pairs.append((NAMES.get(subset, subset), paired(*leads, metric)))
        what = f"lead of {editor} over {other}, m = {sizes[-1]} against m = {sizes[0]}"
        return decide(pairs, what, margin, strictly=True)

    return test


def carries_more(
    editor: str,
    other: str,
    subset: str,
    *,
    times: float = 100.0,
    metric: str = METRIC,
    margin: float = 0.1,
    setting: str | None = None,
) -> Test:
    """`editor` carries at least `times` as many facts at once as `other`.

    What an editor carries: the largest m up to which its score stays within `margin` of its own at
    the smallest m. An interval (Bonferroni over the sizes) that lies within the margin shows that
    it stays, one beyond that it does not. A range of m below `times` cannot tell.
    """

    def test(material: Material) -> Finding:
        rows = _right_after(material, metric, subset, setting)
        sizes = _common(rows, editor, other)
        if len(sizes) < 2:
            return Finding(UNKNOWN, f"{editor} and {other} ran together at {_listed(sizes)} only.")
        spans = {name: _span(rows, name, sizes, metric, margin) for name in (editor, other)}
        told = "; ".join(
            f"{name} keeps its {NAMES.get(subset, subset)} of m = {sizes[0]} within {margin:g} "
            + (f"up to m = {low}" if low == high else f"up to m = {low} surely, {high} at most")
            for name, (low, high) in spans.items()
        )
        evidence = f"{told} (sizes run: {_listed(sizes)})."
        (sure, possible), (least, most) = spans[editor], spans[other]
        if sizes[-1] / sizes[0] < times:
            ratio = sizes[-1] / sizes[0]
            return Finding(
                UNKNOWN, f"{evidence} The sizes span a factor of {ratio:g}, not {times:g}."
            )
        if sure / most >= times:
            return Finding(HOLDS, evidence)
        # Where the editor still stands at the largest m, what it carries may be more.
        beyond = possible == sizes[-1]
        return Finding(FAILS if possible / least < times and not beyond else UNKNOWN, evidence)

    return test


def _right_after(material: Material, metric: str, subset: str, setting: str | None) -> pd.DataFrame:
    rows = scores(material.records, metric, subset, setting, SWEEP)
    return rows[rows["moment"] == "own"]


def _common(rows: pd.DataFrame, *editors: str) -> list[int]:
    """The m at which all these editors ran."""
    known = [set(rows.loc[rows["editor"] == name, "m"]) for name in editors]
    return sorted(int(m) for m in set.intersection(*known))


def _pairs(
    rows: pd.DataFrame, editor: str, other: str, usual: int, metric: str, rivals: int
) -> Pairs:
    """Differences of two editors at the usual and the largest common m, named."""
    known = _common(rows, editor, other)
    sizes = sorted({m for m in (usual, *known[-1:]) if m in known}) or [usual]
    level = 1 - (1 - LEVEL) / (len(sizes) * rivals)
    found = []
    for m in sizes:
        at = rows[rows["m"] == m]
        sides = [at[at["editor"] == name] for name in (editor, other)]
        found.append((f"{editor} against {other}, m = {m}", paired(*sides, metric, level)))
    return found


def _sterner(d: Difference, tests: int) -> Difference:
    return Difference(
        d.mean,
        d.low,
        d.high,
        d.n,
        d.clusters,
        d.method,
        d.p if math.isnan(d.p) else min(1.0, tests * d.p),
    )


def _lead(rows: pd.DataFrame, editor: str, other: str, metric: str) -> pd.DataFrame:
    """The score of `editor` minus that of `other`, prompt by prompt."""
    keys = ["setting", "seed", "record", "prompt"]
    means = [rows[rows["editor"] == name].groupby(keys)[metric].mean() for name in (editor, other)]
    return (means[0] - means[1]).dropna().rename(metric).reset_index()


def _span(
    rows: pd.DataFrame, editor: str, sizes: Sequence[int], metric: str, margin: float
) -> tuple[int, int]:
    """The m up to which the editor surely, and at most possibly, keeps its score."""
    mine = rows[rows["editor"] == editor]
    base = mine[mine["m"] == sizes[0]]
    level = 1 - (1 - LEVEL) / (len(sizes) - 1)
    changes = [paired(mine[mine["m"] == m], base, metric, level) for m in sizes[1:]]
    sure = list(itertools.takewhile(lambda d: d.known and d.low >= -margin, changes))
    possible = list(itertools.takewhile(lambda d: not (d.known and d.high < -margin), changes))
    return sizes[len(sure)], sizes[len(possible)]


def _what(metric: str, subset: str) -> str:
    return f"{NAMES.get(subset, subset)} ({metric.replace('_', ' ')})"


def _listed(sizes: Sequence[int]) -> str:
    return "m = " + ", ".join(map(str, sizes)) if sizes else "no common m"
