"""The least-squares step of MEMIT and COMEBA-HK, in float64 (ref 2.4, 11).

For keys K [f, B], residuals R [d, B] and a symmetric positive C [f, f], the update of a weight
[d, f] is R K^T (C + K K^T)^-1 = R X^T with X = (C + K K^T)^-1 K.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from lib.errors import EditorError

Solver = Literal["auto", "cholesky", "woodbury"]
EXACT_UP_TO = 4096
"""Widths at which "auto" factors the sum each time, under a second on a processor: a resumed run
then ends bit for bit as an unbroken one, because C is all that the solution hangs on."""


def solve_cholesky(moment: Tensor, keys: Tensor) -> Tensor:
    """X = (C + K K^T)^-1 K by a Cholesky factor of the sum: O(f^3). All float64."""
    return torch.cholesky_solve(keys, factor(moment + keys @ keys.T))


def factor(matrix: Tensor) -> Tensor:
    """The Cholesky factor [f, f] of key statistics; EditorError if they are not definite."""
    lower, fault = torch.linalg.cholesky_ex(matrix)
    if int(fault):
        raise EditorError(
            "the key statistics are not positive definite: too few tokens for this layer's width. "
            "Raise statistics_tokens well above the width of the MLP"
        )
    return lower


def inverse_of(moment: Tensor) -> Tensor:
    """C^-1 [f, f] by Cholesky."""
    return torch.cholesky_inverse(factor(moment))


class KeptInverse:
    """C^-1 of C = C0 + U U^T, as C0^-1 [f, f], the factors U [f, n] and C0^-1 U.

    C0^-1 stays as it is until the factors are more than a quarter of the width; then they go into
    it. A solve is O(f^2 B).
    """

    def __init__(self, inverse: Tensor) -> None:
        self.base = inverse
        self.factors = self.spread = inverse[:, :0]

    def solve(self, keys: Tensor) -> Tensor:
        """X = (C + K K^T)^-1 K for keys [f, B], on their device (Woodbury)."""
        new = self.base.to(keys.device) @ keys
        factors = torch.cat([self.factors.to(keys.device), keys], dim=1)
        spread = torch.cat([self.spread.to(keys.device), new], dim=1)
        last = _unit(factors)[:, -keys.shape[1] :]
        return spread @ torch.cholesky_solve(last, _small(factors, spread))

    def add(self, keys: Tensor) -> None:
        """C <- C + K K^T."""
        self.factors = torch.cat([self.factors, keys], dim=1)
        self.spread = torch.cat([self.spread, self.base @ keys], dim=1)
        if 4 * self.factors.shape[1] > len(self.base):
            small = _small(self.factors, self.spread)
            base = self.base - self.spread @ torch.cholesky_solve(self.spread.T, small)
            self.base = (base + base.T) / 2
            self.factors = self.spread = self.base[:, :0]


def _unit(factors: Tensor) -> Tensor:
    return torch.eye(factors.shape[1], dtype=factors.dtype, device=factors.device)


def _small(factors: Tensor, spread: Tensor) -> Tensor:
    """The Cholesky factor of I + U^T C0^-1 U [n, n]."""
    return torch.linalg.cholesky(_unit(factors) + factors.T @ spread)


class KeyMemory:
    """C of one layer: lambda M from the key statistics, and the keys of all edits absorbed since.

    `solve` answers for one batch, `absorb` adds that batch to C. "woodbury" keeps C^-1 beside C
    and is chosen by "auto" where a batch is small against a wide layer; "cholesky" factors the sum
    each time. Both give the same X to rounding. Matrices stay where the statistics are (the host);
    one at a time visits the keys' device.
    """

    def __init__(self, moment: Tensor, weight: float, solver: Solver = "auto") -> None:
        self._statistics, self._weight = moment, weight
        self.solver = solver
        self._of_statistics: Tensor | None = None  # (lambda M)^-1
        self.reset()

    @property
    def moment(self) -> Tensor:
        """C [f, f], float64."""
        self._take_in()
        if self._accumulated is None:
            return self._weight * self._statistics.double()
        return self._accumulated

    def _take_in(self) -> None:
        pending, self._pending = self._pending, []
        for keys in pending:
            self._accumulated = self.moment + keys @ keys.T

    def reset(self) -> None:
        """Forget every absorbed batch."""
        self._accumulated: Tensor | None = None
        self._pending: list[Tensor] = []  # keys that C does not hold yet
        self._inverse: KeptInverse | None = None

    def restore(self, moment: Tensor) -> None:
        """Take over a saved C [f, f] (float64)."""
        self.reset()
        self._accumulated = moment.to(self._statistics.device, torch.float64)

    def solve(self, keys: Tensor) -> Tensor:
        """X [f, B] for keys [f, B] (float64), on the keys' device."""
        if not self._keeps_inverse(keys):
            return solve_cholesky(self.moment.to(keys.device), keys)
        if self._inverse is None:
            self._inverse = KeptInverse(self._inverted(keys.device))
        return self._inverse.solve(keys)

    def absorb(self, keys: Tensor, weight: float = 1.0) -> None:
        """C <- C + weight K K^T."""
        scaled = (math.sqrt(weight) * keys).to(self._statistics.device)
        self._pending.append(scaled)
        if 4 * sum(each.shape[1] for each in self._pending) > len(scaled):
            self._take_in()
        if self._inverse is not None:
            self._inverse.add(scaled)

    def _inverted(self, device: torch.device) -> Tensor:
        """C^-1; that of the statistics is kept."""
        unedited = self._accumulated is None and not self._pending
        if unedited and self._of_statistics is not None:
            return self._of_statistics
        inverse = inverse_of(self.moment.to(device)).to(self._statistics.device)
        if unedited:
            self._of_statistics = inverse
        return inverse

    def _keeps_inverse(self, keys: Tensor) -> bool:
        if self.solver == "auto":
            return keys.shape[0] > EXACT_UP_TO and 8 * keys.shape[1] <= keys.shape[0]
        return self.solver == "woodbury"
