"""What a claim's test sees and says, and the rules by which verdicts come about: in one setting
from rows of evidence (`outcome`, `combine`), of a claim over its settings (`over_settings`).

All tests compare scores of the same prompts, correct for the number of comparisons (Holm) and say
"inconclusive" when the data allow both answers; absence of evidence never counts as "holds".
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd

from lib.metrics.estimates import counted, difference
from lib.metrics.intervals import Difference, Interval, facts, holm

HOLDS, FAILS, INCONCLUSIVE = "holds", "fails", "inconclusive"
NOT_TESTABLE = "not testable in this profile"
WORDS = (HOLDS, FAILS, INCONCLUSIVE, NOT_TESTABLE)  # of one setting
DIFFERS = "differs between settings"
BY_CONSTRUCTION, VACUOUS = "by construction", "vacuous"
MARKS = (BY_CONSTRUCTION, VACUOUS)  # beside "holds": what neither counts as a claim that holds
COUNTED = (HOLDS, FAILS, DIFFERS, INCONCLUSIVE, BY_CONSTRUCTION, VACUOUS, NOT_TESTABLE)
SYMBOLS = {
    HOLDS: "✓", FAILS: "✗", DIFFERS: "≠", INCONCLUSIVE: "?", BY_CONSTRUCTION: "=", VACUOUS: "∅",
    NOT_TESTABLE: "–",
}  # fmt: skip
LEVEL = 0.95
FEWEST_FACTS = 10  # resampling fewer independent facts gives intervals that are far too narrow
FEWEST_SIGNIFICANT = 5  # a permutation test is exact, so that a significant difference needs fewer

NOT_WORSE, BETTER = "not worse", "better"  # rules of differences, ours minus theirs
AT_LEAST, AT_MOST, BELOW = "at least", "at most", "below"  # rules of amounts against a bound
UNTOLD = "no rows"  # in place of a rule: there is nothing to read one on


@dataclass(frozen=True)
class Material:
    """What claims are judged on (columns as the runs write): scored prompts, edited batches, timed
    forward passes (`costs.inference`), and what editors observed about themselves. `times` has a
    row per run: editor, m (facts edited at once), and seconds `train` and `edit` for one batch."""

    records: pd.DataFrame
    steps: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    inference: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    observations: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    times: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Evidence:
    """One row of evidence: a difference or an amount with its interval, and the rule it meets.

    `margin` is the margin of a difference or the bound of an amount; `p` is corrected for the
    verdict's comparisons. `reference` is the mean of their side; `room`, how much better than it a
    score can be at all. `exact`: counted or timed and not sampled, so no number of facts is asked
    for. `group`: one of several sentences of which one is enough. `changed`: the facts that a
    difference is not 0 in, where that was counted. `level` is the interval's.
    """

    name: str
    rule: str
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    facts: int = 0
    margin: float = math.nan
    p: float = math.nan
    better: str = "higher"
    metric: str = ""
    subset: str = ""
    reference: float = math.nan
    room: float = math.inf
    exact: bool = False
    group: str = ""
    changed: int = 0
    level: float = LEVEL

    @property
    def outcome(self) -> str:
        """What the row says by its rule, one of `WORDS`."""
        return outcome(self)

    @property
    def wanted(self) -> str:
        """The bound that the row is held against, of the mean or of the interval's end: "≥ −0.05"
        (not worse), "≤ 0.9" (at most)."""
        bound = {NOT_WORSE: -self.margin, BETTER: self.margin}.get(self.rule, self.margin)
        up = self.rule in (NOT_WORSE, BETTER, AT_LEAST)
        if self.rule in (NOT_WORSE, BETTER) and self.better == "lower":
            up, bound = False, -bound
        sign = "<" if self.rule == BELOW else "≥" if up else "≤"
        shown = f"{bound:+g}" if self.rule in (NOT_WORSE, BETTER) else f"{bound:g}"
        return f"{sign} {shown}".replace("-", "−")

    @property
    def excess(self) -> float:
        """How far the mean lies on the good side of its bound, negative on the bad one."""
        if self.rule in (AT_MOST, BELOW):
            return self.margin - self.mean
        sign = -1.0 if self.better == "lower" else 1.0
        return sign * self.mean - (-self.margin if self.rule == NOT_WORSE else self.margin)


def outcome(row: Evidence) -> str:
    """The verdict on one row of evidence.

    "not worse": holds if the whole interval stays above -margin (10 facts) or the difference is
    significantly for us; fails if it is significantly against us. "better": holds if the difference
    is significant, at least the margin, and its interval above 0; fails if it is significantly
    against us, or the interval shows a gain of at most the margin (10 facts), unless theirs leaves
    no room for more: then it cannot be tested. Significant: p < 0.05 with 5 facts. "at
    least", "at most", "below": the whole interval decides (10 facts).
    """
    if row.rule == UNTOLD:
        return NOT_TESTABLE
    known = math.isfinite(row.low) or math.isfinite(row.high)
    enough = row.exact or row.facts >= FEWEST_FACTS
    if row.rule in (AT_LEAST, AT_MOST, BELOW):
        return _against_bound(row) if known and enough else INCONCLUSIVE
    sign = {"higher": 1.0, "lower": -1.0}[row.better]
    low, high = sorted((sign * row.low, sign * row.high)) if known else (-math.inf, math.inf)
    mean = sign * row.mean
    significant = row.p < 1 - LEVEL and row.facts >= FEWEST_SIGNIFICANT
    if row.rule == NOT_WORSE:
        if (enough and low >= -row.margin) or (significant and mean > 0):
            return HOLDS
        return FAILS if significant and mean < 0 else INCONCLUSIVE
    if significant and mean < 0:
        return FAILS
    if significant and mean >= row.margin and low > 0:
        return HOLDS
    if enough and high <= row.margin:
        return NOT_TESTABLE if row.room < row.margin else FAILS
    return INCONCLUSIVE


def _against_bound(row: Evidence) -> str:
    if row.rule == AT_LEAST:
        holds, fails = row.low >= row.margin, row.high < row.margin
    elif row.rule == AT_MOST:
        holds, fails = row.high <= row.margin, row.low > row.margin
    else:
        holds, fails = row.high < row.margin, row.low >= row.margin
    return HOLDS if holds else FAILS if fails else INCONCLUSIVE


def combine(rows: Sequence[Evidence]) -> str:
    """The verdict of several rows together: fails if one fails, holds if all hold, else
    inconclusive if one is, else not testable. With groups, each is judged so, and one group that
    holds is enough; all must fail to fail."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row.outcome)
    order = (FAILS, INCONCLUSIVE, NOT_TESTABLE, HOLDS)
    words = [next(word for word in order if word in found) for found in groups.values()]
    if len(words) > 1:
        order = (HOLDS, INCONCLUSIVE, NOT_TESTABLE, FAILS)
    return next((word for word in order if word in words), NOT_TESTABLE)


def over_settings(judged: Iterable[tuple[str, Sequence[str]]]) -> str:
    """The verdict on a claim from (word, marks) of every setting, one of `COUNTED`.

    It holds if it holds in a setting and fails in none, fails if it fails in one and holds in none,
    and "differs between settings" if both happen: holding and failing weigh the same, and settings
    that decide nothing take nothing away. A marked "holds" counts for neither: a claim that is only
    held so is "by construction" or, where no other setting is inconclusive, "vacuous".
    """
    judged = [(word, tuple(marks)) for word, marks in judged]
    found = {word for word, marks in judged if not marks}
    if {HOLDS, FAILS} <= found:
        return DIFFERS
    marks = {mark for word, marks in judged if word == HOLDS for mark in marks}
    for word in (HOLDS, FAILS):
        if word in found:
            return word
    if BY_CONSTRUCTION in marks:
        return BY_CONSTRUCTION
    return INCONCLUSIVE if INCONCLUSIVE in found else VACUOUS if marks else NOT_TESTABLE


def decided_in(judged: Sequence[tuple[str, Sequence[str]]]) -> tuple[int, int]:
    """In how many settings a claim has the verdict of `over_settings`, of how many that could test
    it."""
    verdict = over_settings(judged)
    testable = [(word, marks) for word, marks in judged if word != NOT_TESTABLE]
    same = [marks for word, marks in testable if verdict in (marks or (word,))]
    return len(same), len(testable)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a test: its word, the sentence of numbers it rests on, and these numbers as
    `rows`. `marks` stand beside a verdict that holds without saying much (`MARKS`)."""

    word: str
    evidence: str
    rows: tuple[Evidence, ...] = ()
    marks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.word not in WORDS:
            raise ValueError(f"verdict {self.word!r} is none of {', '.join(WORDS)}")
        if not set(self.marks) <= set(MARKS):
            raise ValueError(f"marks {self.marks!r} are not all of {', '.join(MARKS)}")
        if self.rows and self.word != combine(self.rows):
            raise ValueError(f"verdict {self.word!r}, and its evidence says {combine(self.rows)}")

    @classmethod
    def of(cls, rows: Iterable[Evidence], evidence: str, marks: Iterable[str] = ()) -> "Verdict":
        """The verdict that the rows have together; marks are kept only where it holds."""
        rows = tuple(rows)
        word = combine(rows)
        return cls(word, evidence, rows, tuple(marks) if word == HOLDS else ())

    @property
    def deciding(self) -> Evidence | None:
        """The row that the verdict hangs on: of those that say what it says, the one whose mean is
        worst for the claim; None where no row has a number."""
        groups: dict[str, list[Evidence]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        rows = [row for group in groups.values() if combine(group) == self.word for row in group]
        rows = [row for row in rows if row.outcome == self.word and math.isfinite(row.mean)]
        return min(rows, key=lambda row: row.excess, default=None)

    @property
    def facts(self) -> int:
        """The independent facts of the row that has the most."""
        return max((row.facts for row in self.rows), default=0)

    @property
    def n(self) -> int:
        """The scored rows (pairs of them, in differences) of the row that has the most."""
        return max((row.n for row in self.rows), default=0)


Test = Callable[[Material], Verdict]
Maker = TypeVar("Maker", bound=Callable[..., Test])
TESTS: dict[str, Callable[..., Test]] = {}


def claim_test(maker: Maker) -> Maker:
    """Register a maker of tests, so that a `page.yaml` can name it."""
    if maker.__name__ in TESTS:
        raise ValueError(f"there is a test {maker.__name__!r} already")
    TESTS[maker.__name__] = maker
    return maker


def scores(
    records: pd.DataFrame, metric: str, subset: str, setting: str | None, sweep: str = ""
) -> pd.DataFrame:
    """Rows of a subset that have the score, of one setting and of the main table or one sweep."""
    if metric not in records:
        raise ValueError(f"no score {metric!r} in these runs")
    rows = records[(records["subset"] == subset) & records[metric].notna()]
    if "sweep" in rows:
        rows = rows[rows["sweep"] == sweep]
    return rows if setting is None else rows[rows["setting"] == setting]


def paired(a: pd.DataFrame, b: pd.DataFrame, metric: str, level: float = LEVEL) -> Difference:
    """Differences a - b of the same prompt, setting and seed (`estimates.difference`)."""
    return difference(a, b, metric, level=level)


def changed(a: pd.DataFrame, b: pd.DataFrame, metric: str) -> int:
    """The facts whose scores differ at all between the same prompts of `a` and `b`."""
    keys = ["setting", "seed", "record", "prompt"]
    left, right = (frame.groupby(keys)[metric].mean() for frame in (a, b))
    moved = (left - right).dropna()
    moved = moved[moved != 0]
    return len(set(facts(moved.index.get_level_values("record"))))


@dataclass(frozen=True)
class Compared:
    """A difference (ours minus theirs) with its name, the mean of `theirs`, the `room` above it,
    and the facts that it `changed` in; `group` and `level` as in `Evidence`; `margin`: its own, if
    it has another than the rest."""

    name: str
    difference: Difference
    reference: float = math.nan
    room: float = math.inf
    group: str = ""
    changed: int = 0
    level: float = LEVEL
    margin: float | None = None


def decide(
    pairs: Sequence[Compared],
    what: str,
    margin: float,
    better: str = "higher",
    *,
    strictly: bool = False,
    metric: str = "",
    subset: str = "",
    note: str = "",
) -> Verdict:
    """One verdict over several differences: each "better" if `strictly`, else "not worse" (see
    `outcome`), all together (see `combine`). `note` ends the evidence.

    "Not worse" than what is at most the margin itself is vacuous: nothing could have been lost.
    """
    adjusted = holm([pair.difference.p for pair in pairs])
    rows, parts = [], []
    for pair, p in zip(pairs, adjusted, strict=True):
        d = pair.difference
        told = {"metric": metric, "subset": subset, "group": pair.group}
        if d.n == 0:
            parts.append(f"{pair.name}: no common prompts")
            rows.append(Evidence(pair.name, UNTOLD, **told))
            continue
        row = Evidence(
            pair.name, BETTER if strictly else NOT_WORSE, d.mean, d.low, d.high, d.n,
            d.facts or d.clusters, margin if pair.margin is None else pair.margin, p, better,
            reference=pair.reference, room=pair.room, changed=pair.changed, level=pair.level,
            **told,
        )  # fmt: skip
        text = f"{pair.name}: {amount(d)}, {chance(p, d.at_floor)}"
        few = FEWEST_FACTS if row.outcome == INCONCLUSIVE else 0
        if d.clusters < few:
            text += f", only {d.clusters} independent facts"
        elif row.outcome == NOT_TESTABLE:
            text += f", and with {pair.reference:.2f} there is no room for a gain of the margin"
        if pair.margin is not None:
            text += f" (margin {pair.margin:g})"
        rows.append(row)
        parts.append(text)
    tail = f" (Holm over {len(pairs)})" if len(pairs) > 1 else ""
    evidence = (
        f"Difference in {what}: {'; '.join(parts)}{tail}; margin {margin:g}, {better} is better."
    )
    empty = better == "higher" and not strictly and rows
    empty = empty and all(row.reference <= margin for row in rows)
    if empty:
        note = f"{note} What is compared with is at most the margin itself.".strip()
    return Verdict.of(rows, f"{evidence} {note}".strip(), [VACUOUS] if empty else ())


def one_bound(name: str, at_least: float | None, at_most: float | None) -> None:
    """Refuse a test that names both bounds or none."""
    if (at_least is None) == (at_most is None):
        raise ValueError(f"{name}: give at_least or at_most")


def bounded(
    found: Interval, what: str, at_least: float | None = None, at_most: float | None = None, *,
    metric: str = "", subset: str = "",
) -> Verdict:  # fmt: skip
    """Whether a mean is at least, or at most, so large (one of the two is None): the whole interval
    decides, and one that holds the bound is inconclusive."""
    if not found.n:
        return Verdict(NOT_TESTABLE, f"{what}: no rows.")
    bound = at_least if at_most is None else at_most
    rule = AT_LEAST if at_most is None else AT_MOST
    row = Evidence(
        what, rule, found.mean, found.low, found.high, found.n, found.facts or found.clusters,
        bound, metric=metric, subset=subset,
    )  # fmt: skip
    ends = f"[{found.low:.3f}, {found.high:.3f}]" if found.known else "no interval"
    evidence = f"{what}: {found.mean:.3f} {ends}, {counted(found)}; wanted: {rule} {bound:g}."
    if found.clusters < FEWEST_FACTS:
        evidence += f" Only {found.clusters} independent facts."
    return Verdict.of([row], evidence)


def exactly(
    name: str, rule: str, margin: float, evidence: str, low: float, high: float | None = None, *,
    n: int = 0,
) -> Verdict:  # fmt: skip
    """The verdict on a counted or timed amount, or on the range from `low` to `high` that it can
    lie in, against a bound."""
    top = low if high is None else high
    middle = (low + top) / 2 if math.isfinite(top) else low
    return Verdict.of([Evidence(name, rule, middle, low, top, n, 0, margin, exact=True)], evidence)


def amount(d: Difference) -> str:
    """A difference as a reader wants it: "+0.120 [+0.050, +0.190], n = 48"."""
    middle, low, high = (f"{x:+.3f}".replace("-", "−") for x in (d.mean, d.low, d.high))
    return f"{middle} {f'[{low}, {high}]' if d.known else 'no interval'}, {counted(d)}"


def chance(p: float, at_floor: bool = False) -> str:
    """A p-value in words that never show more digits than it has. `at_floor`: so many units, or
    random permutations, cannot give a smaller one ("p ≤ 1e-4")."""
    if math.isnan(p):
        return "p undefined"
    if at_floor:
        return f"p ≤ {p:.0e}".replace("e-0", "e-") if p < 0.001 else f"p ≤ {p:.1g}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


SCORES = {  # what a claim can be read on, and how readers know it
    "f1_released": "F1 as released (end mark included)",
    "f1_ids": "F1 without end marks",
    "exact_match": "exact match, decoded",
    "agreement": "same decoded answer as before",
    "begins_with": "decoded answers that begin with the right one",
    "answer_nll_released": "loss per target token (logarithm of the perplexity, as released)",
    "token_accuracy": "target tokens right, teacher-forced",
    "answer_accuracy": "answer tokens right, teacher-forced",
    "prompt_accuracy": "answer tokens right with the prompt alone deciding what is edited",
    "answer_agreement": "first choices as before, teacher-forced",
    "right_answers": "answers with all tokens right, teacher-forced",
    "same_answers": "answers with all first choices as before, teacher-forced",
    "score": "score",
    "seconds_per_edit": "seconds per edit",
    "stored_floats": "stored numbers",
}
UNBOUNDED = ("answer_nll_released", "seconds_per_edit", "stored_floats")  # the others are shares
_SUBSETS = {
    "holdout": "held-out rephrases", "near": "prompts of the same relation",
    "upstream": "unrelated prompts", "general": "general tasks", "average": "average of an edit",
}  # fmt: skip


def best_of(metric: str) -> float:
    """The most that the mean of a score can be, inf where there is no such number."""
    return 1.0 if metric in SCORES and metric not in UNBOUNDED else math.inf


def named(metric: str, subset: str = "") -> str:
    """A score, and the prompts it is read on, as readers know them."""
    score = SCORES.get(metric, metric.replace("_", " "))
    return f"{score}; {_SUBSETS.get(subset, subset)}" if subset else score


def on(subset: str) -> str:
    """The prompts of a subset as readers know them."""
    return _SUBSETS.get(subset, subset)
