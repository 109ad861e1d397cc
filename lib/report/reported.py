"""The reported numbers of a paper: one CSV, every row with its source."""

import csv
import io
from pathlib import Path

import pandas as pd

from lib.errors import RecordError

REPORTED_COLUMNS = (
    "item", "title", "model", "dataset", "method", "n_edits",
    "metric", "value", "unit", "better", "source",
)  # fmt: skip


def load_reported(path: Path) -> pd.DataFrame:
    """The reported numbers of one paper: text columns, `n_edits` Int64, `value` float."""
    path = Path(path)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    if not rows or tuple(rows[0]) != REPORTED_COLUMNS:
        raise RecordError(f"{path}: expected the columns {', '.join(REPORTED_COLUMNS)}")
    frame = pd.DataFrame(rows, columns=list(REPORTED_COLUMNS))
    for column, kind in (("value", "float64"), ("n_edits", "Int64")):
        try:
            frame[column] = pd.to_numeric(frame[column].replace("", None)).astype(kind)
        except (ValueError, TypeError) as error:
            raise RecordError(f"{path}: column {column} holds text: {error}") from error
    return frame


def reported_value(
    reported: pd.DataFrame,
    *,
    item: str,
    model: str | None = None,
    dataset: str | None = None,
    method: str | None = None,
    metric: str | None = None,
    n_edits: int | None = None,
) -> float | None:
    """The one reported number that matches; None if there is none; an error if several differ."""
    rows = reported
    wanted = {"item": item, "model": model, "dataset": dataset, "method": method,
              "metric": metric, "n_edits": n_edits}  # fmt: skip
    for column, value in wanted.items():
        if value is not None:
            rows = rows[(rows[column] == value).fillna(False).astype(bool)]
    values = rows["value"].dropna().unique()
    if len(values) > 1:
        given = ", ".join(f"{k}={v!r}" for k, v in wanted.items() if v is not None)
        raise ValueError(f"{len(values)} different reported numbers for {given}: narrow it down")
    return float(values[0]) if len(values) else None
