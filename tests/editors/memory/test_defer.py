"""Defer: what the gate mixes in training, what it decides at inference, and what is kept."""

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.passes.hooks import capture
from lib.backbones.passes.logits import batch_loss
from lib.backbones.sources import loading
from lib.editors.memory.defer import defer
from tests.conftest import edits, make, prompt_logits

PROMPTS = [edit.prompt for edit in edits(3)]
BACKBONES = ("tiny-llama", "tiny-t5", "tiny-bert")


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return loading.load(request.param)


def batch_for(backbone: Backbone, count: int = 3) -> tuple:
    return edits(count, classes=backbone.family.kind == "classifier")


def test_a_soft_gate_mixes_by_its_sigmoid() -> None:
    hidden = torch.tensor([[[2.0, 0.0], [-2.0, 1.0]]])
    output = torch.tensor([[[1.0, 1.0, 1.0], [5.0, 5.0, 5.0]]])
    gate, value_map = torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    open_, shut = torch.tensor([2.0, -2.0]).sigmoid().tolist()
    expected = torch.tensor(
        [
            [open_ * 2 + 1 - open_, 1 - open_, open_ * 2 + 1 - open_],
            [-2 * shut + 5 * (1 - shut), shut + 5 * (1 - shut), -shut + 5 * (1 - shut)],
        ]
    )
    assert torch.allclose(defer(hidden, output, gate, value_map, soft=True)[0], expected)


def test_a_hard_gate_takes_the_map_from_one_half_on() -> None:
    hidden, output = torch.tensor([[0.0], [1e-3], [-1e-3]]), torch.full((3, 1), 9.0)
    gate, value_map = torch.tensor([1.0]), torch.tensor([[3.0]])
    found = defer(hidden, output, gate, value_map, soft=False)
    assert found.flatten().tolist() == pytest.approx([0.0, 3e-3, 9.0])


def test_nothing_is_applied_before_the_first_edit(backbone: Backbone) -> None:
    before = prompt_logits(backbone, PROMPTS)
    editor = make("defer", backbone)
    assert torch.equal(prompt_logits(backbone, PROMPTS), before)
    editor.edit(batch_for(backbone))
    assert not torch.equal(prompt_logits(backbone, PROMPTS), before)


def test_after_an_edit_each_position_is_decided_by_itself(backbone: Backbone) -> None:
    editor = make("defer", backbone)
    path = editor.config.site.path(backbone)
    editor.edit(batch_for(backbone))
    # Edits alone teach no gate to stay shut; this one is shut at some positions.
    editor.gate.copy_(torch.randn(editor.gate.shape, generator=torch.Generator().manual_seed(0)))
    with capture(backbone.model.get_submodule(path)) as seen:  # registered after the editor's hook
        prompt_logits(backbone, PROMPTS)
    hidden, weight = seen.input, backbone.model.get_submodule(path).weight
    own = hidden @ weight.T
    bias = getattr(backbone.model.get_submodule(path), "bias", None)
    own = own if bias is None else own + bias
    inside = (hidden @ editor.gate >= 0)[..., None]
    assert inside.any()
    assert not inside.all()
    expected = torch.where(inside, hidden @ editor.map.T, own)
    assert torch.allclose(seen.output, expected, atol=1e-5)


def test_training_lowers_the_mixed_loss_that_it_reports(backbone: Backbone) -> None:
    editor = make("defer", backbone, steps=1)
    batch = batch_for(backbone)
    report = editor.edit(batch)
    editor.rollback()
    with editor._training(), torch.no_grad():
        assert batch_loss(backbone, editor.encoded(batch)).item() == pytest.approx(
            report.loss_first, rel=1e-5
        )
    assert make("defer", backbone).edit(batch).loss_last < report.loss_first


def test_a_later_batch_trains_the_same_gate_and_map_on(backbone: Backbone) -> None:
    editor = make("defer", backbone)
    editor.edit(batch_for(backbone, 2))
    gate, size = editor.gate.clone(), editor.counts()["parameters"]
    editor.edit(batch_for(backbone, 4)[2:])
    assert not torch.equal(editor.gate, gate)
    assert editor.counts() == {"parameters": size, "stored_floats": 0}


def test_saved_edits_answer_alike(backbone: Backbone, tmp_path) -> None:
    editor = make("defer", backbone)
    editor.edit(batch_for(backbone))
    expected = prompt_logits(backbone, PROMPTS)
    editor.save(tmp_path / "saved")
    editor.close()
    other = make("defer", backbone)
    other.load(tmp_path / "saved")
    assert torch.equal(prompt_logits(backbone, PROMPTS), expected)


def test_half_precision_trains_in_single() -> None:
    backbone = loading.load("tiny-llama", dtype=torch.bfloat16)
    editor = make("defer", backbone)
    report = editor.edit(edits(3))
    assert editor.gate.dtype == torch.float32
    assert report.loss_last < report.loss_first
