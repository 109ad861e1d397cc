"""The least-squares step of MEMIT and COMEBA-HK, in float64 (ref 2.4, 11).

For keys K [f, B], residuals R [d, B] and a symmetric positive C [f, f], the update of a weight
[d, f] is R K^T (C + K K^T)^-1 = R X^T with X = (C + K K^T)^-1 K.
"""

from typing import Literal

import torch
from torch import Tensor

from lib.errors import EditorError

Solver = Literal["auto", "cholesky", "woodbury"]
FACTOR_ALWAYS = 4096  # up to this width a fresh factor costs less than a second on a CPU


def solve_cholesky(moment: Tensor, keys: Tensor) -> Tensor:
    """X = (C + K K^T)^-1 K by a Cholesky factor of the sum: O(f^3). All float64."""
    return torch.cholesky_solve(keys, factor(moment + keys @ keys.T))


def solve_woodbury(inverse: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The same from P = C^-1: X = P K (I + K^T P K)^-1, and P for C + K K^T. O(f^2 B)."""
    spread = inverse @ keys
    small = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device) + keys.T @ spread
    solved = torch.linalg.solve(small, spread.T).T
    updated = inverse - solved @ spread.T
    return solved, (updated + updated.T) / 2


def inverse_of(moment: Tensor) -> Tensor:
    """C^-1 [f, f] by Cholesky."""
    return torch.cholesky_inverse(factor(moment))


def factor(matrix: Tensor) -> Tensor:
    """The Cholesky factor [f, f] of key statistics; EditorError if they are not definite."""
    lower, fault = torch.linalg.cholesky_ex(matrix)
    if int(fault):
        raise EditorError(
            "the key statistics are not positive definite: too few tokens for this layer's width. "
            "Raise statistics_tokens well above the width of the MLP"
        )
    return lower


class KeyMemory:
    """C of one layer: lambda M from the key statistics, and the keys of all edits absorbed since.

    `solve` answers for one batch, `absorb` adds that batch to C. "woodbury" keeps C^-1 beside C
    and is chosen by "auto" where a batch is small against a wide layer; both give the same X.
    Matrices stay where the statistics are (the host); one at a time visits the keys' device.
    """

    def __init__(self, moment: Tensor, weight: float, solver: Solver = "auto") -> None:
        self._statistics, self._weight = moment, weight
        self.solver = solver
        self.reset()

    @property
    def moment(self) -> Tensor:
        """C [f, f], float64."""
        return self._initial() if self._accumulated is None else self._accumulated

    def _initial(self) -> Tensor:
        return self._weight * self._statistics.double()

    def reset(self) -> None:
        """Forget every absorbed batch."""
        self._accumulated: Tensor | None = None
        self._inverse: Tensor | None = None
        self._updated: Tensor | None = None

    def restore(self, moment: Tensor) -> None:
        """Take over a saved C [f, f] (float64)."""
        self.reset()
        self._accumulated = moment.to(self._statistics.device, torch.float64)

    def solve(self, keys: Tensor) -> Tensor:
        """X [f, B] for keys [f, B] (float64), on the keys' device."""
        self._updated = None
        if not self._keeps_inverse(keys):
            return solve_cholesky(self.moment.to(keys.device), keys)
        if self._inverse is None:
            self._inverse = inverse_of(self.moment.to(keys.device)).to(self._statistics.device)
        solved, updated = solve_woodbury(self._inverse.to(keys.device), keys)
        self._updated = updated.to(self._statistics.device)
        return solved

    def absorb(self, keys: Tensor, weight: float = 1.0) -> None:
        """C <- C + weight K K^T."""
        self._accumulated = self.moment + weight * (keys @ keys.T).to(self._statistics.device)
        self._inverse, self._updated = (self._updated if weight == 1.0 else None), None

    def _keeps_inverse(self, keys: Tensor) -> bool:
        if self.solver == "auto":
            return keys.shape[0] > FACTOR_ALWAYS and 8 * keys.shape[1] <= keys.shape[0]
        return self.solver == "woodbury"
