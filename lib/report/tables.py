"""Tables: one `Cell` per number, as a tidy CSV and as a page with reported beside reproduced."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lib.metrics.estimates import EVALUATED, estimate, labels_of, resampled
from lib.metrics.intervals import compare, mean_interval
from lib.metrics.scales import scale_of
from lib.report.orderings import orderings
from lib.report.templates import fill
from lib.runs.settings import DEFAULT, PROFILES
from lib.storage.atomic import write_text

UNEDITED_MODEL = "unedited model"
TIDY_COLUMNS = (
    "item", "setting", "backbone", "dataset", "editor", "n_edits", "metric", "reported",
    "reproduced", "ci_low", "ci_high", "n", "facts", "unit", "seeds", "verdict",
    "substitutions", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One number of a table: what the paper reports and what came out here.

    `n` counts scored prompts, `facts` the different facts among them, `seeds` order seeds; `unit`
    is what the interval resamples (`estimates.estimate`). `error` is why a run has no number.
    `link`, a relative address, leads from the number to what it was made of; `remark` stands below
    it. `scored` holds the rows behind a number that has a reported one beside it.
    """

    item: str
    setting: str
    backbone: str
    dataset: str
    editor: str
    metric: str
    n_edits: int | None = None
    reported: float | None = None
    reproduced: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    n: int = 0
    facts: int = 0
    unit: str = ""
    seeds: int = 0
    verdict: str = "not comparable"
    substitutions: tuple[str, ...] = ()
    error: str = ""
    link: str = ""
    remark: str = ""
    scored: pd.DataFrame | None = field(default=None, repr=False, compare=False)


def measure(
    records: pd.DataFrame,
    column: str,
    *,
    item: str,
    metric: str,
    editor: str,
    setting: str | None = None,
    subset: str | None = None,
    moment: str | None = "end",
    shown_as: str | None = None,
    shown_setting: str | None = None,
    reported: float | None = None,
    n_reported: int | None = None,
    resolution: float = 0.0,
    batches: bool = False,
    exponentiate: bool = False,
    percent: bool = False,
    substitutions: Sequence[str] = (),
    error: str = "",
) -> Cell:
    """The cell for the rows of `records` that match editor, setting, subset and moment.

    `column` is the score column, `metric` the name printed; `shown_as` and `shown_setting` replace
    the row and column heading. The interval is that of `estimates.estimate`, or over rows that
    stand for a batch each (`batches`). `exponentiate`: perplexity from a mean of `nll`, compared on
    the logarithms. `percent`: `reported` and the cell are in percent, the rows are shares. A level
    is held against the reported one only where there are no `substitutions`. The editor
    `UNEDITED_MODEL` is what the backbone scored before any edit, whatever `moment` says. No
    matching row: the cell says so, or says `error`.
    """
    rows = records
    if editor == UNEDITED_MODEL:
        known = records[records[column].notna()] if column in records else records
        rows, moment = unedited(known, setting, subset), None
    for name, wanted in (
        ("editor", editor), ("setting", setting), ("subset", subset), ("moment", moment),
    ):  # fmt: skip
        if wanted is not None and len(rows):
            rows = rows[rows[name] == wanted]
    rows = rows[rows[column].notna()] if column in rows else rows.iloc[:0]
    labels = {
        "item": item, "metric": metric, "editor": shown_as or editor, "reported": reported,
        "substitutions": tuple(substitutions), "setting": shown_setting or setting or "",
    }  # fmt: skip
    if rows.empty:
        text = error or f"no rows with {column} for {editor}"
        return Cell(**labels, backbone="", dataset="", error=text)
    scale, found = scale_of(column), estimate(rows, column)
    if batches:
        found = replace(mean_interval(rows[column].astype(float), scale=scale), unit=EVALUATED)
    target = reported
    if exponentiate and reported is not None:
        target = math.log(reported) if reported > 0 else None
    if percent and reported is not None:
        target = reported / 100
    verdict = compare(
        target, rows[column], None if substitutions else n_reported, scale=scale,
        resolution=resolution, groups=None if batches else labels_of(rows, column),
    )  # fmt: skip
    shape = math.exp if exponentiate else (lambda share: 100 * share) if percent else float
    return Cell(
        **{**labels, "setting": labels["setting"] or _joined(rows["setting"])},
        backbone=_joined(rows["backbone"]),
        dataset=_joined(rows["dataset"]),
        n_edits=int(rows["n_edits"].max()),
        reproduced=shape(found.mean),
        ci_low=shape(found.low),
        ci_high=shape(found.high),
        n=found.n,
        facts=found.facts,
        unit=found.unit,
        seeds=rows["seed"].nunique(),
        verdict=verdict,
        error=error,
        scored=None if reported is None else rows.assign(score=rows[column].astype(float)),
    )


def unedited(
    records: pd.DataFrame, setting: str | None = None, subset: str | None = None
) -> pd.DataFrame:
    """The scores before any edit, once per setting and order seed, as `UNEDITED_MODEL`: they are
    the same in every run that has them, and of these the one with the most rows is taken."""
    rows = records
    for name, wanted in (("setting", setting), ("subset", subset)):
        if wanted is not None and len(rows):
            rows = rows[rows[name] == wanted]
    rows = rows[rows["moment"] == "before"] if len(rows) else rows
    if rows.empty:
        return rows
    keys = [name for name in ("setting", "seed") if name in rows]
    counted = rows.groupby([*keys, "run"], sort=False).size().reset_index(name="rows")
    best = counted.loc[counted.groupby(keys)["rows"].idxmax(), "run"]
    return rows[rows["run"].isin(best)].assign(editor=UNEDITED_MODEL)


@dataclass(frozen=True)
class Table:
    """Cells in order; rows and columns of the page appear in the order of their first cell.

    `own`: the table is ours, no paper has one like it. `about`: words beside a row's name. `path`:
    where its CSV lies.
    """

    cells: tuple[Cell, ...]
    caption: str = ""
    digits: int = 2
    row_heading: str = "Editor"
    notes: tuple[str, ...] = field(default=())
    unreported: str = ""
    own: bool = False
    about: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    @property
    def tidy(self) -> pd.DataFrame:
        """One row per cell with `TIDY_COLUMNS`; NaN where there is no number."""
        rows = [[getattr(cell, name) for name in TIDY_COLUMNS] for cell in self.cells]
        frame = pd.DataFrame(rows, columns=list(TIDY_COLUMNS))
        frame["substitutions"] = ["; ".join(cell.substitutions) for cell in self.cells]
        frame["n_edits"] = frame["n_edits"].astype("Int64")
        frame["reported"] = pd.to_numeric(frame["reported"])
        return frame

    def write_csv(self, path: Path) -> Path:
        """Write `tidy` to `path`; a failed run keeps its row, with the reason in `error`."""
        write_text(Path(path), self.tidy.to_csv(index=False))
        return Path(path)

    def to_html(self) -> str:
        """The wide table: a row per editor; per metric the reported and the reproduced number.

        A metric for which no number was reported at all has one column, and a note says so, with
        the reason (`unreported`) where one is given. With `own`, nothing is said of that. Rows that
        the profile does not run are told in one line.
        """
        return str(wide(self))

    def _repr_html_(self) -> str:
        return self.to_html()


def build_table(
    cells: Iterable[Cell],
    *,
    caption: str = "",
    digits: int = 2,
    row_heading: str = "Editor",
    notes: Sequence[str] = (),
    unreported: str = "",
    own: bool = False,
    about: Mapping[str, str] | None = None,
    csv_path: Path | None = None,
) -> Table:
    """A `Table` of the cells; also written as tidy CSV if `csv_path` is given.

    Two cells for one editor, setting and metric are an error: one would hide the other.
    """
    cells = tuple(cells)
    seen: set[tuple[str, str, str]] = set()
    for cell in cells:
        place = (cell.editor, cell.setting, cell.metric)
        if place in seen:
            raise ValueError(f"two cells for {place}: give one of them another name (shown_as)")
        seen.add(place)
    table = Table(
        cells, caption, digits, row_heading, tuple(notes), unreported, own, dict(about or {}),
        None if csv_path is None else Path(csv_path),
    )  # fmt: skip
    if csv_path is not None:
        table.write_csv(csv_path)
    return table


@dataclass(frozen=True)
class Regenerated:
    """A table that can be asked for by name: how it is made, for which settings and sizes."""

    paper: str
    name: str
    make: Callable[..., "Table | pd.DataFrame | None"]
    settings: Callable[[Any], Sequence[str]] | None
    sizes: Callable[[Any, str], Sequence[int]] | None

    def places(self, study: Any) -> dict[str, tuple[object, ...]]:
        """What `make` takes besides the study, by the name of the table that comes out."""
        taken = inspect.signature(self.make).parameters.values()
        if sum(one.default is one.empty for one in taken) == 1:
            return {self.name: ()}
        found = {}
        for setting in self.settings(study) if self.settings else study.settings:
            if self.sizes is None:
                found[f"{self.name}-{setting}"] = (setting,)
                continue
            for size in self.sizes(study, setting):
                found[f"{self.name}-{setting}-{size}"] = (setting, size)
        return found


NAMED: dict[tuple[str, str], Regenerated] = {}  # by paper and name


def regenerated(
    name: str,
    *,
    settings: Callable[[Any], Sequence[str]] | None = None,
    sizes: Callable[[Any, str], Sequence[int]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a paper's function of a study (and a setting, and a number of edits) that makes the
    table `name`, whose CSV is `<paper>-<name>[-<setting>[-<edits>]].csv`: `--table` finds it."""

    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        paper = make.__module__.split(".")[1]
        NAMED[paper, name] = Regenerated(paper, name, make, settings, sizes)
        return make

    return register


def remade(path: Path | None) -> dict[str, str]:
    """The address of a table's CSV and the command that makes it again, "" where there is none."""
    if path is None:
        return {"csv": "", "command": ""}
    paper, _, name = path.stem.partition("-")
    profile = path.parent.parent.name
    known = any(
        paper == one and (name == stem or name.startswith(f"{stem}-")) for one, stem in NAMED
    )
    command = ""
    if known and profile in PROFILES:
        told = "" if profile == DEFAULT else f" --profile {profile}"
        command = f"./run_all.sh --only {paper}{told} --table {name}"
    return {"csv": f"{path.parent.name}/{path.name}", "command": command}


def _joined(values: pd.Series) -> str:
    return " + ".join(dict.fromkeys(str(value) for value in values))


AGREEMENT = {"consistent": "=", "above": "▲", "below": "▼"}
MISSING = "not available"
NOT_RUN = "not run in this profile"
Column = tuple[str, str]  # setting, metric


@dataclass(frozen=True)
class Head:
    """A heading cell: so many columns wide, so many rows high."""

    text: str
    wide: int = 1
    high: int = 1
    style: str = ""


def wide(table: "Table") -> str:
    """The table, its caption and its notes; see `Table.to_html`."""
    told, dead = _reported(table), _dead(table)
    rows = [row for row in dict.fromkeys(c.editor for c in table.cells) if row not in dead]
    columns = list(dict.fromkeys((cell.setting, cell.metric) for cell in table.cells))
    settings = list(dict.fromkeys(setting for setting, _ in columns))
    columns = [pair for setting in settings for pair in columns if pair[0] == setting]
    at = {(cell.editor, cell.setting, cell.metric): cell for cell in table.cells}
    counts = {column: _count(table, column, dead) for column in columns}
    body = []
    for row in rows:
        cells: list[Mapping[str, str] | str] = []
        for column in columns:
            cell = at.get((row, *column))
            if column in told:
                known = cell is not None and not _absent(cell.reported)
                cells.append({"reported": number(cell.reported, table.digits) if known else "–"})
            cells.append(_shown(cell, table, counts[column]))
        body.append({"name": row, "about": table.about.get(row, ""), "cells": cells})
    # A single setting needs no row of its own: the caption names it.
    only = settings[0] if len(settings) == 1 else ""
    caption = table.caption
    if only and only not in caption:
        caption = f"{caption.rstrip('.')}: {only}." if caption else only
    return fill(
        "table",
        label=caption or "Results",
        caption=caption,
        style="results own" if table.own else "results",
        heads=_heads(table, [] if only else settings, columns, counts),
        rows=body,
        notes=_notes(table, dead),
        empty="" if table.cells else "No cell was planned for this table.",
        **remade(table.path),
    )


def plain(frame: pd.DataFrame, caption: str = "") -> str:
    """A data frame as a table of the page: whole texts, the first column names the rows. Its CSV is
    the one that `frame.attrs["csv"]` names."""
    rows = [
        {"name": name, "about": "", "cells": [_text(value) for value in row]}
        for name, *row in frame.itertuples(index=False, name=None)
    ]
    path = frame.attrs.get("csv")
    return fill(
        "table",
        label=caption or "Table",
        caption=caption,
        style="plain",
        heads=[[Head(str(name)) for name in frame.columns]],
        rows=rows,
        notes=[],
        empty="" if len(frame) else "No row.",
        **remade(Path(path) if path else None),
    )


def _text(value: object) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "–" if missing or value is pd.NA else str(value)


def number(value: float, digits: int = 2) -> str:
    """A number for the reader: fixed decimals, thousands separated, large ones shortened."""
    if _absent(value):
        return MISSING
    if abs(value) >= 1000:
        return f"{value:,.{0 if abs(value) >= 1e4 else 1}f}"
    return f"{value:.{digits}f}"


def relative(address: str) -> str:
    """The address if it leads to a file beside the page, else "": data never makes another link."""
    plain = address and ":" not in address and not address.startswith(("/", "\\"))
    return address if plain else ""


def _reported(table: "Table") -> set[Column]:
    """The columns with at least one reported number."""
    return {(c.setting, c.metric) for c in table.cells if not _absent(c.reported)}


def _dead(table: "Table") -> dict[str, int]:
    """Rows that this profile does not run, with their number of cells: they share one line below
    the table. The row of a failed run is none of them."""
    cells: dict[str, list[Cell]] = {}
    for cell in table.cells:
        cells.setdefault(cell.editor, []).append(cell)
    return {row: len(some) for row, some in cells.items() if all(c.error == NOT_RUN for c in some)}


def _count(table: "Table", column: Column, dead: Mapping[str, int]) -> str:
    """ "n = 80" where all numbers of a column are of equally many rows and facts, else ""."""
    mine = [c for c in table.cells if (c.setting, c.metric) == column and c.editor not in dead]
    mine = [cell for cell in mine if not _absent(cell.reproduced) and not _single(cell)]
    counts = {_n(cell) for cell in mine}
    return counts.pop() if len(counts) == 1 and len(mine) > 1 else ""


def _single(cell: "Cell") -> bool:
    """One value without an interval is all there is."""
    return cell.n == 1 and _absent(cell.ci_low)


def _n(cell: "Cell") -> str:
    return f"n={cell.n:,}" if cell.facts in (0, cell.n) else f"{cell.n:,}/{cell.facts:,}"


def _heads(
    table: "Table", settings: list[str], columns: list[Column], counts: Mapping[Column, str]
) -> list[list[Head]]:
    told = _reported(table)
    wide = {column: 2 if column in told else 1 for column in columns}
    rows = []
    if settings:
        widths = [sum(wide[c] for c in columns if c[0] == setting) for setting in settings]
        pairs = zip(settings, widths, strict=True)
        rows.append([Head(name, width, style="setting") for name, width in pairs])
    names = {c: f"{c[1]} ({counts[c]})" if counts[c] else c[1] for c in columns}
    rows.append(
        [Head(names[c], wide[c], 1 if c in told or not told else 2, "metric") for c in columns]
    )
    if told:
        both = [Head("reported", style="reported"), Head("reproduced")]
        rows.append([head for column in columns if column in told for head in both])
    corner = Head(table.row_heading, high=len(rows))
    return [[corner, *rows[0]], *rows[1:]]


def _shown(cell: "Cell | None", table: "Table", counted: str) -> Mapping[str, str] | str:
    if cell is None or cell.error == NOT_RUN:
        return "–"
    if _absent(cell.reproduced):
        return {"number": "", "error": cell.error or MISSING} | _NOTHING
    low, high = (number(end, table.digits) for end in (cell.ci_low, cell.ci_high))
    parts = [] if _absent(cell.ci_low) else [f"[{low}, {high}]"]
    if not counted and not _single(cell):  # equal counts stand in the column's heading
        parts.append(f"({_n(cell)})")
    verdict = cell.verdict if cell.verdict in AGREEMENT and not _absent(cell.reported) else ""
    return {
        "number": number(cell.reproduced, table.digits),
        "link": relative(cell.link),
        "about": " ".join(parts),
        "verdict": verdict,
        "symbol": AGREEMENT.get(verdict, ""),
        "remark": cell.remark,
        "error": cell.error,
    }


_NOTHING = dict.fromkeys(("link", "about", "verdict", "symbol", "remark"), "")


def _notes(table: "Table", dead: Mapping[str, int]) -> list[str]:
    told = _reported(table)
    notes = list(table.notes)
    bare = dict.fromkeys(c.metric for c in table.cells if (c.setting, c.metric) not in told)
    if bare and table.unreported:
        notes.append(f"Reported numbers {MISSING}: {table.unreported}")
    elif bare and not table.own:
        which = f" for: {', '.join(bare)}" if told else ""
        notes.append(f"Reported numbers {MISSING}{which}.")
    if dead:
        rows = ", ".join(dead)
        notes.append(f"{sum(dead.values())} cells {NOT_RUN} (numbers in the CSV): {rows}.")
    notes += _uncertainty(table)
    if any(cell.verdict in AGREEMENT and not _absent(cell.reported) for cell in table.cells):
        notes.append(
            "Consistent, above and below compare with the reported number at the paper's n (5 % "
            "level), whatever the better direction."
        )
    if swapped := dict.fromkeys(text for cell in table.cells for text in cell.substitutions):
        s = "s" if len(swapped) > 1 else ""
        notes.append(f"{len(swapped)} substitution{s} against the paper: see Substitutions.")
    if found := orderings(table.cells):
        columns = list(dict.fromkeys((cell.setting, cell.metric) for cell in table.cells))
        parts = [f"{_named([(one.setting, one.metric)], columns)}: {one}" for one in found]
        notes.append(f"Order of the methods, as reported against here: {'; '.join(parts)}.")
    return notes


def _uncertainty(table: "Table") -> Iterator[str]:
    """What the intervals resample, column by column where columns differ, and what n counts."""
    cells = [cell for cell in table.cells if cell.unit and not _absent(cell.ci_low)]
    columns: dict[Column, list[str]] = {}
    for cell in cells:
        columns.setdefault((cell.setting, cell.metric), []).append(cell.unit)
    told: dict[str, list[Column]] = {}
    for column, units in columns.items():
        told.setdefault(resampled(units), []).append(column)
    if told:
        parts = [
            words + (f" ({_named(some, list(columns))})" if len(told) > 1 else "")
            for words, some in told.items()
        ]
        yield f"[low, high]: 95 % intervals; what is resampled: {', '.join(parts)}."
    fewer = next((cell for cell in table.cells if cell.facts not in (0, cell.n)), None)
    if fewer is not None:
        yield (
            f"({fewer.n}/{fewer.facts}): n = {fewer.n:,} scored rows of {fewer.facts:,} "
            "independent facts."
        )


def _named(some: Sequence[Column], every: Sequence[Column]) -> str:
    """Some of a table's columns: by their group where all of it is meant, by their own name where
    all with that name are, else by both."""
    names: dict[str, None] = {}
    for setting, metric in some:
        group, alike = (
            [c for c in every if c[i] == key] for i, key in enumerate((setting, metric))
        )
        if len(group) < len(every) and set(group) <= set(some):
            names[setting] = None
        elif set(alike) <= set(some):
            names[metric] = None
        else:
            names[f"{setting}, {metric}"] = None
    return ", ".join(names)


def _absent(value: float | None) -> bool:
    return value is None or pd.isna(value)
