"""Figures of consecutive editing: scores by step in two readings, thresholds, size of the state."""

import itertools
from collections.abc import Mapping, Sequence

import pandas as pd

from lib.metrics.costs import SIZES
from lib.report.figures.parts import about_rows, counted, curves, having, means, score_axis, stacked
from lib.report.figures.style import (
    LINES,
    MARKERS,
    Look,
    Plot,
    legend,
    looks,
    panels,
    say,
    use_style,
)

TRUE, PRINTED = "model after n edits", "as the official loop prints it"
TITLES = {
    "edits": "Reliability", "holdout": "Generality", "locality": "Locality", "average": "Average",
    "parameters": "Numbers added to the backbone", "stored_floats": "Numbers kept for later",
}  # fmt: skip


def both_readings(records: pd.DataFrame) -> pd.DataFrame:
    """Rows of edits applied so far, with `reading`: what "the score after n edits" can mean.

    `TRUE`: the model after n edits on its first n edits (checkpoint and end rows). `PRINTED`: the
    final model on the first n edits, which is what the official consecutive loop prints, because
    its snapshots share their result lists. Rows need `edit_index`, `moment` and `n_edits`.
    """
    rows = having(records, "edit_index", "moment", "n_edits", "run", "editor")
    rows = rows[rows["moment"].isin(["checkpoint", "end"]) & (rows["edit_index"] >= 0)]
    true = rows[rows["edit_index"] < rows["n_edits"]].assign(reading=TRUE)
    parts = [true]
    for _, run in true.groupby("run", sort=False):
        end = run[run["moment"] == "end"]
        for n in sorted(run["n_edits"].unique()):
            early = end[end["edit_index"] < n]
            parts.append(early.assign(n_edits=n, reading=PRINTED))
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else true


def by_step(
    records: pd.DataFrame,
    metric: str,
    *,
    subsets: Sequence[str] = ("edits", "holdout", "locality"),
    by: str = "editor",
    titles: Mapping[str, str] | None = None,
    ylabel: str | None = None,
    printed: bool = True,
) -> Plot:
    """Score of all edits so far against edits applied, a line per `by`.

    A row of panels per subset: left the model after n edits, right (`printed`) what the official
    loop prints for n.
    """
    rows = having(both_readings(records), metric, by, "subset")
    rows = rows[rows["subset"].isin(subsets)]
    readings = (TRUE, PRINTED) if printed else (TRUE,)
    data = means(rows, metric, ["subset", "reading", by, "n_edits"])
    data = data[data["reading"].isin(readings)]
    style = looks(dict.fromkeys(rows[by]))
    places = [(subset, reading) for subset in subsets for reading in readings]
    drawn = _side_by_side(data, by, list(style))
    with use_style():
        figure, axes = panels(len(places), height=2.6 if len(places) > 1 else 3.4)
        for panel, (subset, reading) in zip(axes, places, strict=True):
            name = {**TITLES, **(titles or {})}.get(subset, subset)
            panel.set_title(f"{name}: {reading}" if printed else name)
            part = drawn[(drawn["subset"] == subset) & (drawn["reading"] == reading)]
            curves(panel, part, by, "_x", style, whiskers=True)
            if panel.lines:
                panel.set_xlabel("edits applied")
                panel.set_xticks(sorted(data["n_edits"].unique())[:12])
                score_axis(panel, ylabel or metric)
        legend(figure, axes)
    facts = "Whiskers: 95 % interval; editors stand side by side at each number of edits."
    return Plot(figure, data, about_rows(rows, data, facts))


def _side_by_side(data: pd.DataFrame, by: str, names: Sequence[str]) -> pd.DataFrame:
    """`_x`: the number of edits, a little shifted per name: whiskers do not cover each other."""
    steps = sorted(data["n_edits"].unique())
    gap = min((b - a for a, b in itertools.pairwise(steps)), default=1.0)
    shift = {name: (i - (len(names) - 1) / 2) * 0.035 * gap for i, name in enumerate(names)}
    return data.assign(
        _x=data["n_edits"].astype(float) + data[by].astype(str).map(shift).astype(float)
    )


def thresholds(steps: pd.DataFrame, *, by: str = "editor", initial: float | None = None) -> Plot:
    """The threshold alpha of each edited layer (columns `alpha_<block>`) after every batch.

    One panel per `by`; `initial` is drawn dotted. Seeds are averaged.
    """
    columns = [name for name in steps if str(name).startswith("alpha_")]
    rows = having(steps, "n_edits", by, "run")
    long = rows.melt(
        id_vars=["run", by, "n_edits"], value_vars=columns, var_name="layer", value_name="alpha"
    ).dropna(subset=["alpha"])
    long["layer"] = long["layer"].str.removeprefix("alpha_").astype(int)
    data = means(long, "alpha", [by, "layer", "n_edits"])
    names = [name for name in dict.fromkeys(rows[by]) if name in set(data[by])]
    layers = sorted(data["layer"].unique())
    style = {f"layer {block}": look for block, look in zip(layers, _ladder(layers), strict=True)}
    with use_style():
        figure, axes = panels(len(names), height=2.7)
        if not names:
            say(axes[0], "No thresholds recorded.")
        for panel, name in zip(axes, names, strict=False):
            panel.set_title(str(name))
            part = data[data[by] == name].assign(which=lambda d: "layer " + d["layer"].astype(str))
            curves(panel, part, "which", "n_edits", style)
            if initial is not None:
                panel.axhline(initial, color="#5b6470", linestyle=":", label="initial alpha")
            panel.set(xlabel="edits applied", ylabel="alpha")
        legend(figure, axes)
    runs = counted(long["run"].nunique(), "run") if names else "no run"
    return Plot(figure, data, f"Read off the editor after each batch; {runs}.")


def state_size(steps: pd.DataFrame, *, columns: Sequence[str] = SIZES, by: str = "editor") -> Plot:
    """Numbers that an editor adds and keeps, against edits applied: flat if memory is constant."""
    style = looks(dict.fromkeys(having(steps, by)[by]))
    parts = []
    with use_style():
        figure, axes = panels(len(columns))
        for panel, column in zip(axes, columns, strict=True):
            panel.set_title(TITLES.get(column, column))
            part = means(having(steps, column, by, "n_edits"), column, [by, "n_edits"])
            parts.append(part.assign(quantity=column))
            curves(panel, part, by, "n_edits", style, why=f"no {column} counted")
            if not panel.lines:
                continue
            panel.set(xlabel="edits applied", ylabel="count")
            low, high = part["mean"].min(), part["mean"].max()
            if high > 0 and low < high / 50:
                panel.set_yscale("symlog", linthresh=max(1.0, _smallest(part["mean"])))
                panel.set_ylabel("count (logarithmic above zero)")
            panel.set_ylim(bottom=0)
        legend(figure, axes)
    runs = steps["run"].nunique() if "run" in steps else 0
    facts = f"Counted after each batch; {counted(runs, 'run')}. A number is 4 bytes in float32."
    return Plot(figure, stacked(parts), facts)


def _smallest(values: pd.Series) -> float:
    positive = values[values > 0]
    return float(positive.min()) if len(positive) else 1.0


def _ladder(layers: Sequence[int]) -> list[Look]:
    """Looks for ordered layers: one hue from pale to dark, each with its own marker and line."""
    shades = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
    count = len(layers)
    picked = [shades[-1 - (count - 1 - i) % len(shades)] for i in range(count)]
    return [
        Look(shade, MARKERS[i % len(MARKERS)], LINES[i % len(LINES)], "")
        for i, shade in enumerate(picked)
    ]
