"""Figures that compare many editors: colours are families, editors are named where they stand.

Dumbbells, ranks and a scatter of named points are drawn mark by mark: seaborn has no such plots.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib.metrics.estimates import resampled
from lib.report.figures.parts import about_rows, having, means, series
from lib.report.figures.style import (
    COLOURS,
    INK,
    LINES,
    MARKERS,
    MUTED,
    RULE,
    Look,
    Plot,
    legend,
    panels,
    say,
    use_style,
)

ROW = 0.27  # inches per editor where editors are rows


def family_looks(rows: pd.DataFrame, families: Sequence[str]) -> dict[str, Look]:
    """A colour and a marker per family: the same in every figure, whichever families it shows."""
    found = {
        name: Look(COLOURS[i % 8], MARKERS[i % 8], LINES[i % 8], "")
        for i, name in enumerate(families)
    }
    return {name: look for name, look in found.items() if name in set(rows["family"])}


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

    `records`: rows of the same edits at several `n_edits`, with `family` and `editor`.
    """
    rows = having(records, metric, "family", "editor", "n_edits")
    data = means(rows, metric, ["family", "editor", "n_edits"])
    families = [name for name in families if name in set(rows["family"])]
    with use_style():
        figure, axes = panels(len(families), height=2.7)
        if not families:
            say(axes[0], "No edits were scored at a checkpoint.")
        for panel, family in zip(axes, families, strict=False):
            part = data[data["family"] == family]
            panel.set_title(family)
            _named_lines(panel, part, sorted(data["n_edits"].unique()))
    facts = "Places on the axis are evenly spaced; bands: 95 % interval."
    return Plot(figure, data, about_rows(rows, data, facts))


def _named_lines(panel: Axes, part: pd.DataFrame, edits: Sequence[int]) -> None:
    place = {n: i for i, n in enumerate(edits)}
    ends = []
    for number, (name, line) in enumerate(part.groupby("editor", sort=False)):
        line = line.sort_values("n_edits")
        line = line.assign(_x=line["n_edits"].map(place))
        look = Look(COLOURS[number % 8], MARKERS[number % 8], LINES[number % 8], "")
        series(panel, line, "_x", look, "_named where it ends")
        ends.append((name, line["_x"].iloc[-1], line["mean"].iloc[-1], look.colour))
    last = len(edits) - 1
    for (name, x, y, look), free in zip(ends, apart([end[2] for end in ends], 0.1), strict=True):
        panel.plot([x, last + 0.12], [y, free], color=look, linewidth=0.6, alpha=0.7)
        panel.text(last + 0.16, free, name, color=look, va="center", fontsize=8.5)
    panel.set_xticks(range(len(edits)), [f"{n:,}" for n in edits])
    panel.set_xlim(-0.15, last + 0.16 + 0.42 * max(last, 1))
    panel.set_ylim(-0.12, 1.12)
    panel.set_yticks([0, 0.5, 1])
    panel.set(xlabel="edits applied", ylabel="share right")


def own_against_end(lost: pd.DataFrame, families: Sequence[str]) -> Plot:
    """A row per editor: reliability right after the own batch (open) and after the last edit.

    Columns: editor, family, edits, own, end, n, adjusted (p-value of the difference).
    """
    rows = having(lost, "editor", "family", "own", "end")
    looks = family_looks(rows, families)
    with use_style():
        figure, (panel,) = _rows_panel(len(rows), "No editor was scored at both moments.")
        for place, row in enumerate(rows.itertuples()):
            look = looks[row.family]
            panel.plot([row.own, row.end], [place] * 2, color=look.colour, linewidth=1.4, zorder=2)
            panel.plot(row.own, place, look.marker, color=look.colour, markerfacecolor="white",
                       zorder=3)  # fmt: skip
            panel.plot(row.end, place, look.marker, color=look.colour, zorder=4)
            panel.text(1.04, place, f"{row.edits:,} edits", va="center", color=MUTED, fontsize=8.5)
        _row_names(panel, rows["editor"])
        if len(rows):
            panel.set(xlabel="share right: open right after the own batch, filled at the end")
            panel.set_xlim(-0.03, 1.22)
            panel.set_xticks([0, 0.25, 0.5, 0.75, 1])
            _families(panel, looks)
            legend(figure, [panel])
    n = sorted(set(rows["n"])) if len(rows) else []
    told = f"n = {' or '.join(f'{int(x):,}' for x in n)} edits per editor." if n else "No rows."
    return Plot(figure, rows.reset_index(drop=True), told)


def rank_intervals(ranks: pd.DataFrame, families: Sequence[str]) -> Plot:
    """A panel per measure, a row per editor: rank (marker), its 95 % interval and how often the
    editor is best; rank 1 is at the left.

    Columns: measure, editor, family, rank, rank_low, rank_high, best, units, unit, facts.
    """
    rows = having(ranks, "measure", "editor", "family", "rank")
    looks, measures = family_looks(rows, families), list(dict.fromkeys(rows["measure"]))
    count = rows["editor"].nunique()
    with use_style():
        figure, axes = panels(len(measures), height=0.9 + ROW * count)
        if not measures:
            say(axes[0], "No editor could be ranked.")
        for panel, measure in zip(axes, measures, strict=False):
            part = rows[rows["measure"] == measure].sort_values(
                ["rank", "best"], ascending=[True, False]
            )
            panel.set_title(measure)
            for place, row in enumerate(part.itertuples()):
                look = looks[row.family]
                panel.plot([row.rank_low, row.rank_high], [place] * 2, color=look.colour,
                           linewidth=3, alpha=0.45, solid_capstyle="round")  # fmt: skip
                panel.plot(row.rank, place, look.marker, color=look.colour)
                panel.text(count + 0.9, place, f"{100 * row.best:.0f} %", va="center",
                           color=MUTED, fontsize=8.5)  # fmt: skip
            _row_names(panel, part["editor"])
            panel.set(xlabel="rank (1 = best); right: how often best")
            panel.set_xlim(0.4, count + 3.2)
            panel.set_xticks(range(1, count + 1, 2 if count > 6 else 1))
            _families(panel, looks)
        if measures:
            legend(figure, axes)
    units = sorted(set(zip(rows["units"], rows["unit"], rows["facts"], strict=True)))
    told = ", ".join(
        f"{int(n):,} {resampled([unit])}" + (f" ({int(facts):,} facts)" if facts != n else "")
        for n, unit, facts in units
    )
    facts = f"Drawn again together for all editors: {told}; bars: 95 % of the draws."
    return Plot(figure, rows.reset_index(drop=True), facts if units else "No rows.")


def speed_and_quality(points: pd.DataFrame, families: Sequence[str]) -> Plot:
    """Editing score against seconds per edit, and against what has to be kept, both axes of
    cost logarithmic; the line joins editors that no other beats in both speed and score.

    Columns: editor, family, score, low, high, seconds, seconds_low, seconds_high, bytes, front.
    """
    rows = having(points, "editor", "family", "score", "seconds")
    rows = rows.assign(mebibytes=rows["bytes"].astype(float) / 2**20) if len(rows) else rows
    looks = family_looks(rows, families)
    with use_style():
        figure, axes = panels(2, height=4.2)
        for panel, x, label in (
            (axes[0], "seconds", "seconds per edit (logarithmic)"),
            (axes[1], "mebibytes", "kept on disk, MiB (logarithmic)"),
        ):
            part = rows[rows[x] > 0] if len(rows) else rows
            if part.empty:
                say(panel, "Nothing was measured.")
                continue
            panel.set_xscale("log")
            for row in part.itertuples():
                look, at = looks[row.family], getattr(row, x)
                panel.plot(at, row.score, look.marker, color=look.colour, zorder=3)
                panel.vlines(at, row.low, row.high, color=look.colour, linewidth=0.9, alpha=0.6)
                if x == "seconds":
                    panel.hlines(row.score, row.seconds_low, row.seconds_high, color=look.colour,
                                 linewidth=0.9, alpha=0.6)  # fmt: skip
            if x == "seconds":
                front = part[part["front"]].sort_values("seconds")
                panel.step(front["seconds"], front["score"], where="post", color=INK,
                           linewidth=0.9, linestyle=":", zorder=1)  # fmt: skip
            _name_points(panel, part, x)
            panel.set(xlabel=label, ylabel="editing score")
            panel.set_ylim(-0.05, 1.05)
            _families(panel, looks)
        legend(figure, axes)
    told = f"{len(rows)} editors; whiskers: 95 % interval; dotted: no editor is faster and better."
    return Plot(figure, rows.reset_index(drop=True), told if len(rows) else "No rows.")


def _name_points(panel: Axes, part: pd.DataFrame, x: str) -> None:
    """Names in one column right of the points, joined to them by thin lines."""
    low, high = part[x].min(), part[x].max()
    span = max(np.log10(high / low), 0.3)
    column = 10 ** (np.log10(high) + 0.16 * span)
    ordered = part.sort_values("score", kind="stable")
    free = apart(ordered["score"].tolist(), 0.062)
    over = max(0.0, max(free) - 1.02) or min(0.0, min(free) + 0.02)  # keep all in the panel
    for row, y in zip(ordered.itertuples(), free, strict=True):
        panel.plot([getattr(row, x), column], [row.score, y - over], color=RULE, linewidth=0.8,
                   zorder=0)  # fmt: skip
        panel.text(column, y - over, f" {row.editor}", va="center", fontsize=8.5, color=INK)
    panel.set_xlim(low / 10 ** (0.08 * span), 10 ** (np.log10(high) + 0.75 * span))
    steps = (1, 2, 5) if span < 1.5 else (1,)
    shown = [s * 10.0**k for k in range(-6, 7) for s in steps]
    shown = [tick for tick in shown if low / 1.3 <= tick <= high * 1.3]
    panel.set_xticks(shown, [f"{tick:g}" for tick in shown])
    panel.minorticks_off()
    panel.grid(False)


def _rows_panel(count: int, empty: str):
    figure, axes = panels(1, height=0.8 + ROW * max(count, 1))
    if not count:
        say(axes[0], empty)
    return figure, axes


def _row_names(panel: Axes, names: Sequence[str]) -> None:
    names = list(names)
    if not names:
        return
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(False)
    panel.hlines(range(len(names)), 0, 1, transform=panel.get_yaxis_transform(), color=RULE,
                 linewidth=0.5, zorder=0)  # fmt: skip


def _families(panel: Axes, looks: Mapping[str, Look]) -> None:
    """Entries of the legend: families, not editors."""
    for name, look in looks.items():
        panel.plot([], [], look.marker, color=look.colour, linestyle="none", label=name)
