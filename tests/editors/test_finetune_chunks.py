"""EasyEdit's FT against a plain loop over full passes, with Adam and the clamp written out
(comeba_hk 8)."""

import copy
from collections.abc import Sequence

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

SITE = Site("mlp_out", 2)


class Reference:
    """Weight and bias of a copy of the backbone: epochs over chunks, one padded row after the
    other."""

    def __init__(self, backbone: Backbone, config: FtLConfig) -> None:
        self.backbone, self.config = backbone, config
        self.model = copy.deepcopy(backbone.model)
        layer = self.model.get_submodule(config.site.path(backbone))
        self.parameters = [p for p in (layer.weight, layer.bias) if p is not None]
        self.steps = 0

    def row_loss(self, edit: Edit) -> Tensor:
        ids = prompt_ids(self.backbone, edit.prompt)
        answer = self.backbone.tokenizer(" " + edit.target, add_special_tokens=False)["input_ids"]
        logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1]
        log_p = logits - logits.exp().sum().log()
        return -sum(log_p[token] for token in answer) / len(answer)

    def edit(self, batch: Sequence[Edit]) -> list[float]:
        c = self.config
        starts = [p.detach().clone() for p in self.parameters]
        m = [torch.zeros_like(p) for p in starts]
        v = [torch.zeros_like(p) for p in starts]
        t, means = 0, []
        for p in self.parameters:
            p.requires_grad_(True)
        for _ in range(c.steps):
            seen = []
            for at in range(0, len(batch), c.chunk):
                losses = [self.row_loss(edit) for edit in batch[at : at + c.chunk]]
                loss = sum(losses) / len(losses)
                seen += [float(loss.detach())] * len(losses)
                if float(loss.detach()) < finetune.STOP:
                    continue
                t += 1
                gradients = torch.autograd.grad(loss, self.parameters)
                for n, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
                    m[n] = 0.9 * m[n] + 0.1 * g
                    v[n] = 0.999 * v[n] + 0.001 * g**2
                    step = m[n] / (1 - 0.9**t) / ((v[n] / (1 - 0.999**t)).sqrt() + 1e-8)
                    moved = p.detach() - c.lr * step
                    if c.norm_constraint is not None:
                        low, high = starts[n] - c.norm_constraint, starts[n] + c.norm_constraint
                        moved = torch.minimum(torch.maximum(moved, low), high)
                    p.data = moved
            means.append(sum(seen) / len(seen))
            if means[-1] < finetune.STOP:
                break
        self.steps += t
        return means


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("bound", [None, 4e-3])
def test_two_batches_equal_the_plain_loop(name: str, bound: float | None, monkeypatch) -> None:
    """Five edits in chunks of three: the last chunk is short and weighs less; one answer has more
    tokens than the others."""
    if bound is None:
        monkeypatch.setattr(finetune, "STOP", 6.0)  # some chunks come under it
    config = FtLConfig(
        site=SITE, lr=3e-3, steps=14, norm_constraint=bound, one_by_one=False, chunk=3, bias=True
    )
    backbone = loading.load(name, dtype=torch.float64)
    facts = edits(8)
    batches = (facts[:5], facts[5:])
    reference, editor = Reference(backbone, config), FtL(backbone, config)
    assert len(editor.weights) == len(reference.parameters)
    before = [weight.detach().clone() for weight in editor.weights]
    possible = 0
    for batch in batches:
        report = editor.edit(batch)
        means = reference.edit(batch)
        possible += config.steps * -(-len(batch) // config.chunk)
        assert report.loss_first == pytest.approx(means[0], rel=1e-9)
        assert report.loss_last == pytest.approx(means[-1], rel=1e-6)
    for start, ours, theirs in zip(before, editor.weights, reference.parameters, strict=True):
        assert (ours - theirs).norm() < 1e-6 * (theirs - start).norm()
        if bound is not None:  # the box belongs to one batch
            assert bound < (ours - start).abs().max() <= 2 * bound + 1e-12
    if bound is None:
        assert reference.steps < possible  # a chunk was skipped or an epoch was the last
    editor.rollback()
    assert all(torch.equal(w, start) for w, start in zip(editor.weights, before, strict=True))


def test_the_bias_is_saved_with_the_weight(tmp_path) -> None:
    backbone = loading.load("tiny-gpt2")
    editor = FtL(backbone, FtLConfig(site=SITE, steps=2, one_by_one=False, bias=True))
    editor.edit(edits(2))
    editor.save(tmp_path / "saved")
    path = SITE.path(backbone)
    saved = editor.tensors()["weights"]
    assert set(saved) == {path, f"{path}.bias"}
    other = FtL(
        loading.load("tiny-gpt2"), FtLConfig(site=SITE, steps=2, one_by_one=False, bias=True)
    )
    assert not torch.equal(other.weights[1], saved[f"{path}.bias"])
    other.load(tmp_path / "saved")
    for name, tensor in other.tensors()["weights"].items():
        assert torch.equal(tensor, saved[name])
