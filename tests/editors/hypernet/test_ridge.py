"""MALMEN's least-squares step alone: parity checks 1 to 3 of the study's notes, in float64."""

import math

import pytest
import torch
from torch import Tensor

from lib.editors.hypernet.ridge import MinimumNorm, Ridge
from tests.editors.hypernet.reference_hypernetwork import ridge_shift

WIDE, SQUARE, TALL = (7, 20, 5), (12, 12, 9), (60, 12, 9)  # rows n, key width d, value width d'
SHAPES = pytest.mark.parametrize("shape", [WIDE, SQUARE, TALL], ids=["n<d", "n=d", "n>d"])
FORMS = pytest.mark.parametrize("form", ["primal", "dual", "auto"])
RIDGES = pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])


def problem(shape: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Keys K [n, d], wanted changes D [n, d'] and a gradient Gamma [d, d']."""
    n, d, width = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = ((n, d), (n, width), (d, width))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes)


def solved(K: Tensor, D: Tensor, ridge: float, form: str = "auto", size: int = 5) -> Ridge:
    """The solve of rows that come a few at a time."""
    return Ridge(zip(K.split(size), D.split(size), strict=True), tuple(K.shape), ridge, form)


def led_back(solve: Ridge | MinimumNorm, K: Tensor, gamma: Tensor) -> Tensor:
    return torch.cat(list(solve.wanted_gradient(K.split(5), gamma)))


def gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


@SHAPES
@FORMS
@RIDGES
def test_01_ridge_equals_augmented_least_squares(shape, form, ridge) -> None:
    K, D, _ = problem(shape)
    _, d, width = shape
    stacked = torch.cat([K, math.sqrt(ridge) * torch.eye(d, dtype=K.dtype)])
    right = torch.cat([D, torch.zeros(d, width, dtype=K.dtype)])
    assert gap(solved(K, D, ridge, form).shift, torch.linalg.lstsq(stacked, right).solution) < 1e-10


@SHAPES
def test_02_dual_equals_primal(shape) -> None:
    K, D, gamma = problem(shape)
    found = {}
    for form in ("primal", "dual"):
        solve = solved(K, D, 0.3, form)
        found[form] = [solve.shift, led_back(solve, K, gamma), solve.log_ridge_gradient()]
    for primal, dual in zip(*found.values(), strict=True):
        assert torch.as_tensor(primal).abs().max() > 1e-3
        assert gap(torch.as_tensor(primal), torch.as_tensor(dual)) < 1e-10


@SHAPES
@FORMS
def test_04_the_gradients_of_the_solve_are_those_of_autograd(shape, form) -> None:
    """Through a function of S that is not linear, as the edited model is none."""
    K, D, mix = problem(shape)
    D, alpha = D.requires_grad_(), torch.tensor(-0.7, dtype=K.dtype, requires_grad=True)
    S = ridge_shift(K, D, alpha.exp())
    loss = (torch.sin(S) * mix).sum()
    gamma, to_D, to_alpha = torch.autograd.grad(loss, [S, D, alpha])
    solve = solved(K, D.detach(), math.exp(-0.7), form)
    assert gap(solve.shift, S.detach()) < 1e-10
    assert gap(led_back(solve, K, gamma), to_D) < 1e-10
    assert float(solve.log_ridge_gradient()) == pytest.approx(float(to_alpha), rel=1e-9)


@pytest.mark.parametrize("form", ["dual", "auto"])  # d x d is singular to rounding here
def test_03_a_vanishing_ridge_interpolates_independent_rows(form) -> None:
    K, D, _ = problem(WIDE)
    S = solved(K, D, 1e-10, form).shift
    assert gap(K @ S, D) < 1e-6
    assert gap(S, torch.linalg.pinv(K) @ D) < 1e-6


@FORMS
def test_03_one_row_has_a_closed_form(form) -> None:
    K, D, _ = problem((1, 20, 5))
    u, d = K[0], D[0]
    expected = torch.outer(u, d) / (u @ u + 1.0)
    assert gap(solved(K, D, 1.0, form).shift, expected) < 1e-12


@SHAPES
@pytest.mark.parametrize("repeated", [False, True])
def test_03_without_a_ridge_the_shift_is_that_of_the_pseudo_inverse(shape, repeated) -> None:
    """Also for rows that occur twice with different wishes: the two are averaged."""
    K, D, gamma = problem(shape)
    if repeated:
        K = torch.cat([K, K[:3]])
        D = torch.cat([D, -2 * D[:3]])
    solve = MinimumNorm(zip(K.split(5), D.split(5), strict=True))
    inverse = torch.linalg.pinv(K)
    assert gap(solve.shift, inverse @ D) < 1e-9
    assert gap(led_back(solve, K, gamma), inverse.T @ gamma) < 1e-9
    assert float(solve.log_ridge_gradient()) == 0.0


# -- float32 rows against the truth in float64 -----------------------------------------------------


def real_like(n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys as a real layer's in float32: a large shared part, and a few coordinates a thousand
    times the others, so that K^T K spans many orders of magnitude above lambda."""
    K, D, gamma = problem((n, d, 6))
    scale = torch.logspace(0, 1, d, dtype=K.dtype)
    scale[:3] *= 1000
    shared = 30 * torch.randn(1, d, generator=torch.Generator().manual_seed(1), dtype=K.dtype)
    return ((K + shared) * scale).float(), D.float(), gamma.float()


@pytest.mark.parametrize("shape", [(400, 96), (30, 96)], ids=["primal", "dual"])
def test_ill_conditioned_rows_have_the_outputs_and_gradients_of_float64(shape) -> None:
    """A solve in float32 misses them by more than five in ten thousand."""
    K, D, gamma = real_like(*shape)
    exact, eye = K.double(), torch.eye(shape[1], dtype=torch.float64)
    outputs = exact @ ridge_shift(exact, D.double(), 1.0)
    rough = torch.linalg.solve(K.T @ K + eye.float(), K.T @ D).double()
    assert (exact @ rough - outputs).norm() > 5e-4 * outputs.norm()
    solve = solved(K, D, 1.0, size=64)
    assert solve.dual == (shape[0] < shape[1])
    assert (exact @ solve.shift.double() - outputs).norm() < 1e-5 * outputs.norm()
    through = exact @ torch.linalg.solve(exact.T @ exact + eye, gamma.double())
    assert (led_back(solve, K, gamma).double() - through).norm() < 1e-5 * through.norm()


@FORMS
def test_the_chunks_that_rows_come_in_change_nothing_but_rounding(form) -> None:
    K, D, gamma = (part.double() for part in real_like(50, 24))
    once, often = (solved(K, D, 1.0, form, size) for size in (50, 7))
    assert gap(often.shift, once.shift) < 1e-6 * float(once.shift.abs().max())
    for one, other in zip(led_back(once, K, gamma), led_back(often, K, gamma), strict=True):
        assert gap(one, other) < 1e-6


@pytest.mark.parametrize("rows", [40, 4])
def test_rows_that_differ_in_scale_by_a_million_are_solved_in_float32(rows: int) -> None:
    """Real keys have a few huge coordinates. Judged by what the shift does to the keys."""
    K, D, _ = problem((rows, 16, 5))
    K = K * torch.logspace(-3, 3, 16, dtype=K.dtype)
    exact = K @ ridge_shift(K, D, 1.0)
    ours = solved(K.float(), D.float(), 1.0).shift.double()
    assert (K @ ours - exact).norm() < 1e-3 * exact.norm()


@FORMS
def test_rows_that_nearly_coincide_are_solved_in_float64_where_float32_does_not_suffice(
    form,
) -> None:
    """Keys of a real layer share a large part; K^T K in float32 is then off by more than lambda."""
    generator = torch.Generator().manual_seed(0)
    shared = 100 * torch.randn(1, 32, generator=generator)
    K = shared + 0.01 * torch.randn(300, 32, generator=generator)
    D = torch.randn(300, 4, generator=generator)
    exact = ridge_shift(K.double(), D.double(), 1.0)
    ours = solved(K, D, 1.0, form).shift.double()
    assert (ours - exact).norm() < 1e-2 * exact.norm()
