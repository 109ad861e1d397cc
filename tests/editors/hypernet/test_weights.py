"""Weights under shifts: parity checks 5 and 12 of the study's notes on MALMEN, and exact
restoration wherever weights change hands."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lib.backbones.backbone import Backbone
from lib.backbones.passes.logits import fact_rows, label_logits
from lib.backbones.sources import loading
from lib.editors.parts.weights import EditedWeights
from tests.editors.hypernet.malmen_cases import FAMILIES, editor_of, facts_for, gap, networks, paths

EVERY = pytest.mark.parametrize("name", FAMILIES)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def logits_of(backbone: Backbone) -> Tensor:
    edits = facts_for(backbone)
    rows = fact_rows(backbone, [e.rephrases[0] for e in edits], [e.target for e in edits])
    with torch.no_grad():
        return label_logits(backbone, rows)[0]


def state_of(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.model.state_dict().items()}


def unchanged(backbone: Backbone, before: dict[str, Tensor]) -> bool:
    now = backbone.model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)


# -- 5: no edit, and no edit any more --------------------------------------------------------------


@EVERY
@DTYPES
@pytest.mark.parametrize("kind", ["malmen", "mend"])
def test_05_a_step_size_of_zero_changes_no_logit(name: str, kind: str, dtype: torch.dtype) -> None:
    backbone = loading.load(name, dtype=dtype)
    before = logits_of(backbone)
    editor = editor_of(kind, backbone)
    for net in networks(editor):
        net.eta.data.zero_()
    facts = facts_for(backbone)
    assert all(S.eq(0).all() for S in editor.shifts_of(facts).values())
    editor.edit(facts)
    assert torch.equal(logits_of(backbone), before)


@EVERY
@DTYPES
def test_05_rollback_is_exact(name: str, dtype: torch.dtype) -> None:
    """Adding and subtracting would not be: shown for bfloat16, where it is worst."""
    backbone = loading.load(name, dtype=dtype)
    before, state = logits_of(backbone), state_of(backbone)
    editor = editor_of("malmen", backbone)
    editor.edit(facts_for(backbone))
    assert not torch.equal(logits_of(backbone), before)
    editor.rollback()
    assert torch.equal(logits_of(backbone), before) and unchanged(backbone, state)
    editor.edit(facts_for(backbone, 2))
    editor.close()
    assert unchanged(backbone, state)


@EVERY
@DTYPES
def test_05_a_meta_step_leaves_the_backbone_as_it_was(name: str, dtype: torch.dtype) -> None:
    backbone = loading.load(name, dtype=dtype)
    state = state_of(backbone)
    editor = editor_of("malmen", backbone)
    editor.meta_gradients(facts_for(backbone))
    assert unchanged(backbone, state)
    assert not any(p.requires_grad or p.grad is not None for p in backbone.model.parameters())


def test_05_a_meta_step_that_dies_leaves_the_backbone_as_it_was(monkeypatch) -> None:
    backbone = loading.load("tiny-gpt2")
    state = state_of(backbone)
    editor = editor_of("malmen", backbone)
    for place in ("_generality", "_locality"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

            def die(*_: object) -> float:
                raise KeyboardInterrupt

            patch.setattr(editor, place, die)
            editor.meta_gradients(facts_for(backbone))
        assert unchanged(backbone, state), place
        assert not any(p.requires_grad for p in backbone.model.parameters()), place


def test_a_second_batch_edits_on_top_of_the_first() -> None:
    """The rows of the second batch are traced on the weights in force."""
    backbone = loading.load("tiny-llama", dtype=torch.float64)
    editor = editor_of("malmen", backbone)
    first, second = facts_for(backbone, 3), facts_for(backbone, 3, start=3)
    fresh = editor.shifts_of(second)
    before = {path: backbone.model.get_submodule(path).weight.clone() for path in paths(editor)}
    editor.edit(first)
    shifts = editor.shifts_of(first)
    asked = editor.shifts_of(second)
    once = {path: backbone.model.get_submodule(path).weight.clone() for path in paths(editor)}
    editor.edit(second)
    for path in paths(editor):
        assert gap(asked[path], fresh[path]) > 1e-2
        assert not torch.equal(once[path], before[path])
        change = backbone.model.get_submodule(path).weight - once[path]
        assert gap(change.T, asked[path]) < 1e-9
    assert shifts.keys() == asked.keys()


# -- 12: orientation -------------------------------------------------------------------------------


def twin_layers(width: int, outputs: int) -> tuple[Backbone, nn.ModuleDict]:
    """A Linear and a Conv1D that compute the same, dressed as a backbone."""
    layers = nn.ModuleDict({"linear": nn.Linear(width, outputs), "conv": Conv1D(outputs, width)})
    layers = layers.double().requires_grad_(False)
    layers["conv"].weight.copy_(layers["linear"].weight.T)
    layers["conv"].bias.copy_(layers["linear"].bias)
    return replace(loading.load("tiny-gpt2"), model=layers, dtype=torch.float64), layers


@pytest.mark.parametrize(("width", "outputs"), [(7, 5), (6, 6)])
def test_12_linear_and_conv1d_are_edited_alike(width: int, outputs: int) -> None:
    backbone, layers = twin_layers(width, outputs)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(9, width, generator=generator, dtype=torch.float64)
    S = torch.randn(width, outputs, generator=generator, dtype=torch.float64)
    before = {name: layer(keys) for name, layer in layers.items()}
    weights = EditedWeights(backbone, list(layers))
    weights.write(dict.fromkeys(layers, S))
    for name, layer in layers.items():
        assert weights.shape(name) == (width, outputs)
        assert (layer(keys) - before[name] - keys @ S).abs().max() < 1e-12
    assert (layers["linear"](keys) - layers["conv"](keys)).abs().max() < 1e-12
    with weights.originals():
        assert all(torch.equal(layer(keys), before[name]) for name, layer in layers.items())
    assert not torch.equal(layers["conv"](keys), before["conv"])
    weights.restore()
    assert all(torch.equal(layer(keys), before[name]) for name, layer in layers.items())


@pytest.mark.parametrize(("width", "outputs"), [(7, 5), (6, 6)])
def test_12_gamma_is_input_major_for_both(width: int, outputs: int) -> None:
    """Gamma = keys^T (gradient at the output), summed over passes."""
    backbone, layers = twin_layers(width, outputs)
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(9, width, generator=generator, dtype=torch.float64)
    wish = torch.randn(9, outputs, generator=generator, dtype=torch.float64)
    weights = EditedWeights(backbone, list(layers))
    weights.write(dict.fromkeys(layers, torch.ones(width, outputs, dtype=torch.float64)))
    with weights.collecting() as gammas:
        for _ in range(2):
            sum((layer(keys) * wish).sum() for layer in layers.values()).backward()
            weights.collect(gammas)
    for name in layers:
        assert gap(gammas[name], 2 * keys.T @ wish) < 1e-12


@DTYPES
def test_writing_and_restoring_many_times_loses_no_bit(dtype: torch.dtype) -> None:
    """Each write starts from the originals; 17 rounds of += and -= move a bfloat16 weight."""
    backbone = loading.load("tiny-llama", dtype=dtype)
    state = state_of(backbone)
    path = "model.layers.3.mlp.down_proj"
    module = backbone.model.get_submodule(path)
    original = module.weight.clone()
    weights = EditedWeights(backbone, [path])
    generator = torch.Generator().manual_seed(2)
    drifting = original.clone()
    for _ in range(17):
        S = 1e-2 * torch.randn(weights.shape(path), generator=generator)
        weights.write({path: S})
        assert torch.equal(module.weight, (original.float() + S.T).to(dtype))
        drifting += S.T.to(dtype)
        drifting -= S.T.to(dtype)
    weights.restore()
    assert unchanged(backbone, state)
    assert not torch.equal(drifting, original)
