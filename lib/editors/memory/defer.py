"""Defer: a gate and a linear map at one layer, GRACE's baseline "inspired by SERAC" (melo 7).

At the layer, every position with input h gets

    training:   sigmoid(w . h) * (M h) + (1 - sigmoid(w . h)) * output
    inference:  M h where sigmoid(w . h) >= 0.5, the layer's own output elsewhere.

The row that MELO's Table 2 calls SERAC carries this editor's numbers from GRACE's table; the real
SERAC (`serac.py`) keeps edits as text and has a model of its own answer them. Nothing is remembered
here: each batch of edits trains the same gate and map on, from where the batch before left them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.passes.logits import batch_loss
from lib.backbones.passes.prefix import FrozenPrefix
from lib.data.records import Edit
from lib.editors.base import Editor, EditorConfig, EditReport
from lib.editors.parts.minimise import minimise
from lib.editors.parts.sites import Site, first_block, input_width


@dataclass(frozen=True)
class DeferConfig(EditorConfig):
    """Defaults: GRACE's (its layer in T5, lr 1e-1, 100 steps)."""

    site: Site = Site("mlp_out", 4)
    lr: float = 1e-1
    steps: int = 100


class Defer(Editor):
    """State: gate w [d_in] and map M [d_out, d_in], in float32 or better.

    Where both begin is not known; here as a linear layer does, U(-1/sqrt(d_in), 1/sqrt(d_in)).
    """

    name = "Defer"
    config: DeferConfig

    def __init__(self, backbone: Backbone, config: DeferConfig) -> None:
        super().__init__(backbone, config)
        self.layer = backbone.model.get_submodule(config.site.path(backbone))
        self.prefix = FrozenPrefix(backbone, first_block(backbone, [config.site]))
        self._mixes = False
        self._begin()
        self._handle = self.layer.register_forward_hook(self._defer)

    def _begin(self) -> None:
        weight = self.layer.weight
        d_in = input_width(self.layer)
        d_out = weight.numel() // d_in
        generator = torch.Generator().manual_seed(self.config.seed)
        drawn = torch.rand(1 + d_out, d_in, generator=generator) * 2 - 1
        drawn = (drawn / d_in**0.5).to(
            weight.device, torch.promote_types(weight.dtype, drawn.dtype)
        )
        self.gate, self.map = (nn.Parameter(w, requires_grad=False) for w in (drawn[0], drawn[1:]))

    # -- what is applied ---------------------------------------------------------------------

    def _defer(self, _module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if not self._mixes and self.n_batches == 0:
            return None
        hidden, own = inputs[0].to(self.gate), output.to(self.gate)
        return defer(hidden, own, self.gate, self.map, soft=self._mixes).to(output)

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        self._mixes = True
        try:
            yield
        finally:
            self._mixes = False

    # -- editing -----------------------------------------------------------------------------

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        encoded = self.encoded(batch)
        trained = [self.gate.requires_grad_(True), self.map.requires_grad_(True)]
        state = self.prefix.record(encoded)
        try:
            with self._training(), self.prefix.replay(state):
                losses, seconds = minimise(
                    trained,
                    lambda: batch_loss(self.backbone, encoded),
                    steps=self.config.steps,
                    lr=self.config.lr,
                )
        finally:
            for parameter in trained:
                parameter.requires_grad_(False)
                parameter.grad = None
        return EditReport(seconds, losses[0], losses[-1], self.counts())

    # -- state -------------------------------------------------------------------------------

    def _rollback(self) -> None:
        self._begin()

    def _remove(self) -> None:
        self._handle.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The gate and the map."""
        return {"deferral": {"gate": self.gate.detach(), "map": self.map.detach()}}

    @torch.no_grad()
    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        self.gate.copy_(tensors["deferral"]["gate"])
        self.map.copy_(tensors["deferral"]["map"])

    def counts(self) -> dict[str, float]:
        """Trained parameters; nothing is stored beside them."""
        return {"parameters": self.gate.numel() + self.map.numel(), "stored_floats": 0}


def defer(hidden: Tensor, output: Tensor, gate: Tensor, value_map: Tensor, *, soft: bool) -> Tensor:
    """The layer's output [..., d_out] with M h mixed in (`soft`) or in its place where the gate is
    at least 0.5; hidden [..., d_in], gate [d_in], value_map [d_out, d_in]."""
    share, values = torch.sigmoid(hidden @ gate)[..., None], hidden @ value_map.T
    if soft:
        return share * values + (1 - share) * output
    return torch.where(share >= 0.5, values, output)
