"""Where an editor sits in a backbone, in neutral names, resolved to module paths."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded
from lib.errors import EditorError
from lib.storage.checked import FORBID


@dataclass(frozen=True)
class Site:
    """One linear layer: its part ("mlp_out", …), block number, and stack (seq2seq only)."""

    __pydantic_config__ = FORBID

    part: str
    block: int
    stack: str = "encoder"

    def path(self, backbone: Backbone) -> str:
        """The module path of this site in `backbone`."""
        return backbone.path(self.part, self.block, stack=self.stack)


def first_block(backbone: Backbone, chosen: Iterable[Site]) -> int:
    """The lowest edited block of the stack whose blocks below it are a frozen prefix.

    For seq2seq that stack is the encoder (the decoder reads its output); an editor of the decoder
    alone leaves the whole encoder frozen.
    """
    if backbone.family.kind != "seq2seq":
        return min(site.block for site in chosen)
    encoder = [site.block for site in chosen if site.stack == "encoder"]
    return min(encoder) if encoder else backbone.n_blocks("encoder")


def input_width(layer: nn.Module) -> int:
    """What a linear layer takes: `Linear` keeps its weight [out, in], `Conv1D` [in, out]."""
    return layer.in_features if hasattr(layer, "in_features") else layer.weight.shape[0]


def check_router_below(backbone: Backbone, router: Site, chosen: Iterable[Site]) -> None:
    """An index reads keys below every adapted layer, or its keys would move with each edit."""
    first = first_block(backbone, chosen)
    if router.block >= first:
        raise EditorError(
            f"the router layer (block {router.block}) must lie below the first adapted block "
            f"({first}) of {backbone.name}; choose a lower router block or higher sites"
        )


KeyPosition = Literal["last_column", "last_token", "last_prompt_token", "first_target_token"]


def key_columns(batch: Encoded, position: KeyPosition) -> Tensor:
    """The column of each row's key [B].

    `last_column` is the official code's (a padding position for every row but the longest, and
    for causal rows with a target the end of the *target*); `last_token` is the last real token;
    `last_prompt_token` never sees the target; `first_target_token` is GRACE's on causal rows, and
    the last real token of rows that carry no target.
    """
    if position == "last_column":
        return torch.full_like(batch.last_prompt, batch.input_ids.shape[1] - 1)
    if position == "first_target_token":
        return torch.minimum(batch.last_prompt + 1, batch.last_token)
    return batch.last_token if position == "last_token" else batch.last_prompt


def rows_at(hidden: Tensor, columns: Tensor) -> Tensor:
    """hidden [B, T, d] at one column per row -> [B, d], in float32 (float64 stays) and its own
    storage."""
    found = hidden[torch.arange(len(hidden), device=hidden.device), columns].detach()
    return found.clone() if found.dtype == torch.float64 else found.float().clone()
