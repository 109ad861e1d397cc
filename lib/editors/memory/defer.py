"""Defer: a gate and a linear map at one layer, GRACE's baseline "inspired by SERAC" (melo 7).

A row has one gate g and one value v, read off the layer's input h at one token: the first target
token of a causal row, the last token of any other.

    g = sigmoid(gate(h))      v = map(h)      (two linear layers with bias)

    training:   g v + (1 - g) output          at all positions of the row
    inference:  v where g >= 0.5, else the layer's own output

The row that MELO's Table 2 calls SERAC carries this editor's numbers from GRACE's table; the real
SERAC (`serac.py`) keeps edits as text and has a model of its own answer them. Nothing is remembered
here: each batch of edits trains the same gate and map on, from where the batch before left them.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded
from lib.backbones.passes.logits import batch_loss
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import Edit
from lib.editors.base import UNEDITED, Editor, EditorConfig, EditReport
from lib.editors.parts.minimise import minimise
from lib.editors.parts.routing import PrefillRouter
from lib.editors.parts.sites import (
    KeyPosition,
    Site,
    first_block,
    input_width,
    key_columns,
    rows_at,
)


@dataclass(frozen=True)
class DeferConfig(EditorConfig):
    """Defaults: GRACE's (its layer in T5, lr 1e-1, 100 steps). `key_position`: the token that gate
    and value are read at; `last_prompt_token` is met when a causal model answers by itself."""

    site: Site = Site("mlp_out", 4)
    lr: float = 1e-1
    steps: int = 100
    key_position: KeyPosition = "first_target_token"


class Defer(Editor):
    """State: `gate`, d_in to 1, and `map`, d_in to d_out, in float32 or better; they begin as
    linear layers do."""

    name = "Defer"
    config: DeferConfig

    def __init__(self, backbone: Backbone, config: DeferConfig) -> None:
        super().__init__(backbone, config)
        self.path = config.site.path(backbone)
        self.layer = backbone.model.get_submodule(self.path)
        self.prefix = FrozenPrefix(backbone, first_block(backbone, [config.site]))
        self._begin()
        self._router = PrefillRouter(
            backbone,
            self.path,
            on_keys=self._decide,
            at_work=self._has_edits,
            position=config.key_position,
            per_step=False,
            of_input=True,
        )
        self.tracker = self._router.tracker
        # Behind the router's hook, which decides for the pass that is running.
        self._handle = self.layer.register_forward_hook(self._place)

    def _begin(self) -> None:
        weight = self.layer.weight
        d_in = input_width(self.layer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            parts = {"gate": nn.Linear(d_in, 1), "map": nn.Linear(d_in, weight.numel() // d_in)}
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.deferral = nn.ModuleDict(parts).to(weight.device, dtype)
        self._placed: tuple[Tensor, Tensor] | None = None  # g [B] and v [B, d_out] of the rows
        self._mixes = False
        # By route, until the next edit; an unedited row's is not placed.
        self._values = {UNEDITED: torch.zeros_like(self.deferral["map"].bias)}

    # -- the rule ------------------------------------------------------------------------------

    def gate(self, keys: Tensor) -> Tensor:
        """g [B] of keys h [B, d_in]."""
        return torch.sigmoid(self.deferral["gate"](keys))[:, 0]

    def value(self, keys: Tensor) -> Tensor:
        """v [B, d_out] of keys h [B, d_in]."""
        return self.deferral["map"](keys)

    def _place(self, _module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor | None:
        if self._placed is None:
            return None
        gate, value = self._placed[0][:, None, None], self._placed[1][:, None, :]
        if self._mixes:
            return (gate * value + (1 - gate) * output).to(output)
        return torch.where(gate >= 0.5, value.to(output), output)

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        encoded = self.encoded(batch)
        state = self.prefix.record(encoded, watch=self.watch, edited=self.watch)
        keys = self.keys_from(state, encoded)

        def loss() -> Tensor:
            with self._placing(self.gate(keys), self.value(keys), mixes=True):
                return batch_loss(self.backbone, encoded)

        with self.prefix.replay(state):
            losses, seconds = minimise(
                self.deferral.parameters(), loss, steps=self.config.steps, lr=self.config.lr
            )
        self._values = {UNEDITED: self._values[UNEDITED]}
        return EditReport(seconds, losses[0], losses[-1], self.counts())

    # -- keys and routes -----------------------------------------------------------------------

    @property
    def watch(self) -> tuple[str, ...]:
        """The layer itself: its input is the key."""
        return (self.path,)

    def keys_from(self, state: PrefixState, batch: Encoded) -> Tensor:
        """h [B, d_in]: the layer's input at the key position."""
        columns = key_columns(batch, self.config.key_position)
        return rows_at(state.watched_inputs[self.path], columns)

    @property
    def keys_see_target(self) -> bool:
        """Whether a causal row that carries its target has another key than its prompt alone."""
        return self.config.key_position != "last_prompt_token"

    @torch.no_grad()
    def routes_of(self, keys: Tensor) -> list[str]:
        """UNEDITED where the gate is shut; else a name for the row's value, which `routed` looks
        up."""
        if not self._has_edits():
            return [UNEDITED] * len(keys)
        names, values = [UNEDITED] * len(keys), self.value(keys)
        for row in (self.gate(keys) >= 0.5).nonzero()[:, 0].tolist():
            digest = hashlib.sha256(values[row].cpu().numpy().tobytes()).hexdigest()[:16]
            names[row] = f"value {digest} after {self.n_batches}"
            self._values[names[row]] = values[row]
        return names

    @contextlib.contextmanager
    def routed(self, batch: Encoded, routes: Sequence[str]) -> Iterator[None]:
        """See `Editor.routed`."""
        values = torch.stack([self._values[route] for route in routes])
        gates = values.new_tensor([float(route != UNEDITED) for route in routes])
        with self._placing(gates, values):
            yield

    @contextlib.contextmanager
    def _placing(self, gate: Tensor, value: Tensor, *, mixes: bool = False) -> Iterator[None]:
        """Passes inside the context place these, whatever their rows say."""
        before = self._placed, self._mixes
        self._placed, self._mixes = (gate, value), mixes
        try:
            with self._router.off():
                yield
        finally:
            self._placed, self._mixes = before

    @torch.no_grad()
    def _decide(self, keys: Tensor) -> None:
        self._placed = (self.gate(keys), self.value(keys)) if self._has_edits() else None

    # -- state -------------------------------------------------------------------------------

    def _rollback(self) -> None:
        self._begin()

    def _remove(self) -> None:
        self._handle.remove()
        self._router.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The gate and the map."""
        return {"deferral": self.deferral.state_dict()}

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        self.deferral.load_state_dict(tensors["deferral"])

    def counts(self) -> dict[str, float]:
        """Trained parameters; nothing is stored beside them."""
        parameters = sum(parameter.numel() for parameter in self.deferral.parameters())
        return {"parameters": parameters, "stored_floats": 0}
