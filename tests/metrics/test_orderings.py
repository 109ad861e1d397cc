"""Orders of methods against each other: cases done by hand, and an independent slow reference."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lib.metrics.orderings import FEWEST_UNITS, ordering
from lib.metrics.ranking import RESAMPLES, Sample, percentiles, weights


def sample(rows: dict[str, list[float]]) -> Sample:
    """One seed and one part, one row per unit: editor -> scores."""
    sums = np.array(list(rows.values()), float)[:, None, None, :]
    return Sample(tuple(rows), tuple(map(str, range(sums.shape[-1]))), sums, np.ones_like(sums))


def test_pairs_are_counted_and_too_few_units_give_no_interval() -> None:
    found = ordering([0.9, 0.5, 0.7], sample({"A": [1, 1, 0], "B": [0, 0, 0], "C": [1, 1, 1]}))
    # A before B and C before B as reported; A before C is not ours.
    assert (found.methods, found.pairs, found.agree, found.units) == (3, 3, 2, 3)
    assert found.tau == pytest.approx(1 / 3)
    assert math.isnan(found.low) and (found.clear, found.clear_agree) == (0, 0)


def test_what_is_tied_on_one_side_agrees_with_nothing() -> None:
    same = {"A": [1, 0], "B": [0, 1]}
    assert ordering([0.9, 0.5], sample(same)).agree == 0
    assert math.isnan(ordering([0.9, 0.5], sample(same)).tau)
    never = ordering([0.9, 0.5], sample({"A": [1.0] * 12, "B": [1.0] * 12}))
    assert math.isnan(never.low) and (never.clear, never.agree) == (0, 0)
    tied = ordering([0.5, 0.5, 0.1], sample({**same, "C": [0, 0]}))
    assert (tied.pairs, tied.agree, tied.tau) == (2, 2, 1.0)


def test_what_never_differs_is_certain_and_what_may_is_not() -> None:
    n = FEWEST_UNITS
    rows = {"A": [1.0] * n, "B": [0.0] * n, "C": [0.0] * (n - 1) + [1.0]}
    found = ordering([0.1, 0.2, 0.3], sample(rows))
    assert (found.pairs, found.agree) == (3, 1)  # only C before B
    assert (found.clear, found.clear_agree) == (2, 0)  # A is clearly before both, B and C open
    # Without the fact that C has, B and C are tied.
    assert (found.low, found.high) == pytest.approx((-2 / math.sqrt(6), -1 / 3))


@pytest.mark.parametrize("seed", range(3))
def test_tau_and_its_interval_are_those_of_a_slow_reference(seed: int) -> None:
    draw = np.random.default_rng(seed)
    told = np.round(draw.random(5), 1)
    scores = (draw.random((5, 30)) < np.linspace(0.2, 0.8, 5)[:, None]).astype(float)
    rows = sample({f"editor {i}": list(line) for i, line in enumerate(scores)})
    found = ordering(told, rows)
    assert found.tau == pytest.approx(stats.kendalltau(told, scores.mean(axis=1)).statistic)
    taken = weights(1, 30, RESAMPLES, np.random.default_rng(0))[:, 0]
    means = np.round([scores @ w / w.sum() for w in taken], 12)
    taus = [stats.kendalltau(told, mean).statistic for mean in means]
    ends = percentiles(rows, 0.95)
    assert (found.low, found.high) == pytest.approx(tuple(np.nanpercentile(taus, ends)))
    clear = same = 0
    for i, j in itertools.combinations(range(5), 2):
        low, high = np.percentile(means[:, i] - means[:, j], ends)
        if told[i] != told[j] and (low > 1e-9 or high < -1e-9):
            clear += 1
            same += (low > 0) == (told[i] > told[j])
    assert (found.clear, found.clear_agree) == (clear, same)


def test_reported_scores_must_be_there_for_every_method() -> None:
    with pytest.raises(ValueError, match="no reported scores of 2 editors"):
        ordering([0.5], sample({"A": [1], "B": [0]}))
    with pytest.raises(ValueError, match="nan"):
        ordering([0.5, math.nan], sample({"A": [1], "B": [0]}))
