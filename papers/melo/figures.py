"""Curves of ours and curves read off a paper's picture, each in a panel of its own.

The two differ in model, data and number of edits, so that one axis for both would mislead: left is
what ran here, right what was reported, in the same colours where the same value was varied.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lib.report.figures.parts import about_rows, counted, having, means, score_axis, series, stacked
from lib.report.figures.style import INK, Look, Plot, legend, looks, panels, say, use_style

SCORES = {
    "edits": "Edit success", "released_holdout": "Generality as released",
    "holdout": "Held-out rephrases", "upstream": "Locality (upstream)",
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
    parts[TIME] = means(minutes(steps, by), "minutes", [by, "n_edits"])
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


def minutes(steps: pd.DataFrame, by: str) -> pd.DataFrame:
    """Steps with `minutes`: the editing time of the run so far."""
    rows = having(steps, by, "n_edits", "seconds_edit", "run").sort_values(["run", "n_edits"])
    spent = rows["seconds_edit"].astype(float).groupby([rows["run"], rows[by]]).cumsum() / 60
    return rows.assign(minutes=spent).drop(columns="record", errors="ignore")


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
    lines: Mapping[str, float] | None = None,
) -> tuple[object, pd.DataFrame]:
    """The figure, and the numbers of both sides in long form."""
    told = reported or {}
    names = [str(v) for part in (*parts.values(), *told.values()) for v in part.get(by, ())]
    style, drawn = looks(sorted(dict.fromkeys(names), key=_order)), []
    with use_style():
        figure, axes = panels(len(parts) * (2 if reported else 1), height=2.5)
        places = iter(axes)
        for name, part in parts.items():
            panel = next(places)
            panel.set_title(f"{titles[name]}{': here' if reported else ''}")
            _lines(panel, part, by, style, labels[name], "no scores in these runs")
            _line(panel, (lines or {}).get("here"), name)
            drawn.append(part.assign(quantity=name, side="here"))
            if not reported:
                continue
            panel, theirs = next(places), told.get(name, pd.DataFrame(columns=[by]))
            panel.set_title("reported (digitised)")
            theirs = theirs.rename(columns={"value": "mean"}).assign(
                low=float("nan"), high=float("nan")
            )
            why = SILENT.get(name, "no curve could be read off")
            _lines(panel, theirs, by, style, labels[name], why, hollow=True)
            _line(panel, (lines or {}).get("reported"), name)
            drawn.append(theirs.assign(quantity=name, side="reported"))
        legend(figure, axes)
    return figure, stacked(drawn)


def _lines(
    panel: Axes,
    part: pd.DataFrame,
    by: str,
    style: Mapping[str, Look],
    label: str,
    why: str,
    *,
    hollow: bool = False,
) -> None:
    for name, look in style.items():
        mine = part[part[by].astype(str) == name] if len(part) else part
        series(panel, mine, "n_edits", look, name, hollow=hollow)
    if not panel.lines:
        say(panel, f"Empty: {why}.")
        return
    panel.set_xlabel("edits applied")
    panel.set_xlim(left=0)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if label in ("minutes", "count"):
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
    else:
        score_axis(panel, label)


def _line(panel: Axes, height: float | None, quantity: str) -> None:
    if height is not None and quantity == "clusters" and panel.lines:
        panel.axhline(height, color=INK, linestyle=":", linewidth=1.4, label="distinct answers")


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
        panel.scatter(x[rest], y[rest], s=13, color=OTHERS, label="smaller clusters", zorder=1)
    for place, label in enumerate(large):
        look, mine = style[f"cluster {label}"], labels == label
        panel.scatter(
            x[mine], y[mine], s=32, color=look.colour, marker=look.marker, edgecolor="white",
            linewidth=0.5, label=f"largest cluster {place + 1}", zorder=3,
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
