"""The smaller tables of ELDER's page: seconds and parameters, inference, layers, codes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.metrics import costs
from lib.metrics.intervals import mean_interval
from lib.report import tables
from lib.report.reported import reported_value
from lib.report.tables import UNEDITED_MODEL
from lib.runs.execute import INFERENCE_PROMPTS
from lib.runs.study import Study
from papers import common
from papers.common import substitutions
from papers.elder.deferral import distances
from papers.elder.scores import OWN, by_edits, editors_of, scored, told_as

MILLION = 1e6
LONGER = "edits"  # the sweep over the number of edits
GROUPS, OTHERS = 5, 20  # edits and unrelated questions in the map of codes (the paper's Figure 4)


@tables.regenerated("table3")
def efficiency_table(study: Study, setting: str) -> tables.Table:
    """Table 3: seconds per edit, and trained parameters after the last edit in millions."""
    layout = study.document["tables"]["efficiency"]
    place = study.document["settings"][setting]["reported"]
    spent = costs.costs_by_editor(study.records(setting), study.steps(setting))
    known, swaps, cells = common.reported("elder"), substitutions(study, setting), []
    for editor in editors_of(study, setting):
        rows = spent[spent["editor"] == editor]
        fewer = study.edits(setting, editor) < study.edits(setting, OWN)
        by_run = rows.groupby("run")["parameters"].last().astype(float) / MILLION
        for column, values in (("seconds", rows["seconds_per_edit"]), ("parameters", by_run)):
            metric = layout["columns"][column]
            found = mean_interval(values.astype(float))
            absent = study.reason(setting, editor) or "not measured"
            cells.append(
                tables.Cell(
                    item=layout["item"], setting=study.title(setting), backbone="", dataset="",
                    editor=f"{editor}, {study.edits(setting, editor)} edits"
                    if fewer
                    else editor,
                    metric=metric["shown"], reproduced=found.mean, ci_low=found.low,
                    ci_high=found.high, n=found.n, substitutions=tuple(swaps),
                    reported=reported_value(
                        known, item=layout["item"], **place, method=told_as(editor),
                        metric=metric["reported"],
                    ),
                    error="" if found.n else absent,
                )
            )  # fmt: skip
    return tables.build_table(
        cells,
        caption=f"{layout['item']}: {study.title(setting)}; n counts batches or runs.",
        digits=3,
        notes=layout["notes"],
        csv_path=study.folder / "tables" / f"elder-table3-{setting}.csv",
    )


@tables.regenerated("table6")
def latency_table(study: Study, setting: str) -> tables.Table:
    """Table 6: milliseconds per prompt of a forward pass without and with the edits in force, and
    the second over the first of the same run, in percent more. A profile may time some editors
    only; the others have no row."""
    layout = study.document["tables"]["latency"]
    place = study.document["settings"][setting]["reported"]
    timed = costs.inference(study.records(setting), study.manifests(setting))
    timed = timed[timed["base_seconds"].notna()]
    prompts, known = min(INFERENCE_PROMPTS, study.edits(setting, OWN)), common.reported("elder")
    cells = []
    asked = study.document["settings"][setting]
    repeats = asked.get("protocol", {}).get("inference_repeats", 1)
    wanted = [
        name
        for name, entry in asked["editors"].items()
        if entry.get("protocol", {}).get("inference_repeats", repeats)
    ]
    for editor in (
        UNEDITED_MODEL,
        *(name for name in editors_of(study, setting) if name in wanted),
    ):
        rows = timed if editor == UNEDITED_MODEL else timed[timed["editor"] == editor]
        column = "base_seconds" if editor == UNEDITED_MODEL else "edited_seconds"
        told = reported_value(known, item=layout["item"], **place, method=told_as(editor))
        told = None if told is None else 1000 * told
        shown = {"ms": (1000 * rows[column] / prompts, told)}
        if editor != UNEDITED_MODEL:
            shown["overhead"] = (100 * rows["overhead"], None)
        for name, (values, reported) in shown.items():
            found = mean_interval(values.astype(float))
            cells.append(
                tables.Cell(
                    item=layout["item"], setting=study.title(setting), backbone="", dataset="",
                    editor=editor, metric=layout["columns"][name], reproduced=found.mean,
                    ci_low=found.low, ci_high=found.high, n=found.n, reported=reported,
                    error="" if found.n else study.reason(setting, editor) or "not timed",
                )
            )  # fmt: skip
    return tables.build_table(
        cells,
        caption=f"{layout['item']}: {study.title(setting)}; n counts timed runs.",
        notes=[note.format(prompts=prompts) for note in layout["notes"]],
        csv_path=study.folder / "tables" / f"elder-table6-{setting}.csv",
    )


def number_rows(
    study: Study, setting: str, editors: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figure 2: records of the edits so far and steps of some editors, each from the longest of its
    sequences: the main table's, or the longest of the sweep over the number of edits."""
    records, steps = scored(study, setting), study.steps(setting)
    if LONGER in study.sweeps(setting):
        swept = scored(study, setting, LONGER)
        longest = swept[swept["value"] == str(max(study.sweeps(setting)[LONGER]["values"]))]
        more = study.steps(setting, LONGER)
        records, steps = (
            pd.concat([rows[~rows["editor"].isin(longest["editor"])], longer], ignore_index=True)
            for rows, longer in (
                (records, longest),
                (steps, more[more["run"].isin(longest["run"])]),
            )
        )
    return tuple(rows[rows["editor"].isin(editors)] for rows in (by_edits(records), steps))


def layer_rows(study: Study, setting: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figure 3: records of the edits so far and steps of the sweep over L, with `layers`."""
    records, steps = by_edits(scored(study, setting, "layers")), study.steps(setting, "layers")
    return tuple(
        rows.assign(layers="L = " + rows["value"].astype(str)) for rows in (records, steps)
    )


def code_points(study: Study, setting: str, editor: str = OWN) -> pd.DataFrame:
    """Figure 4: codes of a few edits with their rephrases and of unrelated questions, and where
    they lie on two axes of a classical scaling of their distances.

    Columns: group ("edit 1", ..., "unrelated"), subset, code, x, y; `share`, of the squared
    distances that the two axes show, is the same in all rows.
    """
    rows = distances(study, setting)
    rows = rows[(rows["editor"] == editor) & (rows["sweep"] == "")]
    rows = rows[rows["run"] == rows["run"].min()]
    again = rows[rows["subset"] == "holdout"]["edit_index"].unique()
    chosen = sorted(again)[:GROUPS]
    edits = rows[rows["subset"].isin(["edits", "holdout"]) & rows["edit_index"].isin(chosen)]
    numbers = edits["edit_index"].map({index: n for n, index in enumerate(chosen, start=1)})
    edits = edits.assign(group="edit " + numbers.astype("Int64").astype(str))
    others = rows[rows["subset"] == "upstream"].head(OTHERS).assign(group="unrelated")
    points = pd.concat([edits, others])[["group", "subset", "code"]].reset_index(drop=True)
    if len(points) < 3:
        return points.assign(x=[], y=[], share=[]) if points.empty else points.iloc[:0]
    places, share = scaled(points["code"].tolist())
    return points.assign(x=places[:, 0], y=places[:, 1], share=share)


def scaled(codes: list[str]) -> tuple[np.ndarray, float]:
    """Classical multidimensional scaling of Hamming distances between codes: places [n, 2], and
    the share of the spread that these two axes show."""
    bits = np.array([[int(digit) for digit in code] for code in codes], dtype=float)
    # For zeros and ones the squared Euclidean distance is the number of differing digits.
    centred = bits - bits.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    spread = float((sizes**2).sum())
    share = float((sizes[:2] ** 2).sum()) / spread if spread else 1.0
    return left[:, :2] * sizes[:2], share
