"""MarianMT opus-mt-en-fr from four parts of a split archive, as a folder of safetensors.

It translates English to French. Taught question answering here (`lib/tuning.py`), it is the
encoder-decoder whose pretrained weights are neither rounded nor a T5's.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MarianConfig

from lib.split_archives import SplitMember, extract_split
from lib.two_sided_tokenizer import TwoSidedTokenizer, unigram_side

PART_BYTES = 94_371_840  # of the whole zip, in each part
PARTS = (9, 10, 11, 12)
ASSETS = tuple(f"opus_mt_{part:03d}" for part in PARTS)
PART_NAME = "aait_store.zip.{:03d}"
MEMBERS = (
    SplitMember(
        "config.json",
        829_836_655,
        "df92c371911b45282caac6101fe7e7f5d5e9af7f9a99356067ffe306278ce72b",
    ),
    SplitMember(
        "pytorch_model.bin",
        829_837_755,
        "cc1de10b49342ad2f33e06bc4474ddd6eaca278474903c4a8636ce15680d64de",
    ),
    SplitMember(
        "source.spm",
        1_108_639_203,
        "173e9f493a668fe396d599e28d414a201193094e6ffd7a4678e5aab0f6d3d838",
    ),
    SplitMember(
        "target.spm",
        1_109_005_357,
        "78d0e717c77053f1c4b856d8661d9cb87c64f083a35418c087b9146300e4f585",
    ),
    SplitMember(
        "vocab.json",
        1_109_378_039,
        "945c604346ce15ce4aff9001001e7f925e336d942c4087017f191871162cbdc4",
    ),
)
# What of the published configuration describes the network; the rest is how to decode and train.
ARCHITECTURE = (
    "activation_function",
    "d_model",
    "decoder_attention_heads",
    "decoder_ffn_dim",
    "decoder_layers",
    "decoder_start_token_id",
    "decoder_vocab_size",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "encoder_layers",
    "eos_token_id",
    "max_position_embeddings",
    "pad_token_id",
    "scale_embedding",
    "share_encoder_decoder_embeddings",
    "vocab_size",
)


def opus_mt_en_fr(part_9: Path, part_10: Path, part_11: Path, part_12: Path, folder: Path) -> None:
    """opus-mt-en-fr, the original float32 weights, as safetensors with a fast tokenizer."""
    parts = [
        (archive, PART_NAME.format(number))
        for archive, number in zip((part_9, part_10, part_11, part_12), PARTS, strict=True)
    ]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        raw = Path(scratch)
        extract_split(parts, (PARTS[0] - 1) * PART_BYTES, MEMBERS, raw)
        published = json.loads((raw / "config.json").read_text())
        config = marian_config(**{name: published[name] for name in ARCHITECTURE})
        # A pickle, but of pinned content, and read without running any code that it names.
        tensors = torch.load(raw / "pytorch_model.bin", map_location="cpu", weights_only=True)
        save_file(weights(tensors, config), folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer_of(raw).save_pretrained(folder)
    config.save_pretrained(folder)


def marian_config(**architecture: object) -> MarianConfig:
    """A Marian configuration without dropout or settings for decoding."""
    config = MarianConfig(dropout=0.0, forced_eos_token_id=None, **architecture)
    config.architectures = ["MarianMTModel"]
    return config


def weights(tensors: dict[str, Tensor], config: MarianConfig) -> dict[str, Tensor]:
    """The tensors of a checkpoint that are stored: each once, positions (a formula) not at all.

    Marian must not write its padding token, whose logit is the number in `final_logits_bias`, as
    its embedding is zero. The published generation settings forbid the token; a bias that no
    other logit falls below does so for scores as well, whoever decodes.
    """
    stored = {
        name: tensor.contiguous()
        for name, tensor in tensors.items()
        if "embed_positions" not in name and "embed_tokens" not in name and name != "lm_head.weight"
    }
    stored["final_logits_bias"] = without_padding(stored["final_logits_bias"], config.pad_token_id)
    return stored


def without_padding(bias: Tensor, pad_id: int) -> Tensor:
    """Output biases [1, V] under which the padding token is never the likeliest; finite, so that
    divergences of output distributions are."""
    changed = bias.clone()
    changed[0, pad_id] = -1e4
    return changed


def tokenizer_of(folder: Path) -> TwoSidedTokenizer:
    """The tokenizer of source.spm, target.spm and vocab.json in `folder`."""
    # SentencePiece keeps its models as protocol buffers; nothing of it is needed to read them.
    from transformers.utils.sentencepiece_model_pb2_new import ModelProto

    vocabulary = json.loads((folder / "vocab.json").read_text())
    sides = []
    for name in ("source.spm", "target.spm"):
        model = ModelProto.FromString((folder / name).read_bytes())
        scores = {piece.piece: piece.score for piece in model.pieces if piece.type == piece.NORMAL}
        charsmap = model.normalizer_spec.precompiled_charsmap
        sides.append(unigram_side(vocabulary, scores, charsmap, end="</s>"))
    return TwoSidedTokenizer(
        tokenizer_object=sides[0],
        target_object=sides[1],
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
