"""Perplexity three ways, from the mean negative log-likelihood and the token count of each row.

MELO prints `of_batches`, GRACE `of_rows` (batches of one row); `of_corpus` is what the word means
elsewhere (melo 5). NLL is in nats per token; a row counts `tokens` of them. Rows with NaN or
without tokens are left out.
"""

import math
from collections.abc import Hashable, Sequence


def of_batches(
    nll: Sequence[float], tokens: Sequence[int], batches: Sequence[Hashable]
) -> dict[Hashable, float]:
    """exp of the token-mean NLL of each batch, in order of appearance; `batches` names each row's.

    The official score is the plain mean of these: a short last batch counts like a full one.
    """
    sums: dict[Hashable, tuple[float, float]] = {}
    for mean, count, batch in zip(nll, tokens, batches, strict=True):
        if count and not math.isnan(mean):
            total, length = sums.get(batch, (0.0, 0.0))
            sums[batch] = total + mean * count, length + count
    return {batch: _exp(total / length) for batch, (total, length) in sums.items()}


def of_rows(nll: Sequence[float]) -> list[float]:
    """exp of each row's mean NLL; GRACE's score is the mean of these."""
    return [_exp(mean) for mean in nll if not math.isnan(mean)]


def of_corpus(nll: Sequence[float], tokens: Sequence[int]) -> float:
    """exp of the mean NLL over all tokens of all rows; NaN without any."""
    return next(iter(of_batches(nll, tokens, [0] * len(nll)).values()), math.nan)


def _exp(value: float) -> float:
    """e to the `value`; infinity where that is beyond the numbers (a model edited to pieces)."""
    return math.exp(value) if not value > 700 else math.inf
