"""Look inside a module, stop early; whatever happens, the hook is gone after.

with capture(model.get_submodule("encoder.block.4")) as seen:
    model(**inputs)
seen.output            # what the block returned
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Captured:
    """What a module received and returned in its latest call; `None` before the first."""

    input: Tensor | None = None
    output: Any = None


class StopForwardError(Exception):
    """Raised by `stop_before` to leave a forward pass whose rest is not needed."""


def first_tensor(value: Any) -> Tensor:
    """The tensor that carries the hidden states: blocks return it bare or first in a tuple."""
    return value[0] if isinstance(value, (tuple, list)) else value


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `change` applied to every tensor in its nested tuples and lists."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, change) for item in value)
    return value


@contextlib.contextmanager
def capture(module: nn.Module) -> Iterator[Captured]:
    """Record the module's input and output (detached) while the context is open."""
    seen = Captured()

    def record(_module: nn.Module, inputs: tuple, output: Any) -> None:
        seen.input = first_tensor(inputs).detach() if inputs else None
        seen.output = map_tensors(output, Tensor.detach)

    handle = module.register_forward_hook(record)
    try:
        yield seen
    finally:
        handle.remove()


@contextlib.contextmanager
def stop_before(module: nn.Module) -> Iterator[None]:
    """Leave the forward pass that happens inside the context as it reaches `module`."""

    def stop(_module: nn.Module, _inputs: tuple) -> None:
        raise StopForwardError

    handle = module.register_forward_pre_hook(stop)
    try:
        yield
    except StopForwardError:
        return
    finally:
        handle.remove()


def detached_copy(value: Any) -> Any:
    """Own storage for every tensor in `value`, so that no larger buffer is kept alive."""
    return map_tensors(value, lambda tensor: tensor.detach().clone())


def select_rows(value: Any, rows: Tensor, batch: int) -> Any:
    """The given batch rows of every tensor in `value` whose first axis is the batch."""

    def pick(tensor: Tensor) -> Tensor:
        return tensor.index_select(0, rows) if tensor.shape[:1] == torch.Size([batch]) else tensor

    return map_tensors(value, pick)
