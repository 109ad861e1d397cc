"""Mini-batches of facts for a language model, with the frozen part of their passes kept.

Blocks below the first edited one never change, and meta-training meets the same rows for every
number of edits: their outputs are computed once, in an order that the training set alone decides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.backbones.passes.kept import Kept
from lib.backbones.passes.logits import FactRows, fact_rows
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import Edit

Pair = tuple[str, str]  # prompt, answer
# Bytes of kept outputs; rows beyond it run their frozen blocks each time. Which rows are kept moves
# last digits, so this is a constant and no share of the machine's memory.
BUDGET = 2 * 2**30
TOGETHER = 32  # rows per pass while filling; bounds memory


@dataclass(frozen=True)
class MiniBatch:
    """Rows of a few facts and the state of their frozen prefix."""

    pairs: Sequence[Pair]
    rows: FactRows
    state: PrefixState


class FactPasses:
    """Turns (prompt, answer) pairs into mini-batches on one backbone.

    `memory` may be shared by editors of one backbone; those of the same first edited block,
    `max_length` and `facts`, the content of their training facts, then share outputs.
    """

    def __init__(
        self,
        prefix: FrozenPrefix,
        max_length: int | None = None,
        memory: Kept | None = None,
        facts: str = "",
    ) -> None:
        self.backbone, self.prefix, self.max_length = prefix.backbone, prefix, max_length
        self.memory = Kept() if memory is None else memory
        self.kept = self.memory.facts.setdefault((prefix.first, max_length, facts), {})

    def mini_batches(self, pairs: Sequence[Pair], size: int) -> "MiniBatches":
        """The pairs by number of attended tokens, longest first, `size` at a time (malmen 2.4)."""
        lengths = self._encode(pairs).encoded.attention_mask.sum(dim=1).tolist()
        order = sorted(range(len(pairs)), key=lambda index: -lengths[index])
        return MiniBatches(self, [pairs[i] for i in order], size)

    def in_order(self, pairs: Sequence[Pair], size: int) -> "MiniBatches":
        """The pairs as they come, `size` at a time."""
        return MiniBatches(self, pairs, size)

    def fill(self, pairs: Sequence[Pair]) -> None:
        """Compute and keep the frozen blocks' outputs of the pairs that are not kept yet.

        Which rows share a pass moves their last digits: equal sequences of calls give equal bits.
        """
        if not self.prefix.first:
            return
        missing = [pair for pair in pairs if pair not in self.kept]
        held = sum(tensor.nbytes for tensor in self.kept.values())
        for some in self.groups(missing):
            rows = self._encode(some)
            output = self.prefix.record(rows.encoded).output
            if not isinstance(output, Tensor):
                return  # blocks that return more (T5) are not cut into rows
            for pair, state, mask in zip(some, output, rows.encoded.attention_mask, strict=True):
                real = state[mask.bool()].clone()
                held += real.nbytes
                if held > BUDGET:
                    return
                self.memory.take(real.nbytes, must=True)
                self.kept[pair] = real

    @staticmethod
    def groups(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
        """Each pair once, those of like length together, as many as share a pass."""
        once = sorted(dict.fromkeys(pairs), key=lambda pair: len(pair[0]) + len(pair[1]))
        return (once[at : at + TOGETHER] for at in range(0, len(once), TOGETHER))

    def _encode(self, pairs: Sequence[Pair]) -> FactRows:
        prompts, answers = zip(*pairs, strict=True)
        return fact_rows(self.backbone, prompts, answers, self.max_length)

    def batch(self, pairs: Sequence[Pair]) -> MiniBatch:
        """One mini-batch of these pairs, in order."""
        rows = self._encode(pairs)
        if not all(pair in self.kept for pair in pairs):
            return MiniBatch(pairs, rows, self.prefix.record(rows.encoded))
        states = torch.nn.utils.rnn.pad_sequence([self.kept[p] for p in pairs], batch_first=True)
        return MiniBatch(pairs, rows, PrefixState(states, {}, {}, len(pairs)))


class MiniBatches(Sequence[MiniBatch]):
    """Mini-batches made when they are asked for, so that one at a time is held."""

    def __init__(self, passes: FactPasses, pairs: Sequence[Pair], size: int) -> None:
        self._passes, self._pairs, self._size = passes, pairs, size

    def __len__(self) -> int:
        return -(-len(self._pairs) // self._size)

    def __getitem__(self, index: int) -> MiniBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self._size
        return self._passes.batch(self._pairs[start : start + self._size])


def passes_of_batch(
    prefix: FrozenPrefix, pairs: Sequence[Pair], max_length: int | None, memory: Kept
) -> FactPasses:
    """Passes over one batch of edits, its frozen outputs computed, or taken over from an editor of
    the same first edited block that had the same batch. The batch alone decides their bits; where
    `memory` has no room they go with the passes."""
    key = (prefix.first, max_length, tuple(pairs))
    passes = FactPasses(prefix, max_length)
    if key in memory.facts:
        passes.kept = memory.facts[key]
        return passes
    passes.fill(pairs)
    if memory.take(sum(tensor.nbytes for tensor in passes.kept.values())):
        memory.facts[key] = passes.kept
    return passes


def edit_pairs(facts: Sequence[Edit]) -> list[Pair]:
    """The edit prompts with their targets."""
    return [(fact.prompt, fact.target) for fact in facts]


def rephrase_pairs(facts: Sequence[Edit]) -> list[Pair]:
    """The first rephrase of each fact with its target."""
    return [(fact.rephrases[0], fact.target) for fact in facts]


def unrelated_pairs(facts: Sequence[Edit]) -> list[Pair]:
    """The first unrelated prompt of each fact with its own answer."""
    return [(fact.locality[0].prompt, fact.locality[0].target) for fact in facts]
