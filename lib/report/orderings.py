"""The order of a table's methods against the reported one: what can be compared where models and
data were substituted, and levels cannot.

Compared are the methods of a column that made equally many edits, on the prompts that all of them
were scored on; the interval resamples what `estimates.estimate` does.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import pandas as pd

from lib.metrics.estimates import labels_of
from lib.metrics.orderings import FEWEST_UNITS, Ordering, ordering
from lib.metrics.ranking import Sample

FEWEST_METHODS = 3  # two are one pair, and a claim says more of it
_PROMPT = ["setting", "seed", "record", "prompt"]


class Scored(Protocol):
    """What of a `tables.Cell` is needed."""

    item: str
    setting: str
    metric: str
    editor: str
    n: int
    n_edits: int | None
    reported: float | None
    scored: pd.DataFrame | None


@dataclass(frozen=True)
class Ordered(Ordering):
    """The order in one column of a table: the paper's table (`item`), setting, metric."""

    item: str = ""
    setting: str = ""
    metric: str = ""

    def __post_init__(self) -> None:
        for name in ("tau", "low", "high"):
            if getattr(self, name) is None:  # JSON has no NaN
                object.__setattr__(self, name, math.nan)

    def __str__(self) -> str:
        """ "4 of 6 pairs agree (3 of the 3 clear here), Kendall's tau +0.33 [−0.33, +0.67]"."""
        clear = f" ({self.clear_agree} of the {self.clear} clear here)" if self.clear else ""
        tau = f", Kendall's tau {self.tau_in_words}" if self.tau_in_words else ""
        return f"{self.agree} of {self.pairs} pairs agree{clear}{tau}"

    @property
    def tau_in_words(self) -> str:
        """ "+0.33 [−0.33, +0.67]"; "" where tau is undefined."""
        if math.isnan(self.tau):
            return ""
        known = not math.isnan(self.low)
        return signed(self.tau) + (f" [{signed(self.low)}, {signed(self.high)}]" if known else "")


def orderings(cells: Iterable[Scored]) -> list[Ordered]:
    """The order of every column of a table in which enough methods have a reported number and one
    of ours, with the rows behind it."""
    columns: dict[tuple[str, str, str], list[Scored]] = {}
    for cell in cells:
        if cell.scored is not None and cell.n_edits:  # the unedited model is no method
            columns.setdefault((cell.item, cell.setting, cell.metric), []).append(cell)
    found = []
    for (item, setting, metric), column in columns.items():
        most = max(cell.n_edits for cell in column)
        column = [cell for cell in column if cell.n_edits == most]
        if len(column) < FEWEST_METHODS or min(cell.n for cell in column) < FEWEST_UNITS:
            continue
        same = ordering([cell.reported for cell in column], _sample(column))
        found.append(Ordered(**asdict(same), item=item, setting=setting, metric=metric))
    return found


def together(found: Sequence[Ordering]) -> str:
    """ "12 of 18 pairs of methods (9 of the 11 that are clear here)" over several columns."""
    agree, pairs, same, clear = (
        sum(getattr(one, name) for one in found)
        for name in ("agree", "pairs", "clear_agree", "clear")
    )
    return f"{agree} of {pairs} pairs of methods ({same} of the {clear} that are clear here)"


def _sample(column: Sequence[Scored]) -> Sample:
    """The scores of a column's methods by the unit that is resampled."""
    rows = pd.concat(
        [cell.scored.assign(method=str(place)) for place, cell in enumerate(column)],
        ignore_index=True,
    )
    shared = rows.groupby([name for name in _PROMPT if name in rows])["method"]
    rows = rows[shared.transform("nunique") == len(column)].reset_index(drop=True)
    by_unit = rows.assign(label=pd.Series(labels_of(rows, "score"), dtype=str)).pivot_table(
        index="method", columns="label", values="score", aggfunc=["sum", "count"], fill_value=0,
        sort=False,
    )  # fmt: skip
    order = [str(place) for place in range(len(column))]
    sums, counts = (
        by_unit[name].reindex(order).to_numpy(float)[:, None, None, :] for name in ("sum", "count")
    )
    methods = tuple(cell.editor for cell in column)
    return Sample(methods, tuple(by_unit["sum"].columns), sums, counts)


def signed(value: float) -> str:
    """ "+0.12", "−0.05"."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")
