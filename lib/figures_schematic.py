"""COMEBA-HK's two schematics, drawn again: one layer with its hook, one round over three layers.

Our own drawings of what the paper's Figures 1 and 2 explain; `canvas`, `box` and `arrow` serve
other schematics too.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from lib.figure_style import INK, MUTED, Plot, legend, panels, use_style

BASE, TEMPORARY, VALIDATED = "#ffffff", "#fde7d9", "#d8e8f5"
HATCH = {BASE: "", TEMPORARY: "///", VALIDATED: ""}


def one_layer() -> Plot:
    """One edited layer while its weights are found (temporary) and in use (validated)."""
    with use_style():
        figure, axes = panels(2, height=4.1)
        for panel, title in zip(axes, ("(a) Temporary hook", "(b) Validated hook"), strict=True):
            canvas(panel, title, 10, 8.6)
            box(panel, 0.2, 1.5, 4.2, 1.5, "base W₀\nfrozen", BASE)
            arrow(panel, (5, 0.65), (2.3, 1.5))
            arrow(panel, (5, 0.65), (7.7, 1.5))
            panel.text(5, 0.3, "inputs of the layer, one per token", ha="center", va="center")
        left, right = axes
        box(left, 5.6, 1.5, 4.2, 1.5, "hook Wₕ\nbeing edited", TEMPORARY)
        arrow(left, (7.7, 3.0), (7.7, 4.2), "O for\nevery token")
        left.text(2.3, 3.5, "P is not used", ha="center", color=MUTED, style="italic")
        box(left, 0.2, 4.2, 9.6, 2.2, "C ← C + k kᵀ, starting from λ E[k kᵀ]\n"
             "Wₕ ← Wₕ + (v − h) kᵀ C⁻¹", BASE)  # fmt: skip
        left.text(5, 7.3, "h: output now · v: output wanted\nk: inputs at subjects' last tokens",
                  ha="center", va="center", color=MUTED, fontsize=9)  # fmt: skip
        box(right, 5.6, 1.5, 4.2, 1.5, "hook Wₕ\nedited", VALIDATED)
        arrow(right, (2.3, 3.0), (2.3, 4.0), "P")
        arrow(right, (7.7, 3.0), (7.7, 4.0), "O")
        box(right, 0.2, 4.0, 9.6, 1.5, "m = ‖O − P‖ of each token\n"
             "z = (m − mean) / standard deviation", BASE)  # fmt: skip
        arrow(right, (2.3, 5.5), (2.3, 6.4), "z < α")
        arrow(right, (7.7, 5.5), (7.7, 6.4), "z ≥ α")
        box(right, 0.2, 6.4, 4.2, 1.3, "output P\n(not edited)", BASE)
        box(right, 5.6, 6.4, 4.2, 1.3, "output O\n(edited)", VALIDATED)
    rows = [
        ("temporary", "every token gets the hook's output O; the weights are solved for"),
        ("validated", "a token gets O if its z score reaches alpha, else the base output P"),
    ]
    data = pd.DataFrame(rows, columns=["hook", "what it does"])
    return Plot(figure, data, "A drawing; no data.")


def one_round() -> Plot:
    """One batch of edits over three layers: hooks turn from temporary to validated one by one."""
    rows = []
    with use_style():
        figure, axes = panels(3, height=3.7)
        for step, panel in enumerate(axes):
            left = 3 - step
            canvas(panel, f"Step {step + 1}: layer {step + 1} is solved", 10, 9.0)
            for layer in range(3):
                state = VALIDATED if layer < step else TEMPORARY
                name = "validated" if layer < step else "temporary"
                y = 1.1 + 2.25 * layer
                box(panel, 0.2, y, 3.0, 1.3, f"layer {layer + 1}\nbase W₀", BASE)
                box(panel, 3.6, y, 3.0, 1.3, f"hook\n{name}", state, bold=layer == step,
                     label=f"{name} hook")  # fmt: skip
                arrow(panel, (3.4, y - 0.75 if layer else 0.35), (3.4, y))
                divisor = left if layer == step else None
                if divisor:
                    text = "residual" if divisor == 1 else f"residual / {divisor}"
                    panel.text(6.9, y + 0.65, f"← {text}", va="center", fontweight="bold")
                rows.append((step + 1, layer + 1, name, divisor))
            arrow(panel, (3.4, 6.9), (3.4, 7.9))
            panel.text(3.4, 8.2, "output of the last layer:\nresidual = target − output now",
                       ha="center", va="bottom", fontsize=9)  # fmt: skip
            panel.set_ylim(0, 9.6)
        legend(figure, axes)
    data = pd.DataFrame(rows, columns=["step", "layer", "hook", "residual divided by"])
    data["residual divided by"] = data["residual divided by"].astype("Int64")
    return Plot(figure, data, "A drawing; no data.")


def canvas(panel: Axes, title: str, width: float, height: float) -> None:
    """An empty sheet of this size in its own units."""
    panel.set_title(title)
    panel.set(xlim=(0, width), ylim=(0, height), xticks=[], yticks=[])
    panel.grid(False)
    panel.spines[:].set_visible(False)


def box(
    panel: Axes, x: float, y: float, width: float, height: float, text: str, face: str,
    *, bold: bool = False, label: str | None = None,
) -> None:  # fmt: skip
    """A box with text; `face` is one of the three colours above."""
    panel.add_patch(
        FancyBboxPatch(
            (x + 0.08, y + 0.08), width - 0.16, height - 0.16, boxstyle="round,pad=0.08",
            facecolor=face, edgecolor=INK if bold else MUTED, linewidth=2.2 if bold else 1.1,
            hatch=HATCH[face], label=label,
        )
    )  # fmt: skip
    back = {"facecolor": face, "edgecolor": "none", "pad": 1.0} if HATCH[face] else None
    panel.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9.5,
               fontweight="bold" if bold else "normal", bbox=back)  # fmt: skip


def arrow(
    panel: Axes, start: tuple[float, float], end: tuple[float, float], text: str = ""
) -> None:
    """An arrow, with a few words on its right."""
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    panel.annotate("", end, start, arrowprops=style)
    if text:
        middle = ((start[0] + end[0]) / 2 + 0.2, (start[1] + end[1]) / 2)
        panel.text(*middle, text, ha="left", va="center", fontsize=9)
