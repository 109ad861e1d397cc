"""ELDER: a routed mixture of LoRAs for lifelong editing (Li et al., AAAI 2025).

Each edited layer l holds N LoRAs of rank r and a router. All routers read one query q, the input
of a sensor layer below them at the last prompt token, so one look decides for the whole model:

    s = softmax(W_l q + b_l),  w = s on its k largest, 0 elsewhere
    y = W x + (alpha / r) sum_i w_i B_i A_i x          (in scope; else y = W x)

An input is in scope if its code (which experts it takes, over all layers) differs from a stored
code in fewer than epsilon digits. The official repository holds these layers only; "elder 2.x"
points into the study's notes on what had to be chosen.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded
from lib.backbones.passes.logits import FactRows, edit_loss, fact_rows, label_logits
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import Edit, Stream
from lib.editors.adapters import elder_distances, elder_routing
from lib.editors.adapters.elder_routing import Routing
from lib.editors.adapters.gated_lora import GatedLora, rank_bound, write_adapter_config
from lib.editors.base import UNEDITED, Editor, EditorConfig, EditReport, KeysOf
from lib.editors.parts.minimise import minimise
from lib.editors.parts.routing import PrefillRouter
from lib.editors.parts.sites import Site, check_router_below, first_block, input_width, rows_at
from lib.errors import EditorError

ROUTERS, ALLOCATION = 10_007, 20_011


@dataclass(frozen=True)
class ElderConfig(EditorConfig):
    """Defaults: the paper's (elder 3). `n_layers` keeps the first so many of `sites` (0: all).

    `auxiliary`: the guided loss, or what Table 4 puts in its place. `training_routing`: experts
    while training are the router's own choice or the label's allocation ("preset", the released
    code's hard mode). `refresh_codes` keeps the queries of all edits and recomputes their codes
    with the current routers (our extension). `route_per_step` routes anew at each decoded token,
    as the released layers do.
    """

    sites: tuple[Site, ...] = ()
    sensor: Site = Site("mlp_in", 35)
    n_layers: int = 0
    n_experts: int = 4
    k: int = 2
    rank: int = 8
    alpha: float = 8.0
    epsilon: int = 12
    guide_weight: float = 1e-2
    auxiliary: Literal["guided", "none", "balancing"] = "guided"
    training_routing: Literal["own", "preset"] = "own"
    lr: float = 1e-4
    steps: int = 50
    halve_every: int | None = None
    refresh_codes: bool = False
    route_per_step: bool = False


class Elder(Editor):
    """State: the experts (A, B of every layer), the routers, the code of each edit."""

    name = "ELDER"
    adapts = True
    kinds = frozenset({"causal"})
    config: ElderConfig

    def __init__(self, backbone: Backbone, config: ElderConfig) -> None:
        super().__init__(backbone, config)
        _check(config)
        self.sites = config.sites[: config.n_layers] if config.n_layers else config.sites
        check_router_below(backbone, config.sensor, self.sites)
        self.sensor_path = config.sensor.path(backbone)
        self.prefix = FrozenPrefix(backbone, first_block(backbone, self.sites))
        self.lora = GatedLora(
            backbone.model,
            [site.path(backbone) for site in self.sites],
            n_blocks=config.n_experts,
            rank_per_block=config.rank,
            bound=rank_bound(config.rank),
            seed=config.seed,
        )
        self._router = PrefillRouter(
            backbone,
            self.sensor_path,
            on_keys=self._set_gate,
            at_work=self._has_edits,
            position="last_prompt_token",
            per_step=config.route_per_step,
            of_input=True,
        )
        self.tracker = self._router.tracker
        self._start()
        self._take()

    def _start(self) -> None:
        """Routers, allocation and memory as they are before the first edit."""
        config, layers, device = self.config, len(self.sites), self.backbone.device
        width = input_width(self.model.get_submodule(self.sensor_path))
        dtype = torch.float64 if self.backbone.dtype == torch.float64 else torch.float32
        # Seeds of their own: one generator's numbers would tie routers and codes to the experts.
        seeds = [config.seed + ROUTERS, config.seed + ALLOCATION]
        drawn = elder_routing.initial_routers(layers, config.n_experts, width, seeds[0], dtype)
        self.router_weight, self.router_bias = self.routers = [
            nn.Parameter(part.to(device)) for part in drawn
        ]
        self.allocation = elder_routing.Allocation(layers, config.n_experts, config.k, seeds[1])
        self.queries = torch.empty(0, width, dtype=dtype, device=device)
        none = torch.empty(0, layers, config.n_experts, dtype=torch.bool, device=device)
        self.released_codes = self.stored_codes = none
        self._mixtures = {UNEDITED: torch.zeros_like(self.router_bias)}

    # -- queries, routing, scope ---------------------------------------------------------------

    @property
    def watch(self) -> tuple[str, ...]:
        """The sensor layer."""
        return (self.sensor_path,)

    def keys_from(self, state: PrefixState, batch: Encoded) -> Tensor:
        """q [B, d]: the sensor's input at the last prompt token. Nothing below it is ever edited,
        so a prompt's query never changes."""
        return rows_at(state.watched_inputs[self.sensor_path], batch.last_prompt)

    def routing(self, queries: Tensor) -> Routing:
        """What the routers now say of queries [B, d]."""
        return elder_routing.route(queries, *self.routers, self.config.k)

    def distances(self, routing: Routing) -> Tensor:
        """Of each row's code to the nearest stored one [B]."""
        return elder_routing.nearest(routing.chosen, self.stored_codes)

    def in_scope(self, routing: Routing) -> Tensor:
        """Whether each row is edited [B]; at equality it is deferred."""
        return self.distances(routing) < self.config.epsilon

    @torch.no_grad()
    def routes_of(self, keys: Tensor) -> list[str]:
        """UNEDITED for a deferred row; else a name for its weights w, which `routed` looks up."""
        routing = self.routing(keys)
        names = []
        for row, inside in zip(routing.weights, self.in_scope(routing).tolist(), strict=True):
            digest = hashlib.sha256(row.cpu().numpy().tobytes()).hexdigest()[:16]
            names.append(f"mixture {digest} after {self.n_batches}" if inside else UNEDITED)
            self._mixtures[names[-1]] = row * inside
        return names

    @contextlib.contextmanager
    def routed(self, batch: Encoded, routes: Sequence[str]) -> Iterator[None]:
        """See `Editor.routed`."""
        weights = torch.stack([self._mixtures[route] for route in routes])
        with self._router.off(), self.lora.gated(self.gate(weights)):
            yield

    @torch.no_grad()
    def _set_gate(self, queries: Tensor) -> None:
        routing = self.routing(queries)
        self.lora.gate = self.gate(routing.weights * self.in_scope(routing)[:, None, None])

    def gate(self, weights: Tensor) -> Tensor:
        """Expert weights [B, L, N] as a gate [L, B, N r] on the rank axis, alpha / r included."""
        scaled = weights * (self.config.alpha / self.config.rank)
        return scaled.transpose(0, 1).repeat_interleave(self.config.rank, dim=-1)

    # -- editing -------------------------------------------------------------------------------

    def _fit(self, stream: Stream) -> None:
        """Allocate a code to every label of the stream, in its order."""
        for edit in stream.edits:
            self.allocation.of(edit.target)

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        pairs = zip(*((edit.prompt, edit.target) for edit in batch), strict=True)
        rows = fact_rows(self.backbone, *pairs, self.config.max_length)
        state = self.prefix.record(rows.encoded, watch=self.watch, edited=tuple(self.lora.layers))
        queries = self.keys_from(state, rows.encoded)
        wanted = self.allocated(batch)
        try:
            with self.prefix.replay(state):
                losses, seconds, chosen = self._train(rows, queries, wanted)
        finally:
            self.lora.freeze()
        self._remember(queries, chosen)
        apart = (chosen ^ wanted).sum(dim=(1, 2)).float().mean().item()
        counts = self.counts() | {"digits_from_allocation": apart}
        return EditReport(seconds, losses[0], losses[-1], counts)

    def _train(
        self, rows: FactRows, queries: Tensor, wanted: Tensor
    ) -> tuple[list[float], float, Tensor]:
        """Losses, seconds, and the code of the last pass: one step of Adam before the end (elder
        2.7)."""
        latest = self.routing(queries)

        def loss() -> Tensor:
            nonlocal latest
            latest = self.routing(queries)
            return self.loss(rows, latest, wanted)

        parameters = [*self.lora.train_parameters(), *self.routers]
        losses, seconds = minimise(parameters, loss, **self.schedule)
        return losses, seconds, latest.chosen

    @property
    def schedule(self) -> dict[str, Any]:
        """How `minimise` trains the experts."""
        config = self.config
        return {"steps": config.steps, "lr": config.lr, "halve_every": config.halve_every}

    def allocated(self, batch: Sequence[Edit]) -> Tensor:
        """The experts that some edits' labels were allocated [B, L, N]."""
        codes = torch.stack([self.allocation.of(edit.target) for edit in batch])
        return codes.to(self.backbone.device)

    def loss(self, rows: FactRows, routing: Routing, wanted: Tensor) -> Tensor:
        """L_model + lambda L_guide (elder 2.6) of rows whose labels were allocated the experts
        `wanted` [B, L, N]."""
        config, used = self.config, routing
        if config.training_routing == "preset":
            used = Routing(routing.log_scores, wanted)
        auxiliary = elder_routing.AUXILIARY[config.auxiliary](routing, wanted)
        return self.model_loss(rows, used.weights) + config.guide_weight * auxiliary

    def model_loss(self, rows: FactRows, weights: Tensor) -> Tensor:
        """L_model of rows that take the experts with these weights [B, L, N]."""
        with self._router.off(), self.lora.gated(self.gate(weights)):
            return edit_loss(*label_logits(self.backbone, rows, labels_only=True))

    @torch.no_grad()
    def _remember(self, queries: Tensor, chosen: Tensor) -> None:
        self.released_codes = torch.cat([self.released_codes, chosen.detach()])
        self.stored_codes = self.released_codes
        self._mixtures = {UNEDITED: self._mixtures[UNEDITED]}
        if self.config.refresh_codes:
            self.queries = torch.cat([self.queries, queries])
            self.stored_codes = self.routing(self.queries).chosen

    def observe(self, stream: Stream, keys: KeysOf | None = None) -> Iterator[dict[str, Any]]:
        """The distances on which the deferral rule decides; see `elder_distances`."""
        yield from elder_distances.distance_rows(self, stream, keys)

    # -- state ---------------------------------------------------------------------------------

    def _rollback(self) -> None:
        self.lora.initialise(rank_bound(self.config.rank), self.config.seed)
        self.lora.gate = None
        self._start()

    def _remove(self) -> None:
        self._router.remove()
        self.lora.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The experts as a PEFT adapter, the routers, the codes (and queries, if they are kept)."""
        memory = {"codes": self.released_codes.to(torch.uint8)}
        if self.config.refresh_codes:
            memory["queries"] = self.queries
        return {
            "adapter_model": self._adapter()[0],
            "routers": {"weight": self.router_weight.detach(), "bias": self.router_bias.detach()},
            "memory": memory,
        }

    def _adapter(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.lora.adapter_state(self.config.n_experts, self.config.alpha / self.config.rank)

    def _save_more(self, folder: Any) -> None:
        write_adapter_config(folder, self._adapter()[1])

    def extra(self) -> dict[str, Any]:
        """The labels that have a code, in order: the seed gives the codes."""
        return {"labels": self.allocation.labels}

    @torch.no_grad()
    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        self.lora.load_adapter_state(tensors["adapter_model"])
        self.router_weight.copy_(tensors["routers"]["weight"])
        self.router_bias.copy_(tensors["routers"]["bias"])
        for label in extra["labels"]:
            self.allocation.of(label)
        memory = {
            name: tensor.to(self.backbone.device) for name, tensor in tensors["memory"].items()
        }
        self.queries = memory.get("queries", self.queries)
        self.released_codes = self.stored_codes = memory["codes"].bool()
        if len(self.queries):
            self.stored_codes = self.routing(self.queries).chosen

    def counts(self) -> dict[str, float]:
        """Trainable parameters (constant), stored numbers (32 digits of codes are one), codes."""
        return {
            "parameters": sum(p.numel() for p in (*self.lora.parameters(), *self.routers)),
            "stored_floats": self.released_codes.numel() / 32 + self.queries.numel(),
            "distinct_codes": elder_routing.distinct(self.stored_codes),
        }


def _check(config: ElderConfig) -> None:
    if not config.sites or not 0 <= config.n_layers <= len(config.sites):
        raise EditorError(
            f"ELDER: {config.n_layers} layers of {len(config.sites)} sites; give sites"
        )
    if not 1 <= config.k <= config.n_experts:
        raise EditorError(f"ELDER takes k = {config.k} of {config.n_experts} experts: 1 to all")
