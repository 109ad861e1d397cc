"""COMEBA-HK's rounds against the slow reference: the parity checks of section 12 that concern
phases and state; numbers as in the study's notes."""

import hashlib
import math

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
    edited,
    editor_of,
    gap,
    logits_of,
    oracle_of,
    weight_of,
    without_prefix,
)
from tests.editors.locate.reference_locate import VALIDATED

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")

PROMPTS = [request.prompt for request in (*FIRST, *SECOND)]


def hooks_in(backbone: Backbone) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())


# -- 12: the base ----------------------------------------------------------------------------------


def digest(backbone: Backbone) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def test_12_the_base_is_never_written_and_editing_leaves_no_hook_behind(causal: Backbone) -> None:
    before, none = digest(causal), hooks_in(causal)
    editor = editor_of("comeba_hk", causal)
    own = hooks_in(causal)
    for requests in (FIRST, SECOND, FIRST):
        editor.edit(as_edits(requests))
        assert hooks_in(causal) == own
    assert digest(causal) == before
    editor.close()
    assert hooks_in(causal) == none


@pytest.mark.parametrize("where", ["values", "solve", "alpha"])
def test_12_an_error_inside_an_edit_changes_nothing(monkeypatch, where: str) -> None:
    causal = loading.load("tiny-gpt2")
    broken, whole = edited(causal), edited(loading.load("tiny-gpt2"))
    own = hooks_in(causal)
    logits = logits_of(causal, PROMPTS[0])

    def fail(*_arguments, **_keywords):
        raise RuntimeError("out of memory")

    target = {
        "values": ("lib.editors.locate.values.Objective.losses",),
        "solve": (broken.memory[LAYERS[1]], "solve"),
        "alpha": (broken, "_lower_alphas"),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            broken.edit(as_edits(SECOND))
    assert hooks_in(causal) == own
    assert torch.equal(logits_of(causal, PROMPTS[0]), logits)
    for editor in (broken, whole):
        editor.edit(as_edits(SECOND))
    for layer in LAYERS:
        assert torch.equal(broken.hooks[layer].weight, whole.hooks[layer].weight)
        assert torch.equal(broken.memory[layer].moment, whole.memory[layer].moment)
        assert broken.hooks[layer].alpha == whole.hooks[layer].alpha


# -- 14: the order of the phases -------------------------------------------------------------------


def test_14_values_see_validated_hooks_and_current_outputs_temporary_ones(
    causal,
    monkeypatch,
) -> None:
    backbone = without_prefix(causal)
    editor = editor_of("comeba_hk", backbone)
    seen = {}
    values, read = editor.find_values, SubjectPasses.read

    def spy_values(requests, *rest, **more):
        seen["values"] = values(requests, *rest, **more)
        return seen["values"]

    def spy_read(passes, part, block, *, of_input=False):
        found = read(passes, part, block, of_input=of_input)
        if part == "block":
            seen.setdefault("outputs", found)
        return found

    monkeypatch.setattr(editor, "find_values", spy_values)
    monkeypatch.setattr(SubjectPasses, "read", spy_read)
    editor.prepare()
    unedited = values(editor.requests(as_edits(SECOND))).values
    editor.edit(as_edits(FIRST))
    weights = {layer: editor.hooks[layer].weight for layer in LAYERS}
    for hook in editor.hooks.values():
        hook.alpha = math.inf
    seen.clear()
    editor.edit(as_edits(SECOND))
    assert torch.equal(seen["values"].values, unedited)
    editor.close()
    for layer in LAYERS:
        backbone.module("mlp_out", layer).weight.data.copy_(weights[layer])
    plain = editor_of("comeba_hk", backbone)
    replaced = plain.passes(plain.requests(as_edits(SECOND)), ("",)).read("block", LAYERS[-1])
    assert torch.equal(seen["outputs"], replaced)


# -- 17 and 18: official parity --------------------------------------------------------------------


@pytest.mark.parametrize("pad_in_stats", [True, False])
def test_17_two_rounds_equal_the_reference(causal: Backbone, pad_in_stats: bool) -> None:
    editor = editor_of("comeba_hk", causal, pad_in_stats=pad_in_stats)
    reference = oracle_of(editor)
    start = {layer: weight_of(editor, layer) for layer in LAYERS}
    for requests in (FIRST, SECOND):
        editor.edit(as_edits(requests))
        reference.edit(requests)
        for layer in LAYERS:
            assert abs(editor.hooks[layer].alpha - reference.alpha[layer]) <= 1e-5
            ours, theirs = weight_of(editor, layer), reference.W[layer]
            assert gap(ours - start[layer], theirs - start[layer]) <= 1e-5
            assert gap(editor.memory[layer].moment, reference.C[layer]) <= 1e-6
    # Inference. alpha is the score of an edited prompt: rounding must not decide about that one.
    for layer in LAYERS:
        editor.hooks[layer].tolerance = 1e-4
        reference.alpha[layer] -= 1e-4
    swapped = 0
    for prompt in PROMPTS:
        assert gap(logits_of(causal, prompt), reference.logits(prompt)) <= 1e-5
        swapped += int((reference.scores(prompt) >= reference.alpha[LAYERS[-1]]).sum())
    assert swapped > 0  # otherwise the second round was no test of the hooks


def test_18_values_found_together_equal_values_found_alone(causal: Backbone) -> None:
    """Under VALIDATED hooks, where the padding of a request's own seven rows is in its scores."""
    editor = editor_of("comeba_hk", causal, tolerance=1e-4)
    reference = oracle_of(editor)
    for requests in (FIRST, SECOND):
        editor.edit(as_edits(requests))
    reference.W = {layer: weight_of(editor, layer) for layer in LAYERS}
    reference.alpha = {layer: editor.hooks[layer].alpha - 1e-4 for layer in LAYERS}
    wanted = editor.requests(as_edits(SECOND))
    together = editor.find_values(wanted).values
    alone = torch.cat([editor.find_values([request]).values for request in wanted])
    assert gap(together, alone.double()) <= 1e-5
    with reference.hooks(dict.fromkeys(LAYERS, VALIDATED)):
        slow = torch.stack([reference.search(r, LAYERS[-1]).value for r in SECOND])
    assert gap(together, slow) <= 1e-5


def test_17_both_solvers_and_a_bfloat_model_keep_the_same_weights() -> None:
    fine = edited(loading.load("tiny-gpt2"), (FIRST, SECOND), solver="cholesky")
    fast = edited(loading.load("tiny-gpt2"), (FIRST, SECOND), solver="woodbury")
    for layer in LAYERS:
        assert gap(weight_of(fast, layer), weight_of(fine, layer)) <= 1e-6
        assert fast.hooks[layer].alpha == pytest.approx(fine.hooks[layer].alpha, abs=1e-5)
    editor = edited(loading.load("tiny-gpt2", dtype=torch.bfloat16), (FIRST,))
    weight = editor.hooks[LAYERS[0]].weight
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())


# -- saving, loading, going on ---------------------------------------------------------------------


def test_a_run_resumed_between_batches_equals_the_unbroken_one(causal: Backbone, tmp_path) -> None:
    solver = "woodbury" if causal.name == "tiny-llama" else "cholesky"
    unbroken = edited(causal, (FIRST,), solver=solver)
    unbroken.save(tmp_path / "one")
    unbroken.edit(as_edits(SECOND))
    resumed = editor_of("comeba_hk", loading.load(causal.name), solver=solver)
    resumed.load(tmp_path / "one")
    resumed.edit(as_edits(SECOND))
    assert (resumed.n_edits, resumed.n_batches) == (unbroken.n_edits, unbroken.n_batches)
    for group, tensors in unbroken.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(resumed.tensors()[group][name], tensor), (group, name)
    for prompt in PROMPTS:
        assert torch.equal(
            logits_of(resumed.backbone, prompt), logits_of(unbroken.backbone, prompt)
        )


def test_loading_reads_missing_statistics_off_the_unedited_backbone(
    causal: Backbone, tmp_path, monkeypatch
) -> None:
    """A run may be resumed on a machine whose cache of statistics is empty."""
    first = edited(causal)
    first.save(tmp_path / "saved")
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "empty"))
    second = editor_of("comeba_hk", loading.load(causal.name))
    second.load(tmp_path / "saved")
    for layer in LAYERS:
        assert torch.equal(second.memory[layer].moment, first.memory[layer].moment)
    for editor in (first, second):
        editor.rollback()
    for layer in LAYERS:
        assert gap(second.memory[layer].moment, first.memory[layer].moment) <= 1e-6


def test_what_is_saved_does_not_grow_with_the_edits(tmp_path) -> None:
    editor = editor_of("comeba_hk", loading.load("tiny-gpt2"))
    sizes, kept = set(), set()
    for requests in (FIRST, SECOND, FIRST + SECOND, SECOND):
        editor.edit(as_edits(requests))
        editor.save(tmp_path / "saved")
        files = (tmp_path / "saved").glob("*.safetensors")
        sizes.add(sum(file.stat().st_size for file in files))
        kept.add((editor.counts()["parameters"], editor.counts()["stored_floats"]))
        assert (tmp_path / "saved" / "editor.json").stat().st_size < 3000
    assert len(sizes) == len(kept) == 1
