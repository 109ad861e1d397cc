"""ELDER's routers as pure functions of tensors (elder 2.3, 2.4, 2.6).

Every layer that carries a mixture has a router of its own, and all of them read one query: the
input of the sensor layer at the last prompt token. B rows, L layers, N experts (LoRAs) per layer,
d the width of the query.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


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
