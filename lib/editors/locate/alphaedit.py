"""AlphaEdit: MEMIT's step in what the statistics leave free (Fang et al., ICLR 2025).

    M = E[k k^T] = U diag(s) U^T        N = the columns of U with a small s        P = N N^T
    Delta = argmin |Delta K - R|^2 + |Delta K_p|^2 + lambda_2 |Delta|^2   over   Delta = Delta P
          = R X^T,   X = (C + K~ K~^T)^-1 K~,   K~ = P K,   C = lambda_2 I + sum of earlier K~ K~^T

So it is MEMIT with projected keys, lambda M replaced by lambda_2 I, and the keys of earlier batches
at weight one. Written from the study's notes on the official code (alphaedit 2), which solves the
same system as [P (K K^T + K_p K_p^T) + lambda_2 I]^-1 P K in float32; here all of it is float64.
MEMIT with the same memory and no projection is `Memit` with `history="one"`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.data.corpus import Corpus
from lib.data.records import Stream
from lib.editors.base import KeysOf
from lib.editors.locate.memit import History, Memit, MemitConfig
from lib.editors.locate.solve import KeyMemory
from lib.editors.locate.subjects import SubjectPasses
from lib.errors import EditorError
from lib.storage.cache import Cache

Cut = Literal["absolute", "energy"]


@dataclass(frozen=True)
class AlphaEditConfig(MemitConfig):
    """Defaults: the official code's for GPT2-XL. `moment_weight` is lambda_2 (`L2` there); with
    `history` "none" earlier keys are forgotten.

    `cut` "absolute" keeps the directions whose second moment is below `threshold`; "energy" the
    weakest ones that together carry that share of it (1: all, and P is the identity), which means
    the same in every block.
    """

    moment_weight: float = 10.0
    history: History = "one"
    cut: Cut = "absolute"
    threshold: float = 2e-2


def projector(moment: Tensor, cut: Cut, threshold: float) -> Tensor:
    """P [f, f] (float64) onto the kept eigenvectors of a second moment M [f, f]. EditorError if
    none is kept."""
    values, vectors = torch.linalg.eigh(moment.double())  # ascending
    if cut == "absolute":
        kept = values < threshold
    else:
        energy = values.cumsum(dim=0)
        kept = energy <= threshold * energy[-1]
    basis = vectors[:, kept]
    if not basis.shape[1]:
        raise EditorError(
            f"AlphaEdit: no direction of the keys is below the {cut} threshold {threshold:g} (the "
            f'smallest second moment is {values[0]:.2g}); raise it, or use cut="energy"'
        )
    return basis @ basis.T


class AlphaEdit(Memit):
    """State: as MEMIT's; C holds projected keys. P follows from the statistics."""

    name = "AlphaEdit"
    config: AlphaEditConfig

    def __init__(
        self,
        backbone: Backbone,
        config: AlphaEditConfig,
        *,
        corpus: Corpus | None = None,
        values_cache: Cache | None = None,
    ) -> None:
        super().__init__(backbone, config, corpus=corpus, values_cache=values_cache)
        self.projectors: dict[int, Tensor] = {}

    def prepare(self, *, memory: bool = False) -> None:
        """As `LocateEditor.prepare`; with `memory` P of each block, and C = lambda_2 I."""
        super().prepare()
        if memory and not self.memory:
            config = self.config
            for block, moment in self.moments().items():
                self.projectors[block] = projector(moment, config.cut, config.threshold)
                unit = torch.eye(len(moment), device=moment.device)
                self.memory[block] = KeyMemory(unit, config.moment_weight, config.solver)

    def mean_keys(self, passes: SubjectPasses, block: int, count: int) -> Tensor:
        """K~ = P K [f, B]."""
        keys = super().mean_keys(passes, block, count)
        return self.projectors[block].to(keys.device) @ keys

    def observe(self, stream: Stream, keys: KeysOf | None = None) -> Iterator[dict[str, Any]]:
        """Of each block, how many of the keys' directions are kept, and what share of the text's
        second moment they carry."""
        for block, moment in self.moments().items():
            projected = self.projectors[block]
            energy = (projected * moment.double()).sum() / moment.double().trace()
            yield {
                "kind": "directions",
                "block": block,
                "kept": round(float(projected.trace())),
                "width": len(projected),
                "energy": float(energy),
            }
