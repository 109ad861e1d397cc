"""FT: plain fine-tuning of the weights of a few linear layers, by three papers' rules.

`FineTune` is GRACE's code, the baseline that MELO's table calls CMR's base (melo 7): Adam, new for
each call, up to `steps` steps on the whole batch, stopping when every target token is the argmax.
`FineTuneEpochs` is what is known of MALMEN's baseline (malmen 7): AdamW, a few epochs over the
batch in mini-batches, no stopping rule. `FtL` is the rule of ROME's repository and EasyEdit: one
MLP layer inside a small box around its weights, all answer tokens asked of the prompt's last
position; an edit at a time it is ELDER's baseline FT-L (elder 7), in chunks of a batch EasyEdit's
FT (comeba_hk 8).
"""

import itertools
import time
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
from lib.backbones.passes.logits import (
    FactRows,
    edit_loss,
    ends_at,
    fact_rows,
    label_logits,
    precise,
    target_logits,
)
from lib.backbones.passes.prefix import FrozenPrefix
from lib.data.records import Edit
from lib.editors.base import Editor, EditorConfig, EditReport
from lib.editors.parts.minimise import adam, minimise
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

    def __init__(
        self, backbone: Backbone, config: EditorConfig, sites: Sequence[Site], *, bias: bool = False
    ) -> None:
        super().__init__(backbone, config)
        if not sites:
            raise EditorError(f"{self.name} needs the layers to train: give sites")
        self.prefix = FrozenPrefix(backbone, first_block(backbone, sites))
        modules = {
            path: backbone.model.get_submodule(path)
            for path in (site.path(backbone) for site in sites)
        }
        self.layers = tuple(modules)
        trained = {path: module.weight for path, module in modules.items()}
        if bias:
            biases = {f"{path}.bias": module.bias for path, module in modules.items()}
            trained |= {name: found for name, found in biases.items() if found is not None}
        self.paths, self.weights = tuple(trained), list(trained.values())
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
            logits, labels, _ = target_logits(self.backbone, encoded, labels_only=True)
            solved = bool((logits.argmax(dim=-1) == labels).all())
            return functional.cross_entropy(logits.float(), labels)

        config = self.config
        with self.prefix.replay(self.prefix.record(encoded, edited=self.layers)):
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
                return edit_loss(*label_logits(self.backbone, mini_batch.rows, labels_only=True))

        return minimise(
            self.weights,
            loss,
            steps=sum(map(len, epochs)),
            lr=config.lr,
            weight_decay=config.weight_decay,
        )


STOP = 1e-2  # a chunk whose loss is under this makes no step, an epoch under it is the last


@dataclass(frozen=True)
class FtLConfig(EditorConfig):
    """Defaults: ROME's repository for GPT2-XL (block 0). EasyEdit for LLaMA2-7B: block 21 and no
    constraint (None).

    `one_by_one`: every edit is a call of its own (elder 7); EasyEdit's FT takes all edits of a
    batch in one call, `chunk` of them at a step, and trains the layer's `bias` too (comeba_hk 8).
    """

    site: Site = Site("mlp_out", 0)
    lr: float = 5e-4
    steps: int = 25
    norm_constraint: float | None = 5e-4
    one_by_one: bool = True
    chunk: int = 1
    bias: bool = False


class FtL(TrainsWeights):
    """State: the one weight, and the bias if it is trained, in the backbone's precision."""

    name = "FT-L"
    kinds = frozenset({"causal"})
    config: FtLConfig

    def __init__(self, backbone: Backbone, config: FtLConfig) -> None:
        super().__init__(backbone, config, [config.site], bias=config.bias)

    def _train(self, batch: Sequence[Edit]) -> tuple[list[float], float]:
        began = time.perf_counter()
        edits = [[edit] for edit in batch] if self.config.one_by_one else [batch]
        calls = [self._call(some) for some in edits]
        first, last = (sum(losses[at] for losses in calls) / len(calls) for at in (0, -1))
        return [first, last], time.perf_counter() - began

    def _call(self, edits: Sequence[Edit]) -> list[float]:
        """Epochs over the chunks of some edits, inside a box around the weights as they were
        before; gives the mean loss of each epoch."""
        config, history = self.config, []
        before = [weight.detach().clone() for weight in self.weights]
        optimiser = adam(self.weights, lr=config.lr, project=lambda now: self._clamp(now, before))
        starts = range(0, len(edits), config.chunk)
        chunks = [self._rows(edits[at : at + config.chunk]) for at in starts]
        states = [self.prefix.record(rows.encoded, edited=self.layers) for rows in chunks]
        for _ in range(config.steps):
            total = 0.0
            for rows, state in zip(chunks, states, strict=True):
                with self.prefix.replay(state):
                    loss = next_token_loss(self.backbone, rows)
                total += loss.item() * len(rows)
                if loss.item() >= STOP:
                    loss.backward()
                    optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            history.append(total / len(edits))
            if history[-1] < STOP:
                break
        return history

    def _rows(self, edits: Sequence[Edit]) -> FactRows:
        prompts, targets = [edit.prompt for edit in edits], [edit.target for edit in edits]
        return fact_rows(self.backbone, prompts, targets, self.config.max_length)

    @torch.no_grad()
    def _clamp(self, now: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        if (bound := self.config.norm_constraint) is not None:
            for weight, start in zip(now, before, strict=True):
                start = start.to(weight)
                weight.clamp_(start - bound, start + bound)


def next_token_loss(backbone: Backbone, rows: FactRows) -> Tensor:
    """Mean over rows of the mean of -log p(answer token | prompt) over a row's answer, all of its
    tokens read at the prompt's last position."""
    encoded = rows.encoded
    each = torch.arange(len(rows), device=rows.labels.device)
    last = torch.zeros_like(rows.labels, dtype=torch.bool)
    last[each, encoded.last_prompt] = True
    with ends_at(backbone, last):
        hidden = backbone.model.base_model(
            **encoded.inputs(), position_ids=encoded.positions(), use_cache=False
        ).last_hidden_state
    logits = backbone.model.get_output_embeddings()(hidden[each, encoded.last_prompt])
    at = rows.labels != IGNORED
    owner = at.nonzero()[:, 0]
    picked = precise(logits).log_softmax(dim=-1)[owner, rows.labels[at]]
    return -(picked / at.sum(dim=1)[owner]).sum() / len(rows)
