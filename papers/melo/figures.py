"""Figures of MELO's index: how it grows, beside curves read off the paper's picture, a map of its
keys, and the shape of the reported sweeps.

Reported curves differ in model, data and number of edits, so that one axis for both would mislead:
left is what ran here, right what was reported, in the same looks where the same value was varied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lib.report.figures.parts import Panel, counted, having, lines, means, series, stacked
from lib.report.figures.style import (
    REPORTED,
    RULE,
    Plot,
    legend,
    looks,
    panels,
    say,
    use_style,
)

COUNTS = {"clusters": "Clusters", "conflicts": "Conflicts", "forgotten": "Forgotten keys"}
ANSWERS = "distinct answers"


def counts_over_edits(
    steps: pd.DataFrame,
    *,
    reported: Mapping[str, pd.DataFrame] | None = None,
    distinct_answers: Mapping[str, float] | None = None,
    titles: Mapping[str, str] = COUNTS,
    by: str = "value",
) -> Plot:
    """Sizes of an index against the number of edits, a line per `by`; with `reported` (quantity ->
    rows `by`, n_edits, value read off a picture) each quantity gets a second panel for them.

    `distinct_answers`: "here" and "reported", a level: what a perfect index would hold.
    """
    rows = having(steps, by, "n_edits").drop(columns="record", errors="ignore")
    told, levels, shown = reported or {}, distinct_answers or {}, []
    names = [str(v) for part in (rows, *told.values()) for v in part.get(by, ())]
    style = looks(sorted(dict.fromkeys(names), key=_order))
    hollow = {name: replace(look, hollow=True) for name, look in style.items()}
    for name, title in titles.items():
        part = means(having(rows, name), name, [by, "n_edits"])
        sides = {"here": part, "reported": told.get(name, part.iloc[:0])}
        for side, found in sides.items() if told else [("here", part)]:
            found = found if side == "here" else found.rename(columns={"value": "mean"})
            level = {ANSWERS: levels[side]} if name == "clusters" and side in levels else {}
            shown.append(Panel(
                f"{title}: {side}" if told else title,
                found.assign(quantity=name, side=side),
                "no curve could be read off" if side == "reported" else "nothing was counted",
                hollow if side == "reported" else style,
                level,
            ))  # fmt: skip

    def finish(panel: Axes, _: pd.DataFrame) -> None:
        panel.set(xlabel="edits applied", ylabel="count")
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    runs = counted(rows["run"].nunique() if "run" in rows else 0, "run")
    more = "Right: digitised from the paper's pictures, single runs, other model and data."
    caption = f"Read after each batch; {runs}. {more if told else ''}".strip()
    data = stacked([panel.rows for panel in shown])
    return lines(shown, "n_edits", by, style, finish, data=data, caption=caption, height=2.3)


def _order(name: str) -> tuple[str, float]:
    """Names of values in the order of their numbers: "radius 75" before "radius 250"."""
    *words, last = name.split(" ")
    try:
        return " ".join(words), float(last)
    except ValueError:
        return name, 0.0


def reported_shape(
    panel: Axes, curves: Mapping[str, pd.DataFrame], names: Mapping[str, str]
) -> None:
    """The reported scores after the last edit against the swept value, a line per quantity of
    `names`: the shape that the paper's picture shows. `curves`: quantity -> x, n_edits, value."""
    panel.set_title("reported (digitised)")
    last = 0
    for (name, title), look in zip(names.items(), looks(names).values(), strict=True):
        rows = curves.get(name, pd.DataFrame(columns=["x", "n_edits", "value"]))
        rows = rows[rows["n_edits"] == rows["n_edits"].max()].rename(columns={"value": "mean"})
        series(panel, rows, "x", replace(look, hollow=True, colour=REPORTED), title)
        last = max([last, *rows["n_edits"]])
    panel.set(xlabel=f"value; {last:,.0f} edits", ylabel="", ylim=(-0.02, 1.04))
    panel.legend(loc="lower left", fontsize=8, handlelength=1.8)
    panel.grid(True, axis="y", color=RULE)


OTHERS = "#8d949d"
FEW = 3  # points of a cluster that gets no colour of its own, as in MELO's picture (melo 6)
MOST = 7  # clusters with a look of their own


def key_maps(
    indexes: Mapping[str, tuple[np.ndarray, Sequence[object]]],
    pairs: Sequence[tuple[int, int]] = ((1, 2),),
    about: str = "",
) -> Plot:
    """A row of panels per index (name -> keys [n, d] with the cluster of each) that holds a cluster
    of more than `FEW` keys, one panel per pair of components (counted from 1).

    The `MOST` largest such clusters have a look each; other keys are grey.
    """
    shown = {}
    for name, (keys, clusters) in indexes.items():
        labels = np.asarray([str(cluster) for cluster in clusters], dtype=object)
        if pd.Series(labels).value_counts().gt(FEW).any():
            shown[name] = np.asarray(keys, float).reshape(len(labels), -1), labels
    parts, facts = [], []
    with use_style():
        figure, axes = panels(len(shown) * len(pairs), height=2.9)
        places = iter(axes)
        for name, (keys, labels) in shown.items():
            facts.append(_key_facts(name, keys, labels))
            points, shares = _projected(keys, max(max(pair) for pair in pairs))
            for pair in pairs:
                panel = next(places)
                panel.set_title(name)
                if points.shape[1] < max(pair):
                    say(panel, f"{counted(len(keys), 'key')}: too few for component {max(pair)}.")
                    continue
                parts.append(_map(panel, points, labels, pair, shares).assign(index=name))
        if not shown:
            say(axes[0], f"Empty: no index holds a cluster of more than {FEW} keys.")
        legend(figure, axes)
    told = " ".join(facts)
    return Plot(figure, stacked(parts), f"{told} {about}".strip(), told)


def _projected(keys: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys on their first components [n, k], and the share of variance of each; k may be fewer
    than asked for."""
    if len(keys) < 2:
        return np.empty((len(keys), 0)), np.empty(0)
    centred = keys - keys.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    shares = sizes**2 / max((sizes**2).sum(), 1e-300)
    return centred @ axes[:components].T, shares[:components]


def _map(
    panel: Axes, points: np.ndarray, labels: np.ndarray, pair: tuple[int, int], shares: np.ndarray
) -> pd.DataFrame:
    x, y = (points[:, component - 1] for component in pair)
    counts = pd.Series(labels).value_counts()
    large = list(counts[counts > FEW].index[:MOST])
    rest = ~np.isin(labels, large)
    style = looks(f"cluster {label}" for label in large)
    if rest.any():
        sns.scatterplot(x=x[rest], y=y[rest], s=18, color=OTHERS, label="smaller clusters",
                        linewidth=0, legend=False, ax=panel, zorder=1)  # fmt: skip
    for place, label in enumerate(large):
        look, mine = style[f"cluster {label}"], labels == label
        sns.scatterplot(
            x=x[mine], y=y[mine], s=32, color=look.colour, marker=look.marker, edgecolor="white",
            linewidth=0.5, label=f"largest cluster {place + 1}", legend=False, ax=panel, zorder=3,
        )  # fmt: skip
    panel.grid(False)
    for axis, component in zip("xy", pair, strict=True):
        text = f"component {component} ({shares[component - 1]:.0%} of variance)"
        panel.set(**{f"{axis}label": text})
    return pd.DataFrame({"cluster": labels, "components": f"{pair}", "x": x, "y": y})


def _key_facts(name: str, keys: np.ndarray, labels: np.ndarray) -> str:
    counts = pd.Series(labels).value_counts()
    return (
        f"{name}: {counted(len(keys), 'key')} of width {keys.shape[1]} in "
        f"{counted(len(counts), 'cluster')}, {int((counts > FEW).sum())} of them with more than "
        f"{FEW}."
    )
