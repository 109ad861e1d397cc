"""Figures with a row per editor or variant: amounts, differences from zero, then against now.

Their intervals are columns that the study made: seaborn's own would not resample whole facts.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from lib.metrics.estimates import difference
from lib.report.figures.parts import extremes, having, means, number, stacked
from lib.report.figures.style import (
    INK,
    MUTED,
    PANEL,
    RULE,
    Look,
    Plot,
    draw_levels,
    legend,
    looks,
    say,
    sheet,
    use_style,
)

COST_TITLES = {
    "seconds_per_edit": "Seconds per edit", "parameters": "Trained parameters",
    "stored_floats": "Stored numbers (keys, values)",
}  # fmt: skip
ROW = 0.25  # inches per row
ABREAST = 4
SMALL = 8.5


def row_panels(titles: Sequence[str], names: Sequence[str], *, beside: int = 0) -> tuple[
    Figure, list[Axes]
]:  # fmt: skip
    """A panel per title, at most four abreast, that share the rows `names`, which stand at the left
    of each line of panels; `beside`: so many further panels without these rows."""
    count = len(titles) + beside
    lines = -(-count // ABREAST)
    columns = -(-count // lines)
    label = 0.075 * max((len(str(name)) for name in names), default=0) + 0.3
    width = max(PANEL, label + 2) if columns == 1 else label + 1.6 * columns
    figure = sheet(width, lines * (0.9 + ROW * max(len(names), 3)))
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    for place, (panel, title) in enumerate(zip(axes, titles, strict=False)):
        panel.set_title(textwrap.fill(title, 20 if columns > 1 else 40))
        named(panel, names if place % columns == 0 else [""] * len(names))
    return figure, axes[:count]


def named(panel: Axes, names: Sequence[str]) -> None:
    """Rows from the top with their names and a thin line each."""
    panel.set_yticks(range(len(names)), [str(name) for name in names])
    panel.set_ylim(max(len(names), 1) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(False)
    panel.hlines(range(len(names)), 0, 1, transform=panel.get_yaxis_transform(), color=RULE,
                 linewidth=0.6, zorder=0)  # fmt: skip


def amounts(
    panel: Axes, part: pd.DataFrame, by: str, names: Sequence[str], style: Mapping[str, Look]
) -> None:
    """Means as marks in the rows `names`, with intervals (low, high) and printed values; the axis
    is logarithmic if it must be."""
    values = part.set_index(by)["mean"]
    positive = values[values > 0]
    log = len(positive) > 1 and positive.max() / positive.min() > 50
    least = positive.min() / 4 if log else 0.0
    most = max(float(np.nanmax([*values, *part["high"]])), 1e-12)
    panel.set_xscale("log" if log else "linear")
    for place, name in enumerate(names):
        if name not in values.index:
            panel.annotate("not measured", (least, place), (4, 0), textcoords="offset points",
                           va="center", color=MUTED, style="italic")  # fmt: skip
            continue
        row = part[part[by] == name].iloc[0]
        at = max(row["mean"], least)
        panel.plot(at, place, **style[str(name)].mark, clip_on=False, zorder=3)
        if np.isfinite(row["high"]) and row["high"] > row["low"]:
            panel.hlines(place, max(row["low"], least), row["high"], color=INK, linewidth=1.1)
            at = max(at, row["high"])
        text = f"{row['mean']:,.0f}" if row["mean"] >= 100 else f"{row['mean']:.3g}"
        panel.annotate(text, (at, place), (6, 0), textcoords="offset points", va="center")
    if log:
        panel.set_xlim(least, most * (most / least) ** 0.8)
        panel.set_xlabel("logarithmic")
        return
    panel.set_xlim(0, most * 1.75)
    panel.xaxis.set_major_locator(MaxNLocator(3))
    # Ticks of seven digits would run into each other; the marks carry their exact numbers.
    plain = "{x:,.0f}" if most >= 10 else "{x:g}"
    panel.xaxis.set_major_formatter(EngFormatter(sep="") if most >= 1e5 else plain)


def cost_rows(
    costs: pd.DataFrame, titles: Mapping[str, str] = COST_TITLES, *, by: str = "editor"
) -> Plot:
    """Mean costs, a row per `by` and a panel per column of `titles`; logarithmic where editors lie
    far apart. `costs`: rows of `costs.costs_by_editor`."""
    names = list(dict.fromkeys(costs[by])) if by in costs else []
    style, parts, told = looks(names), [], []
    with use_style():
        figure, axes = row_panels([*titles.values()], names)
        for panel, (column, title) in zip(axes, titles.items(), strict=True):
            part = means(having(costs, column, by), column, [by])
            parts.append(part.assign(quantity=column))
            if part.empty:
                say(panel, f"No {title[:1].lower()}{title[1:]} measured.")
                continue
            amounts(panel, part, by, names, style)
            told.append(f"{title}: {extremes(part[by], part['mean'])}.")
    spread = any((part["high"] > part["low"]).any() for part in parts if len(part))
    facts = f"Means over batches{', lines: 95 % interval' if spread else ''}. Fewer is better."
    return Plot(figure, stacked(parts), facts, " ".join(told))


def then_and_now(
    kept: pd.DataFrame, *, levels: Mapping[str, float] | None = None, about: str = ""
) -> Plot:
    """A row per editor: the score of its edits right after their own batch (open) and after the
    last edit (filled), with the latter's interval.

    Columns: editor, own, end, n, and edits, low, high where known.
    """
    rows = having(kept, "editor", "own", "end")
    style = looks(rows["editor"])
    with use_style():
        figure, (panel,) = row_panels([""], rows["editor"])
        for place, row in enumerate(rows.itertuples()):
            look = style[str(row.editor)]
            panel.plot([row.own, row.end], [place] * 2, color=look.colour, linewidth=1.6, zorder=2)
            if getattr(row, "high", 0.0) > getattr(row, "low", 0.0):
                panel.hlines(place, row.low, row.high, color=MUTED, linewidth=0.9)
            for at, face in ((row.own, "white"), (row.end, look.colour)):
                mark = {**look.mark, "markerfacecolor": face}
                panel.plot(at, place, **mark, zorder=3 + (at == row.end))
            panel.text(1.05, place, f"{int(row.n):,}", va="center", color=MUTED, fontsize=SMALL)
        if len(rows):
            draw_levels(panel, levels or {}, upright=True)
            panel.text(1.05, -0.75, "n", va="center", color=MUTED, fontsize=SMALL)
            panel.set_xlabel("score")
            panel.set_xlim(-0.03, 1.2)
            panel.set_xticks([0, 0.25, 0.5, 0.75, 1])
            legend(figure, [panel])
        else:
            say(panel, "No edits were scored at both moments.")
    if rows.empty:
        return Plot(figure, rows, "No rows.")
    fall = (rows["own"] - rows["end"]).astype(float)
    worst, best = rows.loc[fall.idxmax()], rows.loc[fall.idxmin()]
    told = "; ".join(
        f"{word} change: {one['editor']}, from {number(one['own'])} to {number(one['end'])}"
        for word, one in (("largest", worst), ("smallest", best))
    )
    unedited = "".join(f"; {name} {number(value)}" for name, value in (levels or {}).items())
    facts = "Open: right after the edit's own batch; filled: after the last edit."
    return Plot(
        figure, rows.reset_index(drop=True), f"{facts} {about}".strip(),
        f"{told[:1].upper()}{told[1:]}{unedited}.",
    )  # fmt: skip


def kept_edits(records: pd.DataFrame, metric: str, *, subset: str = "edits") -> pd.DataFrame:
    """What `then_and_now` draws, from rows scored at their own moment and at the end: the same
    edits at both."""
    rows = having(records, metric, "editor", "subset", "moment")
    rows = rows[rows["subset"] == subset]
    found = []
    for editor, part in rows.groupby("editor", sort=False):
        own, end = (part[part["moment"] == moment] for moment in ("own", "end"))
        keys = [name for name in ("run", "record", "prompt") if name in part]
        both = own.merge(end[keys], on=keys)
        end = end.merge(own[keys], on=keys)
        if len(both):
            now = means(end, metric, ["editor"]).iloc[0]
            own = both[metric].astype(float).mean()
            found.append((editor, own, now["mean"], now["low"], now["high"], now["n"]))
    return pd.DataFrame(found, columns=["editor", "own", "end", "low", "high", "n"])


def against_default(
    records: pd.DataFrame, metric: str, titles: Mapping[str, str], default: Sequence[str],
    called: Callable[[str, object], str], *, moment: str = "end",
) -> pd.DataFrame:  # fmt: skip
    """What `differences` draws, of a sweep: each value minus the runs `default`, by prompt.

    `called`: editor and value to the name of a row.
    """
    rows = having(records, metric, "editor", "value", "subset", "moment", "run")
    rows = rows[rows["moment"] == moment]
    found = []
    for editor, mine in rows.groupby("editor", sort=False):
        base = mine[mine["run"].isin(default)]
        for value, part in mine[~mine["run"].isin(default)].groupby("value", sort=False):
            for subset in titles:
                d = difference(*(side[side["subset"] == subset] for side in (part, base)), metric)
                if d.n:
                    found.append(
                        (called(editor, value), editor, subset, d.mean, d.low, d.high, d.n)
                    )
    names = ["variant", "editor", "subset", "mean", "low", "high", "n"]
    return pd.DataFrame(found, columns=names)


def differences(
    rows: pd.DataFrame, *, titles: Mapping[str, str], xlabel: str, about: str = "",
    beside: Callable[[Axes], None] | None = None,
) -> Plot:  # fmt: skip
    """A panel per key of `titles`, a row per variant: marks with 95 % intervals, zero drawn.

    Columns: variant, subset (key of `titles`), mean, low, high, n; `editor`, where it is there,
    gives the look. `beside` draws one more panel at the right.
    """
    rows = having(rows, "variant", "subset", "mean")
    rows = rows if "editor" in rows else rows.assign(editor="")
    names, style = list(dict.fromkeys(rows["variant"])), looks(rows["editor"])
    titles = {key: title for key, title in titles.items() if (rows["subset"] == key).any()}
    told, least = [], f"n = {int(rows['n'].min()):,} or more per mark." if len(rows) else "No rows."
    with use_style():
        figure, axes = row_panels([*titles.values()] or [""], names, beside=beside is not None)
        if not titles:
            say(axes[0], "Empty: no variant was run.")
        for panel, (subset, title) in zip(axes, titles.items(), strict=False):
            part = rows[rows["subset"] == subset]
            panel.axvline(0, color=INK, linewidth=0.9)
            for row in part.itertuples():
                place = names.index(row.variant)
                panel.hlines(place, row.low, row.high, color=INK, linewidth=1.1)
                panel.plot(row.mean, place, **style[row.editor].mark, zorder=3)
            reach = 1.15 * max(0.02, float(part[["mean", "low", "high"]].abs().max().max()))
            panel.set(xlabel=xlabel, ylabel="", xlim=(-reach, reach))
            panel.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
            apart = part[(part["low"] > 0) | (part["high"] < 0)]
            pairs = zip(apart["variant"], apart["mean"], strict=True)
            off = ", ".join(f"{name} {'+' * (mean > 0)}{number(mean)}" for name, mean in pairs)
            told.append(f"{title}: {off or 'every interval contains 0'}.")
        if beside is not None:
            beside(axes[-1])
    drawn = " Lines: 95 % interval." if len(rows) else ""
    return Plot(
        figure, rows.reset_index(drop=True), f"{least}{drawn} {about}".strip(), " ".join(told)
    )
