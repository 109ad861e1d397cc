"""ELDER's arithmetic without an edit: parity checks 1 to 7 and 18 of the study's notes
(section 11), numbered as there."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lib.backbones.encoding import encode_prompts
from lib.backbones.sources import loading
from lib.editors.adapters import elder_routing
from lib.editors.adapters.elder_routing import Allocation
from lib.editors.base import UNEDITED
from tests.conftest import prompt_logits
from tests.editors.adapters.elder_cases import (
    EDITS,
    FAMILIES,
    PROMPTS,
    allocated,
    editor_of,
    pool_of,
    rows_of,
    trained,
)
from tests.editors.adapters.reference_elder import (
    delta_w,
    distance,
    guided,
    log_scores,
    top_k,
    weights,
)

EVERY = pytest.mark.parametrize("name", FAMILIES)
L, N, K = 6, 4, 2  # as published


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(samples: int = 3, k: int = K) -> elder_routing.Routing:
    """What routers of zeros say."""
    return elder_routing.route(drawn(samples, 8), torch.zeros(L, N, 8), torch.zeros(L, N), k)


def presets(count: int, seed: int = 0) -> Tensor:
    """Allocated codes [count, L, N] of as many labels."""
    allocation = Allocation(L, N, K, seed)
    return torch.stack([allocation.of(f"label {i}") for i in range(count)])


# -- the oracle itself, worked by hand -------------------------------------------------------------


def test_the_reference_by_hand() -> None:
    """Scores e^2 : e : 1 : 1; the two largest keep their share of all four."""
    W, q = torch.eye(4, dtype=torch.float64), torch.tensor([2.0, 1.0, 0.0, 0.0]).double()
    log_s = log_scores(q, W, torch.zeros(4).double())
    total = math.e**2 + math.e + 2
    assert float(log_s[1].exp()) == pytest.approx(math.e / total)
    bits = top_k(log_s, 2)
    assert bits == [1, 1, 0, 0]
    w = weights(log_s, bits)
    assert float(sum(w)) == pytest.approx((math.e**2 + math.e) / total)
    ones = [torch.full(shape, 1.0).double() for shape in ((3, 2), (2, 5))]
    found = delta_w(w, [ones[0]] * 4, [ones[1]] * 4, scale=0.5)
    assert found.shape == (3, 5)
    assert torch.allclose(found, 0.5 * 2 * sum(w))
    loss = guided([[log_s, log_s], [log_s, log_s]], [[[0, 0, 1, 1]] * 2] * 2)
    assert float(loss) == pytest.approx(2 * 2 * math.log(total))  # layers x targets, not samples
    assert distance([[1, 1, 0, 0], [1, 0, 1, 0]], [[0, 1, 1, 0], [1, 0, 1, 0]]) == 2


# -- 1, 2: what is off is off ----------------------------------------------------------------------


@EVERY
def test_01_a_fresh_mixture_in_scope_changes_no_bit(name: str) -> None:
    backbone = loading.load(name)
    before = prompt_logits(backbone, list(PROMPTS))
    editor = editor_of(backbone)
    routing = editor.routing(editor.keys_of(encode_prompts(backbone, PROMPTS, side="right")))
    with editor.lora.gated(editor.gate(routing.weights)), editor._router.off():
        assert editor.lora.gate.ne(0).any()
        assert torch.equal(prompt_logits(backbone, list(PROMPTS)), before)


@EVERY
def test_02_a_deferred_row_is_the_backbones_bit_for_bit(name: str) -> None:
    """In a batch whose other rows are in scope; and everywhere when all are sent to the base."""
    backbone = loading.load(name)
    before = prompt_logits(backbone, list(PROMPTS))
    editor = editor_of(backbone, epsilon=2)
    editor.edit(EDITS)
    editor_b = encode_prompts(backbone, PROMPTS, side="right")
    scope = [route != UNEDITED for route in editor.route(editor_b)]
    assert True in scope and False in scope
    mixed = prompt_logits(backbone, list(PROMPTS))
    assert [not torch.equal(*rows) for rows in zip(mixed, before, strict=True)] == scope
    with editor.routed(editor_b, [UNEDITED] * len(PROMPTS)):
        assert torch.equal(prompt_logits(backbone, list(PROMPTS)), before)


# -- 2.4, 3, 4: the mixture ------------------------------------------------------------------------


def test_a_starts_uniform_up_to_the_root_of_the_experts_rank() -> None:
    """2.4: 1 / sqrt(r) of one expert; not of the input width (1 / 8), not of all experts' ranks."""
    editor = editor_of(loading.load("tiny-llama"), rank=8)
    pool = pool_of(editor)
    A = torch.cat([expert.flatten() for layer in pool.A for expert in layer])
    bound = 1 / math.sqrt(8)
    assert 0.99 * bound < A.abs().max() <= bound
    assert float(A.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert all(expert.eq(0).all() for layer in pool.B for expert in layer)
    W = editor.router_weight.detach()
    assert 0.95 / 8 < W.abs().max() <= 1 / 8
    assert 0 < editor.router_bias.detach().abs().max() <= 1 / 8
    assert float(W.std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)


def test_the_first_draws_are_independent() -> None:
    """Experts and routers read inputs of one width: were both drawn from one stream of random
    numbers, the first layer's A would hold the routers' rows. Layers differ, seeds differ."""
    drawn_rows = []
    for seed in (0, 1):
        editor = editor_of(loading.load("tiny-llama"), seed=seed)
        A = [torch.cat([expert.T for expert in layer]) for layer in pool_of(editor).A]
        drawn_rows += [*A, editor.router_weight.detach().double().flatten(0, 1)]
    rows = functional.normalize(torch.cat(drawn_rows), dim=1)
    worst = float((rows @ rows.T - torch.eye(len(rows))).abs().max())
    assert worst < 0.8


@EVERY
def test_03_fused_equals_an_explicit_weight_change_per_sample(name: str) -> None:
    editor = editor_of(loading.load(name), random=3, rank=3, alpha=6.0)
    pool = pool_of(editor)
    q = drawn(5, editor.router_weight.shape[-1])
    routing = editor.routing(q)
    with editor.lora.gated(editor.gate(routing.weights)), torch.no_grad():
        for number, layer in enumerate(editor.lora.layers.values()):
            x = drawn(5, 7, pool.A[number][0].shape[0], seed=number)
            ours = layer(x) - layer.base_layer(x)
            for sample in range(5):
                log_s = log_scores(q[sample].double(), pool.W[number], pool.b[number])
                bits = top_k(log_s, editor.config.k)
                assert bits == routing.chosen[sample, number].int().tolist()
                dw = delta_w(weights(log_s, bits), pool.A[number], pool.B[number], 6.0 / 3)
                expected = x[sample].double() @ dw
                # float32 differences of larger outputs
                limit = 1e-5 * max(1.0, float(layer.base_layer(x).abs().max()))
                assert (ours[sample].double() - expected).abs().max() < limit


@pytest.mark.parametrize("k", [1, 2, 4])
def test_04_weights_are_not_renormalised(k: int) -> None:
    w = uniform(k=k).weights
    assert torch.allclose(w.sum(dim=-1), torch.tensor(k / N), atol=1e-6)
    assert (w[w > 0] - 1 / N).abs().max() < 1e-6
    editor = editor_of(loading.load("tiny-gpt2"), random=1, k=k)
    editor.router_weight.data.zero_()
    editor.router_bias.data.zero_()
    pool, x = pool_of(editor), drawn(2, 3, 32)
    routing = editor.routing(drawn(2, 32, seed=1))
    with editor.lora.gated(editor.gate(routing.weights)), torch.no_grad():
        layer = next(iter(editor.lora.layers.values()))
        ours = layer(x) - layer.base_layer(x)
    for sample in range(2):
        taken = routing.chosen[sample, 0].nonzero().flatten().tolist()
        each = [x[sample].double() @ pool.A[0][i] @ pool.B[0][i] / N for i in taken]
        assert len(taken) == k
        assert (ours[sample].double() - sum(each)).abs().max() < 1e-4


# -- 5, 6: the guided loss -------------------------------------------------------------------------


def test_05_uniform_routers_cost_l_k_ln_n() -> None:
    for samples in (1, 5):
        loss = elder_routing.guided_loss(uniform(samples).log_scores, presets(samples))
        assert float(loss) == pytest.approx(L * K * math.log(N), abs=1e-4)


def test_05_one_sample_comes_down_to_l_k_ln_k() -> None:
    parameters = [t.requires_grad_() for t in elder_routing.initial_routers(L, N, 16, 0)]
    query, wanted = drawn(1, 16), presets(1)
    adam = torch.optim.Adam(parameters, lr=1e-2, foreach=True)
    for _ in range(2000):
        loss = elder_routing.guided_loss(
            elder_routing.route(query, *parameters, K).log_scores, wanted
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert L * K * math.log(K) < float(loss.detach()) < 8.37


def test_05_gradient_at_the_scores_and_extreme_scores() -> None:
    """(k s - 1_A) / B; and no infinity where a wanted score underflows."""
    z = drawn(3, L * N, seed=4).requires_grad_()
    W = torch.eye(L * N).reshape(L, N, L * N)
    routing = elder_routing.route(z, W, torch.zeros(L, N), K)
    wanted = presets(3)
    elder_routing.guided_loss(routing.log_scores, wanted).backward()
    s = z.detach().view(3, L, N).softmax(dim=-1)
    assert torch.allclose(z.grad.view(3, L, N), (K * s - wanted.float()) / 3, atol=1e-6)
    far = torch.where(wanted[:1].flatten(), -200.0, 200.0)[None]
    far = elder_routing.route(far, W, torch.zeros(L, N), K)
    loss = elder_routing.guided_loss(far.log_scores, wanted[:1])
    assert float(loss) == pytest.approx(L * K * (400 + math.log(2)), rel=1e-5)


def test_balance_loss_is_least_when_experts_share_evenly() -> None:
    """2.6: 1 per layer when even, N / k when all samples take the same experts for certain."""
    assert float(elder_routing.balance_loss(uniform(2))) == pytest.approx(L)
    W = torch.eye(N).expand(L, N, N)
    same = elder_routing.route(torch.tensor([[60.0, 60, 0, 0]] * 3), W, torch.zeros(L, N), K)
    assert float(elder_routing.balance_loss(same)) == pytest.approx(L * N / K)
    apart = elder_routing.route(
        torch.tensor([[60.0, 60, 0, 0], [0, 0, 60, 60]]), W, torch.zeros(L, N), K
    )
    assert float(elder_routing.balance_loss(apart)) == pytest.approx(L)


@EVERY
def test_06_the_first_gradients(name: str) -> None:
    """B = 0: none at A, some at B, and at the routers that of lambda L_guide alone."""
    editor = editor_of(loading.load(name), guide_weight=0.01)
    rows, parameters = rows_of(editor.backbone, EDITS[:3]), trained(editor)
    queries, wanted = editor.keys_of(rows.encoded), allocated(editor, EDITS[:3])
    editor.loss(rows, editor.routing(queries), wanted).backward()
    found = [p.grad.clone() for p in parameters]
    *experts, W, b = found
    assert all(g.eq(0).all() for g in experts[0::2])
    assert all(g.abs().max() > 1e-6 for g in experts[1::2])
    guide = 0.01 * elder_routing.guided_loss(editor.routing(queries).log_scores, wanted)
    for ours, alone in zip((W, b), torch.autograd.grad(guide, parameters[-2:]), strict=True):
        assert (ours - alone).abs().max() < 1e-8
        assert alone.abs().max() > 1e-4


# -- 7, 18 -----------------------------------------------------------------------------------------


def test_07_every_layer_of_a_code_has_k_ones() -> None:
    routing = elder_routing.route(drawn(200, 16), *elder_routing.initial_routers(L, N, 16, 1), K)
    assert routing.chosen.shape == (200, L, N)
    assert routing.chosen.sum(dim=-1).eq(K).all()
    largest = routing.log_scores.topk(K).values.min(dim=-1).values
    assert torch.equal(routing.chosen, routing.log_scores >= largest[..., None])


@pytest.mark.parametrize("seed", range(5))
def test_18_routers_learn_their_targets_in_one_batch(seed: int) -> None:
    """Published sizes: GPT-2 XL's width, 50 steps of Adam at 1e-4, the guided loss alone."""
    parameters = [t.requires_grad_() for t in elder_routing.initial_routers(L, N, 1600, seed)]
    queries, wanted = drawn(4, 1600, seed=seed + 100), presets(4, seed)
    adam = torch.optim.Adam(parameters, lr=1e-4)
    for _ in range(50):
        routing = elder_routing.route(queries, *parameters, K)
        loss = elder_routing.guided_loss(routing.log_scores, wanted)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert torch.equal(elder_routing.route(queries, *parameters, K).chosen, wanted)
    assert L * K * math.log(K) < float(loss.detach()) < 8.8
