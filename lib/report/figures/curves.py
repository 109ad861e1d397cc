"""The figures of the study. Each function takes tidy rows and gives a `Plot`; `save` writes it.

Reproduced series are coloured with markers; curves read off a paper's picture are dashed grey. A
panel without rows says so in words.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib.data.records import SCORE_TITLES
from lib.metrics.costs import COSTS
from lib.report.figures.parts import (
    Panel,
    about_rows,
    bars,
    having,
    lines,
    means,
    minutes,
    score_axis,
    stacked,
)
from lib.report.figures.style import COLOURS, MUTED, Look, Plot, looks, panels, say, use_style

TITLES = {
    **SCORE_TITLES, "clusters": "Clusters", "conflicts": "Conflicts",
    "forgotten": "Forgotten edits", "seconds_per_edit": "Seconds per edit",
    "parameters": "Trained parameters", "stored_floats": "Stored numbers (keys, values)",
}  # fmt: skip


def score_curves(
    records: pd.DataFrame,
    metric: str,
    *,
    subsets: Sequence[str] = ("edits", "holdout", "upstream"),
    by: str = "editor",
    moments: Sequence[str] = ("before", "checkpoint", "end"),
    steps: pd.DataFrame | None = None,
    reported: Mapping[str, pd.DataFrame] | None = None,
    titles: Mapping[str, str] | None = None,
    ylabel: str | None = None,
) -> Plot:
    """Score against the number of edits: a panel per subset, a line per `by`, bands 95 %.

    `steps` adds a panel of cumulative editing time. `reported`: subset (or "time", in minutes) ->
    rows of the reported CSV (columns method, n_edits, value).
    """
    identity = ["run", "subset", "n_edits", "record", "prompt"]
    rows = having(records, metric, by, "moment", *identity)
    rows = rows[rows["moment"].isin(moments) & rows["subset"].isin(subsets)]
    order = {moment: place for place, moment in enumerate(moments)}
    rows = rows.assign(_late=rows["moment"].map(order)).sort_values("_late", kind="stable")
    # The last checkpoint and the end are one moment: count each prompt once.
    rows = rows.drop_duplicates(identity, keep="last")
    data = means(rows, metric, ["subset", by, "n_edits"])
    reported, called = reported or {}, {**TITLES, **(titles or {})}
    shown = [
        Panel(called.get(subset, subset), data[data["subset"] == subset], reported.get(subset))
        for subset in subsets
    ]
    if steps is not None:
        spent = minutes(steps, by, records)
        why = "no editing time recorded"
        shown.append(Panel("Cumulative editing time", spent, reported.get("time"), why))

    def finish(panel: Axes, part: pd.DataFrame) -> None:
        panel.set_xlabel("edits applied")
        if "subset" in part:
            score_axis(panel, ylabel or metric)
        else:
            panel.set_ylabel("minutes")
            panel.set_ylim(bottom=0)

    figure = lines(shown, "n_edits", by, looks(dict.fromkeys(rows[by])), finish)
    return Plot(figure, data, about_rows(rows, data, "Bands: 95 % interval."))


def retention(
    records: pd.DataFrame,
    metric: str,
    *,
    subset: str = "edits",
    by: str = "editor",
    bins: int = 8,
    ylabel: str | None = None,
) -> Plot:
    """Score of edits against their position in the stream: right after editing and at the end."""
    rows = having(records, metric, by, "subset", "moment", "edit_index")
    rows = rows[(rows["subset"] == subset) & rows["moment"].isin(["own", "end"])]
    rows = rows[rows["edit_index"] >= 0].assign(position=0.0)
    if len(rows):
        span = rows["edit_index"].max() + 1
        width = max(1, -(-int(span) // bins))
        slot = rows["edit_index"] // width
        last = np.minimum((slot + 1) * width, span) - 1
        rows = rows.assign(position=1 + (slot * width + last) / 2)
    data = means(rows, metric, [by, "moment", "position"])
    names = list(dict.fromkeys(rows[by]))
    own, end = "right after its batch", "after all edits"
    style = {own: Look(MUTED, "o", "--", "", hollow=True), end: Look(COLOURS[0], "s", "-", "")}
    drawn = data.assign(when=data["moment"].map({"own": own, "end": end}))

    def finish(panel: Axes, _: pd.DataFrame) -> None:
        panel.set_xlabel("position in the stream (1 = oldest)")
        score_axis(panel, ylabel or metric)

    shown = [Panel(str(name), drawn[drawn[by] == name]) for name in names]
    empty = f"No {subset} scored with {metric} at their own moment or at the end."
    figure = lines(shown, "position", "when", style, finish, height=2.6, empty=empty)
    facts = "Each point is a stretch of neighbouring edits. Bands: 95 % interval."
    return Plot(figure, data, about_rows(rows, data, facts))


def sweep(
    records: pd.DataFrame,
    x: str,
    metric: str,
    *,
    subsets: Sequence[str] = ("edits", "holdout", "upstream"),
    by: str = "editor",
    moment: str = "end",
    xlabel: str | None = None,
    ylabel: str | None = None,
    reported: Mapping[str, pd.DataFrame] | None = None,
    titles: Mapping[str, str] | None = None,
    log_x: bool = False,
) -> Plot:
    """Final scores against a swept setting `x` (a column of `records`), a panel per subset.

    Numbers make a line, anything else evenly spaced places. `reported`: subset -> (x, value).
    """
    rows = having(records, metric, x, by, "subset", "moment")
    rows = rows[(rows["moment"] == moment) & rows["subset"].isin(subsets)]
    data = means(rows, metric, ["subset", by, x])
    numeric = pd.api.types.is_numeric_dtype(data[x])
    places = {v: i for i, v in enumerate(dict.fromkeys(data[x]))}
    drawn = data.assign(_x=data[x] if numeric else data[x].map(places))
    shown, called = [], {**TITLES, **(titles or {})}
    for subset in subsets:
        paper = (reported or {}).get(subset)
        if paper is not None:
            where = paper[x] if numeric else paper[x].map(places)
            paper = paper.assign(_x=where, method="this sweep").dropna(subset=["_x"])
        part = drawn[drawn["subset"] == subset]
        shown.append(Panel(called.get(subset, subset), part, paper))

    def finish(panel: Axes, part: pd.DataFrame) -> None:
        panel.set_xlabel(xlabel or x)
        score_axis(panel, ylabel or metric)
        if numeric and log_x:
            panel.set_xscale("log")
        ticks = sorted(part["_x"].unique()) if numeric else list(places.values())
        if len(ticks) <= 8:
            labels = [f"{v:g}" for v in ticks] if numeric else [str(v) for v in places]
            panel.set_xticks(ticks, labels)
            panel.minorticks_off()
        panel.margins(x=0.12)

    figure = lines(shown, "_x", by, looks(dict.fromkeys(rows[by])), finish, whiskers=True)
    return Plot(figure, data, about_rows(rows, data, "Whiskers: 95 % interval."))


def cost_bars(
    costs: pd.DataFrame,
    *,
    columns: Sequence[str] = COSTS,
    by: str = "editor",
    titles: Mapping[str, str] | None = None,
) -> Plot:
    """Mean cost per `by` (rows of `costs.costs_by_editor`); logarithmic where editors lie apart."""
    names = list(dict.fromkeys(costs[by])) if by in costs else []
    style, parts = looks(names), []
    with use_style():
        figure, axes = panels(len(columns), height=0.9 + 0.32 * max(len(names), 3))
        for panel, column in zip(axes, columns, strict=True):
            panel.set_title({**TITLES, **(titles or {})}.get(column, column))
            part = means(having(costs, column, by), column, [by])
            parts.append(part.assign(quantity=column))
            if part.empty:
                say(panel, f"No {column} measured.")
                continue
            bars(panel, part, by, names, style)
    facts = "Means over batches, whiskers 95 % interval where batches differ. Fewer is better."
    return Plot(figure, stacked(parts), facts)
