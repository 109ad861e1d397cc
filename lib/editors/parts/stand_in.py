"""Rows that another language model answers in the edited one's place.

The stand-in shares vocabulary and document prefix, so rows go over as token ids: what it is told
stands between the prefix and the prompt, and each of its logits belongs to the same token as the
edited model's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded, batch_rows, prompt_ids
from lib.editors.parts.routing import PromptTracker
from lib.errors import EditorError

SPARE = 64  # positions left for what is generated, where a text must be shortened


@dataclass(frozen=True)
class StandIn:
    """`backbone` answers a row, which it reads behind `text`. The stand-ins of one editor are all
    the same backbone."""

    backbone: Backbone
    text: str


def check_alike(backbone: Backbone, other: Backbone) -> None:
    """EditorError unless both read and write the same token ids."""
    same = (
        backbone.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        and backbone.model.config.vocab_size == other.model.config.vocab_size
        and (backbone.prefix, backbone.eos_id) == (other.prefix, other.eos_id)
    )
    if not same:
        raise EditorError(
            f"{other.name} cannot answer for {backbone.name}: their vocabularies, end marks or "
            "document prefixes differ; choose a smaller model of the same family"
        )


def tell(backbone: Backbone, texts: Sequence[str], batch: Encoded, side: str = "left") -> Encoded:
    """The rows of a batch, each with its text before the prompt, padded on `side` (whatever it was
    before) and without labels. A text too long for the backbone's positions keeps its end."""
    prefix = prompt_ids(backbone, "")
    longest = backbone.model.config.max_position_embeddings
    real, last = batch.attention_mask.bool(), batch.last_prompt.tolist()
    rows, lengths = [], []
    for number, text in enumerate(texts):
        row = batch.input_ids[number][real[number]].tolist()
        start = len(prefix) if row[: len(prefix)] == prefix else 0
        told = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        told = told[max(0, len(told) + len(row) + SPARE - longest) :]
        rows.append([*row[:start], *told, *row[start:]])
        lengths.append(len(told) + int(real[number, : last[number] + 1].sum()))
    return batch_rows(backbone, rows, lengths, side)


@dataclass
class _Running:
    """A generation of some rows [R] of a batch: the stand-in's own mask [R, T] and cache; `length`
    is what the model's cache held when this one was filled."""

    rows: Tensor
    backbone: Backbone
    mask: Tensor
    cache: DynamicCache
    length: int


class StandInHook:
    """Puts the stand-ins' logits in place of the model's in ordinary calls and in `generate`.

    `decide(batch)` names the stand-in of each row, None for the others; it is asked at the prefill
    and its answer kept for the steps that read the same key-value cache (greedy or sampled: beams
    would reorder the rows). While `at_work` says yes, a pass that goes on from any other cache, or
    is fed embeddings alone, is an EditorError.
    """

    def __init__(
        self,
        backbone: Backbone,
        decide: Callable[[Encoded], Sequence[StandIn | None]],
        at_work: Callable[[], bool],
    ) -> None:
        self.decide, self.at_work = decide, at_work
        self.tracker = PromptTracker(backbone)
        self._running: WeakKeyDictionary[Cache, _Running | None] = WeakKeyDictionary()
        self._handle = backbone.model.register_forward_hook(self._answer, with_kwargs=True)

    @torch.no_grad()
    def _answer(self, _module: nn.Module, inputs: tuple, keywords: dict, output: Any) -> Any:
        if not self.at_work():
            return None
        ids = inputs[0] if inputs else keywords.get("input_ids")
        if ids is None:
            raise EditorError("embeddings hold no text to judge; pass input_ids")
        if self.tracker.is_prefill:
            return self._begin(self._encoded(ids), output)
        if self.tracker.cache not in self._running:
            raise EditorError(
                "this pass goes on from a cache that the edited model did not fill from the "
                "prompt's beginning, so nothing tells which edit applies; pass the whole prompt"
            )
        running = self._running[self.tracker.cache]
        return None if running is None else self._go_on(ids, running, output)

    def _encoded(self, ids: Tensor) -> Encoded:
        """What the caller fed; outside a generation every real token belongs to the prompt."""
        mask = self.tracker.mask
        mask = torch.ones_like(ids) if mask is None else mask.to(ids.device)
        last = (mask * torch.arange(1, ids.shape[1] + 1, device=ids.device)).argmax(dim=1)
        return Encoded(ids, mask, self.tracker.last_columns(ids[..., None]), last)

    def _begin(self, batch: Encoded, output: Any) -> Any:
        stand_ins = self.decide(batch)
        rows = torch.tensor([row for row, chosen in enumerate(stand_ins) if chosen is not None])
        main, length = output.past_key_values, batch.input_ids.shape[1]
        if not len(rows):
            if main is not None:
                self._running[main] = None
            return None
        rows, mine = rows.to(batch.input_ids.device), batch.select(rows)
        backbone = stand_ins[rows[0]].backbone
        told = tell(backbone, [chosen.text for chosen in stand_ins if chosen is not None], mine)
        cache = None if main is None else DynamicCache()
        hidden = _hidden(backbone, told.input_ids, told.attention_mask, cache)
        if main is not None:
            self._running[main] = _Running(rows, backbone, told.attention_mask, cache, length)
        # Left-padded, the stand-in's last columns are the row's own tokens, in order.
        real = mine.attention_mask.bool()
        source = hidden.shape[1] - real.sum(dim=1, keepdim=True) + real.cumsum(dim=1) - 1
        dropped = real.shape[1] - output.logits.shape[1]  # the caller may want the last logits only
        real[:, :dropped] = False
        place, column = real.nonzero(as_tuple=True)
        logits = _head(backbone, hidden[place, source[place, column]])
        output.logits = output.logits.index_put((rows[place], column - dropped), logits)
        return output

    def _go_on(self, ids: Tensor, running: _Running, output: Any) -> Any:
        tokens, kept = ids[running.rows], output.logits.shape[1]
        length = int(self.tracker.cache.get_seq_length())
        surplus = running.length + ids.shape[1] - length
        if surplus:  # assisted decoding takes back what the model did not confirm
            running.cache.crop(-surplus)
            running.mask = running.mask[:, :-surplus]
        running.length = length
        running.mask = torch.cat([running.mask, torch.ones_like(tokens)], dim=1)
        hidden = _hidden(running.backbone, tokens, running.mask, running.cache)
        logits = _head(running.backbone, hidden[:, -kept:])
        output.logits = output.logits.index_copy(0, running.rows, logits)
        return output

    def remove(self) -> None:
        """Take the hooks out of the model."""
        self._handle.remove()
        self.tracker.remove()


def _hidden(backbone: Backbone, tokens: Tensor, mask: Tensor, cache: DynamicCache | None) -> Tensor:
    """Last hidden states [R, T, d] of tokens [R, T] that end where `mask` does."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    return backbone.model.base_model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state


def _head(backbone: Backbone, hidden: Tensor) -> Tensor:
    return backbone.model.get_output_embeddings()(hidden)
