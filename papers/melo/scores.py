"""Scored rows of MELO's runs: groups of Table 2, the released scores, perplexities."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lib.editors.base import UNEDITED
from lib.metrics import perplexity, scores
from lib.runs.study import Study
from papers.common import kept

# How a perplexity is averaged (melo 5), and which loss it is of.
PERPLEXITIES = {
    "released": "answer_nll_released",
    "rows": "answer_nll_released",
    "prompt": "answer_nll",
}
# By group: a row's score, the same as the official code has it, and its mean over a batch (melo 5).
OFFICIAL_MEANS = {
    "zsre": ("f1_released", "f1_ids_released", scores.released_batch_mean),
    "scotus": ("exact_match", "exact_match", scores.mean),
}
# What an edit is for, by group, and how an axis calls it.
SUCCESS = {
    "zsre": ("exact_match", "exact match"),
    "scotus": ("exact_match", "class as asked"),
    "hallucination": ("token_accuracy", "token accuracy, target given"),
}


def group_of(study: Study, setting: str) -> str:
    """The column group of Table 2 that a setting belongs to: the paper profile's dataset."""
    return study.original["settings"][setting]["dataset"]


def success(study: Study, setting: str) -> tuple[str, str]:
    """The column that says how well a setting's edits stand, and its name."""
    return SUCCESS[group_of(study, setting)]


def scored(study: Study, setting: str | None = None, sweep: str | None = "") -> pd.DataFrame:
    """Records with `f1_released` (the official F1, 0 where nothing overlaps), `served` (1 where an
    edit is applied while decoding) and the subset `released_holdout`: the edited prompts, which the
    released code scored as "holdout"."""
    records = study.records(setting, sweep)
    if records.empty:
        return records.assign(f1_released=[], served=[], subset=[], moment=[], n_edits=[])
    undefined = records["f1_ids"].notna() & records["f1_ids_released"].isna()
    records = records.assign(
        f1_released=records["f1_ids_released"].mask(undefined, 0.0),
        served=(records["route"] != UNEDITED).astype(float),
    )
    again = records[(records["subset"] == "edits") & (records["moment"] != "own")]
    again = again[again["f1_released"].notna()].assign(subset="released_holdout")
    return pd.concat([records, again], ignore_index=True)


def perplexities(records: pd.DataFrame, reading: str, subset: str) -> pd.DataFrame:
    """What a reading of perplexity averages, as rows with `perplexity`: one per batch ("released")
    or per scored row ("rows", "prompt"), of every editor and moment."""
    column = PERPLEXITIES[reading]
    rows = records[records["subset"] == subset] if len(records) else records
    rows = rows[rows[column].notna() & (rows["tokens"] > 0)] if column in rows else rows.iloc[:0]
    if rows.empty:
        return rows.assign(perplexity=[])
    if reading != "released":
        return rows.assign(perplexity=perplexity.of_rows(rows[column]))
    parts = []
    for _, part in rows.groupby(["run", "moment", "n_edits", "batch"], sort=False):
        value = perplexity.of_corpus(part[column], part["tokens"])
        parts.append(part.head(1).assign(perplexity=value))
    return pd.concat(parts, ignore_index=True)


def official_averages(study: Study, setting: str) -> pd.DataFrame:
    """Edit success, held-out generality and locality averaged as the official code does, beside
    the mean of rows: F1 of questions, accuracy of documents.

    Batches are averaged instead of rows, so that a short one counts as much as a full one, and one
    row whose F1 has no overlap zeroes its batch.
    """
    column, released, mean_of = OFFICIAL_MEANS[group_of(study, setting)]
    records = scored(study, setting)
    if column not in records or records[column].isna().all():
        return pd.DataFrame()
    rows = []
    end = records[(records["moment"] == "end") & records[column].notna()]
    for (editor, subset), part in end.groupby(["editor", "subset"], sort=False):
        batches = [b[released].tolist() for _, b in part.groupby(["run", "batch"])]
        official = [[mean_of(batch)] for batch in batches]
        rows.append(
            {
                "editor": editor,
                "subset": subset,
                "mean of rows": part[column].mean(),
                "official mean": scores.mean_of_batches(official),
                "batches": len(batches),
                "rows": len(part),
            }
        )
    frame = kept(study, f"melo-official-averages-{setting}", pd.DataFrame(rows))
    frame = frame.replace({"subset": {"released_holdout": "holdout as released"}})
    values = ["mean of rows", "official mean"]
    return frame.pivot(index="editor", columns="subset", values=values).reindex(
        [name for name in study.editors(setting) if name in set(frame["editor"])]
    )


def for_group(study: Study, value: Any, group: str) -> Any:
    """A value of a claim as one group has it: a mapping by group holds one each, None where it has
    none for this group."""
    groups = set(study.document["tables"]["table2"]["groups"])
    if isinstance(value, Mapping) and set(value) <= groups:
        return value.get(group)
    return value
