"""ELDER's report: its tables, claims and notes, built from the runs of a `Study`."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import papers.elder.claims  # noqa: F401  (registers the paper's tests)
from lib.metrics import costs
from lib.metrics.intervals import mean_interval
from lib.report import summaries, tables
from lib.report.claims import claims, verdict
from lib.report.reported import reported_value
from lib.report.tables import UNEDITED_MODEL
from lib.runs.study import Study
from papers import common
from papers.common import substitutions
from papers.elder.deferral import distances
from papers.elder.retention import retention_table
from papers.elder.scores import OWN, lines, scored

STEMS = {"ablation": "table4", "replay": "replay"}  # of the files of ablation tables
HALF_A_DIGIT = 0.00005  # of the last digit printed, as a share


@tables.regenerated("table1")
def table1(study: Study, setting: str) -> tables.Table:
    """Reliability and generalization after all edits, reported beside reproduced, in percent."""
    layout, place = study.document["tables"]["main"], _place(study, setting)
    records, swaps = scored(study, setting), substitutions(study, setting)
    known, cells = common.reported("elder"), []
    for line in lines(study, setting):
        for column in layout["columns"]:
            told = reported_value(
                known, item=layout["item"], **place, method=line.reported, metric=column["metric"]
            )
            n_reported = layout["n_reported"][column["metric"]][place["dataset"]]
            cells.append(
                tables.measure(
                    line.of(records), "right_answers", item=layout["item"], metric=column["metric"],
                    editor=line.label, setting=setting, subset=column["subset"], moment=None,
                    reported=told, n_reported=n_reported if line.comparable else None,
                    resolution=HALF_A_DIGIT, percent=True, substitutions=swaps,
                    shown_setting=study.title(setting), error=line.why(study, setting),
                )
            )  # fmt: skip
    told_at = int(known.loc[known["item"] == layout["item"], "n_edits"].max())
    size = f"Reported after {told_at:,} edits, here after {study.edits(setting, OWN):,}."
    return tables.build_table(
        cells,
        caption=f"{layout['item']}, percent, after the last edit: {study.title(setting)}.",
        notes=[size, *_notes(layout, place)],
        csv_path=study.folder / "tables" / f"elder-table1-{setting}.csv",
    )


@tables.regenerated("decoded")
def decoded_table(study: Study, setting: str) -> tables.Table:
    """What the edited models write by themselves, beside teacher-forced scores, in percent."""
    layout = study.document["tables"]["decoded"]
    records, swaps = scored(study, setting), substitutions(study, setting)
    cells = [
        tables.measure(
            line.of(records), column["column"], item=layout["item"], metric=column["metric"],
            editor=line.label, setting=setting, subset=column["subset"], moment=None, percent=True,
            shown_setting=study.title(setting), substitutions=swaps,
            error=line.why(study, setting),
        )
        for line in lines(study, setting)
        for column in layout["columns"]
    ]  # fmt: skip
    return tables.build_table(
        cells,
        caption=f"Further readings of the same runs, percent: {study.title(setting)}.",
        csv_path=study.folder / "tables" / f"elder-decoded-{setting}.csv",
    )


@tables.regenerated("table4")
def ablation_table(study: Study, setting: str, name: str = "ablation") -> tables.Table | None:
    """A table of variants, in percent, with the digits by which the codes of a batch's edits miss
    their allocation when the batch is done. "ablation": Table 4, what the auxiliary loss is, and
    (ours) its weight and what routes while training; "replay": our extension's parts. None where
    nothing of it is varied."""
    layout, place = study.document["tables"][name], _place(study, setting)
    known, swaps, cells = common.reported("elder"), substitutions(study, setting), []
    before = [
        tables.measure(
            scored(study, setting), "right_answers", item=layout["item"], metric=column["metric"],
            editor=UNEDITED_MODEL, setting=setting, subset=column["subset"], percent=True,
            shown_setting=study.title(setting), substitutions=swaps,
        )
        for column in layout["columns"]
    ]  # fmt: skip
    for row in layout["rows"]:
        editor, value = row.get("editor", OWN), str(row["value"])
        values = study.sweeps(setting).get(row["sweep"], {}).get("values", ())
        if value not in map(str, values):
            continue
        records, steps = scored(study, setting, row["sweep"]), study.steps(setting, row["sweep"])
        records = records[records["value"] == value]
        failed = study.reason(setting, f"{editor}, {row['sweep']} {value}")
        if records.empty and not failed:
            failed = study.reason(setting, editor)  # the run of the main table
        for column in layout["columns"]:
            told = reported_value(
                known, item=layout["item"], **place, method=row.get("reported", "-"),
                metric=column["metric"],
            )  # fmt: skip
            cells.append(
                tables.measure(
                    records, "right_answers", item=layout["item"], metric=column["metric"],
                    editor=editor, setting=setting, subset=column["subset"], shown_as=row["shown"],
                    reported=told, n_reported=layout["n_reported"][place["dataset"]],
                    resolution=HALF_A_DIGIT, percent=True, substitutions=swaps, error=failed,
                    shown_setting=study.title(setting),
                )
            )  # fmt: skip
        cells.append(_apart(study, setting, layout["item"], row["shown"], records, steps, failed))
    if not cells:
        return None
    return tables.build_table(
        [*before, *cells],
        caption=f"{layout['item']}, percent, after the last edit: {study.title(setting)}.",
        row_heading="Variant",
        notes=_notes(layout, place),
        csv_path=study.folder / "tables" / f"elder-{STEMS[name]}-{setting}.csv",
    )


@tables.regenerated("replay")
def replay_table(study: Study, setting: str) -> tables.Table | None:
    """Our extension taken apart."""
    return ablation_table(study, setting, "replay")


def _apart(
    study: Study, setting: str, item: str, shown: str, records: pd.DataFrame, steps: pd.DataFrame,
    failed: str,
) -> tables.Cell:  # fmt: skip
    """How far the codes of a batch's edits are from their allocation; n counts batches."""
    own = steps[steps["run"].isin(records["run"])] if len(steps) else steps
    digits = own["digits_from_allocation"] if "digits_from_allocation" in own else pd.Series()
    found = mean_interval(digits.astype(float))
    return tables.Cell(
        item=item, setting=study.title(setting), backbone="", dataset="", editor=shown,
        metric="digits from allocation", reproduced=found.mean, ci_low=found.low,
        ci_high=found.high, n=found.n, error="" if found.n else failed or "not measured",
    )  # fmt: skip


def _place(study: Study, setting: str) -> dict[str, str]:
    """The model and the dataset that a setting's numbers are reported for."""
    return study.document["settings"][setting]["reported"]


def _notes(layout: Mapping[str, Any], place: Mapping[str, str]) -> Sequence[str]:
    """A table's notes: those for all settings and those about this model and dataset."""
    return [
        note["text"]
        for note in layout.get("notes", ())
        if all(place[key] == note.get(key, place[key]) for key in place)
    ]


def judged(study: Study, setting: str) -> claims.Judgement:
    """The paper's sentences tested on one setting; those about a sweep that it lacks are left
    out."""
    found = []
    for given in study.document["claims"]:
        spec: dict[str, Any] = {**given, "editor": OWN}
        if given["test"] == "ahead_at_equal_edits":
            spec |= _rivals(study, setting, given["others"])
        if given["test"] == "faster_as_published":
            spec["steps"] = {name: _steps(study, setting, name) for name in (OWN, spec["other"])}
        if spec.get("sweep", "") in ("", *study.sweeps(setting)):
            found.append(claims.Claim.from_spec(spec))
    return claims.judge(found, _material(study, setting))


def _steps(study: Study, setting: str, editor: str) -> tuple[int, int]:
    """The optimiser steps of an edit (of a batch, where batches are edited at once) here and in the
    paper profile."""
    here, published = (
        document["settings"][setting]["editors"][editor]["config"]["steps"]
        for document in (study.document, study.original)
    )
    return int(here), int(published)


def _rivals(study: Study, setting: str, others: Sequence[str]) -> dict[str, Any]:
    """The editors of a claim that a setting plans, and a sentence about the others."""
    here = study.document["settings"][setting]["editors"]
    left = [name for name in others if name not in here]
    missing = f"Not run here: {', '.join(left)}." if left else ""
    return {"others": [name for name in others if name in here], "missing": missing}


def _material(study: Study, setting: str) -> verdict.Material:
    names = ("", *study.sweeps(setting))
    frames = [frame for name in names if len(frame := scored(study, setting, name))]
    records = pd.concat(frames, ignore_index=True) if frames else scored(study, setting)
    timed = costs.inference(study.records(setting), study.manifests(setting))
    return verdict.Material(
        records, study.steps(setting), timed, observations=distances(study, setting)
    )


def summary(
    study: Study, verdicts: Mapping[str, claims.Judgement], listed: Mapping[str, list[str]]
) -> summaries.PaperSummary:
    """What the front page says: the claims, and the order of the methods in Tables 1, 2 and 4."""
    shown = [table1(study, setting) for setting in study.settings]
    shown += [ablation_table(study, setting) for setting in study.settings]
    shown.append(retention_table(study))
    return common.summary(study, verdicts, listed, shown=shown)
