"""Tables: one `Cell` per number, as a tidy CSV and as a page with reported beside reproduced."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from lib.metrics.estimates import EVALUATED, estimate, labels_of, resampled
from lib.metrics.intervals import compare, mean_interval
from lib.metrics.scales import scale_of
from lib.report.orderings import orderings
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

    `own`: the table is ours, no paper has one like it. `about`: a line below a row's name.
    """

    cells: tuple[Cell, ...]
    caption: str = ""
    digits: int = 2
    row_heading: str = "Editor"
    notes: tuple[str, ...] = field(default=())
    unreported: str = ""
    own: bool = False
    about: Mapping[str, str] = field(default_factory=dict)

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

        A metric for which no number was reported at all has one column, and a note says so. With
        `unreported` (why no number is known), a setting without any has one "reported" column
        that says "not available" once for all its rows. With `own`, nothing is said of that.
        """
        return wide(self)

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
        cells, caption, digits, row_heading, tuple(notes), unreported, own, dict(about or {})
    )
    if csv_path is not None:
        table.write_csv(csv_path)
    return table


def _joined(values: pd.Series) -> str:
    return " + ".join(dict.fromkeys(str(value) for value in values))


AGREEMENT = {"consistent": "=", "above": "▲", "below": "▼"}
MISSING = "not available"
Column = tuple[str, str]  # setting, metric


def wide(table: "Table") -> str:
    """The table, its caption and its notes; see `Table.to_html`."""
    cells = table.cells
    rows = list(dict.fromkeys(cell.editor for cell in cells))
    columns = list(dict.fromkeys((cell.setting, cell.metric) for cell in cells))
    at = {(cell.editor, cell.setting, cell.metric): cell for cell in cells}
    settings = list(dict.fromkeys(setting for setting, _ in columns))
    columns = [pair for setting in settings for pair in columns if pair[0] == setting]
    told = _reported(table)
    silent = {setting for setting in settings if _silent(table, setting)}
    # The first column of each setting without numbers is preceded by one that says so.
    opening = {next(c for c in columns if c[0] == setting) for setting in silent}
    nothing = f'<td class="reported" rowspan="{len(rows)}">{MISSING}</td>'
    body = []
    for row in rows:
        marks = "".join(
            (nothing if column in opening and row == rows[0] else "")
            + _pair(at.get((row, *column)), column in told, table)
            for column in columns
        )
        more = f'<span class="about">{_safe(table.about[row])}</span>' if row in table.about else ""
        body.append(f'<tr><th scope="row">{_safe(row)}{more}</th>{marks}</tr>')
    empty = "" if cells else '<p class="empty">No cell was planned for this table.</p>'
    caption = f"<caption><span>{_safe(table.caption)}</span></caption>" if table.caption else ""
    label = _safe(table.caption or "Results", quote=True)
    style = "results own" if table.own else "results"
    markup = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
        f'<table class="{style}">{caption}{_head(table, settings, columns)}'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    notes = "".join(f"<li>{_safe(note)}</li>" for note in _notes(table))
    return f'<div class="table">{markup}{empty}<ul class="notes">{notes}</ul></div>'


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


def _silent(table: "Table", setting: str) -> bool:
    """True if a column must say that nothing was reported for this setting."""
    return bool(table.unreported) and all(s != setting for s, _ in _reported(table))


def _head(table: "Table", settings: list[str], columns: list[Column]) -> str:
    def heading(text: str, wide: int, name: str) -> str:
        return f'<th scope="colgroup" colspan="{wide}" class="{name}">{_safe(text)}</th>'

    told = _reported(table)
    wide = {column: 2 if column in told else 1 for column in columns}
    width = {s: sum(wide[column] for column in columns if column[0] == s) for s in settings}
    known, own = (
        '<th scope="col" class="reported">reported</th>',
        '<th scope="col">reproduced</th>',
    )
    first = second = ""
    for setting in settings:
        silent = _silent(table, setting)
        first += heading(setting, width[setting] + silent, "setting")
        second += known.replace("<th ", '<th rowspan="2" ') if silent else ""
        mine = [column for column in columns if column[0] == setting]
        second += "".join(heading(column[1], wide[column], "metric") for column in mine)
    pairs = "".join((known if wide[column] == 2 else "") + own for column in columns)
    third = "" if table.own else f"<tr>{pairs}</tr>"
    corner = f'<th scope="col" rowspan="{2 if table.own else 3}">{_safe(table.row_heading)}</th>'
    return f"<thead><tr>{corner}{first}</tr><tr>{second}</tr>{third}</thead>"


def _pair(cell: "Cell | None", with_reported: bool, table: "Table") -> str:
    if cell is None:
        return '<td class="reported">–</td><td>–</td>' if with_reported else "<td>–</td>"
    digits = table.digits
    reported = MISSING if _absent(cell.reported) else number(cell.reported, digits)
    left = f'<td class="reported">{reported}</td>' if with_reported else ""
    if _absent(cell.reproduced):
        text = _safe(cell.error or MISSING)
        return f'{left}<td class="failed"><span class="error">{text}</span></td>'
    low, high = (number(end, digits) for end in (cell.ci_low, cell.ci_high))
    # Narrow columns of our own tables must not break inside the brackets.
    space = "\u00a0" if table.own else " "
    interval = "no interval" if _absent(cell.ci_low) else f"[{low},{space}{high}]"
    word = ""
    if cell.verdict in AGREEMENT:
        symbol = f'<span aria-hidden="true">{AGREEMENT[cell.verdict]}</span>'
        word = f'<span class="verdict {cell.verdict}">{symbol} {cell.verdict}</span>'
    remark = f'<span class="remark">{_safe(cell.remark)}</span>' if cell.remark else ""
    problem = f'<span class="error">{_safe(cell.error)}</span>' if cell.error else ""
    shown = f"<strong>{number(cell.reproduced, digits)}</strong>"
    if relative(cell.link):
        shown = f'<a href="{_safe(cell.link, quote=True)}">{shown}</a>'
    n = f"n={cell.n}" if cell.facts in (0, cell.n) else f"{cell.n}/{cell.facts}"
    about = f' <span class="interval">{interval} ({n})</span>'
    if table.own and cell.n == 1 and _absent(cell.ci_low):
        about = ""  # one value is all there is
    return f"{left}<td>{shown}{about}{word}{remark}{problem}</td>"


def _notes(table: "Table") -> list[str]:
    told = _reported(table)
    swapped = dict.fromkeys(text for cell in table.cells for text in cell.substitutions)
    notes = [*table.notes, *(f"Substitution: {text}" for text in swapped)]
    bare = dict.fromkeys(c.metric for c in table.cells if (c.setting, c.metric) not in told)
    if bare and table.unreported:
        notes.append(f"Reported numbers {MISSING}: {table.unreported}")
    elif bare and not table.own:
        notes.append(f"Reported number not available for: {', '.join(bare)}.")
    notes += _uncertainty(table)
    if any(cell.verdict in AGREEMENT for cell in table.cells):
        notes.append(
            "Consistent, above and below compare with the reported number at the paper's n (5 % "
            "level), whatever the better direction."
        )
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


def _safe(text: object, quote: bool = False) -> str:
    return html.escape(str(text), quote=quote)


def _absent(value: float | None) -> bool:
    return value is None or pd.isna(value)
