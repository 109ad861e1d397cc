"""Ranking under resampling: cases done by hand, and an independent slow reference."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lib.metrics import ranking
from lib.metrics.intervals import paired_difference, wilson
from lib.metrics.ranking import Sample


def sample(rows: dict[str, list[list[float]]]) -> Sample:
    """One seed, one row per unit: editor -> parts -> scores."""
    sums = np.array(list(rows.values()), float)[:, :, None, :]
    units = tuple(f"fact {i}" for i in range(sums.shape[-1]))
    return Sample(tuple(rows), units, sums, np.ones_like(sums))


def test_the_score_is_a_harmonic_mean_and_zero_where_a_part_is() -> None:
    assert ranking.harmonic(np.array([1.0, 0.5, 0.5])) == pytest.approx(3 / 5)
    assert ranking.harmonic(np.array([1.0, 0.0, 1.0])) == 0
    assert ranking.harmonic(np.array([0.7])) == pytest.approx(0.7)
    assert math.isnan(ranking.harmonic(np.array([1.0, np.nan])))


def test_ties_share_their_places() -> None:
    found = ranking.ranks(np.array([0.5, 0.9, 0.5, 0.1]))
    assert found.tolist() == [2.5, 1, 2.5, 4]


def test_an_editor_that_wins_on_every_fact_is_first_in_every_draw() -> None:
    found = ranking.standings(sample({"A": [[0, 1, 0, 1]], "B": [[1, 1, 1, 1]]}))
    best, worst = found
    assert (best.editor, best.rank, worst.rank) == ("B", 1, 2)
    # B is not first alone where the draw has only facts 1 and 3: 2^4 of 4^4 draws, then shared.
    assert best.best == pytest.approx(1 - 0.5 * 16 / 256, abs=0.02)
    unseen = wilson(0, 4).high  # no draw of B differs: failures that it did not have
    assert (best.low, best.high) == pytest.approx((1 - unseen, 1))
    assert worst.low == 0 and worst.high == 1
    assert worst.rank_low == 1.5 and worst.rank_high == 2


def test_equal_editors_are_best_equally_often() -> None:
    found = ranking.standings(sample({"A": [[0, 1, 1]], "B": [[0, 1, 1]], "C": [[0, 0, 0]]}))
    shares = {one.editor: one.best for one in found}
    assert shares["A"] == shares["B"]
    # Only the draw without facts 1 and 2 makes all three equal: 1 of 27.
    assert shares["C"] == pytest.approx(1 / 27 / 3, abs=0.006)


def by_loops(rows: Sample, weights: np.ndarray) -> tuple[list[float], list[float]]:
    """The measure of every editor under one set of weights, and its ranks, by plain loops."""
    scores = []
    for e in range(len(rows.editors)):
        inverse, empty = 0.0, False
        parts = rows.sums.shape[1]
        for p in range(parts):
            total = count = 0.0
            for s, u in itertools.product(*(range(n) for n in weights.shape)):
                total += weights[s, u] * rows.sums[e, p, s, u]
                count += weights[s, u] * rows.counts[e, p, s, u]
            empty = empty or total == 0
            inverse += 0.0 if total == 0 else count / total
        scores.append(0.0 if empty else parts / inverse)
    order = sorted(range(len(scores)), key=lambda e: -scores[e])
    places: dict[int, float] = {}
    for _, group in itertools.groupby(order, key=lambda e: round(scores[e], 12)):
        tied = list(group)
        for e in tied:
            places[e] = len(places.keys() - set(tied)) + (len(tied) + 1) / 2
    return scores, [places[e] for e in range(len(scores))]


def test_scores_ranks_and_best_agree_with_plain_loops_over_seeds_and_parts() -> None:
    draw = np.random.default_rng(5)
    counts = draw.integers(1, 3, (3, 3, 2, 7)).astype(float)
    sums = np.minimum(counts, draw.integers(0, 3, counts.shape)).astype(float)
    rows = Sample(("A", "B", "C"), tuple("abcdefg"), sums, counts)
    drawn = ranking.weights(2, 7, 200, np.random.default_rng(0))
    assert (drawn.sum(axis=(1, 2)) == 2 * 7).all()  # of both kinds as many as there are
    slow = [by_loops(rows, one) for one in drawn]
    assert np.allclose(rows.under(drawn), [scores for scores, _ in slow])
    found = {one.editor: one for one in ranking.standings(rows, resamples=200)}
    placed = np.array([places for _, places in slow])
    first = placed == placed.min(axis=1, keepdims=True)
    best = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
    for number, name in enumerate("ABC"):
        assert found[name].best == pytest.approx(best[number])
        assert found[name].rank_low <= np.sort(placed[:, number])[10]
        assert found[name].score == pytest.approx(by_loops(rows, np.ones((2, 7)))[0][number])


def test_for_one_part_the_swap_test_is_the_sign_flip_test() -> None:
    a, b = [1, 1, 1, 1, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0, 1, 1]
    found = ranking.difference(sample({"A": [a], "B": [b]}), "A", "B")
    other = paired_difference(a, b)
    assert found.p == other.p == pytest.approx(12 / 32)  # |sum| >= 3 of five signs
    assert found.mean == other.mean == pytest.approx(3 / 8) and found.n == 8


def test_swapping_whole_facts_by_hand_for_the_harmonic_mean() -> None:
    rows = sample({"A": [[1, 1], [1, 1]], "B": [[0, 1], [1, 0]]})
    # As seen 1 - 0.5. With fact 1 or fact 2 swapped 0.667 - 0.667, with both 0.5 - 1.
    assert rows.scores.tolist() == [1, 0.5]
    assert ranking.swapped(rows) == (pytest.approx(2 / 4), True)
    assert ranking.difference(rows, "A", "B").mean == pytest.approx(0.5)


def test_many_swaps_are_drawn_and_few_facts_give_no_interval() -> None:
    generator = np.random.default_rng(1)
    better, worse = (generator.random(40) < share for share in (0.9, 0.4))
    found = ranking.difference(sample({"A": [better], "B": [worse]}), "A", "B")
    assert found.p < 0.001 and found.low > 0
    same = ranking.difference(sample({"A": [better], "B": [better]}), "A", "B")
    assert same.p == 1 and same.mean == 0 and not same.at_floor
    unseen, right = wilson(0, 40).high, better.mean()
    assert (same.low, same.high) == pytest.approx((-unseen, max(unseen, min(1 - right, unseen))))
    assert found.at_floor == (found.p <= 1 / 10_001)
    one = ranking.difference(sample({"A": [[1]], "B": [[0]]}), "A", "B")
    assert math.isnan(one.p) and not one.known


def test_shapes_that_do_not_match_are_an_error() -> None:
    with pytest.raises(ValueError, match="do not match"):
        Sample(("A",), ("u",), np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 2)))
    empty = Sample((), (), np.ones((0, 1, 1, 0)), np.ones((0, 1, 1, 0)))
    assert ranking.standings(empty) == []


def test_over_batches_the_p_of_one_part_is_that_of_the_pairs_and_of_several_a_jackknife() -> None:
    generator = np.random.default_rng(3)
    values = {name: generator.integers(0, 6, (1, 12)).astype(float) for name in "AB"}
    rows = replace(sample(values), counts=np.full((2, 1, 1, 12), 5.0), unit="batch", facts=60)
    found = ranking.difference(rows, "A", "B")
    means = [side[0] / 5 for side in values.values()]
    assert found.p == pytest.approx(stats.ttest_rel(*means).pvalue) and found.unit == "batch"
    several = replace(sample({name: generator.random((3, 12)) for name in "AB"}), unit="batch")
    without = []
    for left in range(12):  # by plain loops
        kept = [
            [[p for u, p in enumerate(part[0]) if u != left] for part in side]
            for side in several.sums
        ]
        scores = [3 / sum(len(part) / sum(part) for part in side) for side in kept]
        without.append(scores[0] - scores[1])
    middle = sum(without) / 12
    error = math.sqrt(11 / 12 * sum((value - middle) ** 2 for value in without))
    gap = ranking.difference(several, "A", "B")
    assert gap.p == pytest.approx(2 * stats.t.sf(abs(gap.mean) / error, 11))
