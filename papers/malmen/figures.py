"""Figures over m, the number of facts edited at once: scores, gaps between editors, memory."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from lib.report.claims.verdict import paired
from lib.report.figures.parts import Panel, about_rows, counted, having, lines, means, stacked
from lib.report.figures.style import (
    COLOURS,
    HATCHES,
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
    style = looks(dict.fromkeys(rows["editor"]))
    drawn, sizes = data.assign(_x=_beside(data, list(style))), data["m"]

    def finish(panel: Axes, part: pd.DataFrame) -> None:
        for value in level.loc[level["subset"] == part["subset"].iloc[0], "mean"]:
            panel.axhline(value, color=MUTED, linestyle="--", label="unedited model", zorder=1)
        panel.set(ylabel="share of answer tokens", ylim=(-0.02, 1.04))
        over_m(panel, sizes)

    figure = lines(_by_subset(drawn), "_x", "editor", style, finish, whiskers=True)
    data = stacked([data, level.assign(editor="unedited model")])
    return Plot(figure, data, about_rows(rows, data, "Whiskers: 95 % interval."))


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
    drawn = data.assign(_x=_beside(data.rename(columns={"other": "editor"}), list(style)))
    used = rows[rows["editor"].isin([own, *others])]

    def finish(panel: Axes, _: pd.DataFrame) -> None:
        panel.axhline(0, color=INK, linewidth=0.9)
        panel.set_ylabel(f"{own} minus another")
        over_m(panel, data["m"])

    shown = _by_subset(drawn, why="no two editors share prompts")
    figure = lines(shown, "_x", "other", style, finish, whiskers=True)
    text = "Paired differences on the same prompts; whiskers: 95 % interval. Above zero: for "
    return Plot(figure, data, about_rows(used, data, f"{text}{own}."))


def _by_subset(drawn: pd.DataFrame, **more: str) -> list[Panel]:
    return [
        Panel(title, drawn[drawn["subset"] == subset], **more) for subset, title in TITLES.items()
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
    figure = lines(shown, "m", "what", looks(names.values()), finish, height=3.2, empty=empty)
    facts = (
        f"Counted in one meta-step each of {counted(len(rows), 'network')}: bytes of distinct "
        "tensors that autograd keeps, weights not counted."
    )
    return Plot(figure, data, facts)


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


def _beside(data: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """m, a little shifted per editor on the logarithmic axis: whiskers stand side by side."""
    shift = {name: 1.03 ** (i - (len(names) - 1) / 2) for i, name in enumerate(names)}
    factor = data["editor"].astype(str).str.removeprefix("minus ")
    known = {name.removeprefix("minus "): value for name, value in shift.items()}
    return data["m"].astype(float) * factor.map(known).astype(float)


def differences(
    rows: pd.DataFrame, *, titles: Mapping[str, str], xlabel: str, about: str = ""
) -> Plot:
    """A panel per key of `titles`, a line per variant: dots with 95 % intervals, zero drawn.

    Columns: variant, subset (key of `titles`), mean, low, high, n.
    """
    rows = having(rows, "variant", "subset", "mean")
    names = list(dict.fromkeys(rows["variant"]))
    with use_style():
        figure, axes = panels(len(titles), height=1.1 + 0.3 * max(len(names), 3))
        for panel, (subset, title) in zip(axes, titles.items(), strict=True):
            panel.set_title(title)
            part = rows[rows["subset"] == subset].set_index("variant").reindex(names)
            if not part["mean"].notna().any():
                say(panel, "Empty: no variant was run.")
                continue
            panel.axvline(0, color=INK, linewidth=0.9)
            sns.pointplot(
                part.reset_index(), x="mean", y="variant", order=names, errorbar=None, ax=panel,
                color=COLOURS[0], linestyle="none", markersize=5, markeredgewidth=1, zorder=3,
            )  # fmt: skip
            panel.hlines(range(len(names)), part["low"], part["high"], color=MUTED, linewidth=1.4)
            panel.set(xlabel=xlabel, ylabel="", ylim=(len(names) - 0.5, -0.5))
            panel.xaxis.set_major_locator(MaxNLocator(5))
            panel.grid(True, axis="x")
            panel.grid(False, axis="y")
    least = f"n = {int(rows['n'].min()):,} or more prompts per dot. " if len(rows) else "No rows. "
    return Plot(figure, rows.reset_index(drop=True), f"{least}Bars: 95 % interval. {about}".strip())


def time_parts(rows: pd.DataFrame, parts: Mapping[str, str], *, by: str = "editor") -> Plot:
    """Seconds per `by` as stacked bars; `parts`: column of `rows` -> what it is called.

    Drawn without seaborn, which does not stack bars.
    """
    rows = having(rows, by, *parts)
    data = rows.groupby(by, sort=False)[list(parts)].mean()
    with use_style():
        figure, (panel,) = panels(1, height=1.2 + 0.34 * max(len(data), 3))
        if data.empty:
            say(panel, "Empty: no finished run.")
        left = np.zeros(len(data))
        for number, (column, title) in enumerate(parts.items() if len(data) else ()):
            panel.barh(
                range(len(data)), data[column], left=left, height=0.6, facecolor="white",
                edgecolor=COLOURS[number], hatch=HATCHES[number + 1], label=title, linewidth=1.2,
            )  # fmt: skip
            left += data[column].to_numpy(float)
        for place, total in enumerate(left):
            panel.annotate(f"{total:,.3g} s", (total, place), (4, 0), va="center",
                           textcoords="offset points")  # fmt: skip
        if len(data):
            panel.set_yticks(range(len(data)), [str(name) for name in data.index])
            panel.set_ylim(len(data) - 0.5, -0.5)
            panel.set_xlim(0, max(float(left.max()), 1e-9) * 1.18)
            panel.set_xlabel("seconds")
            panel.grid(True, axis="x")
            panel.grid(False, axis="y")
        legend(figure, [panel])
    return Plot(figure, data.reset_index(), "Sums over all batches of a run, on one machine.")


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
    shown = [
        Panel(title, rows.assign(mean=rows[column], what=column).dropna(subset=["mean"]), why=why)
        for column, title in CURVES.items()
    ]

    def finish(panel: Axes, part: pd.DataFrame) -> None:
        panel.set_xlabel("meta-steps")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if part["what"].iloc[0].startswith("valid"):
            for value in part.loc[part["step"] == 0, "mean"].head(1):
                panel.axhline(value, color=MUTED, linestyle=":", label="unedited model")
            panel.set(ylabel="share of answer tokens", ylim=(-0.02, 1.04))
        else:
            panel.set_ylim(0, max(1e-9, 1.08 * float(part["mean"].max())))
            panel.set_ylabel("nats per token")

    figure = lines(shown, "step", "editor", style, finish, height=2.6)
    trained = counted(rows["editor"].nunique(), "training")
    return Plot(
        figure, rows[["editor", "step", *CURVES]].reset_index(drop=True),
        f"{trained}; losses are means over the mini-batches of one meta-step.",
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
