"""How many independent facts would decide each claim, from the spread that finished pages show.

    python benchmarks/facts_that_decide.py                      # outputs/laptop
    python benchmarks/facts_that_decide.py outputs/overnight --open

Reads the CSV files of verdicts beside the pages (`tables/<paper>-verdicts.csv`), which hold the
mean and interval of every row of evidence as the stored records gave them. An interval is taken to
narrow with the root of the number of facts around a mean that stays as it is, and facts to change
as often as they did (a permutation test needs six that do); where none changed, the interval is
Wilson's for none of so many. Prints one row per claim and setting: the facts it has,
its verdict, the facts at which the rule of its rows would decide, and how. A number is an
expectation: with so many facts a claim is decided about every second time.
"""

import argparse
import math
from pathlib import Path

import pandas as pd

from lib.report.claims.verdict import (
    AT_LEAST,
    AT_MOST,
    BELOW,
    FAILS,
    FEWEST_FACTS,
    FEWEST_SIGNIFICANT,
    HOLDS,
    INCONCLUSIVE,
    LEVEL,
    NOT_TESTABLE,
    NOT_WORSE,
)

PLACE = ["page", "kind", "key", "setting"]
UNCLEAR = (math.inf, INCONCLUSIVE)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/laptop"))
    parser.add_argument("--open", action="store_true", help="inconclusive claims only")
    chosen = parser.parse_args()
    frame = needed(read(chosen.folder))
    if chosen.open:
        frame = frame[frame["verdict"] == INCONCLUSIVE]
    print(as_markdown(frame))


def read(folder: Path) -> pd.DataFrame:
    """The rows of evidence of all pages in a folder, with `page`."""
    paths = sorted((folder / "tables").glob("*-verdicts.csv"))
    if not paths:
        raise SystemExit(f"{folder} has no tables/*-verdicts.csv: make the pages first")
    parts = [
        pd.read_csv(path).assign(page=path.name.removesuffix("-verdicts.csv")) for path in paths
    ]
    return pd.concat(parts, ignore_index=True)


def needed(evidence: pd.DataFrame) -> pd.DataFrame:
    """One row per claim and setting that sampled evidence decides: `PLACE`, facts, verdict, needed
    (inf where it is not clear at any number) and then (the verdict with so many)."""
    rows = evidence[evidence["rule"].notna() & (evidence["verdict"] != NOT_TESTABLE)]
    found = []
    for place, part in rows.groupby(PLACE, sort=False):
        if part["exact"].map(str).eq("True").any():
            continue  # counted or timed, whatever the facts
        groups: dict[str, list[tuple[float, str]]] = {}
        for _, row in part.iterrows():
            facts, then = of_row(row, len(part))
            share = max(row["facts"], 1) / max(part["facts"].max(), 1)  # read on a part of them
            decided = facts if math.isinf(facts) else math.ceil(facts / share)
            groups.setdefault(str(row["group"]), []).append((decided, then))
        facts, then = together(HOLDS, [together(FAILS, rows) for rows in groups.values()])
        found.append((*place, int(part["facts"].max()), part["verdict"].iloc[0], facts, then))
    return pd.DataFrame(found, columns=[*PLACE, "facts", "verdict", "needed", "then"])


def together(enough: str, parts: list[tuple[float, str]]) -> tuple[float, str]:
    """When and how parts decide together: as soon as one has the verdict `enough`, else when the
    last of them is decided."""
    deciding = [part for part in parts if part[1] == enough]
    return min(deciding) if deciding else max(parts)


def of_row(row: pd.Series, rows: int = 1) -> tuple[float, str]:
    """The facts at which a row of evidence is decided, and how (see `verdict.outcome`); `rows`: how
    many the verdict has."""
    facts, margin = float(row["facts"]), float(row["margin"])
    mean, low, high = (float(row[name]) for name in ("mean", "low", "high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNCLEAR
    if row["rule"] in (AT_LEAST, AT_MOST, BELOW):
        above = mean >= margin
        width = mean - low if above else high - mean
        word = HOLDS if above == (row["rule"] == AT_LEAST) else FAILS
        return _reached(facts, width, abs(mean - margin), word, FEWEST_FACTS)
    if row["better"] == "lower":
        mean, low, high = -mean, -high, -low
    down, up = mean - low, high - mean
    if mean == 0 and row["p"] == 1 and math.isclose(down, up):
        return _unchanged(facts, up, margin, HOLDS if row["rule"] == NOT_WORSE else FAILS)
    # k changed facts, all in one direction, have p = 2 / 2^k at best, times the comparisons (Holm).
    least = max(FEWEST_SIGNIFICANT, math.floor(math.log2(2 * rows / (1 - LEVEL))) + 1)
    if row["changed"] > 0:
        least = math.ceil(least * facts / row["changed"])
    worse = _reached(facts, up, -mean, FAILS, least)
    ahead = _reached(facts, down, mean, HOLDS, least)
    if row["rule"] == NOT_WORSE:
        return min(_reached(facts, down, mean + margin, HOLDS, FEWEST_FACTS), worse, ahead)
    word = FAILS if row["room"] >= margin else NOT_TESTABLE
    little = _reached(facts, up, margin - mean, word, FEWEST_FACTS)
    return ahead if mean >= margin else min(worse, little)


def _reached(facts: float, width: float, distance: float, word: str, least: int) -> tuple:
    """The facts at which an interval's side is no wider than the way to where it decides."""
    if distance <= 0:
        return UNCLEAR
    return max(float(least), math.ceil(facts * (width / distance) ** 2)), word


def _unchanged(facts: float, share: float, margin: float, word: str) -> tuple[float, str]:
    """The facts of which none may change: Wilson's upper limit of 0 in n is z²/(n + z²)."""
    squared = share * facts / (1 - share)
    return max(float(FEWEST_FACTS), math.ceil(squared * (1 - margin) / margin)), word


def as_markdown(frame: pd.DataFrame) -> str:
    """The table as README has it."""
    lines = [
        "| page | claim | setting | facts | verdict | needed | then |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in frame.itertuples():
        number = f"{row.needed:,.0f}" if math.isfinite(row.needed) else "–"
        lines.append(
            f"| {row.page} | {row.key} | {row.setting} | {row.facts} | {row.verdict} | {number} | "
            f"{row.then} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
