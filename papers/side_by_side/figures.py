"""Figures that compare many editors, which are named where they stand.

Ranks and a scatter of named points are drawn mark by mark: seaborn has no such plots.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib.metrics.estimates import resampled
from lib.report.figures.parts import (
    about_rows,
    extremes,
    having,
    levels,
    means,
    number,
    series,
)
from lib.report.figures.rows import ROW, SMALL, named
from lib.report.figures.style import (
    INK,
    MUTED,
    Plot,
    draw_levels,
    legend,
    looks,
    panels,
    say,
    use_style,
)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """The places moved as little as needed so that neighbours are at least `gap` apart; the order
    stays, and groups that were pushed apart keep their middle."""
    order = np.argsort(places, kind="stable")
    groups: list[tuple[float, int]] = []  # middle and size of runs of neighbours
    for place in np.asarray(places, float)[order]:
        middle, size = float(place), 1
        while groups and middle - groups[-1][0] < gap * (size + groups[-1][1]) / 2:
            before, count = groups.pop()
            middle = (before * count + middle * size) / (count + size)
            size += count
        groups.append((middle, size))
    spread = [m + gap * (i - (n - 1) / 2) for m, n in groups for i in range(n)]
    found = np.empty(len(places))
    found[order] = spread
    return found.tolist()


def first_edits(records: pd.DataFrame, metric: str, families: Sequence[str]) -> Plot:
    """Reliability of the earliest edits as more arrive: a panel per family, a line per editor.

    `records`: rows of the same edits before any edit and at several `n_edits`, with `family` and
    `editor`.
    """
    rows = having(records, metric, "family", "editor", "n_edits", "moment")
    level = levels(rows, metric, "edits")
    rows = rows[rows["moment"] != "before"]
    data = means(rows, metric, ["family", "editor", "n_edits"])
    families = [name for name in families if name in set(rows["family"])]
    told = []
    with use_style():
        figure, axes = panels(len(families), height=2.5)
        if not families:
            say(axes[0], "No edits were scored at a checkpoint.")
        for panel, family in zip(axes, families, strict=False):
            part = data[data["family"] == family]
            panel.set_title(family)
            _named_lines(panel, part, sorted(data["n_edits"].unique()))
            draw_levels(panel, level)
            last = part.sort_values("n_edits").groupby("editor", sort=False).tail(1)
            told.append(
                f"{family}, at each editor's end: {extremes(last['editor'], last['mean'])}."
            )
        legend(figure, axes)
    facts = "Places on the axis are evenly spaced; bands: 95 % interval."
    unedited = "".join(f" {name}: {number(value)}." for name, value in level.items())
    return Plot(figure, data, about_rows(rows, data, facts), " ".join(told) + unedited)


def _named_lines(panel: Axes, part: pd.DataFrame, edits: Sequence[int]) -> None:
    place = {n: i for i, n in enumerate(edits)}
    style, ends = looks(part["editor"]), []
    for name, line in part.groupby("editor", sort=False):
        line = line.sort_values("n_edits")
        line = line.assign(_x=line["n_edits"].map(place))
        series(panel, line, "_x", style[name], "_named where it ends")
        ends.append((name, line["_x"].iloc[-1], line["mean"].iloc[-1], style[name].colour))
    last = len(edits) - 1
    for (name, x, y, look), free in zip(ends, apart([end[2] for end in ends], 0.1), strict=True):
        panel.plot([x, last + 0.12], [y, free], color=look, linewidth=0.6, alpha=0.7)
        panel.text(last + 0.16, free, name, color=look, va="center", fontsize=SMALL)
    panel.set_xticks(range(len(edits)), [f"{n:,}" for n in edits])
    panel.set_xlim(-0.15, last + 0.16 + 0.55 * max(last, 1))
    panel.set_ylim(-0.12, 1.12)
    panel.set_yticks([0, 0.5, 1])
    panel.set(xlabel="edits applied", ylabel="share right")


def rank_intervals(ranks: pd.DataFrame) -> Plot:
    """A panel per measure, a row per editor: rank (marker), its 95 % interval and how often the
    editor is best; rank 1 is at the left.

    Columns: measure, editor, rank, rank_low, rank_high, best, units, unit, facts.
    """
    rows = having(ranks, "measure", "editor", "rank")
    style, measures, told = looks(rows["editor"]), list(dict.fromkeys(rows["measure"])), []
    count = rows["editor"].nunique()
    with use_style():
        figure, axes = panels(len(measures), height=0.85 + ROW * count)
        if not measures:
            say(axes[0], "No editor could be ranked.")
        for panel, measure in zip(axes, measures, strict=False):
            part = rows[rows["measure"] == measure].sort_values(
                ["rank", "best"], ascending=[True, False]
            )
            panel.set_title(measure)
            named(panel, part["editor"])
            for place, row in enumerate(part.itertuples()):
                look = style[row.editor]
                panel.plot([row.rank_low, row.rank_high], [place] * 2, color=look.colour,
                           linewidth=2)  # fmt: skip
                panel.plot(row.rank, place, **look.mark)
                panel.text(count + 0.9, place, f"{100 * row.best:.0f} %", va="center",
                           color=MUTED, fontsize=SMALL)  # fmt: skip
            panel.set(xlabel="rank; right: how often best")
            panel.set_xlim(0.4, count + 3.2)
            panel.set_xticks(range(1, count + 1, 3 if count > 6 else 1))
            first = part.iloc[0]
            told.append(
                f"{measure}: {first['editor']} first, best in {first['best']:.0%} of draws."
            )
    units = sorted(set(zip(rows["units"], rows["unit"], rows["facts"], strict=True)))
    drawn = ", ".join(
        f"{int(n):,} {resampled([unit])}" + (f" ({int(facts):,} facts)" if facts != n else "")
        for n, unit, facts in units
    )
    facts = f"Drawn again together for all editors: {drawn}; bars: 95 % of the draws."
    return Plot(figure, rows.reset_index(drop=True), facts if units else "No rows.", " ".join(told))


COSTS = {
    "seconds": "seconds per edit, logarithmic", "slowdown": "time of a forward pass, unedited = 1",
    "mebibytes": "kept on disk, MiB, logarithmic",
}  # fmt: skip


def speed_and_quality(points: pd.DataFrame) -> Plot:
    """Editing score against seconds per edit, time at inference and what has to be kept; the stairs
    are the best score to be had at each cost (Pareto).

    Columns: editor, score, low, high, seconds, slowdown, bytes.
    """
    rows = having(points, "editor", "score", "seconds")
    rows = rows.assign(mebibytes=rows["bytes"].astype(float) / 2**20) if len(rows) else rows
    style, told = looks(rows["editor"]), []
    with use_style():
        figure, axes = panels(len(COSTS), height=3.6)
        shown = []
        for panel, (x, label) in zip(axes, COSTS.items(), strict=True):
            part = rows[rows[x] > 0] if x in rows else rows.iloc[:0]
            if part.empty:
                say(panel, "Nothing was measured.")
                continue
            for row in part.itertuples():
                look, at = style[row.editor], getattr(row, x)
                panel.plot(at, row.score, **look.mark, zorder=3)
                panel.vlines(at, row.low, row.high, color=look.colour, linewidth=0.7, alpha=0.7)
            stairs = front(part, x)
            panel.set_xscale("linear" if x == "slowdown" else "log")
            _around(panel, part[x], x != "slowdown")
            ends = [*stairs[x], panel.get_xlim()[1]]
            panel.step(ends, [*stairs["score"], stairs["score"].iloc[-1]], where="post", color=INK,
                       linewidth=1.1, zorder=1)  # fmt: skip
            panel.set(xlabel=label, ylabel="editing score", ylim=(-0.05, 1.05))
            told.append(
                f"Not beaten in score and {label.split(',')[0]}: {', '.join(stairs['editor'])}."
            )
            shown.append((panel, part, x))
        figure.draw_without_rendering()  # names are placed on the final layout
        for panel, part, x in shown:
            _name_points(panel, part[x].tolist(), part["score"].tolist(), part["editor"].tolist())
    facts = (
        f"{len(rows)} editors; whiskers: 95 % interval; stairs: no editor is cheaper and better."
    )
    return Plot(
        figure, rows.reset_index(drop=True), facts if len(rows) else "No rows.", " ".join(told)
    )


def front(rows: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The rows that no other beats: from the cheapest on, each of a higher score than before."""
    ordered = rows.sort_values([cost, "score"], ascending=[True, False], kind="stable")
    best = ordered["score"].cummax().shift(fill_value=-np.inf)
    return ordered[ordered["score"] > best]


def _around(panel: Axes, values: pd.Series, log: bool) -> None:
    """Limits with room for names, and plain numbers at the ticks."""
    low, high = float(values.min()), float(values.max())
    if not log:
        room = 0.25 * max(high - low, 0.1)
        panel.set_xlim(low - room, high + room)
        return
    span = max(np.log10(high / low), 0.3)
    panel.set_xlim(low / 10 ** (0.2 * span), high * 10 ** (0.3 * span))
    shown = [10.0**k for k in range(-6, 7) if low / 3 <= 10.0**k <= high * 3]
    panel.set_xticks(shown, [f"{tick:g}" for tick in shown])
    panel.minorticks_off()


SIDES = (
    ("left", "center", 6, 0), ("right", "center", -6, 0), ("left", "bottom", 4, 4),
    ("left", "top", 4, -4), ("right", "bottom", -4, 4), ("right", "top", -4, -4),
    ("center", "bottom", 0, 7), ("center", "top", 0, -7), ("left", "bottom", 8, 12),
    ("left", "top", 8, -12), ("right", "bottom", -8, 12), ("right", "top", -8, -12),
)  # fmt: skip
SHARE = {"left": 0.0, "center": 0.5, "right": 1.0, "bottom": 0.0, "top": 1.0}


def _name_points(panel: Axes, x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> None:
    """A name at every point, at the side where it covers least of other names and points."""
    unit = 72 / panel.figure.dpi
    places = panel.transData.transform(np.column_stack([x, y])) * unit
    frame = panel.get_window_extent().extents * unit
    taken = [(*(place - 3), *(place + 3)) for place in places]
    for place, name in sorted(zip(places, names, strict=True), key=lambda pair: -pair[0][1]):
        size = np.array([0.56 * SMALL * len(name), SMALL])
        boxes = []
        for across, up, right, above in SIDES:
            low = place + np.array([right, above]) - size * [SHARE[across], SHARE[up]]
            boxes.append((*low, *(low + size)))
        costs = [
            sum(_overlap(box, other) for other in taken) + 3 * _outside(box, frame) + 2 * order
            for order, box in enumerate(boxes)
        ]
        across, up, right, above = SIDES[int(np.argmin(costs))]
        taken.append(boxes[int(np.argmin(costs))])
        panel.annotate(
            name, panel.transData.inverted().transform(place / unit), (right, above),
            textcoords="offset points", ha=across, va=up, fontsize=SMALL, color=INK, zorder=2,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        ).set_in_layout(False)  # fmt: skip


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(high, 0.0)


def _outside(box: Sequence[float], frame: Sequence[float]) -> float:
    whole = (box[2] - box[0]) * (box[3] - box[1])
    return whole - _overlap(box, frame)
