"""The learning curves of a hyper-network's training."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lib.report.figures.parts import counted, having
from lib.report.figures.style import MUTED, Look, Plot, legend, looks, panels, say, use_style

CURVES = {
    "generality": "Loss on rephrases", "locality": "Divergence on unrelated prompts",
    "valid_ES": "Validation ES", "valid_GS": "Validation GS", "valid_LS": "Validation LS",
}  # fmt: skip


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
