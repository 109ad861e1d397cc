"""Every neutral part name leads to the module it names, on every architecture."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lib.backbones.backbone import PARTS
from lib.backbones.sources import loading
from lib.errors import BackboneError

TINY = (
    "tiny-gpt2", "tiny-gptj", "tiny-llama", "tiny-t5", "tiny-t5-relu", "tiny-bert",
    "tiny-distilbert", "tiny-qwen2", "tiny-gpt-neox",
)  # fmt: skip
MODEL_PARTS = ("final_norm", "head", "embedding")


@pytest.fixture(scope="module", params=TINY)
def backbone(request):
    return loading.load(request.param)


def test_every_path_resolves_in_every_block(backbone):
    for stack in backbone.family.stacks:
        parts = backbone.family.parts(stack)
        assert {"block", "attention", "mlp_in", "mlp_out", "head", "embedding"} <= set(parts)
        assert set(parts) <= set(PARTS)
        for part in parts:
            indices = [None] if part in MODEL_PARTS else range(backbone.n_blocks(stack))
            for index in indices:
                module = backbone.module(part, index, stack)
                path = backbone.path(part, index, stack)
                assert module is backbone.model.get_submodule(path)


def test_mlp_matrices_have_the_mlp_shape(backbone):
    """mlp_in (and its gate) widen, mlp_out narrows: names are not swapped."""
    width, inner = 32, backbone.module("mlp_out", 0).weight.numel() // 32
    assert inner > width
    for part in ("mlp_in", "mlp_gate", "mlp_out"):
        if part not in backbone.family.parts():
            continue
        weight = backbone.module(part, 0).weight
        transposed = isinstance(backbone.module(part, 0), Conv1D)
        outputs, inputs = weight.T.shape if transposed else weight.shape
        expected = (width, inner) if part == "mlp_out" else (inner, width)
        assert (outputs, inputs) == expected


def test_head_and_embedding_cover_the_vocabulary_or_the_classes(backbone):
    assert isinstance(backbone.module("embedding"), nn.Embedding)
    rows = backbone.module("head").weight.shape[0]
    config = backbone.model.config
    classes = backbone.family.kind == "classifier"
    assert rows == (config.num_labels if classes else config.vocab_size)


@pytest.mark.parametrize(
    ("name", "arguments", "path"),
    [
        ("tiny-gpt2", ("mlp_out", 3), "transformer.h.3.mlp.c_proj"),
        ("tiny-gptj", ("mlp_in", 3), "transformer.h.3.mlp.fc_in"),
        ("tiny-llama", ("mlp_gate", 5), "model.layers.5.mlp.gate_proj"),
        ("tiny-llama", ("block", 0), "model.layers.0"),
        ("tiny-qwen2", ("mlp_out", 1), "model.layers.1.mlp.down_proj"),
        ("tiny-gpt-neox", ("mlp_out", 1), "gpt_neox.layers.1.mlp.dense_4h_to_h"),
        ("tiny-gpt-neox", ("attn_qkv", 2), "gpt_neox.layers.2.attention.query_key_value"),
        ("tiny-t5", ("mlp_out", 3, "encoder"), "encoder.block.3.layer.1.DenseReluDense.wo"),
        ("tiny-t5", ("mlp_out", 3, "decoder"), "decoder.block.3.layer.2.DenseReluDense.wo"),
        ("tiny-t5", ("mlp_in", 0, "encoder"), "encoder.block.0.layer.1.DenseReluDense.wi_0"),
        ("tiny-t5-relu", ("mlp_in", 0, "encoder"), "encoder.block.0.layer.1.DenseReluDense.wi"),
        ("tiny-t5", ("final_norm", None, "encoder"), "encoder.final_layer_norm"),
        ("tiny-t5", ("final_norm",), "decoder.final_layer_norm"),
        ("tiny-bert", ("mlp_out", 2), "bert.encoder.layer.2.output.dense"),
    ],
)
def test_paths_are_those_of_the_papers(name, arguments, path):
    assert loading.load(name).path(*arguments) == path


def test_bare_encoder_has_paths_without_prefix_and_no_head():
    bare = loading.load("tiny-bert", num_labels=0)
    assert bare.path("mlp_in", 0) == "encoder.layer.0.intermediate.dense"
    assert bare.module("embedding").weight.shape[0] == bare.model.config.vocab_size
    with pytest.raises(BackboneError, match="no part 'head'"):
        bare.path("head")


def test_unknown_part_index_and_stack_are_named():
    llama, t5 = loading.load("tiny-llama"), loading.load("tiny-t5")
    with pytest.raises(BackboneError, match="mlp_gate"):
        llama.path("mlp_down", 0)
    with pytest.raises(BackboneError, match="blocks 0 to 5"):
        llama.module("mlp_out", 6)
    with pytest.raises(BackboneError, match="blocks 0 to 3"):
        t5.module("mlp_out", -1, "encoder")
    with pytest.raises(BackboneError, match="encoder, decoder"):
        t5.path("mlp_out", 0, "middle")
    with pytest.raises(BackboneError, match="give the block's index"):
        llama.path("mlp_out")
    with pytest.raises(BackboneError, match="no block index"):
        llama.path("head", 1)


def test_stack_is_ignored_where_there_is_one():
    llama = loading.load("tiny-llama")
    assert llama.n_blocks("encoder") == llama.n_blocks() == 6
    assert llama.path("mlp_out", 1, "encoder") == llama.path("mlp_out", 1)


def test_the_arithmetic_names_all_that_moves_a_number():
    backbone = loading.load("tiny-llama")
    changes = {
        "content": "other weights",
        "prefix": "",
        "dtype": torch.bfloat16,
        "device": torch.device("meta"),
    }
    plain = backbone.arithmetic
    for name, value in changes.items():
        other = replace(backbone, **{name: value}).arithmetic
        assert other[name] != plain[name]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert backbone.arithmetic["threads"] == threads + 1
        assert replace(backbone, device=torch.device("cuda:1")).arithmetic["threads"] is None
    finally:
        torch.set_num_threads(threads)
    assert replace(backbone, name="another name").arithmetic == plain


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "tiny-t5"])
def test_the_output_matrix_never_multiplies_a_slice(name: str) -> None:
    """A bfloat16 matrix takes 500 times as long for a slice, transformers' own prefill included."""
    model = loading.load(name, dtype=torch.bfloat16).model
    seen: list[bool] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _head, inputs, _out: seen.append(inputs[0].is_contiguous()))
    ids = torch.arange(10, 22).view(3, 4)
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, min_new_tokens=2)
    hidden = torch.randn(3, 4, head.in_features, dtype=torch.bfloat16)
    assert torch.equal(head(hidden[:, -2:]), head(hidden[:, -2:].contiguous()))
    assert len(seen) == 4
    assert all(seen)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gptj", "tiny-llama", "tiny-t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_matrix_of_few_rows_gives_what_a_linear_layer_gives(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    model = copy.deepcopy(loading.load(name, dtype=dtype).model)
    head, generator = model.get_output_embeddings(), torch.Generator().manual_seed(3)
    head.weight.data *= 2  # the copy's own weights must answer
    scale = head.weight.float().norm(dim=1).max()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    for shape in ((1,), (9,), (3, 5), (33,)):
        hidden = torch.randn(*shape, head.in_features, generator=generator).to(dtype)
        sides = [hidden.clone().requires_grad_() for _ in range(2)]
        ours = head(sides[0])
        plain = torch.nn.functional.linear(sides[1], head.weight, head.bias)
        assert ours.shape == plain.shape
        assert (ours - plain).abs().max() <= tolerance * scale
        for logits in (ours, plain):
            logits.float().log_softmax(dim=-1)[..., 7].sum().backward()
        assert (sides[0].grad - sides[1].grad).abs().max() <= tolerance * scale
