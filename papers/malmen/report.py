"""MALMEN's report: tables over m, claims and notes from a `Study`'s runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import papers.malmen.claims  # noqa: F401  (registers the paper's tests)
from lib.report import summaries, tables
from lib.report.claims import claims, verdict
from lib.report.tables import UNEDITED_MODEL
from lib.runs.study import Study
from papers import common
from papers.common import substitutions
from papers.malmen.scores import OWN, by_m, generates, observed, planned
from papers.malmen.times import times


@tables.regenerated("scores")
def scores_table(study: Study, setting: str) -> tables.Table:
    """ES, GS and LS of every editor at every m of one setting, the unedited model first."""
    layout = study.document["tables"]["main"]
    rows = [(name, m) for m, names in planned(study, setting).items() for name in names]
    return tables.build_table(
        _cells(study, setting, layout["item"], layout["columns"], rows),
        caption=f"Scores by the number of facts edited at once: {study.title(setting)}.",
        row_heading="Editor, m",
        unreported=layout["unreported"],
        csv_path=study.folder / "tables" / f"malmen-scores-{setting}.csv",
    )


@tables.regenerated("largest")
def largest_table(study: Study, setting: str) -> tables.Table | None:
    """All editors at the largest m that MEMIT runs, or at a setting's only m; else None."""
    layout, plan = study.document["tables"]["largest"], planned(study, setting)
    chosen = [m for m, names in plan.items() if "MEMIT" in names or len(plan) == 1]
    if not chosen:
        return None
    rows = [(name, chosen[-1]) for name in plan[chosen[-1]]]
    return tables.build_table(
        _cells(study, setting, layout["item"], layout["columns"], rows),
        caption=f"All editors at m = {chosen[-1]}: {study.title(setting)}.",
        row_heading="Editor, m",
        unreported=layout["unreported"],
        csv_path=study.folder / "tables" / f"malmen-largest-{setting}.csv",
    )


@tables.regenerated("decoded")
def decoded_table(study: Study, setting: str) -> tables.Table:
    """What the models really answer, and whether unrelated answers stayed, at the usual m."""
    layout = study.document["tables"]["decoded"]
    columns = layout["text" if generates(study, setting) else "classes"]
    usual = study.batch_size(setting)
    rows = [(name, usual) for name in planned(study, setting)[usual]]
    return tables.build_table(
        _cells(study, setting, layout["item"], columns, rows),
        caption=f"Further readings of the same runs: {study.title(setting)}.",
        row_heading="Editor, m",
        csv_path=study.folder / "tables" / f"malmen-decoded-{setting}.csv",
    )


def _cells(
    study: Study, setting: str, item: str, columns: Sequence[Mapping[str, str]],
    rows: Sequence[tuple[str, int]],
) -> Iterator[tables.Cell]:  # fmt: skip
    """One cell per row (editor, m) and column; runs that failed say why."""
    records, swaps = by_m(study, setting), substitutions(study, setting)
    for column in columns:
        common_parts = {
            "item": item, "metric": column["metric"], "setting": setting,
            "subset": column["subset"], "shown_setting": study.title(setting),
            "substitutions": swaps,
        }  # fmt: skip
        yield tables.measure(records, column["column"], editor=UNEDITED_MODEL, **common_parts)
        for editor, m in rows:
            yield tables.measure(
                records[records["m"] == m],
                column["column"],
                editor=editor,
                moment="own",
                shown_as=f"{editor}, m={m}",
                error=_reason(study, setting, editor, m),
                **common_parts,
            )


def _reason(study: Study, setting: str, editor: str, m: int) -> str:
    """Why an editor has no number at m: the error of the main table's run, or of the sweep's."""
    usual = study.reason(setting, editor) if m == study.batch_size(setting) else ""
    return usual or study.reason(setting, f"{editor}, m {m}")


def judged(study: Study, setting: str) -> claims.Judgement:
    """The paper's sentences tested on one setting; those about editors that it lacks are left
    out."""
    here = study.document["settings"][setting]["editors"]
    stated = {
        "usual": study.batch_size(setting),
        "mini_batch": here[OWN]["config"].get("batch_rows", 32),
        "setting": setting,
    }
    found = []
    for given in study.document["claims"]:
        spec: dict[str, Any] = {**given, "editor": OWN}
        if not set(spec.pop("needs", ())) <= set(here):
            continue
        wanted = spec.pop("given", ())
        found.append(claims.Claim.from_spec(spec | {name: stated[name] for name in wanted}))
    material = verdict.Material(
        by_m(study, setting),
        by_m(study, setting, "steps"),
        observations=observed(study, setting, "memory"),
        times=times(study, setting),
    )
    return claims.judge(found, material)


def summary(
    study: Study, verdicts: Mapping[str, claims.Judgement], listed: Mapping[str, list[str]]
) -> summaries.PaperSummary:
    """What the front page says: the claims; of reported scores none could be seen."""
    return common.summary(study, verdicts, listed)
