"""The updates of the slow reference: COMEBA-HK, the loop without hooks, MEMIT, ROME, statistics.

Section numbers are those of the study's notes on COMEBA-HK; see `reference_locate`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from tests.editors.locate.reference_locate import (
    RECORDING,
    TEMPORARY,
    VALIDATED,
    Quantities,
    Request,
    Settings,
)


def update(C: Tensor, K: Tensor, residual: Tensor) -> Tensor:
    """Delta [d, f] for an accumulated moment C [f, f] that already holds K K^T (2.4)."""
    return residual @ torch.linalg.solve(C, K).T


def moments(
    backbone: Backbone, texts: Sequence[str], layers: Sequence[int], length: int | None = None
) -> dict[int, Tensor]:
    """M [f, f] of each layer (2.9), by a pass of its own for each layer and document.

    Documents are cut at `length` tokens. The tokens of the document prefix are read by the model,
    but not counted.
    """
    found = {}
    for layer in layers:
        model = Quantities(backbone, Settings(layers=(layer,)), [["{}"]])
        total, count = 0.0, 0
        for text in texts:
            with model.watch(layer) as seen, torch.no_grad():
                model.run([model.encode(text)[:length]])
            keys = seen["input"][0, model.n_prefix :]
            total, count = total + keys.T @ keys, count + len(keys)
        found[layer] = total / count
    return found


class Reference(Quantities):
    """The editor's state beside W and alpha: C [f, f] per layer, and what the last batch found.

    `edit` (COMEBA-HK) leaves the weights of the float64 copy alone; `edit_in_place` and
    `edit_rome` write into them.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: Settings,
        contexts: Sequence[Sequence[str]],
        moments: dict[int, Tensor],
    ) -> None:
        super().__init__(backbone, settings, contexts)
        self.M = {layer: M.double() for layer, M in moments.items()}
        self.C = {layer: settings.lam * M for layer, M in self.M.items()}
        self.history = {layer: torch.zeros_like(M) for layer, M in self.M.items()}
        self.Z: Tensor | None = None
        self.K: dict[int, Tensor] = {}
        self.current: dict[int, Tensor] = {}

    def _values(self, requests: Sequence[Request]) -> Tensor:
        """Z [d, B], one search after the other."""
        self.searches = [self.search(r, self.s.layers[-1]) for r in requests]
        self.Z = torch.stack([search.value for search in self.searches], dim=1)
        return self.Z

    def _residual(self, requests: Sequence[Request], layer: int, remaining: int) -> Tensor:
        """Keeps K and the current outputs of a layer; gives (Z - current) / remaining [d, B]."""
        self.K[layer] = self.keys(requests, layer)
        self.current[layer] = self.block_outputs(requests)
        return (self.Z - self.current[layer]) / remaining

    def edit(self, requests: Sequence[Request]) -> None:
        """One batch of COMEBA-HK (2.4)."""
        layers = self.s.layers
        with self.hooks(dict.fromkeys(layers, VALIDATED)):
            self._values(requests)
        modes = dict.fromkeys(layers, TEMPORARY)
        for i, layer in enumerate(layers):
            with self.hooks(modes):
                residual = self._residual(requests, layer, len(layers) - i)
            K = self.K[layer]
            self.C[layer] = self.C[layer] + K @ K.T
            self.W[layer] = self.W[layer] + update(self.C[layer], K, residual)
            modes[layer] = VALIDATED
        for layer, low in self.lowest(requests).items():
            self.alpha[layer] = min(low, self.alpha[layer])  # a NaN stays, as officially

    def lowest(self, requests: Sequence[Request]) -> dict[int, float]:
        """Phase 3 of 2.4: per layer the lowest of the prompts' highest z, nothing swapped."""
        layers = self.s.layers
        with self.hooks(dict.fromkeys(layers, RECORDING)) as z, torch.no_grad():
            self.run([self.encode(r.prompt) for r in requests])
        found = {}
        for layer in layers:
            rows = [z[layer][b][self.counted[b]].max().item() for b in range(len(requests))]
            found[layer] = math.nan if any(math.isnan(row) for row in rows) else min(rows)
        return found

    def edit_in_place(self, requests: Sequence[Request], history: float) -> None:
        """One batch without hooks (2.12): earlier keys count `history` (lambda, 1; MEMIT: 0)."""
        self._values(requests)
        for i, layer in enumerate(self.s.layers):
            residual = self._residual(requests, layer, len(self.s.layers) - i)
            K = self.K[layer]
            A = self.s.lam * self.M[layer] + history * self.history[layer] + K @ K.T
            self.weight(layer).add_(update(A, K, residual))
            self.history[layer] = self.history[layer] + K @ K.T

    def edit_rome(self, request: Request) -> None:
        """One rank-one update without covariance (section 8), in place, at the only layer."""
        (layer,) = self.s.layers
        rows = [self.row(context, request) for context in self.contexts]
        u = self.at_subject(rows, layer, "mlp_out", "input").mean(dim=0)
        u = u / u.norm()
        self.searches = [self.search(request, layer, "mlp_out")]
        bare = [self.row("{}", request)]
        k = self.at_subject(bare, layer, "mlp_out", "input")[0]
        now = self.at_subject(bare, layer, "mlp_out", "output")[0]
        v = (self.searches[0].value - now) / (k @ u)
        self.weight(layer).add_(torch.outer(v, u))
