"""ELDER's routers and codes as pure functions of tensors (elder 2.3, 2.4, 2.6).

Every layer that carries a mixture has a router of its own, and all of them read one query: the
input of the sensor layer at the last prompt token. B rows, L layers, N experts (LoRAs) per layer,
d the width of the query.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lib.errors import EditorError


@dataclass(frozen=True)
class Routing:
    """What the routers say of some queries: `log_scores` [B, L, N], the log-softmax over all N
    experts, and `chosen` [B, L, N], true for the k experts with the largest scores."""

    log_scores: Tensor
    chosen: Tensor

    @property
    def weights(self) -> Tensor:
        """w [B, L, N]: the scores of the chosen experts, 0 elsewhere; not renormalised, so their
        sum stays below 1."""
        return self.log_scores.exp() * self.chosen


def initial_routers(
    layers: int, experts: int, width: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """W [L, N, d] and b [L, N], both U(-1/sqrt(d), 1/sqrt(d)): a linear layer's default."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(width)
    drawn = [
        (torch.rand(shape, generator=generator, dtype=torch.float32) * 2 - 1) * bound
        for shape in ((layers, experts, width), (layers, experts))
    ]
    return drawn[0].to(dtype), drawn[1].to(dtype)


def route(query: Tensor, weight: Tensor, bias: Tensor, k: int) -> Routing:
    """z = W q + b for queries [B, d]; softmax over all experts first, then the top k."""
    scores = torch.einsum("bd,lnd->bln", query, weight) + bias
    best = scores.topk(k, dim=-1).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return Routing(functional.log_softmax(scores, dim=-1), chosen)


def guided_loss(log_scores: Tensor, wanted: Tensor) -> Tensor:
    """L_guide: - log s of the experts that the labels were allocated (`wanted` [B, L, N] bool),
    summed over layers and experts, mean over the batch."""
    return -(log_scores * wanted).sum(dim=(1, 2)).mean()


def balance_loss(routing: Routing) -> Tensor:
    """The Switch Transformer's load balancing, the ablation of Table 4: the sum over layers of
    N sum_i f_i P_i, f_i the share of the choices that fall on expert i in the batch and P_i its
    mean score."""
    share = routing.chosen.sum(dim=0) / routing.chosen.sum(dim=(0, 2))[:, None]
    score = routing.log_scores.exp().mean(dim=0)
    return routing.chosen.shape[-1] * (share * score).sum()


AUXILIARY = {
    "guided": lambda routing, wanted: guided_loss(routing.log_scores, wanted),
    "balancing": lambda routing, _wanted: balance_loss(routing),
    "none": lambda routing, _wanted: routing.log_scores.new_zeros(()),
}
"""What is added to the loss of the model, by name: the rows of Table 4."""


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
