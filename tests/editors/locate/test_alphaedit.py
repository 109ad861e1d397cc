"""AlphaEdit: its step as MEMIT's on projected keys against the official system and its other forms
(notes on AlphaEdit, 2.3 and 13), and whole batches against the slow reference, all in float64."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lib.backbones.sources import loading
from lib.editors.locate.alphaedit import projector
from lib.editors.locate.solve import KeyMemory, solve_cholesky
from lib.errors import EditorError
from tests.editors.locate.locate_cases import (
    CORPUS,
    FIRST,
    LAYERS,
    SECOND,
    as_edits,
    editor_of,
    gap,
    oracle_of,
    weight_of,
)
from tests.editors.locate.reference_locate import Request
from tests.editors.locate.reference_updates import Reference, moments

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")

EXACT = 1e-12
WIDTH, OUT, L2, THRESHOLD = 24, 10, 0.5, 0.3


@dataclass
class Problem:
    """Text keys [f, n] with a decaying spectrum, keys of three batches, their residuals."""

    text: Tensor
    keys: list[Tensor]
    residuals: list[Tensor]

    @property
    def moment(self) -> Tensor:
        return self.text @ self.text.T / self.text.shape[1]

    @property
    def P(self) -> Tensor:
        return projector(self.moment, "absolute", THRESHOLD)

    @property
    def N(self) -> Tensor:
        """As officially: left singular vectors with a singular value below the threshold."""
        U, S, _ = torch.linalg.svd(self.moment)
        return U[:, S < THRESHOLD]


@pytest.fixture
def problem() -> Problem:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scale = torch.logspace(0.5, -1.5, WIDTH, dtype=torch.float64)
    turn, _ = torch.linalg.qr(normal(WIDTH, WIDTH))
    text = turn @ (scale[:, None] * normal(WIDTH, 400))
    return Problem(text, [normal(WIDTH, 4) for _ in "abc"], [normal(OUT, 4) for _ in "abc"])


def memory_of(P: Tensor, before: Sequence[Tensor] = ()) -> KeyMemory:
    """C = lambda_2 I plus the projected keys of earlier batches, as the editor keeps it."""
    memory = KeyMemory(torch.eye(len(P)), L2)
    for keys in before:
        memory.absorb(P @ keys)
    return memory


def step(P: Tensor, K: Tensor, R: Tensor, before: Sequence[Tensor] = ()) -> Tensor:
    return R @ memory_of(P, before).solve(P @ K).T


def official(P: Tensor, K: Tensor, R: Tensor, before: Sequence[Tensor] = ()) -> Tensor:
    """Delta^T = [P (K K^T + C_p) + L2 I]^-1 P K R^T (notes, 2.3)."""
    past = sum((keys @ keys.T for keys in before), torch.zeros_like(P))
    unit = torch.eye(len(P), dtype=P.dtype)
    return torch.linalg.solve(P @ (K @ K.T + past) + L2 * unit, P @ K @ R.T).T


@pytest.mark.parametrize("earlier", [0, 2])
def test_the_step_equals_the_official_system_and_its_other_forms(
    problem: Problem, earlier: int
) -> None:
    P, N, (*past, K) = problem.P, problem.N, problem.keys[: earlier + 1]
    R = problem.residuals[0]
    ours = step(P, K, R, past)
    assert gap(ours, official(P, K, R, past)) < EXACT
    both = torch.cat([K, *past], dim=1)
    basis = N.T @ both @ both.T @ N + L2 * torch.eye(N.shape[1], dtype=N.dtype)
    assert gap(ours, R @ K.T @ N @ torch.linalg.inv(basis) @ N.T) < EXACT
    A = P @ both
    padded = torch.cat([R, torch.zeros(OUT, A.shape[1] - R.shape[1], dtype=R.dtype)], dim=1)
    dual = A.T @ A + L2 * torch.eye(A.shape[1], dtype=A.dtype)
    assert gap(ours, padded @ torch.linalg.inv(dual) @ A.T) < EXACT
    woodbury = KeyMemory(torch.eye(WIDTH), L2, "woodbury")
    for keys in past:
        woodbury.absorb(P @ keys)
    assert gap(ours, R @ woodbury.solve(P @ K).T) < EXACT


def test_it_is_the_least_squares_solution_in_what_is_kept(problem: Problem) -> None:
    N, (first, K), R = problem.N, problem.keys[:2], problem.residuals[0]
    rows = [K.T @ N, first.T @ N, math.sqrt(L2) * torch.eye(N.shape[1], dtype=N.dtype)]
    wanted = [R.T, *(torch.zeros(len(row), OUT, dtype=N.dtype) for row in rows[1:])]
    found = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution
    assert gap(step(problem.P, K, R, [first]), found.T @ N.T) < EXACT


def test_the_projector_projects_on_what_the_official_one_keeps(problem: Problem) -> None:
    P, N = problem.P, problem.N
    assert 0 < N.shape[1] < WIDTH and round(float(P.trace())) == N.shape[1]
    assert gap(P, N @ N.T) < EXACT and gap(P @ P, P) < EXACT and gap(P.T, P) < EXACT
    update = step(P, problem.keys[0], problem.residuals[0])
    assert gap(update @ P, update) < EXACT


def test_one_edit_is_met_by_its_share(problem: Problem) -> None:
    P, k, r = problem.P, problem.keys[0][:, :1], problem.residuals[0][:, :1]
    s = float(k.T @ P @ k)
    assert gap(step(P, k, r) @ k, r * s / (s + L2)) < EXACT


def test_a_threshold_of_everything_is_memit_with_a_ridge_for_its_statistics(
    problem: Problem,
) -> None:
    first, K, _ = problem.keys
    R = problem.residuals[0]
    ridge = L2 * torch.eye(WIDTH, dtype=K.dtype) + first @ first.T
    plain = R @ solve_cholesky(ridge, K).T
    for P in (projector(problem.moment, "energy", 1.0), projector(problem.moment, "absolute", 1e9)):
        assert gap(P, torch.eye(WIDTH, dtype=K.dtype)) < EXACT
        assert gap(step(P, K, R, [first]), plain) < EXACT
    assert gap(step(problem.P, K, R, [first]), plain) > 0.1


def test_energy_keeps_the_weakest_directions_of_that_share(problem: Problem) -> None:
    M, total = problem.moment, problem.moment.trace()
    for share in (0.05, 0.2, 0.5):
        P = projector(M, "energy", share)
        energy, weakest = (P * M).sum() / total, torch.linalg.eigvalsh(M)
        kept = round(float(P.trace()))
        assert energy <= share < weakest[: kept + 1].sum() / total
        assert energy == pytest.approx(float(weakest[:kept].sum() / total), rel=1e-9)


def test_a_threshold_below_every_direction_is_refused(problem: Problem) -> None:
    for cut, threshold in (("absolute", 1e-9), ("energy", 1e-9)):
        with pytest.raises(EditorError, match="no direction of the keys is below"):
            projector(problem.moment, cut, threshold)


def test_batches_in_sequence_are_one_joint_batch(problem: Problem) -> None:
    """For fixed keys and values; without the history they are not."""
    P, values = problem.P, problem.residuals
    joint = step(P, torch.cat(problem.keys, dim=1), torch.cat(values, dim=1))
    for remembers in (True, False):
        weight, past = torch.zeros(OUT, WIDTH, dtype=P.dtype), []
        for K, V in zip(problem.keys, values, strict=True):
            weight = weight + step(P, K, V - weight @ K, past if remembers else ())
            past.append(K)
        assert (gap(weight, joint) < EXACT) is remembers


def test_the_order_inside_a_batch_does_not_matter(problem: Problem) -> None:
    P, K, R = problem.P, problem.keys[0], problem.residuals[0]
    order = torch.tensor([2, 0, 3, 1])
    assert gap(step(P, K[:, order], R[:, order]), step(P, K, R)) < EXACT


def test_text_is_disturbed_within_the_threshold_and_not_at_all_in_a_null_space(
    problem: Problem,
) -> None:
    update = step(problem.P, problem.keys[0], problem.residuals[0])
    moved = (update @ problem.text).square().sum(dim=0).mean()
    assert 0 < moved <= THRESHOLD * update.square().sum()
    few = problem.text[:, : WIDTH // 2]  # fewer tokens than dimensions
    P = projector(few @ few.T / few.shape[1], "absolute", 1e-9)
    update = step(P, problem.keys[0], problem.residuals[0])
    assert update.norm() > 1e-2 and (update @ few).abs().max() < 1e-10


def test_the_official_precision_is_enough_while_c_is_well_conditioned(problem: Problem) -> None:
    P, K, R = problem.P, problem.keys[0], problem.residuals[0]
    assert torch.linalg.cond(memory_of(P, problem.keys).moment) < 1e4
    single = official(P.float(), K.float(), R.float(), [keys.float() for keys in problem.keys[1:]])
    assert gap(single, step(P, K, R, problem.keys[1:])) < 1e-5


# -- whole batches -------------------------------------------------------------------------------


def edit_projected(
    reference: Reference, requests: Sequence[Request], P: dict[int, Tensor], l2: float
) -> None:
    """One batch in the official order of work: after it the keys of all layers are read again and
    go, not projected, into C_p."""
    reference._values(requests)
    layers = reference.s.layers
    for i, layer in enumerate(layers):
        residual = reference._residual(requests, layer, len(layers) - i)
        K, unit = reference.K[layer], torch.eye(len(P[layer]), dtype=torch.float64)
        A = P[layer] @ (K @ K.T + reference.history[layer]) + l2 * unit
        reference.weight(layer).add_(torch.linalg.solve(A, P[layer] @ K @ residual.T).T)
    for layer in layers:
        K = reference.keys(requests, layer)
        reference.history[layer] = reference.history[layer] + K @ K.T


CHOSEN = {"moment_weight": 0.1, "cut": "energy", "threshold": 0.5}


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])  # Linear and Conv1D
def test_batches_equal_the_official_order_of_work(name: str, monkeypatch) -> None:
    backbone = loading.load(name, dtype=torch.float64)
    editor = editor_of("alphaedit", backbone, **CHOSEN)
    found = moments(backbone, CORPUS.texts, editor.blocks)
    monkeypatch.setattr(editor, "moments", lambda: found)
    reference = oracle_of(editor)
    P = {}
    for layer, M in found.items():
        U, S, _ = torch.linalg.svd(M)
        weakest = S.flip(0).cumsum(0) <= 0.5 * S.sum()
        N = U.flip(1)[:, weakest]
        P[layer] = N @ N.T
    start = {layer: weight_of(editor, layer).clone() for layer in LAYERS}
    for requests in (FIRST, SECOND, FIRST):
        editor.edit(as_edits(requests))
        edit_projected(reference, requests, P, CHOSEN["moment_weight"])
        for layer in LAYERS:
            ours = weight_of(editor, layer) - start[layer]
            assert gap(ours, reference.weight(layer) - start[layer]) < 1e-9
            assert gap(ours @ P[layer], ours) < 1e-9
            unit = torch.eye(len(P[layer]), dtype=torch.float64)
            C = CHOSEN["moment_weight"] * unit + P[layer] @ reference.history[layer] @ P[layer]
            assert gap(editor.memory[layer].moment, C) < 1e-9


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_a_run_resumed_between_batches_equals_the_unbroken_one(tmp_path, name: str) -> None:
    unbroken = editor_of("alphaedit", loading.load(name), **CHOSEN)
    unbroken.edit(as_edits(FIRST))
    unbroken.save(tmp_path / "one")
    unbroken.edit(as_edits(SECOND))
    resumed = editor_of("alphaedit", loading.load(name), **CHOSEN)
    resumed.load(tmp_path / "one")
    resumed.edit(as_edits(SECOND))
    for group, tensors in unbroken.tensors().items():
        for path, tensor in tensors.items():
            assert torch.equal(resumed.tensors()[group][path], tensor), (group, path)


def test_it_says_what_it_kept() -> None:
    editor = editor_of("alphaedit", loading.load("tiny-gpt2"), **CHOSEN)
    editor.edit(as_edits(FIRST))
    rows = list(editor.observe(None))
    assert [row["block"] for row in rows] == list(LAYERS)
    for row in rows:
        assert 0 < row["kept"] < row["width"] and 0 < row["energy"] <= 0.5
