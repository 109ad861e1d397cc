"""Findings of our own get the verdict that their rows allow, and no more."""

import pandas as pd
import pytest

from lib.report.claims.comparisons import (
    ahead_on_subset,
    hidden_by_forcing,
    left_to_backbone,
    mean_within,
    reads_higher,
)
from lib.report.claims.verdict import FAILS, HOLDS, INCONCLUSIVE, NOT_TESTABLE, Material

N = 40


def rows(n: int = N, subset: str = "edits", moment: str = "end", **columns: object) -> pd.DataFrame:
    """Scored prompts about n facts, each asked once; a column may be a list."""
    common_parts = {"editor": "A", "setting": "s", "seed": 0, "sweep": ""}
    return pd.DataFrame({"record": [f"fact{i}#0" for i in range(n)], "prompt": range(n)}).assign(
        subset=subset, moment=moment, **common_parts, **columns
    )


def judged(test, *frames: pd.DataFrame, **more: pd.DataFrame):
    return test(Material(pd.concat(frames, ignore_index=True) if frames else rows(), **more))


def share(right: int, n: int = N) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def test_a_mean_is_judged_by_its_interval() -> None:
    high, low = rows(f1=share(36)), rows(f1=share(4))
    at_least, at_most = (
        mean_within("A", "f1", "edits", **{side: 0.5}) for side in ("at_least", "at_most")
    )
    assert judged(at_least, high).word == HOLDS and judged(at_least, low).word == FAILS
    assert judged(at_most, low).word == HOLDS and judged(at_most, high).word == FAILS
    middle = judged(at_least, rows(f1=share(20)))
    assert (
        middle.word == INCONCLUSIVE and "0.500 [" in middle.evidence and "n = 40" in middle.evidence
    )
    few = judged(at_least, rows(8, f1=share(8, 8)))
    assert few.word == INCONCLUSIVE and "Only 8 independent facts" in few.evidence
    assert judged(at_least, high.assign(moment="own")).word == NOT_TESTABLE


@pytest.mark.parametrize("bounds", [{}, {"at_least": 0.1, "at_most": 0.2}])
def test_a_bound_is_one(bounds: dict) -> None:
    for make in (lambda: mean_within("A", "f1", "edits", **bounds),
                 lambda: left_to_backbone("A", **bounds)):  # fmt: skip
        with pytest.raises(ValueError, match="at_least or at_most"):
            make()


def test_routes_tell_what_is_left_to_the_backbone() -> None:
    test = left_to_backbone("A", at_least=0.9)
    away = rows(route="base")
    assert judged(test, away).word == HOLDS
    assert judged(test, rows(route=["base"] * 10 + ["block 1"] * 30)).word == FAILS
    assert judged(test, away, rows(subset="near", route="block 0")).word == HOLDS


def test_two_readings_of_the_same_rows() -> None:
    test = reads_higher("A", "fed", "alone")
    assert judged(test, rows(fed=share(40), alone=share(20))).word == HOLDS
    assert judged(test, rows(fed=share(20), alone=share(40))).word == FAILS
    equal = rows(fed=share(20), alone=share(20))
    assert judged(test, equal).word == INCONCLUSIVE
    loose = reads_higher("A", "alone", "fed", strictly=False, margin=0.15)
    assert judged(loose, equal).word == HOLDS
    assert judged(loose, rows(fed=share(40), alone=share(20))).word == FAILS
    assert "No run scored alone" in judged(test, rows(fed=share(40))).evidence


def test_one_witness_is_enough_and_none_proves_nothing() -> None:
    test = hidden_by_forcing("A")
    seen = judged(test, rows(answer_accuracy=1.0, prompt_accuracy=share(39)))
    assert seen.word == HOLDS and "1 of 40 edits" in seen.evidence
    assert judged(test, rows(answer_accuracy=1.0, prompt_accuracy=1.0)).word == INCONCLUSIVE
    # An edit that is wrong either way is no witness.
    assert judged(test, rows(answer_accuracy=0.5, prompt_accuracy=0.0)).word == INCONCLUSIVE


def test_subsets_meet_fact_by_fact() -> None:
    test = ahead_on_subset("A", "f1", "edits", "holdout")
    edits, twice = rows(f1=share(38)), rows(subset="holdout", f1=share(10))
    again = twice.assign(record=twice["record"] + "1", prompt=twice["prompt"] + N)
    found = judged(test, edits, twice, again)
    assert found.word == HOLDS and "n = 40" in found.evidence
    assert judged(test, rows(f1=share(10)), rows(subset="holdout", f1=share(38))).word == FAILS
    others = twice.assign(record="other" + twice["record"])
    assert "no common prompts" in judged(test, edits, others).evidence
