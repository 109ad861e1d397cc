"""Scores as pure functions of token ids, strings and log-likelihoods. A name is a definition.

`_released` marks what the official MELO code computes, kept beside the corrected form because
the published numbers came from it (melo 5).
"""

import math
from collections import Counter
from collections.abc import Sequence


def f1_ids_released(predicted: Sequence[int], gold: Sequence[int], pad: int) -> float:
    """Token F1 on *sets* of ids, official code: NaN where nothing overlaps.

    Overlap = size of the intersection of the id sets; precision divides by the number of
    predicted ids (duplicates counted), recall by that of gold ids; pads are dropped, the end mark
    is not, so a wrong answer of the same length still scores. The official division by zero is
    left to `released_batch_mean`, which turns it into what the paper reported.
    """
    predicted = [token for token in predicted if token != pad]
    gold = list(gold)
    overlap = len(set(predicted) & set(gold))
    if overlap == 0:
        return math.nan
    precision, recall = overlap / len(predicted), overlap / len(gold)
    return 2 * precision * recall / (precision + recall)


def released_batch_mean(scores: Sequence[float]) -> float:
    """The official mean of one batch: 0 if any row had no overlap, 0 for a batch of one row."""
    if len(scores) == 1 or any(math.isnan(score) for score in scores):
        return 0.0
    return sum(scores) / len(scores)


def f1_ids(predicted: Sequence[int], gold: Sequence[int], special: Sequence[int] = ()) -> float:
    """Token F1 on *multisets* of ids without special ids (pads, end marks); 0 if none overlap."""
    left = Counter(token for token in predicted if token not in special)
    right = Counter(token for token in gold if token not in special)
    overlap = (left & right).total()
    if overlap == 0:
        return 0.0
    precision, recall = overlap / left.total(), overlap / right.total()
    return 2 * precision * recall / (precision + recall)


def exact_match(predicted: str, gold: str) -> float:
    """1.0 if the decoded strings are equal after stripping outer white space."""
    return float(predicted.strip() == gold.strip())


def agreement(predicted: Sequence[int], before: Sequence[int]) -> float:
    """1.0 if the decoded ids are the ones that the unedited backbone gave."""
    return float(list(predicted) == list(before))


def mean(values: Sequence[float]) -> float:
    """The plain mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def answer_accuracy(argmax: Sequence[int], answer: Sequence[int]) -> float:
    """EasyEdit's token_em: share of the answer's tokens (without end mark) that are the
    teacher-forced argmax; NaN for an empty answer."""
    return mean([float(a == b) for a, b in zip(argmax, answer, strict=True)])


def answer_agreement(argmax: Sequence[int], before: Sequence[int]) -> float:
    """EasyEdit's locality: share of the answer's positions whose teacher-forced argmax is the one
    that the unedited backbone gave; what the answer says only sets the context."""
    return mean([float(a == b) for a, b in zip(argmax, before, strict=True)])


def prefers_target(answer_nll: float, other_nll: float) -> float:
    """CounterFact's score of one prompt: 1.0 if the answer is likelier per token than its
    competitor, 0.0 if not, NaN if there is none. A tie counts 0."""
    if math.isnan(answer_nll) or math.isnan(other_nll):
        return math.nan
    return float(answer_nll < other_nll)


def mean_of_batches(batches: Sequence[Sequence[float]]) -> float:
    """The official average: mean of batch means, NaN batches ignored, short batches count full."""
    means = [sum(batch) / len(batch) for batch in batches if batch]
    kept = [mean for mean in means if not math.isnan(mean)]
    return sum(kept) / len(kept) if kept else math.nan


def begins_with(predicted: Sequence[int], answer: Sequence[int]) -> float:
    """1.0 if the decoded ids begin with the answer's (a statement goes on after its object)."""
    return float(list(predicted[: len(answer)]) == list(answer))
