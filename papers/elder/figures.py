"""Figures of a deferral rule: distances to the nearest stored code, deferred shares by threshold,
and a map of codes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from lib.report.figures.parts import (
    Panel,
    about_rows,
    counted,
    having,
    lines,
    means,
    outline,
    stacked,
)
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
        values = part[column].to_numpy(float)
        share = outline(panel, values, edges, look, name, density=False)
        found.append(pd.DataFrame({"codes": column, "distance": edges[:-1] + 1, "share": share}))
    return pd.concat(found, ignore_index=True)


def deferred_by_threshold(data: pd.DataFrame, titles: Mapping[str, str], about: str = "") -> Plot:
    """Deferred share against epsilon: for every N a panel with codes as stored and one with codes
    recomputed. `data`: experts, codes, subset, epsilon, mean, low, high; the subset `CHANCE` is
    drawn dotted, every subset of `titles` with its band. `rule`: ELDER's epsilon."""
    data = having(data, "experts", "codes", "subset", "epsilon", "mean")
    places = list(dict.fromkeys(zip(data["experts"], data["codes"], strict=True)))
    style = {titles[subset]: look for subset, look in looks(titles).items()}
    style[CHANCE] = Look(INK, ".", ":", "")
    drawn = data.assign(what=data["subset"].replace(titles))
    shown = [
        Panel(
            f"N = {experts}, {CODES[codes]}",
            drawn[(drawn["experts"] == experts) & (drawn["codes"] == codes)],
        )
        for experts, codes in places
    ]

    def finish(panel: Axes, part: pd.DataFrame) -> None:
        for epsilon in part["rule"].dropna().unique() if "rule" in part else ():
            panel.axvline(float(epsilon), color=MUTED, linestyle="--", label="ELDER's epsilon")
        panel.set(xlabel="epsilon", ylabel="share deferred", ylim=(-0.02, 1.04))
        ticks = sorted(part["epsilon"].unique())
        panel.set_xticks(ticks[:: 2 if len(ticks) > 8 else 1])

    empty = "Empty: no run observed its distances."
    figure = lines(shown, "epsilon", "what", style, finish, height=2.5, empty=empty)
    facts = f"{about} Bands: 95 % interval over prompts, resampled by fact."
    return Plot(figure, data, facts.strip())


def code_map(points: Mapping[str, pd.DataFrame], about: str = "") -> Plot:
    """Codes on two axes, a panel per entry: edits filled, their rephrases as larger open marks of
    the same form, unrelated questions grey. Columns: group, subset, x, y, share.

    Drawn without seaborn, which has no open marks beside filled ones.
    """
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


def whose_answers(
    rows: pd.DataFrame, said: Sequence[str], moments: Mapping[str, str], about: str = ""
) -> Plot:
    """Whose answer edits get at their own moment and after the last edit: one bar each, a panel
    per variant. `rows`: editor, moment, said.

    Drawn without seaborn, which stacks no bars with hatches.
    """
    rows = having(rows, "editor", "moment", "said")
    names, style = list(dict.fromkeys(rows["editor"])), looks(said)
    counts = rows.groupby(["editor", "moment", "said"]).size().rename("edits").reset_index()
    with use_style():
        figure, axes = panels(len(names), height=1.7)
        if not names:
            say(axes[0], "Empty: no edit was scored.")
        for panel, name in zip(axes, names, strict=False):
            panel.set_title(name)
            mine = counts[counts["editor"] == name].set_index(["moment", "said"])["edits"]
            for place, moment in enumerate(moments):
                left = 0
                for answer, look in style.items():
                    width = int(mine.get((moment, answer), 0))
                    panel.barh(place, width, left=left, height=0.62, facecolor="white",
                               edgecolor=look.colour, hatch=look.hatch, linewidth=1.2,
                               label=answer)  # fmt: skip
                    if width:
                        panel.annotate(f"{width}", (left + width / 2, place), ha="center",
                                       va="center", bbox={"facecolor": "white", "edgecolor": "none",
                                                          "pad": 1.0})  # fmt: skip
                    left += width
            panel.set_yticks(range(len(moments)), list(moments.values()))
            panel.set_ylim(len(moments) - 0.5, -0.5)
            panel.set_xlabel("edits")
            panel.grid(False)
        legend(figure, axes)
    facts = f"Answers decoded from the prompt; an edit is right if every token is. {about}"
    return Plot(figure, counts, facts.strip())


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
    thousands = size.assign(**{name: size[name] / 1000 for name in ("mean", "low", "high")})
    shown = [
        *(Panel(title, data[data["subset"] == subset]) for subset, title in titles.items()),
        Panel("Trained parameters, thousands", thousands, why="no parameters counted"),
    ]
    counts = sorted(set(data["n_edits"]))

    def finish(panel: Axes, part: pd.DataFrame) -> None:
        score = "subset" in part
        few = score and len(counts) <= 6
        panel.set(xlabel="edits applied", ylabel="share right" if score else "")
        panel.set_ylim(*((-0.02, 1.04) if score else (0, None)))
        panel.xaxis.set_major_locator(FixedLocator(counts) if few else MaxNLocator(6, integer=True))

    figure = lines(shown, "n_edits", by, style, finish)
    drawn = stacked([data.assign(quantity="score"), size.assign(quantity="parameters")])
    return Plot(figure, drawn, about_rows(rows, data, "Bands: 95 % interval."))
