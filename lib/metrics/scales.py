"""On which scale a score lies: what every interval, verdict and page asks, and nothing guesses.

A score is declared here once, by the name of its column. A new column of scores needs an entry.
"""

import math
from dataclasses import dataclass
from typing import Literal

VOCABULARY = 50_257  # tokens of GPT-2: the order of size of every vocabulary used here


@dataclass(frozen=True)
class Scale:
    """The ends of a scale, which direction is better, whether a row is 0 or 1 and nothing between,
    and `span`: how far one row is taken to move at most. On a bounded scale that is its length;
    on an unbounded one it is a convention, written beside its declaration."""

    low: float = 0.0
    high: float = 1.0
    better: Literal["higher", "lower"] = "higher"
    binary: bool = False
    span: float = 1.0

    def reach(self, value: float) -> tuple[float, float]:
        """The lowest and the highest that a row could have been where all were `value`."""
        return max(self.low, value - self.span), min(self.high, value + self.span)


RIGHT = Scale(binary=True)  # right or wrong
SHARE = Scale()  # a share of something within a row: tokens, overlap
LEAD = Scale(-1.0, 1.0, span=2.0)  # one share minus another
# Nats per token. One row moves at most from certainty to guessing evenly over a vocabulary: a model
# that does worse than that on a text is further off, but no longer "unchanged" by any margin.
NATS = Scale(0.0, math.inf, "lower", span=math.log(VOCABULARY))
# The same span on the scale of perplexities; claims about them are judged on the logarithms.
PERPLEXITY = Scale(1.0, math.inf, "lower", span=float(VOCABULARY))

WRITTEN: dict[str, Scale] = {  # as the runs write them
    "f1_ids": SHARE, "f1_ids_released": SHARE, "exact_match": RIGHT, "begins_with": RIGHT,
    "agreement": RIGHT, "token_accuracy": SHARE, "answer_accuracy": SHARE,
    "answer_agreement": SHARE, "prompt_accuracy": SHARE, "prefers_target": RIGHT, "nll": NATS,
    "answer_nll": NATS, "answer_nll_released": NATS, "other_nll": NATS,
}  # fmt: skip
SCALES: dict[str, Scale] = WRITTEN | {  # and as pages read them
    "f1_released": SHARE, "served": RIGHT, "perplexity": PERPLEXITY, "score": SHARE, "read": SHARE,
    "right_answers": RIGHT, "same_answers": RIGHT, "weighed": SHARE, "tokens": SHARE,
    "right": RIGHT, "decoded": RIGHT, "kept": RIGHT, "kept_forced": RIGHT, "deferred": RIGHT,
    "forced": RIGHT, "unchanged": RIGHT,
    "lead": LEAD,
}  # fmt: skip


def scale_of(column: str) -> Scale:
    """The scale of a score; ValueError for one that was not declared."""
    if column not in SCALES:
        raise ValueError(
            f"the scale of the score {column!r} is not declared: add it to SCALES in "
            "lib/metrics/scales.py"
        )
    return SCALES[column]
