"""Counts what forward passes keep for their backward passes: the memory that grows with a graph."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


class GraphMemory:
    """Bytes of distinct storages that autograd saves inside `of` contexts, one graph per context.

    A joint computation keeps all graphs until its one backward pass: `joint`, their sum. A
    decoupled one keeps one at a time: `decoupled`, the largest. `rows` is the row store, which
    both need. Tensors in `resident` (weights) are there anyway and do not count.
    """

    def __init__(self, resident: Iterable[Tensor] = ()) -> None:
        self._resident: set[int] = set()
        self.exclude(resident)
        self._graphs: dict[str, list[int]] = defaultdict(list)
        self._counting = True
        self.rows = 0

    @classmethod
    def off(cls) -> "GraphMemory":
        """One that counts nothing and costs nothing."""
        memory = cls()
        memory._counting = False
        return memory

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors as resident from here on."""
        self._resident |= {tensor.untyped_storage().data_ptr() for tensor in tensors}

    @contextlib.contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Count the graph that is built inside the context."""
        if not self._counting:
            yield
            return
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._resident:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        self._graphs[what].append(sum(seen.values()))

    @property
    def joint(self) -> int:
        """Bytes if every graph is kept."""
        return sum(sum(sizes) for sizes in self._graphs.values())

    @property
    def decoupled(self) -> int:
        """Bytes of the largest single graph."""
        return max((max(sizes) for sizes in self._graphs.values()), default=0)

    def sizes(self) -> dict[str, int]:
        """`joint_bytes`, `decoupled_bytes` and `row_store_bytes`."""
        return {
            "joint_bytes": self.joint,
            "decoupled_bytes": self.decoupled,
            "row_store_bytes": self.rows,
        }
