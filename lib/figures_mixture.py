"""ELDER's method as a drawing: one query routes all edited layers, and its code decides."""

import pandas as pd

from lib.figure_style import INK, MUTED, Plot, panels, use_style
from lib.figures_schematic import BASE, TEMPORARY, VALIDATED, arrow, box, canvas

STEPS = (
    ("query", "the sensor layer's input at the last prompt token; nothing below it is edited"),
    ("routers", "every edited layer scores its N experts for this one query and takes the best k"),
    ("code", "which experts were taken, over all layers: L N digits, k ones per layer"),
    ("deferral", "nearest stored code at least epsilon digits away: the base output, untouched"),
)
CODE = ("1100", "0101", "0110")
STORED = (("1100", "0101", "1001"), ("0011", "1010", "0110"))


def routed_mixture() -> Plot:
    """Left: one input through sensor, routers and experts. Right: its code against stored ones."""
    with use_style():
        figure, axes = panels(2, height=4.4)
        left, right = axes
        canvas(left, "(a) One query routes every layer", 10, 9.4)
        left.text(1.7, 0.35, "prompt", ha="center", va="center")
        arrow(left, (1.7, 0.65), (1.7, 1.2))
        box(left, 0.1, 1.2, 3.2, 1.2, "sensor layer\nonly read", BASE)
        arrow(left, (3.3, 1.8), (4.5, 1.8))
        box(left, 4.5, 1.2, 5.3, 1.2, "query q\nat the last prompt token", VALIDATED)
        for layer, digits in enumerate(CODE):
            y = 3.3 + 1.95 * layer
            below = 2.4 if layer == 0 else y - 0.65
            arrow(left, (1.7, below), (1.7, y))
            box(left, 0.1, y, 3.2, 1.3, f"layer {layer + 1}\nbase W x", BASE)
            left.text(3.65, y + 0.65, "+", ha="center", va="center", fontsize=13)
            for expert, digit in enumerate(digits):
                face = VALIDATED if digit == "1" else BASE
                box(left, 4.0 + 0.98 * expert, y, 0.94, 1.3, f"{expert + 1}", face)
            arrow(left, (8.9, y + 0.65), (7.95, y + 0.65))
        left.plot([8.9, 8.9], [2.4, 7.85], color=INK, linewidth=1.1)
        left.text(9.05, 5.6, "routers", rotation=90, va="center", color=MUTED, style="italic")
        canvas(right, "(b) The code decides about scope", 10, 9.4)
        right.text(5, 8.7, "code of the prompt", ha="center", color=MUTED, style="italic")
        box(right, 1.6, 7.3, 6.8, 1.2, " ".join(CODE), VALIDATED)
        right.text(5, 6.5, "stored codes of the edits", ha="center", color=MUTED, style="italic")
        for place, code in enumerate(STORED):
            far = sum(a != b for a, b in zip("".join(CODE), "".join(code), strict=True))
            box(right, 0.1, 5.1 - 1.3 * place, 6.8, 1.2, " ".join(code), BASE)
            right.text(7.1, 5.7 - 1.3 * place, f"{far} digits differ", va="center")
        arrow(right, (1.9, 3.8), (1.9, 2.3), "nearest:\nbelow epsilon")
        arrow(right, (6.3, 3.8), (6.3, 2.3), "epsilon or more")
        box(right, 0.1, 0.9, 4.4, 1.4, "W x + experts\n(edited)", VALIDATED)
        box(right, 5.4, 0.9, 4.4, 1.4, "W x\n(deferred)", TEMPORARY)
    data = pd.DataFrame(STEPS, columns=["step", "what happens"])
    return Plot(
        figure, data, "A drawing; no data. L = 3 layers, N = 4 experts, k = 2 taken (blue)."
    )
