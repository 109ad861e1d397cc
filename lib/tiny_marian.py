"""A tiny random MarianMT with two sides that split one small vocabulary differently."""

import torch
from tokenizers import models
from transformers import MarianMTModel, PreTrainedModel

from lib.marian import marian_config, without_padding
from lib.tiny import POSITIONS, TEXT, VOCABULARY, byte_level_tokenizer, seeded
from lib.two_sided_tokenizer import TwoSidedTokenizer, ending_with


def tiny_tokenizer() -> TwoSidedTokenizer:
    """Marian's special ids (end 0, unknown 1, padding last); targets are split into bytes."""
    source, _ = byte_level_tokenizer(TEXT, size=VOCABULARY, special=("</s>", "<unk>"))
    source.add_special_tokens(["<pad>"])
    source.post_processor = ending_with("</s>", 0)
    target = type(source).from_str(source.to_str())
    target.model = models.BPE(vocab=source.get_vocab(with_added_tokens=False), merges=[])
    return TwoSidedTokenizer(
        tokenizer_object=source,
        target_object=target,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def tiny_marian(seed: int = 0) -> tuple[PreTrainedModel, TwoSidedTokenizer]:
    """MarianMT with 4 + 4 blocks: norms behind each sublayer, sinusoidal positions, one matrix for
    both embeddings and the output, an output bias."""
    tokenizer = tiny_tokenizer()
    config = marian_config(
        activation_function="swish",
        d_model=32,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        decoder_layers=4,
        decoder_start_token_id=tokenizer.pad_token_id,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        encoder_layers=4,
        eos_token_id=tokenizer.eos_token_id,
        init_std=0.2,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        scale_embedding=True,
        vocab_size=len(tokenizer),
    )

    def build() -> PreTrainedModel:
        model = MarianMTModel(config)
        bias = torch.randn_like(model.final_logits_bias)  # the constructor leaves zeros
        model.final_logits_bias.copy_(without_padding(bias, tokenizer.pad_token_id))
        return model

    return seeded(build, seed), tokenizer
