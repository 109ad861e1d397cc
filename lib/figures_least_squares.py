"""Figures on why MALMEN solves instead of adding: two facts as a drawing, then rows of our runs."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib.figure_parts import counted, having
from lib.figure_style import INK, MUTED, Look, Plot, legend, looks, panels, say, use_style
from lib.figures_scaling import logarithmic, over_m

WANTED, SUMMED, SOLVED = "wanted", "plain sum (MEND)", "least squares (MALMEN)"
ROWS = {
    "solved": "least squares", "summed": "plain sum of the same rows",
    "trained": "plain sum, network trained for it",
}  # fmt: skip
FILL = {WANTED: ("#ffffff", ""), SUMMED: ("#E69F00", "///"), SOLVED: ("#56B4E9", "")}
ANGLE = 25.0  # degrees between the two keys of the drawing
SHARED = 0.5  # cosine between any two of the n keys
MANY = (1, 2, 4, 8, 16, 32, 64)


def own_outputs(keys: np.ndarray, wanted: np.ndarray, ridge: float = 1e-9) -> dict[str, np.ndarray]:
    """What each row's output changes by under both shifts, keys [n, d] and wanted changes [n].

    Summed: S = sum_j k_j d_j / |k_j|^2, every term right for its own row. Solved: ridge regression.
    """
    summed = keys.T @ (wanted / (keys**2).sum(axis=1))
    gram = keys.T @ keys + ridge * np.eye(keys.shape[1])
    solved = np.linalg.solve(gram, keys.T @ wanted)
    return {WANTED: wanted, SUMMED: keys @ summed, SOLVED: keys @ solved}


def two_facts() -> Plot:
    """Two facts whose keys point nearly the same way, and n of them: arithmetic, drawn."""
    turn = np.deg2rad(ANGLE)
    keys = np.array([[1.0, 0.0], [np.cos(turn), np.sin(turn)]])
    parts = []
    with use_style():
        figure, axes = panels(4, height=2.7)
        _keys(axes[0], keys)
        for panel, title, wanted in (
            (axes[1], "(b) both want +1", (1.0, 1.0)),
            (axes[2], "(c) one wants +1, one −1", (1.0, -1.0)),
        ):
            outputs = own_outputs(keys, np.array(wanted))
            panel.set_title(title)
            _bars(panel, outputs)
            parts += [
                (title[:3], f"fact {i + 1}", name, float(value[i]))
                for name, value in outputs.items()
                for i in range(2)
            ]
        parts += _many(axes[3])
        legend(figure, axes)
    data = pd.DataFrame(parts, columns=["panel", "row", "shift", "change"])
    about = (
        f"Arithmetic, no data. (a) to (c): two keys at {ANGLE:g} degrees; (d): n keys with cosine "
        f"{SHARED:g} between any two, all wanting +1."
    )
    return Plot(figure, data, about)


def _keys(panel: Axes, keys: np.ndarray) -> None:
    panel.set_title("(a) two keys")
    for number, (x, y) in enumerate(keys, start=1):
        style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        panel.annotate("", (x, y), (0, 0), arrowprops=style)
        panel.text(x + 0.05, y, f"k{'₁₂'[number - 1]}", va="center")
    panel.plot([0], [0], marker="o", markersize=3, color=INK)
    turns = np.deg2rad(np.linspace(0, ANGLE, 20))
    panel.plot(0.45 * np.cos(turns), 0.45 * np.sin(turns), color=MUTED, linewidth=1.0)
    panel.text(0.5, 0.1, f"{ANGLE:g}°", color=MUTED, va="center")
    panel.set(xlim=(-0.15, 1.35), ylim=(-0.3, 0.75), xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    panel.grid(False)


def _bars(panel: Axes, outputs: Mapping[str, np.ndarray]) -> None:
    for place, (name, values) in enumerate(outputs.items()):
        face, hatch = FILL[name]
        where = np.arange(len(values)) + 0.26 * (place - 1)
        panel.bar(where, values, 0.23, facecolor=face, edgecolor=INK, hatch=hatch, label=name)
        for x, value in zip(where, values, strict=True):
            text = f"{round(value, 2):+g}".replace("-", "−")
            place_above = "bottom" if value >= 0 else "top"
            panel.annotate(text, (x, value), (0, 2 if value >= 0 else -2), fontsize=8.5,
                           textcoords="offset points", ha="center", va=place_above)  # fmt: skip
    panel.axhline(0, color=INK, linewidth=0.9)
    panel.set_xticks([0, 1], ["fact 1", "fact 2"])
    panel.set_ylabel("change of its output")
    panel.margins(y=0.2)


def _many(panel: Axes) -> list[tuple[str, str, str, float]]:
    panel.set_title("(d) n facts, all want +1")
    found = []
    for n in MANY:
        keys = np.hstack([np.full((n, 1), SHARED**0.5), np.eye(n) * (1 - SHARED) ** 0.5])
        for name, values in own_outputs(keys, np.ones(n)).items():
            found.append(("(d)", f"n = {n}", name, float(values[0])))
    for name, line, marker in ((SUMMED, "--", "v"), (SOLVED, "-", "o")):
        values = [change for _, _, shift, change in found if shift == name]
        panel.plot(MANY, values, color=INK, linestyle=line, marker=marker, label=f"(d) {name}",
                   markerfacecolor=FILL[name][0])  # fmt: skip
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(MANY, [str(n) for n in MANY])
    panel.set_yticks([1, 3, 10, 30], ["1", "3", "10", "30"])
    panel.minorticks_off()
    panel.set(xlabel="facts n", ylabel="change of each output")
    return found


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
