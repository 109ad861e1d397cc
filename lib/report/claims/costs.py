"""Tests of claims about costs: fewest, of constant size, with a bounded overhead."""

import math
from collections.abc import Sequence

from lib.metrics.costs import COSTS, SIZES, costs_by_editor
from lib.metrics.intervals import Interval, mean_interval
from lib.report.claims.verdict import FAILS, HOLDS, UNKNOWN, Material, Test, Verdict, claim_test


@claim_test
def fewest(editor: str, others: Sequence[str], columns: Sequence[str] = ("parameters",)) -> Test:
    """`editor` needs the least of the summed cost `columns` (names in `COSTS`) of all editors.

    Intervals over batches decide for seconds; counts do not vary and are compared as they are.
    """
    unknown = set(columns) - set(COSTS)
    if unknown:
        raise ValueError(f"no cost {', '.join(sorted(unknown))}; there are {', '.join(COSTS)}")

    def test(material: Material) -> Verdict:
        costs = {name: _cost(material, name, columns) for name in (editor, *others)}
        what = " + ".join(columns)
        listed = "; ".join(f"{name} {_amount(cost)}" for name, cost in costs.items())
        evidence = f"{what}: {listed}."
        missing = [name for name, cost in costs.items() if math.isnan(cost.mean)]
        if missing:
            return Verdict(UNKNOWN, f"{evidence} Not measured: {', '.join(missing)}.")
        low, high = _ends(costs[editor])
        rivals = [_ends(costs[other]) for other in others]
        if all(high < rival_low for rival_low, _ in rivals):
            return Verdict(HOLDS, evidence)
        if any(low > rival_high for _, rival_high in rivals):
            return Verdict(FAILS, evidence)
        return Verdict(UNKNOWN, f"{evidence} The amounts are equal or their intervals overlap.")

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
            return Verdict(UNKNOWN, "No edited batch was counted.")
        rows = steps[steps["editor"] == editor]
        rows = rows if setting is None else rows[rows["setting"] == setting]
        rows = rows.dropna(subset=list(columns)).sort_values(["run", "n_edits"])
        total = rows[list(columns)].sum(axis=1).groupby(rows["run"], sort=False)
        seen = [(int(one.iloc[0]), int(one.iloc[-1]), len(one), one.nunique()) for _, one in total]
        longest = max((batches for _, _, batches, _ in seen), default=0)
        if longest < 2:
            return Verdict(UNKNOWN, f"{editor}: no run with two counted batches.")
        first, last, batches, _ = max(seen, key=lambda run: (run[3], run[2]))
        what = " + ".join(column.replace("_", " ") for column in columns)
        evidence = (
            f"{what} of {editor}: {first:,} numbers after the first batch, {last:,} after "
            f"batch {batches}; {len(seen)} run(s) counted."
        )
        return Verdict(HOLDS if all(run[3] == 1 for run in seen) else FAILS, evidence)

    return test


@claim_test
def overhead_below(
    editor: str, bound: float, *, unchanged: Sequence[str] = (), setting: str | None = None
) -> Test:
    """A forward pass with the edits takes at most `bound` (0.2: a fifth) longer than without.

    `unchanged` are editors that add nothing to a pass: the largest difference timed with them is
    noise, and the overhead must lie further than that from the bound. All timed runs must agree.
    """

    def test(material: Material) -> Verdict:
        rows = material.inference
        if not rows.empty:
            rows = rows[rows["overhead"].notna()]
            rows = rows if setting is None else rows[rows["setting"] == setting]
        mine = rows[rows["editor"] == editor] if len(rows) else rows
        if mine.empty:
            return Verdict(UNKNOWN, f"No forward pass of {editor} was timed.")
        noise = rows.loc[rows["editor"].isin(unchanged), "overhead"].abs().max()
        noise = 0.0 if math.isnan(noise) else float(noise)
        low, high = float(mine["overhead"].min()), float(mine["overhead"].max())
        slowest = mine.loc[mine["overhead"].idxmax()]
        evidence = (
            f"Forward pass with the edits of {editor}: {slowest['edited_seconds'] * 1000:.1f} ms "
            f"against {slowest['base_seconds'] * 1000:.1f} ms without, {_percent(high, 1)} at most "
            f"in {len(mine)} timed run(s) (fastest of {int(slowest['repeats'])} repeats); bound "
            f"{_percent(bound, 0)}."
        )
        if noise:
            evidence += f" Editors that add nothing differ by up to {100 * noise:.1f} %."
        if high + noise <= bound:
            return Verdict(HOLDS, evidence)
        return Verdict(FAILS if low - noise > bound else UNKNOWN, evidence)

    return test


@claim_test
def fits(editor: str, gigabytes: float, backbone: str) -> Test:
    """Every run of `editor` on `backbone` stayed below `gigabytes` (GiB) of memory, the model
    included. Runs on another backbone tell nothing: the claim is about that one."""

    def test(material: Material) -> Verdict:
        runs = material.records
        runs = runs[runs["editor"] == editor] if len(runs) else runs
        peaks = material.inference
        if runs.empty or peaks.empty:
            return Verdict(UNKNOWN, f"No run of {editor}.")
        peaks = peaks[peaks["run"].isin(runs["run"])]["peak_gib"].dropna()
        used = " + ".join(dict.fromkeys(runs["backbone"]))
        if peaks.empty:
            return Verdict(UNKNOWN, f"The memory of no run of {editor} was recorded.")
        evidence = f"{editor} on {used}: at most {peaks.max():.1f} GiB in {len(peaks)} run(s)"
        if used != backbone:
            return Verdict(
                UNKNOWN, f"{evidence}; {backbone}, which the claim is about, was not run."
            )
        below = bool(peaks.max() < gigabytes)
        return Verdict(HOLDS if below else FAILS, f"{evidence}; bound {gigabytes:g} GiB.")

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


def _ends(cost: Interval) -> tuple[float, float]:
    return (cost.low, cost.high) if cost.known else (cost.mean, cost.mean)


def _amount(cost: Interval) -> str:
    if math.isnan(cost.mean):
        return "not measured"
    text = f"{cost.mean:,.0f}" if cost.mean >= 100 else f"{cost.mean:.3g}"
    return f"{text} [{cost.low:.3g}, {cost.high:.3g}]" if cost.known else text
