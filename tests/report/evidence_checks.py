"""Verdicts, counts and numbers of finished pages, worked out again from the CSV files beside them.

Written apart from the library's rules, from what README says of them.
"""

import html
import math
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

AWAY = "not testable in this profile"
WORDS = {
    "holds": ("holds", "hold"), "fails": ("fails", "fail"),
    "differs between settings": ("differs between settings", "differ between settings"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
    "by construction": ("holds by construction", "hold by construction"),
    "vacuous": ("is vacuous", "are vacuous"),
    AWAY: (f"is {AWAY}", f"are {AWAY}"),
}  # fmt: skip
CELL = [
    "data", "backbone", "editor", "seed", "rounds", "batch_size", "subset", "moment", "n_edits",
    "score",
]  # fmt: skip


def read(folder: Path, kind: str) -> pd.DataFrame:
    """The CSV files of a kind ("verdicts", "cells") of all reports, with the column "page"."""
    parts = []
    for path in sorted(folder.glob(f"tables/*-{kind}.csv")):
        page = path.name.removesuffix(f"-{kind}.csv")
        parts.append(
            pd.read_csv(path, keep_default_na=False, na_values=["nan", ""]).assign(page=page)
        )
    assert parts, f"no {kind} of any report in {folder}"
    return pd.concat(parts, ignore_index=True)


def says(row: pd.Series) -> str:
    """What a row of evidence says by its rule."""
    if row["rule"] == "no rows":
        return AWAY
    low, high, mean, margin = (float(row[name]) for name in ("low", "high", "mean", "margin"))
    if math.isnan(low) and math.isnan(high):
        low, high, told = -math.inf, math.inf, False
    else:
        told = True
    enough = row["facts"] >= 10 or str(row["exact"]) == "True"
    if row["rule"] in ("at least", "at most", "below"):
        if not (told and enough):
            return "inconclusive"
        true, false = {
            "at least": (low >= margin, high < margin),
            "at most": (high <= margin, low > margin),
            "below": (high < margin, low >= margin),
        }[row["rule"]]
        return "holds" if true else "fails" if false else "inconclusive"
    if row["better"] == "lower":
        low, high, mean = -high, -low, -mean
    significant = row["p"] < 0.05 and row["facts"] >= 5
    if row["rule"] == "not worse":
        if (enough and low >= -margin) or (significant and mean > 0):
            return "holds"
        return "fails" if significant and mean < 0 else "inconclusive"
    assert row["rule"] == "better", row["rule"]
    if significant and mean < 0:
        return "fails"
    if significant and low > 0 and mean >= margin:
        return "holds"
    if not (enough and high <= margin):
        return "inconclusive"
    return AWAY if row["room"] < margin else "fails"


def together(found: Iterable[str]) -> str:
    """Rows that are all needed."""
    found = set(found)
    for word in ("fails", "inconclusive", AWAY, "holds"):
        if word in found:
            return word
    raise AssertionError("no rows")


def check_verdicts(verdicts: pd.DataFrame) -> int:
    """Every verdict follows from its rows of evidence; how many were worked out."""
    checked = 0
    for place, rows in verdicts.groupby(["page", "kind", "setting", "key"], sort=False):
        assert rows["verdict"].nunique() == 1, place
        given, marks = rows["verdict"].iloc[0], rows["marks"].iloc[0]
        assert isinstance(marks, float) or given == "holds", (place, marks)
        rows = rows[rows["rule"].notna()]
        if rows.empty:
            assert given in (AWAY, "inconclusive"), (place, given)
            continue
        found = rows.apply(says, axis=1)
        assert found.tolist() == rows["says"].tolist(), place
        groups = [together(part) for _, part in found.groupby(rows["group"], dropna=False)]
        order = ("holds", "inconclusive", AWAY, "fails")
        word = next(word for word in order if word in groups)
        assert given == word, (place, given, word)
        checked += 1
    return checked


def over_settings(rows: pd.DataFrame) -> str:
    """The verdict on one claim from one row per setting."""
    plain = set(rows.loc[rows["marks"].isna(), "verdict"])
    marks = set(rows["marks"].dropna())
    if {"holds", "fails"} <= plain:
        return "differs between settings"
    order = ["holds", "fails", "by construction", "inconclusive", "vacuous"]
    return next((word for word in order if word in plain | marks), AWAY)


def overall(verdicts: pd.DataFrame) -> pd.Series:
    """The verdict on every claim, by page, kind and key."""
    single = verdicts.drop_duplicates(["page", "kind", "setting", "key"])
    names = ["page", "kind", "key"]
    return single.groupby(names, sort=False)[["verdict", "marks"]].apply(over_settings)


def counted(found: pd.Series) -> str:
    """ "2 hold, 1 fails, 1 is inconclusive"."""
    counts = found.value_counts()
    return ", ".join(
        f"{counts.get(word, 0)} {(one, many)[int(counts.get(word, 0) != 1)]}"
        for word, (one, many) in WORDS.items()
        if counts.get(word, 0) or word in ("holds", "fails")
    )


def check_front_page(index: Path, verdicts: pd.DataFrame) -> None:
    """Every count of the front page is that of the CSV files."""
    text = html.unescape(re.sub(r"<[^>]*>", "", index.read_text("utf-8").split("</style>")[1]))
    found = overall(verdicts)
    for kind, name, verb in (
        ("claim", "Claims that hold", "claim"), ("finding", "Findings that hold", "finding"),
    ):  # fmt: skip
        mine = found[found.index.get_level_values("kind") == kind]
        tested = (mine != AWAY).sum()
        assert f"{name}{(mine == 'holds').sum()} of {tested} tested" in text, (name, counted(mine))
        said = rf"Of {len(mine)} {verb}s? of [^.]*?, {re.escape(counted(mine))}\."
        assert re.search(said, text), (kind, counted(mine))
    for page, mine in found.groupby("page"):
        told = mine[mine.index.get_level_values("kind") == "claim"]
        if len(told):
            assert f"Claims: {counted(told)}" in text, (page, counted(told))


def contradictions(verdicts: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """Where two pages, or two places of one, say different things of one sentence about one editor,
    of one row of evidence, or of one cell (same editor, data, protocol, prompts, moment, score)."""
    found = []
    said = overall(verdicts).rename("says").reset_index()
    first = verdicts.drop_duplicates(["page", "kind", "key"])
    said = said.merge(first[["page", "kind", "key", "sentence", "editor"]])
    for (sentence, editor), rows in said.groupby(["sentence", "editor"], dropna=False):
        if {"holds", "fails"} <= set(rows["says"]):
            found.append(f"{sentence} ({editor}): {', '.join(rows['page'] + ' ' + rows['says'])}")
    same = [
        "data", "editor", "row", "metric", "subset", "mean", "n", "facts", "reference", "level",
    ]  # fmt: skip
    drawn = verdicts[verdicts["rule"].isin(["not worse", "better"]) & verdicts["data"].notna()]
    for place, rows in drawn.groupby(same, dropna=False):
        if rows[["low", "high"]].round(9).nunique(dropna=False).max() > 1:
            found.append(f"{place}: {rows[['page', 'low', 'high']].values.tolist()}")
    for place, rows in cells.groupby(CELL, dropna=False):
        if rows["n"].nunique() > 1 or rows["mean"].max() - rows["mean"].min() > 1e-9:
            found.append(f"{place}: {rows[['page', 'n', 'mean']].values.tolist()}")
    return found
