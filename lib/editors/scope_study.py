"""What the scope of a hook layer sees: the z score of every token of some prompts (ref 6, E5)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode_prompts
from lib.backbones.passes.hooks import stop_before
from lib.data.records import Stream
from lib.editors.scope import HookLayer
from lib.editors.subjects import head_length, subject_column

SUBSETS = ("edits", "holdout", "near", "upstream")


@torch.no_grad()
def token_rows(
    backbone: Backbone, hook: HookLayer, block: int, stream: Stream, batch_size: int
) -> Iterator[dict[str, Any]]:
    """One row per token of each prompt alone (no answer, pads not counted), hooks in force.

    `is_subject` marks the last token of the edited subject, where the prompt holds it; `z` is None
    where it is undefined. Tokens of the document prefix are left out.
    """
    head = head_length(backbone)
    for subset in SUBSETS:
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
                subject = _subject_at(backbone, item.prompt, stream.edits[owner].subject)
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


def _subject_at(backbone: Backbone, prompt: str, subject: str) -> int:
    if not subject or subject not in prompt:
        return -1
    return subject_column(backbone, prompt.partition(subject)[0], subject)


@contextlib.contextmanager
def _keeping(hook: HookLayer) -> Iterator[None]:
    hook.keep_scores = True
    try:
        yield
    finally:
        hook.keep_scores = False
