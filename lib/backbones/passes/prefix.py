"""The frozen prefix: blocks below the first edited one never change, so they run once.

A pass is recorded up to the first edited block; later passes replay what the block below it
returned. Exact by construction: the replayed tensors are the ones the blocks would produce.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded
from lib.backbones.passes.hooks import (
    capture,
    detached_copy,
    first_tensor,
    select_rows,
    stop_before,
)


@dataclass(frozen=True)
class PrefixState:
    """The output of block `first` - 1 for one batch (None if `first` is 0), and the outputs of
    the modules that were watched on the way, by name."""

    output: Any
    watched: dict[str, Tensor]
    watched_inputs: dict[str, Tensor]
    rows: int

    def select(self, rows: Tensor) -> "PrefixState":
        """The state of some rows of the batch."""
        return PrefixState(
            select_rows(self.output, rows, self.rows),
            {k: v.index_select(0, rows) for k, v in self.watched.items()},
            {k: v.index_select(0, rows) for k, v in self.watched_inputs.items()},
            len(rows),
        )


class FrozenPrefix:
    """Blocks 0 … `first` - 1 of one stack of a backbone (`stack` matters for seq2seq only)."""

    def __init__(self, backbone: Backbone, first: int, stack: str = "encoder") -> None:
        self.backbone = backbone
        self.first = first
        self.stack = stack

    def _block(self, index: int) -> nn.Module:
        return self.backbone.module("block", index, stack=self.stack)

    @torch.no_grad()
    def record(
        self,
        batch: Encoded,
        watch: tuple[str, ...] = (),
        cache: Cache | None = None,
        below: "Start | None" = None,
    ) -> PrefixState:
        """Run the blocks below `first` on a batch, once.

        `watch` names modules (by path) whose output and input to keep; they must lie below
        `first` or in block `first` itself. A `cache` collects the keys and values of those blocks
        (causal models), for decoding. With `below`, what a lower prefix recorded of the same rows,
        only the blocks from there on run (and only these are watched and cached).
        """
        backbone = self.backbone
        beyond = self.first + (not all(map(self.holds, watch)))
        with contextlib.ExitStack() as context:
            seen = {
                name: context.enter_context(capture(backbone.model.get_submodule(name)))
                for name in watch
            }
            last = (
                context.enter_context(capture(self._block(self.first - 1))) if self.first else None
            )
            if beyond < backbone.n_blocks(self.stack):
                context.enter_context(stop_before(self._block(beyond)))
            if below is not None:
                context.enter_context(below.prefix.replay(below.state))
            self._run(batch, cache)
        return PrefixState(
            detached_copy(last.output) if last else None,
            {name: detached_copy(first_tensor(item.output)) for name, item in seen.items()},
            {name: detached_copy(item.input) for name, item in seen.items()},
            len(batch),
        )

    def _run(self, batch: Encoded, cache: Cache | None) -> None:
        """One pass over the stack; causal rows get position ids that ignore padding."""
        model = self.backbone.model
        if self.backbone.family.kind == "seq2seq":
            model.get_encoder()(**batch.inputs())
        elif self.backbone.family.kind == "causal":
            model.base_model(
                **batch.inputs(),
                position_ids=batch.positions(),
                past_key_values=cache,
                use_cache=cache is not None,
            )
        else:
            model.base_model(**batch.inputs())

    @contextlib.contextmanager
    def replay(self, state: PrefixState | None) -> Iterator[None]:
        """Passes inside the context start at block `first`, from the recorded state."""
        if state is None or state.output is None:
            yield
            return
        blocks = [self._block(index) for index in range(self.first)]

        def recorded(*_arguments: Any, **_keywords: Any) -> Any:
            return state.output

        for block in blocks:
            block.forward = recorded
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def holds(self, path: str) -> bool:
        """Whether a module lies in one of the blocks of this prefix."""
        blocks = (self.backbone.path("block", i, stack=self.stack) for i in range(self.first))
        return any(path.startswith(f"{block}.") for block in blocks)


@dataclass(frozen=True)
class Start:
    """A lower prefix and what it recorded."""

    prefix: FrozenPrefix
    state: PrefixState
