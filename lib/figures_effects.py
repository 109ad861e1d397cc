"""Figures of single differences and of split times: a dot plot and stacked bars."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from lib.report.figures.parts import having
from lib.report.figures.style import (
    COLOURS,
    HATCHES,
    INK,
    MUTED,
    Plot,
    legend,
    panels,
    say,
    use_style,
)


def differences(
    rows: pd.DataFrame, *, titles: Mapping[str, str], xlabel: str, about: str = ""
) -> Plot:
    """A panel per key of `titles`, a line per variant: dots with 95 % intervals, zero drawn.

    Columns: variant, subset (key of `titles`), mean, low, high, n.
    """
    rows = having(rows, "variant", "subset", "mean")
    names = list(dict.fromkeys(rows["variant"]))
    with use_style():
        figure, axes = panels(len(titles), height=1.1 + 0.3 * max(len(names), 3))
        for panel, (subset, title) in zip(axes, titles.items(), strict=True):
            panel.set_title(title)
            part = rows[rows["subset"] == subset].set_index("variant").reindex(names)
            if not part["mean"].notna().any():
                say(panel, "Empty: no variant was run.")
                continue
            places = np.arange(len(names))
            panel.axvline(0, color=INK, linewidth=0.9)
            panel.hlines(places, part["low"], part["high"], color=MUTED, linewidth=1.4)
            panel.plot(part["mean"], places, "o", color=COLOURS[0], zorder=3)
            panel.set_yticks(places, names)
            panel.set_ylim(len(names) - 0.5, -0.5)
            panel.set_xlabel(xlabel)
            panel.xaxis.set_major_locator(MaxNLocator(5))
            panel.grid(True, axis="x")
            panel.grid(False, axis="y")
    least = f"n = {int(rows['n'].min()):,} or more prompts per dot. " if len(rows) else "No rows. "
    return Plot(figure, rows.reset_index(drop=True), f"{least}Bars: 95 % interval. {about}".strip())


def time_parts(rows: pd.DataFrame, parts: Mapping[str, str], *, by: str = "editor") -> Plot:
    """Seconds per `by` as stacked bars; `parts`: column of `rows` -> what it is called."""
    rows = having(rows, by, *parts)
    data = rows.groupby(by, sort=False)[list(parts)].mean()
    with use_style():
        figure, (panel,) = panels(1, height=1.2 + 0.34 * max(len(data), 3))
        if data.empty:
            say(panel, "Empty: no finished run.")
        left = np.zeros(len(data))
        for number, (column, title) in enumerate(parts.items() if len(data) else ()):
            panel.barh(
                range(len(data)), data[column], left=left, height=0.6, facecolor="white",
                edgecolor=COLOURS[number], hatch=HATCHES[number + 1], label=title, linewidth=1.2,
            )  # fmt: skip
            left += data[column].to_numpy(float)
        for place, total in enumerate(left):
            panel.annotate(f"{total:,.3g} s", (total, place), (4, 0), va="center",
                           textcoords="offset points")  # fmt: skip
        if len(data):
            panel.set_yticks(range(len(data)), [str(name) for name in data.index])
            panel.set_ylim(len(data) - 0.5, -0.5)
            panel.set_xlim(0, max(float(left.max()), 1e-9) * 1.18)
            panel.set_xlabel("seconds")
            panel.grid(True, axis="x")
            panel.grid(False, axis="y")
        legend(figure, [panel])
    return Plot(figure, data.reset_index(), "Sums over all batches of a run, on one machine.")
