"""Verdicts and counts follow from the CSV files; pages that contradict each other are caught."""

from pathlib import Path

import pandas as pd
import pytest

from lib.report.claims.claims import Claim, Judgement, Verdicts, judge
from lib.report.claims.comparisons import at_least, better_than, flat_retention
from lib.report.claims.verdict import (
    AT_MOST,
    BETTER,
    BY_CONSTRUCTION,
    COUNTED,
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    MARKS,
    NOT_TESTABLE,
    NOT_WORSE,
    UNTOLD,
    VACUOUS,
    WORDS,
    Evidence,
    Material,
    Verdict,
    combine,
    decided_in,
    over_settings,
)
from tests.report import evidence_checks as checks
from tests.report.invented import records

DIFFERS = "differs between settings"


def row(rule: str, mean: float, low: float, high: float, **more: object) -> Evidence:
    told = {"n": 60, "facts": 60, "margin": 0.05, "p": 1.0} | more
    return Evidence("a row", rule, mean, low, high, **told)


@pytest.mark.parametrize(
    ("evidence", "word"),
    [
        (row(NOT_WORSE, 0.0, -0.04, 0.04), HOLDS),
        (row(NOT_WORSE, 0.0, -0.06, 0.06), INCONCLUSIVE),
        (row(NOT_WORSE, -0.02, -0.04, -0.01, p=0.001), HOLDS),  # a loss within the margin
        (row(NOT_WORSE, -0.2, -0.3, -0.01, p=0.04), FAILS),
        (row(NOT_WORSE, -0.2, -0.3, -0.01, p=0.2), INCONCLUSIVE),
        (row(NOT_WORSE, 0.0, -0.04, 0.04, facts=9), INCONCLUSIVE),
        (row(NOT_WORSE, 0.2, 0.1, 0.3, p=0.01, better="lower"), FAILS),
        # A large significant difference decides with fewer than ten facts, but not with four.
        (row(BETTER, 1.0, 0.351, 1.0, p=0.008, n=8, facts=8), HOLDS),
        (row(BETTER, 1.0, 0.351, 1.0, p=0.008, n=4, facts=4), INCONCLUSIVE),
        (row(BETTER, -1.0, -1.0, -0.4, p=0.008, n=8, facts=8), FAILS),
        (row(BETTER, 0.019, 0.009, 0.07, p=0.002), INCONCLUSIVE),  # below its own margin
        (row(BETTER, 0.019, 0.009, 0.038, p=0.002), FAILS),
        (row(BETTER, 0.2, 0.1, 0.3, p=0.001), HOLDS),
        (row(BETTER, 0.2, -0.1, 0.3, p=0.2), INCONCLUSIVE),
        (row(BETTER, 0.0, -0.02, 0.02, room=0.01), NOT_TESTABLE),  # theirs is at the top already
        (row(BETTER, 0.0, -0.2, 0.2, room=0.01), INCONCLUSIVE),
        (row(BETTER, -0.3, -0.4, -0.2, p=0.001, room=0.01), FAILS),
        (row(AT_MOST, 1.0, 1.0, 1.0, facts=0, margin=1.0, exact=True), HOLDS),
        (row(AT_MOST, 1.0, 1.0, 1.0, facts=0, margin=1.0), INCONCLUSIVE),
        (Evidence("nothing", UNTOLD), NOT_TESTABLE),
    ],
)  # fmt: skip
def test_a_row_says_what_the_printed_rule_says(evidence: Evidence, word: str) -> None:
    assert evidence.outcome == word
    assert checks.says(pd.Series(vars(evidence) | {"row": evidence.name})) == word


def test_rows_are_all_needed_and_groups_are_alternatives() -> None:
    good, bad = row(BETTER, 0.2, 0.1, 0.3, p=0.001), row(BETTER, -0.2, -0.3, -0.1, p=0.001)
    open_, away = row(BETTER, 0.0, -0.1, 0.1), Evidence("nothing", UNTOLD)
    assert combine([good, good]) == HOLDS and combine([good, bad, open_]) == FAILS
    assert combine([good, open_, away]) == INCONCLUSIVE and combine([good, away]) == NOT_TESTABLE
    assert combine([]) == NOT_TESTABLE

    def grouped(*rows: Evidence) -> list[Evidence]:
        return [Evidence(**vars(one) | {"group": str(i)}) for i, one in enumerate(rows)]

    assert combine(grouped(good, bad)) == HOLDS and combine(grouped(bad, bad)) == FAILS
    assert combine(grouped(bad, open_)) == INCONCLUSIVE


@pytest.mark.parametrize(
    ("judged", "word", "settings"),
    [
        ([HOLDS, INCONCLUSIVE, INCONCLUSIVE], HOLDS, (1, 3)),
        ([FAILS, INCONCLUSIVE, INCONCLUSIVE], FAILS, (1, 3)),  # the same weight
        ([HOLDS, FAILS, INCONCLUSIVE], DIFFERS, (0, 3)),
        ([HOLDS, NOT_TESTABLE], HOLDS, (1, 1)), 
        ([INCONCLUSIVE, NOT_TESTABLE], INCONCLUSIVE, (1, 1)),
        ([NOT_TESTABLE], NOT_TESTABLE, (0, 0)), ([], NOT_TESTABLE, (0, 0)),
        ([BY_CONSTRUCTION, BY_CONSTRUCTION], BY_CONSTRUCTION, (2, 2)),
        ([BY_CONSTRUCTION, FAILS], FAILS, (1, 2)), ([VACUOUS, HOLDS], HOLDS, (1, 2)),
        ([VACUOUS, NOT_TESTABLE], VACUOUS, (1, 1)), ([VACUOUS, INCONCLUSIVE], INCONCLUSIVE, (1, 2)),
    ],
)  # fmt: skip
def test_holding_and_failing_weigh_the_same_over_settings(judged, word, settings) -> None:
    told = [(HOLDS, (one,)) if one in MARKS else (one, ()) for one in judged]
    assert over_settings(told) == word and decided_in(told) == settings and word in COUNTED
    frame = pd.DataFrame(
        [(one, ", ".join(marks) or float("nan")) for one, marks in told],
        columns=["verdict", "marks"],
    )
    assert checks.over_settings(frame) == word


def test_a_verdict_cannot_say_what_its_evidence_does_not() -> None:
    with pytest.raises(ValueError, match="its evidence says inconclusive"):
        Verdict(HOLDS, "", (row(BETTER, 0.0, -0.1, 0.1),))
    with pytest.raises(ValueError, match="marks"):
        Verdict(HOLDS, "", marks=("obvious",))
    assert Verdict.of([row(BETTER, 0.0, -0.1, 0.1)], "", [VACUOUS]).marks == ()
    assert set(WORDS) | set(MARKS) < set(COUNTED)


def test_nothing_can_be_lost_where_nothing_was_there() -> None:
    rows = records(n=96).assign(f1_ids=0.0)
    found = flat_retention("MELO", "f1_ids", margin=0.1)(Material(rows))
    assert (found.word, found.marks) == (HOLDS, (VACUOUS,)) and "margin itself" in found.evidence
    full = flat_retention("MELO", "f1_ids", margin=0.1)(Material(rows.assign(f1_ids=1.0)))
    assert (full.word, full.marks) == (HOLDS, ())


def test_a_rival_at_the_top_leaves_no_room() -> None:
    rows = records(n=96)
    best = rows.assign(f1_ids=1.0)
    pairs = Material(pd.concat([best, best[best["editor"] == "MELO"].assign(editor="Twin")]))
    found = better_than("MELO", ["Twin"], "f1_ids")(pairs)
    assert found.word == NOT_TESTABLE and "with 1.00 there is no room" in found.evidence
    lower = better_than("MELO", ["Twin"], "nll", better="lower", margin=0.1)(pairs)
    assert lower.word != NOT_TESTABLE  # no scale ends there


JUDGED = Verdicts(
    {
        "first": judge(
            [
                Claim("best", "It is best.", "t", at_least("MELO", ["LoRA"], "f1_ids"), "", "MELO"),
                Claim("better", "More.", "t", better_than("LoRA", ["MELO"], "f1_ids"), "", "LoRA"),
                Claim("none", "None.", "t", at_least("MELO", ["Nobody"], "f1_ids"), "", "MELO"),
            ],
            Material(records(n=96)),
        ),
        "second": Judgement(
            ((Claim("best", "It is best.", "t", lambda m: None, "", "MELO"),
              Verdict(INCONCLUSIVE, "Too little.")),)
        ),
    }
)  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Verdicts and cells of two pages that agree."""
    (tmp_path / "tables").mkdir()
    numbers = JUDGED.numbers.assign(kind="claim", data="facts")
    cell = dict.fromkeys(checks.CELL, "x") | {"seed": 0, "n": 10, "mean": 0.5}
    for page in ("one", "two"):
        numbers.to_csv(tmp_path / "tables" / f"{page}-verdicts.csv", index=False)
        pd.DataFrame([cell]).to_csv(tmp_path / "tables" / f"{page}-cells.csv", index=False)
    return checks.read(tmp_path, "verdicts"), checks.read(tmp_path, "cells")


def test_verdicts_follow_from_the_numbers_written(written) -> None:
    verdicts, cells = written
    assert checks.check_verdicts(verdicts) == 6  # two pages; one verdict has no numbers
    assert checks.overall(verdicts).tolist() == [HOLDS, FAILS, NOT_TESTABLE] * 2
    assert checks.counted(checks.overall(verdicts)) == (
        "2 hold, 2 fail, 2 are not testable in this profile"
    )
    assert checks.contradictions(verdicts, cells) == []


@pytest.mark.parametrize(
    "change",
    [{"verdict": FAILS}, {"low": -0.9, "p": 1.0}, {"facts": 3, "p": 1.0}, {"says": INCONCLUSIVE},
     {"marks": VACUOUS, "verdict": FAILS}],
)  # fmt: skip
def test_a_verdict_that_does_not_follow_is_caught(written, change: dict) -> None:
    verdicts, _ = written
    chosen = (verdicts["page"] == "one") & (verdicts["key"] == "best")
    chosen &= verdicts["setting"] == "first"
    for name, value in change.items():
        verdicts[name] = verdicts[name].astype(object)
        verdicts.loc[chosen, name] = value
    verdicts = verdicts.infer_objects()
    with pytest.raises(AssertionError):
        checks.check_verdicts(verdicts)


def test_pages_that_contradict_each_other_are_caught(written) -> None:
    verdicts, cells = written
    other = verdicts["page"] == "two"
    opposite = verdicts.copy()
    opposite.loc[other & (verdicts["key"] == "better"), "verdict"] = HOLDS
    (said,) = checks.contradictions(opposite, cells)
    assert said.startswith("More. (LoRA): one fails, two holds")
    wider = verdicts.copy()
    wider.loc[other & (verdicts["key"] == "best"), "low"] = 0.0
    assert len(checks.contradictions(wider, cells)) == 1
    wider.loc[other, "data"] = "other facts"
    assert checks.contradictions(wider, cells) == []
    for name, value in (("mean", 0.6), ("n", 11)):
        differing = cells.copy()
        differing.loc[differing["page"] == "two", name] = value
        assert len(checks.contradictions(verdicts, differing)) == 1
    # Another number of edits is another cell.
    later = cells.copy()
    later.loc[later["page"] == "two", ["n_edits", "mean"]] = ["y", 0.6]
    assert checks.contradictions(verdicts, later) == []


def test_a_verdict_hangs_on_its_worst_row_which_names_its_bound() -> None:
    good, worse = row(BETTER, 0.3, 0.2, 0.4, p=0.001), row(BETTER, 0.2, 0.1, 0.3, p=0.001)
    bad = row(BETTER, -0.2, -0.3, -0.1, p=0.001)
    assert Verdict.of([good, worse], "").deciding == worse and worse.wanted == "≥ +0.05"
    assert Verdict.of([good, bad, worse], "").deciding == bad
    lost = row(NOT_WORSE, 0.2, 0.1, 0.3, p=0.01, better="lower")
    assert Verdict.of([lost], "").deciding == lost and lost.wanted == "≤ +0.05"
    assert row(NOT_WORSE, 0.0, -0.01, 0.01).wanted == "≥ −0.05"
    assert row(AT_MOST, 0.1, 0.0, 0.2, margin=0.9).wanted == "≤ 0.9"
    assert Verdict.of([Evidence("nothing", UNTOLD)], "").deciding is None
    # Of alternatives, one that has the verdict's word.
    first, other = (row(BETTER, m, m - 0.1, m + 0.1, p=0.001, group=g) for m, g in
                    ((0.2, "a"), (-0.2, "b")))  # fmt: skip
    assert Verdict.of([first, other], "").deciding == first
