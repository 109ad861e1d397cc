"""The pure parts of the slow reference of MALMEN and MEND: hyper-network, statistics and solves.

Written from the study's notes on MALMEN alone (section numbers are theirs); see
`reference_malmen`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps


@dataclass
class Standardiser:
    """Running moments (2.3); `mode` "released" over-estimates, "corrected" is the textbook."""

    mode: str = "released"
    n: int = 0
    mean: Tensor | float = 0.0
    m2: Tensor | float = 0.0
    std: Tensor | float = 0.0

    def update(self, block: Tensor) -> None:
        """Takes a block [b, s] in."""
        b = len(block)
        centre = block.sum(dim=0) / b
        spread = ((block - centre) ** 2).sum(dim=0)  # (b - 1) * unbiased variance
        if self.mode == "released" and b > 1:  # officially one row turns everything NaN
            spread = b * spread / (b - 1)
        delta, total = centre - self.mean, self.n + b
        self.m2 = self.m2 + spread + self.n * b * delta**2 / total
        self.mean = self.mean + b * delta / total
        self.std = torch.sqrt(self.m2 / (total - 1 + EPSILON))
        self.n = total

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.mode == "off" else (x - self.mean) / (self.std + EPSILON)


@dataclass
class Block:
    """One residual block: A [s, r], B [r, s], bias [s]; scale and shift [M, s] per module."""

    A: Tensor
    B: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    def __call__(self, y: Tensor, module: int) -> Tensor:
        h = torch.clamp(y @ self.A @ self.B + self.bias, min=0)
        return y + self.scale[module] * h + self.shift[module]


@dataclass
class Network:
    """g_theta of one shape (d, d'), and eta, alpha [M] of its modules `paths`."""

    paths: tuple[str, ...]
    blocks: list[Block]
    eta: Tensor
    alpha: Tensor
    standardiser: Standardiser = field(default_factory=Standardiser)

    def parameters(self) -> dict[str, Tensor]:
        """Every learned tensor by name."""
        named = {f"blocks.{i}.{name}": value for i, b in enumerate(self.blocks)
                 for name, value in vars(b).items()}  # fmt: skip
        return named | {"eta": self.eta, "alpha": self.alpha}

    def pseudo(self, K: Tensor, G: Tensor, module: int) -> tuple[Tensor, Tensor]:
        """(K~, G~) of token rows, row by row the same."""
        y = self.standardiser(torch.cat([K, G], dim=1))
        for block in self.blocks:
            y = block(y, module)
        return y[:, : K.shape[1]], y[:, K.shape[1] :]


def wanted(eta: Tensor, K: Tensor, K_: Tensor, G_: Tensor) -> Tensor:
    """D [n, d'], row by row: d_j = -eta (k_j . k~_j) g~_j (2.2)."""
    return torch.stack([-eta * torch.dot(K[j], K_[j]) * G_[j] for j in range(len(K))])


def ridge_shift(K: Tensor, D: Tensor, ridge: Tensor | float) -> Tensor:
    """S = (K^T K + lambda I)^-1 K^T D (2.2)."""
    A = K.T @ K + ridge * torch.eye(K.shape[1], dtype=K.dtype)
    return torch.linalg.solve(A, K.T @ D)


def summed_shift(eta: Tensor, K_: Tensor, G_: Tensor) -> Tensor:
    """MEND: the sum of the rank-one shifts -eta k~_j^T g~_j."""
    return sum(-eta * torch.outer(K_[j], G_[j]) for j in range(len(K_)))
