"""ROME: one fact at a time as a rank-one change of one MLP output matrix (Meng et al., 2022).

EasyEdit's form (ref 8): k* is the mean key over context texts, u = k* / ||k*|| without the key
covariance (`moment_adjustment` brings it back: u = C^-1 k*, normalised), v* the searched output of
the MLP, and W <- W + (v* - W k) u^T / (u^T k) for the key k of the bare prompt. `Wilke` is ROME at
the block where an edit changes least (Hu et al., 2024; elder 7).
"""

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.linalg import matrix_norm

from lib.backbones.backbone import Backbone
from lib.data.records import Edit
from lib.editors.base import EditReport
from lib.editors.locate.editor import LocateConfig, LocateEditor
from lib.editors.locate.solve import factor
from lib.editors.locate.subjects import Request
from lib.editors.locate.values import Found, together
from lib.editors.parts.weights import oriented
from lib.errors import EditorError


@dataclass(frozen=True)
class RomeConfig(LocateConfig):
    """Defaults: EasyEdit's for GPT2-XL (block 17, clamp 4, ten contexts of 5 and ten of 10)."""

    blocks: tuple[int, ...] = (17,)
    value_clamp: float = 4.0
    contexts: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
    moment_adjustment: bool = False


@dataclass(frozen=True)
class RankOne:
    """A change `right` [d] `left` [f]^T of the MLP output matrix of `block`, float64, and the value
    search behind it. ||left|| = 1, so ||right|| is the norm of the change."""

    block: int
    right: Tensor
    left: Tensor
    found: Found


class RankOneEditor(LocateEditor):
    """ROME's update of one request, at whichever block a subclass chooses.

    State: the weights that were edited. Requests of a batch are applied one after the other.
    """

    in_weights = True
    config: RomeConfig

    def __init__(self, backbone: Backbone, config: RomeConfig, **resources: Any) -> None:
        super().__init__(backbone, config, **resources)
        self.originals: dict[int, Tensor] = {}  # of the blocks that were edited
        self.chosen: list[int] = []  # the block of every edit
        self._factors: dict[int, Tensor] = {}

    @abstractmethod
    def choose(self, updates: Sequence[RankOne]) -> RankOne:
        """The update to apply, of one for each block of the configuration."""

    def prepare(self, *, memory: bool = False) -> None:
        """See `LocateEditor.prepare`; statistics serve the adjustment alone. Their Cholesky factors
        are computed in float64 and kept like the statistics, in float32."""
        super().prepare()
        if self.config.moment_adjustment and not self._factors:
            device = self.backbone.device
            for block, moment in self.moments().items():
                lower = factor(moment.to(device, torch.float64))
                self._factors[block] = lower.to(moment)

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        self.prepare()
        applied, began = [], time.perf_counter()
        known, undo = dict(self.originals), {}
        try:
            for number, request in enumerate(self.requests(batch)):
                unedited = self.n_batches + number == 0
                update = self.choose(self.updates(request, unedited=unedited))
                undo.setdefault(update.block, self._weight(update.block).clone())
                self._apply(update)
                applied.append(update)
        except BaseException:
            self._put(undo)
            self.originals = known
            raise
        self.chosen += [update.block for update in applied]
        report = self.report(together([update.found for update in applied], self.backbone.device))
        return replace(report, seconds=time.perf_counter() - began)

    def updates(self, request: Request, *, unedited: bool) -> list[RankOne]:
        """The update of one request at each block, from the lowest up, under the weights in force;
        nothing is changed. `unedited`: no edit is in force."""
        written = self.passes([request], ("", *self.contexts))
        bare = self.passes([request], ("",))
        made = []
        for block in self.blocks:
            found = self.find_values([request], "mlp_out", block=block, unedited=unedited)
            for passes in (written, bare):
                passes.settle(block)
            left = written.read("mlp_out", block, of_input=True).mean(dim=0)
            if self.config.moment_adjustment:
                lower = self._factors[block].to(left.device).double()
                left = torch.cholesky_solve(left[:, None], lower)[:, 0]
            left = left / left.norm()
            key = bare.read("mlp_out", block, of_input=True)[0]
            output = bare.read("mlp_out", block)[0]
            right = (found.values[0].double() - output) / (left @ key)
            made.append(RankOne(block, right, left, found))
        return made

    @torch.no_grad()
    def _apply(self, update: RankOne) -> None:
        module, weight = self.modules[update.block], self._weight(update.block)
        self.originals.setdefault(update.block, weight.clone())
        change = oriented(module, torch.outer(update.right, update.left))
        weight.copy_((weight.double() + change).to(weight))

    def _weight(self, block: int) -> Tensor:
        return self.modules[block].weight.detach()

    def _put(self, weights: dict[int, Tensor]) -> None:
        for block, weight in weights.items():
            self._weight(block).copy_(weight)

    def _rollback(self) -> None:
        self._put(self.originals)
        self.originals, self.chosen = {}, []

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The edited weights."""
        blocks = sorted(self.originals)
        return {"weights": {self.backbone.path("mlp_out", b): self._weight(b) for b in blocks}}

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        paths = {self.backbone.path("mlp_out", block): block for block in self.blocks}
        weights = tensors["weights"]
        if not set(weights) <= set(paths):
            raise EditorError(f"the saved edits change other weights than {', '.join(paths)}")
        self.restore_contexts(extra)
        self.chosen = list(extra["chosen"])
        if self.n_batches:  # before a weight is edited: statistics may have to be collected
            self.prepare()
        self.originals = {paths[path]: self._weight(paths[path]).clone() for path in weights}
        self._put({paths[path]: weight for path, weight in weights.items()})

    def extra(self) -> dict[str, Any]:
        """The context texts, and the block of every edit."""
        return super().extra() | {"chosen": self.chosen}

    def counts(self) -> dict[str, float]:
        """The weights that changed; nothing is kept beside them."""
        return {"parameters": sum(w.numel() for w in self.originals.values()), "stored_floats": 0}


class Rome(RankOneEditor):
    """The same block for every edit."""

    name = "ROME"

    def __init__(self, backbone: Backbone, config: RomeConfig, **resources: Any) -> None:
        super().__init__(backbone, config, **resources)
        if len(config.blocks) != 1:
            raise EditorError(f"ROME edits one block, not {len(config.blocks)}: {config.blocks}")
        (self.block,) = self.blocks

    def choose(self, updates: Sequence[RankOne]) -> RankOne:
        """The only one."""
        (update,) = updates
        return update


@dataclass(frozen=True)
class WilkeConfig(RomeConfig):
    """Defaults: the official ones for GPT2-XL, blocks 0 to 23 (GPT-J: 0 to 6), with the second
    moment; all else as ROME."""

    blocks: tuple[int, ...] = tuple(range(24))
    moment_adjustment: bool = True


class Wilke(RankOneEditor):
    """State: the weights that were edited, and how often each block was chosen."""

    name = "WilKE"
    config: WilkeConfig

    def choose(self, updates: Sequence[RankOne]) -> RankOne:
        """The update that is smallest against its weight; of equals the lowest block's."""
        return min(updates, key=self.share)

    def share(self, update: RankOne) -> float:
        """||dW||_F / ||W||_F of an update."""
        weight = self.modules[update.block].weight.detach()
        return float(update.right.norm() / matrix_norm(weight.double()))

    def counts(self) -> dict[str, float]:
        """The weights that changed, and the number of edits at each block ("block 5")."""
        times = Counter(self.chosen)
        return super().counts() | {f"block {block}": times[block] for block in sorted(times)}
