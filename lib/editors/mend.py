"""MEND as MALMEN's authors run it beside their own method (malmen 7): the same network, rows,
meta loss, clipping and optimiser; the shifts of all rows are summed instead of solved for.

Mitchell et al. (ICLR 2022) differ in the order of scale and clamp, leave rows without gradient
out, and train end to end; their numbers are not reproduced here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.editors.hyper_editor import HyperConfig
from lib.editors.malmen import Malmen, rank_one_shifts
from lib.editors.ridge import Solve
from lib.editors.tracing import Tokens


@dataclass(frozen=True)
class MendConfig(HyperConfig):
    """As MALMEN's without a ridge; every attended token is cached."""

    tokens: Tokens = "all"


class Mend(Malmen):
    """The sum of one rank-one shift per row."""

    name = "MEND"
    config: MendConfig

    def _summed(self, path: str, keys: Tensor, gradients: Tensor) -> Tensor:
        net, module = self.network.of(path)
        return rank_one_shifts(net.eta[module], *net(keys, gradients, module))

    def shift(self, path: str, keys: Tensor, gradients: Tensor) -> tuple[Tensor, Solve | None]:
        """S = -eta sum_j k~_j^T g~_j."""
        parts = [self._summed(path, k, g) for k, g in self.chunks(keys, gradients)]
        return torch.stack(parts).sum(dim=0), None

    def proxies(
        self, path: str, keys: Tensor, gradients: Tensor, gamma: Tensor, solve: Solve | None
    ) -> Iterator[Callable[[], Tensor]]:
        """The proxy is <Gamma, S(theta)>, chunk by chunk."""
        for k, g in self.chunks(keys, gradients):
            yield lambda k=k, g=g: (gamma * self._summed(path, k, g)).sum()
