"""The comparisons that run a model: mixed batches, frozen prefix, batched scores, checkpoints."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from speed_setting import Size
from speed_timing import Agreement, Line, Measured, compare, exactly, timed
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded, encode_prompts
from lib.backbones.passes import decoding
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import SUBSETS, Edit, Probe, Stream
from lib.editors import build
from lib.editors.adapters.melo import Melo
from lib.editors.base import UNEDITED
from lib.evaluation.evaluator import Evaluator, Protocol, ScoredRow
from lib.storage.cache import Cache

LOGIT_TOLERANCE = 1e-4
"""Of the largest logit. A row alone has another width and no padding, and a merged weight rounds
W + N B A once: float32 sums in another order, a few parts in a million."""

NLL_TOLERANCE = 1e-4
"""Nats, relative above 1: the same reason. Ids and token accuracy have no tolerance."""


@dataclass(frozen=True)
class Trained:
    """A MELO that holds one block per batch of the stream, reloaded in no time from `blocks`."""

    melo: Melo
    stream: Stream
    size: Size


def melo_on(backbone: Backbone, size: Size, blocks: Path | None = None, **changes: Any) -> Melo:
    """A MELO with the settings of `size`."""
    made = build(
        "melo", backbone, size.config | changes, blocks_cache=Cache(blocks) if blocks else None
    )
    assert isinstance(made, Melo)
    return made


def edit_all(melo: Melo, stream: Stream) -> None:
    """Every batch of the stream from the unedited model on."""
    melo.rollback()
    for batch in stream.batches():
        melo.edit(batch)


# -- gated LoRA on a mixed batch -------------------------------------------------------------


def last_logits(melo: Melo, batch: Encoded, routes: Sequence[str]) -> Tensor:
    """Logits after each prompt under the given routes [B, V]."""
    model = melo.model
    with torch.no_grad(), melo.routed(batch, routes):
        hidden = model.base_model(
            **batch.inputs(), position_ids=batch.positions(), use_cache=False
        ).last_hidden_state
        return model.get_output_embeddings()(hidden[torch.arange(len(batch)), batch.last_prompt])


@contextlib.contextmanager
@torch.no_grad()
def merged(melo: Melo, route: str) -> Iterator[None]:
    """W + N_b B[b] A[b] instead of W inside the context; nothing for the route UNEDITED."""
    kept = {}
    if route != UNEDITED:
        block = melo.lora.read(int(route.split()[1]))
        for site, layer in melo.lora.layers.items():
            weight = layer.base_layer.weight
            kept[site] = weight.clone()
            weight.add_(block[f"{site}.B"] @ block[f"{site}.A"], alpha=melo.scale)
    try:
        yield
    finally:
        for site, weight in kept.items():
            melo.lora.layers[site].base_layer.weight.copy_(weight)


def same_logits(plain: Tensor, fast: Tensor) -> Agreement:
    """Within LOGIT_TOLERANCE, and the same argmax in every row."""
    away = ((plain - fast).abs().max() / plain.abs().max()).item()
    argmax = bool((plain.argmax(dim=-1) == fast.argmax(dim=-1)).all())
    sense = f"logits within {LOGIT_TOLERANCE:.0e} of the largest (found {away:.1e}), same argmax"
    return Agreement(away <= LOGIT_TOLERANCE and argmax, sense)


def mixed_batch(trained: Trained) -> Line:
    """One pass over rows with different blocks, and each row alone with its block merged."""
    melo, backbone = trained.melo, trained.melo.backbone
    prompts = [edit.prompt for edit in trained.stream.edits]
    choices = [*(f"block {number}" for number in range(melo.n_batches)), UNEDITED]
    routes = [choices[row % len(choices)] for row in range(len(prompts))]
    batch = encode_prompts(backbone, prompts)
    alone = [encode_prompts(backbone, [prompt]) for prompt in prompts]

    def one_by_one() -> Tensor:
        found = []
        for row, route in zip(alone, routes, strict=True):
            with merged(melo, route):
                found.append(last_logits(melo, row, [UNEDITED]))
        return torch.cat(found)

    unedited = last_logits(melo, batch, [UNEDITED] * len(prompts))
    moved = (last_logits(melo, batch, routes) - unedited).abs().amax(dim=1)
    moves = moved > 10 * LOGIT_TOLERANCE * unedited.abs().max()
    if moves.tolist() != [route != UNEDITED for route in routes]:
        raise RuntimeError("every block should move its rows, and no other row should move")
    return compare(
        f"mixed batch: {len(prompts)} rows, {melo.n_batches} blocks and none",
        timed(one_by_one),
        timed(lambda: last_logits(melo, batch, routes)),
        same_logits,
        trained.size.repeats,
    )


# -- frozen prefix ---------------------------------------------------------------------------


class WholePasses(FrozenPrefix):
    """No recorded prefix: training passes start at the first block. Keys are read as ever."""

    def record(self, batch: Encoded, watch: tuple[str, ...] = (), cache: Any = None) -> PrefixState:
        """An empty state, which replays nothing, unless a router's layer is to be read."""
        return super().record(batch, watch, cache) if watch else PrefixState(None, {}, {}, 0)


def frozen_prefix(backbone: Backbone, stream: Stream, size: Size) -> Line:
    """The edit of one batch with and without the recorded prefix."""
    melo = melo_on(backbone, size, steps=size.training_steps)
    recorded = melo.prefix
    whole = WholePasses(backbone, recorded.first)
    batch = stream.edits[: size.training_rows]

    def trained_with(prefix: FrozenPrefix) -> dict[str, Any]:
        melo.rollback()
        melo.prefix = prefix
        report = melo.edit(batch)
        block = {name: tensor.tolist() for name, tensor in melo.lora.read(0).items()}
        return {"losses": (report.loss_first, report.loss_last), "block": block}

    def same_training(plain: dict[str, Any], fast: dict[str, Any]) -> Agreement:
        return replace(exactly(plain, fast), sense="losses and trained block exactly")

    try:
        return compare(
            f"frozen prefix: {size.training_steps} steps on {len(batch)} edits, "
            f"{recorded.first} of {backbone.n_blocks()} blocks frozen",
            timed(lambda: trained_with(whole)),
            timed(lambda: trained_with(recorded)),
            same_training,
            size.repeats,
        )
    finally:
        melo.close()


# -- batched evaluation ----------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What one row got."""

    route: str
    ids: list[int]
    nll: float
    token_accuracy: float


def answers(trained: Trained, rows: Sequence[Edit | Probe], at_once: int) -> list[Answer]:
    """Routes, decoded ids and teacher-forced scores, so many rows at once."""
    melo, found = trained.melo, []
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        batch = decoding.prepare(
            melo.backbone,
            melo.prefix,
            [row.prompt for row in part],
            [row.target for row in part],
            watch=melo.watch,
        )
        routes = melo.routes_of(melo.keys_from(batch.state, batch.prompts))
        with melo.routed(batch.prompts, routes):
            onward = decoding.Continuation(melo.backbone, melo.prefix, batch)
            ids = onward.greedy(trained.size.new_tokens)
            scores = onward.score()
        found += [
            Answer(*row) for row in zip(routes, ids, scores.nll, scores.token_accuracy, strict=True)
        ]
    return found


def same_answers(plain: list[Answer], fast: list[Answer]) -> Agreement:
    """Routes, ids and token accuracy exactly, likelihoods within NLL_TOLERANCE."""
    away = max(
        abs(slow.nll - quick.nll) / max(1.0, abs(slow.nll))
        for slow, quick in zip(plain, fast, strict=True)
    )
    rest = [replace(each, nll=0.0) for each in plain] == [replace(each, nll=0.0) for each in fast]
    sense = f"ids and routes exactly, NLL within {NLL_TOLERANCE:.0e} (found {away:.1e})"
    return Agreement(rest and away <= NLL_TOLERANCE, sense)


def batched_evaluation(trained: Trained) -> Line:
    """The same rows in one batch and one at a time."""
    pools = [pool for subset in SUBSETS if (pool := getattr(trained.stream, subset))]
    rows = [pool[place] for place in range(0, len(pools[0]), 4) for pool in pools]
    routes = {answer.route for answer in answers(trained, rows, len(rows))}
    if UNEDITED not in routes or len(routes) < 3:
        raise RuntimeError(f"the rows should use several blocks and none, not {sorted(routes)}")
    return compare(
        f"evaluation of {len(rows)} rows, {trained.size.new_tokens} new tokens",
        timed(lambda: answers(trained, rows, 1)),
        timed(lambda: answers(trained, rows, len(rows))),
        same_answers,
        trained.size.repeats,
    )


# -- checkpoints -----------------------------------------------------------------------------


class Counting(Evaluator):
    """Counts the batches that were computed."""

    computed = 0

    def _compute(self, *arguments: Any) -> list[Any]:
        self.computed += 1
        return super()._compute(*arguments)


class Everything(Counting):
    """Recomputes every batch at every moment, whether its routes changed or not."""

    def _scores(
        self, subset: str, number: int, decode: tuple[str, ...], score: tuple[str, ...]
    ) -> list[Any]:
        return self._compute(self._prepared(subset, number), decode, score)


def checkpoints(trained: Trained) -> Line:
    """Scores of all four subsets after every second batch of edits; editing is not counted."""
    melo, stream = trained.melo, trained.stream
    protocol = Protocol(
        checkpoint_every=2, max_new_tokens=trained.size.new_tokens, evaluation_batch=12
    )
    melo.rollback()
    # Backbone scores and prefix states are there before the first checkpoint in any run.
    before = Evaluator(melo, stream, protocol)
    for subset in SUBSETS:
        list(before.records(subset, "before", 0))
    computed: dict[type[Counting], int] = {}

    def run(kind: type[Counting]) -> Measured:
        melo.rollback()
        evaluator = kind(melo, stream, protocol, before=before.before, kept=before.kept)
        seconds, records = 0.0, list[ScoredRow]()
        for number, batch in enumerate(stream.batches(), start=1):
            melo.edit(batch)
            if number % protocol.checkpoint_every == 0:
                began = time.perf_counter()
                for subset in SUBSETS:
                    records += evaluator.records(subset, "checkpoint", melo.n_edits)
                seconds += time.perf_counter() - began
        computed[kind] = evaluator.computed
        return seconds, records

    line = compare(
        "checkpoints", lambda: run(Everything), lambda: run(Counting), exactly, trained.size.repeats
    )
    counts = f"{computed[Counting]} of {computed[Everything]} batches recomputed"
    return replace(line, what=f"3 checkpoints: {counts}")
