"""Adam on half-precision weights against the same steps on float32 ones, and its box."""

import pytest
import torch
from torch import Tensor, nn

from lib.editors.parts.minimise import adam, minimise

TARGET = torch.linspace(-1, 1, 12).reshape(3, 4)


def distance(weight: Tensor) -> Tensor:
    return ((weight.float() - TARGET) ** 2).sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_the_rounding_of_float32_ones(dtype: torch.dtype) -> None:
    """Steps of 1e-3 from 1.0: bfloat16 alone would not move at all, float16 would be NaN."""
    start = torch.ones(3, 4)
    weight, reference = nn.Parameter(start.to(dtype)), nn.Parameter(start.clone())
    plain = torch.optim.Adam([reference], lr=1e-3)
    for _ in range(40):
        # the gradient is that at the rounded weight, in the weight's own precision
        rounded = reference.detach().to(dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(distance(rounded), rounded)
        reference.grad = gradient.float()
        plain.step()
    losses, _ = minimise([weight], lambda: distance(weight), steps=40, lr=1e-3)
    assert losses[-1] < losses[0]
    assert torch.equal(weight.detach(), reference.detach().to(dtype))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_wider_weights_are_trained_themselves(weight_decay: float) -> None:
    weight = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    reference = nn.Parameter(weight.detach().clone())
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    plain = kind([reference], lr=0.1, weight_decay=weight_decay)
    for _ in range(5):
        plain.zero_grad()
        distance(reference).backward()
        plain.step()
    minimise([weight], lambda: distance(weight), steps=5, lr=0.1, weight_decay=weight_decay)
    assert torch.equal(weight, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_trained_stays_in_its_box(dtype: torch.dtype) -> None:
    """The master too: it turns back at once when the gradient turns."""
    weight = nn.Parameter(torch.zeros(3, 4, dtype=dtype))
    optimiser = adam([weight], lr=0.1, project=lambda now: [w.clamp_(-0.25, 0.25) for w in now])
    for _ in range(50):
        distance(weight).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert weight.abs().max() == 0.25
    assert optimiser.param_groups[0]["params"][0].abs().max() == 0.25
