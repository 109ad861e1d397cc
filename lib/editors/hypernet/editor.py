"""What editors with a hyper-network share: facts as rows, shifts in force, saving, the network."""

import contextlib
import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
from lib.editors.hypernet.network import HyperNetworks, Standardise, TrainedNetwork
from lib.editors.hypernet.ridge import Solve
from lib.editors.hypernet.unedited import UneditedFacts
from lib.editors.parts.sites import Site, first_block
from lib.editors.parts.weights import EditedWeights
from lib.errors import EditorError
from lib.storage.cache import Cache


@dataclass(frozen=True)
class HyperConfig(EditorConfig):
    """Defaults: the paper's table and the official configurations (malmen 3).

    `batch_rows` facts make a mini-batch of the language model (it scales the gradients that the
    network reads, so it is part of the method), `editor_rows` rows one of the network (memory
    only). `train_m`: edits at once in meta-training, None: the stream's batch size; a training set
    smaller than that is used whole. `validate_every` counts meta-steps (0: first and last only).
    `loss_after`: one more pass after each edit says the loss then (else it is NaN in the report).
    """

    sites: tuple[Site, ...] = ()
    rank: int = 1920
    n_blocks: int = 2
    eta: float = 1e-6
    meta_lr: float = 1e-5
    loc_coef: float = 1.0
    max_grad_norm: float = 1.0
    epochs: int = 1
    batch_rows: int = 32
    editor_rows: int = 1024
    tokens: Tokens = "answer"
    standardise: Standardise = "released"
    zero_init: bool = True
    train_m: int | None = None
    validate_every: int = 0
    loss_after: bool = False


@dataclass(frozen=True)
class MetaLosses:
    """L_gen and L_loc of one meta-step: means over its mini-batches (for the record; the gradients
    are of the sums)."""

    generality: float
    locality: float


class HyperEditor(Editor):
    """Edits by shifts of the weights of `sites` that a trained hyper-network predicts.

    Subclasses say how rows become a shift.
    """

    needs = ("training", "networks_cache", "kept")
    in_weights = True
    config: HyperConfig

    def __init__(
        self,
        backbone: Backbone,
        config: HyperConfig,
        training: TrainingFacts | None = None,
        networks_cache: Cache | None = None,
        kept: Kept | None = None,
    ) -> None:
        super().__init__(backbone, config)
        if not config.sites:
            raise EditorError(f"{self.name} needs the layers to edit: give sites")
        self.training, self.networks_cache = training, networks_cache
        self.sites = config.sites
        self.paths = tuple(site.path(backbone) for site in self.sites)
        self.prefix = FrozenPrefix(backbone, first_block(backbone, self.sites))
        self.weights = EditedWeights(backbone, self.paths)
        self.memory = Kept() if kept is None else kept
        facts = training.content if training else ""
        self.passes = FactPasses(self.prefix, config.max_length, self.memory, facts)
        self.known = UneditedFacts(backbone, self.sites, config.tokens, self.passes, facts)
        self._shifts: dict[str, Tensor] = {}
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

    @abstractmethod
    def shift(self, path: str, store: RowStore) -> tuple[Tensor, Solve | None]:
        """The shift S [d, d'] of one layer from all its rows, and the solve that gave it, if there
        was one."""

    def chunks(self, store: RowStore, path: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows of one layer, `editor_rows` at a time."""
        return store.chunks(path, self.config.editor_rows)

    def cache(
        self, batches: Sequence[MiniBatch], *, learn: bool = False, unedited: bool = False
    ) -> tuple[RowStore, list[float]]:
        """Rows of all layers over some mini-batches, and the losses of the passes that this took.
        `learn` takes them into the network's running statistics, mini-batch by mini-batch (malmen
        2.3). `unedited`: the backbone's own weights are in force, and what is kept of them serves.
        """
        store, losses = RowStore(self.memory), []
        for batch in batches:
            found = self.known.rows(batch.pairs) if unedited else None
            if found is None:
                traced = trace(
                    self.backbone, batch.rows, self.sites, self.config.tokens, self.prefix,
                    batch.state,
                )  # fmt: skip
                losses.append(traced.loss)
                found = traced.rows
            for path, rows in found.items():
                if learn:
                    net, _ = self.network.of(path)
                    net.standardiser.update(torch.cat([precise(part) for part in rows], dim=1))
                store.append(path, *rows)
        return store, losses

    @torch.no_grad()
    def predict(self, store: RowStore) -> dict[str, Tensor]:
        """The shift of every layer; each solve is let go before the next."""
        return {path: self.shift(path, store)[0] for path in self.paths}

    def shifts_of(self, batch: Sequence[Edit]) -> dict[str, Tensor]:
        """The shifts [d, d'] that a batch of edits asks for, on the backbone's own weights."""
        store, _ = self.cache(self._batches(edit_pairs(batch)), unedited=True)
        try:
            return self.predict(store)
        finally:
            store.close()

    def edit_batches(self, batch: Sequence[Edit]) -> Sequence[MiniBatch]:
        """The mini-batches of a batch's edit prompts, their frozen blocks run once."""
        pairs = edit_pairs(batch)
        passes = passes_of_batch(self.prefix, pairs, self.config.max_length, self.memory)
        return passes.mini_batches(pairs, self.config.batch_rows)

    def _batches(self, pairs: Sequence[Pair]) -> Sequence[MiniBatch]:
        return self.passes.mini_batches(pairs, self.config.batch_rows)

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        if self._network is None:
            self._m = self._m or len(batch)
        _ = self.network
        began = time.perf_counter()
        batches = self.edit_batches(batch)
        store, losses = self.cache(batches)
        shifts = self.predict(store)
        counted = {"rows": float(sum(store.rows(path) for path in self.paths))}
        store.close()
        for path, shift in shifts.items():
            self._shifts[path] = self._shifts[path] + shift if path in self._shifts else shift
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
        """The trained network stays: it belongs to no edit."""
        self.weights.restore()
        self._shifts = {}

    # -- state -----------------------------------------------------------------------------------

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The shifts in force, input-major, in the network's precision."""
        return {"shifts": self._shifts} if self._shifts else {}

    def extra(self) -> dict[str, Any]:
        """For how many edits at once the network was trained."""
        return {"m": self._m}

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        saved = tensors.get("shifts", {})
        if saved and set(saved) != set(self.paths):
            raise EditorError(f"the saved edits change other layers than {', '.join(self.paths)}")
        self._train_for(extra["m"])
        self._shifts = {path: shift.to(self.backbone.device) for path, shift in saved.items()}
        self.weights.write(self._shifts)

    def counts(self) -> dict[str, float]:
        """Weights that the shifts change; the network's parameters are kept beside them."""
        shapes = [self.weights.shape(path) for path in self.paths]
        kept = self._network.size() if self._network is not None else 0
        return {"parameters": sum(d * width for d, width in shapes), "stored_floats": kept}
