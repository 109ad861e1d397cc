"""Figures of one long sequence of edits: scores and parameters against the number of edits."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.ticker import FixedLocator, MaxNLocator

from lib.report.figures.parts import about_rows, curves, having, means, stacked
from lib.report.figures.style import Plot, legend, looks, panels, use_style

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
