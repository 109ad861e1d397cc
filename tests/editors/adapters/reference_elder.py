"""ELDER, slow and plain, in float64: the oracle of the parity tests.

Written from the study's notes on ELDER alone (section numbers are theirs); it shares no code with
`lib.editors`. Every row passes the model by itself and without padding, plain hooks sit on a copy
of the model, each sample has its explicit Delta W = sum_i w_i A_i B_i, and Adam is spelled out.

    reference = Reference(backbone, pool, allocation, Settings(sensor, targets, n=4, k=2))
    reference.edit([(prompt, answer), …])     # one batch; the losses of its steps
    reference.logits(reference.row(prompt))   # logits [T, V] under deferral
    reference.distances(prompt)               # to each stored code
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone

Code = list[list[int]]  # one bit per layer and expert
Pair = tuple[str, str]


@dataclass(frozen=True)
class Settings:
    """Names of sections 2.1 and 3; module paths for the sensor and the targets."""

    sensor: str
    targets: tuple[str, ...]
    n: int = 4
    k: int = 2
    rank: int = 8
    alpha: float = 8.0
    epsilon: int = 12
    lam: float = 1e-2
    lr: float = 1e-4
    steps: int = 50
    halve_every: int | None = None
    auxiliary: str = "guided"
    routing: str = "own"
    refresh: bool = False


@dataclass
class Pool:
    """What is trained: A[l][i] [d_in, r], B[l][i] [r, d_out], W[l] [N, d], b[l] [N]."""

    A: list[list[Tensor]]
    B: list[list[Tensor]]
    W: list[Tensor]
    b: list[Tensor]

    def tensors(self) -> list[Tensor]:
        """Every parameter, A and B of each expert first."""
        experts = [t for letter in (self.A, self.B) for layer in letter for t in layer]
        return [*experts, *self.W, *self.b]


# -- one sample, one layer -------------------------------------------------------------------------


def log_scores(q: Tensor, W: Tensor, b: Tensor) -> list[Tensor]:
    """log s of each expert: softmax over all N, before any choice (2.3)."""
    z = [(W[i] * q).sum() + b[i] for i in range(len(W))]
    top = max(float(x.detach()) for x in z)
    total = sum((x - top).exp() for x in z).log() + top
    return [x - total for x in z]


def top_k(scores: Sequence[Tensor], k: int) -> list[int]:
    """One bit per expert: the k largest scores."""
    order = sorted(range(len(scores)), key=lambda i: -float(scores[i].detach()))
    return [int(i in order[:k]) for i in range(len(scores))]


def weights(log_s: Sequence[Tensor], bits: Sequence[int]) -> list[Tensor]:
    """w = s where chosen, else 0; their sum stays below 1 (2.3)."""
    return [bit * ls.exp() for ls, bit in zip(log_s, bits, strict=True)]


def delta_w(w: Sequence[Tensor], A: Sequence[Tensor], B: Sequence[Tensor], scale: float) -> Tensor:
    """Delta W [d_in, d_out] of one sample."""
    return scale * sum(w[i] * (A[i] @ B[i]) for i in range(len(w)))


# -- a batch of samples ----------------------------------------------------------------------------


def guided(log_s: Sequence[Sequence[Sequence[Tensor]]], wanted: Sequence[Code]) -> Tensor:
    """L_guide (2.6): sums over layers and targets, mean over samples. log_s[sample][layer][i]."""
    total = torch.zeros((), dtype=torch.float64)
    for sample, code in zip(log_s, wanted, strict=True):
        for layer, bits in zip(sample, code, strict=True):
            for score, bit in zip(layer, bits, strict=True):
                total = total - bit * score
    return total / len(wanted)


def balancing(log_s: Sequence[Sequence[Sequence[Tensor]]], codes: Sequence[Code]) -> Tensor:
    """Switch-Transformer balance (2.6): sum over layers of N sum_i f_i P_i."""
    total = torch.zeros((), dtype=torch.float64)
    samples, layers, n = len(codes), len(codes[0]), len(codes[0][0])
    for layer in range(layers):
        slots = sum(sum(codes[s][layer]) for s in range(samples))
        for i in range(n):
            f = sum(codes[s][layer][i] for s in range(samples)) / slots
            P = sum(log_s[s][layer][i].exp() for s in range(samples)) / samples
            total = total + n * f * P
    return total


def distance(code: Code, other: Code) -> int:
    """Hamming distance of two codes: XOR, bit by bit (2.8)."""
    pairs = zip(code, other, strict=True)
    return sum(a ^ b for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


class Adam:
    """Plain Adam, zero moments at its birth (2.7)."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors, self.count = list(tensors), 0
        self.m = [torch.zeros_like(t) for t in self.tensors]
        self.v = [torch.zeros_like(t) for t in self.tensors]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        """One step; a tensor that no loss reaches stays where it is."""
        self.count += 1
        for t, g, m, v in zip(self.tensors, gradients, self.m, self.v, strict=True):
            if g is not None:
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                mean, square = m / (1 - 0.9**self.count), v / (1 - 0.999**self.count)
                t.sub_(lr * mean / (square.sqrt() + 1e-8))


# -- the editor ------------------------------------------------------------------------------------


class Row(NamedTuple):
    """Ids of one prompt, perhaps with its answer; the place of the last prompt token; the answer's
    ids (2.10)."""

    ids: list[int]
    key: int
    answer: list[int]


class Reference:
    """The editor. `allocation` maps an answer to its preset code (2.5); `memory` holds the codes
    as released, `queries` the q of every edit."""

    def __init__(
        self,
        backbone: Backbone,
        pool: Pool,
        allocation: Callable[[str], Code],
        settings: Settings,
    ) -> None:
        self.bb, self.pool, self.s, self.allocation = backbone, pool, settings, allocation
        self.model = copy.deepcopy(backbone.model).double()
        self.memory: list[Code] = []
        self.queries: list[Tensor] = []
        self._key, self._on_query = 0, lambda q: None
        self._deltas: list[Tensor] | None = None
        self.model.get_submodule(settings.sensor).register_forward_pre_hook(self._sense)
        for layer, path in enumerate(settings.targets):
            self.model.get_submodule(path).register_forward_hook(self._adapt(layer))

    def _sense(self, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        self._deltas = self._on_query(inputs[0][0, self._key].detach())

    def _adapt(self, layer: int) -> Callable[..., Tensor]:
        def add(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            return output if self._deltas is None else output + inputs[0] @ self._deltas[layer]

        return add

    def row(self, prompt: str, answer: str = "") -> Row:
        """2.10, with this study's document prefix before the prompt; no end mark."""
        tokenizer = self.bb.tokenizer
        p = tokenizer(self.bb.prefix + prompt)["input_ids"]
        a = tokenizer(" " + answer.strip(), add_special_tokens=False)["input_ids"] if answer else []
        return Row(p + a[:-1], len(p) - 1, a)

    # -- routing -----------------------------------------------------------------------------------

    def log_s(self, q: Tensor) -> list[list[Tensor]]:
        """The router scores of every layer, all from the same q (2.2)."""
        return [log_scores(q, W, b) for W, b in zip(self.pool.W, self.pool.b, strict=True)]

    def code(self, q: Tensor) -> Code:
        """The routers' own top-k."""
        return [top_k(layer, self.s.k) for layer in self.log_s(q)]

    def deltas(self, q: Tensor, code: Code) -> list[Tensor]:
        """Delta W of every layer for one sample whose experts are `code`."""
        layers = zip(self.log_s(q), code, self.pool.A, self.pool.B, strict=True)
        scale = self.s.alpha / self.s.rank
        return [delta_w(weights(log_s, bits), A, B, scale) for log_s, bits, A, B in layers]

    def stored(self) -> Iterator[Code]:
        """The codes that inputs are compared with: as released, or drawn anew (2.8)."""
        for code, q in zip(self.memory, self.queries, strict=True):
            yield self.code(q) if self.s.refresh else code

    def in_scope(self, q: Tensor) -> bool:
        """Whether the nearest stored code is nearer than epsilon (2.8, strict)."""
        code = self.code(q)
        return any(distance(code, other) < self.s.epsilon for other in self.stored())

    # -- passes ------------------------------------------------------------------------------------

    def _pass(self, row: Row, on_query: Callable[[Tensor], list[Tensor] | None]) -> Tensor:
        self._key, self._on_query = row.key, on_query
        return self.model(input_ids=torch.tensor([row.ids])).logits[0]

    @torch.no_grad()
    def query(self, prompt: str) -> Tensor:
        """q [d]: the input of the sensor at the last prompt token."""
        found: list[Tensor] = []
        self._pass(self.row(prompt), found.append)
        return found[0]

    @torch.no_grad()
    def logits(self, row: Row, base: bool = False) -> Tensor:
        """Logits [T, V] under deferral; `base`: of the unedited model."""

        def decide(q: Tensor) -> list[Tensor] | None:
            return None if base or not self.in_scope(q) else self.deltas(q, self.code(q))

        return self._pass(row, decide)

    def distances(self, prompt: str) -> list[int]:
        """From a prompt's code to each stored one."""
        code = self.code(self.query(prompt))
        return [distance(code, other) for other in self.stored()]

    def greedy(self, prompt: str, tokens: int) -> list[int]:
        """Greedy ids; the route of the prompt holds throughout (2.9)."""
        start = self.row(prompt)
        ids = list(start.ids)
        for _ in range(tokens):
            ids.append(int(self.logits(Row(ids, start.key, []))[-1].argmax()))
        return ids[len(start.ids) :]

    # -- editing -----------------------------------------------------------------------------------

    def losses(self, batch: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor, list[Code]]:
        """L_total, L_model, the auxiliary loss, and the own top-k code of each sample."""
        likelihoods, log_s, own, wanted = [], [], [], []
        for prompt, answer in batch:
            row, preset = self.row(prompt, answer), self.allocation(answer)

            def decide(q: Tensor, preset: Code = preset) -> list[Tensor]:
                log_s.append(self.log_s(q))
                own.append(self.code(q))
                return self.deltas(q, own[-1] if self.s.routing == "own" else preset)

            logits = self._pass(row, decide)
            wanted.append(preset)
            likelihoods += [
                torch.log_softmax(logits[row.key + i], dim=-1)[label]
                for i, label in enumerate(row.answer)
            ]
        model = -sum(likelihoods) / len(likelihoods)
        chosen = own if self.s.routing == "own" else wanted
        auxiliary = {
            "guided": lambda: guided(log_s, wanted),
            "balancing": lambda: balancing(log_s, chosen),
            "none": lambda: torch.zeros((), dtype=torch.float64),
        }[self.s.auxiliary]()
        return model + self.s.lam * auxiliary, model, auxiliary, own

    def gradients(self, batch: Sequence[Pair]) -> tuple[float, list[Tensor | None], list[Code]]:
        """L_total, its gradient at every parameter, and the own codes."""
        tensors = [t.requires_grad_() for t in self.pool.tensors()]
        total, _, _, own = self.losses(batch)
        return (
            float(total.detach()),
            list(torch.autograd.grad(total, tensors, allow_unused=True)),
            own,
        )

    def edit(self, batch: Sequence[Pair]) -> list[float]:
        """One batch (2.7): L_total of each step; codes are stored before the last update."""
        adam, history = Adam(self.pool.tensors()), []
        for step in range(self.s.steps):
            loss, gradients, own = self.gradients(batch)
            if step == self.s.steps - 1:
                self.memory += own
            history.append(loss)
            adam.step(gradients, self.s.lr * 0.5 ** (step // (self.s.halve_every or math.inf)))
        self.queries += [self.query(prompt) for prompt, _ in batch]
        return history
