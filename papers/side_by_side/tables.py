"""The tables of the side-by-side report; every number of quality leads to its records."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pandas as pd

from lib.metrics import ranking
from lib.metrics.ranking import SWAPS
from lib.report import tables
from lib.report.tables import UNEDITED_MODEL
from lib.runs.study import Study
from papers import common
from papers.side_by_side.compare import LEVEL, SCORE_NAME, best_of, compared, marked
from papers.side_by_side.costs import MIB, Cost, costs_of
from papers.side_by_side.scores import (
    MEASURES,
    RELIABILITY,
    address,
    at,
    editors_of,
    families,
    family_words,
    present,
    sample,
    scored,
    sizes,
    unedited,
)

ITEM = "side by side"
SCORE_GROUP = "Editing score"
REFERENCE = "FT"  # the simplest editor: plain fine-tuning of one matrix
READINGS = {
    "tokens": "tokens, fed in", "right": "whole answer, fed in", "decoded": "begins with it",
    "exact_match": "exactly it",
}  # fmt: skip
_NONE = (math.nan, math.nan)
COSTS: dict[tuple[str, str], Callable[[Cost], tuple[float, float, float, int]]] = {
    ("Time", "per edit, ms"): lambda c: (
        1000 * c.per_edit.mean, 1000 * c.per_edit.low, 1000 * c.per_edit.high, c.per_edit.n),
    ("Time", "before the first edit, s"): lambda c: (c.fit, *_NONE, c.runs),
    ("Forward pass", "% longer"): lambda c: (
        100 * c.overhead.mean, 100 * c.overhead.low, 100 * c.overhead.high, c.overhead.n),
    ("Memory", "saved edits, MiB"): lambda c: (c.saved / MIB, *_NONE, c.runs),
    ("Memory", "networks for them, MiB"): lambda c: (c.networks / MIB, *_NONE, c.runs),
    ("Memory", "peak of the run, GiB"): lambda c: (c.peak, *_NONE, c.runs),
}  # fmt: skip


def shown_sizes(study: Study, setting: str) -> list[int]:
    """The numbers of edits after which everything was scored, the largest first."""
    return sizes(scored(study, setting))[::-1]


@tables.regenerated("overview", sizes=shown_sizes)
def overview(study: Study, setting: str, edits: int) -> tables.Table:
    """Every editor after so many edits, in every measure; each number leads to its records."""
    records, who = scored(study, setting), families(study, setting)
    here = present(records, edits, list(who))
    failed = {name: text for name in who if (text := study.reason(setting, name))}
    rows = pd.concat([unedited(records, edits), at(records, edits)], ignore_index=True)
    cells = []
    for editor in [UNEDITED_MODEL, *here, *failed]:
        cells.append(_score_cell(study, rows, editor, edits, here, failed.get(editor, "")))
        for measure in MEASURES:
            if measure.rows(rows).empty:
                continue
            cell = tables.measure(
                measure.rows(rows), measure.column, item=ITEM, metric=measure.title, editor=editor,
                moment=None, shown_setting=measure.group,
                error=failed.get(editor, ""),
            )  # fmt: skip
            cells.append(_linked(study, cell, editor, measure.subsets[0], edits, here))
    table = tables.build_table(
        cells,
        caption=f"After {edits:,} edits: {study.title(setting)}.",
        notes=[*_absent(study, setting, edits, here), _decoded(study, setting)],
        own=True,
        about=family_words(study, setting),
    )
    common.kept(study, f"{study.paper}-overview-{setting}-{edits}", table.tidy)
    return table


def _score_cell(
    study: Study, rows: pd.DataFrame, editor: str, edits: int, here: list[str], error: str
) -> tables.Cell:
    """The editing score; its interval is that of the ranking, by resampling facts."""
    shown = {"item": ITEM, "setting": SCORE_GROUP, "backbone": "", "dataset": ""}
    chosen = sample(rows, [editor])
    found = ranking.standings(chosen)
    if not found or math.isnan(found[0].score):
        return tables.Cell(**shown, editor=editor, metric="of three", error=error or "not scored")
    facts = rows[(rows["editor"] == editor) & (rows["subset"] == "edits")]
    cell = tables.Cell(
        **shown, editor=editor, metric="of three", n_edits=edits, reproduced=found[0].score,
        ci_low=found[0].low, ci_high=found[0].high, n=facts["unit"].nunique(),
        facts=chosen.facts, unit=chosen.unit, seeds=facts["seed"].nunique(), error=error,
    )  # fmt: skip
    return _linked(study, cell, editor, "edits", edits, here)


def _linked(
    study: Study, cell: tables.Cell, editor: str, subset: str, edits: int, here: Sequence[str]
) -> tables.Cell:
    """The cell with the way to its records; the unedited model's stand on every editor's page."""
    if not cell.n:
        return cell
    if editor == UNEDITED_MODEL:
        return replace(cell, link=address(study, here[0], subset, "before")) if here else cell
    return replace(cell, link=address(study, editor, subset, edits))


def _absent(study: Study, setting: str, edits: int, here: Sequence[str]) -> Iterator[str]:
    """Editors that made fewer edits than this table is about."""
    for editor in editors_of(study, setting):
        made = study.edits(setting, editor)
        if editor not in here and made < edits:
            yield f"{editor} made the first {made:,} edits only and stands in that table."


def _decoded(study: Study, setting: str) -> str:
    tokens = study.document["settings"][setting]["protocol"]["max_new_tokens"]
    return f"Decoding stops after {tokens} tokens: decoded answers are right as far as that."


@tables.regenerated("readings")
def readings_table(study: Study, setting: str) -> tables.Table:
    """Reliability after the last edit in four readings, from the field's usual to the strictest."""
    records, cells = scored(study, setting), []
    for editor in (UNEDITED_MODEL, *editors_of(study, setting)):
        unchanged = editor == UNEDITED_MODEL
        edits = study.edits(setting, "" if unchanged else editor)
        rows = RELIABILITY.rows(unedited(records, edits) if unchanged else at(records, edits))
        for column, title in READINGS.items():
            cell = tables.measure(
                rows, column, item=ITEM, metric=title, editor=editor, moment=None,
                shown_setting="Reliability",
                error="" if unchanged else study.reason(setting, editor),
            )  # fmt: skip
            here = editors_of(study, setting)[:1] if unchanged else [editor]
            cells.append(_linked(study, cell, editor, "edits", edits, here))
    table = tables.build_table(
        cells,
        caption=f"Reliability after each editor's last edit: {study.title(setting)}.",
        notes=[_decoded(study, setting)],
        own=True,
    )
    common.kept(study, f"{study.paper}-readings-{setting}", table.tidy)
    return table


@tables.regenerated("differences", sizes=lambda study, setting: shown_sizes(study, setting)[:1])
def difference_table(study: Study, setting: str, edits: int) -> tables.Table:
    """Every editor minus the best and minus plain fine-tuning, on the same rows, Holm over all."""
    records, editors = scored(study, setting), editors_of(study, setting)
    best = best_of(records, editors, edits)
    references = dict.fromkeys(name for name in (best, REFERENCE) if name)
    frame = compared(records, editors, edits, [name for name in references if name in editors])
    titles = {one.key: f"{one.group}, {one.title}" for one in MEASURES}
    subsets = {one.key: one.subsets[0] for one in MEASURES}
    cells = []
    for row in frame.itertuples():
        # The score is made of several parts: it has facts and no rows of its own.
        n = int(row.facts if row.measure == SCORE_NAME else row.n)
        cells.append(
            tables.Cell(
                item=ITEM, setting=f"minus {row.reference}", backbone="", dataset="",
                editor=row.editor, metric=titles.get(row.measure, SCORE_GROUP), n_edits=edits,
                reproduced=row.mean, ci_low=row.low, ci_high=row.high, n=n, facts=int(row.facts),
                unit=row.unit, remark=marked(row.p, row.adjusted, row.at_floor),
                link=address(study, row.editor, subsets.get(row.measure, "edits"), edits),
            )
        )  # fmt: skip
    common.kept(study, f"{study.paper}-differences-{setting}-{edits}", frame)
    return tables.build_table(
        cells,
        caption=f"Differences after {edits:,} edits: {study.title(setting)}.",
        notes=[
            f"p: of the single comparison. *: significant among all {len(frame)} of this table "
            f"(Holm, {LEVEL:.0%}). ≤: no smaller p is possible with so few units, or {SWAPS:,} "
            "random swaps. The best editor was found on these rows, which flatters it.",
        ],
        own=True,
    )


@tables.regenerated("costs")
def cost_table(study: Study, setting: str) -> tables.Table:
    """Seconds, forward passes, saved size and memory of every editor, over its whole run."""
    who, cells = families(study, setting), []
    spent = costs_of(study, setting)
    for editor in who:
        failed, cost = study.reason(setting, editor) or "not measured", spent.get(editor)
        shown = {"item": ITEM, "backbone": "", "dataset": "", "editor": editor}
        for (group, metric), values in COSTS.items():
            mean, low, high, n = values(cost) if cost else (math.nan, *_NONE, 0)
            cells.append(
                tables.Cell(
                    **shown, setting=group, metric=metric, reproduced=mean, ci_low=low,
                    ci_high=high, n=n, n_edits=cost.edits if cost else None,
                    error="" if n else "not timed" if cost else failed,
                )
            )  # fmt: skip
    table = tables.build_table(
        cells,
        caption=f"Costs: {study.title(setting)}; n counts batches or runs.",
        notes=[
            "Time per edit: mean over batches. Before the first edit: training or statistics, "
            "next to nothing where an earlier run had left them in the cache.",
            "Saved edits: the files written at the end. Networks for them: trained before the "
            "first edit and asked at every answer, at 4 bytes a parameter; those that only make "
            "edits are not counted. Peak: memory of the whole run.",
        ],
        own=True,
        about={name: f"{study.edits(setting, name):,} edits" for name in who},
    )
    common.kept(study, f"{study.paper}-costs-{setting}", table.tidy)
    return table
