"""The published models' shapes: configurations that need no download, and models without weights.

Plans count bytes and products of models that are not here yet; benchmarks draw random weights of
these shapes. What a run loads comes from its checkpoint, never from here.
"""

from collections.abc import Callable

import torch
from transformers import (
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from lib.backbones.checkpoints import CLASSES
from lib.backbones.sources.conversions import t5_config

T5_WORDS = 32128


def _t5(d_model: int, d_ff: int, layers: int, heads: int) -> PreTrainedConfig:
    return t5_config(
        vocab_size=T5_WORDS, d_model=d_model, d_kv=64, d_ff=d_ff, layers=layers, heads=heads
    )


def _gpt2_xl() -> PreTrainedConfig:
    return GPT2Config(n_embd=1600, n_layer=48, n_head=25)


PUBLISHED: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": GPT2Config,
    "gpt2-xl": _gpt2_xl,
    "gpt2-xl-grace": _gpt2_xl,
    "gpt-j-6b": GPTJConfig,
    "llama-2-7b": LlamaConfig,
    "llama-160m": lambda: LlamaConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    ),
    "smollm2-135m": lambda: LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "t5-small-ssm-nq": lambda: _t5(512, 1024, 8, 6),
    "flan-t5-small": lambda: _t5(512, 1024, 8, 6),
    "t5-large-ssm-nq": lambda: _t5(1024, 2816, 24, 16),
    "t5-xl-ssm-nq": lambda: _t5(2048, 5120, 24, 32),
    "bert-base": BertConfig,
    "scotus-bert": lambda: BertConfig(vocab_size=28996, num_labels=11),
    "distilbert-base-cased": lambda: DistilBertConfig(vocab_size=28996),
    "minilm-l6": lambda: BertConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12
    ),
}  # fmt: skip


def without_weights(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel | None:
    """A model of a published shape on the meta device, frozen; None where the shape is unknown."""
    if name not in PUBLISHED:
        return None
    return drawn(PUBLISHED[name](), dtype, "meta")


def drawn(
    config: PreTrainedConfig, dtype: torch.dtype, device: str | torch.device
) -> PreTrainedModel:
    """A frozen model of a shape with the weights that its initialisation draws on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = CLASSES[config.model_type](config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)
