"""Claims about m get the verdict that their numbers allow."""

import numpy as np
import pandas as pd
import pytest

from lib.report.claims.claims import Claim, judge
from lib.report.claims.comparisons import better_at_sizes, better_on_some, gap_grows
from lib.report.claims.verdict import FAILS, HOLDS, INCONCLUSIVE, NOT_TESTABLE, Material

N = 60
TESTS = [
    better_at_sizes("A", ["B"], "edits", 8),
    better_at_sizes("A", ["B"], "edits", 8, behind=True),
    better_on_some("A", ["B"], ["edits", "holdout"], 8),
    gap_grows("A", "B", ["edits"]),
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
    assert found.word == HOLDS and "m = 8" in found.evidence and "m = 32" in found.evidence
    assert "GS" in found.evidence and "Holm over 2" in found.evidence
    assert better_at_sizes("B", ["A"], "holdout", 8)(FAR).word == FAILS
    # C ran at the usual m only, and equally well: that no gain is at most the margin is not shown.
    assert better_at_sizes("A", ["B", "C"], "edits", 8)(FAR).word == INCONCLUSIVE
    assert better_at_sizes("A", ["Z"], "edits", 8)(FAR).word == NOT_TESTABLE


def test_behind_is_the_others_being_better() -> None:
    assert better_at_sizes("B", ["A"], "holdout", 8, behind=True)(FAR).word == HOLDS
    found = better_at_sizes("A", ["B"], "holdout", 8, behind=True)(FAR)
    assert found.word == FAILS and "B against A" in found.evidence


def test_one_score_is_enough_for_some() -> None:
    assert better_on_some("A", ["C"], ["edits", "holdout"], 8)(FAR).word == HOLDS
    assert better_on_some("C", ["A"], ["edits", "holdout"], 8)(FAR).word == INCONCLUSIVE
    assert better_on_some("B", ["A"], ["edits", "holdout"], 8)(FAR).word == FAILS


def test_several_scores_make_one_of_them_harder() -> None:
    """A lead that is significant alone is not when it may come from either of two scores."""
    rows = material({("A", 8): both(0.5, 0.95), ("B", 8): both(0.5, 0.85)})
    assert better_at_sizes("A", ["B"], "holdout", 8)(rows).word == HOLDS
    assert better_on_some("A", ["B"], ["edits", "holdout"], 8)(rows).word == INCONCLUSIVE


def test_a_lead_that_grows_and_one_that_shrinks() -> None:
    found = gap_grows("A", "B", ["edits"])(FAR)
    assert found.word == HOLDS and "m = 32 against m = 8" in found.evidence
    assert "+0.500" in found.evidence  # (0.9 - 0.3) - (0.9 - 0.8)
    assert gap_grows("B", "A", ["edits"])(FAR).word == FAILS
    assert gap_grows("A", "C", ["edits"])(FAR).word == NOT_TESTABLE  # one common size


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("rows", [FAR.records.iloc[:0], pd.DataFrame()], ids=["empty", "bare"])
def test_without_runs_nothing_can_be_told(test, rows: pd.DataFrame) -> None:
    judged = judge([Claim("k", "s", "t", test)], Material(rows))
    assert judged.counts[NOT_TESTABLE] == sum(judged.counts.values()) == 1


def test_few_facts_cannot_tell() -> None:
    rows = FAR.records[FAR.records["prompt"].isin([f"p{i}" for i in np.arange(6)])]
    assert better_at_sizes("A", ["B"], "holdout", 8)(Material(rows)).word == INCONCLUSIVE
