"""Editors that write into the backbone's weights against the slow reference: MEMIT, COMEBA-HK's
ablation without hook layers (notes, 2.12) and ROME (section 8)."""

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.editors.locate.subjects import SubjectPasses
from tests.editors.locate.locate_cases import (
    FIRST,
    LAYERS,
    SECOND,
    as_edits,
    editor_of,
    gap,
    logits_of,
    oracle_of,
    weight_of,
)

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")

PROMPTS = [request.prompt for request in (*FIRST, *SECOND)]
HISTORY = {"none": 0.0, "lambda": 10.0, "one": 1.0}  # weight of earlier keys; lambda is 10 here


@pytest.mark.parametrize(
    ("name", "history"),
    [("tiny-gpt2", "none"), ("tiny-gptj", "none"), ("tiny-llama", "none"),
     ("tiny-gptj", "lambda"), ("tiny-llama", "one")],
)  # fmt: skip
def test_memit_equals_the_reference(name: str, history: str) -> None:
    causal = loading.load(name)
    editor = editor_of("memit", causal, history=history)
    reference = oracle_of(editor)
    start = {layer: weight_of(editor, layer).clone() for layer in LAYERS}
    for requests in (FIRST, SECOND):
        report = editor.edit(as_edits(requests))
        reference.edit_in_place(requests, HISTORY[history])
        losses = [search.losses for search in reference.searches]
        assert report.loss_first == pytest.approx(sum(x[0] for x in losses) / len(losses), rel=1e-5)
        assert report.loss_last == pytest.approx(sum(x[-1] for x in losses) / len(losses), rel=1e-5)
        for layer in LAYERS:
            ours = weight_of(editor, layer) - start[layer]
            assert gap(ours, reference.weight(layer) - start[layer]) <= 1e-5
    for prompt in PROMPTS[:3]:
        expected = reference.run([reference.encode(prompt)])[0]
        assert gap(logits_of(causal, prompt), expected) <= 1e-5


def test_histories_agree_in_the_first_batch_and_part_in_the_second() -> None:
    weights = {}
    for history in HISTORY:
        editor = editor_of("memit", loading.load("tiny-gpt2"), history=history)
        for number, requests in enumerate((FIRST, SECOND)):
            editor.edit(as_edits(requests))
            weights[history, number] = weight_of(editor, LAYERS[0]).clone()
    assert torch.equal(weights["none", 0], weights["lambda", 0])
    assert torch.equal(weights["none", 0], weights["one", 0])
    assert gap(weights["lambda", 1], weights["one", 1]) > 1e-3
    assert gap(weights["none", 1], weights["one", 1]) > 1e-3


def test_rome_equals_the_reference(causal: Backbone) -> None:
    editor = editor_of("rome", causal)
    reference = oracle_of(editor)
    (layer,) = editor.blocks
    start = weight_of(editor, layer).clone()
    for requests in (FIRST[:2], SECOND[2:]):
        editor.edit(as_edits(requests))
        before = reference.weight(layer).clone()
        for request in requests:
            reference.edit_rome(request)
        change = reference.weight(layer) - before
        ranks = torch.linalg.svdvals(change) > 1e-9 * change.norm()
        assert int(ranks.sum()) == len(requests)
        assert gap(weight_of(editor, layer) - start, reference.weight(layer) - start) <= 1e-5
    for prompt in PROMPTS[:3]:
        expected = reference.run([reference.encode(prompt)])[0]
        assert gap(logits_of(causal, prompt), expected) <= 1e-5


def test_rome_puts_the_searched_value_at_the_subject() -> None:
    """W k = v* exactly for the bare prompt, whatever u is."""
    backbone = loading.load("tiny-gptj")
    editor = editor_of("rome", backbone)
    editor.prepare()
    (request,) = editor.requests(as_edits(FIRST[:1]))
    value = editor.find_values([request], "mlp_out").values[0]
    editor.edit(as_edits(FIRST[:1]))
    now = editor.passes([request], ("",)).read("mlp_out", editor.block)[0]
    assert gap(now, value.double()) <= 1e-5


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("tiny-llama", "memit", {"history": "none"}),
        ("tiny-gpt2", "memit", {"history": "lambda"}),
        ("tiny-gptj", "memit", {"history": "one", "solver": "woodbury"}),
        ("tiny-gpt2", "rome", {}),
    ],
)
def test_a_run_resumed_between_batches_equals_the_unbroken_one(
    tmp_path, name: str, kind: str, changes: dict
) -> None:
    unbroken = editor_of(kind, loading.load(name), **changes)
    unbroken.edit(as_edits(FIRST))
    unbroken.save(tmp_path / "one")
    unbroken.edit(as_edits(SECOND))
    resumed = editor_of(kind, loading.load(name), **changes)
    resumed.load(tmp_path / "one")
    resumed.edit(as_edits(SECOND))
    for group, tensors in unbroken.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(resumed.tensors()[group][name], tensor), (group, name)


@pytest.mark.parametrize("kind", ["memit", "rome"])
def test_an_error_inside_an_edit_changes_nothing(kind: str, monkeypatch) -> None:
    editor = editor_of(kind, loading.load("tiny-gpt2"))
    editor.edit(as_edits(FIRST))
    before = {name: t.clone() for name, t in editor.tensors()["weights"].items()}
    calls = []
    read = SubjectPasses.read

    def fail(passes, part, block, *, of_input=False):
        if not of_input:
            calls.append(part)
        if len(calls) == 2:  # one update is written by then
            raise RuntimeError("out of memory")
        return read(passes, part, block, of_input=of_input)

    monkeypatch.setattr(SubjectPasses, "read", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        editor.edit(as_edits(SECOND))
    after = editor.tensors()["weights"]
    assert all(torch.equal(after[name], before[name]) for name in before)
