"""The LoRA baseline of MELO's Table 2: one shared adapter, always active.

The paper gives no settings. As the study's notes suggest (melo 7): rank 64, alpha 64, no dropout,
on MELO's layers, with MELO's batches, optimiser and number of steps.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.backbones import Backbone
from lib.data.records import Edit
from lib.editors.base import BASE, Editor, EditorConfig, EditReport
from lib.editors.gated_lora import GatedLora
from lib.editors.prefix import FrozenPrefix
from lib.editors.saving import write_adapter_config
from lib.editors.sites import Site, first_block
from lib.editors.training import minimise
from lib.encoding import Encoded
from lib.forward import batch_loss


@dataclass(frozen=True)
class LoraConfig(EditorConfig):
    """One adapter of `rank` on `sites`; alpha = rank, so the update is B A x."""

    sites: tuple[Site, ...] = ()
    rank: int = 64
    lr: float = 1e-2
    steps: int = 50
    halve_every: int = 20


class Lora(Editor):
    """A gated LoRA with a single block whose gate is one for every row once it was trained."""

    name = "LoRA"
    config: LoraConfig

    def __init__(self, backbone: Backbone, config: LoraConfig) -> None:
        super().__init__(backbone, config)
        self.prefix = FrozenPrefix(backbone, first_block(backbone, config.sites))
        paths = [site.path(backbone) for site in config.sites]
        # The usual LoRA bound: Kaiming-uniform with a = sqrt(5) over the layer's input width.
        width = min(_input_width(backbone, path) for path in paths)
        self._bound = 1 / math.sqrt(width)
        self.lora = GatedLora(
            backbone.model,
            paths,
            n_blocks=1,
            rank_per_block=config.rank,
            bound=self._bound,
            seed=config.seed,
        )

    def _on(self) -> Tensor:
        """A gate [1, R] of ones; broadcasting over the batch serves every batch size."""
        return self.lora.one_block_gate([0], 1.0)

    @contextlib.contextmanager
    def routed(self, batch: Encoded, routes: Sequence[str]) -> Iterator[None]:
        """See `Editor.routed`: BASE rows are possible (the unedited model beside the edited)."""
        blocks = [-1 if route == BASE else 0 for route in routes]
        with self.lora.gated(self.lora.one_block_gate(blocks, 1.0)):
            yield

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        config = self.config
        encoded = self.encoded(batch)
        state = self.prefix.record(encoded)
        parameters = self.lora.train_parameters()
        try:
            with self.lora.gated(self._on()), self.prefix.replay(state):
                losses, seconds = minimise(
                    parameters,
                    lambda: batch_loss(self.backbone, encoded),
                    steps=config.steps,
                    lr=config.lr,
                    halve_every=config.halve_every,
                )
        finally:
            self.lora.freeze()
        self.lora.gate = self._on()
        return EditReport(seconds, losses[0], losses[-1], self.counts())

    def rollback(self) -> None:
        """See `Editor.rollback`."""
        self.lora.initialise(self._bound, self.config.seed)
        self.lora.gate = None
        self.n_edits = self.n_batches = 0

    def close(self) -> None:
        """See `Editor.close`."""
        self.lora.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The adapter in PEFT's format."""
        return {"adapter_model": self.lora.adapter_state(1)[0]}

    def _save_more(self, folder: Path) -> None:
        write_adapter_config(folder, self.lora.adapter_state(1)[1])

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        self.lora.load_adapter_state(tensors["adapter_model"])
        self.lora.gate = self._on()

    def counts(self) -> dict[str, float]:
        """Trainable parameters; nothing is stored beside them."""
        parameters = sum(parameter.numel() for parameter in self.lora.parameters())
        return {"parameters": parameters, "stored_floats": 0}


def _input_width(backbone: Backbone, path: str) -> int:
    weight: torch.Tensor = backbone.model.get_submodule(path).weight
    layer = backbone.model.get_submodule(path)
    return layer.in_features if hasattr(layer, "in_features") else weight.shape[0]
