"""ELDER replayed: this study's extension of ELDER, whose experts are not overwritten.

Routers of ELDER learn beside the experts, from the present batch alone, and drift with each. Here,
before each batch, they are fitted by themselves, by the guided loss on the queries of all edits so
far, the batch's own among them; then the experts train on the routes that these routers give:

    1.  min over W, b   sum_l - log s_l(q_e)[allocated experts of e],  mean over all edits e so far
    2.  min over A, B   L_model of the batch, W and b held

A query comes from frozen layers, so a stored one never ages; codes are recomputed from them after
each batch, as in "ELDER refreshed". The paper has nothing of this.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.passes.logits import FactRows
from lib.editors.adapters.elder import Elder, ElderConfig
from lib.editors.adapters.elder_routing import guided_loss
from lib.editors.parts.minimise import minimise
from lib.errors import EditorError


@dataclass(frozen=True)
class ElderReplayedConfig(ElderConfig):
    """ELDER's, with the fit of the routers: Adam, new for every batch. Two switches take the
    extension apart: without `replay` the routers see the present batch alone; `routers`
    "with_experts" trains both at once, by L_model + lambda L_guide."""

    refresh_codes: bool = True
    router_lr: float = 1e-3
    router_steps: int = 50
    routers: Literal["first", "with_experts"] = "first"
    replay: bool = True


class ElderReplayed(Elder):
    """State: ELDER's, the queries of all edits, and the codes that their labels were allocated."""

    name = "ELDER replayed"
    config: ElderReplayedConfig

    def __init__(self, backbone: Backbone, config: ElderReplayedConfig) -> None:
        kept = (config.auxiliary, config.training_routing, config.refresh_codes)
        if kept != ("guided", "own", True):
            raise EditorError(
                "ELDER replayed fits its routers by the guided loss and recomputes its codes: "
                "leave auxiliary guided, training_routing own and refresh_codes true"
            )
        super().__init__(backbone, config)

    def _start(self) -> None:
        super()._start()
        self.wanted = self.stored_codes

    def _train(
        self, rows: FactRows, queries: Tensor, wanted: Tensor
    ) -> tuple[list[float], float, Tensor]:
        """Losses of the experts, seconds of both fits, and the codes of the batch."""
        config = self.config
        self.wanted = torch.cat([self.wanted, wanted])
        seen, codes = queries, wanted
        if config.replay:
            seen, codes = torch.cat([self.queries, queries]), self.wanted

        def guide() -> Tensor:
            return guided_loss(self.routing(seen).log_scores, codes)

        def both() -> Tensor:
            model_loss = self.model_loss(rows, self.routing(queries).weights)
            return model_loss + config.guide_weight * guide()

        experts, first = self.lora.train_parameters(), 0.0
        if config.routers == "with_experts":
            losses, seconds = minimise([*experts, *self.routers], both, **self.schedule)
        else:
            fit = {"steps": config.router_steps, "lr": config.router_lr}
            _, first = minimise(self.routers, guide, **fit)
            weights = self.routing(queries).weights.detach()
            losses, seconds = minimise(
                experts, lambda: self.model_loss(rows, weights), **self.schedule
            )
        return losses, first + seconds, self.routing(queries).chosen

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """ELDER's, with the allocated codes of all edits beside the stored ones."""
        groups = super().tensors()
        groups["memory"]["wanted"] = self.wanted.to(torch.uint8)
        return groups

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        super().restore(tensors, extra)
        self.wanted = tensors["memory"]["wanted"].to(self.backbone.device).bool()
