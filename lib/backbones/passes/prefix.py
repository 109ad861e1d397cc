"""The frozen prefix: blocks below the first edited one never change, so they run once.

A pass is recorded up to the first edited block; later passes replay what the block below it
returned. Where it is known which matrices are edited, the part of that block that lies before them
is recorded too. Exact by construction: the replayed tensors are the ones that would be produced.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
    the modules that were watched on the way, by name. `begun`: of block `first`, the outputs of
    modules that lie before the edited matrices."""

    output: Any
    watched: dict[str, Tensor]
    watched_inputs: dict[str, Tensor]
    rows: int
    begun: dict[str, Any] = field(default_factory=dict)

    def select(self, rows: Tensor) -> "PrefixState":
        """The state of some rows of the batch."""
        return PrefixState(
            select_rows(self.output, rows, self.rows),
            {k: v.index_select(0, rows) for k, v in self.watched.items()},
            {k: v.index_select(0, rows) for k, v in self.watched_inputs.items()},
            len(rows),
            {k: select_rows(v, rows, self.rows) for k, v in self.begun.items()},
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
        edited: Sequence[str] = (),
    ) -> PrefixState:
        """Run the blocks below `first` on a batch, once.

        `watch` names modules (by path) whose output and input to keep; they must lie below
        `first` or in block `first` itself. A `cache` collects the keys and values of those blocks
        (causal models), for decoding. With `below`, what a lower prefix recorded of the same rows,
        only the blocks from there on run (and only these are watched and cached). `edited` names
        all modules that are edited: what block `first` does before them is then kept as well, for
        passes without a cache.
        """
        backbone = self.backbone
        before = self._before(edited)
        beyond = self.first + (bool(before) or not all(map(self.holds, watch)))
        with contextlib.ExitStack() as context:
            seen, begun = (
                {
                    name: context.enter_context(capture(backbone.model.get_submodule(name)))
                    for name in names
                }
                for names in (watch, before)
            )
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
            {name: detached_copy(getattr(begun[name], side)) for name, side in before.items()},
        )

    def _before(self, edited: Sequence[str]) -> dict[str, str]:
        """The modules of block `first` that need not run again if these are edited, and whether
        their "output" is kept or, of the edited matrix itself, its "input"."""
        family, first = self.backbone.family, self.first
        if first >= self.backbone.n_blocks(self.stack):
            return {}
        block, attention, last = (
            family.path(part, first, self.stack) for part in ("block", "attention", "mlp_out")
        )
        inside = [path for path in edited if path.startswith(f"{block}.")]
        if not inside or any(path.startswith(f"{attention}.") for path in inside):
            return {}
        return {attention: "output"} | ({last: "input"} if set(inside) == {last} else {})

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
        """Passes inside the context start at block `first`, from the recorded state, or at what is
        edited in it."""
        parts: dict[nn.Module, Callable[..., Any]] = {}
        if state is not None and state.output is not None:
            parts |= {self._block(i): _recorded(state.output) for i in range(self.first)}
        for path, kept in (state.begun if state is not None else {}).items():
            parts |= self._begun(path, kept)
        for module, forward in parts.items():
            module.forward = forward
        try:
            yield
        finally:
            for module in parts:
                del module.forward

    def _begun(self, path: str, kept: Any) -> dict[nn.Module, Callable[..., Any]]:
        """What stands in for modules of block `first`, of which one was recorded."""
        family, model = self.backbone.family, self.backbone.model
        if path != family.path("mlp_out", self.first, self.stack):
            return {model.get_submodule(path): _recorded(kept)}
        if "mlp" in family.parts(self.stack):
            mlp, matrix = self.backbone.module("mlp", self.first, self.stack), path
            return {mlp: lambda *_arguments, **_keywords: model.get_submodule(matrix)(kept)}
        above, _, _ = family.path("mlp_in", self.first, self.stack).rpartition(".")
        return {model.get_submodule(above): _recorded(kept)}

    def holds(self, path: str) -> bool:
        """Whether a module lies in one of the blocks of this prefix."""
        blocks = (self.backbone.path("block", i, stack=self.stack) for i in range(self.first))
        return any(path.startswith(f"{block}.") for block in blocks)


def _recorded(value: Any) -> Callable[..., Any]:
    return lambda *_arguments, **_keywords: value


@dataclass(frozen=True)
class Start:
    """A lower prefix and what it recorded."""

    prefix: FrozenPrefix
    state: PrefixState
