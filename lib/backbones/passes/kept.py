"""What passes leave in memory for later ones on the same backbone, within one budget of bytes."""

from typing import Any

import torch


class Kept:
    """`prompts`: batches with their frozen prefix; `facts`: the frozen blocks' outputs of single
    rows, by first edited block; `unedited`: what training reads of the unedited model, by facts;
    `scores`: what rows got under weights that can come again.

    `limit` bytes are shared by the tensors of all of them and by whoever else asks with `take`.
    What is refused is computed again when it is needed, or waits on disk.
    """

    def __init__(self, limit: float = 2**30) -> None:
        self.limit, self.held = limit, 0
        self.prompts: dict[Any, Any] = {}
        self.facts: dict[Any, dict[Any, torch.Tensor]] = {}
        self.unedited: dict[Any, dict[Any, Any]] = {}
        self.scores: dict[Any, list[Any]] = {}

    def take(self, size: int, *, must: bool = False) -> bool:
        """Whether `size` more bytes may be held; they then count. `must`: they count anyway."""
        fits = must or self.held + size <= self.limit
        self.held += size * fits
        return fits

    def give(self, size: int) -> None:
        """`size` bytes are held no longer."""
        self.held -= size
