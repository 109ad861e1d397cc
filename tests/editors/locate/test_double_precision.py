"""COMEBA-HK, MEMIT and ROME in float64 against the slow reference, through consecutive batches: on
tiny models, and on pretrained weights where this machine has them. What is left between the two is
rounding: formulas that differ would be seen."""

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.editors.base import Editor
from tests.backbones.test_loading import real
from tests.editors.locate.locate_cases import (
    CORPUS,
    FIRST,
    SECOND,
    as_edits,
    editor_of,
    gap,
    oracle_of,
    weight_of,
)
from tests.editors.locate.locate_fixtures import NAMES
from tests.editors.locate.reference_updates import moments

KINDS = ("comeba_hk", "memit", "rome")


def pair(kind: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, **changes) -> tuple:
    """An editor and its oracle with the same definite statistics, of float64 passes."""
    editor = editor_of(kind, backbone, **changes)
    if kind != "rome":
        found = moments(backbone, CORPUS.texts, editor.blocks)
        for moment in found.values():
            moment.diagonal().add_(0.01 * moment.diagonal().mean())
        monkeypatch.setattr(editor, "moments", lambda: found)
    return editor, oracle_of(editor)


def follow(editor: Editor, reference, batches, bound: float) -> None:
    """Edit with both; weights, thresholds and losses agree within `bound` after every batch."""
    start = {block: weight_of(editor, block).clone() for block in editor.blocks}
    for requests in batches:
        report = editor.edit(as_edits(requests))
        searches = []
        if editor.name == "COMEBA-HK":
            reference.edit(requests)
        elif editor.name == "MEMIT":
            reference.edit_in_place(requests, 0.0)
        else:
            for request in requests:
                reference.edit_rome(request)
                searches += reference.searches
        losses = [search.losses[-1] for search in searches or reference.searches]
        assert report.loss_last == pytest.approx(sum(losses) / len(losses), rel=bound)
        for block in editor.blocks:
            hooked = editor.name == "COMEBA-HK"
            theirs = reference.W[block] if hooked else reference.weight(block)
            ours = weight_of(editor, block)
            assert gap(ours - start[block], theirs - start[block]) <= bound
            if hooked:
                assert abs(editor.hooks[block].alpha - reference.alpha[block]) <= bound
                assert gap(editor.memory[block].moment, reference.C[block]) <= bound


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_three_batches_on_tiny_models(kind: str, name: str, monkeypatch) -> None:
    backbone = loading.load(name, dtype=torch.float64)
    editor, reference = pair(kind, backbone, monkeypatch)
    # transformers computes GPT-J's attention scores in float32, whatever the model's precision.
    follow(editor, reference, (FIRST, SECOND, FIRST), 1e-4 if name == "tiny-gptj" else 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_two_batches_on_pretrained_weights(kind: str, monkeypatch) -> None:
    backbone = real("smollm2-135m", "smollm2", dtype=torch.float64)
    editor, reference = pair(kind, backbone, monkeypatch, value_steps=2)
    # MEMIT's updates of 1,536 columns agree to 1.2e-7, the other two better.
    follow(editor, reference, (FIRST[:1], SECOND[:1]), 1e-6)
