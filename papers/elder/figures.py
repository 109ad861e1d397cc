"""Figures of a deferral rule: distances to the nearest stored code, deferred shares by threshold,
and a map of codes."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lib.report.figures.curves import score_curves
from lib.report.figures.parts import (
    Panel,
    counted,
    having,
    lines,
    means,
    number,
    outline,
    stacked,
)
from lib.report.figures.rows import row_panels
from lib.report.figures.style import (
    DASHED,
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
    edges, parts, told = np.arange(-1, most + 2, 2), [], []
    with use_style():
        figure, axes = panels(len(shown), height=2.5)
        if not shown:
            say(axes[0], "Empty: no run observed its distances.")
        for panel, subset in zip(axes, shown, strict=False):
            part = rows[rows["subset"] == subset]
            panel.set_title(f"{titles[subset].capitalize()} (n = {len(part):,})")
            parts.append(_outlines(panel, part, edges).assign(subset=subset))
            told.append(f"{titles[subset]} {_over(part)}")
            if subset not in ("edits", "holdout") and len(chance):
                panel.plot(chance["distance"], chance["share"], linestyle=DOTTED, color=INK,
                           marker=".", label=CHANCE, zorder=4)  # fmt: skip
            for epsilon in part["epsilon"].dropna().unique():
                panel.axvline(float(epsilon) - 1, color=MUTED, linestyle=DASHED, label=RULE)
            panel.set(xlabel="digits from the nearest stored code", ylabel="share of prompts")
            panel.set_ylim(0, 1.04)
            panel.set_xticks(np.arange(0, most + 1, 4 if most > 14 else 2))
        legend(figure, axes)
    facts = f"{about} Distances are even; each outline sums to one."
    finding = f"Deferred, being at least epsilon digits away: {'; '.join(told)}." if told else ""
    return Plot(figure, stacked(parts), facts.strip(), finding)


def _over(part: pd.DataFrame) -> str:
    """How many prompts the rule defers by the codes as stored."""
    deferred = part["stored"].astype(float) >= part["epsilon"].astype(float)
    return f"{int(deferred.sum())} of {len(part)}"


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
    style[CHANCE] = Look(INK, ".", DOTTED)
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
            panel.axvline(float(epsilon), color=MUTED, linestyle=DASHED, label="ELDER's epsilon")
        panel.set(xlabel="epsilon", ylabel="share deferred", ylim=(-0.02, 1.04))
        ticks = sorted(part["epsilon"].unique())
        panel.set_xticks(ticks[:: 2 if len(ticks) > 8 else 1])

    empty = "Empty: no run observed its distances."
    facts = f"{about} Intervals over prompts resample facts."
    plot = lines(
        shown, "epsilon", "what", style, finish, data=data, caption=facts.strip(), height=2.4,
        empty=empty,
    )  # fmt: skip
    return replace(plot, finding=_at_the_rule(data, titles))


def _at_the_rule(data: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """What ELDER's own epsilon defers, panel by panel."""
    rows = data[data["epsilon"] == data["rule"]] if "rule" in data else data.iloc[:0]
    told = []
    for (experts, codes), part in rows.groupby(["experts", "codes"], sort=False):
        shares = ", ".join(
            f"{titles.get(row.subset, row.subset)} {number(row.mean)}"
            for row in part[["subset", "mean"]].itertuples(name="Row")
        )
        told.append(f"N = {experts}, {CODES[codes]}: {shares}")
    return f"Share deferred at ELDER's epsilon: {'; '.join(told)}." if told else ""


def code_map(points: Mapping[str, pd.DataFrame], about: str = "") -> Plot:
    """Codes on two axes, a panel per entry that has any: edits filled, their rephrases as larger
    open marks of the same form, unrelated questions grey. Columns: group, subset, x, y, share.

    Drawn without seaborn, which has no open marks beside filled ones.
    """
    points = {name: part for name, part in points.items() if len(part)}
    groups = dict.fromkeys(g for part in points.values() for g in part.get("group", ()))
    style = looks(group for group in groups if group != "unrelated")
    told = []
    with use_style():
        figure, axes = panels(len(points), height=3.3)
        if not points:
            say(axes[0], "Empty: no codes were observed.")
        for panel, (name, part) in zip(axes, points.items(), strict=False):
            panel.set_title(name)
            others = part[part["group"] == "unrelated"]
            panel.scatter(others["x"], others["y"], s=26, color="#8d949d", label="unrelated")
            for group, look in style.items():
                mine = part[part["group"] == group]
                edit = mine["subset"] == "edits"
                marks = {"marker": look.marker, "edgecolor": look.colour, "zorder": 3}
                panel.scatter(mine["x"][~edit], mine["y"][~edit], s=110, facecolor="none", **marks)
                panel.scatter(mine["x"][edit], mine["y"][edit], s=34, color=look.colour,
                              marker=look.marker, label=group, zorder=4)  # fmt: skip
            told.append(f"{name}: {_shared(part)}")
            panel.set_xlabel(f"two axes show {part['share'].iloc[0]:.0%} of the spread")
            panel.set(xticks=[], yticks=[])
            panel.margins(0.1)
            panel.grid(False)
        legend(figure, axes)
    data = stacked([part.assign(panel=name) for name, part in points.items()])
    facts = f"{counted(len(data), 'code')}; equal codes lie on each other. Open marks: rephrases."
    return Plot(figure, data, f"{facts} {about}".strip(), " ".join(told))


def _shared(part: pd.DataFrame) -> str:
    """How many edits share their code with a rephrase of theirs, and with an unrelated question."""
    edits, again = (part[part["subset"] == subset] for subset in ("edits", "holdout"))
    own = set(zip(again["group"], again["code"], strict=True))
    others = set(part.loc[part["group"] == "unrelated", "code"])
    hits = sum(pair in own for pair in zip(edits["group"], edits["code"], strict=True))
    return (
        f"{hits} of {len(edits)} edits share their code with their rephrase, "
        f"{edits['code'].isin(others).sum()} with an unrelated question."
    )


def whose_answers(
    rows: pd.DataFrame, said: Sequence[str], moments: Mapping[str, str], about: str = ""
) -> Plot:
    """Whose answer edits get at their own moment and after the last edit: a stacked bar each, from
    dark (the first of `said`) to light. `rows`: editor, moment, said.

    Drawn without seaborn, which does not stack bars of counts.
    """
    rows = having(rows, "editor", "moment", "said")
    shades = sns.color_palette("viridis", len(said)).as_hex()
    counts = rows.groupby(["editor", "moment", "said"]).size().rename("edits").reset_index()
    bars = list(itertools.product(dict.fromkeys(rows["editor"]), moments))
    with use_style():
        figure, (panel,) = row_panels([""], [f"{name}, {moments[m]}" for name, m in bars])
        if not bars:
            say(panel, "Empty: no edit was scored.")
        for place, (name, moment) in enumerate(bars):
            mine = counts[(counts["editor"] == name) & (counts["moment"] == moment)]
            widths, left = mine.set_index("said")["edits"], 0
            for number, (answer, shade) in enumerate(zip(said, shades, strict=True)):
                width = int(widths.get(answer, 0))
                panel.barh(place, width, left=left, height=0.8, facecolor=shade, linewidth=0.5,
                           edgecolor=INK, label=answer)  # fmt: skip
                if width > 0.06 * widths.sum():
                    panel.text(left + width / 2, place, f"{width}", ha="center", va="center",
                               color="white" if number < len(said) / 2 else INK)  # fmt: skip
                left += width
        if bars:
            panel.set_xlabel("edits")
            legend(figure, [panel])
    facts = f"Answers decoded from the prompt; an edit is right if every token is. {about}"
    kept = counts[counts["said"] == said[0]]
    told = "; ".join(
        f"{row.editor}, {moments[row.moment]}: {row.edits} {said[0]}"
        for row in kept.itertuples() if row.moment in moments
    )  # fmt: skip
    return Plot(
        figure, counts, facts.strip(), f"Answers by whose they are: {told}." if told else ""
    )


SCORES = {"edits": "Reliability", "holdout": "Generalization"}


def scores_and_size(
    records: pd.DataFrame, steps: pd.DataFrame, metric: str, *,
    by: str = "editor", before: pd.DataFrame | None = None,
) -> Plot:  # fmt: skip
    """The score of all edits so far, and the trained parameters, a line per `by`.

    `records`: rows of the edits that the model holds at that moment (`n_edits`); `before`: rows of
    the unedited model; `steps`: one row per batch with `parameters`.
    """
    counts = having(steps, "parameters", by, "n_edits").drop(columns="record", errors="ignore")
    size = means(counts, "parameters", [by, "n_edits"])
    thousands = size.assign(**{name: size[name] / 1000 for name in ("mean", "low", "high")})
    more = [Panel("Trained parameters, thousands", thousands, why="no parameters counted")]
    plot = score_curves(
        records, metric, SCORES, by=by, moments=("checkpoint", "end"), before=before, more=more,
        ylabel="share right",
    )  # fmt: skip
    drawn = [plot.data.assign(quantity="score"), size.assign(quantity="parameters")]
    return replace(plot, data=stacked(drawn))
