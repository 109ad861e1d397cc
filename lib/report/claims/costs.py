"""Tests of claims about costs: fewest, of constant size, with a bounded overhead."""

import math
from collections.abc import Sequence

from lib.metrics.costs import COSTS, SIZES, costs_by_editor
from lib.metrics.intervals import Interval, mean_interval
from lib.report.claims.verdict import FAILS, HOLDS, UNKNOWN, Finding, Material, Test


def fewest(editor: str, others: Sequence[str], columns: Sequence[str] = ("parameters",)) -> Test:
    """`editor` needs the least of the summed cost `columns` (names in `COSTS`) of all editors.

    Intervals over batches decide for seconds; counts do not vary and are compared as they are.
    """
    unknown = set(columns) - set(COSTS)
    if unknown:
        raise ValueError(f"no cost {', '.join(sorted(unknown))}; there are {', '.join(COSTS)}")

    def test(material: Material) -> Finding:
        costs = {name: _cost(material, name, columns) for name in (editor, *others)}
        what = " + ".join(columns)
        listed = "; ".join(f"{name} {_amount(cost)}" for name, cost in costs.items())
        evidence = f"{what}: {listed}."
        missing = [name for name, cost in costs.items() if math.isnan(cost.mean)]
        if missing:
            return Finding(UNKNOWN, f"{evidence} Not measured: {', '.join(missing)}.")
        low, high = _ends(costs[editor])
        rivals = [_ends(costs[other]) for other in others]
        if all(high < rival_low for rival_low, _ in rivals):
            return Finding(HOLDS, evidence)
        if any(low > rival_high for _, rival_high in rivals):
            return Finding(FAILS, evidence)
        return Finding(UNKNOWN, f"{evidence} The amounts are equal or their intervals overlap.")

    return test


def constant_size(
    editor: str, columns: Sequence[str] = SIZES, *, setting: str | None = None
) -> Test:
    """The summed counts `columns` are the same number after every batch of a run.

    One batch per run cannot tell. Counts are exact, so any difference fails.
    """

    def test(material: Material) -> Finding:
        steps = material.steps
        if steps.empty or any(column not in steps for column in ("editor", *columns)):
            return Finding(UNKNOWN, "No edited batch was counted.")
        rows = steps[steps["editor"] == editor]
        rows = rows if setting is None else rows[rows["setting"] == setting]
        rows = rows.dropna(subset=list(columns)).sort_values(["run", "n_edits"])
        total = rows[list(columns)].sum(axis=1).groupby(rows["run"], sort=False)
        seen = [(int(one.iloc[0]), int(one.iloc[-1]), len(one), one.nunique()) for _, one in total]
        longest = max((batches for _, _, batches, _ in seen), default=0)
        if longest < 2:
            return Finding(UNKNOWN, f"{editor}: no run with two counted batches.")
        first, last, batches, _ = max(seen, key=lambda run: (run[3], run[2]))
        what = " + ".join(column.replace("_", " ") for column in columns)
        evidence = (
            f"{what} of {editor}: {first:,} numbers after the first batch, {last:,} after "
            f"batch {batches}; {len(seen)} run(s) counted."
        )
        return Finding(HOLDS if all(run[3] == 1 for run in seen) else FAILS, evidence)

    return test


def overhead_below(
    editor: str, bound: float, *, unchanged: Sequence[str] = (), setting: str | None = None
) -> Test:
    """A forward pass with the edits takes at most `bound` (0.2: a fifth) longer than without.

    `unchanged` are editors that add nothing to a pass: the largest difference timed with them is
    noise, and the overhead must lie further than that from the bound. All timed runs must agree.
    """

    def test(material: Material) -> Finding:
        rows = material.inference
        if not rows.empty:
            rows = rows[rows["overhead"].notna()]
            rows = rows if setting is None else rows[rows["setting"] == setting]
        mine = rows[rows["editor"] == editor] if len(rows) else rows
        if mine.empty:
            return Finding(UNKNOWN, f"No forward pass of {editor} was timed.")
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
            return Finding(HOLDS, evidence)
        return Finding(FAILS if low - noise > bound else UNKNOWN, evidence)

    return test


def fits(editor: str, gigabytes: float, backbone: str) -> Test:
    """Every run of `editor` on `backbone` stayed below `gigabytes` (GiB) of memory, the model
    included. Runs on another backbone tell nothing: the claim is about that one."""

    def test(material: Material) -> Finding:
        runs = material.records
        runs = runs[runs["editor"] == editor] if len(runs) else runs
        peaks = material.inference
        if runs.empty or peaks.empty:
            return Finding(UNKNOWN, f"No run of {editor}.")
        peaks = peaks[peaks["run"].isin(runs["run"])]["peak_gib"].dropna()
        used = " + ".join(dict.fromkeys(runs["backbone"]))
        if peaks.empty:
            return Finding(UNKNOWN, f"The memory of no run of {editor} was recorded.")
        evidence = f"{editor} on {used}: at most {peaks.max():.1f} GiB in {len(peaks)} run(s)"
        if used != backbone:
            return Finding(
                UNKNOWN, f"{evidence}; {backbone}, which the claim is about, was not run."
            )
        below = bool(peaks.max() < gigabytes)
        return Finding(HOLDS if below else FAILS, f"{evidence}; bound {gigabytes:g} GiB.")

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


ROOM = 4  # m must grow at least so many times before a memory can be called flat


def passes_stay_flat(editor: str, mini_batch: int, *, margin: float = 0.25) -> Test:
    """What the decoupled passes of a meta-step keep does not grow with m; the row store is apart.

    Sizes below `mini_batch` facts fill no mini-batch and are left out. Holds if the bytes grow by
    at most `margin` in all; fails if they grow more than half as fast as m.
    """

    def test(material: Material) -> Finding:
        rows = material.observations
        if rows.empty or "kind" not in rows:
            return Finding(UNKNOWN, "No run counted the memory of its passes.")
        rows = rows[(rows["kind"] == "memory") & (rows["editor"] == editor)]
        rows = rows[rows["m"] >= mini_batch].drop_duplicates("m").sort_values("m")
        if len(rows) < 2 or rows["m"].iloc[-1] / rows["m"].iloc[0] < ROOM:
            known = ", ".join(f"{m:g}" for m in rows["m"]) or "none"
            return Finding(
                UNKNOWN,
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
        if growth["decoupled"] <= 1 + margin:
            return Finding(HOLDS, evidence)
        return Finding(FAILS if growth["decoupled"] > larger / 2 else UNKNOWN, evidence)

    return test


def less_time(editor: str, other: str, *, facts: int, tolerance: float = 0.1) -> Test:
    """Training included, `editor` needs less time than `other` for `facts` facts at once.

    Judged at the largest common m. Training is paid once, so a lead there holds for more facts
    too; an arrear at a smaller m tells only where the two would meet. One timing each:
    differences within `tolerance` tell nothing.
    """

    def test(material: Material) -> Finding:
        rows = material.times
        rows = rows[rows["editor"].isin([editor, other])] if len(rows) else rows
        both = (
            [set(rows.loc[rows["editor"] == name, "m"]) for name in (editor, other)]
            if len(rows)
            else []
        )
        common = set.intersection(*both) if both else set()
        if not common:
            return Finding(UNKNOWN, f"{editor} and {other} did not both run at one m.")
        m = max(common)
        at = rows[rows["m"] == m].groupby("editor")[["train", "edit"]].mean()
        total = at.sum(axis=1)
        ours, theirs = float(total[editor]), float(total[other])
        evidence = "; ".join(
            f"{name} {_seconds(total[name])} ({_seconds(at.loc[name, 'train'])} of preparation)"
            for name in (editor, other)
        )
        evidence = f"At m = {m}: {evidence}; ratio {ours / max(theirs, 1e-9):.2f}."
        if ours < (1 - tolerance) * theirs:
            return Finding(HOLDS, evidence)
        saved = float(at.loc[other, "edit"] - at.loc[editor, "edit"]) / m
        if saved <= 0:
            return Finding(FAILS, f"{evidence} Editing itself is not faster either.")
        if m >= facts:
            late = ours > (1 + tolerance) * theirs
            return Finding(FAILS if late else UNKNOWN, evidence)
        meet = float(at.loc[editor, "train"] - at.loc[other, "train"]) / saved
        return Finding(
            UNKNOWN,
            f"{evidence} A fact costs {saved:.2g} s less: training pays from about {meet:,.0f} "
            f"facts on, and the claim is about {facts:,}.",
        )

    return test


def _seconds(amount: float) -> str:
    return f"{amount:,.0f} s" if amount >= 100 else f"{amount:.3g} s"
