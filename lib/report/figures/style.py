"""One look for all figures: palette, markers, panels and legends.

A figure is a `Plot`: the drawing, the numbers behind it and the facts its caption must state.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

INK, MUTED, RULE = "#1c1f24", "#5b6470", "#d9dde3"
REPORTED = "#7a828d"
# Okabe and Ito's colours without the yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#8E4585", "#E69F00", "#56B4E9", "#3b3b3b", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1.2)), (0, (7, 2)), "-", "--")
HATCHES = ("", "///", "..", "xxx", "\\\\\\", "++", "---", "|||")
# The same editor looks the same on every page. Eight looks have to do for all: two names share one
# where no page is likely to show both, and give way to the earlier where one does.
KNOWN = {
    "MELO": 0, "GRACE": 1, "LoRA": 2, "FT": 3, "MEND": 4, "ELDER": 5, "MALMEN": 6, "COMEBA-HK": 0,
    "MELO intended": 6, "MEMIT": 2, "COMEBA-HK intended": 5, "COMEBA-HK without hooks": 6,
    "ROME": 7,
}  # fmt: skip

# What departs from seaborn's "paper" context and "ticks" style.
_RC = {
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8.0,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED,
    "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE, "grid.linewidth": 0.7,
    "xtick.major.size": 3.5, "ytick.major.size": 3.5, "legend.frameon": False,
    "legend.handlelength": 2.8, "lines.linewidth": 1.7, "lines.markersize": 5.5,
    "hatch.linewidth": 0.7, "svg.fonttype": "none", "axes.formatter.useoffset": False,
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Colour, marker, line and hatch of one series: any one of them is enough to tell it apart."""

    colour: str
    marker: str
    line: object
    hatch: str
    hollow: bool = False


@dataclass(frozen=True)
class Plot:
    """A drawing, the tidy numbers in it, and the sentence (n, seeds, interval, model) below it."""

    figure: Figure
    data: pd.DataFrame
    caption: str


@contextlib.contextmanager
def use_style() -> Iterator[None]:
    """The shared style inside the block; matplotlib's settings are as before afterwards."""
    with mpl.rc_context():
        mpl.rcParams.update(mpl.rcParamsDefault)
        sns.set_theme("paper", "ticks", COLOURS, "DejaVu Sans", 1.05, color_codes=False, rc=_RC)
        yield


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look per name, distinct within the call (up to eight); known editors keep theirs."""
    names = list(dict.fromkeys(str(name) for name in names))
    taken: dict[str, int] = {}
    for name in names:
        if name in KNOWN and KNOWN[name] not in taken.values():
            taken[name] = KNOWN[name]
    free = [i for i in range(len(COLOURS)) if i not in taken.values()] or list(range(len(COLOURS)))
    others = [name for name in names if name not in taken]
    taken |= {name: free[k % len(free)] for k, name in enumerate(others)}
    return {
        name: Look(COLOURS[i], MARKERS[i], LINES[i], HATCHES[i])
        for name, i in ((name, taken[name]) for name in names)
    }


def panels(count: int, *, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, two abreast at most, never registered with pyplot."""
    count = max(count, 1)
    columns = 1 if count == 1 else 2
    rows = -(-count // columns)
    width = 5.6 if columns == 1 else 8.2
    figure = Figure(figsize=(width, height * rows + 0.5), layout="constrained")
    figure.set_label("panels")
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.09)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


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


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend, each series once, reported ones last: in a spare place or below all panels.

    A figure in which no panel shows a series needs little height and gets little.
    """
    handles, labels = gathered(axes)
    if not labels:
        if not any(panel.has_data() and panel.axison and panel.get_xticks().size for panel in axes):
            figure.set_figheight(0.45 * figure.get_figheight())
        return
    spare = [place for place in figure.axes if not place.axison]
    if spare and len(labels) <= 9:
        spare[0].legend(handles, labels, loc="center left", labelspacing=0.8)
    else:
        legend_below(figure, handles, labels)


def gathered(axes: Iterable[Axes]) -> tuple[list[object], list[str]]:
    """Handles and labels of all series in `axes`, each label once, reported ones last."""
    found: dict[str, object] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = sorted(found, key=lambda label: label.startswith("reported"))
    return [found[label] for label in labels], labels


def legend_below(figure: Figure, handles: list[object], labels: list[str]) -> Legend | None:
    """A legend under the panels, in as many columns as fit; None without labels."""
    if not labels:
        return None
    room = figure.get_figwidth() / (0.085 * max(map(len, labels)) + 0.75)
    columns = max(1, min(len(labels), int(room)))
    return figure.legend(handles, labels, loc="outside lower center", ncols=columns)
