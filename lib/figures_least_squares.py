"""The figure on why MALMEN solves instead of adding: both shifts of the rows of our runs."""

import re

import pandas as pd
from matplotlib.axes import Axes

from lib.figures_scaling import logarithmic, over_m
from lib.report.figures.parts import counted, having
from lib.report.figures.style import MUTED, Look, Plot, legend, looks, panels, say, use_style

ROWS = {
    "solved": "least squares", "summed": "plain sum of the same rows",
    "trained": "plain sum, network trained for it",
}  # fmt: skip


def residuals_by_m(observations: pd.DataFrame, own: str, summing: str) -> Plot:
    """How far one shift is from what its rows want, |K S - D| / |D|, and its norm, against m.

    `observations` of kind "module": the same rows of `own`'s network solved for and summed, and
    the sum of the editor `summing`, whose network was trained for it. Thin lines: single layers.
    """
    rows = having(observations, "editor", "m", "path", "residual", "shift_norm")
    mine = having(rows[rows["editor"] == own], "summed_residual", "summed_norm")
    pieces = [
        _series(mine, ROWS["solved"], "residual", "shift_norm"),
        _series(mine, ROWS["summed"], "summed_residual", "summed_norm"),
        _series(rows[rows["editor"] == summing], ROWS["trained"], "residual", "shift_norm"),
    ]
    data = pd.concat(pieces, ignore_index=True)
    style = looks([name for name in ROWS.values() if name in set(data["shift"])])
    with use_style():
        figure, axes = panels(2, height=3.3)
        for panel, (column, title, label) in zip(axes, (
            ("residual", "Distance from what the rows want", "‖K S − D‖ / ‖D‖"),
            ("norm", "Size of the shift", "‖S‖"),
        ), strict=True):  # fmt: skip
            panel.set_title(title)
            if data.empty:
                say(panel, "Empty: no run looked at its shifts.")
                continue
            for name, look in style.items():
                _layers(panel, data[data["shift"] == name], column, look, name)
            if column == "residual":
                panel.axhline(1, color=MUTED, linestyle=":", label="no shift at all")
            panel.set_ylabel(f"{label}, logarithmic")
            logarithmic(panel, [*data[column], *([1.0] if column == "residual" else [])])
            over_m(panel, data["m"])
        legend(figure, axes)
    layers = counted(data["layer"].nunique(), "edited layer")
    about = f"Thick: mean over {layers}; thin: each layer. Rows of the last batch of each run."
    return Plot(figure, data, about)


def _series(rows: pd.DataFrame, name: str, residual: str, norm: str) -> pd.DataFrame:
    found = rows[["m", "path", residual, norm]].copy()
    found.columns = ["m", "layer", "residual", "norm"]
    numbers = {"residual": float, "norm": float, "m": float}
    return found.assign(shift=name, layer=found["layer"].map(_short)).astype(numbers)


def _short(path: str) -> str:
    """ "24 mlp.down_proj" from "model.layers.24.mlp.down_proj"; paths without a number stay."""
    found = re.search(r"(encoder|decoder)?[^\d]*?(\d+)\.(.*)$", str(path))
    return " ".join(filter(None, found.groups())) if found else str(path)


def _layers(panel: Axes, part: pd.DataFrame, column: str, look: Look, name: str) -> None:
    for _, layer in part.groupby("layer"):
        one = layer.groupby("m")[column].mean()
        panel.plot(one.index, one, color=look.colour, linewidth=0.7, alpha=0.45, zorder=2)
    middle = part.groupby("m")[column].mean()
    panel.plot(
        middle.index, middle, color=look.colour, linestyle=look.line, marker=look.marker,
        linewidth=2.0, label=name, zorder=3,
    )  # fmt: skip
