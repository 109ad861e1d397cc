"""Routing inside an ordinary forward or `generate` call: who is asked, and when.

An index must know where each row's prompt ends and whether this pass is the first one of a
generation (the prefill) or a later one-token step that reads a key-value cache.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.passes.hooks import first_tensor
from lib.editors.parts.sites import KeyPosition, rows_at


class PromptTracker:
    """Remembers the attention mask of the running pass and whether it is a prefill.

    `mask` is None where the caller gave none (all positions real).
    """

    def __init__(self, backbone: Backbone) -> None:
        model = backbone.model
        root = model.get_encoder() if backbone.family.kind == "seq2seq" else model.base_model
        self.mask: Tensor | None = None
        self.is_prefill = True
        self._handle = root.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _module: nn.Module, _inputs: tuple, keywords: dict[str, Any]) -> None:
        mask = keywords.get("attention_mask")
        self.mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        cache = keywords.get("past_key_values")
        self.is_prefill = cache is None or int(cache.get_seq_length()) == 0

    def last_columns(self, hidden: Tensor) -> Tensor:
        """The column of each row's last real token [B] in hidden states [B, T, d]."""
        width = hidden.shape[1]
        if self.mask is None or self.mask.shape[1] != width:
            return torch.full((len(hidden),), width - 1, device=hidden.device)
        # Works for padding on either side: the largest column with a one.
        columns = torch.arange(width, device=hidden.device)
        return (self.mask.to(hidden.device) * (columns + 1)).argmax(dim=1)

    def remove(self) -> None:
        """Take the hook out of the model."""
        self._handle.remove()


class PrefillRouter:
    """Reads keys from the output (or input) of one layer during a pass, for `on_keys`.

    In generation the decision is made once per prompt, at the prefill, and kept for the following
    steps; `per_step` decides anew at each token, as the official MELO code does.
    """

    def __init__(
        self,
        backbone: Backbone,
        path: str,
        *,
        on_keys: Callable[[Tensor], None],
        position: KeyPosition,
        per_step: bool,
        of_input: bool = False,
    ) -> None:
        self.tracker = PromptTracker(backbone)
        self.on_keys, self.position, self.per_step = on_keys, position, per_step
        self.of_input = of_input
        self._enabled = True
        self._handle = backbone.model.get_submodule(path).register_forward_hook(self._read)

    def _read(self, _module: nn.Module, inputs: tuple, output: Any) -> None:
        if not self._enabled or not (self.tracker.is_prefill or self.per_step):
            return
        hidden = first_tensor(inputs if self.of_input else output)
        if self.position == "last_column":
            columns = torch.full((len(hidden),), hidden.shape[1] - 1, device=hidden.device)
        else:
            columns = self.tracker.last_columns(hidden)
        self.on_keys(rows_at(hidden, columns))

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
        self._handle.remove()
        self.tracker.remove()
