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
from lib.backbones.passes.logits import (
    TargetScores,
    WholeRows,
    answer_logits,
    prepare_whole,
    scores_at,
)
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState, Start
from lib.errors import BackboneError


@dataclass(frozen=True)
class PromptBatch:
    """Prompts and targets of a few rows with everything about them that never changes.

    `prompts` is the encoded prompts (left-padded for causal models), `targets` the target ids
    with their end mark [B, T] filled with -100 (class numbers [B, 1] for a classifier), `state` the
    frozen prefix and `cache` its keys and values, which decoding reads (causal), `fed` and
    `fed_others` the frozen prefix of the targets (the competing answers) behind the prompts, as
    teacher forcing feeds them (causal).
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
    fed: PrefixState | None = None
    fed_others: PrefixState | None = None

    @cached_property
    def bytes(self) -> int:
        """Memory that the frozen prefix of these rows takes."""
        sizes: list[int] = []

        def count(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        further = (self.fed, self.fed_others, self.whole and self.whole.state)
        states = (self.state, *further, self.whole_others and self.whole_others.state)
        for state in filter(None, states):
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
    decodes: bool = True,
    below: tuple[FrozenPrefix, "PromptBatch"] | None = None,
) -> PromptBatch:
    """Encode rows and run the frozen prefix on them, once; `watch` as in `FrozenPrefix.record`.

    `others`: the competing answer of each row, "" where there is none. `whole` adds the rows for
    whole passes (causal backbones). `full_width` as in `encode_prompts`. Rows that are only scored
    (not `decodes`) keep no keys and values. `below`: the same rows as a lower prefix was prepared,
    whose blocks are then not run again; equal to the last bit.
    """
    if below and decodes and backbone.family.kind == "causal" and below[1].cache is None:
        below = None  # its keys and values are missing
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
    wanted = pad(rows, IGNORED).to(backbone.device)
    rival = pad(rivals, IGNORED).to(backbone.device) if any(rivals) else None
    lower = (below[0], below[1].fed, below[1].fed_others) if below else (None, None, None)
    fed = [
        _recorded_behind(prefix, encoded, cache, ids, lower[0], known)
        for ids, known in ((wanted, lower[1]), (None if both[1] else rival, lower[2]))
    ]
    return PromptBatch(encoded, wanted, state, cache if decodes else None, rival, *both, *fed)


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
    if cache is not None:
        _refill(cache, lower.first, encoded, known.cache)
    return replace(
        state,
        watched={**known.state.watched, **state.watched},
        watched_inputs={**known.state.watched_inputs, **state.watched_inputs},
    )


def _recorded_behind(
    prefix: FrozenPrefix,
    encoded: Encoded,
    cache: DynamicCache | None,
    ids: Tensor | None,
    lower: FrozenPrefix | None,
    known: PrefixState | None,
) -> PrefixState | None:
    """The frozen prefix of ids [B, T], filled with -100, behind the prompts that `cache` holds,
    from `known` on where a lower prefix recorded the same; None where nothing is fed."""
    if cache is None or ids is None or ids.shape[1] == 1:
        return None
    start = None if known is None else Start(lower, known)
    behind = DynamicCache()
    _refill(behind, prefix.first, encoded, cache)
    return prefix.record(_forced(encoded, ids), cache=behind, below=start)


def _refill(cache: DynamicCache, blocks: int, prompts: Encoded, kept: DynamicCache | None) -> None:
    """Put what was kept of the lowest blocks into a cache, or, of blocks that are replayed, as many
    columns of nothing, which tell the mask how much is cached."""
    columns = prompts.input_ids.new_zeros((len(prompts), 1, prompts.input_ids.shape[1], 1))
    for index in range(blocks):
        layer = kept.layers[index] if kept is not None else None
        pair = (columns.float(),) * 2 if layer is None else (layer.keys, layer.values)
        cache.update(*pair, index)


def _forced(prompts: Encoded, ids: Tensor) -> Encoded:
    """The ids [B, T], filled with -100, that teacher forcing feeds behind the prompts: all but the
    last column."""
    fed = ids[:, :-1]
    return prompts.onward(fed.clamp(min=0), fed != IGNORED)


class Continuation:
    """One pass over the prompts of a batch under the weights in force, ready to go on.

    Use it inside the editor's `routed` context: `greedy` and `score` run the model again.
    """

    def __init__(self, backbone: Backbone, prefix: FrozenPrefix, batch: PromptBatch) -> None:
        self.backbone, self.prefix, self.batch = backbone, prefix, batch
        self.model = backbone.model
        with torch.no_grad(), prefix.replay(batch.state):
            if backbone.family.kind == "seq2seq":
                encoder = self.model.get_encoder()(**batch.prompts.inputs())
                self.encoded = BaseModelOutput(last_hidden_state=encoder.last_hidden_state)
            else:
                self.cache = DynamicCache()
                self.last_hidden = self._hidden(batch.prompts)[:, -1]
                _refill(self.cache, prefix.first, batch.prompts, batch.cache)

    @cached_property
    def first_logits(self) -> Tensor:
        """Logits [B, V] of the token behind each prompt."""
        return self._head(self.last_hidden)

    def _head(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)

    def _hidden(self, tokens: Encoded) -> Tensor:
        """Last hidden states [B, T, d] of the prompts, or of tokens that go on from them."""
        return self.model.base_model(
            **tokens.inputs(),
            position_ids=tokens.positions(),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    @torch.no_grad()
    def score(self, *, others: bool = False) -> TargetScores:
        """Teacher-forced scores of the batch's targets, or of its competing answers."""
        batch = self.batch
        ids, fed = (batch.others, batch.fed_others) if others else (batch.targets, batch.fed)
        real = ids != IGNORED
        if self.backbone.family.kind == "seq2seq":
            mask = batch.prompts.attention_mask
            logits = answer_logits(
                self.model, ids, encoder_outputs=self.encoded, attention_mask=mask
            )
        else:
            logits = self._forced_logits(ids, real, fed)
        return scores_at(logits, ids[real], real.sum(dim=1).tolist())

    def _forced_logits(self, ids: Tensor, real: Tensor, fed: PrefixState | None) -> Tensor:
        """Logits [N, V] that predict the N real ids, row by row."""
        rows, columns = real.nonzero(as_tuple=True)
        first = columns == 0
        states = self.last_hidden[rows]
        if ids.shape[1] > 1:
            with self.prefix.replay(fed):
                hidden = self._hidden(_forced(self.batch.prompts, ids))
            for layer in self.cache.layers[self.prefix.first if fed else 0 :]:
                layer.crop(1 - ids.shape[1])  # what the replayed blocks hold has not grown
            states[~first] = hidden[rows[~first], columns[~first] - 1]
        return self._head(states)

    @torch.no_grad()
    def greedy(self, max_new_tokens: int) -> list[list[int]]:
        """Greedy continuation ids of each row, up to and including the end mark."""
        backbone = self.backbone
        if backbone.family.kind == "causal" and self.prefix.first and self.batch.cache is None:
            raise BackboneError(
                "these rows were prepared to be scored alone; prepare them with decodes=True"
            )
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
        written, read = [tokens], self.batch.prompts
        ended = tokens[:, 0] == backbone.eos_id
        while len(written) < max_new_tokens and not bool(ended.all()):
            read = read.onward(tokens, torch.ones_like(tokens))
            tokens = self._head(self._hidden(read)[:, -1]).argmax(dim=-1, keepdim=True)
            written.append(tokens)
            ended |= tokens[:, 0] == backbone.eos_id
        if len(written) > 1:
            self.cache.crop(1 - len(written))
        return [until_end(row, backbone.eos_id) for row in torch.cat(written, dim=1).tolist()]


def until_end(ids: Sequence[int], end: int) -> list[int]:
    """The ids up to and including the first end mark."""
    ids = list(ids)
    return ids[: ids.index(end) + 1] if end in ids else ids
