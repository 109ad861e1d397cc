"""Figures of a deferral rule: distances to the nearest stored code, deferred shares by threshold,
and a map of codes."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from lib.report.figures.parts import about_rows, counted, curves, having, means, stacked
from lib.report.figures.style import INK, MUTED, Look, Plot, legend, looks, panels, say, use_style

CODES = {"stored": "codes as stored", "refreshed": "codes recomputed at the end"}
CHANCE, RULE = "random codes", "epsilon: deferred from here on"


def nearest_codes(
    rows: pd.DataFrame, chance: pd.DataFrame, titles: Mapping[str, str], about: str = ""
) -> Plot:
    """How far prompts are from the nearest stored code: a panel per subset of `titles`.

    `rows`: subset, stored, refreshed, epsilon. `chance`: distance and share of random codes.
    """
    rows = having(rows, "subset", *CODES)
    shown = [subset for subset in titles if (rows["subset"] == subset).any()]
    most = int(max([10, *rows[list(CODES)].astype(float).max().dropna(), *chance["distance"]]))
    edges, parts = np.arange(-1, most + 2, 2), []
    with use_style():
        figure, axes = panels(len(shown), height=2.5)
        if not shown:
            say(axes[0], "Empty: no run observed its distances.")
        for panel, subset in zip(axes, shown, strict=False):
            part = rows[rows["subset"] == subset]
            panel.set_title(f"{titles[subset].capitalize()} (n = {len(part):,})")
            parts.append(_outlines(panel, part, edges).assign(subset=subset))
            if subset not in ("edits", "holdout") and len(chance):
                panel.plot(chance["distance"], chance["share"], linestyle=":", color=INK,
                           marker=".", label=CHANCE, zorder=4)  # fmt: skip
            for epsilon in part["epsilon"].dropna().unique():
                panel.axvline(float(epsilon) - 1, color=MUTED, linestyle="--", label=RULE)
            panel.set(xlabel="digits from the nearest stored code", ylabel="share of prompts")
            panel.set_ylim(0, 1.04)
            panel.set_xticks(np.arange(0, most + 1, 4 if most > 14 else 2))
        legend(figure, axes)
    facts = f"{about} Distances are even; each outline sums to one."
    return Plot(figure, stacked(parts), facts.strip())


def _outlines(panel: Axes, part: pd.DataFrame, edges: np.ndarray) -> pd.DataFrame:
    found = []
    for (column, name), look in zip(CODES.items(), looks(CODES).values(), strict=True):
        counts, _ = np.histogram(part[column].astype(float), bins=edges)
        share = counts / len(part)
        panel.stairs(share, edges, color=look.colour, linestyle=look.line, label=name, zorder=3)
        panel.stairs(share, edges, fill=True, facecolor=look.colour, alpha=0.12, hatch=look.hatch)
        found.append(pd.DataFrame({"codes": column, "distance": edges[:-1] + 1, "share": share}))
    return pd.concat(found, ignore_index=True)


def deferred_by_threshold(data: pd.DataFrame, titles: Mapping[str, str], about: str = "") -> Plot:
    """Deferred share against epsilon: for every N a panel with codes as stored and one with codes
    recomputed. `data`: experts, codes, subset, epsilon, mean, low, high; the subset `CHANCE` is
    drawn dotted, every subset of `titles` with its band. `rule`: ELDER's epsilon."""
    data = having(data, "experts", "codes", "subset", "epsilon", "mean")
    places = list(dict.fromkeys(zip(data["experts"], data["codes"], strict=True)))
    style = {subset: look for subset, look in zip(titles, looks(titles).values(), strict=True)}
    with use_style():
        figure, axes = panels(len(places), height=2.5)
        if not places:
            say(axes[0], "Empty: no run observed its distances.")
        for panel, (experts, codes) in zip(axes, places, strict=False):
            panel.set_title(f"N = {experts}, {CODES[codes]}")
            part = data[(data["experts"] == experts) & (data["codes"] == codes)]
            for subset, look in style.items():
                _curve(panel, part[part["subset"] == subset], look, titles[subset])
            chance = part[part["subset"] == CHANCE]
            panel.plot(chance["epsilon"], chance["mean"], color=INK, linestyle=":", marker=".",
                       label=CHANCE)  # fmt: skip
            rules = part["rule"].dropna().unique() if "rule" in part else ()
            for epsilon in rules:
                panel.axvline(float(epsilon), color=MUTED, linestyle="--", label="ELDER's epsilon")
            panel.set(xlabel="epsilon", ylabel="share deferred")
            panel.set_ylim(-0.02, 1.04)
            ticks = sorted(part["epsilon"].unique())
            panel.set_xticks(ticks[:: 2 if len(ticks) > 8 else 1])
        legend(figure, axes)
    facts = f"{about} Bands: 95 % interval over prompts, resampled by fact."
    return Plot(figure, data, facts.strip())


def _curve(panel: Axes, part: pd.DataFrame, look: Look, label: str) -> None:
    if part.empty:
        return
    x, mean, low, high = (part[c].to_numpy(float) for c in ("epsilon", "mean", "low", "high"))
    panel.plot(x, mean, color=look.colour, marker=look.marker, linestyle=look.line, label=label,
               markersize=4.5, zorder=3)  # fmt: skip
    panel.fill_between(x, low, high, color=look.colour, alpha=0.13, linewidth=0)


def code_map(points: Mapping[str, pd.DataFrame], about: str = "") -> Plot:
    """Codes on two axes, a panel per entry: edits filled, their rephrases as larger open marks of
    the same form, unrelated questions grey. Columns: group, subset, x, y, share."""
    groups = dict.fromkeys(g for part in points.values() for g in part.get("group", ()))
    style = looks(group for group in groups if group != "unrelated")
    with use_style():
        figure, axes = panels(len(points), height=3.8)
        for panel, (name, part) in zip(axes, points.items(), strict=False):
            panel.set_title(name)
            if part.empty:
                say(panel, "Empty: no codes were observed.")
                continue
            others = part[part["group"] == "unrelated"]
            panel.scatter(others["x"], others["y"], s=26, color="#b4bac2", label="unrelated")
            for group, look in style.items():
                mine = part[part["group"] == group]
                edit = mine["subset"] == "edits"
                marks = {"marker": look.marker, "edgecolor": look.colour, "zorder": 3}
                panel.scatter(mine["x"][~edit], mine["y"][~edit], s=110, facecolor="none", **marks)
                panel.scatter(mine["x"][edit], mine["y"][edit], s=34, color=look.colour,
                              marker=look.marker, label=group, zorder=4)  # fmt: skip
            panel.set_xlabel(f"two axes show {part['share'].iloc[0]:.0%} of the spread")
            panel.set(xticks=[], yticks=[])
            panel.margins(0.1)
            panel.grid(False)
        legend(figure, axes)
    data = stacked([part.assign(panel=name) for name, part in points.items()])
    facts = f"{counted(len(data), 'code')}; equal codes lie on each other. Open marks: rephrases."
    return Plot(figure, data, f"{facts} {about}".strip())


SCORES = {"edits": "Reliability", "holdout": "Generalization"}


def scores_and_size(
    records: pd.DataFrame,
    steps: pd.DataFrame,
    metric: str,
    *,
    by: str = "editor",
    titles: Mapping[str, str] = SCORES,
) -> Plot:
    """The score of all edits so far, and the trained parameters, a line per `by`.

    `records`: rows of the edits that the model holds at that moment (`n_edits`); `steps`: one row
    per batch with `parameters`.
    """
    rows = having(records, metric, by, "subset", "n_edits")
    rows = rows[rows["subset"].isin(titles)]
    data = means(rows, metric, ["subset", by, "n_edits"])
    counted = having(steps, "parameters", by, "n_edits")
    size = means(counted.drop(columns="record", errors="ignore"), "parameters", [by, "n_edits"])
    style = looks(dict.fromkeys([*rows[by], *counted[by]]))
    with use_style():
        figure, axes = panels(len(titles) + 1)
        for panel, (subset, title) in zip(axes, titles.items(), strict=False):
            panel.set_title(title)
            curves(panel, data[data["subset"] == subset], by, "n_edits", style)
            if panel.lines:
                panel.set(xlabel="edits applied", ylabel="share right")
                panel.set_ylim(-0.02, 1.04)
                counts = sorted(set(data["n_edits"]))
                few = len(counts) <= 6
                panel.xaxis.set_major_locator(
                    FixedLocator(counts) if few else MaxNLocator(6, integer=True)
                )
        panel = axes[-1]
        panel.set_title("Trained parameters, thousands")
        thousands = size.assign(**{name: size[name] / 1000 for name in ("mean", "low", "high")})
        curves(panel, thousands, by, "n_edits", style, why="no parameters counted")
        if panel.lines:
            panel.set_xlabel("edits applied")
            panel.set_ylim(bottom=0)
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        legend(figure, axes)
    drawn = stacked([data.assign(quantity="score"), size.assign(quantity="parameters")])
    return Plot(figure, drawn, about_rows(rows, data, "Bands: 95 % interval."))
