"""ELDER's codes: which experts a label is given, which an input takes, and how far they differ.

A code [L, N] is boolean with exactly k ones per layer; "0110…" written out, it has L N digits.
"""

import math

import torch
from torch import Tensor

from lib.errors import EditorError

NEVER = 10**6
"""The distance to the nearest stored code where none is stored."""


class Allocation:
    """A random code for every distinct label, drawn when the label first appears (elder 2.5).

    Equal labels (after stripping) share a code; different ones never do.
    """

    def __init__(self, layers: int, experts: int, k: int, seed: int) -> None:
        self.layers, self.experts, self.k = layers, experts, k
        self._generator = torch.Generator().manual_seed(seed)
        self._codes: dict[str, Tensor] = {}
        self._used: set[tuple[int, ...]] = set()

    @property
    def labels(self) -> list[str]:
        """The labels that have a code, in the order in which they got it."""
        return list(self._codes)

    def of(self, label: str) -> Tensor:
        """The label's code [L, N]. Raises EditorError when all codes are given away."""
        label = label.strip()
        if label not in self._codes:
            self._codes[label] = self._draw()
        return self._codes[label]

    def _draw(self) -> Tensor:
        possible = math.comb(self.experts, self.k) ** self.layers
        if len(self._used) >= possible:
            raise EditorError(
                f"all {possible} codes of {self.layers} layers with {self.k} of {self.experts} "
                "experts are given to labels; raise n_experts or edit more layers"
            )
        while True:
            drawn = [
                torch.randperm(self.experts, generator=self._generator)[: self.k]
                for _ in range(self.layers)
            ]
            code = torch.zeros(self.layers, self.experts, dtype=torch.bool)
            code.scatter_(1, torch.stack(drawn), True)
            key = tuple(code.flatten().nonzero()[:, 0].tolist())
            if key not in self._used:
                self._used.add(key)
                return code


def hamming(codes: Tensor, stored: Tensor) -> Tensor:
    """Number of differing digits [B, n] (long) between codes [B, L, N] and [n, L, N]: 2 k L less
    twice the ones that both have."""
    own, other = codes.flatten(1).float(), stored.flatten(1).float()
    ones = own.sum(dim=1, keepdim=True) + other.sum(dim=1)
    return (ones - 2 * own @ other.T).round().long()


def nearest(codes: Tensor, stored: Tensor) -> Tensor:
    """The smallest distance [B] of each code to the stored ones; NEVER if none is stored."""
    if not len(stored):
        return torch.full((len(codes),), NEVER, device=codes.device)
    return hamming(codes, stored).amin(dim=1)


def distinct(stored: Tensor) -> int:
    """How many different codes there are among [n, L, N]."""
    return len(stored.flatten(1).unique(dim=0)) if len(stored) else 0


def written(code: Tensor) -> str:
    """A code [L, N] as a string of 0 and 1, layer after layer."""
    return "".join("1" if digit else "0" for digit in code.flatten().tolist())
