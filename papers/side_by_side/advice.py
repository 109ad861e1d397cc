"""Which editor for how many edits, in a table and in sentences made from the numbers.

Quality is said of sizes that were measured. Of larger ones only time and storage are projected, and
an editor that has already lost edits is named.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from lib.metrics.estimates import estimate, resampled
from lib.report import page
from lib.report.pages.index import duration
from lib.runs.study import Study
from papers import common
from papers.side_by_side import successors
from papers.side_by_side.compare import (
    BEST,
    INCONCLUSIVE,
    LEVEL,
    MARGIN,
    WITHIN,
    WORSE,
    against_best,
    lost,
    tested,
)
from papers.side_by_side.costs import MIB, Cost, costs_of
from papers.side_by_side.scores import (
    GENERALITY,
    NEAR,
    RELIABILITY,
    UNRELATED,
    at,
    editors_of,
    sample,
    scored,
    sizes,
)

WANTED = (10, 100, 1000)  # the sizes that the page must answer for
LARGER = "gpu"  # the profile that measures the largest of them
NOT_MEASURED = "not measured here"


def asked_sizes(measured: list[int]) -> list[tuple[int, bool]]:
    """The sizes to answer for and whether they were measured: the measured ones and, of `WANTED`,
    those beyond them."""
    beyond = [n for n in WANTED if n > max(measured, default=0)]
    return [(n, True) for n in measured] + [(n, False) for n in beyond]


@dataclass(frozen=True)
class Answers:
    """What the answers of one setting rest on, computed once: the scored `records`, the `costs` by
    editor, `found` (`against_best`) by number of edits, `lost` by editor, and `made`, the number of
    edits that each editor makes."""

    study: Study
    setting: str
    records: pd.DataFrame
    costs: dict[str, Cost]
    found: dict[int, pd.DataFrame]
    lost: pd.DataFrame
    made: dict[str, int]

    @classmethod
    def of(cls, study: Study, setting: str) -> "Answers":
        """Read and compare everything that the answers need."""
        records, editors = scored(study, setting), editors_of(study, setting)
        found = {edits: against_best(records, editors, edits) for edits in sizes(records)}
        return cls(
            study,
            setting,
            records,
            costs_of(study, setting),
            {edits: frame for edits, frame in found.items() if len(frame)},
            lost(records, editors),
            {name: study.edits(setting, name) for name in editors},
        )

    @property
    def last(self) -> int:
        """The largest measured number of edits; 0 if nothing was measured."""
        return max(self.found, default=0)

    @property
    def gone(self) -> pd.DataFrame:
        """The editors that significantly lost edits, the worst first."""
        sure = (self.lost["adjusted"] < LEVEL) & (self.lost["mean"] < 0)
        return self.lost[sure].sort_values("mean")


def advice_table(answers: Answers) -> pd.DataFrame:
    """One row per size, for the best editor and those shown to be within the margin of it; beyond
    the measured sizes, those of the largest with projected costs."""
    rows, chosen = [], pd.DataFrame()
    fading = {row.editor: _p(row) for row in answers.gone.itertuples()}
    for edits, measured in asked_sizes(list(answers.found)):
        chosen = answers.found[edits] if measured else chosen
        for one in chosen[chosen["word"].isin([BEST, WITHIN])].itertuples() if len(chosen) else ():
            quality = _measured(one) if measured else _projected(one.editor, fading)
            spent = _costs(answers.costs.get(one.editor), edits, measured)
            rows.append((f"{edits:,}", one.editor, *quality, *spent))
    names = ["edits", "editor", "editing score", "minus the best", "rank, 95 %",
             "time in all", "peak GiB", "kept on disk"]  # fmt: skip
    study, frame = answers.study, pd.DataFrame(rows, columns=names)
    return common.kept(study, f"{study.paper}-advice-{answers.setting}", frame)


def _measured(one) -> tuple[str, str, str]:
    """Score, difference from the best, and rank of one row of `against_best`."""
    score = _interval(one.score, one.low, one.high)
    gap = f"{one.mean:+.2f} [{one.lower:+.2f}, {one.upper:+.2f}]".replace("-", "−")
    gap = BEST if one.word == BEST else gap
    return score, gap, f"{one.rank_low:g} to {one.rank_high:g}"


def _projected(editor: str, fading: dict[str, str]) -> tuple[str, str, str]:
    """What is said of quality at a size that was not measured."""
    told = f"; has lost edits already, {fading[editor]}" if editor in fading else ""
    return f"{NOT_MEASURED}{told}", "–", "–"


def _costs(cost: Cost | None, edits: int, measured: bool) -> tuple[str, str, str]:
    """Time, memory and storage for so many edits; how they grow where they are projected."""
    if cost is None:
        return "–", "–", "–"
    time, size = _time(cost.seconds(edits)), _size(cost.bytes_at(edits))
    if measured:
        return time, f"{cost.peak:.1f}", size if edits == cost.edits else f"about {size}"
    peak = f"{cost.peak:.1f} at {cost.edits:,}"
    return f"about {time} ({cost.pace})", peak, f"about {size} ({cost.growing})"


def advice_text(answers: Answers) -> str:
    """The answers for every size, as HTML paragraphs."""
    parts = [*_told(answers), *_beyond(answers), _sure(answers)]
    return page.paragraphs(parts)


def verdict(answers: Answers) -> str:
    """The page's opening: whether successors beat their families, the answer at the largest and
    smallest measured size, what the best reaches, who forgets, and how sure that is. HTML
    paragraphs."""
    if not answers.found:
        return page.paragraphs(["No run of this page is finished."])
    told = list(_told(answers))
    chosen = dict.fromkeys([told[-1], told[0]])
    after = successors.told(answers.records, list(answers.found), answers.costs)
    parts = [*after, *chosen, _parts_of_best(answers), _forgetting(answers), _sure(answers)]
    return page.paragraphs(parts)


def _told(answers: Answers) -> Iterator[str]:
    """Per measured size: the best editor, who is shown to be as good, which of these is fast or
    small, and who does not make so many edits here."""
    for edits, found in answers.found.items():
        if found["score"].max() == 0:
            yield f"After {edits:,} edits no editor has an editing score above 0."
            continue
        rows = at(answers.records, edits)
        facts = rows[rows["subset"] == "edits"]["unit"].nunique()
        fewer = [f"{name} ({made:,})" for name, made in answers.made.items() if made < edits]
        left = f"Not compared, as they make fewer edits here: {', '.join(fewer)}." if fewer else ""
        same = list(found[found["word"].isin([BEST, WITHIN])]["editor"])
        parts = (_ahead(found, edits, facts), _cheapest(same, answers.costs, edits), left)
        yield " ".join(part for part in parts if part)


def _ahead(found: pd.DataFrame, edits: int, facts: int) -> str:
    """Who leads at a size, who is shown to be within the margin of the leader, who is worse, and of
    whom nothing can be said."""
    best, others = found.iloc[0], len(found) - 1
    names = {word: list(found[found["word"] == word]["editor"]) for word in set(found["word"])}
    text = (
        f"After {edits:,} edits ({facts:,} facts) {best['editor']} has the highest editing score, "
        f"{_interval(best['score'], best['low'], best['high'])}"
    )
    if not others:
        return f"{text}; no other editor was scored."
    alike, worse, open_ones = (names.get(word, []) for word in (WITHIN, WORSE, INCONCLUSIVE))
    told = [
        f"at most {MARGIN:g} worse: {', '.join(alike)}"
        if alike
        else f"no other is shown to be at most {MARGIN:g} worse"
    ]
    if worse:
        told.append(f"{len(worse)} of {others} others are significantly worse")
    if open_ones:
        told.append(f"inconclusive, the interval being too wide: {', '.join(open_ones)}")
    return f"{text}; {'; '.join(told)}."


def _cheapest(names: list[str], spent: dict[str, Cost], edits: int) -> str:
    known = [spent[name] for name in names if name in spent]
    if not known:
        return ""
    fast = min(known, key=lambda cost: cost.seconds(edits))
    small = min(known, key=lambda cost: cost.bytes_at(edits))
    if len(known) == 1:
        return (
            f"It takes {_time(fast.seconds(edits))}, {_passes(fast)}, and keeps "
            f"{_size(fast.bytes_at(edits))}."
        )
    timed = [cost for cost in known if not math.isnan(cost.overhead.mean)]
    ready = min(timed, key=lambda cost: cost.overhead.mean, default=fast)
    quick = "" if ready is fast else f"; the quickest to answer is {ready.editor}, {_passes(ready)}"
    return (
        f"Of these, {fast.editor} is the fastest to edit ({_time(fast.seconds(edits))} in all), "
        f"{_passes(fast)}{quick}. {small.editor} keeps the least "
        f"({_size(small.bytes_at(edits))})."
    )


def _passes(cost: Cost) -> str:
    """How much longer a forward pass takes with the edits."""
    share = cost.overhead.mean
    if math.isnan(share):
        return "its forward pass not timed"
    percent = round(100 * abs(share))
    much = f"{percent} % {'longer' if share > 0 else 'shorter'} than" if percent else "as long as"
    return f"its forward pass {much} the unedited model's"


def _parts_of_best(answers: Answers) -> str:
    """What the best editor's score at the largest size is made of."""
    best = answers.found[answers.last].iloc[0]["editor"]
    rows = at(answers.records, answers.last)
    rows = rows[rows["editor"] == best]
    told = []
    for name, measure in (
        ("reliability", RELIABILITY), ("generality", GENERALITY),
        ("locality on the same relation", NEAR), ("locality on unrelated questions", UNRELATED),
    ):  # fmt: skip
        part = measure.rows(rows)
        if len(part):
            value = estimate(part, measure.column)
            told.append(f"{name} {_interval(value.mean, value.low, value.high)}")
    return f"What {best} reaches after {answers.last:,} edits: {', '.join(told)}; all as decoded."


def _forgetting(answers: Answers) -> str:
    """Who answers fewer of its edits at the end than right after they were made."""
    if answers.lost.empty:
        return ""
    told = "; ".join(
        f"{row.editor} from {row.own:.2f} to {row.end:.2f} over {row.edits:,} edits, {_p(row)}"
        for row in answers.gone.itertuples()
    )
    family = f"(Holm over {len(answers.lost)} editors)"
    if not told:
        return f"No editor has significantly lost edits by its last one {family}."
    return (
        "Reliability right after the own batch against after the last edit falls significantly "
        f"{family} for: {told}."
    )


def _beyond(answers: Answers) -> Iterator[str]:
    """What can be said of sizes that this profile does not measure."""
    beyond = [f"{n:,}" for n, known in asked_sizes(list(answers.found)) if not known]
    if not answers.found or not beyond:
        return
    yield (
        f"For {' and '.join(beyond)} edits quality is {NOT_MEASURED}. The command that measures "
        f"it: ./run_all.sh --only {answers.study.paper} --profile {LARGER}. The table projects "
        f"time and storage of the best at {answers.last:,} edits: seconds per edit as constant, "
        "unless they grew significantly from batch to batch; storage as what the editor counts "
        "grew."
    )
    told = ", ".join(f"{row.editor} ({_p(row)})" for row in answers.gone.itertuples())
    if told:
        yield f"These have already lost edits significantly by their last edit here: {told}."


def _sure(answers: Answers) -> str:
    """On how much the answers rest."""
    if not answers.found:
        return ""
    found, rows = answers.found[answers.last], at(answers.records, answers.last)
    rows = rows[rows["subset"] == "edits"]
    alike, unsure = ((found["word"] == word).sum() for word in (WITHIN, INCONCLUSIVE))
    seeds, best = rows["seed"].nunique(), found.iloc[0]
    order = "one order" if seeds == 1 else f"{seeds} orders"
    drawn = resampled([sample(at(answers.records, answers.last), list(found["editor"])).unit])
    drawn = drawn if seeds == 1 else f"{drawn} and orders"
    return (
        f"How sure this is: {rows['unit'].nunique():,} facts in {order}, {len(found)} editors at "
        f"{answers.last:,} edits, {alike} of the others shown to be within {MARGIN:g} of the best "
        f"and {unsure} inconclusive. When {drawn} are drawn again, {best['editor']} comes first in "
        f"{100 * best['best']:.0f} % of the draws. One backbone and one kind of fact: nothing here "
        "is about others."
    )


def _p(row) -> str:
    return tested(row.p, row.adjusted, row.at_floor)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f}" if math.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _size(count: float) -> str:
    if math.isnan(count):
        return "an unknown size"
    return f"{count / MIB:,.1f} MiB" if count >= MIB / 10 else f"{count / 1024:,.1f} KiB"
