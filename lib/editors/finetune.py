"""FT: plain fine-tuning of the weights of a few linear layers, by three papers' rules.

`FineTune` is GRACE's code, the baseline that MELO's table calls CMR's base (melo 7): Adam, new for
each call, up to `steps` steps on the whole batch, stopping when every target token is the argmax.
`FineTuneEpochs` is what is known of MALMEN's baseline (malmen 7): AdamW, a few epochs over the
batch in mini-batches, no stopping rule. `FtL` is ELDER's baseline (elder 7): one MLP
matrix, an edit at a time, inside a small box around the weights.
"""

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED
from lib.backbones.passes.fact_passes import FactPasses
from lib.backbones.passes.logits import FactRows, edit_loss, fact_rows, label_logits, target_logits
from lib.backbones.passes.prefix import FrozenPrefix
from lib.data.records import Edit
from lib.editors.base import Editor, EditorConfig, EditReport
from lib.editors.parts.minimise import minimise
from lib.editors.parts.sites import Site, first_block
from lib.errors import EditorError


@dataclass(frozen=True)
class FtConfig(EditorConfig):
    """Defaults: GRACE's (lr 1e-2, at most 100 steps)."""

    site: Site = Site("mlp_out", 4)
    lr: float = 1e-2
    steps: int = 100


@dataclass(frozen=True)
class FtEpochsConfig(EditorConfig):
    """Defaults: the three values that the official repository still holds, and the language
    model's mini-batch; AdamW by a summary of the paper (malmen 3, 7)."""

    sites: tuple[Site, ...] = ()
    lr: float = 5e-4
    weight_decay: float = 5e-4
    epochs: int = 5
    batch_rows: int = 32


class TrainsWeights(Editor):
    """Trains weights in place; copies of the originals make rollback exact."""

    in_weights = True

    def __init__(self, backbone: Backbone, config: EditorConfig, sites: Sequence[Site]) -> None:
        super().__init__(backbone, config)
        if not sites:
            raise EditorError(f"{self.name} needs the layers to train: give sites")
        self.prefix = FrozenPrefix(backbone, first_block(backbone, sites))
        self.paths = tuple(site.path(backbone) for site in sites)
        self.weights = [backbone.model.get_submodule(path).weight for path in self.paths]
        self._originals = [weight.detach().clone() for weight in self.weights]

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        for weight in self.weights:
            weight.requires_grad_(True)
        try:
            losses, seconds = self._train(batch)
        finally:
            for weight in self.weights:
                weight.requires_grad_(False)
                weight.grad = None
        return EditReport(seconds, losses[0], losses[-1], self.counts())

    @abstractmethod
    def _train(self, batch: Sequence[Edit]) -> tuple[list[float], float]:
        """Change the weights; gives losses, of which the first and the last are reported, and the
        seconds."""

    @torch.no_grad()
    def _rollback(self) -> None:
        for weight, original in zip(self.weights, self._originals, strict=True):
            weight.copy_(original)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The weights that changed."""
        trained = zip(self.paths, self.weights, strict=True)
        return {"weights": {path: weight.detach() for path, weight in trained}}

    @torch.no_grad()
    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        if set(tensors["weights"]) != set(self.paths):
            raise EditorError(f"the saved edits change other weights than {', '.join(self.paths)}")
        for path, weight in zip(self.paths, self.weights, strict=True):
            weight.copy_(tensors["weights"][path])

    def counts(self) -> dict[str, float]:
        """Trainable parameters; nothing is stored beside them."""
        return {"parameters": sum(w.numel() for w in self.weights), "stored_floats": 0}


class FineTune(TrainsWeights):
    """One weight, the whole batch at every step, until every target token is the argmax."""

    name = "FT"
    config: FtConfig

    def __init__(self, backbone: Backbone, config: FtConfig) -> None:
        super().__init__(backbone, config, [config.site])

    def _train(self, batch: Sequence[Edit]) -> tuple[list[float], float]:
        encoded = self.encoded(batch)
        solved = False

        def loss() -> Tensor:
            nonlocal solved
            logits, labels, _ = target_logits(self.backbone, encoded)
            solved = bool((logits.argmax(dim=-1) == labels).all())
            return functional.cross_entropy(logits.float(), labels)

        config = self.config
        with self.prefix.replay(self.prefix.record(encoded)):
            return minimise(
                self.weights, loss, steps=config.steps, lr=config.lr, done=lambda: solved
            )


class FineTuneEpochs(TrainsWeights):
    """All given weights, `epochs` times over the batch, `batch_rows` facts at a step; the target
    is the answer without its end mark."""

    name = "FT, epochs"
    config: FtEpochsConfig

    def __init__(self, backbone: Backbone, config: FtEpochsConfig) -> None:
        super().__init__(backbone, config, config.sites)

    def _train(self, batch: Sequence[Edit]) -> tuple[list[float], float]:
        config = self.config
        passes = FactPasses(self.prefix, config.max_length)
        pairs = [(edit.prompt, edit.target) for edit in batch]
        passes.fill(pairs)
        order = torch.Generator().manual_seed(config.seed)
        shuffled = [
            pairs[i]
            for _ in range(config.epochs)
            for i in torch.randperm(len(pairs), generator=order).tolist()
        ]
        epochs = [
            passes.in_order(shuffled[at : at + len(pairs)], config.batch_rows)
            for at in range(0, len(shuffled), len(pairs))
        ]
        upcoming = itertools.chain(*epochs)

        def loss() -> Tensor:
            mini_batch = next(upcoming)
            with self.prefix.replay(mini_batch.state):
                return edit_loss(*label_logits(self.backbone, mini_batch.rows))

        return minimise(
            self.weights,
            loss,
            steps=sum(map(len, epochs)),
            lr=config.lr,
            weight_decay=config.weight_decay,
        )


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
