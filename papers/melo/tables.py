"""MELO's tables of scores: Table 2 by column group, its numbers' origin, what is really decoded."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from lib.report import tables
from lib.report.reported import reported_value
from lib.report.tables import UNEDITED_MODEL
from lib.runs.study import Study
from papers import common
from papers.common import substitutions
from papers.melo.scores import group_of, perplexities, scored

HALF_A_DIGIT = 0.005  # of the shares, as printed
FEWEST_BATCHES = 5  # to resample: fewer give an interval that is far too narrow
# Rows of Table 2 whose numbers were looked for in the table of the paper they were taken from.
TAKEN, NEW, NONE = "identical", "new", "–"


def reported_settings(study: Study) -> list[str]:
    """The settings for which the paper reports numbers."""
    document = study.document["settings"]
    return [name for name in study.settings if document[name]["reported"]]


def passages(study: Study) -> list[str]:
    """The settings whose score is a perplexity."""
    return [name for name in study.settings if group_of(study, name) == "hallucination"]


@tables.regenerated("table2", settings=reported_settings)
def table2(study: Study, setting: str) -> tables.Table:
    """One column group of Table 2, reported beside reproduced."""
    layout, group = study.document["tables"]["table2"], group_of(study, setting)
    chosen = layout["groups"][group]
    return tables.build_table(
        _table2_cells(study, setting),
        caption=f"{layout['item']}, {chosen['title']}: scores after the last edit.",
        notes=[chosen["note"]] if "note" in chosen else [],
        about={row: e["about"] for row, e in layout["rows"].items() if "about" in e},
        csv_path=study.folder / "tables" / f"melo-table2-{setting}.csv",
    )


def all_of_table2(study: Study) -> tables.Table:
    """The cells of every column group in one table; written as `melo-table2.csv`."""
    return tables.build_table(
        [c for name in reported_settings(study) for c in _table2_cells(study, name)],
        csv_path=study.folder / "tables" / "melo-table2.csv",
    )


def _table2_cells(study: Study, setting: str) -> Iterator[tables.Cell]:
    layout, group = study.document["tables"]["table2"], group_of(study, setting)
    place, chosen = study.document["settings"][setting]["reported"], layout["groups"][group]
    records, known = scored(study, setting), common.reported("melo")
    swaps = substitutions(study, setting)
    for column in chosen["columns"]:
        yield _cell(
            study, setting, records, column, UNEDITED_MODEL, item=layout["item"], swaps=swaps
        )
    for row, entry in layout["rows"].items():
        told = _told(known, layout["item"], place, entry, chosen["columns"]) if place else {}
        if row not in study.editors(setting) and not any(told.values()):
            continue
        for column in chosen["columns"]:
            yield _cell(
                study, setting, records, column, row, item=layout["item"], swaps=swaps,
                reported=told.get(column["metric"]), n_reported=chosen["n_reported"],
            )  # fmt: skip


def _told(
    known: pd.DataFrame,
    item: str,
    place: Mapping[str, str],
    entry: Mapping[str, str],
    columns: list[dict[str, str]],
) -> dict[str, float | None]:
    """The reported numbers of a row, by our name of the column."""
    return {
        column["metric"]: reported_value(
            known, item=item, **place, method=entry["reported_as"], metric=column["reported"]
        )
        for column in columns
        if "reported_as" in entry and "reported" in column
    }


def _cell(
    study: Study,
    setting: str,
    records: pd.DataFrame,
    column: Mapping[str, str],
    editor: str,
    *,
    item: str,
    swaps: list[str],
    reported: float | None = None,
    n_reported: int | None = None,
) -> tables.Cell:
    unchanged = editor == UNEDITED_MODEL
    rows, score, batches = records[records["editor"] == editor], column.get("column"), False
    rows = records if unchanged else rows
    if "perplexity" in column:
        rows = tables.unedited(rows) if unchanged else rows[rows["moment"] == "end"]
        rows, score = perplexities(rows, column["perplexity"], column["subset"]), "perplexity"
        batches = column["perplexity"] == "released"
    error = study.error(setting, editor)
    if not (error or unchanged) and editor not in study.editors(setting):
        error = tables.NOT_RUN
    cell = tables.measure(
        rows, score, item=item, metric=column["metric"], editor=editor, setting=setting,
        subset=column["subset"], reported=reported, n_reported=n_reported, batches=batches,
        resolution=0.0 if "perplexity" in column else HALF_A_DIGIT,
        shown_setting=study.title(setting), error=error, substitutions=swaps,
    )  # fmt: skip
    if not batches or cell.n >= FEWEST_BATCHES:
        return cell
    return replace(cell, ci_low=math.nan, ci_high=math.nan, verdict="not comparable")


@tables.regenerated("table2-overview")
def overview(study: Study) -> pd.DataFrame:
    """Table 2 as the paper sets it: a row per method, all groups abreast, "reported → here"."""
    layout = study.document["tables"]["table2"]
    cells = {(c.editor, c.setting, c.metric): c for c in all_of_table2(study).cells}
    rows = []
    for row, entry in layout["rows"].items():
        printed = entry.get("reported_as", row)
        shown = {"method": row if printed == row else f"{row} ({printed})"}
        for group, chosen in layout["groups"].items():
            for name in _settings_of(study, group) or [""]:
                for column in (c for c in chosen["columns"] if "reported" in c):
                    place = _place_of(study, group, name)
                    head = f"{chosen['short']} {column['metric'].split(' (')[0]}"
                    if len(_settings_of(study, group)) > 1:
                        head = f"{place['model']} {head}"
                    told = _told(common.reported("melo"), layout["item"], place, entry, [column])
                    found = cells.get((row, study.title(name), column["metric"])) if name else None
                    shown[head] = _pair(told.get(column["metric"]), found)
        rows.append(shown)
    return common.kept(study, "melo-table2-overview", pd.DataFrame(rows))


def _settings_of(study: Study, group: str) -> list[str]:
    return [name for name in reported_settings(study) if group_of(study, name) == group]


def _place_of(study: Study, group: str, setting: str) -> dict[str, str]:
    """Where a group's numbers are reported: the setting's place, or the paper profile's."""
    named = study.original["settings"]
    if setting:
        return named[setting]["reported"]
    return next(
        (s["reported"] for s in named.values() if s["dataset"] == group and s["reported"]),
        {"dataset": group},
    )


def _pair(reported: float | None, cell: tables.Cell | None) -> str:
    left = _short(reported) if reported is not None else "–"
    right = _short(cell.reproduced) if cell is not None and cell.n else "–"
    return f"{left}\u00a0→\u00a0{right}" if (left, right) != ("–", "–") else "–"


def _short(value: float) -> str:
    """Three digits: the exact numbers stand in the tables by group."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


@tables.regenerated("origins")
def origins(study: Study) -> pd.DataFrame:
    """Where each reported number of Table 2 comes from: for every row, the method of GRACE's main
    table with the same numbers, by group. Compared number by number, nothing typed."""
    layout, known = study.document["tables"]["table2"], common.reported("melo")
    rows = []
    for entry in layout["rows"].values():
        if "reported_as" not in entry:
            continue
        shown: dict[str, Any] = {"row of Table 2": entry["reported_as"]}
        for group, chosen in layout["groups"].items():
            shown |= _origin(study, known, layout, group, chosen, entry["reported_as"])
        rows.append(shown)
    return common.kept(study, "melo-origins", pd.DataFrame(rows).fillna(NONE))


def _origin(
    study: Study,
    known: pd.DataFrame,
    layout: Mapping[str, Any],
    group: str,
    chosen: Mapping[str, Any],
    method: str,
) -> dict[str, str]:
    place = _place_of(study, group, "")
    ours = known[(known["item"] == layout["item"]) & (known["method"] == method)]
    theirs = known[known["item"] == layout["origin"]]
    ours, theirs = (part[part["dataset"] == place["dataset"]] for part in (ours, theirs))
    pairs = [(c["reported"], c.get("origin", "")) for c in chosen["columns"] if "reported" in c]
    told = ours.set_index("metric")["value"]
    if told.empty:
        return {chosen["title"]: NONE}
    compared = [(mine, other) for mine, other in pairs if other and mine in told]
    found = []
    for name, rows in theirs.groupby("method", sort=False):
        values = rows.set_index("metric")["value"]
        if all(other in values and values[other] == told[mine] for mine, other in compared):
            found.append(name)
    alone = [mine.split(" (")[0] for mine, other in pairs if not other and mine in told]
    extra = f"; {', '.join(alone)} {NEW}" if found and alone else ""
    paper = layout["origin"].split()[0]
    same = f"{TAKEN} to {paper}'s {' and '.join(found)} ({len(compared)} numbers)"
    text = same if found else NEW
    return {chosen["title"]: f"{text}{extra}"}


@tables.regenerated("decoded")
def decoded_table(study: Study, setting: str) -> tables.Table:
    """What the edited models really answer, beside teacher-forced scores, in one setting."""
    layout = study.document["tables"]["decoded"]
    return _own_table(
        study, setting, layout["item"], layout["columns"][group_of(study, setting)], "decoded",
        "Greedy decoding from the prompt alone, after the last edit.",
    )  # fmt: skip


@tables.regenerated("perplexity", settings=passages)
def perplexity_table(study: Study, setting: str) -> tables.Table:
    """The same losses, averaged and decided in other ways."""
    layout = study.document["tables"]["perplexity"]
    return _own_table(
        study, setting, layout["item"], layout["columns"], "perplexity",
        "Perplexity after the last edit, averaged and decided in other ways.", [layout["note"]], 1,
    )  # fmt: skip


def _own_table(
    study: Study,
    setting: str,
    item: str,
    columns: list[dict[str, str]],
    name: str,
    caption: str,
    notes: list[str] | None = None,
    digits: int = 2,
) -> tables.Table:
    records, rows = scored(study, setting), study.document["tables"]["table2"]["rows"]
    swaps = substitutions(study, setting)
    return tables.build_table(
        [
            _cell(study, setting, records, column, editor, item=item, swaps=swaps)
            for editor in (UNEDITED_MODEL, *study.editors(setting))
            for column in columns
        ],
        caption=caption,
        notes=notes or [],
        digits=digits,
        own=True,
        about={row: e["about"] for row, e in rows.items() if "about" in e},
        csv_path=study.folder / "tables" / f"melo-{name}-{setting}.csv",
    )
