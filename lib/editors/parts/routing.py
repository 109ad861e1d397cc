"""Routing inside an ordinary forward or `generate` call: who is asked, and when.

An index must know where each row's prompt ends and whether this pass reads the prompt (the
prefill) or goes on from a key-value cache. Without a cache every pass of a generation reads the
prompt again; its decision is then made again, on the prompt's columns alone.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from lib.backbones.backbone import Backbone
from lib.backbones.passes.hooks import first_tensor
from lib.editors.parts.sites import KeyPosition, rows_at
from lib.errors import EditorError


class PromptTracker:
    """Remembers the attention mask of the running pass and whether it is a prefill.

    `mask` [B, T] is None where the caller gave none (all positions real).
    """

    def __init__(self, backbone: Backbone) -> None:
        model = backbone.model
        root = model.get_encoder() if backbone.family.kind == "seq2seq" else model.base_model
        self.whole_prompts = backbone.family.kind == "seq2seq"  # an encoder reads nothing else
        self.mask: Tensor | None = None
        self.is_prefill = True
        self._cache: Callable[[], Cache | None] = lambda: None  # a cache ends with its generation
        self._width: int | None = None  # columns of the prompts inside `generation`
        self._begun = False
        self._handle = root.register_forward_pre_hook(self._look, with_kwargs=True)

    @property
    def cache(self) -> Cache | None:
        """The key-value cache that the latest pass was given."""
        return self._cache()

    @contextlib.contextmanager
    def generation(self, width: int) -> Iterator[None]:
        """Passes inside the context belong to one generation whose prompts have `width` columns."""
        before = self._width, self._begun
        self._width, self._begun = None if self.whole_prompts else width, False
        try:
            yield
        finally:
            self._width, self._begun = before

    def _look(self, _module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
        fed = inputs[0] if inputs else keywords.get("input_ids")
        rows, width = (keywords["inputs_embeds"] if fed is None else fed).shape[:2]
        self.mask = _by_column(keywords.get("attention_mask"), rows, width)
        cache = keywords.get("past_key_values")
        self.is_prefill = cache is None or int(cache.get_seq_length()) == 0
        self._cache = (lambda: None) if cache is None else weakref.ref(cache)
        if self._width is None:
            return
        if not self._begun and not self.is_prefill:
            raise EditorError(
                "generate() begins with a filled cache, but this editor decides where it reads the "
                "whole prompt; pass all of the prompt and no past_key_values, or an empty cache"
            )
        if self.is_prefill and width < self._width:
            raise EditorError(
                "generate() reads the prompt in pieces, but this editor decides where it reads "
                "the whole prompt; leave prefill_chunk_size unset"
            )
        self._begun = True

    def prompt_width(self, hidden: Tensor) -> int:
        """How many leading columns of hidden states [B, T, d] are prompt, pads included."""
        return hidden.shape[1] if self._width is None else min(self._width, hidden.shape[1])

    def prompt_mask(self, hidden: Tensor) -> Tensor:
        """1 at the real tokens of the prompts, 0 elsewhere [B, T], for hidden states [B, T, d]."""
        mask = self.mask
        if mask is None or mask.shape[1] != hidden.shape[1]:
            mask = torch.ones(hidden.shape[:2], dtype=torch.long)
        inside = torch.arange(hidden.shape[1], device=hidden.device) < self.prompt_width(hidden)
        return mask.to(hidden.device) * inside

    def last_columns(self, hidden: Tensor) -> Tensor:
        """The column of each row's last real prompt token [B] in hidden states [B, T, d]."""
        # Works for padding on either side: the largest column with a one.
        columns = torch.arange(hidden.shape[1], device=hidden.device)
        return (self.prompt_mask(hidden) * (columns + 1)).argmax(dim=1)

    def remove(self) -> None:
        """Take the hook out of the model."""
        self._handle.remove()


def _by_column(mask: Any, rows: int, width: int) -> Tensor | None:
    """The real columns [B, T] that an attention mask tells of; None where it tells of none.

    Static caches bring masks of every query against every key [B or 1, 1, T, K], True or 0 where
    attended: the last query sees all real columns.
    """
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        return None
    if mask.ndim == 2:
        return mask
    last = mask[:, 0, -1, :width]
    attended = last if last.dtype == torch.bool else last == 0
    return attended.long().expand(rows, -1)


class PrefillRouter:
    """Reads keys from the output (or input) of one layer during a pass, for `on_keys`.

    In generation the decision is made once per prompt, at the prefill, and kept for the passes
    that go on from its key-value cache; `per_step` decides anew at each token, as the official
    MELO code does. While `at_work` says yes, a pass that goes on from a cache that no prefill of
    this model filled is an EditorError: nothing tells what to apply.
    """

    def __init__(
        self,
        backbone: Backbone,
        path: str,
        *,
        on_keys: Callable[[Tensor], None],
        at_work: Callable[[], bool],
        position: KeyPosition,
        per_step: bool,
        of_input: bool = False,
    ) -> None:
        self.tracker = PromptTracker(backbone)
        self.on_keys, self.position, self.per_step = on_keys, position, per_step
        self.at_work, self.of_input = at_work, of_input
        self._enabled = True
        self._latest: Tensor | None = None  # the keys that `on_keys` saw last
        self._known: weakref.WeakKeyDictionary[Cache, Tensor] = weakref.WeakKeyDictionary()
        self._handles = [backbone.model.get_submodule(path).register_forward_hook(self._read)]
        if not self.tracker.whole_prompts:
            self._handles.append(backbone.model.base_model.register_forward_hook(self._keep))

    def _read(self, _module: nn.Module, inputs: tuple, output: Any) -> None:
        if not self._enabled:
            return
        hidden = first_tensor(inputs if self.of_input else output)
        if not (self.tracker.is_prefill or self.per_step):
            self._recall()
            return
        width = self.tracker.prompt_width(hidden)
        if self.per_step and width < hidden.shape[1]:
            raise EditorError(
                "route_per_step decides at each new token, which needs a key-value cache and one "
                "token at a time; generate with use_cache=True and without assisted decoding"
            )
        if self.position == "last_column":
            columns = torch.full((len(hidden),), width - 1, device=hidden.device)
        else:
            columns = self.tracker.last_columns(hidden)
        self._decide(rows_at(hidden, columns))

    def _decide(self, keys: Tensor) -> None:
        self._latest = keys
        self.on_keys(keys)

    def _keep(self, _module: nn.Module, _inputs: tuple, output: Any) -> None:
        """The keys of a prefill, by the cache that it filled."""
        cache = getattr(output, "past_key_values", None)
        if self._enabled and self.tracker.is_prefill and cache is not None:
            self._known[cache] = self._latest

    def _recall(self) -> None:
        """The decision of the prefill that filled this pass's cache."""
        keys = self._known.get(self.tracker.cache)
        if keys is not None:
            if keys is not self._latest:
                self._decide(keys)
        elif self.at_work():
            raise EditorError(
                "this pass goes on from a cache that the edited model did not fill from the "
                "prompt's beginning, so nothing tells which edit applies; pass the whole prompt"
            )

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """No routing inside the context: the caller decides what is applied."""
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def remove(self) -> None:
        """Take the hooks out of the model."""
        for handle in self._handles:
            handle.remove()
        self.tracker.remove()
