"""COMEBA-HK, later CoachHooK: consecutive batches of closed-form edits in hook layers.

Li et al., "Consecutive Batch Model Editing with HooK Layers" (EMNLP 2024); the official code is the
authority. The backbone's weights are never written: each edited block keeps a hook weight W_h
beside its MLP output matrix, and a token meets W_h only if it is an outlier of ||O - P|| in its row
(`scope.HookLayer`). Between rounds the editor keeps W_h, the accumulated C and alpha per block,
and nothing else: its size does not grow.

The variant without hook layers is MEMIT with `history` (memit.py).
"""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded
from lib.backbones.passes.hooks import stop_before
from lib.data.corpus import Corpus
from lib.data.records import Edit, Stream
from lib.editors.base import UNEDITED, EditReport, KeysOf
from lib.editors.locate.editor import LocateConfig, LocateEditor
from lib.editors.locate.scope import HookLayer, Mode, token_rows
from lib.editors.locate.subjects import CHUNK, Request, Rows, contextual, encode_rows, head_length
from lib.editors.parts.routing import PromptTracker
from lib.editors.parts.weights import oriented
from lib.errors import EditorError
from lib.storage.cache import Cache

Scope = Literal["as_released", "intended"]


@dataclass(frozen=True)
class ComebaHkConfig(LocateConfig):
    """Defaults: the official run script on EasyEdit's GPT2-XL configuration.

    `alpha`: initial threshold of every block. `pad_in_stats`: pads count in the scope statistics
    while editing, as in the official code. `scope`: "as_released" scores a whole row, answer
    included, when it is fed the answer; "intended" decides once, on the prompt.
    """

    alpha: float = 2.2
    pad_in_stats: bool = True
    scope: Scope = "as_released"


class ComebaHk(LocateEditor):
    """State per edited block: hook weight, alpha, C."""

    name = "COMEBA-HK"
    config: ComebaHkConfig

    def __init__(
        self,
        backbone: Backbone,
        config: ComebaHkConfig,
        *,
        corpus: Corpus | None = None,
        values_cache: Cache | None = None,
    ) -> None:
        super().__init__(backbone, config, corpus=corpus, values_cache=values_cache)
        if any(module._forward_hooks for module in self.modules.values()):
            raise EditorError(
                "another editor has a hook in one of COMEBA-HK's layers, which would be copied; "
                "close() it before building this one"
            )
        self.head = head_length(backbone)
        self.tracker = PromptTracker(backbone)
        self.hooks = {
            block: HookLayer(module, self.tracker, config.alpha, self.head)
            for block, module in self.modules.items()
        }

    @property
    def scope_sees_target(self) -> bool:
        """Whether a whole row is scored with its answer's tokens in the scope statistics."""
        return self.config.scope == "as_released"

    # -- one batch (ref 2.4) -----------------------------------------------------------------

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        self.prepare(memory=True)
        requests = self.requests(batch)
        before = {block: hook.state() for block, hook in self.hooks.items()}
        try:
            # Targets, under the validated hooks of the round before.
            found = self.find_values(requests)
            began = time.perf_counter()
            # Weights: hooks at and above the block in turn let W_h through for every token.
            self._set(Mode.TEMPORARY)
            absorbed = self.spread(requests, found.values.double(), self._write)
            # Thresholds, from the bare prompts on the backbone.
            self._lower_alphas(requests)
            self._set(Mode.VALIDATED)
        except BaseException:
            for block, hook in self.hooks.items():
                hook.put_back(before[block])
            raise
        for block, keys in absorbed.items():
            self.memory[block].absorb(keys)
        report = self.report(found)
        return replace(report, seconds=report.seconds + time.perf_counter() - began)

    def _set(self, mode: Mode) -> None:
        for hook in self.hooks.values():
            hook.mode = mode

    def _write(self, block: int, update: Tensor) -> None:
        """The new hook weight; from now on the block's hook decides with the old alpha."""
        hook = self.hooks[block]
        weight = hook.weight.double() + oriented(self.modules[block], update)
        hook.set_weight(weight.to(hook.weight))
        hook.mode = Mode.VALIDATED

    @torch.no_grad()
    def _lower_alphas(self, requests: Sequence[Request]) -> None:
        """alpha <- min(alpha, min over prompts of max over positions of z), per block.

        Lower blocks pass their base output here, as in the official code. A prompt without a z
        score (one token) says nothing; the official minimum would forget the old bound.
        """
        strings = [parts for request in requests for parts in contextual(request, ("",))]
        rows = encode_rows(self.backbone, strings, range(len(strings)))
        width = torch.full_like(rows.lengths, rows.batch.input_ids.shape[1])
        self._set(Mode.RECORDING)
        beyond = self.blocks[-1] + 1
        with contextlib.ExitStack() as context:
            context.enter_context(self.counting(rows, width))
            if beyond < self.backbone.n_blocks():
                context.enter_context(stop_before(self.backbone.module("block", beyond)))
            self.backbone.model.base_model(
                **rows.batch.inputs(), position_ids=rows.batch.positions(), use_cache=False
            )
        for hook in self.hooks.values():
            scores = hook.scores.nan_to_num(nan=-math.inf).amax(dim=1)
            scores = scores[scores > -math.inf]
            if len(scores):
                hook.alpha = min(hook.alpha, float(scores.min()))
            hook.scores = None

    @contextlib.contextmanager
    def counting(self, rows: Rows, widths: Tensor) -> Iterator[None]:
        """See `LocateEditor.counting`: with `pad_in_stats` pads count up to the given width."""
        if not self.config.pad_in_stats:
            yield
            return
        column = torch.arange(rows.batch.input_ids.shape[1], device=widths.device)
        counted = (column < widths[:, None]) & (column >= self.head)
        for hook in self.hooks.values():
            hook.counted = counted
        try:
            yield
        finally:
            for hook in self.hooks.values():
                hook.counted = None

    # -- what is applied -----------------------------------------------------------------------

    @contextlib.contextmanager
    def routed(self, batch: Encoded, routes: Sequence[str]) -> Iterator[None]:
        """Rows with the route UNEDITED are left to the backbone; the rest find their own scope."""
        allowed = torch.tensor([route != UNEDITED for route in routes], device=self.backbone.device)
        for hook in self.hooks.values():
            hook.rows = allowed
        try:
            yield
        finally:
            for hook in self.hooks.values():
                hook.rows = None

    def observe(self, stream: Stream, keys: KeysOf | None = None) -> Iterator[dict[str, Any]]:
        """The z score of every token of the stream's prompts at the last edited block."""
        block = self.blocks[-1]
        yield from token_rows(self.backbone, self.hooks[block], block, stream, CHUNK)

    # -- state -----------------------------------------------------------------------------------

    def _rollback(self) -> None:
        for hook in self.hooks.values():
            hook.reset(self.config.alpha)
        for memory in self.memory.values():
            memory.reset()

    def _remove(self) -> None:
        for hook in self.hooks.values():
            hook.remove()
        self.tracker.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Hook weights and alphas ("hooks"), and C of each block ("moments") for later rounds."""
        state: dict[str, dict[str, Tensor]] = {"hooks": {}}
        for block, hook in self.hooks.items():
            path = self.backbone.path("mlp_out", block)
            state["hooks"][path] = hook.weight
            state["hooks"][f"{path}.alpha"] = torch.tensor(hook.alpha, dtype=torch.float64)
            if self.memory:
                state.setdefault("moments", {})[path] = self.memory[block].moment
        return state

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        self.restore_contexts(extra)
        if "moments" in tensors:
            self.prepare(memory=True)  # before the hooks act: statistics may have to be collected
        for block, hook in self.hooks.items():
            path = self.backbone.path("mlp_out", block)
            if path not in tensors["hooks"]:
                raise EditorError(f"the saved edits have no hook for {path}")
            hook.set_weight(tensors["hooks"][path].to(self.backbone.device))
            hook.alpha = float(tensors["hooks"][f"{path}.alpha"])
            hook.mode = Mode.VALIDATED if extra["edited"] else Mode.OFF
        if "moments" in tensors:
            for block, memory in self.memory.items():
                memory.restore(tensors["moments"][self.backbone.path("mlp_out", block)])

    def extra(self) -> dict[str, Any]:
        """Context texts, and whether anything was edited."""
        return super().extra() | {"edited": self.n_batches > 0}

    def counts(self) -> dict[str, float]:
        """Hook weights; numbers of C kept for later rounds; alpha of each block."""
        return {
            "parameters": sum(hook.weight.numel() for hook in self.hooks.values()),
            "stored_floats": sum(memory.moment.numel() for memory in self.memory.values()),
        } | {f"alpha_{block}": hook.alpha for block, hook in self.hooks.items()}
