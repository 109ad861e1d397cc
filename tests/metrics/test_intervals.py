"""Intervals, differences and comparisons behave as stated, also at the borders."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from lib.metrics import scales
from lib.metrics.intervals import (
    compare,
    facts,
    for_few,
    holm,
    mean_interval,
    paired_difference,
    spread_over_seeds,
    wilson,
    z_score,
)

RIGHT, SHARE, NATS = scales.RIGHT, scales.SHARE, scales.NATS
NOISE = np.random.default_rng(7)


@pytest.mark.parametrize(("successes", "n"), [(0, 12), (3, 12), (93, 96), (96, 96)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    ours = wilson(successes, n)
    theirs = binomtest(successes, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_rejects_impossible_counts() -> None:
    with pytest.raises(ValueError, match="13 successes in 12"):
        wilson(13, 12)


def test_the_declared_scale_and_not_the_data_chooses_the_method() -> None:
    assert mean_interval([1, 0, 1, 1], scale=RIGHT).method == "Wilson"
    assert mean_interval([1, 0, 1, 1], scale=SHARE).method == "bootstrap BCa"
    assert mean_interval([1, 0, 1, 1]).method == "bootstrap BCa"
    scores = NOISE.random(60)
    found = mean_interval(scores, scale=SHARE)
    assert found.method == "bootstrap BCa"
    half = 1.96 * scores.std(ddof=1) / math.sqrt(60)
    assert (found.low, found.high) == pytest.approx(
        (scores.mean() - half, scores.mean() + half), abs=0.02
    )


def test_the_bootstrap_is_repeatable() -> None:
    scores = NOISE.random(40)
    assert mean_interval(scores) == mean_interval(list(scores))


def test_nan_rows_are_left_out() -> None:
    assert mean_interval([1.0, math.nan, 0.0, 1.0]).n == 3


@pytest.mark.parametrize("values", [[], [math.nan], [0.4], [1.0]])
def test_fewer_than_two_rows_have_no_interval(values: list[float]) -> None:
    assert not mean_interval(values).known


def test_equal_scores_keep_the_width_of_their_scale() -> None:
    share = wilson(0, 30).high
    found = mean_interval([0.25] * 30, scale=SHARE)
    assert (found.low, found.high) == pytest.approx((0.25 * (1 - share), 0.25 + share * 0.75))
    right = mean_interval([1.0] * 30, scale=SHARE)
    assert (right.low, right.high) == pytest.approx((wilson(30, 30).low, 1.0))
    assert not mean_interval([0.5] * 30).known  # seconds and counts have no scale to move on
    loss = mean_interval([7.5] * 30, scale=NATS)
    assert (loss.low, loss.high) == pytest.approx((7.5 * (1 - share), 7.5 + share * NATS.span))


@pytest.mark.parametrize("values", [[0.4, 0.5], [2.0, 7.0], [0.0, 0.9]])
def test_an_unchanged_loss_has_one_rule_on_every_subset(values: list[float]) -> None:
    """Whether all losses of a subset happen to lie between 0 and 1 makes no difference."""
    for n in (30, 300, 3000):
        rows = np.resize(values, n)
        found = paired_difference(rows, rows, scale=NATS)
        half = wilson(0, n).high * math.log(50_257)
        assert (found.low, found.high) == pytest.approx((-half, half))
    assert half < 0.02  # an unchanged loss can be shown to be unchanged


def test_few_units_widen_the_bootstrap_as_students_t_does() -> None:
    for n in (5, 10, 30):
        tail = stats.norm.ppf((1 + for_few(0.95, n)) / 2)
        assert tail == pytest.approx(math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    assert for_few(0.95, 10_000) == pytest.approx(0.95, abs=1e-4) and for_few(0.9, 1) == 0.9


def test_what_units_are_called_does_not_move_an_interval() -> None:
    scores, names = NOISE.random(60), np.repeat(np.arange(20), 3)
    order = NOISE.permutation(60)
    again = mean_interval(scores[order], groups=[f"x{99 - name}" for name in names[order]])
    first = mean_interval(scores, groups=names)
    assert (again.low, again.high) == pytest.approx((first.low, first.high), abs=1e-12)


def test_the_smallest_possible_p_says_so() -> None:
    ones, zeros = [1.0] * 6, [0.0] * 6
    assert paired_difference(ones, zeros).at_floor and paired_difference(ones, zeros).p == 2 / 2**6
    assert not paired_difference([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]).at_floor
    many = paired_difference([1.0] * 60, [0.0] * 60)
    assert many.at_floor and many.p == 1 / 10_001
    assert not paired_difference(ones, ones).at_floor


def test_rows_of_one_fact_do_not_count_as_independent() -> None:
    base = NOISE.random(30)
    repeated, groups = np.repeat(base, 8), np.repeat(np.arange(30), 8)
    alone, grouped = mean_interval(base), mean_interval(repeated, groups=groups)
    naive = mean_interval(repeated)
    assert grouped.clusters == 30 and grouped.n == 240
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)


def test_phrasings_belong_to_their_fact() -> None:
    assert facts(["harbour:Ash#1", "harbour:Ash#12", "harbour:Ash", "a#b"]) == [
        *["harbour:Ash"] * 3,
        "a#b",
    ]


def test_paired_difference_sees_what_is_shared() -> None:
    b = NOISE.random(50)
    a = b + 0.05 + 0.01 * NOISE.standard_normal(50)
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(0.05, abs=0.01)
    assert found.low > 0 and found.p < 0.001


def test_small_samples_get_the_exact_sign_flip_p() -> None:
    assert paired_difference([1, 1, 1, 1.5], [0, 0, 0, 0]).p == 2 / 2**4


def test_no_difference_at_all_is_p_one_with_a_width() -> None:
    found = paired_difference([1.0] * 40, [1.0] * 40, scale=SHARE)
    assert (found.low, found.high) == pytest.approx((-wilson(0, 40).high, wilson(0, 40).high))
    assert not paired_difference([1.0] * 40, [1.0] * 40).known
    assert found.p == 1.0 and found.low < 0 < found.high


def test_pairs_with_a_missing_side_are_dropped() -> None:
    assert paired_difference([1, math.nan, 0.5], [0, 0, math.nan]).n == 1
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1], [1, 2])


def test_comparison_uses_both_sample_sizes() -> None:
    scores = [1.0] * 80 + [0.0] * 20
    assert compare(0.85, scores, 1000) == "consistent"
    assert compare(0.95, scores, 1000) == "below"
    assert compare(0.60, scores, 1000) == "above"
    # Few records of the paper leave room for chance.
    assert compare(0.95, scores, 6) == "consistent"


def test_z_is_the_documented_formula() -> None:
    scores = NOISE.random(30)
    expected = (scores.mean() - 0.4) / math.sqrt(scores.var(ddof=1) * (1 / 30 + 1 / 200))
    assert z_score(0.4, scores, 200) == pytest.approx(expected, rel=1e-9)
    assert z_score(0.4, scores, 200, resolution=1.0) == 0


def test_agreeing_records_do_not_make_every_reported_number_wrong() -> None:
    assert compare(0.98, [1.0] * 50, 1000, scale=SHARE) == "consistent"
    assert compare(0.50, [1.0] * 50, 1000, scale=SHARE) == "above"
    assert compare(0.98, [1.0] * 50, 1000, scale=NATS) == "not comparable"


@pytest.mark.parametrize(
    ("reported", "values", "n"),
    [(None, [1, 0, 1], 10), (0.5, [1, 0, 1], None), (0.5, [1], 10), (math.nan, [1, 0], 10)],
)
def test_not_comparable(reported: float | None, values: list[float], n: int | None) -> None:
    assert compare(reported, values, n) == "not comparable"


def test_spread_is_over_seed_means() -> None:
    found = spread_over_seeds([1, 2, 3, 5], ["a", "a", "b", "b"])
    assert (found.mean, found.low, found.high, found.seeds) == (2.75, 1.5, 4.0, 2)
    assert math.isnan(spread_over_seeds([1, 2], [0, 0]).sd)
    assert spread_over_seeds([], []).seeds == 0


def test_holm_steps_down_and_keeps_nan() -> None:
    assert holm([0.01, 0.04, math.nan, 0.03])[:2] == pytest.approx([0.03, 0.06])
    assert math.isnan(holm([0.01, math.nan])[1])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
