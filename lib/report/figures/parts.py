"""Pieces that several figures share: means with intervals, panels of lines with bands, bars."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from lib.metrics.estimates import estimate, resampled
from lib.metrics.intervals import mean_interval
from lib.metrics.scales import SCALES
from lib.report.figures.style import (
    INK,
    MARKERS,
    MUTED,
    REPORTED,
    Look,
    legend,
    panels,
    say,
    use_style,
)


def having(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Rows in which all `columns` are defined; no rows (but the columns) where one is missing."""
    if any(column not in frame for column in columns):
        return pd.DataFrame(columns=list(dict.fromkeys([*frame.columns, *columns])))
    return frame.dropna(subset=list(columns))


def means(rows: pd.DataFrame, column: str, keys: Sequence[str]) -> pd.DataFrame:
    """`keys`, mean, low, high, n, facts and unit per group of rows: of scores as `estimate` has
    them, of other quantities (seconds, counts) over rows."""
    found = []
    for values, group in rows.groupby(list(keys), sort=True):
        scored = column in SCALES
        one = estimate(group, column) if scored else mean_interval(group[column].astype(float))
        found.append((*values, one.mean, one.low, one.high, one.n, one.facts, one.unit))
    names = ["mean", "low", "high", "n", "facts", "unit"]
    frame = pd.DataFrame(found, columns=[*keys, *names])
    return frame.astype({name: float for name in names[:3]} | {"n": int, "facts": int})


def series(
    panel: Axes, part: pd.DataFrame, x: str, look: Look, label: str, *, whiskers: bool = False
) -> None:
    """One line of means with its 95 % band (or whiskers); a single point stays a point.

    The intervals are the columns low and high, where `part` has them: seaborn's own would not
    resample whole facts. Of many points only about ten bear a marker.
    """
    if part.empty:
        return
    part = part.sort_values(x)
    sns.lineplot(
        part, x=x, y="mean", estimator=None, errorbar=None, ax=panel, color=look.colour,
        marker=look.marker, linestyle=look.line, label=label, legend=False, zorder=3,
        markerfacecolor="white" if look.hollow else look.colour, markeredgecolor=look.colour,
        markevery=max(1, len(part) // 10),
    )  # fmt: skip
    if "low" not in part:
        return
    places, low, high = (part[name].to_numpy(float) for name in (x, "low", "high"))
    if whiskers or len(part) == 1:
        panel.vlines(places, low, high, color=look.colour, linewidth=1.1, zorder=2)
    else:
        panel.fill_between(places, low, high, color=look.colour, alpha=0.13, linewidth=0)


def curves(
    panel: Axes,
    part: pd.DataFrame,
    by: str,
    x: str,
    style: Mapping[str, Look],
    reported: pd.DataFrame | None = None,
    why: str = "no scores in these runs",
    *,
    whiskers: bool = False,
) -> None:
    """One line per value of `by`, the paper's curves behind; or the sentence `why`."""
    if reported is not None and len(reported):
        paper(panel, reported, x)
    for name, look in style.items():
        mine = part[part[by].astype(str) == name]
        series(panel, mine, x, look, name, whiskers=whiskers)
    if not panel.lines:
        say(panel, f"Empty: {why}.")


@dataclass(frozen=True)
class Panel:
    """A panel of `lines`: its title, rows of means, and what may differ from panel to panel."""

    title: str
    rows: pd.DataFrame
    reported: pd.DataFrame | None = None
    why: str = "no scores in these runs"
    style: Mapping[str, Look] | None = None


def lines(
    shown: Sequence[Panel],
    x: str,
    by: str,
    style: Mapping[str, Look],
    finish: Callable[[Axes, pd.DataFrame], None],
    *,
    height: float = 2.9,
    whiskers: bool = False,
    empty: str = "",
) -> Figure:
    """The figure with a panel of `curves` for each of `shown`, and one legend.

    `finish(axes, rows)` labels and scales a panel that shows a line. Without panels the figure is
    the sentence `empty`.
    """
    with use_style():
        figure, axes = panels(len(shown), height=height)
        if not shown:
            say(axes[0], empty)
        for panel, one in zip(axes, shown, strict=False):
            panel.set_title(one.title)
            looks = one.style or style
            curves(panel, one.rows, by, x, looks, one.reported, one.why, whiskers=whiskers)
            if panel.lines:
                finish(panel, one.rows)
        legend(figure, axes)
    return figure


def score_axis(panel: Axes, label: str) -> None:
    """Label the score axis; scores between 0 and 1 get the whole scale, so noise looks small."""
    panel.set_ylabel(label)
    low, high = panel.dataLim.intervaly
    if low >= 0 and high <= 1:
        panel.set_ylim(-0.02, 1.04)


def paper(panel: Axes, reported: pd.DataFrame, x: str) -> None:
    """Curves read off the paper's picture: dashed grey, one open marker per method.

    Drawn without seaborn: there is nothing to estimate, and the marker alone tells curves apart.
    """
    grouped = reported.groupby("method", sort=False) if "method" in reported else [("", reported)]
    for place, (method, rows) in enumerate(grouped):
        rows = rows.sort_values(x)
        label = f"reported (digitised): {method}" if method else "reported (digitised)"
        panel.plot(
            rows[x].to_numpy(float), rows["value"].to_numpy(float), color=REPORTED, label=label,
            linestyle=(0, (4, 2.5)), linewidth=1.2, marker=MARKERS[place % len(MARKERS)],
            markerfacecolor="white", markersize=4.5, zorder=1,
        )  # fmt: skip


def minutes(steps: pd.DataFrame, by: str, records: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean editing time so far, in minutes, per `by` and number of edits applied.

    `by` may be a column of `records` alone, one value per run.
    """
    rows = having(steps, "n_edits", "seconds_edit", "run").sort_values(["run", "n_edits"])
    if by not in rows and records is not None and len(records):
        rows = rows.assign(
            **{by: rows["run"].map(records.drop_duplicates("run").set_index("run")[by])}
        )
    rows = having(rows, by).drop(columns="record", errors="ignore")
    seconds = rows["seconds_edit"].astype(float)
    rows = rows.assign(minutes=seconds.groupby([rows["run"], rows[by]]).cumsum() / 60)
    return means(rows, "minutes", [by, "n_edits"])


def outline(
    panel: Axes, values: np.ndarray, edges: np.ndarray, look: Look, label: str, density: bool
) -> np.ndarray:
    """Draw a histogram as an outline of density, or of shares of all `values`; its heights."""
    heights, _ = np.histogram(values, bins=edges, density=density)
    heights = heights if density else heights / len(values)
    sns.histplot(
        x=(edges[:-1] + edges[1:]) / 2, weights=heights, bins=edges.tolist(), element="step",
        color=look.colour, alpha=0.14, linestyle=look.line, linewidth=1.6, label=label, ax=panel,
        legend=False, zorder=3,
    )  # fmt: skip
    return heights


def bars(
    panel: Axes, part: pd.DataFrame, by: str, names: Sequence[str], style: Mapping[str, Look]
) -> None:
    """Horizontal bars with hatches and printed values; the axis is logarithmic if it must be.

    Drawn without seaborn, whose bars begin at zero and have one hatch.
    """
    values = part.set_index(by)["mean"]
    positive = values[values > 0]
    log = len(positive) == len(values) and positive.max() / positive.min() > 50
    left = positive.min() / 3 if log else 0.0
    for place, name in enumerate(names):
        if name not in values.index:
            panel.text(left, place, " not measured", va="center", color=MUTED, style="italic")
            continue
        look, row = style[str(name)], part[part[by] == name].iloc[0]
        panel.barh(
            place, row["mean"] - left, left=left, height=0.62, facecolor="white", linewidth=1.2,
            edgecolor=look.colour, hatch=look.hatch,
        )  # fmt: skip
        end = row["mean"]
        if np.isfinite(row["high"]) and row["high"] > row["low"]:
            panel.plot([max(row["low"], left), row["high"]], [place] * 2, color=INK, linewidth=1.2)
            end = max(end, row["high"])
        text = f"{row['mean']:,.0f}" if row["mean"] >= 100 else f"{row['mean']:.3g}"
        panel.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center")
    if log:
        panel.set_xscale("log")
        panel.set_xlim(left, values.max() * (values.max() / left) ** 0.35)
        panel.set_xlabel("logarithmic scale")
    else:
        panel.set_xlim(0, max(float(values.max()), 1e-12) * 1.3)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        plain = "{x:,.0f}" if values.max() >= 10 else "{x:g}"
        # Ticks of seven digits would run into each other; the bars carry their exact numbers.
        large = EngFormatter(sep="") if values.max() >= 1e5 else plain
        panel.xaxis.set_major_formatter(large)
    panel.set_yticks(range(len(names)), [str(name) for name in names])
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(False)


def stacked(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames one below the other; empty ones leave no trace."""
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def counted(number: int, noun: str) -> str:
    """ "1 run", "3 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def about_rows(rows: pd.DataFrame, data: pd.DataFrame, more: str) -> str:
    """The caption's facts: n per point, seeds, intervals, model and data."""
    if rows.empty or data.empty:
        return "No rows."
    least, most = int(data["n"].min()), int(data["n"].max())
    n = f"n = {least:,}" if least == most else f"n = {least:,} to {most:,}"
    parts = [f"{n} scored prompts per point{_units(data)}", counted(rows["seed"].nunique(), "seed")]
    for name in ("backbone", "dataset"):
        if name in rows:
            parts.append(" + ".join(dict.fromkeys(str(value) for value in rows[name])))
    return f"{'; '.join(parts)}. {more}"


def _units(data: pd.DataFrame) -> str:
    """On how many facts the points rest where that is not n, and what their intervals resample."""
    if "unit" not in data:
        return ""
    fewer = data[data["facts"] < data["n"]]
    facts = sorted({int(data["facts"].min()), int(data["facts"].max())}) if len(fewer) else []
    of = f" of {' to '.join(f'{n:,}' for n in facts)} facts" if facts else ""
    return f"{of}; intervals resample {resampled(data['unit'])}"
