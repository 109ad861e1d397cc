"""Figures over m, the number of facts edited at once: scores, gaps between editors, memory."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from lib.report.claims.verdict import paired
from lib.report.figures.parts import about_rows, counted, curves, having, means, stacked
from lib.report.figures.style import INK, MUTED, Plot, legend, looks, panels, say, use_style

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
    drawn = data.assign(_x=_beside(data, list(style)))
    with use_style():
        figure, axes = panels(len(TITLES))
        for panel, (subset, title) in zip(axes, TITLES.items(), strict=True):
            panel.set_title(title)
            curves(panel, drawn[drawn["subset"] == subset], "editor", "_x", style, whiskers=True)
            if not panel.lines:
                continue
            for value in level.loc[level["subset"] == subset, "mean"]:
                panel.axhline(value, color=MUTED, linestyle="--", label="unedited model", zorder=1)
            panel.set_ylabel("share of answer tokens")
            panel.set_ylim(-0.02, 1.04)
            over_m(panel, data["m"])
        legend(figure, axes)
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
    with use_style():
        figure, axes = panels(len(TITLES))
        for panel, (subset, title) in zip(axes, TITLES.items(), strict=True):
            panel.set_title(title)
            part = drawn[drawn["subset"] == subset]
            curves(panel, part, "other", "_x", style, why="no two editors share prompts",
                   whiskers=True)  # fmt: skip
            if not panel.lines:
                continue
            panel.axhline(0, color=INK, linewidth=0.9)
            panel.set_ylabel(f"{own} minus another")
            over_m(panel, data["m"])
        legend(figure, axes)
    text = "Paired differences on the same prompts; whiskers: 95 % interval. Above zero: for "
    return Plot(figure, data, about_rows(used, data, f"{text}{own}."))


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
    data = long[["editor", "quantity", "m", "mean"]].assign(low=float("nan"), high=float("nan"))
    data["what"] = data["quantity"].map(dict(names))
    editors = [name for name in editors if name in set(rows["editor"])]
    style = looks(names.values())
    with use_style():
        figure, axes = panels(len(editors), height=3.2)
        if not editors:
            say(axes[0], "Empty: no run counted the memory of its passes.")
        for panel, editor in zip(axes, editors, strict=False):
            panel.set_title(editor)
            curves(panel, data[data["editor"] == editor], "what", "m", style, whiskers=True)
            panel.set_ylabel("MiB, logarithmic")
            logarithmic(panel, data["mean"])
            over_m(panel, data["m"])
        legend(figure, axes)
    facts = (
        f"Counted in one meta-step each of {counted(len(rows), 'network')}: bytes of distinct "
        "tensors that autograd keeps, weights not counted."
    )
    return Plot(figure, data.drop(columns=["low", "high"]), facts)


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
