"""MALMEN (Tan, Zhang, Fu; ICLR 2024): massive editing by a hyper-network and least squares.

Symbols as in the paper's code: m facts edited at once; for one edited layer with weight W [d, d']
the rows K [n, d] (keys) and G [n, d'] (gradients of the edit loss at its output), one per cached
token; the network's (K~, G~); eta, lambda = exp(alpha); D [n, d'] wanted output changes; S [d, d']
the shift; Gamma = dL_meta/dW.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lib.backbones.passes.fact_passes import MiniBatch, edit_pairs, rephrase_pairs, unrelated_pairs
from lib.backbones.passes.logits import (
    divergence,
    edit_loss,
    label_logits,
    label_states,
    logits_of,
)
from lib.data.records import Edit, Stream
from lib.editors.base import KeysOf
from lib.editors.hypernet.capture import GraphMemory, RowStore, Tokens
from lib.editors.hypernet.editor import HyperConfig, HyperEditor, MetaLosses
from lib.editors.hypernet.network import TrainedNetwork
from lib.editors.hypernet.ridge import MinimumNorm, Ridge, Solve, rank_one_shifts, wanted_outputs
from lib.editors.hypernet.study import memory_rows, module_rows, training_rows
from lib.editors.hypernet.training import trained_network
from lib.editors.parts.weights import EditedWeights


@dataclass(frozen=True)
class MalmenConfig(HyperConfig):
    """`ridge`: lambda "learned" from 1 on, "fixed" at 1, or "none" (minimum-norm solution)."""

    ridge: Literal["learned", "fixed", "none"] = "learned"


class Malmen(HyperEditor):
    """One shift per layer that best gives every row the output change it wants."""

    name = "MALMEN"
    config: MalmenConfig

    def wanted(self, path: str, keys: Tensor, gradients: Tensor) -> Tensor:
        """D [n, d'] of some rows of a layer."""
        net, module = self.network.of(path)
        return wanted_outputs(net.eta[module], keys, *net(keys, gradients, module))

    def shift(self, path: str, store: RowStore) -> tuple[Tensor, Solve | None]:
        """S = (K^T K + lambda I)^-1 K^T D, and the solve for `proxies`."""
        rows = ((k, self.wanted(path, k, g)) for k, g in self.chunks(store, path))
        net, module = self.network.of(path)
        if self.config.ridge == "none":
            solve: Solve = MinimumNorm(rows)
        else:
            size = store.rows(path), self.weights.shape(path)[0]
            solve = Ridge(rows, size, net.alpha[module].exp().item())
        return solve.shift, solve

    def proxies(
        self, path: str, store: RowStore, gamma: Tensor, solve: Solve | None
    ) -> Iterator[Callable[[], Tensor]]:
        """Scalars whose gradients with respect to the network are those of the meta loss.

        dL/dD is constant: the proxy <dL/dD, D(theta)> carries it into the network, chunk by chunk;
        lambda gets its own gradient in closed form (malmen 2.2).
        """
        net, module = self.network.of(path)
        through = solve.wanted_gradient((k for k, _ in self.chunks(store, path)), gamma)
        if self.config.ridge == "learned":
            yield lambda: solve.log_ridge_gradient() * net.alpha[module]
        for (k, g), constant in zip(self.chunks(store, path), through, strict=True):
            yield lambda k=k, g=g, constant=constant: (constant * self.wanted(path, k, g)).sum()

    # -- one meta-step (malmen 2.4) --------------------------------------------------------------

    def train(self, m: int) -> TrainedNetwork:
        """See `HyperEditor.train`."""
        return trained_network(self, m)

    def meta_gradients(
        self, facts: Sequence[Edit], memory: GraphMemory | None = None
    ) -> MetaLosses:
        """Leave the meta-gradients of a meta-batch of m facts in the network's `.grad`.

        Decoupled: the language model and the network run one after the other, mini-batch by
        mini-batch, so that memory does not grow with m but for the rows. `memory` counts what the
        passes keep for their backward passes.
        """
        memory = memory or GraphMemory.off()
        network, weights = self.network, self.weights
        network.zero_grad(set_to_none=True)
        store, _ = self.cache(self._batches(edit_pairs(facts)), learn=True, unedited=True)
        memory.rows = store.bytes
        with torch.no_grad():
            solved = {path: self.shift(path, store) for path in self.paths}
        weights.write({path: shift for path, (shift, _) in solved.items()})
        memory.exclude(module.weight for module in weights.modules.values())
        try:
            with weights.collecting() as gammas:
                losses = self._losses(facts, gammas, memory)
        finally:
            weights.restore()
        self._through_network(store, solved, gammas, memory)
        store.close()
        return losses

    def _losses(
        self, facts: Sequence[Edit], gammas: dict[str, Tensor], memory: GraphMemory
    ) -> MetaLosses:
        """L_gen and L_loc of some facts under the weights in force, into Gamma."""
        generality = [
            self._generality(batch, gammas, memory)
            for batch in self._batches(rephrase_pairs(facts))
        ]
        locality = [
            self._locality(batch, gammas, memory) for batch in self._batches(unrelated_pairs(facts))
        ]
        return MetaLosses(sum(generality) / len(generality), sum(locality) / len(locality))

    def _through_network(
        self,
        store: RowStore,
        solved: dict[str, tuple[Tensor, Solve | None]],
        gammas: dict[str, Tensor],
        memory: GraphMemory,
    ) -> None:
        """From Gamma into the network's `.grad`, layer by layer; each solve is let go."""
        for path in self.paths:
            _, solve = solved.pop(path)
            for proxy in self.proxies(path, store, gammas[path], solve):
                with memory.of("network"):
                    value = proxy()
                value.backward()

    def _generality(
        self, batch: MiniBatch, gammas: dict[str, Tensor], memory: GraphMemory
    ) -> float:
        """Cross-entropy of the rephrases, into Gamma."""
        with memory.of("model"), self.prefix.replay(batch.state):
            loss = edit_loss(*label_logits(self.backbone, batch.rows, labels_only=True))
        return _collected(loss, self.weights, gammas)

    def _locality(self, batch: MiniBatch, gammas: dict[str, Tensor], memory: GraphMemory) -> float:
        """loc_coef KL(reference || edited) of the unrelated prompts, into Gamma."""
        with self.prefix.replay(batch.state):
            with torch.no_grad():
                reference = logits_of(self.backbone, self._before(batch))
            with memory.of("model"):
                logits, _ = label_logits(self.backbone, batch.rows, labels_only=True)
                loss = divergence(reference, logits)
        return _collected(loss, self.weights, gammas, self.config.loc_coef)

    def _before(self, batch: MiniBatch) -> Tensor:
        """`label_states` of the model that unrelated prompts are held to: the unedited one."""
        known = self.known.states(batch.pairs)
        if known is not None:
            return known
        with self.weights.originals():
            return label_states(self.backbone, batch.rows, labels_only=True)[0]

    def observe(self, stream: Stream, keys: KeysOf | None = None) -> Iterator[dict[str, Any]]:
        """The learning curve, what training cost, what a meta-step of the stream's size keeps in
        memory, and how well each layer's shift gives every row of the last batch the output change
        that it wants."""
        yield from training_rows(self.trained)
        yield from memory_rows(self, stream.batch_size)
        yield from module_rows(self, list(stream.batches())[-1])


def _collected(
    loss: Tensor, weights: EditedWeights, gammas: dict[str, Tensor], coefficient: float = 1.0
) -> float:
    (coefficient * loss).backward()
    weights.collect(gammas)
    return loss.item()


@dataclass(frozen=True)
class MendConfig(HyperConfig):
    """As MALMEN's without a ridge; every attended token is cached."""

    tokens: Tokens = "all"


class Mend(Malmen):
    """The sum of one rank-one shift per row."""

    name = "MEND"
    config: MendConfig

    def _summed(self, path: str, keys: Tensor, gradients: Tensor) -> Tensor:
        net, module = self.network.of(path)
        return rank_one_shifts(net.eta[module], *net(keys, gradients, module))

    def shift(self, path: str, store: RowStore) -> tuple[Tensor, Solve | None]:
        """S = -eta sum_j k~_j^T g~_j."""
        return sum(self._summed(path, k, g) for k, g in self.chunks(store, path)), None

    def proxies(
        self, path: str, store: RowStore, gamma: Tensor, solve: Solve | None
    ) -> Iterator[Callable[[], Tensor]]:
        """The proxy is <Gamma, S(theta)>, chunk by chunk."""
        for k, g in self.chunks(store, path):
            yield lambda k=k, g=g: (gamma * self._summed(path, k, g)).sum()
