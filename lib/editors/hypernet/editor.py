"""Editors that read keys and gradients of a batch of facts and shift weights by them.

`GradientEditor`: facts as rows, statistics of the rows, shifts in force, saving. `HyperEditor`: the
same with a hyper-network that is trained before.
"""

import contextlib
import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.passes.fact_passes import (
    FactPasses,
    MiniBatch,
    Pair,
    edit_pairs,
    passes_of_batch,
)
from lib.backbones.passes.kept import Kept
from lib.backbones.passes.logits import edit_loss, label_logits, precise
from lib.backbones.passes.prefix import FrozenPrefix
from lib.data.records import Edit, Stream
from lib.data.training import TrainingFacts
from lib.editors.base import Editor, EditorConfig, EditReport
from lib.editors.hypernet.capture import GraphMemory, RowStore, Tokens, trace
from lib.editors.hypernet.network import (
    HyperNetworks,
    Standardise,
    Standardiser,
    TrainedNetwork,
    shape_name,
)
from lib.editors.hypernet.ridge import Solve
from lib.editors.hypernet.unedited import UneditedFacts
from lib.editors.parts.sites import Site, first_block
from lib.editors.parts.weights import EditedWeights
from lib.errors import EditorError
from lib.storage.cache import Cache

Shifts = dict[str, Tensor]
"""Changes [d, d'] of the weights of some layers, by module path."""


def summed(shifts: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> Shifts:
    """The shifts of two rounds together, layer by layer."""
    both = {path: shifts[path] + new for path, new in more.items() if path in shifts}
    return {**shifts, **more, **both}


@dataclass(frozen=True)
class GradientConfig(EditorConfig):
    """Common to all editors here. `batch_rows` facts make a mini-batch of the language model (it
    scales the gradients that are read, so it is part of the method), `editor_rows` rows one of the
    editor (memory only). `loss_after`: one more pass after each edit says the loss then (else it is
    NaN in the report).
    """

    sites: tuple[Site, ...] = ()
    batch_rows: int = 32
    editor_rows: int = 1024
    tokens: Tokens = "answer"
    standardise: Standardise = "released"
    loss_after: bool = False


class GradientEditor(Editor):
    """Edits by shifts of the weights of `sites`, each batch's on top of those before.

    Subclasses say how rows become a shift, and give the standardisers of the rows. Where these
    learn from edits (`lifelong`), what they learned is part of the edits: saved, and forgotten by
    `rollback`.
    """

    in_weights = True
    lifelong: ClassVar[bool] = False
    config: GradientConfig

    def __init__(
        self, backbone: Backbone, config: GradientConfig, kept: Kept | None = None
    ) -> None:
        super().__init__(backbone, config)
        if not config.sites:
            raise EditorError(f"{self.name} needs the layers to edit: give sites")
        self.sites = config.sites
        self.paths = tuple(site.path(backbone) for site in self.sites)
        self.prefix = FrozenPrefix(backbone, first_block(backbone, self.sites))
        self.weights = EditedWeights(backbone, self.paths)
        self.memory = Kept() if kept is None else kept
        self._shifts: Shifts = {}
        self._statistics: dict[str, Tensor] = {}  # after the last batch, if `lifelong`

    # -- rows and statistics ---------------------------------------------------------------------

    @abstractmethod
    def standardisers(self) -> nn.ModuleDict:
        """The statistics of the rows by weight shape (`shape_name`), as before any edit."""

    def standardiser(self, path: str) -> Standardiser:
        """The statistics of a layer's rows, which all layers of its shape share."""
        return self.standardisers()[shape_name(self.weights.shape(path))]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The statistics go on inside the context from where the last batch of edits left them;
        after it they are what they were before."""
        standardisers = self.standardisers()
        before = _copied(standardisers)
        standardisers.load_state_dict(self._statistics or before)
        try:
            yield
            self._statistics = _copied(standardisers)
        finally:
            standardisers.load_state_dict(before)

    def kept_rows(self, pairs: Sequence[Pair]) -> dict[str, tuple[Tensor, Tensor]] | None:
        """What is known of a mini-batch's rows on the backbone's own weights; None: nothing."""
        return None

    def cache(
        self, batches: Sequence[MiniBatch], *, learn: bool = False, unedited: bool = False
    ) -> tuple[RowStore, list[float]]:
        """Rows of all layers over some mini-batches, and the losses of the passes that this took.
        `learn` takes them into the statistics, mini-batch by mini-batch (malmen 2.3). `unedited`:
        the backbone's own weights are in force, and what is kept of them serves.
        """
        store, losses = RowStore(self.memory), []
        for batch in batches:
            found = self.kept_rows(batch.pairs) if unedited else None
            if found is None:
                traced = trace(
                    self.backbone, batch.rows, self.sites, self.config.tokens, self.prefix,
                    batch.state,
                )  # fmt: skip
                losses.append(traced.loss)
                found = traced.rows
            for path, rows in found.items():
                if learn:
                    both = torch.cat([precise(part) for part in rows], dim=1)
                    self.standardiser(path).update(both)
                store.append(path, *rows)
        return store, losses

    def chunks(self, store: RowStore, path: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows of one layer, `editor_rows` at a time."""
        return store.chunks(path, self.config.editor_rows)

    def edit_batches(self, batch: Sequence[Edit]) -> Sequence[MiniBatch]:
        """The mini-batches of a batch's edit prompts, their frozen blocks run once."""
        pairs = edit_pairs(batch)
        passes = passes_of_batch(self.prefix, pairs, self.config.max_length, self.memory)
        return passes.mini_batches(pairs, self.config.batch_rows)

    # -- one batch of edits ----------------------------------------------------------------------

    @abstractmethod
    def shift(self, path: str, store: RowStore) -> tuple[Tensor, Solve | None]:
        """The shift S [d, d'] of one layer from all its rows, and the solve that gave it, if there
        was one."""

    @torch.no_grad()
    def predict(self, store: RowStore) -> Shifts:
        """The shift of every layer; each solve is let go before the next."""
        return {path: self.shift(path, store)[0] for path in self.paths}

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        began = time.perf_counter()
        batches = self.edit_batches(batch)
        with self.running() if self.lifelong else contextlib.nullcontext():
            store, losses = self.cache(batches, learn=self.lifelong)
            shifts = self.predict(store)
        counted = {"rows": float(sum(store.rows(path) for path in self.paths))}
        store.close()
        self._shifts = summed(self._shifts, shifts)
        self.weights.write(self._shifts)
        seconds = time.perf_counter() - began
        first = sum(losses) / len(losses)
        last = self._loss(batches) if self.config.loss_after else math.nan
        return EditReport(seconds, first, last, self.counts() | counted)

    @torch.no_grad()
    def _loss(self, batches: Sequence[MiniBatch]) -> float:
        losses = []
        for batch in batches:
            with self.prefix.replay(batch.state):
                found = label_logits(self.backbone, batch.rows, labels_only=True)
                losses.append(edit_loss(*found).item())
        return sum(losses) / len(losses)

    def _rollback(self) -> None:
        """A trained network stays: it belongs to no edit."""
        self.weights.restore()
        self._shifts, self._statistics = {}, {}

    # -- state -----------------------------------------------------------------------------------

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The shifts in force, input-major, in the rows' precision; and the statistics that the
        next batch goes on from, if they learn from edits."""
        groups = {"shifts": self._shifts, "statistics": self._statistics}
        return {name: tensors for name, tensors in groups.items() if tensors}

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        saved = tensors.get("shifts", {})
        if saved and set(saved) != set(self.paths):
            raise EditorError(f"the saved edits change other layers than {', '.join(self.paths)}")
        device = self.backbone.device
        self._shifts = {path: shift.to(device) for path, shift in saved.items()}
        self._statistics = dict(tensors.get("statistics", {}))
        self.weights.write(self._shifts)

    def counts(self) -> dict[str, float]:
        """Weights that the shifts change, and numbers that are kept beside them."""
        shapes = [self.weights.shape(path) for path in self.paths]
        kept = sum(tensor.numel() for tensor in self._statistics.values())
        return {"parameters": sum(d * width for d, width in shapes), "stored_floats": kept}


def _copied(standardisers: nn.ModuleDict) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in standardisers.state_dict().items()}


@dataclass(frozen=True)
class HyperConfig(GradientConfig):
    """Defaults: the paper's table and the official configurations (malmen 3).

    `train_m`: edits at once in meta-training, None: the stream's batch size; a training set smaller
    than that is used whole. `validate_every` counts meta-steps (0: first and last only).
    """

    rank: int = 1920
    n_blocks: int = 2
    eta: float = 1e-6
    meta_lr: float = 1e-5
    loc_coef: float = 1.0
    max_grad_norm: float = 1.0
    epochs: int = 1
    zero_init: bool = True
    train_m: int | None = None
    validate_every: int = 0


@dataclass(frozen=True)
class MetaLosses:
    """L_gen and L_loc of one meta-step: means over its mini-batches (for the record; the gradients
    are of the sums)."""

    generality: float
    locality: float


class HyperEditor(GradientEditor):
    """Edits by shifts that a trained hyper-network predicts.

    Where a network is trained along a sequence of edits (`in_sequence`), a meta-step begins from
    what those before it in its epoch left.
    """

    needs = ("training", "networks_cache", "kept")
    in_sequence: ClassVar[bool] = False
    config: HyperConfig

    def __init__(
        self,
        backbone: Backbone,
        config: HyperConfig,
        training: TrainingFacts | None = None,
        networks_cache: Cache | None = None,
        kept: Kept | None = None,
    ) -> None:
        super().__init__(backbone, config, kept)
        self.training, self.networks_cache = training, networks_cache
        facts = training.content if training else ""
        self.passes = FactPasses(self.prefix, config.max_length, self.memory, facts)
        self.known = UneditedFacts(backbone, self.sites, config.tokens, self.passes, facts)
        self._network: HyperNetworks | None = None
        self._m: int | None = None
        self.trained: TrainedNetwork | None = None

    # -- the network ---------------------------------------------------------------------------

    @property
    def network(self) -> HyperNetworks:
        """The hyper-network; trained, or read from the cache, when it is first asked for."""
        if self._network is None:
            if self._m is None and self.config.train_m is None:
                raise EditorError(f"call fit with a stream first: {self.name} trains for its size")
            try:
                with self.unedited():
                    self.trained = self.train(self.config.train_m or self._m)
            finally:
                self._network = None  # half a network, if the training was interrupted
            self._network = self.trained.network
        return self._network

    @contextlib.contextmanager
    def unedited(self) -> Iterator[None]:
        """The backbone's own weights inside the context, the edits after it."""
        self.weights.restore()
        try:
            yield
        finally:
            self.weights.restore()
            self.weights.write(self._shifts)

    def new_network(self) -> HyperNetworks:
        """An untrained network for this backbone's layers, drawn from the configured seed."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = HyperNetworks(
                {path: self.weights.shape(path) for path in self.paths},
                rank=config.rank,
                blocks=config.n_blocks,
                eta=config.eta,
                standardise=config.standardise,
                zero_init=config.zero_init,
            )
        return network.to(self.backbone.device)

    def use_network(self, network: HyperNetworks) -> None:
        """Edit with this network instead of a trained one."""
        self._network = network

    def standardisers(self) -> nn.ModuleDict:
        """See `GradientEditor.standardisers`: as training left them."""
        nets = self.network.nets.items()
        return nn.ModuleDict({shape: net.standardiser for shape, net in nets})

    def kept_rows(self, pairs: Sequence[Pair]) -> dict[str, tuple[Tensor, Tensor]] | None:
        """See `GradientEditor.kept_rows`: those of training facts."""
        return self.known.rows(pairs)

    def _fit(self, stream: Stream) -> None:
        """Meta-training at the stream's number of edits at once (malmen 2.4), or its cached
        outcome. Raises EditorError without training facts."""
        self._train_for(stream.batch_size)
        _ = self.network

    def _train_for(self, m: int | None) -> None:
        """The network for m edits at once is wanted; one trained for another m is let go."""
        if self.trained is not None and self.config.train_m is None and m != self._m:
            self._network = self.trained = None
        self._m = m

    # -- one batch of edits --------------------------------------------------------------------

    @abstractmethod
    def train(self, m: int) -> TrainedNetwork:
        """The network for m edits at once, trained now or before."""

    @abstractmethod
    def meta_gradients(
        self, facts: Sequence[Edit], memory: GraphMemory | None = None
    ) -> MetaLosses:
        """Leave the meta-gradients of a meta-batch of m facts in the network's `.grad`."""

    def meta_step(
        self, facts: Sequence[Edit], optimiser: torch.optim.Optimizer, turn: int, turns: int
    ) -> MetaLosses:
        """One step of training: gradients, clipped together, and Adam. `turn` counts the
        meta-batches of an epoch from 0, which has so many `turns`."""
        losses = self.meta_gradients(facts)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        optimiser.step()
        return losses

    def shifts_of(self, batch: Sequence[Edit]) -> dict[str, Tensor]:
        """The shifts [d, d'] that a batch of edits asks for, on the backbone's own weights."""
        store, _ = self.cache(self._batches(edit_pairs(batch)), unedited=True)
        try:
            return self.predict(store)
        finally:
            store.close()

    def _batches(self, pairs: Sequence[Pair]) -> Sequence[MiniBatch]:
        return self.passes.mini_batches(pairs, self.config.batch_rows)

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        if self._network is None:
            self._m = self._m or len(batch)
        _ = self.network
        return super()._edit(batch)

    # -- state -----------------------------------------------------------------------------------

    def extra(self) -> dict[str, Any]:
        """For how many edits at once the network was trained."""
        return {"m": self._m}

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        self._train_for(extra["m"])
        super().restore(tensors, extra)

    def counts(self) -> dict[str, float]:
        """As `GradientEditor.counts`, the network's parameters among what is kept."""
        counts = super().counts()
        network = self._network.size() if self._network is not None else 0
        return counts | {"stored_floats": counts["stored_floats"] + network}
