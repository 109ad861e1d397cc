"""Hook layers: edited weights beside the base weights, swapped in per token (ref 2.3).

Whether a token is in scope is read off the distance between both outputs: an outlier among the
tokens of its own row is an edited subject, anything else meets the base weights.
"""

import contextlib
import copy
from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode_prompts
from lib.backbones.passes.hooks import stop_before
from lib.backbones.passes.logits import precise
from lib.data.records import Edit, Stream, find_subject
from lib.editors.locate.subjects import head_length, subject_column
from lib.editors.parts.routing import PromptTracker

# Widens a threshold by rounding: alpha is by construction the score of some edited prompt, and
# another batch shape moves that score by a few units in the last place.
TOLERANCE = 1e-4


class Mode(Enum):
    """What a hook layer does with the base output P and its own output O of each token.

    OFF: P, nothing computed. TEMPORARY: O for every token. VALIDATED: O where z >= alpha, else P.
    RECORDING: P, and the z scores are kept.
    """

    OFF = "off"
    TEMPORARY = "temporary"
    VALIDATED = "validated"
    RECORDING = "recording"


def z_scores(base: Tensor, hook: Tensor, counted: Tensor) -> Tensor:
    """z [B, T] of m = ||O - P||_2 among the counted tokens of each row; NaN where undefined.

    base, hook: [B, T, d]; counted: [B, T] bool. Mean and sample standard deviation (n - 1) over
    counted tokens; tokens that do not count get NaN. One counted token, or equal distances (no
    edits yet: all zero), give NaN, which no threshold is below. With n counted tokens z is at most
    (n - 1) / sqrt(n). Computed in float32 or better.
    """
    distance = torch.linalg.vector_norm(precise(hook) - precise(base), dim=-1)
    real = counted.to(distance)
    number = real.sum(dim=1, keepdim=True)
    mean = (distance * real).sum(dim=1, keepdim=True) / number
    spread = ((distance - mean) ** 2 * real).sum(dim=1, keepdim=True) / (number - 1)
    return ((distance - mean) / spread.sqrt()).masked_fill(~counted, torch.nan)


class HookLayer:
    """The hook of one edited layer: a copy of its module with weights of its own.

    `alpha` is the threshold, widened by TOLERANCE. `head` tokens of the document prefix are left
    out of the scores and never swapped, in any mode. The scope is decided in passes that start a
    sequence, on the prompt's tokens; passes that go on from a key-value cache get the base output,
    as a one-token step has no z score.
    """

    def __init__(self, module: nn.Module, tracker: PromptTracker, alpha: float, head: int) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.original = module.weight.detach()
        self.weight = precise(self.original).clone()
        self.tracker, self.head, self.tolerance = tracker, head, TOLERANCE
        self.alpha, self.mode = alpha, Mode.OFF
        self.counted: Tensor | None = None  # overrides which tokens count [B, T]
        self.rows: Tensor | None = None  # rows [B] that may be swapped at all
        self.scores: Tensor | None = None  # of the latest pass, if kept
        self.keep_scores = False
        self._handle = module.register_forward_hook(self._hook)

    def set_weight(self, weight: Tensor) -> None:
        """New hook weight, kept in float32 or better and applied in the activations' dtype."""
        self.weight = weight
        self.module.weight = nn.Parameter(weight.to(self.original.dtype), requires_grad=False)

    def reset(self, alpha: float) -> None:
        """The base weight again, nothing swapped."""
        self.set_weight(precise(self.original).clone())
        self.alpha, self.mode = alpha, Mode.OFF

    def _hook(self, _module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if self.mode is Mode.OFF or not self.tracker.is_prefill:
            return None
        own = self.module(inputs[0])
        if self.mode is Mode.TEMPORARY:
            return torch.where(self._behind_head(output)[..., None], own, output)
        scores = z_scores(output, own, self._counted(output))
        if self.keep_scores or self.mode is Mode.RECORDING:
            self.scores = scores.detach()
        if self.mode is Mode.RECORDING:
            return None
        inside = scores >= self.alpha - self.tolerance
        if self.rows is not None:
            inside = inside & self.rows[:, None]
        return torch.where(inside[..., None], own, output)

    def _counted(self, output: Tensor) -> Tensor:
        if self.counted is not None:
            return self.counted
        return self.tracker.prompt_mask(output).bool() & self._behind_head(output)

    def _behind_head(self, output: Tensor) -> Tensor:
        """Columns [B, T] after the document prefix, pads on the right included."""
        return self.tracker.prompt_mask(output).cumsum(dim=1) > self.head

    def remove(self) -> None:
        """Take the hook out of the model."""
        self._handle.remove()

    def state(self) -> dict[str, Any]:
        """Weight and threshold, to be put back by `put_back` if an edit fails half-way."""
        return {"weight": self.weight, "alpha": self.alpha, "mode": self.mode}

    def put_back(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.set_weight(state["weight"])
        self.alpha, self.mode = state["alpha"], state["mode"]


SCOPED = ("edits", "holdout", "near", "upstream")


@torch.no_grad()
def token_rows(
    backbone: Backbone, hook: HookLayer, block: int, stream: Stream, batch_size: int
) -> Iterator[dict[str, Any]]:
    """One row per token of each prompt alone (no answer, pads not counted), hooks in force.

    `is_subject` marks the last token of the edited subject, where the prompt holds it; `z` is None
    where it is undefined. Tokens of the document prefix are left out.
    """
    head = head_length(backbone)
    for subset in SCOPED:
        items = list(getattr(stream, subset))
        owners = stream.owners.get(subset, range(len(items)) if subset == "edits" else ())
        for start in range(0, min(len(items), len(owners)), batch_size):
            some = items[start : start + batch_size]
            batch = encode_prompts(backbone, [item.prompt for item in some], side="right")
            with _keeping(hook), contextlib.ExitStack() as context:
                if block + 1 < backbone.n_blocks():
                    context.enter_context(stop_before(backbone.module("block", block + 1)))
                backbone.model.base_model(
                    **batch.inputs(), position_ids=batch.positions(), use_cache=False
                )
            scores = hook.scores.cpu()
            for row, item in enumerate(some):
                owner = owners[start + row]
                ids = batch.input_ids[row, : int(batch.last_token[row]) + 1].tolist()
                subject = _subject_at(backbone, item.prompt, stream.edits[owner])
                for column in range(head, len(ids)):
                    z = float(scores[row, column])
                    yield {
                        "subset": subset,
                        "record": item.identity,
                        "edit_index": owner,
                        "layer": block,
                        "position": column - head,
                        "tokens": len(ids) - head,
                        "token": backbone.tokenizer.decode([ids[column]]),
                        "is_subject": column == subject,
                        "z": None if z != z else z,
                        "alpha": hook.alpha,
                        "swapped": z >= hook.alpha - hook.tolerance,
                    }


def _subject_at(backbone: Backbone, prompt: str, edit: Edit) -> int:
    if not edit.subject or edit.subject not in prompt:
        return -1
    begin, end = edit.subject_span if prompt == edit.prompt else find_subject(prompt, edit.subject)
    return subject_column(backbone, prompt[:begin], prompt[begin:end])


@contextlib.contextmanager
def _keeping(hook: HookLayer) -> Iterator[None]:
    hook.keep_scores = True
    try:
        yield
    finally:
        hook.keep_scores = False
