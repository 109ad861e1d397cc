"""Scores of fixed batches of prompts under an editor, recomputed only where a route changed."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lib.backbones import encoding
from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids, class_number, encode
from lib.backbones.passes import decoding
from lib.backbones.passes.decoding import PromptBatch
from lib.backbones.passes.kept import Kept
from lib.backbones.passes.prefix import FrozenPrefix
from lib.data.records import SUBSETS, Stream
from lib.editors.base import UNEDITED, Editor
from lib.evaluation.prompts import Row, RowBatch, columns, row_batches
from lib.evaluation.scoring import Scored, needs_whole_passes, score_batch, score_stand_ins
from lib.metrics import scores
from lib.storage.checked import FORBID


class ReadyRows:
    """Batches of rows for one editor, kept as far as memory allows (others run their prefix again).
    A batch whose prefix was run for an editor of lower layers goes on from there.
    """

    def __init__(self, editor: Editor, memory: Kept, *, whole: bool, decodes: bool) -> None:
        self.editor, self.memory, self.whole, self.decodes = editor, memory, whole, decodes
        self.passes: dict[Any, PromptBatch] = memory.prompts
        self._wanted: set[Any] = set()

    def of(self, rows: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]) -> PromptBatch:
        """The batch of rows with these prompts, targets and competing answers."""
        editor, backbone = self.editor, self.editor.backbone
        prompts, targets, others = rows
        length, first = editor.config.max_length, editor.prefix.first
        way = (length, editor.config.full_width, self.whole, self.decodes)

        def key(blocks: int) -> Any:
            return (backbone.content, blocks, way, prompts, targets, others)

        known = self.passes.get(key(first))
        self._wanted.add(key(first))
        if known is not None and set(editor.watch) <= set(known.state.watched):
            return known
        watch = tuple(dict.fromkeys((*editor.watch, *(known.state.watched if known else ()))))
        made = decoding.prepare(
            backbone,
            editor.prefix,
            prompts,
            targets,
            length,
            watch,
            others=others,
            whole=self.whole,
            full_width=editor.config.full_width,
            decodes=self.decodes,
            below=self._below((key(blocks) for blocks in range(first - 1, 0, -1)), watch),
        )
        self._keep(key(first), made)
        return made

    def _below(
        self, keys: Iterable[Any], watch: tuple[str, ...]
    ) -> tuple[FrozenPrefix, PromptBatch] | None:
        """The highest lower prefix that was run on the same rows and misses nothing of `watch`."""
        stack = self.editor.prefix.stack
        for key in () if self.whole else keys:
            known = self.passes.get(key)
            if known is None:
                continue
            lower = FrozenPrefix(self.editor.backbone, key[1], stack)
            if not any(lower.holds(path) for path in set(watch) - set(known.state.watched)):
                return lower, known
        return None

    def _keep(self, key: Any, made: PromptBatch) -> None:
        """Keep a batch if there is room; those of earlier runs that this one did not ask for go."""
        if key in self.passes:
            self.memory.give(self.passes.pop(key).bytes)
        stale = [other for other in self.passes if other not in self._wanted]
        while not (fits := self.memory.take(made.bytes)) and stale:
            self.memory.give(self.passes.pop(stale.pop(0)).bytes)
        if fits:
            self.passes[key] = made


ScoredRow = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """Everything is scored at the end, after every `checkpoint_every` batches (0: never) and after
    those that `checkpoints` names by their number; general ability only at the end, unless
    `general_between`. `max_new_tokens` bounds decoding; with
    `decode` off nothing is decoded and the scores of what is decoded are NaN. `evaluation_batch` is
    the size of the fixed evaluation batches of the pools, and the most rows with owners in a pass.

    Competing answers are scored unless `rivals` is off: their scores are then NaN.

    `rounds`: "consecutive" edits all batches one after the other; "single" starts every batch from
    the backbone and scores the batch's own rows alone. `inference_repeats` passes are timed before
    and after editing (0: none). `observe` asks the editor about itself after the last batch. Before
    and after editing, at most `lm_eval_limit` items (None: all) of the `lm_eval` tasks
    (`lib.evaluation.general.ability`) are run.
    """

    __pydantic_config__ = FORBID

    checkpoint_every: int = 0
    max_new_tokens: int = 19
    evaluation_batch: int = 100
    rounds: Literal["consecutive", "single"] = "consecutive"
    inference_repeats: int = 0
    observe: bool = False
    decode: bool = True
    lm_eval: Sequence[str] = ()
    lm_eval_limit: int | None = None
    checkpoints: Sequence[int] = ()
    general_between: bool = False
    rivals: bool = True

    def checks(self, done: int) -> bool:
        """Whether everything is scored once `done` batches are edited."""
        due = bool(self.checkpoint_every) and done % self.checkpoint_every == 0
        return due or done in self.checkpoints


class Evaluator:
    """Scores fixed batches of rows under an editor, recomputing a batch only if a route changed.

    Keys and frozen-prefix states of all rows are computed once, and kept in `kept` as far as it
    goes, which runs on one backbone may share; so are scores of the same weights on the same rows
    (`Editor.weights_of`). Rows without an edit get the backbone's own scores (`before`), which are
    what a forward pass would give, bit for bit.

    A batch is computed whole: a row's numbers depend on how many rows are multiplied with it. Among
    fewer rows of the same width, SmolLM2's NLL moves by 1e-5 in float32 and by 0.16 in bfloat16,
    where some argmaxes change.
    """

    def __init__(
        self,
        editor: Editor,
        stream: Stream,
        protocol: Protocol,
        *,
        before: dict[str, list[Scored]] | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.editor, self.protocol = editor, protocol
        self.backbone: Backbone = editor.backbone
        self.before = {} if before is None else before
        self.kept = Kept() if kept is None else kept
        self.batches: dict[str, list[RowBatch]] = {
            subset: row_batches(
                stream,
                subset,
                protocol.evaluation_batch,
                # Only these are scored batch by batch.
                by_edits=subset == "edits" or protocol.rounds == "single",
                rivals=protocol.rivals,
            )
            for subset in SUBSETS
        }
        self.whole = needs_whole_passes(editor)
        self.new_tokens = protocol.max_new_tokens if protocol.decode else 0
        decodes = bool(self.new_tokens)
        self._rows = ReadyRows(editor, self.kept, whole=self.whole, decodes=decodes)
        self._keys: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._latest: dict[tuple[str, int], tuple[tuple, list[Scored]]] = {}

    def score_unedited(self) -> None:
        """Fill `before` for every row. Call it before the first edit, or before saved edits are
        loaded: an editor without a gate could not show the unedited backbone afterwards."""
        for subset, batches in self.batches.items():
            for number in range(len(batches)):
                self._routes(subset, number)
                self._before(subset, number)

    def forget(self) -> None:
        """The editor was rolled back: equal routes no longer mean equal scores."""
        self._latest.clear()

    def records(
        self,
        subset: str,
        moment: str,
        n_edits: int,
        only: int | None = None,
        applied: int | None = None,
    ) -> Iterator[ScoredRow]:
        """Scored rows of a subset as flat records: of those that belong to batch `only`, and to
        the first `applied` edits, if given."""
        for number, batch in enumerate(self.batches[subset]):
            due = [applied is None or row.edit_index < applied for row in batch.rows]
            if only not in (None, batch.number) or not any(due):
                continue
            decode_routes, score_routes = self._routes(subset, number)
            after = self._scores(subset, number, decode_routes, score_routes)
            before = self._before(subset, number)
            scored = zip(batch.rows, after, before, decode_routes, strict=True)
            for row, score, own, route in itertools.compress(scored, due):
                yield self._record(row, score, own) | {
                    "subset": subset,
                    "moment": moment,
                    "n_edits": n_edits,
                    "batch": batch.number,
                    "route": route,
                }

    def _record(self, row: Row, score: Scored, before: Scored) -> ScoredRow:
        gold, answer = self._target_ids(row.target)
        return {
            "record": row.record,
            "fact": row.fact,
            "edit_index": row.edit_index,
            "prompt": row.prompt,
            "target": row.target,
            "subject": row.subject,
            "other": row.other,
            "prediction": score.text,
            **self._decoded(row.target, score, before, gold, answer),
            "token_accuracy": score.token_accuracy,
            "nll": score.nll,
            "answer_accuracy": scores.answer_accuracy(score.answer, answer),
            "answer_agreement": scores.answer_agreement(score.answer, before.answer),
            "answer_nll": score.answer_nll,
            "answer_nll_released": score.answer_nll_released,
            "tokens": score.tokens,
            "other_nll": score.other_nll,
            "prefers_target": scores.prefers_target(score.answer_nll, score.other_nll),
            "prompt_accuracy": scores.answer_accuracy(score.prompt_answer, answer),
        }

    def _target_ids(self, target: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The target's ids with and without end mark; a classifier's target is one class."""
        if self.backbone.family.kind == "classifier":
            only = (class_number(self.backbone, target),)
            return only, only
        length = self.editor.config.max_length
        gold = encoding.target_ids(self.backbone, target, length)
        return tuple(gold), tuple(answer_ids(self.backbone, target, length))

    def _decoded(
        self,
        target: str,
        score: Scored,
        before: Scored,
        gold: tuple[int, ...],
        answer: tuple[int, ...],
    ) -> dict[str, float]:
        """Scores of what was decoded, NaN where nothing was: a classifier's class is no text."""
        names = ("f1_ids_released", "f1_ids", "exact_match", "begins_with", "agreement")
        missing = dict.fromkeys(names, math.nan)
        if self.backbone.family.kind == "classifier":
            return missing | {
                "exact_match": scores.exact_match(score.text, target),
                "agreement": scores.agreement(score.ids, before.ids),
            }
        if not self.new_tokens:
            return missing
        # What the tokenizer can write of the target: some letters do not survive it.
        written = self.backbone.tokenizer.decode(gold, skip_special_tokens=True)
        special = {self.backbone.pad_id, self.backbone.eos_id}
        return missing | {
            "f1_ids_released": scores.f1_ids_released(score.ids, gold, _pad(self.backbone)),
            "f1_ids": scores.f1_ids(score.ids, gold, special),
            "exact_match": scores.exact_match(score.text, written),
            # As far as was decoded.
            "begins_with": scores.begins_with(score.ids, answer[: self.new_tokens]),
            "agreement": scores.agreement(score.ids, before.ids),
        }

    def _prepared(self, subset: str, number: int) -> decoding.PromptBatch:
        return self._rows.of(columns(self.batches[subset][number].rows))

    def keys(self, subset: str) -> torch.Tensor:
        """The keys [n, d] of a subset's prompts, in order, once `score_unedited` has read them."""
        return torch.cat([self._keys[subset, n][0] for n in range(len(self.batches[subset]))])

    def _routes(self, subset: str, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Routes for decoding (keys of the prompts) and for teacher-forced scores."""
        editor, place = self.editor, (subset, number)
        if place not in self._keys:
            batch = self._prepared(subset, number)
            keys = editor.keys_from(batch.state, batch.prompts)
            full = keys
            if self.backbone.family.kind == "causal" and editor.keys_see_target:
                prompts, targets, _ = columns(self.batches[subset][number].rows)
                length = editor.config.max_length
                full = editor.keys_of(encode(self.backbone, prompts, targets, max_length=length))
            self._keys[place] = keys, full
        keys, full = self._keys[place]
        decode = tuple(editor.routes_of(keys))
        return decode, decode if full is keys else tuple(editor.routes_of(full))

    def _before(self, subset: str, number: int) -> list[Scored]:
        place = f"{subset}/{number}"
        if place not in self.before:
            batch = self._prepared(subset, number)
            none = (UNEDITED,) * len(self.batches[subset][number].rows)
            self.before[place] = self._compute(batch, none, none)
        return self.before[place]

    def _scores(
        self, subset: str, number: int, decode: tuple[str, ...], score: tuple[str, ...]
    ) -> list[Scored]:
        if set(decode) | set(score) == {UNEDITED}:
            return self._before(subset, number)
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
            return self._answered(subset, number, decode, score)
        rows = columns(self.batches[subset][number].rows)
        config, new = self.editor.config, self.new_tokens
        length = (config.max_length, config.full_width)
        key = (self.backbone.content, length, new, self.whole, rows, tuple(weights))
        if key not in self.kept.scores:
            self.kept.scores[key] = self._answered(subset, number, decode, score)
        return self.kept.scores[key]

    def _answered(
        self, subset: str, number: int, decode: tuple[str, ...], score: tuple[str, ...]
    ) -> list[Scored]:
        """The scores of all rows: the model's own, or a stand-in's."""
        stand_ins, batch = [*map(self.editor.stand_in, decode)], self._prepared(subset, number)
        if not any(stand_ins):
            return self._compute(batch, decode, score)
        own = tuple(UNEDITED if s else r for r, s in zip(decode, stand_ins, strict=True))
        none = set(own) == {UNEDITED}
        scored = self._before(subset, number) if none else self._compute(batch, own, own)
        theirs = score_stand_ins(batch, stand_ins, self.new_tokens)
        return [theirs.get(row, score) for row, score in enumerate(scored)]

    def _compute(
        self, batch: decoding.PromptBatch, decode: Sequence[str], score: Sequence[str]
    ) -> list[Scored]:
        return score_batch(self.editor, batch, decode, score, self.new_tokens)


def _pad(backbone: Backbone) -> int:
    """The id dropped from predictions; where pad and end are one token, the end mark stays."""
    return backbone.pad_id if backbone.pad_id != backbone.eos_id else -1
