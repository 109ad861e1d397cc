"""Claims about what MALMEN carries, its sums, memory and total time get the verdict that their
numbers allow."""

import pandas as pd
import pytest

from lib.report.claims.claims import Claim, judge
from lib.report.claims.verdict import FAILS, HOLDS, INCONCLUSIVE, NOT_TESTABLE, TESTS, Material
from papers.malmen.claims import carries_more, less_time, passes_stay_flat, sum_overshoots
from tests.report.claims.test_sizes import FAR, material


def told(observations: pd.DataFrame) -> Material:
    return Material(pd.DataFrame(), observations=observations)


@pytest.mark.parametrize(
    ("sizes", "own", "other", "verdict"),
    [
        ((1, 200), (0.9, 0.9), (0.9, 0.1), HOLDS),
        ((1, 20), (0.9, 0.9), (0.9, 0.1), NOT_TESTABLE),  # too short a range
        ((1, 20), (0.9, 0.1), (0.9, 0.1), FAILS),  # and it breaks down within it
        ((1, 200), (0.9, 0.1), (0.9, 0.1), FAILS),
        ((1, 200), (0.9, 0.9), (0.9, 0.9), INCONCLUSIVE),  # the rival has not broken down yet
    ],
)
def test_how_many_facts_an_editor_carries(sizes, own, other, verdict) -> None:
    found = {
        (name, m): {"holdout": score}
        for name, scores in (("A", own), ("B", other))
        for m, score in zip(sizes, scores, strict=True)
    }
    assert carries_more("A", "B", "holdout")(material(found)).word == verdict


def test_sums_overshoot_as_observed() -> None:
    layers = pd.DataFrame({
        "run": ["a", "a", "b", "b"], "editor": "A", "kind": "module", "m": [4, 4, 8, 8],
        "path": ["x", "y"] * 2, "summed_residual": [0.5, 0.9, 1.5, 3.0], "residual": 0.1,
    })  # fmt: skip
    test = sum_overshoots("A")
    found = test(told(layers))
    assert found.word == HOLDS and "m = 8, 2 layers" in found.evidence
    assert test(told(layers[layers["m"] == 4])).word == FAILS
    assert test(told(layers.assign(residual=1.2))).word == FAILS
    assert test(told(layers.assign(editor="B"))).word == NOT_TESTABLE
    assert test(Material(pd.DataFrame())).word == NOT_TESTABLE


def seen(*growth: tuple[int, float], editor: str = "A") -> Material:
    rows = [
        {"kind": "memory", "editor": editor, "m": m, "decoupled_bytes": size * 1e6,
         "joint_bytes": m * 1e6, "row_store_bytes": m * 1e3}
        for m, size in growth
    ]  # fmt: skip
    return told(pd.DataFrame(rows))


def test_memory_is_flat_above_the_mini_batch() -> None:
    test = passes_stay_flat("A", 8)
    found = test(seen((2, 1.0), (8, 4.0), (32, 4.4)))
    assert found.word == HOLDS and "From m = 8 to 32" in found.evidence
    assert test(seen((8, 1.0), (32, 4.0))).word == FAILS
    assert test(seen((8, 1.0), (32, 1.6))).word == FAILS
    assert test(seen((2, 1.0), (16, 1.0))).word == NOT_TESTABLE
    assert test(seen((8, 1.0), (32, 1.0), editor="B")).word == NOT_TESTABLE


def spent(**seconds: tuple[float, float]) -> Material:
    rows = [{"editor": e, "m": 100, "train": t, "edit": s} for e, (t, s) in seconds.items()]
    return Material(pd.DataFrame(), times=pd.DataFrame(rows))


def test_total_time_with_training() -> None:
    test = less_time("A", "B", facts=1000)
    assert test(spent(A=(10, 1), B=(0, 50))).word == HOLDS
    # One second a fact is saved, training costs 200: it pays from 200 facts on.
    found = test(spent(A=(200, 0), B=(0, 100)))
    assert found.word == NOT_TESTABLE and "about 200 facts" in found.evidence
    assert test(spent(A=(10, 60), B=(0, 50))).word == FAILS
    assert less_time("A", "B", facts=100)(spent(A=(200, 0), B=(0, 100))).word == FAILS
    assert less_time("A", "B", facts=100)(spent(A=(100, 0), B=(0, 100))).word == INCONCLUSIVE
    assert test(spent(A=(1, 1))).word == NOT_TESTABLE


@pytest.mark.parametrize(
    "test",
    [
        carries_more("A", "B", "holdout"),
        passes_stay_flat("A", 8),
        less_time("A", "B", facts=1000),
        sum_overshoots("A"),
    ],
)
@pytest.mark.parametrize("rows", [FAR.records.iloc[:0], pd.DataFrame()], ids=["empty", "bare"])
def test_without_runs_nothing_can_be_told(test, rows: pd.DataFrame) -> None:
    judged = judge([Claim("k", "s", "t", test)], Material(rows))
    assert judged.counts[NOT_TESTABLE] == sum(judged.counts.values()) == 1


def test_a_claim_can_name_them() -> None:
    own = (carries_more, less_time, passes_stay_flat, sum_overshoots)
    assert all(TESTS[test.__name__] is test for test in own)
