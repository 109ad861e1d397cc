"""Adam, and the inner loop that most editors share: a few steps of it on one batch of edits."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def adam(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float = 0.0,
    project: Callable[[list[Tensor]], None] | None = None,
) -> torch.optim.Optimizer:
    """Adam (betas .9/.999, eps 1e-8); `weight_decay`: decoupled, AdamW (0: plain Adam).

    Parameters in half precision are the rounding of float32 masters that are trained in their
    place: in float16 eps is 0, and bfloat16 loses every step below its spacing. `project` may move
    what is trained once more after each step, in place.
    """
    parameters = list(parameters)
    trained = [nn.Parameter(p.detach().float()) if p.dtype in HALF else p for p in parameters]
    rounded = [
        (p, master) for p, master in zip(parameters, trained, strict=True) if p is not master
    ]
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimiser = kind(trained, lr=lr, weight_decay=weight_decay)

    def take_gradients(*_: object) -> None:
        for parameter, master in rounded:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def write(*_: object) -> None:
        if project is not None:
            project([tensor.detach() for tensor in trained])
        for parameter, master in rounded:
            parameter.copy_(master)

    optimiser.register_step_pre_hook(take_gradients)
    optimiser.register_step_post_hook(write)
    return optimiser


def minimise(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    halve_every: int | None = None,
    weight_decay: float = 0.0,
    done: Callable[[], bool] | None = None,
) -> tuple[list[float], float]:
    """Steps of `adam`, new for this call; returns losses and seconds.

    `halve_every`: StepLR with gamma 0.5. `done` is asked before each step and stops early; it must
    not need a pass of its own. Losses are read once, at the end, so that no step waits.
    """
    optimiser = adam(parameters, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, halve_every or steps + 1, gamma=0.5)
    history: list[Tensor] = []
    started = time.perf_counter()
    for _ in range(steps):
        value = loss()
        history.append(value.detach())
        if done is not None and done():
            break
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
    losses = torch.stack(history).tolist()
    return losses, time.perf_counter() - started
