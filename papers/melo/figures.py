"""Curves of ours and curves read off a paper's picture, each in a panel of its own.

The two differ in model, data and number of edits, so that one axis for both would mislead: left is
what ran here, right what was reported, in the same colours where the same value was varied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.data.records import SCORE_TITLES
from lib.report.figures.parts import (
    Panel,
    about_rows,
    counted,
    having,
    lines,
    means,
    minutes,
    score_axis,
    stacked,
)
from lib.report.figures.style import INK, Look, Plot, legend, looks, panels, say, use_style

SCORES = {
    "edits": SCORE_TITLES["edits"], "released_holdout": "Generality as released",
    "holdout": SCORE_TITLES["holdout"], "upstream": SCORE_TITLES["upstream"],
}  # fmt: skip
COUNTS = {"clusters": "Clusters", "conflicts": "Conflicts", "forgotten": "Forgotten keys"}
TIME = "time"
SILENT = {"holdout": "the official code never scored these"}


def scores_over_edits(
    records: pd.DataFrame,
    steps: pd.DataFrame,
    metric: str,
    *,
    reported: Mapping[str, pd.DataFrame] | None = None,
    subsets: Mapping[str, str] = SCORES,
    by: str = "value",
    ylabel: str = "score",
) -> Plot:
    """Scores and cumulative editing time against the number of edits, a line per `by`.

    `reported`: subset (or "time", minutes) -> rows `by`, n_edits, value read off a picture; given
    at all, each quantity gets a second panel for them.
    """
    rows = having(records, metric, by, "subset", "n_edits", "moment")
    rows = rows[rows["moment"].isin(["before", "checkpoint", "end"])]
    scores = means(rows, metric, ["subset", by, "n_edits"])
    parts = {name: scores[scores["subset"] == name] for name in subsets}
    parts[TIME] = minutes(steps, by)
    titles = {**subsets, TIME: "Cumulative editing time"}
    labels = dict.fromkeys(subsets, ylabel) | {TIME: "minutes"}
    figure, drawn = _pairs(parts, titles, labels, reported, by)
    return Plot(figure, drawn, about_rows(rows, scores, _facts(reported)))


def counts_over_edits(
    steps: pd.DataFrame,
    *,
    reported: Mapping[str, pd.DataFrame] | None = None,
    distinct_answers: Mapping[str, float] | None = None,
    titles: Mapping[str, str] = COUNTS,
    by: str = "value",
) -> Plot:
    """Sizes of an index against the number of edits, a line per `by`, reported curves beside them.

    `distinct_answers`: "here" and "reported", drawn dotted: what a perfect index would hold.
    """
    rows = having(steps, by, "n_edits").drop(columns="record", errors="ignore")
    parts = {name: means(having(rows, name), name, [by, "n_edits"]) for name in titles}
    figure, drawn = _pairs(
        parts, titles, dict.fromkeys(titles, "count"), reported, by, distinct_answers or {}
    )
    runs = rows["run"].nunique() if "run" in rows else 0
    return Plot(figure, drawn, f"Read after each batch; {runs} runs. {_facts(reported)}".strip())


def _facts(reported: Mapping[str, pd.DataFrame] | None) -> str:
    text = "Bands: 95 % interval."
    if not reported:
        return text
    return f"{text} Right: digitised from the paper's pictures, single runs, other model and data."


def _pairs(
    parts: Mapping[str, pd.DataFrame],
    titles: Mapping[str, str],
    labels: Mapping[str, str],
    reported: Mapping[str, pd.DataFrame] | None,
    by: str,
    answers: Mapping[str, float] | None = None,
) -> tuple[Figure, pd.DataFrame]:
    """The figure, and the numbers of both sides in long form."""
    told = reported or {}
    names = [str(v) for part in (*parts.values(), *told.values()) for v in part.get(by, ())]
    style, shown = looks(sorted(dict.fromkeys(names), key=_order)), []
    hollow = {name: replace(look, hollow=True) for name, look in style.items()}
    for name, part in parts.items():
        title = f"{titles[name]}{': here' if reported else ''}"
        shown.append(Panel(title, part.assign(quantity=name, side="here")))
        if reported:
            theirs = told.get(name, pd.DataFrame(columns=[by])).rename(columns={"value": "mean"})
            theirs = theirs.assign(
                low=float("nan"), high=float("nan"), quantity=name, side="reported"
            )
            why = SILENT.get(name, "no curve could be read off")
            shown.append(Panel("reported (digitised)", theirs, why=why, style=hollow))

    def finish(panel: Axes, part: pd.DataFrame) -> None:
        quantity, side = part["quantity"].iloc[0], part["side"].iloc[0]
        panel.set_xlabel("edits applied")
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if labels[quantity] in ("minutes", "count"):
            panel.set_ylabel(labels[quantity])
            panel.set_ylim(bottom=0)
        else:
            score_axis(panel, labels[quantity])
        if quantity == "clusters" and answers and side in answers:
            panel.axhline(
                answers[side], color=INK, linestyle=":", linewidth=1.4, label="distinct answers"
            )

    figure = lines(shown, "n_edits", by, style, finish, height=2.5)
    return figure, stacked([panel.rows for panel in shown])


def _order(name: str) -> tuple[str, float]:
    """Names of values in the order of their numbers: "radius 75" before "radius 250"."""
    *words, last = name.split(" ")
    try:
        return " ".join(words), float(last)
    except ValueError:
        return name, 0.0


OTHERS = "#c3c8cf"
FEW = 3  # points of a cluster that gets no colour of its own, as in MELO's picture (melo 6)
MOST = 7  # clusters with a look of their own


def key_maps(
    indexes: Mapping[str, tuple[np.ndarray, Sequence[object]]],
    pairs: Sequence[tuple[int, int]] = ((1, 2),),
    about: str = "",
) -> Plot:
    """A row of panels per index (name -> keys [n, d] with the cluster of each), one panel per pair
    of components (counted from 1).

    The `MOST` largest clusters of more than `FEW` keys have a look each; the others are grey.
    """
    parts, facts = [], []
    with use_style():
        figure, axes = panels(max(len(indexes) * len(pairs), 1), height=3.1)
        places = iter(axes)
        for name, (keys, clusters) in indexes.items():
            keys = np.asarray(keys, float).reshape(len(clusters), -1 if len(clusters) else 0)
            labels = np.asarray([str(cluster) for cluster in clusters], dtype=object)
            facts.append(_key_facts(name, keys, labels))
            points, shares = _projected(keys, max(max(pair) for pair in pairs))
            for pair in pairs:
                panel = next(places)
                panel.set_title(name)
                if points.shape[1] < max(pair):
                    say(panel, f"{counted(len(keys), 'key')}: too few for component {max(pair)}.")
                    continue
                parts.append(_map(panel, points, labels, pair, shares).assign(index=name))
        if not indexes:
            say(axes[0], "Empty: no index was saved.")
        legend(figure, axes)
    return Plot(figure, stacked(parts), " ".join([*facts, about]).strip())


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
    style: dict[str, Look] = looks(f"cluster {label}" for label in large)
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
    width = keys.shape[1] if len(keys) else 0
    return (
        f"{name}: {counted(len(keys), 'key')} of width {width} in "
        f"{counted(len(counts), 'cluster')}, {int((counts > FEW).sum())} of them with more than "
        f"{FEW}."
    )
