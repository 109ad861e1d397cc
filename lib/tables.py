"""Tables: one `Cell` per number, as a tidy CSV and as a page with reported beside reproduced."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lib import table_html
from lib.metrics.intervals import compare, facts, mean_interval
from lib.storage.atomic import write_text
from lib.table_html import MISSING, SYMBOLS, number

__all__ = [
    "MISSING",
    "SYMBOLS",
    "TIDY_COLUMNS",
    "Cell",
    "Table",
    "build_table",
    "measure",
    "number",
]

TIDY_COLUMNS = (
    "item", "setting", "backbone", "dataset", "editor", "n_edits", "metric", "reported",
    "reproduced", "ci_low", "ci_high", "n", "seeds", "verdict", "substitutions", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One number of a table: what the paper reports and what came out here.

    `n` counts scored prompts, `seeds` order seeds; `error` is why a run has no number. `link`, a
    relative address, leads from the number to what it was made of; `remark` stands below it.
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
    seeds: int = 0
    verdict: str = "not comparable"
    substitutions: tuple[str, ...] = ()
    error: str = ""
    link: str = ""
    remark: str = ""


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
    groups: Callable[[pd.DataFrame], Iterable[object]] | None = None,
    exponentiate: bool = False,
    percent: bool = False,
    substitutions: Sequence[str] = (),
    error: str = "",
) -> Cell:
    """The cell for the rows of `records` that match editor, setting, subset and moment.

    `column` is the score column, `metric` the name printed; `shown_as` and `shown_setting` replace
    the row and column heading. Rows about one fact (`intervals.facts`) are one unit unless
    `groups` (frame -> labels) says otherwise. `exponentiate`: perplexity from a mean of `nll`,
    compared on the logarithms. `percent`: `reported` and the cell are in percent, the rows are
    shares. No matching row: the cell says so, or says `error`.
    """
    rows = records
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
    units = list(groups(rows) if groups else facts(rows["record"]))
    estimate = mean_interval(rows[column], groups=units)
    target = reported
    if exponentiate and reported is not None:
        target = math.log(reported) if reported > 0 else None
    if percent and reported is not None:
        target = reported / 100
    verdict = compare(target, rows[column], n_reported, groups=units, resolution=resolution)
    shape = math.exp if exponentiate else (lambda share: 100 * share) if percent else float
    return Cell(
        **{**labels, "setting": labels["setting"] or _joined(rows["setting"])},
        backbone=_joined(rows["backbone"]),
        dataset=_joined(rows["dataset"]),
        n_edits=int(rows["n_edits"].max()),
        reproduced=shape(estimate.mean),
        ci_low=shape(estimate.low),
        ci_high=shape(estimate.high),
        n=estimate.n,
        seeds=rows["seed"].nunique(),
        verdict=verdict,
        error=error,
    )


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
        rows = [dataclasses.asdict(cell) for cell in self.cells]
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
        return table_html.wide(self)

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
