"""Teacher-forced scores: how likely each token of a given answer is, and what is likeliest there.

Whole passes over prompt and answer stand here; `lib/decoding.py` scores answers as continuations
of a pass over the prompts. The two agree for every editor that treats all tokens alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from lib.backbones import Backbone
from lib.editors.prefix import FrozenPrefix, PrefixState
from lib.encoding import IGNORED, Encoded, answer_ids, batch_rows, pad, prompt_ids
from lib.forward import target_logits
from lib.metrics import scores


@dataclass(frozen=True)
class TargetScores:
    """For each row, at each token of its target: the target's id, its negative log-likelihood
    (nats) and the id that is the argmax. Rows without a target hold empty tuples."""

    ids: list[tuple[int, ...]]
    token_nll: list[tuple[float, ...]]
    argmax: list[tuple[int, ...]]

    @property
    def nll(self) -> list[float]:
        """Mean negative log-likelihood per target token of each row (NaN without a target)."""
        return [scores.mean(row) for row in self.token_nll]

    @property
    def token_accuracy(self) -> list[float]:
        """Share of each row's target tokens that are the argmax (NaN without a target)."""
        pairs = zip(self.argmax, self.ids, strict=True)
        return [scores.answer_accuracy(argmax, ids) for argmax, ids in pairs]

    def without(self, end: int) -> "TargetScores":
        """The scores of the answers alone: a target's closing end mark is left out."""
        kept = [len(row) - (row[-1:] == (end,)) for row in self.ids]

        def cut(rows: Sequence[tuple]) -> list[tuple]:
            return [row[:count] for row, count in zip(rows, kept, strict=True)]

        return TargetScores(cut(self.ids), cut(self.token_nll), cut(self.argmax))


def scores_at(logits: Tensor, labels: Tensor, counts: Sequence[int]) -> TargetScores:
    """Scores of logits [N, V] that predict labels [N]; rows own `counts` of the N, in order."""
    nll = functional.cross_entropy(logits.float(), labels, reduction="none")
    parts = (values.split(list(counts)) for values in (labels, nll, logits.argmax(dim=-1)))
    return TargetScores(*([tuple(row.tolist()) for row in rows] for rows in parts))


@dataclass(frozen=True)
class WholeRows:
    """Prompts with answers, right-padded and without end mark, as one pass reads them. `rows` are
    the rows of the batch that they stand for, `state` the frozen prefix."""

    rows: tuple[int, ...]
    encoded: Encoded
    state: PrefixState


def prepare_whole(
    backbone: Backbone,
    prefix: FrozenPrefix,
    prompts: Sequence[str],
    answers: Sequence[str],
    max_length: int | None = None,
) -> WholeRows | None:
    """Encode the rows that have an answer and run the frozen prefix on them, once; None if no row
    has one. For causal backbones."""
    rows = [row for row, answer in enumerate(answers) if answer]
    if not rows:
        return None
    heads = [prompt_ids(backbone, prompts[row], max_length) for row in rows]
    tails = [answer_ids(backbone, answers[row], max_length) for row in rows]
    whole = [head + tail for head, tail in zip(heads, tails, strict=True)]
    labels = [[IGNORED] * len(head) + tail for head, tail in zip(heads, tails, strict=True)]
    encoded = batch_rows(backbone, whole, [len(head) for head in heads], "right")
    encoded = replace(encoded, labels=pad(labels, IGNORED).to(backbone.device))
    return WholeRows(tuple(rows), encoded, prefix.record(encoded))


@torch.no_grad()
def score_whole(backbone: Backbone, prefix: FrozenPrefix, whole: WholeRows) -> TargetScores:
    """Scores of the answers by one whole pass under the weights in force."""
    with prefix.replay(whole.state):
        logits, labels, _ = target_logits(backbone, whole.encoded)
    return scores_at(logits, labels, (whole.encoded.labels != IGNORED).sum(dim=1).tolist())
