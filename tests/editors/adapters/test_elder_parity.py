"""ELDER against the slow reference: whole streams and ablations, the frozen prefix (parity check
15 of the study's notes)."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from lib.backbones.encoding import encode_prompts
from lib.backbones.passes.prefix import FrozenPrefix
from lib.backbones.sources import loading
from lib.editors.adapters.elder import Elder
from tests.conftest import prompt_logits, stream
from tests.editors.adapters.elder_cases import (
    BATCHES,
    EDITS,
    FAMILIES,
    PROMPTS,
    allocated,
    editor_of,
    gap,
    pairs,
    pool_of,
    reference_of,
    rows_of,
    served,
    trained,
)
from tests.editors.adapters.reference_elder import Reference, distance

STREAM: dict[str, Any] = {"steps": 4, "lr": 0.02, "epsilon": 2, "guide_weight": 0.1}
EXACT = 1e-5
"""float64; Adam lifts the rounding of gradients near its epsilon. A misreading moves 1e-3."""


def follow(editor: Elder, reference: Reference, batches: Any, within: float) -> None:
    """Both edit the same batches; losses, parameters, codes and queries agree after each."""
    for batch in batches:
        report = editor.edit(batch)
        history = reference.edit(pairs(batch))
        assert report.loss_first == pytest.approx(history[0], rel=within)
        assert report.loss_last == pytest.approx(history[-1], rel=within)
        assert editor.released_codes.int().tolist() == reference.memory
        ours, theirs = pool_of(editor).tensors(), reference.pool.tensors()
        assert max(gap(one, other) for one, other in zip(ours, theirs, strict=True)) < within


def agree(editor: Elder, reference: Reference, within: float) -> list[bool]:
    """Distances, scope and logits of every prompt agree; returns who is in scope."""
    backbone = editor.backbone
    scope = served(editor, PROMPTS)
    routing = editor.routing(editor.keys_of(encode_prompts(backbone, PROMPTS)))
    distances = editor.distances(routing).tolist()
    logits = prompt_logits(backbone, list(PROMPTS)).double()
    for place, prompt in enumerate(PROMPTS):
        row = reference.row(prompt)
        assert distances[place] == min(reference.distances(prompt))
        assert scope[place] == reference.in_scope(reference.query(prompt))
        expected = reference.logits(row)[-1]
        assert (logits[place] - expected).abs().max() < within * expected.abs().max()
        changed = (expected - reference.logits(row, base=True)[-1]).abs().max()
        assert changed > 1e-3 if scope[place] else changed == 0
    return scope


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stream_equals_the_reference(name: str) -> None:
    """Three batches, the last one short; one pool, a new Adam per batch, stale codes."""
    editor = editor_of(loading.load(name, dtype=torch.float64), **STREAM)
    reference = reference_of(editor)
    follow(editor, reference, BATCHES, within=EXACT)
    scope = agree(editor, reference, within=EXACT)
    assert True in scope and False in scope
    assert reference.memory != [reference.code(q) for q in reference.queries]  # stale indeed


@pytest.mark.parametrize("name", FAMILIES)
def test_15_the_frozen_prefix_changes_neither_loss_nor_gradient(name: str) -> None:
    """And both are the reference's, at random parameters."""
    editor = editor_of(loading.load(name, dtype=torch.float64), random=5)
    batch = EDITS[:3]
    rows, parameters = rows_of(editor.backbone, batch), trained(editor)
    routing = editor.routing(editor.keys_of(rows.encoded))
    losses, gradients = [], []
    for state in (editor.prefix.record(rows.encoded), None):
        with editor.prefix.replay(state):
            losses.append(editor.loss(rows, routing, allocated(editor, batch)))
        gradients.append(torch.autograd.grad(losses[-1], parameters, retain_graph=True))
    assert (losses[0] - losses[1]).abs() < 1e-6
    assert max((a - b).abs().max() for a, b in zip(*gradients, strict=True)) < 1e-7
    reference = reference_of(editor)
    expected, theirs, _ = reference.gradients(pairs(batch))
    assert float(losses[0].detach()) == pytest.approx(expected, rel=1e-9)
    L = len(reference.s.targets)
    W, b = gradients[0][-2:]
    assert gap(W, torch.stack(theirs[-2 * L : -L])) < 1e-6
    assert gap(b, torch.stack(theirs[-L:])) < 1e-6


def test_15_editing_uses_the_frozen_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest block runs once per batch, and the outcome is that of running it each time."""
    backbone = loading.load("tiny-llama")
    seen: list[int] = []
    backbone.module("attention", 0).register_forward_hook(lambda *_: seen.append(1))
    pools, calls = [], []
    for replay in (FrozenPrefix.replay, lambda self, state: contextlib.nullcontext()):
        monkeypatch.setattr(FrozenPrefix, "replay", replay)
        editor = editor_of(backbone)
        seen.clear()
        editor.edit(EDITS[:2])
        calls.append(len(seen))
        pools.append(pool_of(editor).tensors())
        editor.close()
    assert max(gap(a, b) for a, b in zip(*pools, strict=True)) < 1e-4
    assert calls == [1, 1 + editor.config.steps]  # one to find the query, then one per step


def test_a_stream_in_float32_stays_close_to_the_reference() -> None:
    editor = editor_of(loading.load("tiny-gpt2"), **STREAM)
    reference = reference_of(editor)
    follow(editor, reference, BATCHES[:2], within=1e-3)
    agree(editor, reference, within=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"auxiliary": "balancing"},
        {"auxiliary": "none"},
        {"training_routing": "preset"},
        {"halve_every": 2},
        {"refresh_codes": True},
        {"n_experts": 5, "k": 3, "rank": 3, "alpha": 7.5},
        {"n_experts": 3, "k": 1},
    ],
    ids=lambda changes: "-".join(map(str, (*changes, *changes.values()))),
)
def test_variants_equal_the_reference(changes: dict[str, Any]) -> None:
    editor = editor_of(loading.load("tiny-gpt2", dtype=torch.float64), **STREAM | changes)
    reference = reference_of(editor)
    follow(editor, reference, (EDITS[:3], EDITS[3:]), within=EXACT)
    agree(editor, reference, within=EXACT)


def test_observed_distances_equal_the_reference() -> None:
    """Of every prompt to the nearest code and to its own edit's, as released and refreshed."""
    editor = editor_of(loading.load("tiny-gpt2", dtype=torch.float64), **STREAM)
    reference = reference_of(editor)
    owners = {"holdout": tuple(range(6)), "near": (3, 4), "upstream": (0, 1, 2)}
    shared = replace(stream(), owners=owners)
    follow(editor, reference, shared.batches(), within=EXACT)
    seen = set()
    refreshed = [reference.code(q) for q in reference.queries]
    prompts = {
        (subset, item.identity): item.prompt
        for subset in ("edits", *owners)
        for item in getattr(shared, subset)
    }
    *rows, summary = editor.observe(shared)
    for row in rows:
        q = reference.query(prompts[row["subset"], row["record"]])
        code = reference.code(q)
        for name, memory in (("stored", reference.memory), ("refreshed", refreshed)):
            distances = [distance(code, other) for other in memory]
            own = distances[row["edit_index"]] if row["subset"] in ("edits", "holdout") else None
            assert (row[name], row[f"own_{name}"]) == (min(distances), own)
        owned = row["subset"] in ("edits", "holdout")
        wanted = reference.allocation(shared.edits[row["edit_index"]].target)
        assert row["own_allocation"] == (distance(code, wanted) if owned else None)
        if row["subset"] == "edits":
            apart = [float((q - other).norm()) for other in reference.queries]
            nearest = sorted(range(len(apart)), key=apart.__getitem__)[1:5]
            assert row["neighbours"] == " ".join(map(str, nearest))
        assert row["code"] == "".join(str(bit) for layer in code for bit in layer)
        assert row["deferred"] == (not reference.in_scope(q))
        seen.add((row["subset"], row["record"], row["deferred"]))
    assert {each[:2] for each in seen} == set(prompts)
    assert {each[2] for each in seen} == {True, False}
    assert {row["own_stored"] for row in rows} > {None, 0, 2}
    written = {str(code) for code in reference.memory}
    assert (summary["kind"], summary["stored"], summary["distinct"]) == ("codes", 6, len(written))
    assert summary["distinct_refreshed"] == len({str(code) for code in refreshed})


def test_fewer_layers_keep_the_first_sites() -> None:
    """Fig. 3: `n_layers` of the same sites, the same sensor."""
    backbone = loading.load("tiny-llama", dtype=torch.float64)
    few = editor_of(backbone, n_layers=2, **STREAM)
    assert list(few.lora.layers) == [f"model.layers.{block}.mlp.down_proj" for block in (3, 4)]
    assert few.router_weight.shape == (2, 4, 64)
    few.edit(EDITS[:2])
    logits = prompt_logits(backbone, list(PROMPTS))
    few.close()
    sites = [{"part": "mlp_out", "block": block} for block in (3, 4)]
    editor_of(backbone, sites=sites, **STREAM).edit(EDITS[:2])
    assert torch.equal(prompt_logits(backbone, list(PROMPTS)), logits)
