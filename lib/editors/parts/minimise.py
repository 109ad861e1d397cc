"""The inner loop that most editors share: a few steps of Adam on one batch of edits."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def minimise(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    halve_every: int | None = None,
    weight_decay: float = 0.0,
    done: Callable[[], bool] | None = None,
    after_step: Callable[[], None] | None = None,
) -> tuple[list[float], float]:
    """Adam (betas .9/.999, eps 1e-8), new for this call; returns losses and seconds.

    `weight_decay`: decoupled, AdamW (0: plain Adam). `halve_every`: StepLR with gamma 0.5. `done`
    is asked before each step and stops early; it must not need a pass of its own. `after_step` may
    move the parameters once more. Losses are read once, at the end, so that no step waits.
    """
    parameters = list(parameters)
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimiser = kind(parameters, lr=lr, weight_decay=weight_decay)
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
        if after_step is not None:
            after_step()
        schedule.step()
    losses = torch.stack(history).tolist()
    return losses, time.perf_counter() - started
