"""Tests of claims about costs: fewest, of constant size, with a bounded overhead."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lib.metrics.costs import COSTS, SIZES, batch_sizes, costs_by_editor
from lib.metrics.intervals import Interval, mean_interval
from lib.report.claims.verdict import (
    AT_MOST,
    BELOW,
    NOT_TESTABLE,
    UNTOLD,
    Evidence,
    Material,
    Test,
    Verdict,
    claim_test,
    exactly,
    named,
)

TINY = 1e-12  # of a cost: nothing is divided by 0


@claim_test
def fewest(
    editor: str, others: Sequence[str], columns: Sequence[str] = ("parameters",), *,
    prepared: Sequence[str] = (),
) -> Test:  # fmt: skip
    """`editor` needs less of the summed cost `columns` (names in `COSTS`) than each of `others`.

    Intervals over batches decide for seconds; counts do not vary and are compared as they are.
    `prepared`: editors whose seconds count their preparation before the first edit too (a training
    that belongs to the method), spread over the edits of the run.
    """
    unknown = set(columns) - set(COSTS)
    if unknown:
        raise ValueError(f"no cost {', '.join(sorted(unknown))}; there are {', '.join(COSTS)}")

    def test(material: Material) -> Verdict:
        costs = {name: _cost(material, name, columns) for name in (editor, *others)}
        for name in set(prepared) & set(costs):
            costs[name] = _with_preparation(material, name, costs[name])
        what = " + ".join(map(named, columns))
        told = "; ".join(f"{name} {_amount(cost)}" for name, cost in costs.items())
        also = [name for name in costs if name in prepared]
        note = f" With the preparation before the first edit: {', '.join(also)}." if also else ""
        evidence = f"{what}: {told}.{note}"
        missing = [name for name, cost in costs.items() if math.isnan(cost.mean)]
        if missing:
            evidence += f" Not measured: {', '.join(missing)}."
        return Verdict.of([_ratio(costs, editor, other) for other in others], evidence)

    return test


@claim_test
def faster_as_published(editor: str, other: str, steps: Mapping[str, Sequence[int]]) -> Test:
    """At the published number of optimiser steps of each, `editor` needs fewer seconds per edit
    than `other`; seconds are taken to grow with the steps.

    `steps`: editor to (steps of the runs, published steps). The seconds of a single step stand in
    the evidence; they decide nothing, because methods need different numbers of them.
    """

    def test(material: Material) -> Verdict:
        measured = {name: _cost(material, name, ["seconds_per_edit"]) for name in (editor, other)}
        scaled = {
            name: _times(cost, steps[name][1] / steps[name][0]) for name, cost in measured.items()
        }
        told = "; ".join(
            f"{name} {_amount(scaled[name])} at {steps[name][1]} steps (measured "
            f"{_amount(measured[name])} at {steps[name][0]}: "
            f"{1000 * measured[name].mean / steps[name][0]:.3g} ms per step and edit)"
            for name in scaled
        )
        evidence = f"Seconds per edit at each one's published settings: {told}."
        return Verdict.of([_ratio(scaled, editor, other)], evidence)

    return test


@claim_test
def constant_size(
    editor: str, columns: Sequence[str] = SIZES, *, setting: str | None = None
) -> Test:
    """The summed counts `columns` are the same number after every batch of a run.

    One batch per run cannot tell. Counts are exact, so any difference fails.
    """

    def test(material: Material) -> Verdict:
        steps = material.steps
        if steps.empty or any(column not in steps for column in ("editor", *columns)):
            return Verdict(NOT_TESTABLE, "No edited batch was counted.")
        rows = steps[steps["editor"] == editor]
        rows = rows if setting is None else rows[rows["setting"] == setting]
        rows = rows.dropna(subset=list(columns)).sort_values(["run", "n_edits"])
        total = rows[list(columns)].sum(axis=1).groupby(rows["run"], sort=False)
        seen = [(int(one.iloc[0]), int(one.iloc[-1]), len(one), one.nunique()) for _, one in total]
        longest = max((batches for _, _, batches, _ in seen), default=0)
        if longest < 2:
            return Verdict(NOT_TESTABLE, f"{editor}: no run with two counted batches.")
        first, last, batches, _ = max(seen, key=lambda run: (run[3], run[2]))
        what = " + ".join(map(named, columns))
        evidence = (
            f"{what} of {editor}: {first:,} numbers after the first batch, {last:,} after "
            f"batch {batches}; {len(seen)} run(s) counted."
        )
        most = max(run[3] for run in seen)
        return exactly(f"sizes of {editor} in one run", AT_MOST, 1, evidence, most, n=len(seen))

    return test


@claim_test
def overhead_below(
    editor: str, bound: float, *, unchanged: Sequence[str] = (), setting: str | None = None
) -> Test:
    """A forward pass with the edits takes at most `bound` (0.2: a fifth) longer than without.

    `unchanged` are editors that add nothing to a pass: the largest difference timed with them is
    noise, as is a pass that the edits make faster, and the overhead must lie further than that from
    the bound. All timed runs must agree.
    """

    def test(material: Material) -> Verdict:
        rows = material.inference
        if not rows.empty:
            rows = rows[rows["overhead"].notna()]
            rows = rows if setting is None else rows[rows["setting"] == setting]
        mine = rows[rows["editor"] == editor] if len(rows) else rows
        if mine.empty:
            return Verdict(NOT_TESTABLE, f"No forward pass of {editor} was timed.")
        noise = rows.loc[rows["editor"].isin(unchanged), "overhead"].abs().max()
        noise = 0.0 if math.isnan(noise) else float(noise)
        low, high = float(mine["overhead"].min()), float(mine["overhead"].max())
        noise = max(noise, -low)
        slowest = mine.loc[mine["overhead"].idxmax()]
        evidence = (
            f"Forward pass with the edits of {editor}: {slowest['edited_seconds'] * 1000:.1f} ms "
            f"against {slowest['base_seconds'] * 1000:.1f} ms without, {_percent(high, 1)} at most "
            f"in {len(mine)} timed run(s) (fastest of {int(slowest['repeats'])} repeats); bound "
            f"{_percent(bound, 0)}."
        )
        if noise:
            evidence += f" Noise of the timing: {100 * noise:.1f} %."
        ends = (low - noise, max(high, 0.0) + noise)
        return exactly(f"overhead of {editor}", AT_MOST, bound, evidence, *ends, n=len(mine))

    return test


@claim_test
def fits(editor: str, gigabytes: float, backbone: str, planned: float | None = None) -> Test:
    """Every run of `editor` on `backbone` stayed below `gigabytes` (GiB) of memory, the model
    included. Runs on another backbone tell nothing: the claim is about that one, and is then
    answered by arithmetic alone, `planned`: the GiB that the plan reckons with there."""

    def test(material: Material) -> Verdict:
        runs = material.records
        runs = runs[runs["editor"] == editor] if len(runs) else runs
        peaks = material.inference
        if runs.empty or peaks.empty:
            return Verdict(NOT_TESTABLE, f"No run of {editor}.")
        peaks = peaks[peaks["run"].isin(runs["run"])]["peak_gib"].dropna()
        used = " + ".join(dict.fromkeys(runs["backbone"]))
        if peaks.empty:
            return Verdict(NOT_TESTABLE, f"The memory of no run of {editor} was recorded.")
        evidence = f"{editor} on {used}: at most {peaks.max():.1f} GiB in {len(peaks)} run(s)"
        if used != backbone:
            evidence += f"; {backbone}, which the claim is about, was not run."
            if planned is not None:
                within = "within" if planned < gigabytes else "beyond"
                evidence += (
                    f" By arithmetic, not measured: the plan reckons with {planned:g} GiB there, "
                    f"{within} {gigabytes:g}."
                )
            return Verdict(NOT_TESTABLE, evidence)
        evidence += f"; bound {gigabytes:g} GiB."
        most = float(peaks.max())
        return exactly(f"memory of {editor}", BELOW, gigabytes, evidence, most, n=len(peaks))

    return test


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:+.{digits}f} %".replace("-", "−")


def _cost(material: Material, editor: str, columns: Sequence[str]) -> Interval:
    costs = costs_by_editor(material.records, material.steps)
    costs = costs[costs["editor"] == editor]
    total = costs[list(columns)].sum(axis=1, skipna=False)
    if "seconds_per_edit" not in columns:  # constant within a run: one value per run
        total = total.groupby(costs["run"]).first()
    return mean_interval(total)


def _with_preparation(material: Material, editor: str, cost: Interval) -> Interval:
    """Seconds per edit with those of the preparation, as it was when it was done, spread over the
    edits of the run."""
    rows, steps, seen = material.inference, material.steps, material.observations
    rows = rows[rows["editor"] == editor] if len(rows) else rows
    if rows.empty:
        return replace(cost, mean=math.nan)
    spent = rows.set_index("run")["fit_seconds"]
    if "kind" in seen:  # a network found in the cache was trained before
        trained = seen[(seen["kind"] == "training") & seen["run"].isin(spent.index)]
        spent = spent.combine(trained.groupby("run")["seconds"].max().reindex(spent.index), max)
    order = steps.sort_values(["run", "n_edits"] if "batch" not in steps else ["run", "batch"])
    edits = batch_sizes(order).groupby(order["run"]).sum().reindex(spent.index)
    return _moved(cost, float((spent / edits).mean()))


def _moved(cost: Interval, by: float) -> Interval:
    return replace(cost, mean=cost.mean + by, low=cost.low + by, high=cost.high + by)


def _times(cost: Interval, factor: float) -> Interval:
    return replace(cost, mean=cost.mean * factor, low=cost.low * factor, high=cost.high * factor)


def _ratio(costs: Mapping[str, Interval], editor: str, other: str) -> Evidence:
    """Ours over theirs: from the least to the most that both intervals allow."""
    ours, theirs = costs[editor], costs[other]
    name = f"{editor} over {other}"
    if math.isnan(ours.mean) or math.isnan(theirs.mean):
        return Evidence(name, UNTOLD)
    (low, high), (least, most) = _ends(ours), _ends(theirs)
    ends = (low / max(most, TINY), ours.mean / max(theirs.mean, TINY), high / max(least, TINY))
    return Evidence(
        name, BELOW, ends[1], ends[0], ends[2], min(ours.n, theirs.n), 0, 1.0, exact=True
    )


def _ends(cost: Interval) -> tuple[float, float]:
    return (cost.low, cost.high) if cost.known else (cost.mean, cost.mean)


def _amount(cost: Interval) -> str:
    if math.isnan(cost.mean):
        return "not measured"
    text = f"{cost.mean:,.0f}" if cost.mean >= 100 else f"{cost.mean:.3g}"
    return f"{text} [{cost.low:.3g}, {cost.high:.3g}]" if cost.known else text
