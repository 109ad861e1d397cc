"""FT-L against a plain loop over full passes, with Adam and the clamp written out (elder 7)."""

import copy

import pytest
import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import prompt_ids
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors import finetune
from lib.editors.finetune import FtL, FtLConfig
from lib.editors.parts.sites import Site
from tests.conftest import CAUSAL, edits

SITE = Site("mlp_out", 3)


def double(name: str) -> Backbone:
    return loading.load(name, dtype=torch.float64)


class Reference:
    """The weight of a copy of the backbone, edited one request at a time."""

    def __init__(self, backbone: Backbone, config: FtLConfig) -> None:
        self.backbone, self.config = backbone, config
        self.model = copy.deepcopy(backbone.model)
        self.weight = self.model.get_submodule(config.site.path(backbone)).weight
        self.steps: list[int] = []

    def loss(self, edit: Edit) -> Tensor:
        ids = prompt_ids(self.backbone, edit.prompt)
        answer = self.backbone.tokenizer(" " + edit.target, add_special_tokens=False)["input_ids"]
        logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1]
        log_p = logits - logits.exp().sum().log()
        return -sum(log_p[token] for token in answer) / len(answer)

    def edit(self, edit: Edit) -> list[float]:
        c, start = self.config, self.weight.detach().clone()
        m = v = torch.zeros_like(start)
        losses = []
        self.weight.requires_grad_(True)
        for t in range(1, c.steps + 1):
            loss = self.loss(edit)
            losses.append(float(loss.detach()))
            if losses[-1] < finetune.STOP:
                break
            (g,) = torch.autograd.grad(loss, self.weight)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            step = c.lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            moved = self.weight.detach() - step
            if c.norm_constraint is not None:
                low, high = start - c.norm_constraint, start + c.norm_constraint
                moved = torch.where(moved < low, low, torch.where(moved > high, high, moved))
            self.weight.data = moved
        self.steps.append(t)
        self.weight.requires_grad_(False)
        return losses


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("bound", [None, 4e-3])
def test_two_edits_equal_the_plain_loop(name: str, bound: float | None, monkeypatch) -> None:
    monkeypatch.setattr(finetune, "STOP", 6.0)
    config = FtLConfig(site=SITE, lr=3e-3, steps=12, norm_constraint=bound)
    backbone, requests = double(name), edits(2)
    reference, editor = Reference(backbone, config), FtL(backbone, config)
    start = editor.weights[0].detach().clone()
    report = editor.edit(requests)
    losses = [reference.edit(request) for request in requests]
    assert report.loss_first == pytest.approx(sum(x[0] for x in losses) / 2, rel=1e-9)
    assert report.loss_last == pytest.approx(sum(x[-1] for x in losses) / 2, rel=1e-6)
    moved, expected = editor.weights[0] - start, reference.weight - start
    assert (moved - expected).norm() < 1e-6 * expected.norm()
    if bound is None:
        assert min(reference.steps) < 12  # the loss of an edit fell under STOP
    else:  # the box belongs to one edit: the second may leave that of the first
        assert bound < moved.abs().max() <= 2 * bound + 1e-12


def test_an_edit_whose_loss_is_small_changes_nothing(monkeypatch) -> None:
    monkeypatch.setattr(finetune, "STOP", 1e3)
    backbone = double("tiny-gpt2")
    editor = FtL(backbone, FtLConfig(site=SITE))
    before = editor.weights[0].detach().clone()
    report = editor.edit(edits(2))
    assert torch.equal(editor.weights[0], before)
    assert report.loss_first == report.loss_last


def test_all_answer_tokens_are_asked_of_the_last_prompt_position() -> None:
    """The order of an answer's tokens is nothing to this loss; teacher forcing would see it."""
    backbone = double("tiny-llama")
    losses = []
    for target in ("a b", "b a"):
        editor = FtL(backbone, FtLConfig(site=SITE, steps=1))
        losses.append(editor.edit([Edit("x", "The harbour of Ash is", target, "Ash")]).loss_first)
        editor.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_defaults_are_the_published_ones() -> None:
    config = FtLConfig()
    assert (config.lr, config.steps, config.norm_constraint) == (5e-4, 25, 5e-4)
    assert (config.site, finetune.STOP) == (Site("mlp_out", 0), 1e-2)
