"""Tests of claims about scores. Most say only which rows are compared (`Pair`), and `compare` does
the rest; the others read means and shares.

Each function makes a `Test`. `metric` is a score column, `subset` the rows it is read on.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lib.editors.base import UNEDITED
from lib.metrics.estimates import UNITS, by_fact, difference, estimate
from lib.metrics.intervals import Interval, holm
from lib.report.claims.verdict import (
    AT_LEAST,
    BELOW,
    LEVEL,
    NOT_TESTABLE,
    UNTOLD,
    Compared,
    Evidence,
    Material,
    Test,
    Verdict,
    best_of,
    bounded,
    changed,
    claim_test,
    decide,
    exactly,
    named,
    on,
    one_bound,
    paired,
    scores,
)


@dataclass(frozen=True)
class Pair:
    """Two selections of rows, ours against theirs, in one score; `tests`: how many share the level,
    so that the interval is widened (Bonferroni). `best`: the mean that no editor can exceed, that
    of the score's scale if None. `margin`: its own, if it has another than the rest."""

    name: str
    metric: str
    ours: pd.DataFrame
    theirs: pd.DataFrame
    tests: int = 1
    best: float | None = None
    margin: float | None = None


def compare(
    pairs: Iterable[Pair], what: str, margin: float, better: str = "higher", *,
    strictly: bool = False, chances: int = 1, subset: str = "", group: str = "", note: str = "",
) -> Verdict:  # fmt: skip
    """One verdict over the differences of the same prompts in all pairs, as `decide` gives it.

    `chances`: how many such verdicts may each carry a claim; p-values are multiplied by it. `note`
    ends the evidence; `subset` and `group` stand in its rows (`Evidence`).
    """
    found, pairs = [], list(pairs)
    for pair in pairs:
        level = 1 - (1 - LEVEL) / pair.tests
        d = paired(pair.ours, pair.theirs, pair.metric, level)
        p = d.p if math.isnan(d.p) else min(1.0, chances * d.p)
        theirs = pair.theirs[pair.metric].astype(float).mean() if d.n else math.nan
        best = best_of(pair.metric) if pair.best is None else pair.best
        moved = changed(pair.ours, pair.theirs, pair.metric)
        told = (theirs, best - theirs, group, moved, level, pair.margin)
        found.append(Compared(pair.name, replace(d, p=p), *told))
    metric = ", ".join(dict.fromkeys(pair.metric for pair in pairs))
    how = {"strictly": strictly, "metric": metric, "subset": subset, "note": note}
    return decide(found, what, margin, better, **how)


def pick(rows: pd.DataFrame, **wanted: Hashable) -> pd.DataFrame:
    """The rows with these values: `pick(rows, editor="MELO", moment="end")`."""
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows


# Against other editors


@claim_test
def at_least(
    editor: str, others: Sequence[str], metric: str, subset: str = "edits", *, moment: str = "end",
    margin: float = 0.05, better: str = "higher", setting: str | None = None,
) -> Test:  # fmt: skip
    """`editor` scores at least as well as each of `others` on the same prompts.

    Every difference must be "not worse" (`verdict.outcome`), by its Bonferroni-widened interval.
    """
    return _against(editor, others, metric, subset, moment, margin, better, setting)


@claim_test
def better_than(
    editor: str, others: Sequence[str], metric: str, subset: str = "edits", *, moment: str = "end",
    margin: float = 0.05, better: str = "higher", setting: str | None = None, missing: str = "",
) -> Test:  # fmt: skip
    """`editor` scores better than each of `others` on the same prompts.

    Every difference must be "better" (`verdict.outcome`), by its Bonferroni-widened interval.
    `missing` names, in the evidence, rivals that the claim means and that were not run.
    """
    how = {"strictly": True, "note": missing}
    return _against(editor, others, metric, subset, moment, margin, better, setting, **how)


def _against(
    editor: str, others: Sequence[str], metric: str, subset: str, moment: str, margin: float,
    better: str, setting: str | None, **how: Any,
) -> Test:  # fmt: skip
    def test(material: Material) -> Verdict:
        rows = scores(material.records, metric, subset, setting)
        pairs = []
        for other in others:
            mine, theirs, met = _met(rows, editor, other, moment)
            pairs.append(Pair(f"{editor} against {other}{met}", metric, mine, theirs, len(others)))
        return compare(pairs, named(metric, subset), margin, better, subset=subset, **how)

    return test


def _met(
    rows: pd.DataFrame, editor: str, other: str, moment: str = "end"
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """The rows of two editors at a moment. At the end, where one of them makes fewer edits: its
    end and the other's checkpoint after as many, with words that say so."""
    sides = [pick(rows, editor=name) for name in (editor, other)]
    ends = [pick(side, moment="end")["n_edits"].max() for side in sides]
    if moment != "end" or ends[0] == ends[1] or any(map(math.isnan, ends)):
        return *(pick(side, moment=moment) for side in sides), ""
    held = [side[side["moment"].isin(["checkpoint", "end"])] for side in sides]
    return *(pick(side, n_edits=min(ends)) for side in held), f" after {min(ends):g} edits"


@claim_test
def ahead_at_equal_edits(
    editor: str, others: Sequence[str], metric: str, subset: str = "edits", *,
    strictly: bool = False, margin: float = 0.05, setting: str | None = None, missing: str = "",
) -> Test:  # fmt: skip
    """After as many edits `editor` scores at least as well as each of `others` on the same prompts.

    Where one of the two makes fewer edits, they are met after as many (`_met`). Verdicts as in
    `decide`; `strictly`: it must score better.
    `missing` names, in the evidence, rivals that the claim means and that were not planned: without
    them it can fail and not hold.
    """

    def test(material: Material) -> Verdict:
        rows = scores(material.records, metric, subset, setting)
        pairs = []
        for other in others:
            mine, theirs, met = _met(rows, editor, other)
            pairs.append(Pair(f"against {other}{met}", metric, mine, theirs, len(others)))
        what = f"{named(metric, subset)}, {editor}"
        found = compare(pairs, what, margin, strictly=strictly, subset=subset, note=missing)
        absent = [Evidence(missing, UNTOLD, metric=metric, subset=subset)] if missing else []
        return Verdict.of([*found.rows, *absent], found.evidence, found.marks)

    return test


@claim_test
def at_least_in_parts(
    editor: str, others: Sequence[str], parts: Mapping[str, str], *, margin: float = 0.05,
    setting: str | None = None,
) -> Test:  # fmt: skip
    """After as many edits `editor` scores at least as well as each of `others` on the same prompts
    of every part (subset to score column)."""

    def test(material: Material) -> Verdict:
        pairs, tests = [], len(parts) * len(others)
        for subset, column in parts.items():
            rows = scores(material.records, column, subset, setting)
            for other in others:
                mine, theirs, met = _met(rows, editor, other)
                name = f"{named(column, subset)}, against {other}{met}"
                pairs.append(Pair(name, column, mine, theirs, tests))
        return compare(pairs, f"every part, {editor}", margin)

    return test


@claim_test
def alike(
    sides: Sequence[Mapping[str, str]], parts: Mapping[str, str], *, margin: float = 0.05,
    setting: str | None = None,
) -> Test:  # fmt: skip
    """After as many edits two sides score the same to within the margin on the same prompts of
    every part (subset to score column): neither is worse than the other.

    A side names its `editor` and, where it is a run of a sweep, its `sweep` and `value`.
    """
    names = [" ".join(side.values()) for side in sides]

    def rows_of(side: Mapping[str, str], rows: pd.DataFrame) -> pd.DataFrame:
        wanted = {name: found for name, found in side.items() if name != "sweep"}
        return pick(rows[rows["moment"].isin(["checkpoint", "end"])], **wanted)

    def test(material: Material) -> Verdict:
        pairs = []
        for subset, column in parts.items():
            one, other = (
                rows_of(
                    side, scores(material.records, column, subset, setting, side.get("sweep", ""))
                )
                for side in sides
            )
            most = max({*one["n_edits"]} & {*other["n_edits"]}, default=0)
            found = dict(
                zip(names, (pick(rows, n_edits=most) for rows in (one, other)), strict=True)
            )
            for mine, theirs in (names, names[::-1]):
                name = f"{named(column, subset)}, {mine} against {theirs}"
                pairs.append(Pair(name, column, found[mine], found[theirs], len(parts)))
        return compare(pairs, "every part, both ways", margin)

    return test


@claim_test
def keeps(
    editor: str, parts: Mapping[str, str], bound: float, *, setting: str | None = None
) -> Test:
    """After its last edit `editor` has every part (subset to score column) above `bound`, by
    intervals that are widened for the number of parts."""

    def test(material: Material) -> Verdict:
        found, level = [], 1 - (1 - LEVEL) / len(parts)
        for subset, column in parts.items():
            rows = pick(scores(material.records, column, subset, setting), moment="end")
            share = _share(rows, column, editor, level)
            found.append(
                Evidence(
                    named(column, subset), AT_LEAST if share.n else UNTOLD, share.mean, share.low,
                    share.high, share.n, share.facts or share.clusters, bound, metric=column,
                    subset=subset, level=level,
                )
            )  # fmt: skip
        told = "; ".join(
            f"{row.name} {row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in found
        )
        return Verdict.of(found, f"{editor}: {told}; wanted: at least {bound:g} in every part.")

    return test


@claim_test
def family_ahead(
    ours: Sequence[str], others: Sequence[str], parts: Mapping[str, str], *, margin: float = 0.05,
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
            pairs.append(Pair(named(column, subset), column, *sides, len(parts)))
        left = [name for name in (*ours, *others) if name not in met]
        note = f"Not among the editors with all edits: {', '.join(left)}." if left else ""
        what = "means over the editors of each side"
        return compare(pairs, what, margin, strictly=True, note=note)

    return test


@claim_test
def none_keeps(parts: Mapping[str, str], bound: float, *, setting: str | None = None) -> Test:
    """No editor has all `parts` (subset to score column) above `bound` after the last edit.

    Holds if every editor has a part whose interval (Bonferroni over the parts) lies below the
    bound; fails if one has none below it (Bonferroni over the editors).
    """

    def test(material: Material) -> Verdict:
        rows = {
            subset: _last(scores(material.records, column, subset, setting))
            for subset, column in parts.items()
        }
        editors = list(dict.fromkeys(name for part in rows.values() for name in part["editor"]))
        if not editors:
            return Verdict(NOT_TESTABLE, "No editor was scored after the last edit.")
        found = []
        for editor in editors:
            below, above = (
                [_share(rows[s], c, editor, 1 - (1 - LEVEL) / n) for s, c in parts.items()]
                for n in (len(parts), len(editors))
            )
            worst = min(below, key=lambda part: part.mean)
            ends = min(part.low for part in above), min(part.high for part in below)
            found.append(
                Evidence(
                    f"worst part of {editor}", BELOW, worst.mean, *ends, worst.n,
                    min(part.clusters for part in below), bound,
                    metric=", ".join(dict.fromkeys(parts.values())), subset=", ".join(parts),
                )
            )  # fmt: skip
        told = sorted((row.mean, row.name.removeprefix("worst part of ")) for row in found)[::-1]
        keeping = [row.name.removeprefix("worst part of ") for row in found if row.low >= bound]
        nearest = ", ".join(f"{editor} {mean:.2f}" for mean, editor in told[:3])
        evidence = (
            f"{sum(row.high < bound for row in found)} of {len(editors)} editors have a part below "
            f"{bound:g} by its interval, {len(keeping)} have all above it"
            f"{': ' if keeping else ''}{', '.join(keeping)}. The worst part is highest for "
            f"{nearest}."
        )
        return Verdict.of(found, evidence)

    return test


# Against before, and over the steps of a run


@claim_test
def no_worse_than_before(
    editor: str, metric: str, subset: str = "upstream", *, margin: float = 0.05,
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
        return compare([pair], named(metric, subset), margin, better, subset=subset)

    return test


@claim_test
def flat_retention(
    editor: str, metric: str, subset: str = "edits", *, margin: float = 0.05,
    better: str = "higher", setting: str | None = None,
) -> Test:  # fmt: skip
    """Edits score after the whole stream as right after their own batch; the older half too, at
    twice the margin: so much it has lost if all edits lost the margin and the newer half nothing.
    """

    def test(material: Material) -> Verdict:
        rows = pick(scores(material.records, metric, subset, setting), editor=editor)
        ages = rows["edit_index"]
        oldest = ages <= (ages.max() + 1) / 2 - 1 if len(rows) else ages.astype(bool)
        old = rows[rows["record"].isin(set(rows.loc[oldest, "record"]))]
        pairs = [
            Pair(f"{which}, end against own moment", metric,
                 pick(part, moment="end"), pick(part, moment="own"), margin=own)
            for which, part, own in (("all edits", rows, None), ("older half", old, 2 * margin))
        ]  # fmt: skip
        return compare(pairs, named(metric, subset), margin, better, subset=subset)

    return test


@claim_test
def stable_over_steps(
    editor: str, metric: str, subset: str = "edits", *, margin: float = 0.05,
    better: str = "higher", setting: str | None = None,
) -> Test:  # fmt: skip
    """Edits score after the last step as at their own moment, right after their own batch.

    Read on all edits that both moments have. Where nothing was scored at the own moment, each edit
    is read at the first checkpoint after it.
    """

    def test(material: Material) -> Verdict:
        rows = pick(scores(material.records, metric, subset, setting), editor=editor)
        rows = rows[rows["edit_index"] < rows["n_edits"]]
        end, own, name = pick(rows, moment="end"), pick(rows, moment="own"), "their own moment"
        if own.empty:
            earlier = pick(rows, moment="checkpoint").sort_values("n_edits", kind="stable")
            own = earlier[earlier["n_edits"] < end["n_edits"].max()]
            own = own.drop_duplicates(["setting", "seed", "record", "prompt"])
            name = "the first checkpoint after them"
        if own.empty:
            return Verdict(NOT_TESTABLE, f"Nothing of {editor} was scored before the last step.")
        pair = Pair(f"the end against {name}", metric, end, own)
        what = f"{named(metric, subset)}, {editor}"
        return compare([pair], what, margin, better, subset=subset)

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
    editor: str, sweep: str, metric: str, subset: str = "edits", *, margin: float = 0.05,
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
            return Verdict(
                NOT_TESTABLE, f"Too few values of {sweep} were run with {editor} ({known})."
            )
        (first, base), *others = by_value.items()
        pairs = [
            Pair(f"{value:g} against {first:g}", metric, part, base)
            for value, part in (others[-1:] if largest else others)
        ]
        what = f"{named(metric, subset)}, {editor} by {sweep}"
        return compare(pairs, what, margin, better, strictly=strictly, subset=subset)

    return test


@claim_test
def better_variant(
    editor: str, sweep: str, value: str, others: Sequence[str], metric: str, subset: str = "edits",
    *, margin: float = 0.05, setting: str | None = None,
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
        what = f"{named(metric, subset)}, {editor} by {sweep}"
        return compare(pairs, what, margin, strictly=True, subset=subset)

    return test


# By m, the number of facts edited at once: a sweep that is read right after the edits

METRIC = "answer_accuracy"  # share of answer tokens that are the teacher-forced argmax (malmen 5)
SWEEP = "m"
NAMES = {"edits": "ES", "holdout": "GS", "upstream": "LS"}


@claim_test
def better_at_sizes(
    editor: str, others: Sequence[str], subset: str, usual: int, *, metric: str = METRIC,
    margin: float = 0.05, setting: str | None = None, behind: bool = False,
) -> Test:  # fmt: skip
    """`editor` scores better than each of `others`, at the usual m and at the largest common one;
    with `behind` each of `others` better than `editor`.

    All comparisons count together (Holm); the verdict is that of `decide`, strictly.
    """
    duels = [(other, editor) if behind else (editor, other) for other in others]

    def test(material: Material) -> Verdict:
        rows, best = right_after(material, metric, subset, setting), _best(material, metric, subset)
        pairs = [
            pair for duel in duels for pair in _pairs(rows, *duel, usual, metric, len(duels), best)
        ]
        return compare(pairs, _what(metric, subset), margin, strictly=True, subset=subset)

    return test


@claim_test
def better_on_some(
    editor: str, others: Sequence[str], subsets: Sequence[str], usual: int, *,
    metric: str = METRIC, margin: float = 0.05, setting: str | None = None,
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
                for pair in _pairs(rows, editor, other, usual, metric, len(others) * n, 1.0)
            ]
            what = _what(metric, subset)
            how = {"strictly": True, "chances": n, "subset": subset, "group": subset}
            found.append(compare(pairs, what, margin, **how))
        rows = [row for one in found for row in one.rows]
        return Verdict.of(rows, " ".join(one.evidence for one in found))

    return test


@claim_test
def gap_grows(
    editor: str, other: str, subsets: Sequence[str], *, metric: str = METRIC,
    margin: float = 0.05, setting: str | None = None,
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
                    NOT_TESTABLE, f"{editor} and {other} ran together at {listed(sizes)} only."
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
    rows: pd.DataFrame, editor: str, other: str, usual: int, metric: str, rivals: int, best: float
) -> list[Pair]:
    """Two editors at the usual and the largest common m; `best` as in `Pair`."""
    known = common_sizes(rows, editor, other)
    sizes = sorted({m for m in (usual, *known[-1:]) if m in known}) or [usual]
    found = []
    for m in sizes:
        sides = [pick(rows, m=m, editor=name) for name in (editor, other)]
        name = f"{editor} against {other}, m = {m}"
        found.append(Pair(name, metric, *sides, len(sizes) * rivals, best))
    return found


def _best(material: Material, metric: str, subset: str) -> float:
    """The most that a share can be: of unrelated prompts what the unedited model gets right, which
    is all that an edit can leave alone; of others 1."""
    rows = material.records
    before = rows[(rows["subset"] == subset) & (rows["moment"] == "before") & rows[metric].notna()]
    return float(before[metric].mean()) if subset == "upstream" and len(before) else 1.0


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
    column: str, than: str, subset: str = "edits", *, margin: float = 0.05,
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
        pair = Pair("mean over editors", "read", higher, lower, best=best_of(column))
        what = f"{named(column)} against {named(than)}; {on(subset)}"
        return compare([pair], what, margin, strictly=True, subset=subset, note=note)

    return test


@claim_test
def reads_higher(
    editor: str, metric: str, other: str, subset: str = "edits", *, moment: str = "end",
    margin: float = 0.05, strictly: bool = True,
) -> Test:  # fmt: skip
    """The same rows score higher read as `metric` than read as `other`; not `strictly`: at most
    `margin` lower. Verdicts as in `decide`."""

    def test(material: Material) -> Verdict:
        rows = _rows(material, editor, metric, subset, moment)
        if other not in rows:
            return Verdict(NOT_TESTABLE, f"No run scored {named(other)}.")
        rows = rows[rows[other].notna()]
        left, right = (rows[name].astype(float) for name in (metric, other))
        sides = (rows.assign(read=side) for side in (left, right))
        room = best_of(metric) - right.mean()
        found = difference(*sides, "read")
        pair = Compared(f"{named(metric)} minus {named(other)}", found, right.mean(), room)
        how = {"strictly": strictly, "metric": f"{metric}, {other}", "subset": subset}
        return decide([pair], f"readings of {on(subset)}, {editor}", margin, **how)

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
        hidden = int(((fed == 1.0) & (alone < 1.0)).sum())
        if rows.empty:
            return Verdict(NOT_TESTABLE, f"No edit of {editor} was scored.")
        evidence = (
            f"{hidden} of {len(rows)} edits of {editor} are right when the answer is "
            "fed and counted, and not when the prompt alone decides what is edited."
        )
        # As many as were seen, and more in a longer stream.
        most = {"high": math.inf, "n": len(rows)}
        return exactly("edits hidden by forcing", AT_LEAST, 1, evidence, hidden, **most)

    return test


# Two subsets, and means


@claim_test
def ahead_on_subset(
    editor: str, metric: str, subset: str, other: str, *, moment: str = "end", margin: float = 0.05,
) -> Test:  # fmt: skip
    """Prompts of `subset` score better than those of `other` about the same facts.

    A pair is a fact (and seed): the mean of its prompts in each subset.
    """

    def test(material: Material) -> Verdict:
        sides = [by_fact(_rows(material, editor, metric, name, moment)) for name in (subset, other)]
        name, theirs = f"{on(subset)} minus {on(other)} of the same facts", sides[1][metric].mean()
        pair = Compared(name, paired(*sides, metric), theirs, best_of(metric) - theirs)
        how = {"strictly": True, "metric": metric, "subset": f"{subset}, {other}"}
        return decide([pair], f"{named(metric)}, {editor}", margin, **how)

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
        what, kind = f"{named(metric, subset)}, {editor}", {"metric": metric, "subset": subset}
        return bounded(found, what, at_least, at_most, **kind)

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
        what = f"Share of prompts ({on(subset)}) that {editor} leaves to the unedited model"
        return bounded(found, what, at_least, at_most, metric="route", subset=subset)

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
