"""One look for all figures: palette, markers, panels and legends.

A figure is a `Plot`: the drawing, the numbers behind it, the facts its caption must state, and what
it shows in words.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, RULE = "#1c1f24", "#5b6470", "#d9dde3"
REPORTED = "#6f7782"
ALERT = "#D55E00"  # a threshold that decides
# All colours have a contrast of at least 3:1 on white and, inverted as the page does it, on dark.
BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, DARK, PINK, TEAL, BROWN, OLIVE, RED, VIOLET = COLOURS = (
    "#0072B2", "#D55E00", "#00875F", "#8E4585", "#A97400", "#2E93C9", "#3b3b3b", "#C4558F",
    "#0F7C83", "#7A4A21", "#6B7F00", "#B3202A", "#5B4BB7",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p", "<", ">", "h", "d")
SOLID, DASHED, MIXED, DOTTED, LONG, SHORT = LINES = (
    "-", (0, (5, 1.6)), (0, (5, 1.4, 1, 1.4)), (0, (1, 1.2)), (0, (8, 2)), (0, (2.5, 1)),
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of one series: in grey the marker and the line tell it apart."""

    colour: str
    marker: str
    line: object = SOLID
    hollow: bool = False

    @property
    def mark(self) -> dict[str, object]:
        """The marker alone, as keywords of `Axes.plot`."""
        face = "white" if self.hollow else self.colour
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": face,
                "markeredgecolor": self.colour, "linestyle": "none"}  # fmt: skip


# An editor looks the same on every page; a variant has its method's colour and is hollow or has
# another marker.
KNOWN = {
    "MELO": Look(BLUE, "o"), "MELO intended": Look(BLUE, "o", DASHED, hollow=True),
    "GRACE": Look(ORANGE, "s", DASHED), "Defer": Look(SKY, "P", LONG),
    "LoRA": Look(GREEN, "^", MIXED), "T-Patcher": Look(BROWN, "X", SHORT),
    "FT": Look(PURPLE, "D", SHORT), "FT-L": Look(PURPLE, "D", DASHED, hollow=True),
    "FT (EasyEdit)": Look(PURPLE, "d", MIXED), "MEND": Look(AMBER, "v", DOTTED),
    "MALMEN": Look(DARK, "X"), "MALMEN with a plain sum": Look(DARK, "X", DASHED, hollow=True),
    "MALMEN on the first matrix": Look(DARK, "s", MIXED, hollow=True),
    "ELDER": Look(VIOLET, "p"), "ELDER refreshed": Look(VIOLET, "p", DASHED, hollow=True),
    "ELDER replayed": Look(VIOLET, "h", MIXED), "SERAC": Look(OLIVE, "d", SHORT),
    "COMEBA-HK": Look(RED, "h"), "COMEBA-HK intended": Look(RED, "h", DASHED, hollow=True),
    "COMEBA-HK without hooks": Look(RED, ">", MIXED), "MEMIT": Look(TEAL, "<", LONG),
    "ROME": Look(PINK, "*", DOTTED), "WilKE": Look(PINK, ">", SHORT),
    "MEMIT with memory": Look(TEAL, "<", DASHED, hollow=True),
    "AlphaEdit": Look(TEAL, "*", MIXED), "RLEdit": Look(AMBER, "<", DASHED),
    "UltraEdit": Look(GREEN, "s", LONG), "WISE": Look(SKY, "o", DOTTED),
}  # fmt: skip
OTHERS = [
    Look(colour, MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
    for i, colour in enumerate(COLOURS)
]  # of series that are no editors

# What departs from seaborn's "paper" context and "ticks" style.
_RC = {
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8.0,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED,
    "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE, "grid.linewidth": 0.7,
    "xtick.major.size": 3.5, "ytick.major.size": 3.5, "legend.frameon": False,
    "legend.handlelength": 2.8, "lines.linewidth": 1.7, "lines.markersize": 5.5,
    "svg.fonttype": "none", "axes.formatter.useoffset": False,
}  # fmt: skip
PANEL = 3.7  # inches: a panel is as wide as a phone's column, and two fit the page's


@dataclass(frozen=True)
class Plot:
    """A drawing, the tidy numbers in it, the sentence (n, seeds, interval, model) below it, and
    what it shows, for those who cannot see it."""

    figure: Figure
    data: pd.DataFrame
    caption: str
    finding: str = ""


@contextlib.contextmanager
def use_style() -> Iterator[None]:
    """The shared style inside the block; matplotlib's settings are as before afterwards."""
    with mpl.rc_context():
        mpl.rcParams.update(mpl.rcParamsDefault)
        sns.set_theme("paper", "ticks", COLOURS, "DejaVu Sans", 1.05, color_codes=False, rc=_RC)
        yield


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look per name: an editor's own, for anything else one that no other name here has."""
    names = list(dict.fromkeys(str(name) for name in names))
    taken = [KNOWN[name] for name in names if name in KNOWN]
    free = [
        one for one in OTHERS
        if all((one.colour, one.marker) != (two.colour, two.marker) for two in taken)
    ]  # fmt: skip
    others = [name for name in names if name not in KNOWN]
    spare = {name: free[i % len(free)] for i, name in enumerate(others)}
    return {name: KNOWN.get(name) or spare[name] for name in names}


def panels(count: int, *, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, two abreast at most, never registered with pyplot."""
    count = max(count, 1)
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = sheet(PANEL * columns, height * rows + 0.15)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def sheet(width: float, height: float) -> Figure:
    """An empty figure of so many inches whose parts make room for each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.07)
    return figure


def say(axes: Axes, text: str) -> None:
    """Turn a panel into a sentence that says why it is empty."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED,
        style="italic", wrap=True,
    )  # fmt: skip


def draw_levels(panel: Axes, levels: Mapping[str, float], *, upright: bool = False) -> None:
    """What a score is to be read against, as lines: the unedited model's, and chance."""
    draw = panel.axvline if upright else panel.axhline
    for (name, value), line in zip(levels.items(), (DASHED, DOTTED), strict=False):
        draw(value, color=MUTED, linestyle=line, linewidth=1.2, label=name, zorder=1.5)


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend, each series once: in a spare place or below all panels.

    A figure in which no panel shows a series needs little height and gets little.
    """
    found: dict[str, object] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels, handles = list(found), list(found.values())
    if not labels:
        if not any(panel.has_data() and panel.axison and panel.get_xticks().size for panel in axes):
            figure.set_figheight(0.45 * figure.get_figheight())
        return
    spare = [place for place in figure.axes if not place.axison]
    if spare and len(labels) <= 9:
        spare[0].legend(handles, labels, loc="center left", labelspacing=0.7)
        return
    room = figure.get_figwidth() / (0.085 * max(map(len, labels)) + 0.75)
    columns = max(1, min(len(labels), int(room)))
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns)
