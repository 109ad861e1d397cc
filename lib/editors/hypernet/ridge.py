"""MALMEN's least-squares step: one shift that best gives every row the output change it wants.

For keys K [n, d] and wanted changes D [n, d'], S = argmin |K S - D|^2 + lambda |S|^2 [d, d']
= (K^T K + lambda I)^-1 K^T D, and its exact equal K^T (K K^T + lambda I)^-1 D (malmen 2.2).
"""

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from lib.errors import EditorError

Form = Literal["auto", "primal", "dual"]
Chunks = Iterable[tuple[Tensor, Tensor]]
"""Keys [b, d] with wanted changes [b, d'] of some rows, some rows at a time."""


class Solve(Protocol):
    """What an editor needs of a solve: the shift, then the gradients that lead back through it."""

    shift: Tensor

    def wanted_gradient(self, keys: Iterable[Tensor], gamma: Tensor) -> Iterator[Tensor]: ...

    def log_ridge_gradient(self) -> Tensor: ...


class Ridge:
    """One factorisation, used for the shift S [d, d'] (`shift`) and for both gradients.

    "primal" factors K^T K + lambda I [d, d], summed up chunk by chunk; "dual" factors
    K K^T + lambda I [n, n] and holds all keys, which are then fewer than columns; "auto" takes the
    smaller. All in float64: real keys share a large part, and in float32 lambda, the smallest
    eigenvalue, is lost beside the largest. Results are in the rows' precision. Between the shift
    and its gradients factor and Z wait on the host, as the rows do.
    """

    def __init__(
        self, rows: Chunks, size: tuple[int, int], ridge: float, form: Form = "auto"
    ) -> None:
        """`size`: (n, d) of all keys together."""
        self.ridge, (n, d) = ridge, size
        self.dual = n < d if form == "auto" else form == "dual"
        if self.dual:
            keys, wanted = whole((k.double(), w) for k, w in rows)
            factor = _factor(keys @ keys.T, ridge)
            weights = torch.cholesky_solve(wanted.double(), factor)  # Z = A^-1 D
            shift, self._weights = keys.T @ weights, weights.cpu()
        else:
            gram, right, wanted = _summed(rows)
            factor = _factor(gram, ridge)
            shift = torch.cholesky_solve(right, factor)
        self.shift = shift.to(wanted.dtype)
        self._factor = factor.cpu()

    def wanted_gradient(self, keys: Iterable[Tensor], gamma: Tensor) -> Iterator[Tensor]:
        """dL/dD [b, d'] of every chunk of the same keys, from Gamma = dL/dS [d, d']."""
        factor, exact = self._factor.to(gamma.device), gamma.double()
        if self.dual:
            through = [chunk.double() @ exact for chunk in keys]
            self._wanted = torch.cholesky_solve(torch.cat(through), factor)  # A^-1 K Gamma
            return iter(self._wanted.to(gamma.dtype).split([len(chunk) for chunk in through]))
        self._through = torch.cholesky_solve(exact, factor)  # X = A^-1 Gamma
        return ((chunk.double() @ self._through).to(gamma.dtype) for chunk in keys)

    def log_ridge_gradient(self) -> Tensor:
        """dL/d(log lambda), a scalar; after `wanted_gradient`."""
        left, right = (self._wanted, self._weights) if self.dual else (self._through, self.shift)
        return -self.ridge * (left * right.to(left.device)).sum().to(self.shift.dtype)


class MinimumNorm:
    """The same without a ridge: among the shifts that fit best, the smallest, by the pseudo-inverse
    of all keys (an ablation; same methods as `Ridge`)."""

    def __init__(self, rows: Chunks) -> None:
        keys, wanted = whole(rows)
        self._inverse = torch.linalg.pinv(keys)
        self.shift = self._inverse @ wanted

    def wanted_gradient(self, keys: Iterable[Tensor], gamma: Tensor) -> Iterator[Tensor]:
        """dL/dD [b, d'] of every chunk of the same keys, from Gamma = dL/dS [d, d']."""
        sizes = [len(chunk) for chunk in keys]
        return iter((self._inverse.T @ gamma).split(sizes))

    def log_ridge_gradient(self) -> Tensor:
        """There is no ridge to learn: zero."""
        return torch.zeros((), dtype=self._inverse.dtype, device=self._inverse.device)


def whole(rows: Chunks) -> tuple[Tensor, Tensor]:
    """All keys [n, d] and wanted changes [n, d']."""
    keys, wanted = zip(*rows, strict=True)
    return torch.cat(keys), torch.cat(wanted)


def _summed(rows: Chunks) -> tuple[Tensor, Tensor, Tensor]:
    """K^T K [d, d] and K^T D [d, d'] in float64, and the last chunk of D."""
    gram = right = None
    for keys, wanted in rows:
        exact = keys.double()
        if gram is None:
            gram, right = exact.T @ exact, exact.T @ wanted.double()
        else:
            gram.addmm_(exact.T, exact)
            right.addmm_(exact.T, wanted.double())
    return gram, right, wanted


def _factor(gram: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of G + ridge I; writes into `gram`."""
    gram.diagonal().add_(ridge)
    factor, fault = torch.linalg.cholesky_ex(gram)
    if int(fault):
        raise EditorError(
            "the keys of this batch are linearly dependent and the ridge is too small to tell them "
            "apart; raise lambda (alpha of the hyper-network) or leave repeated prompts out"
        )
    return factor


def rank_one_shifts(eta: Tensor, pseudo_keys: Tensor, pseudo_gradients: Tensor) -> Tensor:
    """MEND's shift, the sum of one rank-one shift per row: -eta K~^T G~ [d, d']."""
    return -eta * pseudo_keys.T @ pseudo_gradients


def wanted_outputs(
    eta: Tensor, keys: Tensor, pseudo_keys: Tensor, pseudo_gradients: Tensor
) -> Tensor:
    """D [n, d']: what each row's own rank-one shift would change at its own output,
    d_j = -eta (k_j . k~_j) g~_j (malmen 2.2)."""
    return -eta * (keys * pseudo_keys).sum(dim=1, keepdim=True) * pseudo_gradients
