"""What meta-training reads of the unedited model: computed once for all steps, networks and seeds.

While a network learns, the backbone keeps its own weights in two of its passes: the one that traces
the edit prompts, and the one behind the KL divergence. What they give depends on the facts alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED
from lib.backbones.passes.fact_passes import BUDGET, FactPasses, Pair
from lib.backbones.passes.logits import FactRows, label_states, precise
from lib.editors.hypernet.capture import Tokens, cached, trace
from lib.editors.parts.sites import Site


@dataclass(frozen=True)
class TracedFact:
    """Keys and output gradients of a fact's own summed loss by module path; `labels` terms."""

    rows: dict[str, tuple[Tensor, Tensor]]
    labels: int

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return sum(keys.nbytes + gradients.nbytes for keys, gradients in self.rows.values())


class UneditedFacts:
    """Rows of edit prompts, and states at the answers to unrelated prompts, of training facts.

    Kept in the memory of `passes` for every editor with the same facts and edited layers. Of facts
    that need more than `BUDGET` bytes nothing is kept: whether that is so, and which rows share a
    pass, the facts alone decide, so that last digits do not move from run to run.
    """

    def __init__(
        self,
        backbone: Backbone,
        sites: Sequence[Site],
        tokens: Tokens,
        passes: FactPasses,
        facts: str,
    ) -> None:
        self.backbone, self.sites, self.tokens, self.passes = backbone, sites, tokens, passes
        base = (passes.prefix.first, passes.max_length, facts)
        kept = passes.memory.unedited
        self._traced = kept.setdefault((*base, tuple(sites), tokens), {})
        self._states = kept.setdefault(base, {})

    def fill(self, edits: Sequence[Pair], unrelated: Sequence[Pair]) -> None:
        """Run the passes over these pairs, on the backbone's own weights, unless they are there."""
        self._fill(self._traced, edits, self._trace)
        self._fill(self._states, unrelated, self._read)

    def _fill(
        self,
        kept: dict[Pair | None, Any],
        pairs: Sequence[Pair],
        compute: Callable[[Sequence[Pair]], Sequence[Any]],
    ) -> None:
        if None in kept or all(pair in kept for pair in pairs):
            return
        found, held = {}, 0
        for some in self.passes.groups(pairs):
            for pair, value in zip(some, compute(some), strict=True):
                found[pair] = value
                held += value.nbytes
            if held > BUDGET:
                kept[None] = None  # too much: nobody need try again
                return
        self.passes.memory.take(held, must=True)
        kept |= found

    def _trace(self, pairs: Sequence[Pair]) -> list[TracedFact]:
        batch = self.passes.batch(pairs)
        traced = trace(
            self.backbone, batch.rows, self.sites, self.tokens, self.passes.prefix, batch.state,
            summed=True,
        )  # fmt: skip
        counts = {
            site.path(self.backbone): _counts(self.backbone, batch.rows, site, self.tokens)
            for site in self.sites
        }
        parts = {
            path: list(zip(*(side.split(counts[path]) for side in rows), strict=True))
            for path, rows in traced.rows.items()
        }
        labels = labels_of(batch.rows)
        return [
            TracedFact(
                {path: tuple(t.clone() for t in cut[at]) for path, cut in parts.items()}, count
            )
            for at, count in enumerate(labels)
        ]

    @torch.no_grad()
    def _read(self, pairs: Sequence[Pair]) -> list[Tensor]:
        batch = self.passes.batch(pairs)
        with self.passes.prefix.replay(batch.state):
            states, _ = label_states(self.backbone, batch.rows, labels_only=True)
        return [part.clone() for part in states.split(labels_of(batch.rows))]

    def rows(self, pairs: Sequence[Pair]) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Keys and gradients of the mean loss of a mini-batch by module path, as `trace` gives
        them; None unless all pairs are kept."""
        if not all(pair in self._traced for pair in pairs):
            return None
        facts = [self._traced[pair] for pair in pairs]
        terms = sum(fact.labels for fact in facts)
        found = {}
        for path in facts[0].rows:
            keys, gradients = zip(*(fact.rows[path] for fact in facts), strict=True)
            found[path] = torch.cat(keys), precise(torch.cat(gradients)) / terms
        return found

    def states(self, pairs: Sequence[Pair]) -> Tensor | None:
        """`label_states` of a mini-batch; None unless all pairs are kept."""
        if not all(pair in self._states for pair in pairs):
            return None
        return torch.cat([self._states[pair] for pair in pairs])


def labels_of(rows: FactRows) -> list[int]:
    """Number of label positions of each row (a classifier's: one)."""
    if rows.labels.ndim == 1:
        return [1] * len(rows)
    return (rows.labels != IGNORED).sum(dim=1).tolist()


def _counts(backbone: Backbone, rows: FactRows, site: Site, tokens: Tokens) -> list[int]:
    return cached(backbone, rows, site.stack, tokens).sum(dim=1).tolist()
