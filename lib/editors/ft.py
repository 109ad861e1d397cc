"""FT: plain fine-tuning of one weight matrix, the baseline that MELO's table calls CMR's base.

As in GRACE's code (melo 7): Adam, new for each call, on the weight of one linear layer, up to
`steps` steps, stopping when every target token of the batch is the argmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lib.backbones import Backbone
from lib.data.records import Edit
from lib.editors.base import Editor, EditorConfig, EditReport
from lib.editors.prefix import FrozenPrefix
from lib.editors.sites import Site, first_block
from lib.editors.training import minimise
from lib.errors import EditorError
from lib.forward import target_logits


@dataclass(frozen=True)
class FtConfig(EditorConfig):
    """Defaults: GRACE's (lr 1e-2, at most 100 steps)."""

    site: Site = Site("mlp_out", 4)
    lr: float = 1e-2
    steps: int = 100


class FineTune(Editor):
    """Trains the weight in place; a copy of the original makes rollback exact."""

    name = "FT"
    config: FtConfig

    def __init__(self, backbone: Backbone, config: FtConfig) -> None:
        super().__init__(backbone, config)
        self.prefix = FrozenPrefix(backbone, first_block(backbone, [config.site]))
        self.path = config.site.path(backbone)
        self.weight = backbone.model.get_submodule(self.path).weight
        self._original = self.weight.detach().clone()

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        encoded = self.encoded(batch)
        state = self.prefix.record(encoded)
        solved = False

        def loss() -> Tensor:
            nonlocal solved
            logits, labels, _ = target_logits(self.backbone, encoded)
            solved = bool((logits.argmax(dim=-1) == labels).all())
            return functional.cross_entropy(logits.float(), labels)

        self.weight.requires_grad_(True)
        try:
            with self.prefix.replay(state):
                losses, seconds = minimise(
                    [self.weight],
                    loss,
                    steps=self.config.steps,
                    lr=self.config.lr,
                    done=lambda: solved,
                )
        finally:
            self.weight.requires_grad_(False)
            self.weight.grad = None
        return EditReport(seconds, losses[0], losses[-1], self.counts())

    @torch.no_grad()
    def rollback(self) -> None:
        """See `Editor.rollback`."""
        self.weight.copy_(self._original)
        self.n_edits = self.n_batches = 0

    def close(self) -> None:
        """See `Editor.close`."""
        self.rollback()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The one weight that changed."""
        return {"weights": {self.path: self.weight.detach()}}

    @torch.no_grad()
    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        if set(tensors["weights"]) != {self.path}:
            raise EditorError(f"the saved edits change other weights than {self.path}")
        self.weight.copy_(tensors["weights"][self.path])

    def counts(self) -> dict[str, float]:
        """Trainable parameters; nothing is stored beside them."""
        return {"parameters": self.weight.numel(), "stored_floats": 0}
