"""Scores of fixed batches of prompts under an editor, recomputed only where a route changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lib import decoding, metrics
from lib.backbones import Backbone
from lib.data.records import Edit, Probe, Stream
from lib.editors.base import BASE, Editor
from lib.encoding import encode

Record = dict[str, Any]
SUBSETS = ("edits", "holdout", "upstream", "near")


@dataclass(frozen=True)
class Protocol:
    """`checkpoint_every` counts batches (0: only the end). `max_new_tokens` bounds decoding;
    `evaluation_batch` is the size of the fixed evaluation batches of the pools."""

    checkpoint_every: int = 0
    max_new_tokens: int = 19
    evaluation_batch: int = 100


@dataclass(frozen=True)
class Row:
    """One prompt to score and where it belongs."""

    record: str
    prompt: str
    target: str
    edit_index: int
    fact: str


@dataclass(frozen=True)
class Scored:
    """What one row got: decoded ids and text, teacher-forced likelihood and accuracy."""

    ids: tuple[int, ...]
    text: str
    nll: float
    token_accuracy: float


class Evaluator:
    """Scores fixed batches of rows under an editor, recomputing a batch only if a route changed.

    Keys and frozen-prefix states of all rows are computed once (`passes` may share them between
    runs on one backbone); rows without an edit get the backbone's own scores (`base`), which are
    what a forward pass would give, bit for bit. `outputs` shares scores between runs that apply
    the same weights to the same rows (`Editor.weights_of`).
    """

    def __init__(
        self,
        editor: Editor,
        stream: Stream,
        protocol: Protocol,
        *,
        base: dict[str, list[Scored]] | None = None,
        passes: dict[Any, decoding.PromptBatch] | None = None,
        outputs: dict[Any, list[Scored]] | None = None,
    ) -> None:
        self.editor, self.protocol = editor, protocol
        self.backbone: Backbone = editor.backbone
        self.base = {} if base is None else base
        self.passes = {} if passes is None else passes
        self.outputs = {} if outputs is None else outputs
        self.rows = {subset: list(_row_batches(stream, subset, protocol)) for subset in SUBSETS}
        self._keys: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._latest: dict[tuple[str, int], tuple[tuple, list[Scored]]] = {}

    def score_unedited(self) -> None:
        """Fill `base` for every row. Call it before the first edit, or before saved edits are
        loaded: an editor without a gate could not show the unedited backbone afterwards."""
        for subset, batches in self.rows.items():
            for number in range(len(batches)):
                self._routes(subset, number)
                self._base(subset, number)

    def records(
        self, subset: str, moment: str, n_edits: int, only: int | None = None
    ) -> Iterator[Record]:
        """Scored rows of a subset (of its batch `only`, if given) as flat records."""
        batches = range(len(self.rows[subset])) if only is None else [only]
        for number in batches:
            rows = self.rows[subset][number]
            decode_routes, score_routes = self._routes(subset, number)
            scores = self._scores(subset, number, decode_routes, score_routes)
            before = self._base(subset, number)
            for row, score, own, route in zip(rows, scores, before, decode_routes, strict=True):
                yield self._record(row, score, own) | {
                    "subset": subset,
                    "moment": moment,
                    "n_edits": n_edits,
                    "batch": number,
                    "route": route,
                }

    def _record(self, row: Row, score: Scored, before: Scored) -> Record:
        gold = tuple(decoding.target_ids(self.backbone, row.target, self.editor.config.max_length))
        # What the tokenizer can write of the target: some letters do not survive it.
        written = self.backbone.tokenizer.decode(gold, skip_special_tokens=True)
        special = {self.backbone.pad_id, self.backbone.eos_id}
        return {
            "record": row.record,
            "fact": row.fact,
            "edit_index": row.edit_index,
            "prompt": row.prompt,
            "target": row.target,
            "prediction": score.text,
            "f1_ids_released": metrics.f1_ids_released(score.ids, gold, _pad(self.backbone)),
            "f1_ids": metrics.f1_ids(score.ids, gold, special),
            "exact_match": metrics.exact_match(score.text, written),
            "agreement": metrics.agreement(score.ids, before.ids),
            "token_accuracy": score.token_accuracy,
            "nll": score.nll,
        }

    def _prepared(self, subset: str, number: int) -> decoding.PromptBatch:
        editor, rows = self.editor, self.rows[subset][number]
        prompts, targets = tuple(r.prompt for r in rows), tuple(r.target for r in rows)
        length, first = editor.config.max_length, editor.prefix.first
        key = (self.backbone.content, first, length, prompts, targets)
        known = self.passes.get(key)
        if known is None or not set(editor.watch) <= set(known.state.watched):
            seen = tuple(known.state.watched) if known else ()
            watch = tuple(dict.fromkeys((*editor.watch, *seen)))
            self.passes[key] = decoding.prepare(
                self.backbone, editor.prefix, prompts, targets, length, watch
            )
        return self.passes[key]

    def _routes(self, subset: str, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Routes for decoding (keys of the prompts) and for teacher-forced scores."""
        editor, place = self.editor, (subset, number)
        if place not in self._keys:
            batch = self._prepared(subset, number)
            keys = editor.keys_from(batch.state, batch.prompts)
            full = keys
            if self.backbone.family.kind == "causal" and editor.keys_see_target:
                rows = self.rows[subset][number]
                full = editor.keys_of(
                    encode(
                        self.backbone,
                        [row.prompt for row in rows],
                        [row.target for row in rows],
                        max_length=editor.config.max_length,
                    )
                )
            self._keys[place] = keys, full
        keys, full = self._keys[place]
        decode = tuple(editor.routes_of(keys))
        return decode, decode if full is keys else tuple(editor.routes_of(full))

    def _base(self, subset: str, number: int) -> list[Scored]:
        place = f"{subset}/{number}"
        if place not in self.base:
            batch = self._prepared(subset, number)
            none = (BASE,) * len(self.rows[subset][number])
            self.base[place] = self._compute(batch, none, none)
        return self.base[place]

    def _scores(
        self, subset: str, number: int, decode: tuple[str, ...], score: tuple[str, ...]
    ) -> list[Scored]:
        if set(decode) | set(score) == {BASE}:
            return self._base(subset, number)
        place, routes = (subset, number), (decode, score)
        known = self._latest.get(place)
        if known is None or known[0] != routes:
            known = routes, self._shared(subset, number, decode, score)
            self._latest[place] = known
        return known[1]

    def _shared(
        self, subset: str, number: int, decode: tuple[str, ...], score: tuple[str, ...]
    ) -> list[Scored]:
        weights = [self.editor.weights_of(route) for route in (*decode, *score)]
        if None in weights:
            return self._compute(self._prepared(subset, number), decode, score)
        rows = tuple((row.prompt, row.target) for row in self.rows[subset][number])
        length, new = self.editor.config.max_length, self.protocol.max_new_tokens
        key = (self.backbone.content, length, new, rows, tuple(weights))
        if key not in self.outputs:
            self.outputs[key] = self._compute(self._prepared(subset, number), decode, score)
        return self.outputs[key]

    def _compute(
        self, batch: decoding.PromptBatch, decode: tuple[str, ...], score: tuple[str, ...]
    ) -> list[Scored]:
        editor = self.editor
        with editor.routed(batch.prompts, decode):
            onward = decoding.Continuation(self.backbone, editor.prefix, batch)
            ids = onward.greedy(self.protocol.max_new_tokens)
            forced = onward.score() if score == decode else None
        if forced is None:
            with editor.routed(batch.prompts, score):
                forced = decoding.Continuation(self.backbone, editor.prefix, batch).score()
        texts = self.backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            Scored(tuple(row), text.strip(), nll, accuracy)
            for row, text, nll, accuracy in zip(
                ids, texts, forced.nll, forced.token_accuracy, strict=True
            )
        ]


def _pad(backbone: Backbone) -> int:
    """The id dropped from predictions; where pad and end are one token, the end mark stays."""
    return backbone.pad_id if backbone.pad_id != backbone.eos_id else -1


def _row_batches(stream: Stream, subset: str, protocol: Protocol) -> Iterator[list[Row]]:
    items: Sequence[Edit | Probe] = getattr(stream, subset)
    size = stream.batch_size if subset == "edits" else protocol.evaluation_batch
    rows = [
        Row(
            item.identity,
            item.prompt,
            item.target,
            index if subset == "edits" else -1,
            item.relation if isinstance(item, Edit) else item.identity,
        )
        for index, item in enumerate(items)
    ]
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
