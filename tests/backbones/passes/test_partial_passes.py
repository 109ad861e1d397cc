"""Passes that leave out what cannot matter, against whole passes, in float64.

The part of the first edited block that lies before the edited matrices is recorded; the last block
runs its MLP at the labels alone. Losses, gradients and updates are those of the plain formulation.
"""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded, encode
from lib.backbones.passes import logits as passes
from lib.backbones.passes.logits import (
    columns_of,
    edit_loss,
    ends_at,
    fact_rows,
    label_logits,
    target_logits,
)
from lib.backbones.passes.prefix import FrozenPrefix
from lib.backbones.sources import loading
from lib.editors import finetune

NAMES = ("tiny-gpt2", "tiny-gptj", "tiny-llama", "tiny-t5", "tiny-t5-relu", "tiny-bert",
         "tiny-distilbert")  # fmt: skip
PARTS = (("mlp_out",), ("mlp_in", "mlp_out"), ("mlp_in",), ("attn_query",))
PROMPTS = ["Where is the old ferry of Quill Island moored?", "Colour of snow?", "Who"]
TARGETS = ["Port Amsel on the far coast", "white", "a pilot of Calder"]


def _backbone(name: str) -> Backbone:
    return loading.load(name, dtype=torch.float64)


def _targets(backbone: Backbone) -> list[str]:
    return ["0", "1", "0"] if backbone.family.kind == "classifier" else TARGETS


def _trained(backbone: Backbone, parts: tuple[str, ...], blocks: range) -> dict[str, nn.Parameter]:
    paths = [backbone.path(part, block, "encoder") for block in blocks for part in parts]
    return {path: backbone.model.get_submodule(path).weight for path in paths}


@contextlib.contextmanager
def _gradients(weights: dict[str, nn.Parameter]) -> Iterator[None]:
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None


def _pass(loss: Tensor, weights: dict[str, nn.Parameter]) -> tuple[float, list[Tensor]]:
    return loss.item(), list(torch.autograd.grad(loss, list(weights.values())))


def _loss(backbone: Backbone, batch: Encoded) -> Tensor:
    return edit_loss(*target_logits(backbone, batch, labels_only=True)[:2])


def _same(one: tuple[float, list[Tensor]], other: tuple[float, list[Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    for ours, plain in zip(one[1], other[1], strict=True):
        assert plain.abs().max() > 0
        assert (ours - plain).abs().max() <= 1e-11 * plain.abs().max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("last", [False, True])
def test_losses_and_gradients_are_those_of_whole_passes(
    name: str, parts: tuple[str, ...], last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = _backbone(name)
    if set(parts) - set(backbone.family.parts("encoder")):
        pytest.skip("the family has no such part")
    end = backbone.n_blocks("encoder")
    weights = _trained(backbone, parts, range(end - 1 if last else 1, end))
    prefix = FrozenPrefix(backbone, end - 1 if last else 1)
    batch = encode(backbone, PROMPTS, _targets(backbone))
    state = prefix.record(batch, edited=tuple(weights))
    assert bool(state.begun) == (parts != ("attn_query",))
    for weight in weights.values():  # the weights move after the recording
        weight.data += 0.05 * torch.randn_like(weight, dtype=weight.dtype)
    with _gradients(weights):
        with prefix.replay(state):
            ours = _pass(_loss(backbone, batch), weights)
        monkeypatch.setattr(passes, "ends_at", lambda *_: contextlib.nullcontext())
        plain = _pass(_loss(backbone, batch), weights)
    _same(ours, plain)
    for module in backbone.model.modules():  # nothing stays behind
        assert module is backbone.model.get_output_embeddings() or "forward" not in vars(module)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_block_may_begin_at_its_matrix_without_a_prefix(name: str) -> None:
    backbone = _backbone(name)
    weights = _trained(backbone, ("mlp_out",), range(1))
    prefix, batch = FrozenPrefix(backbone, 0), encode(backbone, PROMPTS, _targets(backbone))
    whole = prefix.record(batch, edited=tuple(weights))
    chosen = torch.tensor([2, 0])
    part = encode(backbone, PROMPTS, _targets(backbone)).select(chosen)
    with _gradients(weights), prefix.replay(whole.select(chosen)):
        ours = _pass(_loss(backbone, part), weights)
    with _gradients(weights):
        plain = _pass(_loss(backbone, part), weights)
    _same(ours, plain)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gptj", "tiny-llama"])
def test_fact_rows_and_next_token_losses_end_at_the_labels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = _backbone(name)
    weights = _trained(backbone, ("mlp_in", "mlp_out"), range(1, backbone.n_blocks()))
    rows = fact_rows(backbone, PROMPTS, TARGETS)

    def losses() -> list[Tensor]:
        return [
            edit_loss(*label_logits(backbone, rows, labels_only=True)),
            finetune.next_token_loss(backbone, rows),
        ]

    with _gradients(weights):
        ours = [_pass(loss, weights) for loss in losses()]
        for where in (passes, finetune):
            monkeypatch.setattr(where, "ends_at", lambda *_: contextlib.nullcontext())
        plain = [_pass(loss, weights) for loss in losses()]
    for one, other in zip(ours, plain, strict=True):
        _same(one, other)


def test_the_last_mlp_runs_at_the_labels_alone() -> None:
    backbone, seen = _backbone("tiny-llama"), []
    rows = fact_rows(backbone, PROMPTS, TARGETS)
    module = backbone.module("mlp_out", backbone.n_blocks() - 1)
    handle = module.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0]))
    label_logits(backbone, rows, labels_only=True)
    label_logits(backbone, rows)
    handle.remove()
    most = int((rows.labels != passes.IGNORED).sum(dim=1).max())
    assert [hidden.shape[1] for hidden in seen] == [most, rows.labels.shape[1]]


def test_columns_hold_all_places_in_order() -> None:
    at = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [1, 0, 0, 1, 0]]).bool()
    columns = columns_of(at)
    assert columns.shape == (3, 3)
    for row, found in zip(at, columns.tolist(), strict=True):
        assert found == sorted(set(found))
        assert set(row.nonzero()[:, 0].tolist()) <= set(found)
    full = torch.ones(2, 4, dtype=torch.bool)
    assert columns_of(full).tolist() == [[0, 1, 2, 3]] * 2


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    backbone = _backbone("tiny-llama")
    at = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="stop"), ends_at(backbone, at):
        raise RuntimeError("stop")
    assert "forward" not in vars(backbone.module("mlp", backbone.n_blocks() - 1))
