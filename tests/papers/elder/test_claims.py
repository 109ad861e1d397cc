"""Claims about ELDER's rule and codes get the verdict that the observations allow."""

import pandas as pd
import pytest

from lib.report.claims.verdict import FAILS, HOLDS, INCONCLUSIVE, NOT_TESTABLE, TESTS, Material
from papers.elder.claims import codes_move, defers, overwritten

NOTHING = Material(pd.DataFrame())


def told(observations: pd.DataFrame) -> Material:
    return Material(pd.DataFrame(), observations=observations)


def observed(share: float, n: int = 40) -> Material:
    rows = pd.DataFrame(
        {"editor": "ELDER", "sweep": "", "setting": "zsre", "subset": "upstream",
         "record": [f"q{i}" for i in range(n)], "deferred": [i < share * n for i in range(n)]}
    )  # fmt: skip
    swept = rows.assign(sweep="experts", deferred=True)
    return told(pd.concat([rows, swept], ignore_index=True))


def test_deferral_is_judged_by_the_interval_of_its_share() -> None:
    unrelated = defers("ELDER", ["upstream"], at_least=0.9)
    assert unrelated(observed(1.0)).word == HOLDS and unrelated(observed(0.1)).word == FAILS
    assert unrelated(observed(0.9)).word == INCONCLUSIVE
    assert unrelated(observed(1.0, n=8)).word == INCONCLUSIVE  # too few
    few = defers("ELDER", ["upstream"], at_most=0.1)
    assert few(observed(0.0)).word == HOLDS and few(observed(0.5)).word == FAILS
    assert "n = 40;" in few(observed(0.0)).evidence  # the sweep's rows are not among them
    assert defers("ELDER", ["near"], at_most=0.1)(observed(0.0)).word == NOT_TESTABLE
    assert unrelated(NOTHING).word == NOT_TESTABLE
    elsewhere = defers("ELDER", ["upstream"], at_least=0.9, setting="counterfact")
    assert elsewhere(observed(1.0)).word == NOT_TESTABLE
    with pytest.raises(ValueError, match="at_least or at_most"):
        defers("ELDER", ["upstream"])


def test_that_edits_pass_is_vacuous_where_nothing_is_deferred() -> None:
    edits = observed(0.0).observations.assign(subset="edits")
    test = defers("ELDER", ["edits"], at_most=0.1, beside=["upstream"])
    for share, marks in ((0.0, ("vacuous",)), (0.5, ())):
        rows = pd.concat([edits, observed(share).observations], ignore_index=True)
        found = test(told(rows))
        assert (found.word, found.marks) == (HOLDS, marks)
    nothing = test(told(pd.concat([edits, observed(0.0).observations])))
    assert "defers none either" in nothing.evidence


def test_codes_move_as_observed() -> None:
    seen = pd.DataFrame(
        {"editor": "ELDER", "sweep": "", "subset": "edits",
         "record": [f"fact{i}" for i in range(40)], "own_stored": [0.0] * 4 + [6.0] * 36}
    )  # fmt: skip
    test = codes_move("ELDER", at_least=0.5)
    found = test(told(seen))
    assert found.word == HOLDS and "5.4 digits on average" in found.evidence
    assert test(told(seen.assign(own_stored=0.0))).word == FAILS
    assert test(told(seen.assign(sweep="layers"))).word == NOT_TESTABLE
    assert test(NOTHING).word == NOT_TESTABLE


def test_lost_edits_are_told_apart_by_whose_answer_they_get() -> None:
    """Answers of later edits count, also as far as they were decoded; an earlier one's does not."""

    def records(said: list[str]) -> pd.DataFrame:
        rows = pd.DataFrame(
            {"run": "one", "editor": "ELDER", "sweep": "", "setting": "zsre", "subset": "edits",
             "moment": "end", "record": [f"fact{i}" for i in range(40)], "edit_index": range(40),
             "target": [f"Port {i:02d}" for i in range(40)], "prediction": said,
             "answer_accuracy": 0.0, "answer_agreement": 0.0}
        )  # fmt: skip
        before = rows.assign(moment="before", prediction="Wick")
        return pd.concat([rows, before, rows.assign(sweep="experts")], ignore_index=True)

    test = overwritten("ELDER", at_least=0.5)
    later = [f" Port {i + 1:02d}." for i in range(39)] + ["Wick"]
    found = test(Material(records(later)))
    assert found.word == HOLDS and "n = 40;" in found.evidence
    earlier = ["Selby", *(f"Port {i - 1:02d}" for i in range(1, 40))]
    assert test(Material(records(earlier))).word == FAILS
    assert test(Material(records(["Wick"] * 40))).word == FAILS
    assert test(Material(records([""] * 40))).word == FAILS
    right = records(later).assign(answer_accuracy=1.0)
    assert test(Material(right)).word == NOT_TESTABLE and test(NOTHING).word == NOT_TESTABLE


def test_a_claim_can_name_them() -> None:
    assert all(TESTS[test.__name__] is test for test in (codes_move, defers, overwritten))
