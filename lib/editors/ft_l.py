"""FT-L: fine-tuning of one MLP matrix, an edit at a time, inside a small box (elder 7).

The baseline of ROME's repository: Adam, new for each edit, and after each step every weight is
clamped to within `norm_constraint` of what it was when that edit began; from edit to edit the box
moves along. All tokens of the answer are read at the prompt's last position, as the original
does it: the loss asks for each of them as the next token, not for the answer as a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED
from lib.backbones.passes.logits import FactRows, edit_loss, fact_rows
from lib.data.records import Edit
from lib.editors.base import EditorConfig
from lib.editors.ft import TrainsWeights
from lib.editors.sites import Site
from lib.editors.training import minimise

STOP = 1e-2  # an edit ends when its loss is under this (ROME's repository)


@dataclass(frozen=True)
class FtLConfig(EditorConfig):
    """Defaults: ROME's repository for GPT2-XL (block 0). EasyEdit for LLaMA2-7B: block 21 and no
    constraint (None)."""

    site: Site = Site("mlp_out", 0)
    lr: float = 5e-4
    steps: int = 25
    norm_constraint: float | None = 5e-4


class FtL(TrainsWeights):
    """State: the one weight, trained in the backbone's precision."""

    name = "FT-L"
    kinds = frozenset({"causal"})
    config: FtLConfig

    def __init__(self, backbone: Backbone, config: FtLConfig) -> None:
        super().__init__(backbone, config, [config.site])

    def _train(self, batch: Sequence[Edit]) -> tuple[list[float], float]:
        each = [self._train_one(edit) for edit in batch]
        first, last = (sum(losses[at] for losses, _ in each) / len(each) for at in (0, -1))
        return [first, last], sum(seconds for _, seconds in each)

    def _train_one(self, edit: Edit) -> tuple[list[float], float]:
        config, (weight,) = self.config, self.weights
        rows = fact_rows(self.backbone, [edit.prompt], [edit.target], config.max_length)
        latest = torch.inf

        def loss() -> Tensor:
            nonlocal latest
            value = next_token_loss(self.backbone, rows)
            latest = value.item()
            return value

        before, bound = weight.detach().clone(), config.norm_constraint

        @torch.no_grad()
        def clamp() -> None:
            if bound is not None:
                weight.clamp_(before - bound, before + bound)

        with self.prefix.replay(self.prefix.record(rows.encoded)):
            return minimise(
                [weight],
                loss,
                steps=config.steps,
                lr=config.lr,
                done=lambda: latest < STOP,
                after_step=clamp,
            )


def next_token_loss(backbone: Backbone, rows: FactRows) -> Tensor:
    """Mean of -log p(answer token | prompt) over the answer of one row, all of them read at the
    prompt's last position."""
    encoded = rows.encoded
    hidden = backbone.model.base_model(
        **encoded.inputs(), position_ids=encoded.positions(), use_cache=False
    ).last_hidden_state
    logits = backbone.model.get_output_embeddings()(hidden[0, encoded.last_prompt])
    labels = rows.labels[rows.labels != IGNORED]
    return edit_loss(logits.expand(len(labels), -1), labels)
