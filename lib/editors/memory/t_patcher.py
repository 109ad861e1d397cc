"""T-Patcher: one new neuron in the last MLP for each wrong token of an answer (elder 7).

Huang et al. (ICLR 2023) publish code for BERT and BART. Taken over: where patches sit, one patch
per wrongly predicted token, how keys start, the three losses with their margins and numbers of
rows, the optimiser, clipping and checks. Ours, for a decoder that reads prompt and answer as one
row: the tokens that count are those of the answer, teacher-forced and without end mark; a patch
reads the input of the last block's MLP and adds to its output, which serves gated MLPs and GPT-J's
parallel ones alike; its activation is ReLU, for one that does not fire then changes nothing
(GELU nearly does that, the SiLU of gated MLPs does not); values start at zero; stored states come
from plain text; and what ends an edit (`patches.train_patches`).

Nothing below the last MLP depends on any patch: an edit passes through the blocks once, and its
steps cost the final norm and the output matrix at the answer's positions.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED
from lib.backbones.passes.hooks import capture, first_tensor
from lib.backbones.passes.logits import edit_loss, fact_rows, label_logits, precise
from lib.backbones.passes.prefix import FrozenPrefix
from lib.backbones.text_states import KeyText, stored_states
from lib.data.corpus import Corpus
from lib.data.records import Edit, Stream
from lib.editors.base import Editor, EditorConfig, EditReport
from lib.editors.memory.patches import Patches, TrainedPatches, train_patches
from lib.errors import EditorError


@dataclass(frozen=True)
class TPatcherConfig(EditorConfig):
    """Defaults: the official ones for sequence to sequence; the memory loss is over the
    `memory_rows` most active of `memory_tokens` states. `memory_length` (where documents are cut;
    0: the model's maximum) is our choice. What no run varies stands at the top of `patches.py`."""

    lr: float = 1e-2
    steps: int = 2000
    memory_tokens: int = 40_000
    memory_length: int = 0
    memory_rows: int = 1000


class TPatcher(Editor):
    """State: all patches so far. They act at every position of every row."""

    name = "T-Patcher"
    kinds = frozenset({"causal"})
    needs = ("corpus",)
    config: TPatcherConfig

    def __init__(
        self, backbone: Backbone, config: TPatcherConfig, *, corpus: Corpus | None = None
    ) -> None:
        super().__init__(backbone, config)
        for name in ("memory_tokens", "memory_rows"):
            if getattr(config, name) < 1:
                raise EditorError(f"T-Patcher: {name} must be at least 1")
        self.last = backbone.n_blocks() - 1
        self.prefix = FrozenPrefix(backbone, self.last)
        self.corpus = corpus
        self.memory: Tensor | None = None
        self._forget()
        mlp = backbone.module("mlp", self.last)
        self._handle = mlp.register_forward_hook(self._add)

    def _forget(self) -> None:
        weight = self.backbone.model.get_output_embeddings().weight
        self.patches = Patches.none(weight.shape[1], precise(weight[:0]))

    def _add(self, _module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if not len(self.patches):
            return None
        return (precise(output) + self.patches(precise(inputs[0]))).to(output.dtype)

    # -- editing -----------------------------------------------------------------------------

    def _fit(self, stream: Stream) -> None:
        """The stored states; they are collected at the first edit otherwise."""
        self.prepare()

    def prepare(self) -> None:
        """Read the stored states [m, d] off the backbone; patches do not reach them."""
        if self.memory is not None:
            return
        if self.corpus is None:
            raise EditorError(
                "T-Patcher needs text for its stored states; pass corpus= (lib.data.corpus)"
            )
        sample = KeyText(self.config.memory_tokens, self.config.memory_length)
        states = stored_states(self.backbone, "mlp", self.last, self.corpus, sample)
        self.memory = precise(states).to(self.backbone.device)

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        self.prepare()
        each, began = [], time.perf_counter()
        for edit in batch:
            each.append(self._patch(edit))
            self.patches = self.patches.joined(each[-1].patches)
        first, last, steps, solved = (
            sum(getattr(trained, name) for trained in each) / len(each)
            for name in ("first", "last", "steps", "solved")
        )
        seconds = time.perf_counter() - began
        return EditReport(seconds, first, last, self.counts() | {"solved": solved, "steps": steps})

    def _patch(self, edit: Edit) -> TrainedPatches:
        """New patches for the wrong tokens of one edit, beside those in force."""
        backbone, config = self.backbone, self.config
        rows = fact_rows(backbone, [edit.prompt], [edit.target], config.max_length)
        mlp, block = (backbone.module(part, self.last) for part in ("mlp", "block"))
        with torch.no_grad(), capture(mlp) as inside, capture(block) as above:
            logits, labels = label_logits(backbone, rows)
        right = logits.argmax(dim=-1) == labels
        if right.all():
            loss = edit_loss(logits, labels).item()
            nothing = Patches.none(self.patches.keys.shape[1], self.patches.keys)
            return TrainedPatches(nothing, loss, loss, 0, True)
        at = rows.labels != IGNORED
        hidden, stream = (precise(x[at]) for x in (inside.input, first_tensor(above.output)))
        norm, head = backbone.module("final_norm"), backbone.model.get_output_embeddings()

        def logits_of(added: Tensor) -> Tensor:
            return precise(head(norm((stream + added).to(backbone.dtype))))

        return train_patches(
            hidden,
            labels,
            right,
            self.memory,
            logits_of,
            lr=config.lr,
            steps=config.steps,
            memory_rows=config.memory_rows,
        )

    def _undoing(self) -> Callable[[], None]:
        return functools.partial(setattr, self, "patches", self.patches)  # no edit writes into them

    # -- state -------------------------------------------------------------------------------

    def _rollback(self) -> None:
        self._forget()

    def _remove(self) -> None:
        self._handle.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Keys, biases and values of all patches."""
        return {"patches": vars(self.patches)}

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        self.patches = Patches(
            **{name: tensor.to(self.backbone.device) for name, tensor in tensors["patches"].items()}
        )

    def counts(self) -> dict[str, float]:
        """Patches, their parameters, and stored numbers."""
        width = self.patches.keys.shape[1]
        return {
            "patches": len(self.patches),
            "parameters": len(self.patches) * (2 * width + 1),
            "stored_floats": 0 if self.memory is None else self.memory.numel(),
        }
