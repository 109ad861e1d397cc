"""SERAC: edits kept as text, a scope classifier, a counterfactual model (Mitchell et al., 2022).

The base model f never changes. Each edit is a line of text z in a memory. A new input x goes to the
edit that the classifier finds most similar,

    s(z, x) = exp(-||g(z) - g(x)||^2 * scale),        g: the encoder's [CLS] state,

and, where s > 0.5, the small counterfactual model h(z, x) answers in place of f(x). Both are
trained once, before the first edit (`serac_training.py`). Written from the study's notes (elder 7)
for causal models; where these leave a choice open, the line says so.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, Encoded
from lib.backbones.passes.logits import FactRows, edit_loss, fact_rows, label_logits
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import Edit, Stream
from lib.data.training import TrainingFacts
from lib.editors.adapters.vector_index import NONE
from lib.editors.base import UNEDITED, Editor, EditReport, KeysOf
from lib.editors.memory.serac_networks import SeracConfig, SeracNetworks, edit_text, matches
from lib.editors.memory.serac_training import TrainedNetworks, told_rows, trained_networks
from lib.editors.parts.stand_in import StandIn, StandInHook
from lib.errors import EditorError
from lib.storage.cache import Cache
from lib.storage.fingerprints import content_hash


class Serac(Editor):
    """State: the edit texts and their embeddings [E, d]; edit i is what route "edit i" applies."""

    name = "SERAC"
    kinds = frozenset({"causal"})
    needs = ("training", "networks_cache")
    backbone_fields = ("classifier", "counterfactual")
    beams = False
    config: SeracConfig

    def __init__(
        self,
        backbone: Backbone,
        config: SeracConfig,
        *,
        training: TrainingFacts | None = None,
        networks_cache: Cache | None = None,
    ) -> None:
        super().__init__(backbone, config)
        self.training, self.networks_cache = training, networks_cache
        self.prefix = FrozenPrefix(backbone, 0)
        self._trained: TrainedNetworks | None = None
        self._forced: Sequence[str] | None = None
        self._forget()
        self._hook = StandInHook(backbone, self._stand_ins, at_work=self._has_edits)
        self.tracker = self._hook.tracker

    def _forget(self) -> None:
        self.texts: list[str] = []
        self.embeddings = torch.empty(0, 0)

    @property
    def trained(self) -> TrainedNetworks:
        """The networks with the record of their training; made, or read, when first asked for."""
        if self._trained is None:
            self._trained = trained_networks(
                self.backbone, self.config, self.training, self.networks_cache
            )
        return self._trained

    @property
    def networks(self) -> SeracNetworks:
        """The trained classifier and counterfactual model."""
        return self.trained.networks

    def _fit(self, stream: Stream) -> None:
        """Train both networks, or read them. EditorError without training facts."""
        _ = self.trained

    # -- scope ---------------------------------------------------------------------------------

    def keys_of(self, batch: Encoded) -> Tensor:
        """g(x): the classifier's embedding of each prompt, its answer and padding left out."""
        return self.networks.embed(self._inputs(batch))

    def keys_from(self, state: PrefixState, batch: Encoded) -> Tensor:
        """See `keys_of`: nothing of the base model is read."""
        return self.keys_of(batch)

    def _inputs(self, batch: Encoded) -> list[str]:
        columns = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        mine = batch.attention_mask.bool() & (columns <= batch.last_prompt[:, None])
        rows = [ids[own].tolist() for ids, own in zip(batch.input_ids, mine, strict=True)]
        texts = self.backbone.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [text.removeprefix(self.backbone.prefix) for text in texts]

    @torch.no_grad()
    def routes_of(self, keys: Tensor) -> list[str]:
        """ "edit 3" where edit 3 is the most similar one and near enough, else UNEDITED."""
        if not self.texts:
            return [UNEDITED] * len(keys)
        edits = matches(keys, self.embeddings, self.networks.log_scale).tolist()
        return [UNEDITED if edit == NONE else f"edit {edit}" for edit in edits]

    # -- what is applied -----------------------------------------------------------------------

    def stand_in(self, route: str) -> StandIn | None:
        """The counterfactual model, behind the route's edit."""
        if route == UNEDITED:
            return None
        return self.networks.stand_in(self.texts[int(route.split()[1])])

    def weights_of(self, route: str) -> str | None:
        """See `Editor.weights_of`: the networks and the edit's text."""
        if route == UNEDITED:
            return UNEDITED
        return content_hash([self.trained.key, self.texts[int(route.split()[1])]])

    def _stand_ins(self, batch: Encoded) -> list[StandIn | None]:
        routes = self.route(batch) if self._forced is None else self._forced
        return [self.stand_in(route) for route in routes]

    @contextlib.contextmanager
    def routed(self, batch: Encoded, routes: Sequence[str]) -> Iterator[None]:
        """See `Editor.routed`."""
        before, self._forced = self._forced, routes
        try:
            yield
        finally:
            self._forced = before

    # -- editing -------------------------------------------------------------------------------

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        networks = self.networks
        rows = fact_rows(
            self.backbone,
            [edit.prompt for edit in batch],
            [edit.target for edit in batch],
            self.config.max_length,
        )
        began = time.perf_counter()
        texts = [edit_text(edit) for edit in batch]
        embeddings = networks.embed(texts)
        self.embeddings = torch.cat([self.embeddings, embeddings]) if self.texts else embeddings
        self.texts = [*self.texts, *texts]
        seconds = time.perf_counter() - began
        before, after = self._losses(rows, self.route(rows.encoded))
        return EditReport(seconds, before, after, self.counts())

    @torch.no_grad()
    def _losses(self, rows: FactRows, routes: Sequence[str]) -> tuple[float, float]:
        """Loss of the answers under the base model, and under the given routes."""
        logits, labels = label_logits(self.backbone, rows, labels_only=True)
        before = edit_loss(logits, labels).item()
        inside = torch.tensor([row for row, route in enumerate(routes) if route != UNEDITED])
        if len(inside):
            inside = inside.to(labels.device)
            stand_ins = [self.stand_in(route) for route in routes if route != UNEDITED]
            mine = FactRows(rows.encoded.select(inside), rows.labels[inside])
            owner = (rows.labels != IGNORED).nonzero()[:, 0]
            told = label_logits(stand_ins[0].backbone, told_rows(stand_ins, mine))
            logits[torch.isin(owner, inside)] = told[0]
        return before, edit_loss(logits, labels).item()

    def observe(self, stream: Stream, keys: KeysOf | None = None) -> Iterator[dict[str, Any]]:
        """What training cost and learned, and its losses step by step."""
        yield from self.trained.rows()

    # -- state ---------------------------------------------------------------------------------

    def _rollback(self) -> None:
        """The trained networks stay: they belong to no edit."""
        self._forget()

    def _remove(self) -> None:
        self._hook.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The edits' embeddings: computed anew in other batches, they would differ by rounding."""
        return {"memory": {"embeddings": self.embeddings}} if self.texts else {}

    def extra(self) -> dict[str, Any]:
        """The edit texts, and which facts the networks were trained on: these, with backbone and
        configuration, decide the networks, so that none need be saved with the edits."""
        return {"texts": self.texts, "facts": self.training.content if self.training else ""}

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        facts = self.training.content if self.training else ""
        if extra["facts"] != facts:
            raise EditorError("the saved edits belong to networks trained on other facts")
        self.texts = list(extra["texts"])
        if self.texts:
            self.embeddings = tensors["memory"]["embeddings"].to(self.backbone.device)

    def counts(self) -> dict[str, float]:
        """TrainedNetworks parameters of both networks, and floats stored beside the edit texts."""
        trained = self._trained.networks.size() if self._trained is not None else 0
        return {"parameters": trained, "stored_floats": self.embeddings.numel()}
