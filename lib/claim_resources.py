"""Tests of claims about the memory of meta-training's passes and about total computation time."""

from lib.findings import FAILS, HOLDS, UNKNOWN, Finding, Material, Test

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
