"""Figures of a hyper-network's training: its seven stages as a drawing, and its learning curves."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lib.figure_parts import counted, having
from lib.figure_style import MUTED, Look, Plot, legend, looks, panels, say, use_style
from lib.figures_schematic import BASE, VALIDATED, arrow, box, canvas

STAGES = (
    (1, "language model", "forward over the edit prompts: cache the keys K of the edited layers"),
    (2, "language model", "backward: cache the gradients G at the outputs of the edited layers"),
    (3, "hyper-network", "infer the shifts by least squares; no intermediate result is kept"),
    (4, "language model", "rephrases and unrelated prompts through the edited weights"),
    (5, "language model", "back-propagate the meta loss down to the edited layers, and no further; "
                          "the gradients through the solve follow in closed form"),
    (6, "hyper-network", "run the hyper-network again on the cached rows, now with a graph"),
    (7, "hyper-network", "back-propagate the proxy loss into the hyper-network"),
)  # fmt: skip
CURVES = {
    "generality": "Loss on rephrases", "locality": "Divergence on unrelated prompts",
    "valid_ES": "Validation ES", "valid_GS": "Validation GS", "valid_LS": "Validation LS",
}  # fmt: skip


def meta_gradient() -> Plot:
    """The seven stages of one meta-step, as the paper's Figure 2 names them; our own drawing."""
    with use_style():
        figure, axes = panels(2, height=4.9)
        left, right = axes
        canvas(left, "(a) Find the shift: stages 1 to 3", 10, 10.4)
        _lanes(left)
        left.text(2.3, 0.35, "edit prompts,\n32 facts at a time", ha="center", va="center")
        arrow(left, (2.3, 0.95), (2.3, 1.9))
        box(left, 0.2, 1.9, 4.2, 3.2, "1  forward:\nkeys K\n\n2  backward:\ngradients G", BASE)
        arrow(left, (4.4, 3.5), (5.6, 3.5))
        box(left, 5.6, 2.6, 4.2, 1.8, "row store\n(K, G), all facts", BASE)
        arrow(left, (7.7, 4.4), (7.7, 5.4))
        box(left, 5.6, 5.4, 4.2, 3.6, "3  network on 1,024\nrows at a time: D;\n"
            "then least squares:\nmin ‖K S − D‖²\n+ λ ‖S‖²", VALIDATED)  # fmt: skip
        arrow(left, (5.6, 7.2), (4.4, 7.2))
        box(left, 0.2, 6.3, 4.2, 1.8, "edited weights\nW + S", BASE)
        canvas(right, "(b) Learn from it: stages 4 to 7", 10, 10.4)
        _lanes(right)
        right.text(2.3, 0.35, "rephrases, unrelated,\n32 facts at a time", ha="center", va="center")
        arrow(right, (2.3, 0.95), (2.3, 1.9))
        box(right, 0.2, 1.9, 4.2, 4.1, "4  forward with\nW + S\n\n5  backward, only\n"
            "to the edited\nlayers: Γ", BASE)  # fmt: skip
        arrow(right, (4.4, 3.4), (5.6, 3.4))
        box(right, 5.6, 1.9, 4.2, 3.0, "in closed form:\n∇D = K (KᵀK + λI)⁻¹Γ\nand dL/dλ", BASE)
        arrow(right, (7.7, 4.9), (7.7, 5.6))
        box(right, 5.6, 5.6, 4.2, 3.4, "6  network on the\ncached rows: D(θ)\n\n"
            "7  backward of\n⟨∇D, D(θ)⟩ into θ", VALIDATED)  # fmt: skip
        arrow(right, (5.6, 8.1), (4.4, 8.1))
        box(right, 0.2, 7.2, 4.2, 1.8, "all gradients clipped\ntogether; Adam step", BASE)
    data = pd.DataFrame(STAGES, columns=["stage", "runs", "what happens"])
    return Plot(figure, data, "A drawing; no data. White: the language model; blue: the network.")


def _lanes(panel: Axes) -> None:
    for x, name in ((2.3, "language model"), (7.7, "hyper-network")):
        panel.text(x, 9.7, name, ha="center", color=MUTED, style="italic")
    panel.axvline(5.0, 0.09, 0.9, color=MUTED, linestyle=":", linewidth=1.0)


def learning_curves(observations: pd.DataFrame, editors: Sequence[str]) -> Plot:
    """Losses of every meta-step and validation scores, a line per editor; the unedited model's
    scores (step 0) as a level. `observations` of kind "curve", the first training per editor."""
    rows = having(observations, "editor", "step", "run")
    rows = rows[rows["editor"].isin(editors)]
    rows = rows[rows["run"] == rows.groupby("editor")["run"].transform("first")]
    absent = {name: float("nan") for name in CURVES if name not in rows}
    rows = rows.assign(**absent).sort_values(["editor", "step"])
    style = looks([name for name in editors if name in set(rows["editor"])])
    with use_style():
        figure, axes = panels(len(CURVES), height=2.6)
        for panel, (column, title) in zip(axes, CURVES.items(), strict=True):
            panel.set_title(title)
            part = rows[rows[column].notna()]
            if part.empty:
                say(panel, "Empty: no training of this profile recorded it.")
                continue
            for name, look in style.items():
                _curve(panel, part[part["editor"] == name], column, look, name)
            panel.set_xlabel("meta-steps")
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if column.startswith("valid"):
                level = part.loc[part["step"] == 0, column].head(1)
                for value in level:
                    panel.axhline(value, color=MUTED, linestyle=":", label="unedited model")
                panel.set_ylim(-0.02, 1.04)
                panel.set_ylabel("share of answer tokens")
            else:
                panel.set_ylim(0, max(1e-9, 1.08 * float(part[column].max())))
                panel.set_ylabel("nats per token")
        legend(figure, axes)
    trained = counted(rows["editor"].nunique(), "training")
    return Plot(
        figure, rows[["editor", "step", *CURVES]].reset_index(drop=True),
        f"{trained}; losses are means over the mini-batches of one meta-step.",
    )  # fmt: skip


def _curve(panel: Axes, part: pd.DataFrame, column: str, look: Look, name: str) -> None:
    steps, values = part["step"].to_numpy(float), part[column].to_numpy(float)
    panel.plot(
        steps, values, color=look.colour, linestyle=look.line, marker=look.marker, label=name,
        markevery=max(1, len(steps) // 10), zorder=3,
    )  # fmt: skip
