"""UltraEdit (Gu, Huang, J.-C. Gu, Zhang; TMLR 2026): lifelong editing without training.

Symbols as in `malmen`: for one edited layer the rows K [n, d] and G [n, d'], here (K^, G^) once
standardised by statistics that run over all batches; D [n, d'] wanted output changes; S [d, d'].
What an untrained network of MALMEN's frame gives is (K^, G^): but for k^ in place of k, and a fixed
lambda, this is RLEdit before its training (rledit_ultraedit 0).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.passes.kept import Kept
from lib.backbones.passes.logits import precise
from lib.data.records import Edit, Stream
from lib.editors.base import EditReport, KeysOf
from lib.editors.hypernet.capture import RowStore
from lib.editors.hypernet.editor import GradientConfig, GradientEditor
from lib.editors.hypernet.network import Standardiser, shape_name
from lib.editors.hypernet.ridge import Ridge, Solve, wanted_outputs
from lib.errors import EditorError


@dataclass(frozen=True)
class UltraEditConfig(GradientConfig):
    """Defaults: the official configurations (rledit_ultraedit 3).

    `eta`, one for all layers, acts in proportion to their width and does not carry over to another
    model. `normalise`: the statistics run over all batches ("lifelong"), or begin anew with each.
    """

    eta: float = 1e-6
    ridge: float = 1.0
    batch_rows: int = 10
    normalise: Literal["lifelong", "batch"] = "lifelong"


def wanted_by_rows(
    eta: float, keys: Tensor, gradients: Tensor, standardiser: Standardiser
) -> Tensor:
    """D [n, d'], d_j = -eta (k^_j . k^_j) g^_j: what the standardised rows ask for themselves."""
    rows = standardiser(torch.cat([keys, gradients], dim=1))
    k, g = rows.split([keys.shape[1], gradients.shape[1]], dim=1)
    return wanted_outputs(eta, k, k, g)


class UltraEdit(GradientEditor):
    """One shift per layer and batch that best gives every row the output change that it asks for
    once it is standardised. Nothing is learned before, and nothing is kept of a batch but the shift
    and the statistics."""

    name = "UltraEdit"
    needs = ("kept",)
    lifelong = True
    config: UltraEditConfig

    def __init__(
        self, backbone: Backbone, config: UltraEditConfig, kept: Kept | None = None
    ) -> None:
        super().__init__(backbone, config, kept)
        shapes = {self.weights.shape(path) for path in self.paths}
        self._standardisers = nn.ModuleDict(
            {shape_name(shape): Standardiser(sum(shape), config.standardise) for shape in shapes}
        ).to(backbone.device)
        if backbone.dtype == torch.float64:
            self._standardisers.double()

    def standardisers(self) -> nn.ModuleDict:
        """See `GradientEditor.standardisers`: empty."""
        return self._standardisers

    def shift(self, path: str, store: RowStore) -> tuple[Tensor, Solve | None]:
        """S = (K^T K + lambda I)^-1 K^T D, of the keys as they are."""
        n, config, standardiser = store.rows(path), self.config, self.standardiser(path)
        if n < 2 and not self._statistics:
            raise EditorError(
                f"{self.name} standardises its first rows by each other, and an answer of one "
                "token is a single row: edit two facts or more at once first"
            )
        rows = (
            (keys, wanted_by_rows(config.eta, keys, gradients, standardiser))
            for keys, gradients in self.chunks(store, path)
        )
        solve = Ridge(rows, (n, self.weights.shape(path)[0]), config.ridge)
        return solve.shift, solve

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        if self.config.normalise == "batch":
            self._statistics = {}
        return super()._edit(batch)

    def observe(self, stream: Stream, keys: KeysOf | None = None) -> Iterator[dict[str, Any]]:
        """How far each layer has moved: the norm of its shift beside that of its weight."""
        with self.weights.originals():
            for path, shift in self._shifts.items():
                weight = precise(self.weights.modules[path].weight)
                norms = {"shift_norm": shift.norm().item(), "weight_norm": weight.norm().item()}
                yield {"kind": "module", "path": path, "edits": self.n_edits} | norms
