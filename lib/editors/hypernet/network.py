"""The hyper-network of MALMEN and MEND: one small residual net per weight shape (malmen 2.3).

It reads a row (key, output gradient) and writes a pseudo key and a pseudo gradient. At the start
it is the identity on the standardised row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Standardise = Literal["released", "corrected", "off"]
EPS = torch.finfo(torch.float32).eps


def shape_name(shape: tuple[int, int]) -> str:
    """How what the layers of one weight shape (d, d') share is called: "3072x768"."""
    return "{}x{}".format(*shape)


class Standardiser(nn.Module):
    """Running mean and standard deviation of rows [n, width], updated block by block.

    "released" adds b times a block's unbiased variance to the sum of squares, as the official
    code does (over-estimating by about b / (b - 1)); "corrected" the textbook's (b - 1) times. A
    block of one row has no variance and adds none (the official code turns NaN for good). "off"
    leaves rows as they are.
    """

    def __init__(self, width: int, mode: Standardise = "released") -> None:
        super().__init__()
        self.mode = mode
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))  # exact past 2^24
        for name in ("mean", "m2", "std"):
            self.register_buffer(name, torch.zeros(width))

    @torch.no_grad()
    def update(self, block: Tensor) -> None:
        """Take a block of rows [b, width] into the statistics."""
        b, n = len(block), self.count
        total = n + b
        delta = block.mean(dim=0) - self.mean
        spread = block.var(dim=0) if b > 1 else torch.zeros_like(self.mean)
        self.mean += b * delta / total
        self.m2 += (b if self.mode == "released" else b - 1) * spread + n * b * delta**2 / total
        self.std.copy_((self.m2 / (total - 1 + EPS)).sqrt())
        self.count.copy_(total)

    def forward(self, rows: Tensor) -> Tensor:
        """(rows - mean) / (std + eps)."""
        return rows if self.mode == "off" else (rows - self.mean) / (self.std + EPS)


class Block(nn.Module):
    """y + scale * max(0, y A B + bias) + shift; scale and shift belong to one module each.

    The clamp passes a gradient at exactly zero where ReLU passes none: with B = 0 and bias = 0
    every pre-activation starts there, and ReLU would never learn (malmen 2.3).
    """

    def __init__(self, width: int, rank: int, modules: int, zero_init: bool) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(width, rank))  # A
        self.up = nn.Parameter(torch.zeros(rank, width))  # B
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(modules, width))
        self.shift = nn.Parameter(torch.zeros(modules, width))
        if not zero_init:  # an ablation: pre-activations of about unit size from the start
            nn.init.normal_(self.up, std=(width * rank) ** -0.5)

    def forward(self, rows: Tensor, module: int) -> Tensor:
        """Rows [n, width] of one module."""
        hidden = (rows @ self.down @ self.up + self.bias).clamp(min=0)
        return rows + self.scale[module] * hidden + self.shift[module]


class HyperNetwork(nn.Module):
    """The net of all modules with one weight shape; step size eta and log-ridge alpha per module.

    Random values come from torch's global generator: seed it.
    """

    def __init__(
        self,
        key_width: int,
        value_width: int,
        modules: int,
        rank: int = 1920,
        blocks: int = 2,
        eta: float = 1e-6,
        standardise: Standardise = "released",
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        width = key_width + value_width
        self.widths = (key_width, value_width)
        self.standardiser = Standardiser(width, standardise)
        self.blocks = nn.ModuleList(Block(width, rank, modules, zero_init) for _ in range(blocks))
        self.eta = nn.Parameter(torch.full((modules,), eta))
        self.alpha = nn.Parameter(torch.zeros(modules))

    def forward(self, keys: Tensor, gradients: Tensor, module: int) -> tuple[Tensor, Tensor]:
        """Pseudo keys [n, d] and pseudo gradients [n, d'] of rows of one module."""
        rows = self.standardiser(torch.cat([keys, gradients], dim=1))
        for block in self.blocks:
            rows = block(rows, module)
        return rows.split(self.widths, dim=1)


class HyperNetworks(nn.Module):
    """One `HyperNetwork` per distinct weight shape (d, d') of the edited modules."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], **options: object) -> None:
        super().__init__()
        self._places: dict[str, tuple[str, int]] = {}
        members: dict[str, list[str]] = {}
        for path, shape in shapes.items():
            group = members.setdefault(shape_name(shape), [])
            self._places[path] = shape_name(shape), len(group)
            group.append(path)
        self.nets = nn.ModuleDict(
            {
                name: HyperNetwork(*shapes[group[0]], len(group), **options)
                for name, group in members.items()
            }
        )

    def of(self, path: str) -> tuple[HyperNetwork, int]:
        """The net of a module and the module's number in it."""
        name, number = self._places[path]
        return self.nets[name], number

    def size(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


@dataclass
class TrainingLog:
    """What is known about a training beside its network: meta-steps done, seconds spent and the
    learning curve (one entry per meta-step)."""

    m: int
    facts: int
    steps: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, its record, and whether it was read from the cache."""

    network: HyperNetworks
    record: TrainingLog
    cached: bool
