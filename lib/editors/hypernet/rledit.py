"""RLEdit (Li, Jiang, Chen, Bi, Zhou, Sun, Fang, Wang; ICML 2025): MALMEN's network, trained along
a sequence of edits.

An epoch is one sequence: turns t = 1 ... T of m facts each, W_t = W_{t-1} + S_t, from the unedited
W_0. Beside `malmen`'s symbols: L_e(j; W) cross-entropy of batch j's rephrases, L_l(j; W_{t-1}, W)
divergence on its unrelated prompts, gamma the decay and k the depth of looking back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lib.backbones.passes.fact_passes import MiniBatch, Pair, edit_pairs, unrelated_pairs
from lib.backbones.passes.logits import label_states
from lib.data.records import Edit, Stream
from lib.editors.base import KeysOf
from lib.editors.hypernet.capture import GraphMemory
from lib.editors.hypernet.editor import MetaLosses, Shifts, summed
from lib.editors.hypernet.malmen import Malmen, MalmenConfig
from lib.editors.hypernet.study import training_rows


@dataclass(frozen=True)
class RlEditConfig(MalmenConfig):
    """Defaults: the official configuration and code (rledit_ultraedit 3, 4.1).

    `time_decay` gamma, `back_depth` k. `step`: Adam steps once, after the last turn of a
    "sequence", as released, or after every "edit". `regulariser`: "released" is reg_coef |S|^2
    without a gradient, "applied" has one. `reference` of the divergence: the "previous" model,
    W_{t-1}, or the "original" one, W_0.
    """

    rank: int = 1024
    n_blocks: int = 4
    loc_coef: float = 0.6
    batch_rows: int = 4
    time_decay: float = 0.95
    back_depth: int = 10
    reg_coef: float = 1e-4
    step: Literal["sequence", "edit"] = "sequence"
    regulariser: Literal["released", "applied"] = "released"
    reference: Literal["previous", "original"] = "previous"


class RlEdit(Malmen):
    """MALMEN's shifts, on top of each other, by a network that was trained that way; the statistics
    of the rows go on while it edits."""

    name = "RLEdit"
    lifelong = True
    in_sequence = True
    config: RlEditConfig

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._begin()

    def _begin(self) -> None:
        """A new sequence, from the unedited model."""
        self._carried: Shifts = {}  # W_{t-1} - W_0
        self._past: Sequence[Sequence[Edit]] = ()  # the last batches, the latest first
        self._held: dict[tuple[Pair, ...], Tensor] = {}  # states under W_{t-1}, unrelated answers

    def meta_step(
        self, facts: Sequence[Edit], optimiser: torch.optim.Optimizer, turn: int, turns: int
    ) -> MetaLosses:
        """One turn. The accumulated gradient is clipped at every turn, g_t = clip(g_{t-1} + dL_t),
        and Adam steps where `step` says so."""
        if turn == 0:
            self._begin()
        losses = self.meta_gradients(facts)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        if self.config.step == "edit" or turn == turns - 1:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if turn == turns - 1:
            self._begin()
        return losses

    def meta_gradients(
        self, facts: Sequence[Edit], memory: GraphMemory | None = None
    ) -> MetaLosses:
        """Add the gradients of turn t to the network's `.grad` and carry W_t on; gives the losses
        of batch t. S_1 ... S_{t-1} are constants (rledit_ultraedit 1.2)."""
        memory = memory or GraphMemory.off()
        config, weights = self.config, self.weights
        self._past = (facts, *self._past)[: config.back_depth]
        weights.write(self._carried)  # W_{t-1}
        try:
            store, _ = self.cache(self._batches(edit_pairs(facts)), learn=True)
            memory.rows = store.bytes
            self._held = self._states_now() if config.reference == "previous" else {}
            with torch.no_grad():
                solved = {path: self.shift(path, store) for path in self.paths}
            shifts = {path: shift for path, (shift, _) in solved.items()}
            self._carried = summed(self._carried, shifts)
            weights.write(self._carried)  # W_t
            memory.exclude(module.weight for module in weights.modules.values())
            gammas, losses = {}, []
            for i, batch in enumerate(self._past):  # sum of gamma^i (L_e + c L_l)(t - i)
                with weights.collecting() as found:
                    losses.append(self._losses(batch, found, memory))
                decayed = {path: config.time_decay**i * gamma for path, gamma in found.items()}
                gammas = summed(gammas, decayed)
        finally:
            weights.restore()
        if config.regulariser == "applied":
            gammas = summed(gammas, {path: 2 * config.reg_coef * S for path, S in shifts.items()})
        self._through_network(store, solved, gammas, memory)
        store.close()
        return losses[0]

    @torch.no_grad()
    def _states_now(self) -> dict[tuple[Pair, ...], Tensor]:
        """States at the answers to all unrelated prompts, mini-batch by mini-batch."""
        found = {}
        for facts in self._past:
            for batch in self._batches(unrelated_pairs(facts)):
                with self.prefix.replay(batch.state):
                    states, _ = label_states(self.backbone, batch.rows, labels_only=True)
                found[tuple(batch.pairs)] = states
        return found

    def _before(self, batch: MiniBatch) -> Tensor:
        """See `Malmen._before`: W_{t-1}, or W_0."""
        held = self._held.get(tuple(batch.pairs))
        return super()._before(batch) if held is None else held

    def observe(self, stream: Stream, keys: KeysOf | None = None) -> Iterator[dict[str, Any]]:
        """The learning curve, what training cost, and how far it moved each part of the network
        from where it starts as a standardiser with a step size."""
        yield from training_rows(self.trained)
        yield from self._learned()

    @torch.no_grad()
    def _learned(self) -> Iterator[dict[str, Any]]:
        """Per layer: step size and ridge, and the largest change of the parts of its blocks (A, B
        and the layer's scale) since the start."""
        start = self.new_network()
        for path in self.paths:
            (net, module), (fresh, _) = self.network.of(path), start.of(path)
            pairs = list(zip(net.blocks, fresh.blocks, strict=True))
            yield {
                "kind": "learned",
                "path": path,
                "eta": net.eta[module].item(),
                "eta_start": fresh.eta[module].item(),
                "ridge": net.alpha[module].exp().item(),
                "A_moved": max((b.down - f.down).abs().max().item() for b, f in pairs),
                "B_moved": max((b.up - f.up).abs().max().item() for b, f in pairs),
                "scale_moved": max(
                    (b.scale[module] - f.scale[module]).abs().max().item() for b, f in pairs
                ),
            }
