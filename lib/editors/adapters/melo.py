"""MELO: neuron-indexed dynamic LoRA (Yu et al., AAAI 2024).

A batch of edits is learned in one block of a large LoRA; the blocks never overlap. A vector
index over activations of one frozen layer decides for each input which block, or none, is
active. The method section of the paper could not be read; the official code is the authority,
and "melo 2.x" below points into the study's notes on it.

    y = W x + N_b · B[b] A[b] x          (row routed to block b; melo 2.2)

N_b is the *capacity* (sqrt(N_b) on each factor in the official code): it scales every edit even
while most blocks are empty.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, Encoded, label_codes
from lib.backbones.passes.logits import batch_loss
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import Edit
from lib.editors.adapters.gated_lora import GatedLora, rank_bound, write_adapter_config
from lib.editors.adapters.vector_index import NONE, ConflictPolicy, VectorIndex
from lib.editors.base import UNEDITED, Editor, EditorConfig, EditReport
from lib.editors.parts.minimise import minimise
from lib.editors.parts.routing import PrefillRouter
from lib.editors.parts.sites import (
    KeyPosition,
    Site,
    check_router_below,
    first_block,
    key_columns,
    rows_at,
)
from lib.errors import EditorError
from lib.storage import fingerprints
from lib.storage.cache import Cache
from lib.storage.fingerprints import content_hash

NUMBERS = "numbers"  # of a kept block, beside its tensors: losses of all steps, then seconds


@dataclass(frozen=True)
class MeloConfig(EditorConfig):
    """Defaults: the official T5-Small configuration for zsRE (melo 3)."""

    sites: tuple[Site, ...] = ()
    router: Site = Site("mlp_out", 4)
    n_blocks: int = 20
    rank_per_block: int = 2
    radius: float = 75.0
    lr: float = 1e-2
    steps: int = 50
    halve_every: int = 20
    key_position: KeyPosition = "last_column"
    conflict_policy: ConflictPolicy = "as_released"
    route_per_step: bool = False


class Melo(Editor):
    """`blocks_cache`: where trained blocks are kept by content. A block's training
    depends on its batch and its initial slice alone (not on radius, router or earlier blocks), so
    runs that differ only in the index share it; `EditReport.seconds` is the recorded time then.
    """

    name = "MELO"
    needs = ("blocks_cache",)
    adapts = True
    config: MeloConfig

    def __init__(
        self, backbone: Backbone, config: MeloConfig, *, blocks_cache: Cache | None = None
    ) -> None:
        super().__init__(backbone, config)
        check_router_below(backbone, config.router, config.sites)
        self.blocks_cache = blocks_cache
        self.router_path = config.router.path(backbone)
        self.prefix = FrozenPrefix(backbone, first_block(backbone, config.sites))
        self.capacity = config.n_blocks
        self.scale = float(config.n_blocks)  # g² = N_b (melo 2.2)
        self.lora = GatedLora(
            backbone.model,
            [site.path(backbone) for site in config.sites],
            n_blocks=config.n_blocks,
            rank_per_block=config.rank_per_block,
            bound=rank_bound(config.n_blocks * config.rank_per_block),
            seed=config.seed,
        )
        self._router = PrefillRouter(
            backbone,
            self.router_path,
            on_keys=self._set_gate,
            at_work=self._has_edits,
            position=config.key_position,
            per_step=config.route_per_step,
        )
        self.tracker = self._router.tracker
        self._fresh_index()
        self._take()

    def _fresh_index(self) -> None:
        width = self._key_width()
        self.index = VectorIndex(width, self.config.radius, self.config.conflict_policy)
        self.block_keys: list[str] = []

    def _key_width(self) -> int:
        layer = self.model.get_submodule(self.router_path)
        return layer.out_features if hasattr(layer, "out_features") else layer.nf

    # -- keys and routes ---------------------------------------------------------------------

    @property
    def watch(self) -> tuple[str, ...]:
        """The router layer."""
        return (self.router_path,)

    def keys_from(self, state: PrefixState, batch: Encoded) -> Tensor:
        """q_i: the router layer's output at the key position, [B, d] (melo 2.4)."""
        columns = key_columns(batch, self.config.key_position)
        return rows_at(state.watched[self.router_path], columns)

    def keys_of(self, batch: Encoded) -> Tensor:
        """See `Editor.keys_of`. The official code passes no position ids, so that its causal key,
        in the last column, lies at a position that counts the pads."""
        return super().keys_of(replace(batch, pads_count=self.config.key_position == "last_column"))

    @property
    def keys_see_target(self) -> bool:
        """Whether a causal row that carries its target has another key than its prompt alone."""
        return self.config.key_position != "last_prompt_token"

    def routes_of(self, keys: Tensor) -> list[str]:
        """ "block 3" for a key in a cluster whose nearest point names block 3, else UNEDITED."""
        return [UNEDITED if block == NONE else f"block {block}" for block in self.index.route(keys)]

    @contextlib.contextmanager
    def routed(self, batch: Encoded, routes: Sequence[str]) -> Iterator[None]:
        """See `Editor.routed`."""
        blocks = [NONE if route == UNEDITED else int(route.split()[1]) for route in routes]
        with self._router.off(), self.lora.gated(self.lora.one_block_gate(blocks, self.scale)):
            yield

    def weights_of(self, route: str) -> str | None:
        """See `Editor.weights_of`: a block is what its batch and its initial slice made of it."""
        return route if route == UNEDITED else self.block_keys[int(route.split()[1])]

    def _set_gate(self, keys: Tensor) -> None:
        self.lora.gate = self.lora.one_block_gate(self.index.route(keys), self.scale)

    # -- editing -----------------------------------------------------------------------------

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        block = self.n_batches
        if block >= self.capacity:
            raise EditorError(
                f"MELO has {self.capacity} blocks and all are used; raise n_blocks (this changes "
                "every edit, because the capacity scales the update) or edit larger batches"
            )
        encoded = self.encoded(batch)
        # Training uses the new block whatever routing says, so the keys, which the official code
        # files at iteration 0, can be filed when it is done: a failure leaves the index as it was.
        identity = self._block_identity(block, encoded)
        state = self.prefix.record(encoded, watch=self.watch, edited=tuple(self.lora.layers))
        causal = self.backbone.family.kind == "causal"
        apart = causal and self.config.key_position == "last_column"  # a key of another pass
        keys = self.keys_of(encoded) if apart else self.keys_from(state, encoded)
        losses, seconds = self._train(block, encoded, state, identity)
        self.block_keys.append(content_hash(identity)[:24])
        self.index.insert(keys, self._codes(encoded), block)
        return EditReport(seconds, losses[0], losses[-1], self.counts(block + 1))

    def _codes(self, encoded: Encoded) -> list[int]:
        """Label codes: the official sum of ids, or an exact hash of them (`fixed`)."""
        if self.config.conflict_policy == "as_released":
            return label_codes(encoded.labels).tolist()
        rows = encoded.labels.reshape(len(encoded), -1).tolist()
        exact = [repr([i for i in row if i != IGNORED]).encode() for row in rows]
        return [int.from_bytes(hashlib.sha256(row).digest()[:7], "big") for row in exact]

    def _train(
        self, block: int, encoded: Encoded, state: PrefixState, identity: object
    ) -> tuple[list[float], float]:
        def train() -> bytes:
            losses, seconds = self._minimise(block, encoded, state)
            numbers = torch.tensor([*losses, seconds], dtype=torch.float64)
            tensors = {name: w.contiguous().cpu() for name, w in self.lora.read(block).items()}
            return save({NUMBERS: numbers, **tensors})

        kept = (
            train()
            if self.blocks_cache is None
            else self.blocks_cache.file("blocks", identity, train)
        )
        tensors = load(kept)
        *losses, seconds = tensors.pop(NUMBERS).tolist()
        self.lora.write(block, tensors)
        return losses, seconds

    def _minimise(
        self, block: int, encoded: Encoded, state: PrefixState
    ) -> tuple[list[float], float]:
        config = self.config
        with (
            self._router.off(),
            self.prefix.replay(state),
            self.lora.one_block(block) as parameters,
            self.lora.gated(parameters[0].new_full((1, config.rank_per_block), self.scale)),
        ):
            return minimise(
                parameters,
                lambda: batch_loss(self.backbone, encoded),
                steps=config.steps,
                lr=config.lr,
                halve_every=config.halve_every,
            )

    def _block_identity(self, block: int, encoded: Encoded) -> dict[str, Any]:
        """Everything that decides what a block becomes."""
        config = self.config
        return {
            "code": fingerprints.code("lib.editors.adapters.melo", apart=fingerprints.TOLD),
            "backbone": self.backbone.arithmetic,
            "sites": [asdict(site) for site in config.sites],
            "initial": [config.n_blocks, config.rank_per_block, config.seed, block],
            "scale": self.scale,
            "optimiser": [config.steps, config.lr, config.halve_every],
            "rows": [encoded.input_ids.tolist(), encoded.labels.tolist()],
        }

    # -- state -------------------------------------------------------------------------------

    def _rollback(self) -> None:
        """The blocks are drawn anew and the index is emptied."""
        rank = self.config.n_blocks * self.config.rank_per_block
        self.lora.initialise(rank_bound(rank), self.config.seed)
        self.lora.gate = None
        self._fresh_index()

    def _remove(self) -> None:
        self._router.remove()
        self.lora.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The used blocks as a PEFT adapter, and the index."""
        adapter, _ = self.lora.adapter_state(self.n_batches, self.scale)
        return {"adapter_model": adapter, "index": self.index.state()}

    def _save_more(self, folder: Path) -> None:
        write_adapter_config(folder, self.lora.adapter_state(self.n_batches, self.scale)[1])

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        self.lora.load_adapter_state(tensors["adapter_model"])
        self.index.restore(tensors["index"])
        self.block_keys = list(extra["block_keys"])

    def extra(self) -> dict[str, Any]:
        """Content keys of the trained blocks."""
        return {"block_keys": self.block_keys}

    def counts(self, used: int | None = None) -> dict[str, float]:
        """Clusters, conflicts, forgotten keys, parameters of used blocks, stored key floats."""
        used = self.n_batches if used is None else used
        per_block = sum(p.numel() for p in self.lora.parameters()) // self.capacity
        return {
            "clusters": self.index.n_clusters,
            "conflicts": self.index.counters.conflicts,
            "forgotten": self.index.counters.forgotten,
            "parameters": used * per_block,
            "stored_floats": self.index.keys.numel() + self.index.centres.numel(),
        }
