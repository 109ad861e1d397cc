"""How a hyper-network in training edits facts that it does not learn from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib.backbones.passes.fact_passes import Pair, edit_pairs, rephrase_pairs, unrelated_pairs
from lib.backbones.passes.logits import hits, label_logits

if TYPE_CHECKING:
    from lib.editors.malmen import Malmen


@torch.no_grad()
def validate(editor: "Malmen", m: int, *, edited: bool = True) -> dict[str, float]:
    """Edit success, generality and locality (teacher-forced, against gold answers; malmen 5) on the
    validation facts, m at a time, each chunk on the unedited backbone.

    Too few facts for one chunk are edited together; `edited=False` scores the backbone itself. The
    running statistics stay as they are: the official code lets validation rows into them. Empty
    without validation facts.
    """
    facts = editor.training.valid
    if not facts:
        return {}
    size = min(m, len(facts))
    scores: dict[str, list[float]] = {"valid_ES": [], "valid_GS": [], "valid_LS": []}
    for start in range(0, len(facts) - size + 1, size):
        chunk = facts[start : start + size]
        editor.weights.write(editor.shifts_of(chunk) if edited else {})
        try:
            parts = (edit_pairs(chunk), rephrase_pairs(chunk), unrelated_pairs(chunk))
            for pairs, found in zip(parts, scores.values(), strict=True):
                found += teacher_forced(editor, pairs)
        finally:
            editor.weights.restore()
    return {name: sum(found) / len(found) for name, found in scores.items()}


def teacher_forced(editor: "Malmen", pairs: Sequence[Pair]) -> list[float]:
    """Share of answer tokens that are the argmax, row by row, under the weights in force."""
    found = []
    for batch in editor.passes.mini_batches(pairs, editor.config.batch_rows):
        with editor.prefix.replay(batch.state):
            logits, _ = label_logits(editor.backbone, batch.rows)
        found += hits(logits, batch.rows)
    return found
