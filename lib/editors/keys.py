"""Which activation stands for a row: the key of an index (melo 2.4)."""

from typing import Literal

import torch
from torch import Tensor

from lib.backbones.encoding import Encoded
from lib.errors import EditorError

KeyPosition = Literal["last_column", "last_token", "last_prompt_token"]
POSITIONS = ("last_column", "last_token", "last_prompt_token")


def check_key_position(position: str) -> None:
    """An unknown key position is an error that names the known ones."""
    if position not in POSITIONS:
        raise EditorError(f"key position {position!r}: choose one of {', '.join(POSITIONS)}")


def key_columns(batch: Encoded, position: KeyPosition) -> Tensor:
    """The column of each row's key [B].

    `last_column` is the official code's (a padding position for every row but the longest, and
    for causal rows with a target the end of the *target*); `last_token` is the last real token;
    `last_prompt_token` never sees the target.
    """
    if position == "last_column":
        return torch.full_like(batch.last_prompt, batch.input_ids.shape[1] - 1)
    return batch.last_token if position == "last_token" else batch.last_prompt


def rows_at(hidden: Tensor, columns: Tensor) -> Tensor:
    """hidden [B, T, d] at one column per row -> [B, d], in float32 (float64 stays) and its own
    storage."""
    found = hidden[torch.arange(len(hidden), device=hidden.device), columns].detach()
    return found.clone() if found.dtype == torch.float64 else found.float().clone()
