"""The side-by-side report: what its notebook shows, from the runs of a `Study`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pandas as pd

import papers.side_by_side.claims  # noqa: F401  (registers the page's tests)
from lib.editors.registry import FAMILIES
from lib.report import page, summaries, tables
from lib.report.claims import claims
from lib.report.figures import style
from lib.report.figures.parts import levels
from lib.report.figures.rows import then_and_now
from lib.report.pages import record_pages
from lib.report.tables import UNEDITED_MODEL
from lib.report.templates import fill
from lib.runs.study import Study
from papers import common
from papers.side_by_side.compare import (
    MARGIN,
    against_best,
    lost,
    over_seeds,
    ranks,
    single_rounds,
    standings,
)
from papers.side_by_side.costs import costs_of
from papers.side_by_side.scores import (
    OTHERS,
    editors_of,
    families,
    family_words,
    page_name,
    present,
    scored,
    sizes,
)
from papers.side_by_side.tables import SCORE_GROUP, overview, shown_sizes

FAMILY_NAMES = [*FAMILIES, OTHERS]
ONE_SEED = (
    "There is one order seed here. Intervals that resample batches of edits allow for batches made "
    "up otherwise; those that resample facts are about other facts in this order, and none is "
    "about a whole other sequence of batches.",
)


def ranked_sizes(study: Study, setting: str) -> list[int]:
    """The largest number of edits and, where some editors made fewer, the largest that all made."""
    records, editors = scored(study, setting), editors_of(study, setting)
    counts = {edits: len(present(records, edits, editors)) for edits in sizes(records)}
    everyone = [edits for edits, count in counts.items() if count == max(counts.values())]
    return sorted({*list(counts)[-1:], *everyone[-1:]}, reverse=True)


def seeds_text(study: Study, setting: str) -> str:
    """How far order seeds lie apart: a table, or a sentence where there is one seed."""
    records, editors = scored(study, setting), editors_of(study, setting)
    found = over_seeds(records, editors, max(sizes(records), default=0))
    if found.empty or found["seeds"].max() < 2:
        return page.paragraphs(ONE_SEED)
    common.kept(study, f"{study.paper}-seeds-{setting}", found)
    shown = found.round(3).rename(columns={"sd": "standard deviation between seeds"})
    return tables.plain(shown)


def speed_and_quality(study: Study, setting: str, edits: int) -> pd.DataFrame:
    """One row per editor scored after so many edits: editor, family, score, low, high, seconds (per
    edit), slowdown (a forward pass with the edits over one without), bytes (kept on disk)."""
    records, who, spent = scored(study, setting), families(study, setting), costs_of(study, setting)
    rows = []
    for one in standings(records, list(who), edits):
        cost = spent.get(one.editor)
        if cost is None:
            continue
        rows.append(
            (one.editor, who[one.editor], one.score, one.low, one.high, cost.per_edit.mean,
             1 + cost.overhead.mean, cost.bytes_at(edits))
        )  # fmt: skip
    names = ["editor", "family", "score", "low", "high", "seconds", "slowdown", "bytes"]
    return pd.DataFrame(rows, columns=names)


def first_edits(study: Study, setting: str) -> pd.DataFrame:
    """Rows of the edits that the first checkpoint covers, before any edit and at every later one,
    with `family`."""
    records, who = scored(study, setting), families(study, setting)
    first = min(sizes(records), default=0)
    rows = records[
        records["moment"].isin(["before", "checkpoint", "end"]) & (records["subset"] == "edits")
    ]
    rows = rows[rows["edit_index"] < first]
    return rows.assign(family=rows["editor"].map(who), first=first)


def kept_edits(study: Study, setting: str) -> pd.DataFrame:
    """Reliability right after the own batch and after the last edit (`lost`), with `family`."""
    who = families(study, setting)
    found = lost(scored(study, setting), list(who))
    common.kept(study, f"{study.paper}-lost-{setting}", found)
    return found.assign(family=found["editor"].map(who))


def retention(study: Study, setting: str) -> style.Plot:
    """How an edit stands right after its batch and after the last one, an editor a row."""
    kept = kept_edits(study, setting).drop(columns=["low", "high"])  # of the difference
    return then_and_now(kept, levels=levels(scored(study, setting), "decoded", "edits"))


def ranked(study: Study, setting: str, edits: int) -> pd.DataFrame:
    """Ranks after so many edits in every ranked measure, with `family`."""
    who = families(study, setting)
    found = ranks(scored(study, setting), list(who), edits)
    return found.assign(family=found["editor"].map(who))


@tables.regenerated("ranking", sizes=ranked_sizes)
def ranking_table(study: Study, setting: str, edits: int) -> pd.DataFrame:
    """The ranking by the editing score after so many edits, each editor against the best, and
    beside it the reliability of the same edits right after their own batch: what single-round
    methods are made for."""
    records, editors = scored(study, setting), editors_of(study, setting)
    found = against_best(records, editors, edits)
    own = single_rounds(records, list(found["editor"]), edits)
    words = family_words(study, setting)
    ends = {
        one.editor: one.score
        for one in ranks(records, editors, edits).query("measure == 'reliability'").itertuples()
    }
    rows = [
        (
            f"{one.rank:g} ({one.rank_low:g} to {one.rank_high:g})", one.editor, words[one.editor],
            _bracketed(one.score, one.low, one.high), one.word, f"{100 * one.best:.0f} %",
            f"{ends.get(one.editor, math.nan):.2f}", _bracketed(alone.own, alone.low, alone.high),
        )
        for one, alone in zip(found.itertuples(), own.itertuples(), strict=True)
    ]  # fmt: skip
    names = ["rank (95 %)", "editor", "kind", "editing score",
             f"against the best (margin {MARGIN:g})",
             "comes first", "reliability now", "right after own batch"]  # fmt: skip
    return common.kept(
        study, f"{study.paper}-ranking-{setting}-{edits}", pd.DataFrame(rows, columns=names)
    )


def _bracketed(mean: float, low: float, high: float) -> str:
    if math.isnan(mean):
        return "–"
    return f"{mean:.2f}" if math.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def write_records(study: Study, setting: str) -> str:
    """One page of records per editor and order seed beside the report; returns links to all."""
    records, links = scored(study, setting), []
    folder = study.folder / f"{study.paper}-records"
    for editor in editors_of(study, setting):
        mine = records[records["editor"] == editor]
        for seed in sorted(mine["seed"].unique()):
            name = page_name(editor, int(seed))
            record_pages.write(
                folder / name, f"{editor}, order seed {seed}: records", mine[mine["seed"] == seed],
                back=f"../{study.paper}.html",
            )  # fmt: skip
            title = editor if seed == 0 else f"seed {seed}"
            links.append((f"{folder.name}/{name}", title))
    return fill("links", links=links, nothing="No run has records yet.")


def summary(
    study: Study, verdicts: Mapping[str, claims.Judgement], listed: Mapping[str, list[str]]
) -> summaries.PaperSummary:
    """What the front page says: the best editors at the largest size."""
    return replace(common.summary(study, verdicts, listed), best=tuple(_best(study)))


def _best(study: Study) -> Iterator[summaries.Best]:
    for setting in study.settings:
        for edits in shown_sizes(study, setting)[:1]:
            cells = overview(study, setting, edits).cells
            found = [
                c for c in cells if c.setting == SCORE_GROUP and c.n and c.editor != UNEDITED_MODEL
            ]
            for cell in sorted(found, key=lambda cell: -cell.reproduced)[:3]:
                measure = f"editing score after {edits:,} edits"
                yield summaries.Best(
                    cell.editor, measure, cell.reproduced, cell.ci_low, cell.ci_high, cell.n
                )
