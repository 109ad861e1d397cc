"""Pieces that several figures share: means with intervals, levels, panels of lines with bands."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lib.metrics.estimates import estimate, resampled
from lib.metrics.intervals import mean_interval
from lib.metrics.scales import SCALES
from lib.report.figures.style import (
    Look,
    Plot,
    draw_levels,
    legend,
    panels,
    say,
    use_style,
)

UNEDITED, CHANCE = "unedited model", "one answer for all prompts"
FEW_ANSWERS = 10  # right answers below which always giving the commonest is worth a line
AGREEMENT = ("agreement", "same_answers", "unchanged", "kept", "kept_forced", "answer_agreement")


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


@dataclass(frozen=True)
class Panel:
    """A panel of `lines`: its title, rows of means, and what may differ from panel to panel."""

    title: str
    rows: pd.DataFrame
    why: str = "no scores in these runs"
    style: Mapping[str, Look] | None = None
    levels: Mapping[str, float] = field(default_factory=dict)


def lines(
    shown: Sequence[Panel],
    x: str,
    by: str,
    style: Mapping[str, Look],
    finish: Callable[[Axes, pd.DataFrame], None],
    *,
    data: pd.DataFrame,
    caption: str,
    height: float = 2.7,
    whiskers: bool = False,
    log_x: bool = False,
    empty: str = "",
) -> Plot:
    """A panel for each of `shown`, in it a line per value of `by`, and one legend; the caption ends
    with what was drawn.

    `finish(axes, rows)` labels and scales a panel that shows a line. Lines with `whiskers` stand
    side by side, by factors on an axis that will be logarithmic (`log_x`). Without panels the
    figure is the sentence `empty`.
    """
    with use_style():
        figure, axes = panels(len(shown), height=height)
        if not shown:
            say(axes[0], empty)
        for panel, one in zip(axes, shown, strict=False):
            panel.set_title(one.title)
            drawn = _side_by_side(one.rows, x, by, [*style], log_x) if whiskers else one.rows
            for name, look in (one.style or style).items():
                mine = drawn[drawn[by].astype(str) == name]
                series(panel, mine, x, look, name, whiskers=whiskers)
            if not panel.lines:
                say(panel, f"Empty: {one.why}.")
                continue
            draw_levels(panel, one.levels)
            finish(panel, one.rows)
        legend(figure, axes)
    caption = f"{caption} {_drawn(shown, by, whiskers)}".strip()
    return Plot(figure, data, caption, ends(shown, by, x))


def _side_by_side(
    rows: pd.DataFrame, x: str, by: str, names: Sequence[str], log_x: bool
) -> pd.DataFrame:
    """The places `x` a little shifted per name: whiskers do not cover each other."""
    places = sorted(set(rows[x].astype(float)))
    gap = min(np.diff(places), default=1.0)
    middle = (len(names) - 1) / 2
    offset = rows[by].astype(str).map({name: i - middle for i, name in enumerate(names)})
    offset, at = offset.astype(float), rows[x].astype(float)
    return rows.assign(**{x: at * 1.03**offset if log_x else at + 0.035 * gap * offset})


def _drawn(shown: Sequence[Panel], by: str, whiskers: bool) -> str:
    """How intervals are drawn, "" where none is."""
    wide = [one.rows for one in shown if "low" in one.rows]
    if not any((rows["high"] > rows["low"]).any() for rows in wide):
        return ""
    single = all(rows.groupby(by).size().max() == 1 for rows in wide if len(rows))
    return f"{'Whiskers' if whiskers or single else 'Bands'}: 95 % interval."


def ends(shown: Sequence[Panel], by: str, x: str) -> str:
    """What panels of lines show, in words: where each ends, highest and lowest, and the levels."""
    told = [_end(one, by, x) for one in shown if len(one.rows)]
    return " ".join(told) or " ".join(f"{one.title}: {one.why}." for one in shown)


def _end(one: Panel, by: str, x: str) -> str:
    """At the last place that most lines reach: the highest and lowest, or a single line's way."""
    count = one.rows.groupby(x)[by].nunique()
    at = count.index[count == count.max()].max()
    last = one.rows[one.rows[x] == at]
    told = extremes(last[by], last["mean"])
    if len(last) == 1:
        mine = one.rows[one.rows[by] == last[by].iloc[0]].sort_values(x)["mean"]
        told = f"{last[by].iloc[0]} from {number(mine.iloc[0])} to {number(last['mean'].iloc[0])}"
    levels = "".join(f", {name} {number(value)}" for name, value in one.levels.items())
    return f"{one.title}, at {float(at):,g}: {told}{levels}."


def extremes(names: Iterable[object], values: Iterable[float]) -> str:
    """ "highest A 0.97, lowest B 0.12"; all that share the value to two digits are named."""
    told = [(str(name), float(value)) for name, value in zip(names, values, strict=True)]
    if not told:
        return "nothing measured"
    least, most = (number(end(value for _, value in told)) for end in (min, max))
    who = {end: ", ".join(n for n, value in told if number(value) == end) for end in (least, most)}
    return (
        f"all {most}"
        if least == most
        else f"highest {who[most]} {most}, lowest {who[least]} {least}"
    )


def number(value: float) -> str:
    """Two digits of a score, whole numbers of anything large."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}".replace("-", "−")


def levels(rows: pd.DataFrame, metric: str, subset: str) -> dict[str, float]:
    """What a score of a subset is to be read against: that of the unedited model, and what one
    answer to all prompts would get where few answers are right (a classifier's labels)."""
    before = having(rows, metric, "moment", "subset")
    before = before[(before["moment"] == "before") & (before["subset"] == subset)]
    if before.empty:
        return {}
    found = {UNEDITED: float(before[metric].astype(float).mean())}
    right = before["prediction" if metric in AGREEMENT else "target"] if "target" in before else ()
    shares = pd.Series(right, dtype=object).value_counts(normalize=True)
    if 1 < len(shares) <= FEW_ANSWERS:
        found[CHANCE] = float(shares.iloc[0])
    return found


def score_axis(panel: Axes, label: str) -> None:
    """Label the score axis; scores between 0 and 1 get the whole scale, so noise looks small."""
    panel.set_ylabel(label)
    low, high = panel.dataLim.intervaly
    if low >= 0 and high <= 1:
        panel.set_ylim(-0.02, 1.04)


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


def stacked(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames one below the other; empty ones leave no trace."""
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def counted(number: int, noun: str) -> str:
    """ "1 run", "3 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def about_rows(rows: pd.DataFrame, data: pd.DataFrame, more: str = "") -> str:
    """The caption's facts: n per point, seeds, intervals and data."""
    if rows.empty or data.empty:
        return "No rows."
    least, most = int(data["n"].min()), int(data["n"].max())
    n = f"n = {least:,}" if least == most else f"n = {least:,} to {most:,}"
    parts = [f"{n} scored prompts per point{_units(data)}", counted(rows["seed"].nunique(), "seed")]
    if "dataset" in rows:
        parts.append(" + ".join(dict.fromkeys(str(value) for value in rows["dataset"])))
    return f"{'; '.join(parts)}. {more}".strip()


def _units(data: pd.DataFrame) -> str:
    """On how many facts the points rest where that is not n, and what their intervals resample."""
    if "unit" not in data:
        return ""
    fewer = data[data["facts"] < data["n"]]
    facts = sorted({int(data["facts"].min()), int(data["facts"].max())}) if len(fewer) else []
    of = f" of {' to '.join(f'{n:,}' for n in facts)} facts" if facts else ""
    return f"{of}; intervals resample {resampled(data['unit'])}"
