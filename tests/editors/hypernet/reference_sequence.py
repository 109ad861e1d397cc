"""RLEdit and UltraEdit, slow and plain, in float64: the oracles of their parity tests.

Written from the study's notes on the two alone (section numbers are theirs). The model's own
weights are moved by each turn, statistics are taken over all rows seen so far instead of running,
and one autograd graph reaches from the hyper-network through the solve and W_t to all losses of a
turn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.data.records import Edit
from tests.editors.hypernet.reference_hypernetwork import EPSILON, Network, ridge_shift
from tests.editors.hypernet.reference_malmen import Passes, Reference, Row, Settings


class Turns(Reference):
    """RLEdit's training sequence (1.2): W is the module's own weight, which every turn moves."""

    def __init__(
        self, backbone: Backbone, networks: Sequence[Network], settings: Settings, *,
        decay: float, depth: int, regularised: float, original: bool,
    ) -> None:  # fmt: skip
        super().__init__(backbone, networks, settings)
        self.decay, self.depth, self.regularised = decay, depth, regularised
        self.held_to_original = original
        self.past: list[Sequence[Edit]] = []

    def kl(self, rows: Sequence[Row], weights: dict[str, Tensor]) -> Tensor:
        """As `Reference.kl`; the first model is the one before this turn, or the unedited one."""
        if not self.held_to_original:
            return super().kl(rows, weights)
        now = {path: m.weight.detach().clone() for path, m in self.modules.items()}
        self.put(self.original)
        found = super().kl(rows, weights)
        for path, module in self.modules.items():
            module.weight.data = now[path]
        return found

    def put(self, weights: dict[str, Tensor]) -> None:
        """Make these input-major weights the model's own."""
        for path, weight in weights.items():
            self.modules[path].weight.data = self.turn(path, weight.detach().clone())

    def total(self, facts: Sequence[Edit]) -> Tensor:
        """The loss of one turn, and W moved by it."""
        before = {p: self.turn(p, m.weight.detach().clone()) for p, m in self.modules.items()}
        shifts = self.shifts(facts, learn=True)
        weights = {path: before[path] + S for path, S in shifts.items()}
        self.past.insert(0, facts)
        loss = torch.zeros((), dtype=torch.float64)
        for i, batch in enumerate(self.past[: self.depth]):
            generality, locality = self.losses(batch, weights)
            loss = loss + self.decay**i * (generality + self.s.loc_coef * locality)
        loss = loss + self.regularised * sum((S**2).sum() for S in shifts.values())
        self.put(weights)
        return loss

    def gradients(self, facts: Sequence[Edit]) -> list[dict[str, Tensor]]:
        """Of one turn's loss with respect to every parameter; zeros where none is used."""
        named = [net.parameters() for net in self.distinct]
        tensors = [tensor for one in named for tensor in one.values()]
        found = iter(torch.autograd.grad(self.total(facts), tensors, allow_unused=True))
        return [
            {k: torch.zeros_like(v) if (g := next(found)) is None else g for k, v in one.items()}
            for one in named
        ]


class Lifelong(Passes):
    """UltraEdit (2): turn by turn on the moved model."""

    def __init__(
        self, backbone: Backbone, paths: Sequence[str], *,
        eta: float, ridge: float, batch_rows: int, tokens: str, mode: str,
    ) -> None:  # fmt: skip
        super().__init__(backbone, paths)
        self.eta, self.ridge, self.batch_rows, self.tokens = eta, ridge, batch_rows, tokens
        self.mode = mode
        self.seen: dict[tuple[int, ...], list[Tensor]] = {}  # blocks of rows by weight shape

    def statistics(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of all rows of a shape. As released, each block's unbiased variance
        counts once more in the sum of squares."""
        blocks = self.seen[shape]
        rows = torch.cat(blocks)
        squares = ((rows - rows.mean(dim=0)) ** 2).sum(dim=0)
        if self.mode == "released":
            squares = squares + sum(block.var(dim=0) for block in blocks if len(block) > 1)
        return rows.mean(dim=0), torch.sqrt(squares / (len(rows) - 1 + EPSILON))

    def edit(self, facts: Sequence[Edit]) -> dict[str, Tensor]:
        """The shifts of one turn, which the model has from here on."""
        rows = [self.row(fact.prompt, fact.target) for fact in facts]
        rows.sort(key=lambda row: len(row.ids), reverse=True)
        K: dict[str, list[Tensor]] = {path: [] for path in self.paths}
        G: dict[str, list[Tensor]] = {path: [] for path in self.paths}
        for at in range(0, len(rows), self.batch_rows):
            for path, (k, g) in self.trace(rows[at : at + self.batch_rows], self.tokens).items():
                K[path].append(k)
                G[path].append(g)
                shape = tuple(self.original[path].shape)
                self.seen.setdefault(shape, []).append(torch.cat([k, g], dim=1))
        shifts = {}
        for path in self.paths:
            keys, gradients = torch.cat(K[path]), torch.cat(G[path])
            mean, deviation = self.statistics(tuple(self.original[path].shape))
            wanted = []
            for k, g in zip(keys, gradients, strict=True):
                both = (torch.cat([k, g]) - mean) / (deviation + EPSILON)
                k_, g_ = both[: len(k)], both[len(k) :]
                wanted.append(-self.eta * torch.dot(k_, k_) * g_)
            shifts[path] = ridge_shift(keys, torch.stack(wanted), self.ridge)
        for path, S in shifts.items():
            self.modules[path].weight.data += self.turn(path, S)
        return shifts
