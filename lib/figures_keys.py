"""Maps of an index's keys on their principal components."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib.report.figures.parts import counted, stacked
from lib.report.figures.style import Look, Plot, legend, looks, panels, say, use_style

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
            facts.append(_facts(name, keys, labels))
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


def _facts(name: str, keys: np.ndarray, labels: np.ndarray) -> str:
    counts = pd.Series(labels).value_counts()
    width = keys.shape[1] if len(keys) else 0
    return (
        f"{name}: {counted(len(keys), 'key')} of width {width} in "
        f"{counted(len(counts), 'cluster')}, {int((counts > FEW).sum())} of them with more than "
        f"{FEW}."
    )
