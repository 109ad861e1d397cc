"""Scores against the worked examples of the parity checks."""

import math

import pytest

from lib.metrics import scores as metrics


def test_f1_on_id_sets_as_released() -> None:
    gold = [[5, 6, 1], [20, 21, 22, 1]]
    predicted = [[0, 5, 6, 1, 0], [0, 9, 8, 7, 1]]
    scores = [metrics.f1_ids_released(p, g, 0) for p, g in zip(predicted, gold, strict=True)]
    assert metrics.released_batch_mean(scores) == 0.625


def test_one_row_without_overlap_zeroes_the_released_batch_only() -> None:
    gold = [[5, 6, 1], [20, 21, 22, 1]]
    predicted = [[0, 5, 6, 1, 0], [0, 9, 8, 7, 2]]
    scores = [metrics.f1_ids_released(p, g, 0) for p, g in zip(predicted, gold, strict=True)]
    assert metrics.released_batch_mean(scores) == 0.0
    fixed = [metrics.f1_ids(p, g, {0}) for p, g in zip(predicted, gold, strict=True)]
    assert metrics.mean(fixed) == 0.5


def test_a_batch_of_one_row_is_zero_as_released() -> None:
    assert metrics.released_batch_mean([1.0]) == 0.0


def test_the_corrected_f1_counts_repeats_and_ignores_end_marks() -> None:
    assert metrics.f1_ids([7, 7, 1], [7, 8, 1], {1}) == 0.5
    assert metrics.f1_ids([9, 1], [8, 1], {1}) == 0.0
    assert metrics.f1_ids_released([9, 1], [8, 1], 0) == 0.5  # the end mark alone


def test_short_batches_count_full_as_released() -> None:
    assert metrics.mean_of_batches([[1.0] * 50, [0.0]]) == 0.5


def test_nan_batches_are_ignored() -> None:
    assert metrics.mean_of_batches([[1.0, 0.5], [math.nan]]) == 0.75


def test_exact_match_and_agreement() -> None:
    assert metrics.exact_match(" Port Amsel", "Port Amsel") == 1.0
    assert metrics.exact_match("Port amsel", "Port Amsel") == 0.0
    assert metrics.agreement([1, 2], (1, 2)) == 1.0
    assert metrics.agreement([1], (1, 2)) == 0.0


def test_answers_are_compared_position_by_position() -> None:
    assert metrics.answer_accuracy([7, 8, 9], [7, 5, 9]) == pytest.approx(2 / 3)
    assert metrics.answer_agreement([7, 8], [8, 7]) == 0.0
    assert math.isnan(metrics.answer_accuracy([], []))
    with pytest.raises(ValueError):
        metrics.answer_accuracy([7], [7, 8])


def test_the_likelier_answer_is_preferred() -> None:
    assert metrics.prefers_target(0.5, 0.7) == 1.0
    assert metrics.prefers_target(0.7, 0.7) == 0.0
    assert math.isnan(metrics.prefers_target(0.7, math.nan))
