"""Scores against the number of edits: a panel per subset, a line per editor."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from lib.data.records import SCORE_TITLES
from lib.report.figures.parts import (
    Panel,
    about_rows,
    having,
    levels,
    lines,
    means,
    score_axis,
)
from lib.report.figures.style import Plot, looks


def score_curves(
    records: pd.DataFrame,
    metric: str,
    titles: Mapping[str, str] | Sequence[str] = ("edits", "holdout", "upstream"),
    *,
    by: str = "editor",
    moments: Sequence[str] = ("before", "checkpoint", "end"),
    before: pd.DataFrame | None = None,
    more: Sequence[Panel] = (),
    ylabel: str = "score",
) -> Plot:
    """Score against the number of edits: a panel per subset of `titles`, a line per `by`, with the
    levels of `before` (default: the records before any edit).

    `more`: panels of other quantities against `n_edits`, behind those of scores.
    """
    titles = titles if isinstance(titles, Mapping) else {key: SCORE_TITLES[key] for key in titles}
    identity = ["run", "subset", "n_edits", "record", "prompt"]
    scored = having(records, metric, by, "moment", *identity)
    scored = scored[scored["subset"].isin(titles)]
    order = {moment: place for place, moment in enumerate(moments)}
    rows = scored[scored["moment"].isin(moments)]
    rows = rows.assign(_late=rows["moment"].map(order)).sort_values("_late", kind="stable")
    # The last checkpoint and the end are one moment: count each prompt once.
    rows = rows.drop_duplicates(identity, keep="last")
    data = means(rows, metric, ["subset", by, "n_edits"])
    shown = [
        Panel(title, data[data["subset"] == subset],
              levels=levels(records if before is None else before, metric, subset))
        for subset, title in titles.items()
    ]  # fmt: skip
    counts = sorted(set(data["n_edits"]))

    def finish(panel: Axes, part: pd.DataFrame) -> None:
        panel.set_xlabel("edits applied")
        few = "subset" in part and len(counts) <= 6
        panel.xaxis.set_major_locator(FixedLocator(counts) if few else MaxNLocator(6, integer=True))
        if "subset" in part:
            score_axis(panel, ylabel)
        else:
            panel.set_ylabel("")
            panel.set_ylim(bottom=0)

    style = looks(dict.fromkeys([*rows[by], *(name for one in more for name in one.rows[by])]))
    return lines(
        [*shown, *more], "n_edits", by, style, finish, data=data, caption=about_rows(rows, data)
    )
