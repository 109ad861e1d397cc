"""The LoRA baseline of MELO's and ELDER's tables: one shared adapter, always active.

Neither paper gives settings. As the study's notes suggest: rank 64, alpha 64, on MELO's layers,
with MELO's batches, optimiser and number of steps (melo 7); for ELDER, EasyEdit's rank 8, alpha 32
on the attention's projections, edit after edit (elder 7). No dropout: models stay in eval mode.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded
from lib.backbones.passes.logits import batch_loss
from lib.backbones.passes.prefix import FrozenPrefix
from lib.data.records import Edit
from lib.editors.adapters.gated_lora import GatedLora, write_adapter_config
from lib.editors.base import UNEDITED, Editor, EditorConfig, EditReport
from lib.editors.parts.minimise import minimise
from lib.editors.parts.sites import Site, first_block, input_width
from lib.errors import EditorError


@dataclass(frozen=True)
class LoraConfig(EditorConfig):
    """One adapter of `rank` on `sites`, or on the `parts` of every block: alpha / rank times B A x
    (alpha None: rank). `one_by_one`: the edits of a batch follow each other, Adam new for each."""

    sites: tuple[Site, ...] = ()
    parts: tuple[str, ...] = ()
    rank: int = 64
    alpha: float | None = None
    one_by_one: bool = False
    lr: float = 1e-2
    steps: int = 50
    halve_every: int | None = 20


class Lora(Editor):
    """A gated LoRA with a single block whose gate is one for every row once it was trained."""

    name = "LoRA"
    adapts = True
    config: LoraConfig

    def __init__(self, backbone: Backbone, config: LoraConfig) -> None:
        super().__init__(backbone, config)
        every = [Site(p, b) for b in range(backbone.n_blocks()) for p in config.parts]
        sites = [*config.sites, *every]
        if not sites:
            raise EditorError("LoRA needs the layers to adapt: give sites, or parts of every block")
        self.prefix = FrozenPrefix(backbone, first_block(backbone, sites))
        self.scale = (config.alpha or config.rank) / config.rank
        paths = [site.path(backbone) for site in sites]
        # The usual LoRA bound: Kaiming-uniform with a = sqrt(5) over the layer's input width.
        width = min(input_width(backbone.model.get_submodule(path)) for path in paths)
        self._bound = 1 / math.sqrt(width)
        self.lora = GatedLora(
            backbone.model,
            paths,
            n_blocks=1,
            rank_per_block=config.rank,
            bound=self._bound,
            seed=config.seed,
        )
        self._take()

    def _on(self) -> Tensor:
        """A gate [1, R] of alpha / rank; broadcasting over the batch serves every batch size."""
        return self.lora.one_block_gate([0], self.scale)

    @contextlib.contextmanager
    def routed(self, batch: Encoded, routes: Sequence[str]) -> Iterator[None]:
        """See `Editor.routed`: rows that are left to the unedited model are possible."""
        blocks = [-1 if route == UNEDITED else 0 for route in routes]
        with self.lora.gated(self.lora.one_block_gate(blocks, self.scale)):
            yield

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        parts = [[edit] for edit in batch] if self.config.one_by_one else [batch]
        trained = [self._train(part) for part in parts]
        self.lora.gate = self._on()
        first, last = (sum(losses[at] for losses, _ in trained) / len(trained) for at in (0, -1))
        return EditReport(sum(seconds for _, seconds in trained), first, last, self.counts())

    def _train(self, batch: Sequence[Edit]) -> tuple[list[float], float]:
        config = self.config
        encoded = self.encoded(batch)
        state = self.prefix.record(encoded, edited=tuple(self.lora.layers))
        parameters = self.lora.train_parameters()
        try:
            with self.lora.gated(self._on()), self.prefix.replay(state):
                return minimise(
                    parameters,
                    lambda: batch_loss(self.backbone, encoded),
                    steps=config.steps,
                    lr=config.lr,
                    halve_every=config.halve_every,
                )
        finally:
            self.lora.freeze()

    def _rollback(self) -> None:
        self.lora.initialise(self._bound, self.config.seed)
        self.lora.gate = None

    def _remove(self) -> None:
        self.lora.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The adapter in PEFT's format."""
        return {"adapter_model": self.lora.adapter_state(1, self.scale)[0]}

    def _save_more(self, folder: Path) -> None:
        write_adapter_config(folder, self.lora.adapter_state(1, self.scale)[1])

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        self.lora.load_adapter_state(tensors["adapter_model"])
        self.lora.gate = self._on() if self.n_batches else None

    def counts(self) -> dict[str, float]:
        """Trainable parameters; nothing is stored beside them."""
        parameters = sum(parameter.numel() for parameter in self.lora.parameters())
        return {"parameters": parameters, "stored_floats": 0}
