"""MEMIT: many facts written into the MLPs of several blocks at once (Meng et al., ICLR 2023).

EasyEdit's form (ref 2.4-2.6, 8). Consecutive batches re-apply the same step to the edited weights
with the same statistics. `history` is COMEBA-HK's ablation without hook layers (ref 2.12): the keys
of earlier batches are protected too, weighted by lambda (what its official code does) or by one
(what its hook version does).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.data.corpus import Corpus
from lib.data.records import Edit
from lib.editors.base import EditReport
from lib.editors.locate.editor import LocateConfig, LocateEditor
from lib.editors.parts.weights import oriented
from lib.errors import EditorError
from lib.storage.cache import Cache

History = Literal["none", "lambda", "one"]


@dataclass(frozen=True)
class MemitConfig(LocateConfig):
    """Defaults: EasyEdit's for GPT2-XL (lambda 20000)."""

    moment_weight: float = 20000.0
    history: History = "none"


class Memit(LocateEditor):
    """State: the edited weights, and the absorbed keys if there is a history."""

    name = "MEMIT"
    in_weights = True
    config: MemitConfig

    def __init__(
        self,
        backbone: Backbone,
        config: MemitConfig,
        *,
        corpus: Corpus | None = None,
        values_cache: Cache | None = None,
    ) -> None:
        super().__init__(backbone, config, corpus=corpus, values_cache=values_cache)
        self.original = {
            block: module.weight.detach().clone() for block, module in self.modules.items()
        }

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        self.prepare(memory=True)
        requests = self.requests(batch)
        before = {block: module.weight.detach().clone() for block, module in self.modules.items()}
        found = self.find_values(requests)
        try:
            began = time.perf_counter()
            absorbed = self.spread(requests, found.values.double(), self._add)
        except BaseException:
            self._put(before)
            raise
        # lambda (M + sum K K^T) or lambda M + sum K K^T: what the next batch will be solved with.
        weight = {"none": 0.0, "lambda": self.config.moment_weight, "one": 1.0}
        if self.config.history != "none":
            for block, keys in absorbed.items():
                self.memory[block].absorb(keys, weight[self.config.history])
        report = self.report(found)
        return replace(report, seconds=report.seconds + time.perf_counter() - began)

    @torch.no_grad()
    def _add(self, block: int, update: Tensor) -> None:
        module = self.modules[block]
        new = module.weight.double() + oriented(module, update)
        module.weight.copy_(new.to(module.weight.dtype))

    @torch.no_grad()
    def _put(self, weights: dict[int, Tensor]) -> None:
        for block, weight in weights.items():
            self.modules[block].weight.copy_(weight)

    def _rollback(self) -> None:
        self._put(self.original)
        for memory in self.memory.values():
            memory.reset()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The edited weights; with a history also C of each block (group "moments")."""
        paths = {block: self.backbone.path("mlp_out", block) for block in self.blocks}
        state = {"weights": {paths[block]: m.weight.detach() for block, m in self.modules.items()}}
        if self.config.history != "none" and self.memory:
            state["moments"] = {paths[block]: m.moment for block, m in self.memory.items()}
        return state

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`. Statistics are the cached ones."""
        self.restore_contexts(extra)
        paths = {block: self.backbone.path("mlp_out", block) for block in self.blocks}
        if set(tensors["weights"]) != set(paths.values()):
            raise EditorError(f"the saved edits change other weights than those of {self.blocks}")
        if self.n_batches:  # before any weight is edited: statistics may have to be collected
            self.prepare(memory=True)
        if "moments" in tensors:
            for block, path in paths.items():
                self.memory[block].restore(tensors["moments"][path])
        self._put({block: tensors["weights"][path] for block, path in paths.items()})

    def counts(self) -> dict[str, float]:
        """Weights that changed, and numbers of C kept for later batches."""
        kept = self.config.history != "none"
        return {
            "parameters": sum(weight.numel() for weight in self.original.values()),
            "stored_floats": sum(m.moment.numel() for m in self.memory.values()) * kept,
        }
