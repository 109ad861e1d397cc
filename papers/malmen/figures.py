"""Figures over m, the number of facts edited at once: scores, gaps between editors, memory."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from lib.report.claims.verdict import paired
from lib.report.figures.parts import (
    UNEDITED,
    Panel,
    about_rows,
    counted,
    extremes,
    having,
    levels,
    lines,
    means,
    number,
    stacked,
)
from lib.report.figures.rows import row_panels
from lib.report.figures.style import (
    DOTTED,
    INK,
    MUTED,
    Look,
    Plot,
    legend,
    looks,
    panels,
    say,
    use_style,
)

TITLES = {
    "edits": "ES: edit success", "holdout": "GS: generality", "upstream": "LS: locality",
}  # fmt: skip
MEMORY = {
    "joint_bytes": "all passes kept (joint)", "decoupled_bytes": "one pass at a time (decoupled)",
    "row_store_bytes": "row store (both need it)",
}  # fmt: skip
MIB = 2**20


def scores_by_m(records: pd.DataFrame, before: pd.DataFrame, metric: str) -> Plot:
    """A panel each for ES, GS and LS against m (column `m`), a line per editor.

    `records` right after the edits; `before`: scores of the unedited model, drawn as a level.
    """
    rows = having(records, metric, "m", "editor", "subset")
    rows = rows[rows["subset"].isin(TITLES)]
    data = means(rows, metric, ["subset", "editor", "m"])
    level = means(having(before, metric, "subset"), metric, ["subset"])
    style, sizes = looks(dict.fromkeys(rows["editor"])), data["m"]
    shown = [
        replace(one, levels=levels(before, metric, subset))
        for subset, one in zip(TITLES, _by_subset(data), strict=True)
    ]

    def finish(panel: Axes, _: pd.DataFrame) -> None:
        panel.set(ylabel="share of answer tokens", ylim=(-0.02, 1.04))
        over_m(panel, sizes)

    drawn = stacked([data, level.assign(editor=UNEDITED)])
    return lines(
        shown, "m", "editor", style, finish, data=drawn, caption=about_rows(rows, data),
        whiskers=True, log_x=True,
    )  # fmt: skip


def gaps_by_m(records: pd.DataFrame, metric: str, own: str, others: Sequence[str]) -> Plot:
    """Score of `own` minus that of each other editor on the same prompts, against m."""
    rows = having(records, metric, "m", "editor", "subset", "record", "prompt", "seed", "setting")
    found = []
    for (subset, m), part in rows[rows["subset"].isin(TITLES)].groupby(["subset", "m"]):
        for other in others:
            sides = [part[part["editor"] == name] for name in (own, other)]
            d = paired(*sides, metric)
            if d.n:
                found.append((subset, other, m, d.mean, d.low, d.high, d.n, d.p))
    names = ["subset", "other", "m", "mean", "low", "high", "n", "p"]
    data = pd.DataFrame(found, columns=names)
    data["other"] = "minus " + data["other"].astype(str)
    style = {f"minus {name}": look for name, look in looks(others).items()}
    used = rows[rows["editor"].isin([own, *others])]

    def finish(panel: Axes, _: pd.DataFrame) -> None:
        panel.axhline(0, color=INK, linewidth=0.9)
        panel.set_ylabel(f"{own} minus another")
        over_m(panel, data["m"])

    shown = _by_subset(data, why="no two editors share prompts")
    text = f"Paired differences on the same prompts; above zero: for {own}."
    return lines(
        shown, "m", "other", style, finish, data=data, caption=about_rows(used, data, text),
        whiskers=True, log_x=True,
    )  # fmt: skip


def _by_subset(data: pd.DataFrame, **more: str) -> list[Panel]:
    return [
        Panel(title, data[data["subset"] == subset], **more) for subset, title in TITLES.items()
    ]


def memory_by_m(
    observations: pd.DataFrame, editors: Sequence[str], names: Mapping[str, str] = MEMORY
) -> Plot:
    """What autograd keeps for the backward passes of one meta-step, and the rows, against m.

    `observations` of kind "memory": editor, m and the bytes named in `names`. A panel for each of
    `editors` that was counted.
    """
    rows = having(observations, "editor", "m", *names).drop_duplicates(["editor", "m"])
    rows = rows[rows["editor"].isin(editors)]
    long = rows.melt(["editor", "m"], list(names), "quantity", "bytes")
    long["mean"] = long["bytes"].astype(float) / MIB
    data = long[["editor", "quantity", "m", "mean"]]
    data = data.assign(what=data["quantity"].map(dict(names)))
    editors = [name for name in editors if name in set(rows["editor"])]

    def finish(panel: Axes, _: pd.DataFrame) -> None:
        panel.set_ylabel("MiB, logarithmic")
        logarithmic(panel, data["mean"])
        over_m(panel, data["m"])

    shown = [Panel(editor, data[data["editor"] == editor]) for editor in editors]
    empty = "Empty: no run counted the memory of its passes."
    facts = (
        f"Counted in one meta-step each of {counted(len(rows), 'network')}: bytes of distinct "
        "tensors that autograd keeps, weights not counted."
    )
    return lines(
        shown, "m", "what", looks(names.values()), finish, data=data, caption=facts, height=2.9,
        empty=empty,
    )  # fmt: skip


def over_m(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with a tick at every m that was run."""
    ticks = sorted({float(value) for value in values})
    panel.set_xscale("log")
    panel.set_xlabel("facts edited at once, m")
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.margins(x=0.12)


def logarithmic(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis over all positive `values`, with plain numbers at its ticks."""
    positive = [value for value in values if value > 0]
    low, high = min(positive, default=0.1), max(positive, default=10.0)
    panel.set_yscale("log")
    panel.set_ylim(low / 1.3, high * 1.3)
    subs = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 5, 7)
    panel.yaxis.set_major_locator(LogLocator(subs=subs if high / low < 500 else (1,)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def time_parts(rows: pd.DataFrame, parts: Mapping[str, str], *, by: str = "editor") -> Plot:
    """Seconds per `by` as stacked bars; `parts`: column of `rows` -> what it is called.

    Drawn without seaborn, which does not stack bars.
    """
    rows = having(rows, by, *parts)
    data = rows.groupby(by, sort=False)[list(parts)].mean()
    shades = sns.color_palette("viridis", len(parts)).as_hex()
    with use_style():
        figure, (panel,) = row_panels([""], data.index)
        if data.empty:
            say(panel, "Empty: no finished run.")
        left = np.zeros(len(data))
        for (column, title), shade in zip(parts.items() if len(data) else (), shades, strict=False):
            panel.barh(range(len(data)), data[column], left=left, height=0.7, facecolor=shade,
                       edgecolor=INK, linewidth=0.5, label=title)  # fmt: skip
            left += data[column].to_numpy(float)
        for place, total in enumerate(left):
            panel.annotate(f"{total:,.3g} s", (total, place), (4, 0), va="center",
                           textcoords="offset points")  # fmt: skip
        if len(data):
            panel.set_xlim(0, max(float(left.max()), 1e-9) * 1.3)
            panel.set_xlabel("seconds")
        legend(figure, [panel])
    told = f"Seconds in all: {extremes(data.index, left)}." if len(data) else ""
    facts = "Sums over all batches of a run, on one machine."
    return Plot(figure, data.reset_index(), facts, told)


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
    why = "no training of this profile recorded it"
    shown = []
    for column, title in CURVES.items():
        part = rows.assign(mean=rows[column], what=column).dropna(subset=["mean"])
        start = part.loc[part["step"] == 0, "mean"].head(1) if column.startswith("valid") else ()
        shown.append(Panel(title, part, why, levels=dict.fromkeys([UNEDITED] * len(start), *start)))

    def finish(panel: Axes, part: pd.DataFrame) -> None:
        panel.set_xlabel("meta-steps")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if part["what"].iloc[0].startswith("valid"):
            panel.set(ylabel="share of answer tokens", ylim=(-0.02, 1.04))
        else:
            panel.set_ylim(0, max(1e-9, 1.08 * float(part["mean"].max())))
            panel.set_ylabel("nats per token")

    trained = counted(rows["editor"].nunique(), "training")
    return lines(
        shown, "step", "editor", style, finish, height=2.3,
        data=rows[["editor", "step", *CURVES]].reset_index(drop=True),
        caption=f"{trained}; losses are means over the mini-batches of one meta-step.",
    )  # fmt: skip


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
                panel.axhline(1, color=MUTED, linestyle=DOTTED, label="no shift at all")
            panel.set_ylabel(f"{label}, logarithmic")
            logarithmic(panel, [*data[column], *([1.0] if column == "residual" else [])])
            over_m(panel, data["m"])
        legend(figure, axes)
    layers = counted(data["layer"].nunique(), "edited layer")
    about = f"Thick: mean over {layers}; thin: each layer. Rows of the last batch of each run."
    last = data[data["m"] == data["m"].max()].groupby("shift")[["residual", "norm"]].mean()
    told = "; ".join(
        f"{name} {number(row.residual)} from what the rows want, norm {number(row.norm)}"
        for name, row in zip(last.index, last.itertuples(), strict=True)
    )
    finding = f"At m = {data['m'].max():,g}: {told}." if told else ""
    return Plot(figure, data, about, finding)


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
    single = part.groupby(["layer", "m"], as_index=False)[column].mean()
    sns.lineplot(
        single, x="m", y=column, units="layer", estimator=None, color=look.colour, linewidth=0.7,
        alpha=0.45, legend=False, ax=panel, zorder=2,
    )  # fmt: skip
    sns.lineplot(
        part, x="m", y=column, errorbar=None, color=look.colour, linestyle=look.line,
        marker=look.marker, markeredgecolor=look.colour, linewidth=2.0, label=name, legend=False,
        ax=panel, zorder=3,
    )  # fmt: skip
