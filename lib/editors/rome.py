"""ROME: one fact at a time as a rank-one change of one MLP output matrix (Meng et al., 2022).

EasyEdit's form (ref 8): k* is the mean key over context texts, u = k* / ||k*|| without the key
covariance (`moment_adjustment` brings it back: u = C^-1 k*, normalised), v* the searched output of
the MLP, and W <- W + (v* - W k) u^T / (u^T k) for the key k of the bare prompt.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.backbones import Backbone
from lib.data.corpus import Corpus
from lib.data.records import Edit
from lib.editors.base import EditReport
from lib.editors.closed_form import oriented
from lib.editors.locate import LocateConfig, LocateEditor
from lib.editors.subjects import Request
from lib.editors.value_cache import together
from lib.editors.values import Found
from lib.errors import EditorError


@dataclass(frozen=True)
class RomeConfig(LocateConfig):
    """Defaults: EasyEdit's for GPT2-XL (block 17, clamp 4, 15 contexts of 10 tokens)."""

    blocks: tuple[int, ...] = (17,)
    value_clamp: float = 4.0
    n_contexts: int = 15
    moment_adjustment: bool = False


class Rome(LocateEditor):
    """State: the one edited weight. Requests of a batch are applied one after the other."""

    name = "ROME"
    config: RomeConfig

    def __init__(
        self,
        backbone: Backbone,
        config: RomeConfig,
        *,
        corpus: Corpus | None = None,
        values_cache: Path | None = None,
    ) -> None:
        super().__init__(backbone, config, corpus=corpus, values_cache=values_cache)
        if len(config.blocks) != 1:
            raise EditorError(f"ROME edits one block, not {len(config.blocks)}: {config.blocks}")
        (self.block,) = self.blocks
        self.module = self.modules[self.block]
        self.original = self.module.weight.detach().clone()
        self._moment: Tensor | None = None

    def prepare(self, *, memory: bool = False) -> None:
        """See `LocateEditor.prepare`; ROME keeps statistics only for the adjustment."""
        super().prepare()
        if self.config.moment_adjustment and self._moment is None:
            self._moment = self.moments()[self.block].double()

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        self.prepare()
        before = self.module.weight.detach().clone()
        applied, began = [], time.perf_counter()
        try:
            for number, request in enumerate(self.requests(batch)):
                applied.append(self._apply(request, first=self.n_batches + number == 0))
        except BaseException:
            self._put(before)
            raise
        report = self.report(together(applied, self.backbone.device))
        return replace(report, seconds=time.perf_counter() - began)

    def _apply(self, request: Request, *, first: bool) -> Found:
        found = self.find_values([request], "mlp_out", unedited=first)
        value = found.values[0].double()
        written = self.passes([request], ("", *self.contexts))
        left = written.read("mlp_out", self.block, of_input=True).mean(dim=0)
        if self._moment is not None:
            left = torch.linalg.solve(self._moment.to(left.device), left)
        left = left / left.norm()
        bare = self.passes([request], ("",))
        bare.settle(self.block)
        key = bare.read("mlp_out", self.block, of_input=True)[0]
        output = bare.read("mlp_out", self.block)[0]
        right = (value - output) / (left @ key)
        with torch.no_grad():
            update = oriented(self.module, torch.outer(right, left))
            self.module.weight.copy_((self.module.weight.double() + update).to(self.module.weight))
        return found

    @torch.no_grad()
    def _put(self, weight: Tensor) -> None:
        self.module.weight.copy_(weight)

    def rollback(self) -> None:
        """See `Editor.rollback`."""
        self._put(self.original)
        self.n_edits = self.n_batches = 0

    def close(self) -> None:
        """See `Editor.close`."""
        self.rollback()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The edited weight."""
        return {"weights": {self.backbone.path("mlp_out", self.block): self.module.weight.detach()}}

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        path = self.backbone.path("mlp_out", self.block)
        if set(tensors["weights"]) != {path}:
            raise EditorError(f"the saved edits change other weights than {path}")
        self.restore_contexts(extra)
        self.prepare()  # before the weight is edited: statistics may have to be collected
        self._put(tensors["weights"][path])

    def counts(self) -> dict[str, float]:
        """The weight that changed; nothing is kept beside it."""
        return {"parameters": self.original.numel(), "stored_floats": 0}
