"""The pieces of ROME, MEMIT and COMEBA-HK: the parity checks of section 12 about closed form, keys
and values; numbers as in the study's notes."""

import math

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids, prompt_ids
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors.locate import subjects as context_texts
from lib.editors.locate.solve import KeptInverse, KeyMemory, inverse_of, solve_cholesky
from lib.editors.locate.subjects import Request as Located
from lib.editors.locate.subjects import encode_rows
from lib.errors import EditorError, RecordError
from tests.editors.locate.locate_cases import (
    CONTEXTS,
    FIRST,
    LAYERS,
    SECOND,
    as_edits,
    editor_of,
    gap,
    oracle_of,
)
from tests.editors.locate.reference_locate import Request

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")

ALL = (*FIRST, *SECOND)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# -- 2, 3, 4, 10: the closed form ------------------------------------------------------------------


def ridge(W: torch.Tensor, blocks: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The D that minimises sum ||D k - r||^2 over the columns of stacked (keys, residuals)."""
    keys = torch.cat([keys for keys, _ in blocks], dim=1)
    residuals = torch.cat([residual for _, residual in blocks], dim=1)
    return torch.linalg.lstsq(keys.T, residuals.T, driver="gelsd").solution.T


@pytest.mark.parametrize("solver", ["cholesky", "woodbury"])
def test_02_the_update_is_a_ridge_regression(solver: str) -> None:
    d, f, B, n, lam = 6, 9, 4, 40, 3.0
    W, K0, K, V = normal(d, f), normal(f, n, seed=1), normal(f, B, seed=2), normal(d, B, seed=3)
    memory = KeyMemory(K0 @ K0.T / n, lam, solver)
    ours = (V - W @ K) @ memory.solve(K).T
    scaled = math.sqrt(lam / n) * K0
    assert gap(ours, ridge(W, [(scaled, torch.zeros(d, n).double()), (K, V - W @ K)])) <= 1e-10


@pytest.mark.parametrize("solver", ["cholesky", "woodbury"])
def test_03_consecutive_rounds_equal_one_joint_regression(solver: str) -> None:
    d, f, B, n, lam = 6, 9, 4, 40, 3.0
    W0, K0 = normal(d, f), normal(f, n, seed=1)
    rounds = [(normal(f, B, seed=s), normal(d, B, seed=s + 1)) for s in (2, 4)]
    joint = ridge(
        W0,
        [(math.sqrt(lam / n) * K0, torch.zeros(d, n).double())]
        + [(K, V - W0 @ K) for K, V in rounds],
    )
    changes = {}
    for accumulate in (True, False):
        memory, W = KeyMemory(K0 @ K0.T / n, lam, solver), W0.clone()
        for K, V in rounds:
            W = W + (V - W @ K) @ memory.solve(K).T
            if accumulate:
                memory.absorb(K)
        changes[accumulate] = W - W0
    assert gap(changes[True], joint) <= 1e-10
    assert gap(changes[False], joint) > 1e-2


@pytest.mark.parametrize(
    ("mixed", "bound"),
    [
        (False, 1e-10),  # features of different sizes
        (True, 3e-6),  # the same, rotated: then any solver loses cond * 2e-16
    ],
)
def test_04_woodbury_equals_the_solve_over_fifty_rounds(mixed: bool, bound: float) -> None:
    n, B = 600, 8
    sizes = torch.logspace(0, -4.2, n, dtype=torch.float64)
    noise = normal(n, 4 * n) / math.sqrt(4 * n)
    C = sizes[:, None] * (noise @ noise.T) * sizes
    basis = torch.linalg.qr(normal(n, n)).Q if mixed else torch.eye(n, dtype=torch.float64)
    C = basis @ C @ basis.T
    C = (C + C.T) / 2
    assert torch.linalg.cond(C) >= 1e8
    inverse, worst, bases = KeptInverse(inverse_of(C)), 0.0, []
    for number in range(50):
        K = basis @ (sizes[:, None] * normal(n, B, seed=number + 1))
        fast = inverse.solve(K)
        inverse.add(K)
        bases.append(inverse.base)
        if number % 10 == 0 or number == 49:
            slow = torch.linalg.solve(C + K @ K.T, K)
            worst = max(worst, gap(fast, slow), gap(solve_cholesky(C, K), slow))
        C = C + K @ K.T
    assert worst <= bound, worst
    # The inverse itself moved only when the factors were more than a quarter of the width.
    assert len({id(base) for base in bases}) == 1 + 50 * B // (n // 4 + B)


@pytest.mark.parametrize("weight", [1.0, 7.0])
def test_04_a_memory_gives_what_its_moment_says(weight: float) -> None:
    """Through absorbed batches, a save, a large batch and a reset, with either solver."""
    f, text = 48, normal(48, 400)
    M = text @ text.T / 400
    memories = {solver: KeyMemory(M, 3.0, solver) for solver in ("woodbury", "cholesky", "auto")}
    for _ in range(2):
        C = 3.0 * M
        for number in range(9):
            K = normal(f, 30 if number == 5 else 4, seed=number + 1)
            slow = torch.linalg.solve(C + K @ K.T, K)
            C = C + weight * K @ K.T
            for memory in memories.values():
                assert gap(memory.solve(K), slow) <= 1e-10
                memory.absorb(K, weight)
                if number % 3 == 0:
                    assert gap(memory.moment, C) <= 1e-14
        for memory in memories.values():
            memory.reset()
            assert torch.equal(memory.moment, 3.0 * M)


def test_04_an_indefinite_moment_says_what_to_do() -> None:
    K = normal(9, 4)
    with pytest.raises(EditorError, match="statistics_tokens"):
        KeyMemory(torch.zeros(9, 9), 1.0).solve(K)


def test_10_the_remaining_share_of_the_residual_ends_at_zero() -> None:
    L, d, f, B = 5, 4, 12, 3
    keys = [torch.linalg.qr(normal(f, B, seed=s)).Q for s in range(L)]
    target, left = normal(d, B, seed=9), {}
    for schedule in ("remaining", "constant"):
        weights = [torch.zeros(d, f, dtype=torch.float64) for _ in range(L)]
        for i in range(L):
            now = sum(W @ k for W, k in zip(weights, keys, strict=True))
            residual = (target - now) / (L - i if schedule == "remaining" else L)
            weights[i] = residual @ KeyMemory(torch.eye(f), 1e-12).solve(keys[i]).T
        now = sum(W @ k for W, k in zip(weights, keys, strict=True))
        left[schedule] = float((target - now).norm() / target.norm())
    assert left["remaining"] <= 1e-8
    assert left["constant"] == pytest.approx((1 - 1 / 5) ** 5, abs=1e-3)


# -- 9: keys ---------------------------------------------------------------------------------------


def test_09_keys_are_the_mean_of_two_group_means(causal: Backbone) -> None:
    editor = editor_of("comeba_hk", causal)
    reference = oracle_of(editor)
    requests = editor.requests(as_edits(ALL))
    for layer in LAYERS:
        ours = editor.mean_keys(editor.passes(requests, ("", *CONTEXTS)), layer, len(requests))
        each = (
            editor.passes(requests, ("", *CONTEXTS))
            .read("mlp_out", layer, of_input=True)
            .view(len(ALL), 6, -1)
        )
        weighted = 0.5 * each[:, 0] + 0.1 * each[:, 1:].sum(dim=1)
        assert gap(ours.T, weighted) <= 1e-6
        assert gap(each.mean(dim=1), weighted) > 1e-2
        assert gap(ours, reference.keys(ALL, layer)) <= 1e-5
    outputs = editor.passes(requests, ("",)).read("block", LAYERS[-1])
    assert gap(outputs.T, reference.block_outputs(ALL)) <= 1e-5


# -- subjects and contexts -------------------------------------------------------------------------


def test_the_subject_ends_where_the_reference_says(causal: Backbone) -> None:
    editor = editor_of("comeba_hk", causal)
    reference = oracle_of(editor)
    first = Request("Ash", "Ash", "Selby")  # position 0 of a prompt of few tokens
    braces = Request("{} and {0} near {Marl Bay} is {", "Marl Bay", "{x}")
    for request in (*ALL, first, braces):
        (ours,) = editor.requests(as_edits([request]))
        assert ours.prompt == request.prompt
        strings = [(context + ours.before, ours.subject, ours.after) for context in ("", *CONTEXTS)]
        rows = encode_rows(causal, strings, range(6))
        slow = [reference.row(f"{context}{{}}", request) for context in ("", *CONTEXTS)]
        assert rows.subject.tolist() == [row.look for row in slow]
        for number, row in enumerate(slow):
            assert rows.batch.input_ids[number, : rows.lengths[number]].tolist() == row.ids
        assert answer_ids(causal, request.target) == reference.target(request)


def test_of_two_occurrences_the_first_is_the_subject() -> None:
    """The official code crashes on them (notes, section 3)."""
    edit = Edit("twice", "Ash lies near Old Ash and", "Selby", "Ash")
    request = Located.of(edit, "MEMIT")
    assert (request.before, request.after) == ("", " lies near Old Ash and")
    backbone = loading.load("tiny-gpt2")
    rows = encode_rows(backbone, [(request.before, request.subject, request.after)], [0])
    assert int(rows.subject) == len(prompt_ids(backbone, "Ash")) - 1


def test_an_edit_without_its_subject_is_refused_before_anything_changes() -> None:
    with pytest.raises(RecordError, match="does not occur"):
        Edit("missing", "The ferry is based in", "Selby", "Ash")
    editor = editor_of("memit", loading.load("tiny-gpt2"))
    weights = {layer: module.weight.clone() for layer, module in editor.modules.items()}
    with pytest.raises(EditorError, match="names no subject"):
        editor.edit([*as_edits(FIRST), Edit("none", "The ferry is based in", "Selby", "")])
    assert all(torch.equal(editor.modules[layer].weight, weights[layer]) for layer in LAYERS)


@pytest.mark.parametrize("kind", ["comeba_hk", "memit", "rome"])
def test_short_prompts_and_braces_are_edited(causal: Backbone, kind: str) -> None:
    """Subjects at position 0, prompts of one token, and braces, also together with others."""
    odd = (
        Request("A", "A", "Selby"),
        Request("{} and {0} near {Marl Bay} is {", "Marl Bay", "{x}"),
        Request("Ash", "Ash", "a"),
    )
    editor = editor_of(kind, causal)
    report = editor.edit(as_edits((*odd, FIRST[0])))
    assert math.isfinite(report.loss_last)
    for group in editor.tensors().values():
        assert all(torch.isfinite(tensor).all() for tensor in group.values())


def test_contexts_come_from_the_backbone_and_the_seed_alone(causal: Backbone) -> None:
    state = torch.get_rng_state()
    drawn = context_texts.sample_contexts(causal, [(10, 7)], seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn == context_texts.sample_contexts(causal, [(10, 7)], seed=3)
    assert drawn != context_texts.sample_contexts(causal, [(10, 7)], seed=4)
    words = ("The", "Therefore", "Because", "I", "You", "The", "Therefore")
    for text, seed in zip(drawn, words, strict=True):
        assert text.startswith(seed)
        assert text.endswith(". ")
        assert not set("{}") & set(text)
    groups = [(5, 10), (10, 7)]
    both = context_texts.sample_contexts(causal, groups, seed=3)
    assert len(both) == 17
    assert both[:10] == context_texts.sample_contexts(causal, groups[:1], seed=3)
    assert context_texts.sample_contexts(causal, [], seed=3) == ()
    assert context_texts.clean("a{b}\n\nﬁ") == "a b  fi"
