"""Greedy decoding and teacher-forced scores of one batch, from one pass over the prompts.

The prompts' pass starts above the frozen prefix, whose keys and values were kept; decoding and
scoring both go on from it. Equal to `model.generate` and to a full forward (tests say so).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import (
    IGNORED,
    Encoded,
    answer_ids,
    class_number,
    encode_prompts,
    pad,
    target_ids,
)
from lib.backbones.passes.hooks import map_tensors
from lib.backbones.passes.logits import TargetScores, WholeRows, prepare_whole, scores_at
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState, Start


@dataclass(frozen=True)
class PromptBatch:
    """Prompts and targets of a few rows with everything about them that never changes.

    `prompts` is the encoded prompts (left-padded for causal models), `targets` the target ids
    with their end mark [B, T] filled with -100 (class numbers [B, 1] for a classifier), `state` and
    `cache` the frozen prefix.
    `others` are the ids of the competing answers without end mark [B, T'], rows without one all
    -100 (None: no row has one). `whole` and `whole_others` hold the rows for whole passes over
    prompt and answer, where the editor needs these.
    """

    prompts: Encoded
    targets: Tensor
    state: PrefixState
    cache: DynamicCache | None
    others: Tensor | None = None
    whole: WholeRows | None = None
    whole_others: WholeRows | None = None

    @cached_property
    def bytes(self) -> int:
        """Memory that the frozen prefix of these rows takes."""
        sizes: list[int] = []

        def count(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        for state in (self.state, *(w.state for w in (self.whole, self.whole_others) if w)):
            kept: list[Any] = [*state.watched.values(), *state.watched_inputs.values()]
            map_tensors([state.output, *kept], count)
        for layer in self.cache.layers if self.cache else ():
            map_tensors([layer.keys, layer.values], count)
        return sum(sizes)


def prepare(
    backbone: Backbone,
    prefix: FrozenPrefix,
    prompts: Sequence[str],
    targets: Sequence[str],
    max_length: int | None = None,
    watch: tuple[str, ...] = (),
    *,
    others: Sequence[str] = (),
    whole: bool = False,
    full_width: bool = False,
    below: tuple[FrozenPrefix, "PromptBatch"] | None = None,
) -> PromptBatch:
    """Encode rows and run the frozen prefix on them, once; `watch` as in `FrozenPrefix.record`.

    `others`: the competing answer of each row, "" where there is none. `whole` adds the rows for
    whole passes (causal backbones). `full_width` as in `encode_prompts`. `below`: the same rows as
    a lower prefix was prepared, whose blocks are then not run again; equal to the last bit.
    """
    encoded = encode_prompts(backbone, prompts, max_length=max_length, full_width=full_width)
    classifier, causal = (backbone.family.kind == kind for kind in ("classifier", "causal"))
    rows = [
        [class_number(backbone, target)] if classifier else target_ids(backbone, target, max_length)
        for target in targets
    ]
    cache = DynamicCache() if causal and prefix.first else None
    state = _recorded(prefix, encoded, watch, cache, below)
    rivals = [
        answer_ids(backbone, other, max_length) if other and not classifier else []
        for other in others
    ]
    both = [
        prepare_whole(backbone, prefix, prompts, answers, max_length) if whole and answers else None
        for answers in (targets, others)
    ]
    return PromptBatch(
        encoded,
        pad(rows, IGNORED).to(backbone.device),
        state,
        cache,
        pad(rivals, IGNORED).to(backbone.device) if any(rivals) else None,
        *both,
    )


def _recorded(
    prefix: FrozenPrefix,
    encoded: Encoded,
    watch: tuple[str, ...],
    cache: DynamicCache | None,
    below: tuple[FrozenPrefix, PromptBatch] | None,
) -> PrefixState:
    if below is None:
        return prefix.record(encoded, watch=watch, cache=cache)
    lower, known = below
    more = tuple(path for path in watch if path not in known.state.watched)
    state = prefix.record(encoded, watch=more, cache=cache, below=Start(lower, known.state))
    for index in range(lower.first if cache is not None else 0):
        layer = known.cache.layers[index]
        cache.layers[index].update(layer.keys, layer.values)
    return replace(
        state,
        watched={**known.state.watched, **state.watched},
        watched_inputs={**known.state.watched_inputs, **state.watched_inputs},
    )


class Continuation:
    """One pass over the prompts of a batch under the weights in force, ready to go on.

    Use it inside the editor's `routed` context: `greedy` and `score` run the model again.
    """

    def __init__(self, backbone: Backbone, prefix: FrozenPrefix, batch: PromptBatch) -> None:
        self.backbone, self.batch = backbone, batch
        self.model = backbone.model
        with torch.no_grad(), prefix.replay(batch.state):
            if backbone.family.kind == "seq2seq":
                encoder = self.model.get_encoder()(**batch.prompts.inputs())
                self.encoded = BaseModelOutput(last_hidden_state=encoder.last_hidden_state)
            else:
                self.cache = DynamicCache()
                hidden = self.model.base_model(
                    **batch.prompts.inputs(),
                    position_ids=batch.prompts.positions(),
                    past_key_values=self.cache,
                    use_cache=True,
                ).last_hidden_state
                self.first_logits = self._head(hidden[:, -1])
                for index in range(prefix.first):
                    below = batch.cache.layers[index]
                    self.cache.layers[index].update(below.keys, below.values)

    def _head(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)

    def _step(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, T, V] of more tokens [B, T]; `mask` [B, T so far + T] marks real columns."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        hidden = self.model.base_model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return self._head(hidden)

    @torch.no_grad()
    def score(self, targets: Tensor | None = None) -> TargetScores:
        """Teacher-forced scores of the batch's targets, or of other ids [B, T] filled with -100."""
        targets = self.batch.targets if targets is None else targets
        if self.backbone.family.kind == "seq2seq":
            logits = self.model(
                encoder_outputs=self.encoded,
                attention_mask=self.batch.prompts.attention_mask,
                labels=targets,
            ).logits
        else:
            logits = self.first_logits[:, None]
            if targets.shape[1] > 1:
                fed = targets[:, :-1]
                prompt_mask = self.batch.prompts.attention_mask
                mask = torch.cat([prompt_mask, (fed != IGNORED).long()], dim=1)
                more = self._step(fed.clamp(min=0), mask)
                self.cache.crop(-fed.shape[1])
                logits = torch.cat([logits, more], dim=1)
        real = targets != IGNORED
        return scores_at(logits[real], targets[real], real.sum(dim=1).tolist())

    @torch.no_grad()
    def greedy(self, max_new_tokens: int) -> list[list[int]]:
        """Greedy continuation ids of each row, up to and including the end mark."""
        backbone = self.backbone
        if backbone.family.kind == "seq2seq":
            ids = self.model.generate(
                encoder_outputs=self.encoded,
                attention_mask=self.batch.prompts.attention_mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
            )[:, 1:]
            return [until_end(row, backbone.eos_id) for row in ids.tolist()]
        tokens = self.first_logits.argmax(dim=-1, keepdim=True)
        written, mask = [tokens], self.batch.prompts.attention_mask
        ended = tokens[:, 0] == backbone.eos_id
        while len(written) < max_new_tokens and not bool(ended.all()):
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
            tokens = self._step(tokens, mask)[:, -1].argmax(dim=-1, keepdim=True)
            written.append(tokens)
            ended |= tokens[:, 0] == backbone.eos_id
        if len(written) > 1:
            self.cache.crop(1 - len(written))
        return [until_end(row, backbone.eos_id) for row in torch.cat(written, dim=1).tolist()]


def until_end(ids: Sequence[int], end: int) -> list[int]:
    """The ids up to and including the first end mark."""
    ids = list(ids)
    return ids[: ids.index(end) + 1] if end in ids else ids
