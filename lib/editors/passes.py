"""Passes over the fixed strings of a batch, block by block upwards (ref 11).

While weights are written from the lowest edited block up, blocks below the one at hand are settled:
their output for the batch's strings is kept, and the next pass starts there.
"""

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.passes.hooks import capture, first_tensor, stop_before
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.editors.subjects import Rows, at_subject, encode_rows

CHUNK = 128  # strings in one pass, as in the official code: pads count in its scope statistics

Counting = Callable[[Rows, Tensor], contextlib.AbstractContextManager[None]]
"""Says which columns count in the scope statistics of a pass over some rows: (rows, widths [R])."""


class SubjectPasses:
    """Strings (before, subject, after) whose states at the subject's last token are read.

    `settle(block)` declares everything below `block` final; `read` then starts there.
    """

    def __init__(
        self, backbone: Backbone, strings: Sequence[tuple[str, str, str]], counting: Counting
    ) -> None:
        self.backbone, self.counting = backbone, counting
        self.chunks = [
            encode_rows(backbone, strings[at : at + CHUNK], range(len(strings[at : at + CHUNK])))
            for at in range(0, len(strings), CHUNK)
        ]
        self.below = FrozenPrefix(backbone, 0)
        self.states: list[PrefixState | None] = [None] * len(self.chunks)

    def _counted(self, rows: Rows) -> contextlib.AbstractContextManager[None]:
        return self.counting(rows, torch.full_like(rows.lengths, rows.batch.input_ids.shape[1]))

    def settle(self, block: int) -> None:
        """Run the blocks between the last settled one and `block`, under the weights in force."""
        if block <= self.below.first:
            return
        above = FrozenPrefix(self.backbone, block)
        for number, rows in enumerate(self.chunks):
            with self._counted(rows), self.below.replay(self.states[number]):
                state = above.record(rows.batch)
            self.states[number] = state
        self.below = above

    @torch.no_grad()
    def read(self, part: str, block: int, *, of_input: bool = False) -> Tensor:
        """Output (or input) of a part of `block` at the subject's last token [B, w], float64."""
        found = []
        for rows, state in zip(self.chunks, self.states, strict=True):
            with contextlib.ExitStack() as context:
                context.enter_context(self._counted(rows))
                context.enter_context(self.below.replay(state))
                seen = context.enter_context(capture(self.backbone.module(part, block)))
                if block + 1 < self.backbone.n_blocks():
                    context.enter_context(stop_before(self.backbone.module("block", block + 1)))
                self.backbone.model.base_model(
                    **rows.batch.inputs(), position_ids=rows.batch.positions(), use_cache=False
                )
            taken = seen.input if of_input else first_tensor(seen.output)
            found.append(at_subject(taken, rows).double())
        return torch.cat(found)
