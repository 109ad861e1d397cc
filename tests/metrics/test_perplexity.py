"""Perplexity: parity check 17 of the reference, and what tells the three kinds apart."""

import math

import pytest

from lib.metrics import perplexity

UNIFORM = math.log(50)


def test_uniform_predictions_have_the_vocabulary_size_as_perplexity() -> None:
    nll, tokens = [UNIFORM] * 5, [3, 7, 1, 4, 4]
    assert (
        list(perplexity.of_batches(nll, tokens, [0, 0, 0, 0, 1]).values())
        == [pytest.approx(50)] * 2
    )
    assert perplexity.of_rows(nll) == [pytest.approx(50)] * 5
    assert perplexity.of_corpus(nll, tokens) == pytest.approx(50)


def test_rows_of_different_length_tell_the_three_apart() -> None:
    nll, tokens, batches = [1.0, 3.0, 2.0], [9, 2, 4], ["a", "a", "b"]
    official = perplexity.of_batches(nll, tokens, batches)
    assert official == {"a": pytest.approx(math.exp(15 / 11)), "b": pytest.approx(math.exp(2))}
    assert perplexity.of_rows(nll) == pytest.approx([math.exp(1), math.exp(3), math.exp(2)])
    assert perplexity.of_corpus(nll, tokens) == pytest.approx(math.exp(23 / 15))


def test_rows_without_a_score_are_left_out_and_a_broken_model_is_no_error() -> None:
    nll, tokens = [math.nan, 2.0], [4, 4]
    assert perplexity.of_corpus(nll, tokens) == pytest.approx(math.exp(2))
    assert perplexity.of_batches(nll, tokens, [0, 1]) == {1: pytest.approx(math.exp(2))}
    assert math.isnan(perplexity.of_corpus([], []))
    assert perplexity.of_rows([1e4]) == [math.inf]
