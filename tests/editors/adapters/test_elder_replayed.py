"""ELDER replayed, this study's extension: against an independent plain loop, and what it is for."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lib.backbones.encoding import encode_prompts
from lib.backbones.sources import loading
from lib.editors import build
from lib.editors.adapters.elder_replayed import ElderReplayed
from lib.errors import EditorError
from tests.conftest import make, prompt_logits
from tests.editors.adapters.elder_cases import (
    BATCHES,
    EDITS,
    FAMILIES,
    PROMPTS,
    code_of,
    gap,
    pairs,
    pool_of,
    reference_of,
    where,
)
from tests.editors.adapters.reference_elder import Adam, Code, Pair, Reference

STREAM: dict[str, Any] = {
    "steps": 4,
    "lr": 0.02,
    "router_steps": 6,
    "router_lr": 0.05,
    "epsilon": 4,
}
EXACT = 1e-5
"""float64; Adam lifts the rounding of gradients near its epsilon."""


def replayed(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> ElderReplayed:
    return make("elder_replayed", loading.load(name, dtype=dtype), **where(name) | STREAM | changes)


class Loop:
    """The extension, slow and plain, on the oracle of ELDER: one query after the other, routes
    held as numbers while the experts train. `routers` and `replay` are the two switches."""

    def __init__(self, editor: ElderReplayed) -> None:
        self.config, self.oracle = editor.config, reference_of(editor)
        self.seen: list[tuple[Tensor, Code]] = []

    def edit(self, batch: Sequence[Pair]) -> list[float]:
        """Losses of the steps that train the experts."""
        oracle, config = self.oracle, self.config
        own = [(oracle.query(prompt), oracle.allocation(answer)) for prompt, answer in batch]
        self.seen = self.seen + own if config.replay else own
        if config.routers == "with_experts":
            history = self._together(batch)
        else:
            self._fit_routers()
            routes = [self._route(oracle, query) for query, _ in own]
            history = self._fit_experts(batch, routes)
        oracle.memory += [oracle.code(query) for query, _ in own]
        oracle.queries += [query for query, _ in own]
        return history

    def _guide(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for query, wanted in self.seen:
            for scores, bits in zip(self.oracle.log_s(query), wanted, strict=True):
                total = total - sum(score for score, bit in zip(scores, bits, strict=True) if bit)
        return total / len(self.seen)

    def _fit_routers(self) -> None:
        tensors = [t.requires_grad_() for t in (*self.oracle.pool.W, *self.oracle.pool.b)]
        adam = Adam(tensors)
        for _ in range(self.config.router_steps):
            adam.step(torch.autograd.grad(self._guide(), tensors), self.config.router_lr)

    @staticmethod
    @torch.no_grad()
    def _route(oracle: Reference, query: Tensor) -> list[list[float]]:
        """The weight of each expert of each layer."""
        chosen = zip(oracle.log_s(query), oracle.code(query), strict=True)
        return [
            [bit * float(score.exp()) for score, bit in zip(scores, bits, strict=True)]
            for scores, bits in chosen
        ]

    def _model_loss(self, batch: Sequence[Pair], routes: Sequence[list[list[Any]]]) -> Tensor:
        oracle, scale, found = self.oracle, self.config.alpha / self.config.rank, []
        for (prompt, answer), route in zip(batch, routes, strict=True):
            layers = list(zip(route, oracle.pool.A, oracle.pool.B, strict=True))
            deltas = [
                scale * sum(w * (a @ b) for w, a, b in zip(weights, A, B, strict=True))
                for weights, A, B in layers
            ]
            row = oracle.row(prompt, answer)
            logits = oracle._pass(row, lambda _query, deltas=deltas: deltas)
            found += [
                torch.log_softmax(logits[row.key + place], dim=-1)[label]
                for place, label in enumerate(row.answer)
            ]
        return -sum(found) / len(found)

    def _fit_experts(self, batch: Sequence[Pair], routes: Sequence[Any]) -> list[float]:
        pool = self.oracle.pool
        tensors = [
            t.requires_grad_() for group in (pool.A, pool.B) for layer in group for t in layer
        ]
        adam, history = Adam(tensors), []
        for _ in range(self.config.steps):
            loss = self._model_loss(batch, routes)
            history.append(float(loss.detach()))
            adam.step(torch.autograd.grad(loss, tensors), self.config.lr)
        return history

    def _together(self, batch: Sequence[Pair]) -> list[float]:
        oracle, config = self.oracle, self.config
        tensors = [t.requires_grad_() for t in oracle.pool.tensors()]
        adam, history = Adam(tensors), []
        for _ in range(config.steps):
            queries = [oracle.query(prompt) for prompt, _ in batch]
            routes = [
                [
                    [bit * score.exp() for score, bit in zip(scores, bits, strict=True)]
                    for scores, bits in zip(oracle.log_s(query), oracle.code(query), strict=True)
                ]
                for query in queries
            ]
            loss = self._model_loss(batch, routes) + config.guide_weight * self._guide()
            history.append(float(loss.detach()))
            adam.step(torch.autograd.grad(loss, tensors, allow_unused=True), config.lr)
        return history


def follow(editor: ElderReplayed, loop: Loop) -> None:
    """Both edit the same batches; losses, parameters and codes agree after each, logits and scope
    at the end."""
    for batch in BATCHES:
        report, history = editor.edit(batch), loop.edit(pairs(batch))
        assert report.loss_first == pytest.approx(history[0], rel=EXACT)
        assert report.loss_last == pytest.approx(history[-1], rel=EXACT)
        ours, theirs = pool_of(editor).tensors(), loop.oracle.pool.tensors()
        assert max(gap(one, other) for one, other in zip(ours, theirs, strict=True)) < EXACT
        codes = [loop.oracle.code(query) for query in loop.oracle.queries]
        assert editor.stored_codes.int().tolist() == codes
    routes = editor.route(encode_prompts(editor.backbone, PROMPTS))
    logits = prompt_logits(editor.backbone, list(PROMPTS))
    loop.oracle.memory = codes
    for prompt, route, row in zip(PROMPTS, routes, logits, strict=True):
        assert (route != "base") == loop.oracle.in_scope(loop.oracle.query(prompt))
        expected = loop.oracle.logits(loop.oracle.row(prompt))[-1]
        assert (row - expected).abs().max() < EXACT * expected.abs().max()
    assert len(set(routes)) > 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stream_equals_the_plain_loop(name: str) -> None:
    editor = replayed(name)
    follow(editor, Loop(editor))


@pytest.mark.parametrize(
    "changes",
    [
        {"replay": False},
        {"routers": "with_experts", "guide_weight": 0.5},
        {"n_experts": 6, "k": 1},
    ],
    ids=str,
)
def test_its_parts_equal_the_plain_loop(changes: dict[str, Any]) -> None:
    editor = replayed("tiny-gpt2", **changes)
    follow(editor, Loop(editor))


def test_after_any_batch_every_edit_has_the_code_of_its_allocation() -> None:
    """Which routers that see the present batch alone do not keep."""
    for replay, kept in ((True, True), (False, False)):
        editor = replayed("tiny-llama", router_steps=60, replay=replay)
        for batch in BATCHES:
            assert editor.edit(batch).counts["digits_from_allocation"] == 0
        wanted = [code_of(editor, edit.target) for edit in EDITS]
        assert (editor.stored_codes.int().tolist() == wanted) == kept
        editor.close()


def test_routers_stand_still_while_experts_train() -> None:
    """Experts that learn nothing leave the same routers."""
    found = []
    for lr in (0.02, 0.0):
        editor = replayed("tiny-llama", lr=lr)
        editor.edit(BATCHES[0])
        found.append([router.detach().clone() for router in editor.routers])
        assert (pool_of(editor).B[0][0].abs().max() > 0) == (lr > 0)
        editor.close()
    assert all(map(torch.equal, *found))


def test_a_loaded_editor_goes_on_as_the_saved_one(tmp_path) -> None:
    """With the queries and allocated codes of all edits so far."""
    first = replayed("tiny-llama", torch.float32)
    first.edit(BATCHES[0])
    first.save(tmp_path / "saved")
    first.edit(BATCHES[1])
    second = replayed("tiny-llama", torch.float32)
    second.load(tmp_path / "saved")
    second.edit(BATCHES[1])
    ours, theirs = pool_of(first).tensors(), pool_of(second).tensors()
    assert all(map(torch.equal, ours, theirs))
    assert torch.equal(first.wanted, second.wanted) and len(second.wanted) == 4
    second.rollback()
    assert not len(second.wanted) and not len(second.queries)


@pytest.mark.parametrize(
    "changes", [{"auxiliary": "none"}, {"training_routing": "preset"}, {"refresh_codes": False}]
)
def test_what_it_replaces_cannot_be_asked_for(changes: dict[str, Any]) -> None:
    backbone = loading.load("tiny-llama")
    with pytest.raises(EditorError, match="leave auxiliary guided"):
        build("elder_replayed", backbone, where("tiny-llama") | changes)
