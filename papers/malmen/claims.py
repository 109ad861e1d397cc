"""Tests of claims about MALMEN: what it carries, keeps in memory and needs in time; importing this
registers them."""

import itertools
import math
from collections.abc import Sequence

import pandas as pd

from lib.report.claims.comparisons import METRIC, NAMES, common_sizes, listed, right_after
from lib.report.claims.verdict import (
    AT_LEAST,
    AT_MOST,
    BELOW,
    INCONCLUSIVE,
    LEVEL,
    NOT_TESTABLE,
    Evidence,
    Material,
    Test,
    Verdict,
    claim_test,
    exactly,
    paired,
)

ROOM = 4  # m must grow at least so many times before a memory can be called flat


@claim_test
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
    it stays, one beyond that it does not. Where the sizes decide neither and span no factor of
    `times`, it cannot be tested.
    """

    def test(material: Material) -> Verdict:
        rows = right_after(material, metric, subset, setting)
        sizes = common_sizes(rows, editor, other)
        if len(sizes) < 2:
            return Verdict(
                NOT_TESTABLE, f"{editor} and {other} ran together at {listed(sizes)} only."
            )
        spans = {name: _span(rows, name, sizes, metric, margin) for name in (editor, other)}
        told = "; ".join(
            f"{name} keeps its {NAMES.get(subset, subset)} of m = {sizes[0]} within {margin:g} "
            + (f"up to m = {low}" if low == high else f"up to m = {low} surely, {high} at most")
            for name, (low, high) in spans.items()
        )
        evidence = f"{told} (sizes run: {listed(sizes)})."
        (sure, possible), (least, most) = spans[editor], spans[other]
        # Where the editor still stands at the largest m, what it carries may be more.
        ends = (sure / most, math.inf if possible == sizes[-1] else possible / least)
        judged = exactly(f"{editor} over {other}", AT_LEAST, times, evidence, *ends)
        span = sizes[-1] / sizes[0]
        if judged.word == INCONCLUSIVE and span < times:
            short = f"{evidence} The sizes span a factor of {span:g}, not {times:g}."
            return Verdict(NOT_TESTABLE, short)
        return judged

    return test


@claim_test
def sum_overshoots(editor: str) -> Test:
    """On the rows of the largest m the plain sum of rank-one shifts fits what the rows want worse
    than no shift at all, in every edited layer, and the least-squares shift better than none.

    Observations of MALMEN: relative residuals |K S - D| / |D|, which no shift makes 1. They are
    exact numbers of one training; no interval stands for another training.
    """

    def test(material: Material) -> Verdict:
        rows = material.observations
        if "summed_residual" not in rows:
            return Verdict(NOT_TESTABLE, f"No run of {editor} observed its residuals.")
        rows = rows[(rows["editor"] == editor) & (rows["kind"] == "module")]
        if rows.empty:
            return Verdict(NOT_TESTABLE, f"No run of {editor} observed its residuals.")
        rows = rows[rows["m"] == rows["m"].max()].drop_duplicates(["run", "path"])
        summed, solved = rows["summed_residual"].astype(float), rows["residual"].astype(float)
        evidence = (
            f"At m = {rows['m'].iloc[0]:g}, {len(rows)} layers: relative residual of the plain sum "
            f"{summed.min():.3g} to {summed.max():.3g}, of least squares {solved.min():.2g} to "
            f"{solved.max():.2g}; no shift at all gives 1."
        )
        ends = {
            "smallest residual of the sum": (AT_LEAST, summed.min()),
            "largest residual of least squares": (BELOW, solved.max()),
        }
        found = [
            Evidence(name, rule, end, end, end, len(rows), 0, 1.0, exact=True)
            for name, (rule, end) in ends.items()
        ]
        return Verdict.of(found, evidence)

    return test


@claim_test
def passes_stay_flat(editor: str, mini_batch: int, *, margin: float = 0.25) -> Test:
    """What the decoupled passes of a meta-step keep does not grow with m; the row store is apart.

    Sizes below `mini_batch` facts fill no mini-batch and are left out. Holds if the bytes grow by
    at most `margin` in all, else it fails: bytes are counted and exact.
    """

    def test(material: Material) -> Verdict:
        rows = material.observations
        if rows.empty or "kind" not in rows:
            return Verdict(NOT_TESTABLE, "No run counted the memory of its passes.")
        rows = rows[(rows["kind"] == "memory") & (rows["editor"] == editor)]
        rows = rows[rows["m"] >= mini_batch].drop_duplicates("m").sort_values("m")
        if len(rows) < 2 or rows["m"].iloc[-1] / rows["m"].iloc[0] < ROOM:
            known = ", ".join(f"{m:g}" for m in rows["m"]) or "none"
            return Verdict(
                NOT_TESTABLE,
                f"Memory of {editor} was counted at too few sizes of at least {mini_batch} facts "
                f"(m = {known}); a factor of {ROOM} between them is needed.",
            )
        first, last = rows.iloc[0], rows.iloc[-1]
        growth = {
            name: last[f"{name}_bytes"] / first[f"{name}_bytes"]
            for name in ("decoupled", "joint", "row_store")
        }
        larger = last["m"] / first["m"]
        evidence = (
            f"From m = {first['m']:g} to {last['m']:g} (times {larger:g}) the decoupled passes of "
            f"{editor} keep {growth['decoupled']:.2f} times as much "
            f"({last['decoupled_bytes'] / 2**20:,.1f} MiB; allowed: {1 + margin:g} times), the row "
            f"store {growth['row_store']:.2f} times, all passes together {growth['joint']:.2f}."
        )
        what, grown = "growth of the decoupled passes", float(growth["decoupled"])
        return exactly(what, AT_MOST, 1 + margin, evidence, grown, n=len(rows))

    return test


@claim_test
def less_time(editor: str, other: str, *, facts: int, tolerance: float = 0.1) -> Test:
    """Training included, `editor` needs less time than `other` for `facts` facts at once.

    Judged at the largest common m. Training is paid once, so a lead there holds for more facts
    too; an arrear at a smaller m tells only where the two would meet. One timing each:
    differences within `tolerance` tell nothing.
    """

    def test(material: Material) -> Verdict:
        rows = material.times
        rows = rows[rows["editor"].isin([editor, other])] if len(rows) else rows
        both = (
            [set(rows.loc[rows["editor"] == name, "m"]) for name in (editor, other)]
            if len(rows)
            else []
        )
        common = set.intersection(*both) if both else set()
        if not common:
            return Verdict(NOT_TESTABLE, f"{editor} and {other} did not both run at one m.")
        m = max(common)
        at = rows[rows["m"] == m].groupby("editor")[["train", "edit"]].mean()
        total = at.sum(axis=1)
        ours, theirs = float(total[editor]), float(total[other])
        evidence = "; ".join(
            f"{name} {_seconds(total[name])} ({_seconds(at.loc[name, 'train'])} of preparation)"
            for name in (editor, other)
        )
        evidence = f"At m = {m}: {evidence}; ratio {ours / max(theirs, 1e-9):.2f}."
        saved = float(at.loc[other, "edit"] - at.loc[editor, "edit"]) / m
        if saved <= 0:
            evidence += " Editing itself is not faster either."
        ratio = ours / max(theirs, 1e-9)
        ends = (ratio / (1 + tolerance), ratio * (1 + tolerance))
        judged = exactly(f"{editor} over {other}, m = {m}", BELOW, 1.0, evidence, *ends, n=len(at))
        if ends[1] < 1 or saved <= 0 or m >= facts:
            return judged
        meet = float(at.loc[editor, "train"] - at.loc[other, "train"]) / saved
        return Verdict(
            NOT_TESTABLE,
            f"{evidence} A fact costs {saved:.2g} s less: by arithmetic, not measured, training "
            f"pays from about {meet:,.0f} facts on, and the claim is about {facts:,}.",
        )

    return test


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


def _seconds(amount: float) -> str:
    return f"{amount:,.0f} s" if amount >= 100 else f"{amount:.3g} s"
