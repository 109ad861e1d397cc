"""Claims about m, memory and total time get the verdict that their numbers allow."""

import numpy as np
import pandas as pd
import pytest

from lib.report.claims.claims import Claim, judge
from lib.report.claims.comparisons import better_at_sizes, better_on_some, carries_more, gap_grows
from lib.report.claims.costs import less_time, passes_stay_flat
from lib.report.claims.verdict import FAILS, HOLDS, UNKNOWN, Material

N = 60
TESTS = [
    better_at_sizes("A", ["B"], "edits", 8),
    better_at_sizes("A", ["B"], "edits", 8, behind=True),
    better_on_some("A", ["B"], ["edits", "holdout"], 8),
    gap_grows("A", "B", ["edits"]),
    carries_more("A", "B", "holdout"),
    passes_stay_flat("A", 8),
    less_time("A", "B", facts=1000),
]


def material(scores: dict[tuple[str, int], dict[str, float]], n: int = N) -> Material:
    """Shares of right answers per (editor, m) and subset; easy facts are easy for all."""
    rows = [
        {
            "run": f"{editor}-{m}", "editor": editor, "m": m, "sweep": "m", "setting": "s",
            "seed": 0, "subset": subset, "moment": "own", "record": f"{subset}{i}",
            "prompt": f"p{i}", "answer_accuracy": float(i * 7 % n < share * n),
        }
        for (editor, m), shares in scores.items()
        for subset, share in shares.items()
        for i in range(n)
    ]  # fmt: skip
    return Material(pd.DataFrame(rows))


def both(a: float, b: float) -> dict[str, float]:
    return {"edits": a, "holdout": b}


FAR = material(
    {("A", 8): both(0.9, 0.9), ("A", 32): both(0.9, 0.9), ("B", 8): both(0.8, 0.4),
     ("B", 32): both(0.3, 0.2), ("C", 8): both(0.9, 0.4)}
)  # fmt: skip


def test_better_needs_both_sizes_and_every_rival() -> None:
    found = better_at_sizes("A", ["B"], "holdout", 8)(FAR)
    assert found.verdict == HOLDS and "m = 8" in found.evidence and "m = 32" in found.evidence
    assert "GS" in found.evidence and "Holm over 2" in found.evidence
    assert better_at_sizes("B", ["A"], "holdout", 8)(FAR).verdict == FAILS
    # C ran at the usual m only, and equally well: no gain beyond the margin is not shown either.
    assert better_at_sizes("A", ["B", "C"], "edits", 8)(FAR).verdict == UNKNOWN
    assert better_at_sizes("A", ["Z"], "edits", 8)(FAR).verdict == UNKNOWN


def test_behind_is_the_others_being_better() -> None:
    assert better_at_sizes("B", ["A"], "holdout", 8, behind=True)(FAR).verdict == HOLDS
    found = better_at_sizes("A", ["B"], "holdout", 8, behind=True)(FAR)
    assert found.verdict == FAILS and "B against A" in found.evidence


def test_one_score_is_enough_for_some() -> None:
    assert better_on_some("A", ["C"], ["edits", "holdout"], 8)(FAR).verdict == HOLDS
    assert better_on_some("C", ["A"], ["edits", "holdout"], 8)(FAR).verdict == UNKNOWN
    assert better_on_some("B", ["A"], ["edits", "holdout"], 8)(FAR).verdict == FAILS


def test_several_scores_make_one_of_them_harder() -> None:
    """A lead that is significant alone is not when it may come from either of two scores."""
    rows = material({("A", 8): both(0.5, 0.95), ("B", 8): both(0.5, 0.85)})
    assert better_at_sizes("A", ["B"], "holdout", 8)(rows).verdict == HOLDS
    assert better_on_some("A", ["B"], ["edits", "holdout"], 8)(rows).verdict == UNKNOWN


def test_a_lead_that_grows_and_one_that_shrinks() -> None:
    found = gap_grows("A", "B", ["edits"])(FAR)
    assert found.verdict == HOLDS and "m = 32 against m = 8" in found.evidence
    assert "+0.500" in found.evidence  # (0.9 - 0.3) - (0.9 - 0.8)
    assert gap_grows("B", "A", ["edits"])(FAR).verdict == FAILS
    assert gap_grows("A", "C", ["edits"])(FAR).verdict == UNKNOWN  # one common size


@pytest.mark.parametrize(
    ("sizes", "own", "other", "verdict"),
    [
        ((1, 200), (0.9, 0.9), (0.9, 0.1), HOLDS),
        ((1, 20), (0.9, 0.9), (0.9, 0.1), UNKNOWN),  # too short a range
        ((1, 20), (0.9, 0.1), (0.9, 0.1), UNKNOWN),
        ((1, 200), (0.9, 0.1), (0.9, 0.1), FAILS),
        ((1, 200), (0.9, 0.9), (0.9, 0.9), UNKNOWN),  # the rival has not broken down yet
    ],
)
def test_how_many_facts_an_editor_carries(sizes, own, other, verdict) -> None:
    found = {
        (name, m): {"holdout": score}
        for name, scores in (("A", own), ("B", other))
        for m, score in zip(sizes, scores, strict=True)
    }
    assert carries_more("A", "B", "holdout")(material(found)).verdict == verdict


def seen(*growth: tuple[int, float], editor: str = "A") -> Material:
    rows = [
        {"kind": "memory", "editor": editor, "m": m, "decoupled_bytes": size * 1e6,
         "joint_bytes": m * 1e6, "row_store_bytes": m * 1e3}
        for m, size in growth
    ]  # fmt: skip
    return Material(pd.DataFrame(), observations=pd.DataFrame(rows))


def test_memory_is_flat_above_the_mini_batch() -> None:
    test = passes_stay_flat("A", 8)
    found = test(seen((2, 1.0), (8, 4.0), (32, 4.4)))
    assert found.verdict == HOLDS and "From m = 8 to 32" in found.evidence
    assert test(seen((8, 1.0), (32, 4.0))).verdict == FAILS
    assert test(seen((8, 1.0), (32, 1.6))).verdict == UNKNOWN
    assert test(seen((2, 1.0), (16, 1.0))).verdict == UNKNOWN
    assert test(seen((8, 1.0), (32, 1.0), editor="B")).verdict == UNKNOWN


def spent(**seconds: tuple[float, float]) -> Material:
    rows = [{"editor": e, "m": 100, "train": t, "edit": s} for e, (t, s) in seconds.items()]
    return Material(pd.DataFrame(), times=pd.DataFrame(rows))


def test_total_time_with_training() -> None:
    test = less_time("A", "B", facts=1000)
    assert test(spent(A=(10, 1), B=(0, 50))).verdict == HOLDS
    # One second a fact is saved, training costs 200: it pays from 200 facts on.
    found = test(spent(A=(200, 0), B=(0, 100)))
    assert found.verdict == UNKNOWN and "about 200 facts" in found.evidence
    assert test(spent(A=(10, 60), B=(0, 50))).verdict == FAILS
    assert less_time("A", "B", facts=100)(spent(A=(200, 0), B=(0, 100))).verdict == FAILS
    assert less_time("A", "B", facts=100)(spent(A=(100, 0), B=(0, 100))).verdict == UNKNOWN
    assert test(spent(A=(1, 1))).verdict == UNKNOWN


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("rows", [FAR.records.iloc[:0], pd.DataFrame()], ids=["empty", "bare"])
def test_without_runs_nothing_can_be_told(test, rows: pd.DataFrame) -> None:
    judged = judge([Claim("k", "s", "t", test)], Material(rows))
    assert judged.counts == {HOLDS: 0, FAILS: 0, UNKNOWN: 1}


def test_few_facts_cannot_tell() -> None:
    rows = FAR.records[FAR.records["prompt"].isin([f"p{i}" for i in np.arange(6)])]
    assert better_at_sizes("A", ["B"], "holdout", 8)(Material(rows)).verdict == UNKNOWN
