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

    "primal" factors K^T K + lambda I [d, d], summed up chunk by chunk in float64: in float32 its
    smallest eigenvalue, lambda, is lost beside the largest of real keys. "dual" factors
    K K^T + lambda I [n, n] and holds all keys, which are then fewer than columns; float32 is
    enough for it, with float64 where it fails. "auto" takes the smaller matrix. Between the shift
    and its gradients the factor waits on the host, as the rows do.
    """

    def __init__(
        self, rows: Chunks, size: tuple[int, int], ridge: float, form: Form = "auto"
    ) -> None:
        """`size`: (n, d) of all keys together."""
        self.ridge, (n, d) = ridge, size
        self.dual = n < d if form == "auto" else form == "dual"
        if self.dual:
            keys, wanted = whole(rows)
            factor = _dual_factor(keys, ridge)
            self._weights = _solved(factor, wanted)  # Z = A^-1 D
            self.shift = keys.T @ self._weights
        else:
            gram, right, dtype = _summed(rows)
            factor = _factor(gram, ridge)
            self.shift = _solved(factor, right).to(dtype)
        self._factor = factor.cpu()

    def wanted_gradient(self, keys: Iterable[Tensor], gamma: Tensor) -> Iterator[Tensor]:
        """dL/dD [b, d'] of every chunk of the same keys, from Gamma = dL/dS [d, d']."""
        factor = self._factor.to(gamma.device)
        if self.dual:
            through = [chunk @ gamma for chunk in keys]
            self._wanted = _solved(factor, torch.cat(through))  # A^-1 K Gamma
            return iter(self._wanted.split([len(chunk) for chunk in through]))
        self._through = _solved(factor, gamma)  # X = A^-1 Gamma
        return (chunk @ self._through for chunk in keys)

    def log_ridge_gradient(self) -> Tensor:
        """dL/d(log lambda), a scalar; after `wanted_gradient`."""
        left, right = (self._wanted, self._weights) if self.dual else (self._through, self.shift)
        return -self.ridge * (left * right).sum()


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


def _summed(rows: Chunks) -> tuple[Tensor, Tensor, torch.dtype]:
    """K^T K [d, d] and K^T D [d, d'] in float64, and the precision that the rows came in."""
    gram = right = None
    for keys, wanted in rows:
        exact = keys.double()
        if gram is None:
            gram, right = exact.T @ exact, exact.T @ wanted.double()
        else:
            gram.addmm_(exact.T, exact)
            right.addmm_(exact.T, wanted.double())
    return gram, right, keys.dtype


def _dual_factor(keys: Tensor, ridge: float) -> Tensor:
    try:
        return _factor(keys @ keys.T, ridge)
    except EditorError:
        exact = keys.double()
        return _factor(exact @ exact.T, ridge)


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


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    """A^-1 R in R's precision."""
    return torch.cholesky_solve(right.to(factor.dtype), factor).to(right.dtype)


def rank_one_shifts(eta: Tensor, pseudo_keys: Tensor, pseudo_gradients: Tensor) -> Tensor:
    """MEND's shift, the sum of one rank-one shift per row: -eta K~^T G~ [d, d']."""
    return -eta * pseudo_keys.T @ pseudo_gradients


def wanted_outputs(
    eta: Tensor, keys: Tensor, pseudo_keys: Tensor, pseudo_gradients: Tensor
) -> Tensor:
    """D [n, d']: what each row's own rank-one shift would change at its own output,
    d_j = -eta (k_j . k~_j) g~_j (malmen 2.2)."""
    return -eta * (keys * pseudo_keys).sum(dim=1, keepdim=True) * pseudo_gradients
