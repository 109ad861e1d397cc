"""MALMEN's least-squares step: one shift that best gives every row the output change it wants.

For keys K [n, d] and wanted changes D [n, d'], S = argmin |K S - D|^2 + lambda |S|^2 [d, d']
= (K^T K + lambda I)^-1 K^T D, and its exact equal K^T (K K^T + lambda I)^-1 D (malmen 2.2).
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from lib.errors import EditorError

Form = Literal["auto", "primal", "dual"]


class Solve(Protocol):
    """What an editor needs of a solve: the shift, then the gradients that lead back through it.

    Between the two the keys may be let go, so that those of all layers need not be held at once.
    """

    def release_keys(self) -> None: ...

    def take_keys(self, keys: Tensor) -> None: ...

    def shift(self, wanted: Tensor) -> Tensor: ...

    def wanted_gradient(self, gamma: Tensor) -> Tensor: ...

    def log_ridge_gradient(self) -> Tensor: ...


class Ridge:
    """One factorisation, used for the shift and for both gradients.

    "primal" factors a d x d matrix, "dual" an n x n one; "auto" takes the smaller. Order of
    calls: `shift`, `wanted_gradient`, `log_ridge_gradient`.
    """

    def __init__(self, keys: Tensor, ridge: float, form: Form = "auto") -> None:
        self.keys: Tensor | None = keys
        self.ridge, (n, d) = ridge, keys.shape
        self.dual = n < d if form == "auto" else form == "dual"
        self._factor = _factor(keys if self.dual else keys.T, ridge)

    def release_keys(self) -> None:
        """Let the keys go until the gradients are asked for."""
        self.keys = None

    def take_keys(self, keys: Tensor) -> None:
        """The same keys again."""
        self.keys = keys

    def _solved(self, right: Tensor) -> Tensor:
        solved = torch.cholesky_solve(right.to(self._factor.dtype), self._factor)
        return solved.to(right.dtype)

    def shift(self, wanted: Tensor) -> Tensor:
        """S [d, d'] for the wanted changes D [n, d']."""
        if self.dual:
            self._weights = self._solved(wanted)  # Z = A^-1 D
            return self.keys.T @ self._weights
        self._shift = self._solved(self.keys.T @ wanted)
        return self._shift

    def wanted_gradient(self, gamma: Tensor) -> Tensor:
        """dL/dD [n, d'] from Gamma = dL/dS [d, d']."""
        if self.dual:
            self._wanted = self._solved(self.keys @ gamma)
            return self._wanted
        self._through = self._solved(gamma)  # X = A^-1 Gamma
        return self.keys @ self._through

    def log_ridge_gradient(self) -> Tensor:
        """dL/d(log lambda), a scalar."""
        left, right = (self._wanted, self._weights) if self.dual else (self._through, self._shift)
        return -self.ridge * (left * right).sum()


class MinimumNorm:
    """The same without a ridge: among the shifts that fit best, the smallest, by the pseudo-inverse
    (an ablation; same methods as `Ridge`)."""

    def __init__(self, keys: Tensor) -> None:
        self._inverse = torch.linalg.pinv(keys)

    def release_keys(self) -> None:
        """Nothing to let go: the pseudo-inverse is as large as the keys."""

    def take_keys(self, keys: Tensor) -> None:
        """Nothing to take."""

    def shift(self, wanted: Tensor) -> Tensor:
        """S [d, d'] for the wanted changes D [n, d']."""
        return self._inverse @ wanted

    def wanted_gradient(self, gamma: Tensor) -> Tensor:
        """dL/dD [n, d'] from Gamma = dL/dS [d, d']."""
        return self._inverse.T @ gamma

    def log_ridge_gradient(self) -> Tensor:
        """There is no ridge to learn: zero."""
        return torch.zeros((), dtype=self._inverse.dtype, device=self._inverse.device)


def _factor(rows: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of R R^T + ridge I; in float64 where float32 does not suffice."""
    for dtype in dict.fromkeys((rows.dtype, torch.float64)):
        precise = rows.to(dtype)
        gram = precise @ precise.T
        gram.diagonal().add_(ridge)
        factor, fault = torch.linalg.cholesky_ex(gram)
        if not int(fault):
            return factor
    raise EditorError(
        "the keys of this batch are linearly dependent and the ridge is too small to tell them "
        "apart; raise lambda (alpha of the hyper-network) or leave repeated prompts out"
    )


def rank_one_shifts(eta: Tensor, pseudo_keys: Tensor, pseudo_gradients: Tensor) -> Tensor:
    """MEND's shift, the sum of one rank-one shift per row: -eta K~^T G~ [d, d']."""
    return -eta * pseudo_keys.T @ pseudo_gradients


def wanted_outputs(
    eta: Tensor, keys: Tensor, pseudo_keys: Tensor, pseudo_gradients: Tensor
) -> Tensor:
    """D [n, d']: what each row's own rank-one shift would change at its own output,
    d_j = -eta (k_j . k~_j) g~_j (malmen 2.2)."""
    return -eta * (keys * pseudo_keys).sum(dim=1, keepdim=True) * pseudo_gradients
