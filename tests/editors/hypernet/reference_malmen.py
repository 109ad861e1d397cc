"""MALMEN and MEND, slow and plain, in float64: the oracle of the parity tests.

Written from the study's notes on MALMEN alone (section numbers are theirs); it shares no code with
`lib.editors`. Every row passes the model by itself and without padding, weights are swapped by
`functional_call`, and one autograd graph reaches from the hyper-network's parameters through the
solve and the edited model to the meta-loss: nothing is decoupled.

    reference = Reference(backbone, networks, Settings(batch_rows=4))
    reference.shifts(facts)                   # {path: S [d, d']}, input-major
    reference.meta_losses(facts)              # L_gen, L_loc; differentiable
    reference.step(facts)                     # one clipped step of Adam

This file: rows, passes, losses and the meta-step; the network is in `reference_hypernetwork`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib.backbones.backbone import Backbone
from lib.data.records import Edit
from tests.editors.hypernet.reference_hypernetwork import Network, ridge_shift, summed_shift, wanted

IGNORED = -100
Pair = tuple[str, str]


class Row(NamedTuple):
    """Token ids of one prompt and answer (2.7); a label at each position whose logits count."""

    ids: list[int]
    decoder: list[int] | None
    labels: list[int]


@dataclass(frozen=True)
class Settings:
    """Names of section 3. `solve`: "learned" ridge, "fixed" (1), "none" (minimum norm), "sum"."""

    batch_rows: int = 32
    tokens: str = "answer"
    solve: str = "learned"
    loc_coef: float = 1.0
    meta_lr: float = 1e-5
    max_norm: float = 1.0


class Passes:
    """A float64 copy of the backbone: rows, logits with any weights, keys and gradients."""

    def __init__(self, backbone: Backbone, paths: Sequence[str]) -> None:
        self.bb, self.paths = backbone, tuple(paths)
        self.kind = backbone.family.kind
        self.model = copy.deepcopy(backbone.model).double()
        self.modules = {path: self.model.get_submodule(path) for path in paths}
        self.original = {path: self.turn(path, m.weight.detach().clone())
                         for path, m in self.modules.items()}  # fmt: skip

    def turn(self, path: str, weight: Tensor) -> Tensor:
        """A stored weight as input-major, or back."""
        return weight.T if isinstance(self.modules[path], nn.Linear) else weight

    def row(self, prompt: str, answer: str) -> Row:
        """2.7, with this study's document prefix before the prompt."""
        tokenizer = self.bb.tokenizer
        p = tokenizer(self.bb.prefix + prompt)["input_ids"]
        if self.kind == "classifier":
            return Row(p, None, [int(answer)])
        if self.kind == "seq2seq":
            a = tokenizer(answer)["input_ids"][:-1]
            return Row(p, [self.model.config.decoder_start_token_id, *a[:-1]], a)
        a = tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
        return Row(p + a[:-1], None, [IGNORED] * (len(p) - 1) + a)

    def logits(self, row: Row, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [labels, V] of one row under edited weights (input-major)."""
        inputs = {"input_ids": torch.tensor([row.ids])}
        if row.decoder is not None:
            inputs["decoder_input_ids"] = torch.tensor([row.decoder])
        swapped = {f"{path}.weight": self.turn(path, w) for path, w in (weights or {}).items()}
        logits = functional_call(self.model, swapped, (), inputs).logits
        if self.kind == "classifier":
            return logits
        return logits[0, [i for i, label in enumerate(row.labels) if label != IGNORED]]

    def edit_loss(self, rows: Sequence[Row], weights: dict[str, Tensor] | None = None) -> Tensor:
        """Mean negative log-likelihood over all labels of a mini-batch (2.8)."""
        total, count = torch.zeros(()), 0
        for row in rows:
            labels = [label for label in row.labels if label != IGNORED]
            likelihood = torch.log_softmax(self.logits(row, weights), dim=-1)
            total = total - sum(likelihood[i, label] for i, label in enumerate(labels))
            count += len(labels)
        return total / count

    def kl(self, rows: Sequence[Row], weights: dict[str, Tensor]) -> Tensor:
        """Mean over all label positions of KL(original || edited), in nats (2.8)."""
        terms = []
        for row in rows:
            with torch.no_grad():
                p = torch.softmax(self.logits(row), dim=-1)
            q = torch.softmax(self.logits(row, weights), dim=-1)
            terms.append((p * (p.log() - q.log())).sum(dim=-1))
        return torch.cat(terms).mean()

    def positions(self, row: Row, path: str, tokens: str) -> list[int]:
        """The cached positions of one row (2.6)."""
        if self.kind == "seq2seq":
            return list(range(len(row.ids if path.startswith("encoder") else row.decoder)))
        if tokens == "all":
            return list(range(len(row.ids)))
        if self.kind == "classifier":
            return [0]
        return [i for i, label in enumerate(row.labels) if label != IGNORED]

    def trace(self, rows: Sequence[Row], tokens: str) -> dict[str, tuple[Tensor, Tensor]]:
        """{path: (K [n, d], G [n, d'])} of one mini-batch.

        G is the gradient of its loss with respect to zeros added to the module's output.
        """
        inputs: dict[str, list[Tensor]] = {path: [] for path in self.paths}
        added: dict[str, list[Tensor]] = {path: [] for path in self.paths}

        def add_zeros(path: str):
            def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
                inputs[path].append(args[0][0].detach())
                added[path].append(torch.zeros_like(output).requires_grad_(True))
                return output + added[path][-1]

            return hook

        handles = [m.register_forward_hook(add_zeros(path)) for path, m in self.modules.items()]
        loss = self.edit_loss(rows)
        for handle in handles:
            handle.remove()
        found = {}
        for path in self.paths:
            gradients = torch.autograd.grad(loss, added[path], retain_graph=True)
            chosen = [self.positions(row, path, tokens) for row in rows]
            K = torch.cat([x[at] for x, at in zip(inputs[path], chosen, strict=True)])
            G = torch.cat([g[0, at] for g, at in zip(gradients, chosen, strict=True)])
            found[path] = K, G
        return found


class Reference(Passes):
    """The editor: `networks` hold the parameters, `trained` the state of Adam."""

    def __init__(self, backbone: Backbone, networks: Sequence[Network], settings: Settings) -> None:
        self.networks = {path: net for net in networks for path in net.paths}
        self.s = settings
        super().__init__(backbone, [path for net in networks for path in net.paths])
        self.distinct = list(networks)
        tensors = [t for net in networks for t in net.parameters().values()]
        self.adam = torch.optim.Adam(tensors, lr=settings.meta_lr)

    def mini_batches(self, pairs: Sequence[Pair]) -> list[list[Row]]:
        """Sorted by attended tokens, longest first, then cut (2.4)."""
        rows = [self.row(prompt, answer) for prompt, answer in pairs]
        rows.sort(key=lambda row: len(row.ids), reverse=True)
        return [rows[i : i + self.s.batch_rows] for i in range(0, len(rows), self.s.batch_rows)]

    def cache(self, facts: Sequence[Edit], learn: bool) -> dict[str, tuple[Tensor, Tensor]]:
        """Step 1: all token rows of each module; `learn` updates the standardisers on the way."""
        K = {path: [] for path in self.paths}
        G = {path: [] for path in self.paths}
        for rows in self.mini_batches([(fact.prompt, fact.target) for fact in facts]):
            for path, (keys, gradients) in self.trace(rows, self.s.tokens).items():
                if learn:
                    self.networks[path].standardiser.update(torch.cat([keys, gradients], dim=1))
                K[path].append(keys)
                G[path].append(gradients)
        return {path: (torch.cat(K[path]), torch.cat(G[path])) for path in self.paths}

    def shift(self, path: str, K: Tensor, G: Tensor) -> Tensor:
        """Step 2 for one module: S [d, d'], differentiable in the network's parameters."""
        net = self.networks[path]
        module = net.paths.index(path)
        eta, (K_, G_) = net.eta[module], net.pseudo(K, G, module)
        if self.s.solve == "sum":
            return summed_shift(eta, K_, G_)
        D = wanted(eta, K, K_, G_)
        if self.s.solve == "none":
            return torch.linalg.pinv(K) @ D
        return ridge_shift(K, D, net.alpha[module].exp() if self.s.solve == "learned" else 1.0)

    def shifts(self, facts: Sequence[Edit], learn: bool = False) -> dict[str, Tensor]:
        """Steps 1 and 2."""
        rows = self.cache(facts, learn)
        return {path: self.shift(path, K, G) for path, (K, G) in rows.items()}

    def meta_losses(self, facts: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        """L_gen and L_loc of one meta-step, statistics included."""
        shifts = self.shifts(facts, learn=True)
        return self.losses(facts, {path: self.original[path] + S for path, S in shifts.items()})

    def losses(self, facts: Sequence[Edit], weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """L_gen and L_loc (2.2): sums over mini-batches."""
        rephrased = self.mini_batches([(fact.rephrases[0], fact.target) for fact in facts])
        probes = [fact.locality[0] for fact in facts]
        unrelated = self.mini_batches([(probe.prompt, probe.target) for probe in probes])
        generality = sum(self.edit_loss(rows, weights) for rows in rephrased)
        return generality, sum(self.kl(rows, weights) for rows in unrelated)

    def gradients(self, facts: Sequence[Edit]) -> list[dict[str, Tensor]]:
        """dL_meta/d(every parameter), one dictionary per network; zeros where none is used."""
        generality, locality = self.meta_losses(facts)
        named = [net.parameters() for net in self.distinct]
        tensors = [tensor for one in named for tensor in one.values()]
        loss = generality + self.s.loc_coef * locality
        found = iter(torch.autograd.grad(loss, tensors, allow_unused=True))
        return [
            {k: torch.zeros_like(v) if (g := next(found)) is None else g for k, v in one.items()}
            for one in named
        ]

    def step(self, facts: Sequence[Edit]) -> None:
        """Steps 6 and 7: one global norm over every parameter, then Adam."""
        found = self.gradients(facts)
        norm = torch.cat([g.flatten() for one in found for g in one.values()]).norm()
        for net, one in zip(self.distinct, found, strict=True):
            for name, parameter in net.parameters().items():
                parameter.grad = one[name] * min(1.0, self.s.max_norm / float(norm))
        self.adam.step()

    def accuracy(self, pairs: Sequence[Pair], weights: dict[str, Tensor] | None = None) -> float:
        """Mean over examples of the share of answer tokens that are the argmax (section 5)."""
        shares = []
        for prompt, answer in pairs:
            row = self.row(prompt, answer)
            labels = torch.tensor([label for label in row.labels if label != IGNORED])
            right = self.logits(row, weights).argmax(dim=-1) == labels
            shares.append(right.double().mean())
        return float(torch.stack(shares).mean())
