"""Tests of claims about scores. Most say only which rows are compared (`Pair`), and `compare` does
the rest; the others read means and shares.

Each function makes a `Test`. `metric` is a score column, `subset` the rows it is read on.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from lib.editors.base import UNEDITED
from lib.metrics.estimates import UNITS, by_fact, difference, estimate
from lib.metrics.intervals import Interval, holm
from lib.report.claims.verdict import (
    FAILS,
    FEWEST_FACTS,
    HOLDS,
    LEVEL,
    UNKNOWN,
    Material,
    Test,
    Verdict,
    bounded,
    claim_test,
    decide,
    one_bound,
    paired,
    scores,
)


class Pair(NamedTuple):
    """Two selections of rows, ours against theirs, in one score; `tests`: how many share the level,
    so that the interval is widened (Bonferroni)."""

    name: str
    metric: str
    ours: pd.DataFrame
    theirs: pd.DataFrame
    tests: int = 1


def compare(
    pairs: Iterable[Pair], what: str, margin: float, better: str = "higher", *,
    strictly: bool = False, chances: int = 1, note: str = "",
) -> Verdict:  # fmt: skip
    """One verdict over the differences of the same prompts in all pairs, as `decide` gives it.

    `chances`: how many such verdicts may each carry a claim; p-values are multiplied by it. `note`
    ends the evidence.
    """
    found = []
    for name, metric, ours, theirs, tests in pairs:
        d = paired(ours, theirs, metric, 1 - (1 - LEVEL) / tests)
        p = d.p if math.isnan(d.p) else min(1.0, chances * d.p)
        found.append((name, replace(d, p=p)))
    verdict = decide(found, what, margin, better, strictly=strictly)
    return Verdict(verdict.word, f"{verdict.evidence} {note}".strip())


def pick(rows: pd.DataFrame, **wanted: Hashable) -> pd.DataFrame:
    """The rows with these values: `pick(rows, editor="MELO", moment="end")`."""
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows


# Against other editors


@claim_test
def at_least(
    editor: str, others: Sequence[str], metric: str, subset: str = "edits", *, moment: str = "end",
    margin: float = 0.02, better: str = "higher", setting: str | None = None,
) -> Test:  # fmt: skip
    """`editor` scores at least as well as each of `others` on the same prompts.

    Fails if any other is significantly better (Holm). Holds if the interval of every difference
    (Bonferroni-widened) stays above -margin.
    """
    return _against(editor, others, metric, subset, moment, margin, better, setting)


@claim_test
def better_than(
    editor: str, others: Sequence[str], metric: str, subset: str = "edits", *, moment: str = "end",
    margin: float = 0.02, better: str = "higher", setting: str | None = None, missing: str = "",
) -> Test:  # fmt: skip
    """`editor` scores better than each of `others` on the same prompts.

    Holds if every difference is significant (Holm) and its Bonferroni-widened interval lies above
    zero. Fails if any other is significantly better, or the gain is shown to be at most `margin`.
    `missing` names, in the evidence, rivals that the claim means and that were not run.
    """
    how = {"strictly": True, "note": missing}
    return _against(editor, others, metric, subset, moment, margin, better, setting, **how)


def _against(
    editor: str, others: Sequence[str], metric: str, subset: str, moment: str, margin: float,
    better: str, setting: str | None, **how: Any,
) -> Test:  # fmt: skip
    def test(material: Material) -> Verdict:
        rows = pick(scores(material.records, metric, subset, setting), moment=moment)
        mine, n = pick(rows, editor=editor), len(others)
        pairs = [
            Pair(f"{editor} against {other}", metric, mine, pick(rows, editor=other), n)
            for other in others
        ]
        return compare(pairs, f"{metric}, {subset}", margin, better, **how)

    return test


@claim_test
def ahead_at_equal_edits(
    editor: str, others: Sequence[str], metric: str, subset: str = "edits", *,
    strictly: bool = False, margin: float = 0.05, setting: str | None = None, missing: str = "",
) -> Test:  # fmt: skip
    """After as many edits `editor` scores at least as well as each of `others` on the same prompts.

    Each rival is met at its own last edit: by the checkpoint of `editor` with as many edits, or by
    its end. Fails, holds and stays open as `decide` says; `strictly`: it must score better.
    `missing` names, in the evidence, rivals that the claim means and that were not planned.
    """

    def test(material: Material) -> Verdict:
        rows = scores(material.records, metric, subset, setting)
        mine = pick(rows, editor=editor)
        mine = mine[mine["moment"].isin(["checkpoint", "end"])]
        pairs = []
        for other in others:
            theirs = pick(rows, editor=other, moment="end")
            edits = theirs["n_edits"].max()
            met = f" after {edits:g} edits" if edits < mine["n_edits"].max() else ""
            then = pick(mine, n_edits=edits)
            pairs.append(Pair(f"against {other}{met}", metric, then, theirs, len(others)))
        what = f"{metric}, {subset}, {editor}"
        return compare(pairs, what, margin, strictly=strictly, note=missing)

    return test


@claim_test
def family_ahead(
    ours: Sequence[str], others: Sequence[str], parts: Mapping[str, str], *, margin: float = 0.02,
    setting: str | None = None,
) -> Test:  # fmt: skip
    """After the last edit the mean editor of `ours` scores better than that of `others` on the same
    prompts, in every part (subset to score column)."""

    def test(material: Material) -> Verdict:
        pairs, met = [], set()
        for subset, column in parts.items():
            rows = _last(scores(material.records, column, subset, setting))
            sides = [rows[rows["editor"].isin(names)] for names in (ours, others)]
            met |= {name for side in sides for name in side["editor"]}
            pairs.append(Pair(subset, column, *sides, len(parts)))
        left = [name for name in (*ours, *others) if name not in met]
        note = f"Not among the editors with all edits: {', '.join(left)}." if left else ""
        what = "means over the editors of each side"
        return compare(pairs, what, margin, strictly=True, note=note)

    return test


@claim_test
def none_keeps(parts: Mapping[str, str], bound: float, *, setting: str | None = None) -> Test:
    """No editor has all `parts` (subset to score column) above `bound` after the last edit.

    Holds if every editor has a part whose interval (Bonferroni over the parts) lies below the
    bound; fails if one has all of them above it (Bonferroni over the editors).
    """

    def test(material: Material) -> Verdict:
        rows = {
            subset: _last(scores(material.records, column, subset, setting))
            for subset, column in parts.items()
        }
        editors = list(dict.fromkeys(name for part in rows.values() for name in part["editor"]))
        if not editors:
            return Verdict(UNKNOWN, "No editor was scored after the last edit.")
        short, keeping, told = [], [], []
        for editor in editors:
            below, above = (
                [_share(rows[s], c, editor, 1 - (1 - LEVEL) / n) for s, c in parts.items()]
                for n in (len(parts), len(editors))
            )
            if any(part.high < bound and part.clusters >= FEWEST_FACTS for part in below):
                short.append(editor)
            if all(part.low > bound and part.clusters >= FEWEST_FACTS for part in above):
                keeping.append(editor)
            worst = min(below, key=lambda part: part.mean)
            told.append((worst.mean, f"{editor} {worst.mean:.2f}"))
        nearest = ", ".join(text for _, text in sorted(told, reverse=True)[:3])
        evidence = (
            f"{len(short)} of {len(editors)} editors have a part below {bound:g} by its interval, "
            f"{len(keeping)} have all above it{': ' if keeping else ''}{', '.join(keeping)}. The "
            f"worst part is highest for {nearest}."
        )
        verdict = FAILS if keeping else HOLDS if len(short) == len(editors) else UNKNOWN
        return Verdict(verdict, evidence)

    return test


# Against before, and over the steps of a run


@claim_test
def no_worse_than_before(
    editor: str, metric: str, subset: str = "upstream", *, margin: float = 0.02,
    better: str = "higher", setting: str | None = None,
) -> Test:  # fmt: skip
    """After all edits `editor` answers the prompts of `subset` as well as the unedited backbone."""

    def test(material: Material) -> Verdict:
        rows = scores(material.records, metric, subset, setting)
        before = pick(rows, editor=editor, moment="before")
        if before.empty:  # the unedited scores may stand in another editor's run
            before = pick(rows, moment="before")
        after = pick(rows, editor=editor, moment="end")
        pair = Pair(f"{editor} after all edits against before", metric, after, before)
        return compare([pair], f"{metric}, {subset}", margin, better)

    return test


@claim_test
def flat_retention(
    editor: str, metric: str, subset: str = "edits", *, margin: float = 0.05,
    better: str = "higher", setting: str | None = None,
) -> Test:  # fmt: skip
    """Edits score after the whole stream as right after their own batch; the oldest third too."""

    def test(material: Material) -> Verdict:
        rows = pick(scores(material.records, metric, subset, setting), editor=editor)
        ages = rows["edit_index"]
        oldest = ages <= (ages.max() + 1) / 3 - 1 if len(rows) else ages.astype(bool)
        old = rows[rows["record"].isin(set(rows.loc[oldest, "record"]))]
        pairs = [
            Pair(f"{which}, end against own moment", metric,
                 pick(part, moment="end"), pick(part, moment="own"))
            for which, part in (("all edits", rows), ("oldest third", old))
        ]  # fmt: skip
        return compare(pairs, f"{metric}, {subset}", margin, better)

    return test


@claim_test
def stable_over_steps(
    editor: str, metric: str, subset: str = "edits", *, margin: float = 0.05,
    better: str = "higher", setting: str | None = None,
) -> Test:  # fmt: skip
    """What was edited by an earlier checkpoint scores after the last step as it did then.

    One comparison per checkpoint, on the rows of the edits applied so far (`edit_index`).
    """

    def test(material: Material) -> Verdict:
        rows = pick(scores(material.records, metric, subset, setting), editor=editor)
        rows = rows[rows["edit_index"] < rows["n_edits"]]
        end, earlier = pick(rows, moment="end"), pick(rows, moment="checkpoint")
        if earlier.empty:
            return Verdict(
                UNKNOWN, f"No checkpoint of {editor} before the end: nothing to compare."
            )
        pairs = [
            Pair(f"end against {then} edits", metric, end, part)
            for then, part in earlier.groupby("n_edits")
        ]
        return compare(pairs, f"{metric}, {subset} edited by then, {editor}", margin, better)

    return test


# Over a sweep


@claim_test
def stable_over(
    editor: str, sweep: str, metric: str, subset: str = "edits", *, moment: str = "end",
    margin: float = 0.05, better: str = "higher", setting: str | None = None,
) -> Test:  # fmt: skip
    """Scores of the same prompts do not fall as the swept value grows from its smallest."""
    return _over(editor, sweep, metric, subset, moment, margin, better, setting)


@claim_test
def better_at_largest(
    editor: str, sweep: str, metric: str, subset: str = "edits", *, margin: float = 0.02,
    setting: str | None = None,
) -> Test:  # fmt: skip
    """An editor ends better with the largest swept value than with the smallest."""
    how = {"largest": True, "strictly": True}
    return _over(editor, sweep, metric, subset, "end", margin, "higher", setting, **how)


def _over(
    editor: str, sweep: str, metric: str, subset: str, moment: str, margin: float, better: str,
    setting: str | None, *, largest: bool = False, strictly: bool = False,
) -> Test:  # fmt: skip
    """Every value of a sweep, or only the largest, against the smallest."""

    def test(material: Material) -> Verdict:
        rows = scores(material.records, metric, subset, setting, sweep)
        rows = pick(rows, editor=editor, moment=moment)
        by_value = dict(list(rows.groupby(rows["value"].astype(float))))
        if len(by_value) < 2:
            known = ", ".join(f"{value:g}" for value in by_value) or "none"
            return Verdict(UNKNOWN, f"Too few values of {sweep} were run with {editor} ({known}).")
        (first, base), *others = by_value.items()
        pairs = [
            Pair(f"{value:g} against {first:g}", metric, part, base)
            for value, part in (others[-1:] if largest else others)
        ]
        what = f"{metric}, {subset}, {editor} by {sweep}"
        return compare(pairs, what, margin, better, strictly=strictly)

    return test


@claim_test
def better_variant(
    editor: str, sweep: str, value: str, others: Sequence[str], metric: str, subset: str = "edits",
    *, margin: float = 0.02, setting: str | None = None,
) -> Test:  # fmt: skip
    """With the swept value `value` an editor ends better than with each of `others`."""

    def test(material: Material) -> Verdict:
        rows = scores(material.records, metric, subset, setting, sweep)
        rows = pick(rows, editor=editor, moment="end")
        mine, n = pick(rows, value=value), len(others)
        pairs = [
            Pair(f"{value} against {other}", metric, mine, pick(rows, value=other), n)
            for other in others
        ]
        return compare(pairs, f"{metric}, {subset}, {editor} by {sweep}", margin, strictly=True)

    return test


# By m, the number of facts edited at once: a sweep that is read right after the edits

METRIC = "answer_accuracy"  # share of answer tokens that are the teacher-forced argmax (malmen 5)
SWEEP = "m"
NAMES = {"edits": "ES", "holdout": "GS", "upstream": "LS"}


@claim_test
def better_at_sizes(
    editor: str, others: Sequence[str], subset: str, usual: int, *, metric: str = METRIC,
    margin: float = 0.02, setting: str | None = None, behind: bool = False,
) -> Test:  # fmt: skip
    """`editor` scores better than each of `others`, at the usual m and at the largest common one;
    with `behind` each of `others` better than `editor`.

    All comparisons count together (Holm); the verdict is that of `decide`, strictly.
    """
    duels = [(other, editor) if behind else (editor, other) for other in others]

    def test(material: Material) -> Verdict:
        rows = right_after(material, metric, subset, setting)
        pairs = [pair for duel in duels for pair in _pairs(rows, *duel, usual, metric, len(duels))]
        return compare(pairs, _what(metric, subset), margin, strictly=True)

    return test


@claim_test
def better_on_some(
    editor: str, others: Sequence[str], subsets: Sequence[str], usual: int, *,
    metric: str = METRIC, margin: float = 0.02, setting: str | None = None,
) -> Test:  # fmt: skip
    """`editor` scores better than all `others` on at least one of `subsets`.

    Each subset is a test of its own at a level divided by their number; fails if all of them fail.
    """

    def test(material: Material) -> Verdict:
        found, n = [], len(subsets)
        for subset in subsets:
            rows = right_after(material, metric, subset, setting)
            pairs = [
                pair
                for other in others
                for pair in _pairs(rows, editor, other, usual, metric, len(others) * n)
            ]
            what = _what(metric, subset)
            found.append(compare(pairs, what, margin, strictly=True, chances=n))
        words = {one.word for one in found}
        word = HOLDS if HOLDS in words else FAILS if words == {FAILS} else UNKNOWN
        return Verdict(word, " ".join(one.evidence for one in found))

    return test


@claim_test
def gap_grows(
    editor: str, other: str, subsets: Sequence[str], *, metric: str = METRIC,
    margin: float = 0.02, setting: str | None = None,
) -> Test:  # fmt: skip
    """The lead of `editor` over `other` on a prompt is larger at the largest common m than at the
    smallest; differences of differences on the same prompts, all `subsets` together."""

    def test(material: Material) -> Verdict:
        pairs: list[Pair] = []
        sizes: list[int] = []
        for subset in subsets:
            rows = right_after(material, metric, subset, setting)
            sizes = common_sizes(rows, editor, other)
            if len(sizes) < 2:
                return Verdict(
                    UNKNOWN, f"{editor} and {other} ran together at {listed(sizes)} only."
                )
            leads = [_lead(pick(rows, m=m), editor, other, metric) for m in (sizes[-1], sizes[0])]
            pairs.append(Pair(NAMES.get(subset, subset), "lead", *leads))
        what = f"lead of {editor} over {other}, m = {sizes[-1]} against m = {sizes[0]}"
        return compare(pairs, what, margin, strictly=True)

    return test


def right_after(material: Material, metric: str, subset: str, setting: str | None) -> pd.DataFrame:
    """The rows of every m at the moment right after their own batch."""
    return pick(scores(material.records, metric, subset, setting, SWEEP), moment="own")


def common_sizes(rows: pd.DataFrame, *editors: str) -> list[int]:
    """The m at which all these editors ran."""
    known = [set(rows.loc[rows["editor"] == name, "m"]) for name in editors]
    return sorted(int(m) for m in set.intersection(*known))


def _pairs(
    rows: pd.DataFrame, editor: str, other: str, usual: int, metric: str, rivals: int
) -> list[Pair]:
    """Two editors at the usual and the largest common m."""
    known = common_sizes(rows, editor, other)
    sizes = sorted({m for m in (usual, *known[-1:]) if m in known}) or [usual]
    found = []
    for m in sizes:
        sides = [pick(rows, m=m, editor=name) for name in (editor, other)]
        found.append(
            Pair(f"{editor} against {other}, m = {m}", metric, *sides, len(sizes) * rivals)
        )
    return found


def _lead(rows: pd.DataFrame, editor: str, other: str, metric: str) -> pd.DataFrame:
    """The score of `editor` minus that of `other` (`lead`), prompt by prompt."""
    keys = ["setting", "seed", "record", "prompt"]
    means = [rows[rows["editor"] == name].groupby(keys)[metric].mean() for name in (editor, other)]
    lead = (means[0] - means[1]).dropna().rename("lead").reset_index()
    named = [name for name in UNITS if name in rows]
    return lead.merge(rows.drop_duplicates(keys)[[*keys, *named]], on=keys) if named else lead


def _what(metric: str, subset: str) -> str:
    return f"{NAMES.get(subset, subset)} ({metric.replace('_', ' ')})"


def listed(sizes: Sequence[int]) -> str:
    """Sizes in words: "m = 8, 32"."""
    return "m = " + ", ".join(map(str, sizes)) if sizes else "no common m"


# Two readings of the same rows


@claim_test
def read_higher_by_all(
    column: str, than: str, subset: str = "edits", *, margin: float = 0.02,
    setting: str | None = None,
) -> Test:  # fmt: skip
    """After the last edit the score `column` is higher than the score `than` of the same answers,
    in the mean over all editors; the evidence counts those of which it is significantly so."""

    def test(material: Material) -> Verdict:
        rows = _last(scores(material.records, column, subset, setting))
        rows = rows[rows[than].notna()]
        higher, lower = (rows.assign(read=rows[name].astype(float)) for name in (column, than))
        names = list(dict.fromkeys(rows["editor"]))
        single = [
            paired(pick(higher, editor=name), pick(lower, editor=name), "read") for name in names
        ]
        adjusted = holm([one.p for one in single])
        sure = sum(p < 1 - LEVEL and one.mean > 0 for p, one in zip(adjusted, single, strict=True))
        note = f"Significant of {sure} of {len(names)} single editors (Holm)."
        pair = Pair("mean over editors", "read", higher, lower)
        what = f"{column} against {than}, {subset}"
        return compare([pair], what, margin, strictly=True, note=note)

    return test


@claim_test
def reads_higher(
    editor: str, metric: str, other: str, subset: str = "edits", *, moment: str = "end",
    margin: float = 0.02, strictly: bool = True,
) -> Test:  # fmt: skip
    """The same rows score higher read as `metric` than read as `other`; not `strictly`: at most
    `margin` lower. Verdicts as in `decide`."""

    def test(material: Material) -> Verdict:
        rows = _rows(material, editor, metric, subset, moment)
        if other not in rows:
            return Verdict(UNKNOWN, f"No run scored {other}.")
        rows = rows[rows[other].notna()]
        left, right = (rows[name].astype(float) for name in (metric, other))
        sides = (rows.assign(read=side) for side in (left, right))
        pair = (f"{metric} minus {other}", difference(*sides, "read"))
        return decide([pair], f"readings of {subset}, {editor}", margin, strictly=strictly)

    return test


@claim_test
def hidden_by_forcing(editor: str, *, moment: str = "end") -> Test:
    """There are edits that score in full when the model is fed the answer and the editor may see it
    (`answer_accuracy`), and not when it decides on the prompt alone (`prompt_accuracy`).

    One such edit is enough; none does not show that there can be none.
    """

    def test(material: Material) -> Verdict:
        rows = _rows(material, editor, "prompt_accuracy", "edits", moment)
        fed, alone = (rows[name].astype(float) for name in ("answer_accuracy", "prompt_accuracy"))
        hidden = (fed == 1.0) & (alone < 1.0)
        evidence = (
            f"{int(hidden.sum())} of {len(rows)} edits of {editor} are right when the answer is "
            "fed and counted, and not when the prompt alone decides what is edited."
        )
        return Verdict(HOLDS if hidden.any() else UNKNOWN, evidence)

    return test


# Two subsets, and means


@claim_test
def ahead_on_subset(
    editor: str, metric: str, subset: str, other: str, *, moment: str = "end", margin: float = 0.02,
) -> Test:  # fmt: skip
    """Prompts of `subset` score better than those of `other` about the same facts.

    A pair is a fact (and seed): the mean of its prompts in each subset.
    """

    def test(material: Material) -> Verdict:
        sides = [by_fact(_rows(material, editor, metric, name, moment)) for name in (subset, other)]
        pair = (f"{subset} minus {other} of the same facts", paired(*sides, metric))
        return decide([pair], f"{metric}, {editor}", margin, strictly=True)

    return test


@claim_test
def mean_within(
    editor: str, metric: str, subset: str, *, at_least: float | None = None,
    at_most: float | None = None, moment: str = "end",
) -> Test:  # fmt: skip
    """The mean score of an editor on the rows of `subset` is at least, or at most, so large."""
    one_bound("mean_within", at_least, at_most)

    def test(material: Material) -> Verdict:
        rows = _rows(material, editor, metric, subset, moment)
        found = estimate(rows, metric)
        return bounded(found, f"{metric}, {subset}, {editor}", at_least, at_most)

    return test


@claim_test
def left_to_backbone(
    editor: str, subset: str = "edits", *, at_least: float | None = None,
    at_most: float | None = None, moment: str = "end",
) -> Test:  # fmt: skip
    """The share of decoded prompts of `subset` that an editor's own routing gives to the unedited
    model is at least, or at most, so large."""
    one_bound("left_to_backbone", at_least, at_most)

    def test(material: Material) -> Verdict:
        rows = _rows(material, editor, "route", subset, moment)
        found = estimate(
            rows.assign(deferred=(rows["route"] == UNEDITED).astype(float)), "deferred"
        )
        what = f"Share of {subset} prompts that {editor} leaves to the unedited model"
        return bounded(found, what, at_least, at_most)

    return test


# Rows


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows at the end of the editors that made the most edits."""
    end = rows[rows["moment"] == "end"]
    return end[end["n_edits"] == end["n_edits"].max()]


def _share(rows: pd.DataFrame, column: str, editor: str, level: float) -> Interval:
    mine = rows[rows["editor"] == editor]
    return estimate(mine, column, level=level)


def _rows(material: Material, editor: str, metric: str, subset: str, moment: str) -> pd.DataFrame:
    rows = scores(material.records, metric, subset, None)
    return pick(rows, editor=editor, moment=moment)
