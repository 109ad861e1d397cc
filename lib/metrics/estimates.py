"""From scored rows to a number with its interval: the one way that tables, figures and claims take,
so that one number has one interval wherever it stands.

The unit of resampling. Rows of one fact rise and fall together, and so do the facts of one batch of
edits: they were edited at once, and another order would have put other facts beside them. Scores
that a batch is answerable for (its edits, their rephrases and what follows from them; right after
the batch everything that belongs to it) are resampled by whole batches where there are at least
`FEWEST_BATCHES`; with fewer an interval over batches would be far too narrow or absurdly wide, and
facts are resampled. Everything else is resampled by facts. Where a fact stands in several batches
(several orders, or rephrases that are edits of their own) neither unit holds the other: the wider
of the two intervals counts. Where all batches score alike none can be seen to differ: facts count.

p-values flip the signs of whole facts; over batches, which are few, they are Student's.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

import pandas as pd

from lib.metrics.intervals import Difference, Interval, facts, mean_interval, paired_difference
from lib.metrics.scales import scale_of

FEWEST_BATCHES = 10
OWN_SUBSETS = ("edits", "holdout", "portability")  # what a batch of edits is answerable for
FACT, BATCH, EVALUATED, ROW = "fact", "batch", "evaluation batch", "row"
WORDS = {FACT: "facts", EVALUATED: "batches of an evaluation", ROW: "rows"}
UNITS = ("unit", "edit_batch", "by_batch")
_Found = TypeVar("_Found", Interval, Difference)


def with_units(records: pd.DataFrame) -> pd.DataFrame:
    """Records with `unit` (the fact of the edit that a row belongs to, or the row's own),
    `edit_batch` (the batch of that edit, -1 for rows of shared pools) and `by_batch` (whether the
    batch is answerable for the row's score). Records that have them stay as they are."""
    if all(name in records for name in UNITS):
        return records
    if records.empty:
        kinds = zip(UNITS, (object, int, bool), strict=True)
        return records.assign(**{name: pd.Series(dtype=kind) for name, kind in kinds})
    own = _own(records)
    if "edit_index" not in records:
        return records.assign(unit=own, edit_batch=-1, by_batch=False)
    edits = records.assign(unit=own)[(records["subset"] == "edits") & (records["edit_index"] >= 0)]
    edits = edits.drop_duplicates(["run", "edit_index"]).set_index(["run", "edit_index"])
    edits = edits if "batch" in edits else edits.assign(batch=-1)
    owners = edits[["unit", "batch"]].reindex(
        pd.MultiIndex.from_frame(records[["run", "edit_index"]])
    )
    owner = pd.Series(owners["unit"].to_numpy(), index=records.index, dtype=object)
    batch = pd.Series(owners["batch"].to_numpy(), index=records.index)
    batch = batch.astype(float).fillna(-1).astype(int)
    answerable = records["subset"].isin(OWN_SUBSETS) | (records["moment"] == "own")
    return records.assign(
        unit=owner.where(owner.notna(), own),
        edit_batch=batch,
        by_batch=(batch >= 0) & answerable & (records["moment"] != "before"),
    )


def _own(rows: pd.DataFrame) -> pd.Series:
    """The fact that a row itself is about."""
    if "fact" in rows:
        return rows["fact"]
    return pd.Series(facts(rows["record"]), index=rows.index, dtype=object)


def estimate(rows: pd.DataFrame, column: str, *, level: float = 0.95) -> Interval:
    """The mean of a declared score (`lib.metrics.scales`) over scored rows, with its interval."""
    rows = rows[rows[column].notna()]
    values, scale = rows[column].astype(float), scale_of(column)
    found = [
        replace(mean_interval(values, scale=scale, groups=labels, level=level), unit=unit)
        for unit, labels in _groupings(rows, values)
    ]
    return replace(_wider(found), facts=_count(rows))


def difference(a: pd.DataFrame, b: pd.DataFrame, column: str, *, level: float = 0.95) -> Difference:
    """The mean of a - b over the rows that both have (the same prompt of the same record, setting
    and order seed), with its interval and p-value."""
    keys = [name for name in ("setting", "seed", "record", "prompt") if name in a and name in b]
    left, right = (_by_row(side, keys, column) for side in (a, b))
    rows = left.join(right[[column]].add_suffix("_other"), how="inner")
    known = rows[column].notna() & rows[f"{column}_other"].notna()
    rows, other = rows[known], right.reindex(rows.index[known])
    answerable = rows["by_batch"] | other["by_batch"]
    rows = rows.assign(edit_batch=_coarser(rows, other), by_batch=answerable).reset_index()
    first, second, how = rows[column], rows[f"{column}_other"], {"scale": scale_of(column)}
    found = [
        replace(
            paired_difference(
                first, second, groups=labels, level=level, student=unit == BATCH, **how
            ),
            unit=unit,
        )
        for unit, labels in _groupings(rows, first - second)
    ]
    return replace(_wider(found), facts=_count(rows))


def by_fact(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per fact, setting and order seed: the mean of every number over its rows, so that
    different prompts about the same fact can be compared (`difference`)."""
    rows = _labelled(rows)
    named = rows.assign(record=rows["unit"], prompt="")
    keys = [name for name in ("setting", "seed", "record", "prompt") if name in named]
    found = named.groupby(keys).mean(numeric_only=True).reset_index()
    whole = named.groupby(keys)["edit_batch"].agg(["first", "nunique"]).reset_index()
    one = (whole["nunique"] == 1) & (found["by_batch"] == 1)
    return found.assign(
        unit=found["record"], edit_batch=whole["first"].where(one, -1), by_batch=one
    )


def labels_of(rows: pd.DataFrame, column: str) -> Iterable[object]:
    """A label per row: the unit that `estimate` resamples, facts where it weighs two units."""
    return _groupings(rows, rows[column].astype(float))[0][1]


def _by_row(rows: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """One row per scored prompt: the mean score over whatever else differs, and its unit."""
    rows = _labelled(rows)
    grouped = rows.assign(**{column: rows[column].astype(float)}).groupby(keys)
    return grouped.agg(
        **{column: (column, "mean"), "unit": ("unit", "first"),
           "edit_batch": ("edit_batch", "first"), "by_batch": ("by_batch", "first")}
    )  # fmt: skip


def _coarser(rows: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """Whose batches are the unit where both sides have some: those of which there are fewer."""
    sides = [side for side in (rows, other) if len(side) and side["by_batch"].all()]
    chosen = min(sides, key=lambda side: len(_batches(side.reset_index())[1]), default=rows)
    return chosen["edit_batch"]


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with all of `UNITS`; of rows made from records without them only facts are known."""
    if all(name in rows for name in UNITS):
        return rows
    unit = rows["unit"] if "unit" in rows else _own(rows)
    return rows.assign(unit=unit, edit_batch=-1, by_batch=False)


def _groupings(rows: pd.DataFrame, values: pd.Series) -> list[tuple[str, Iterable[object]]]:
    """The units to resample, each with its name and a label per row."""
    if not any(name in rows for name in ("unit", "fact", "record")):
        return [(ROW, range(len(rows)))]
    rows = _labelled(rows)
    by_fact = (FACT, rows["unit"].astype(str))
    if rows.empty or not rows["by_batch"].all():
        return [by_fact]
    labels, batches = _batches(rows)
    alike = values.groupby(labels).mean().nunique() < 2
    if alike or len(batches) == rows["unit"].nunique():
        return [by_fact]
    if len(batches) < FEWEST_BATCHES:
        return [(f"{FACT} ({len(batches)} batches)", by_fact[1])]
    nested = labels.groupby(rows["unit"].astype(str)).nunique().max() == 1
    return [(BATCH, labels)] if nested else [by_fact, (BATCH, labels)]


def _batches(rows: pd.DataFrame) -> tuple[pd.Series, set[str]]:
    names = [name for name in ("setting", "seed", "edit_batch") if name in rows]
    labels = rows[names[-1]].astype(str)
    for name in names[:-1]:
        labels = rows[name].astype(str) + "/" + labels
    return labels, set(labels)


def _wider(found: list[_Found]) -> _Found:
    return max(found, key=lambda one: one.high - one.low if one.known else -1.0)


def _count(rows: pd.DataFrame) -> int:
    if not any(name in rows for name in ("unit", "fact", "record")):
        return len(rows)
    return _labelled(rows)["unit"].nunique()


def counted(found: Interval) -> str:
    """How much a number rests on: "n = 48", "n = 40 rows of 10 facts", "n = 100 in 10 batches"."""
    of = f" rows of {found.facts} facts" if found.facts not in (0, found.n) else ""
    within = f" in {found.clusters} batches" if found.unit == BATCH else ""
    return f"n = {found.n}{of}{within}"


def resampled(units: Iterable[str]) -> str:
    """What intervals resample, in words: "batches of edits, or facts where these are fewer than
    10". Facts that count where all rows agree, or before any edit, go without saying."""
    known = dict.fromkeys(unit for unit in units if unit)
    few = any(unit.startswith(f"{FACT} (") for unit in known)
    if BATCH in known:
        return "batches of edits" + (f", or facts of fewer than {FEWEST_BATCHES}" if few else "")
    if few:
        return f"facts, there being fewer than {FEWEST_BATCHES} batches of edits"
    return next((words for unit, words in WORDS.items() if unit in known), "rows")
