"""Context texts in front of a prompt, written by the backbone itself (ref 2.8, seeded here)."""

import unicodedata

import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode_prompts, prompt_ids

SEEDS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5


def sample_contexts(backbone: Backbone, count: int, length: int, seed: int) -> tuple[str, ...]:
    """`count` contexts of `length` tokens, the seed word included, each ending in ". ".

    Top-5 sampling from the unedited backbone, one per seed word in turn. The official code draws
    them without a seed; here they depend on the backbone and `seed` alone. Must be called before
    anything in the model is edited.
    """
    if count == 0:
        return ()
    words = [SEEDS[number % len(SEEDS)] for number in range(count)]
    batch = encode_prompts(backbone, words)
    head = len(prompt_ids(backbone, "")) if backbone.prefix else 0
    first = batch.attention_mask.argmax(dim=1)  # rows are padded on the left
    new = max(1, head + length - int(batch.attention_mask.sum(dim=1).min()))
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        ids = backbone.model.generate(
            **batch.inputs(),
            do_sample=True,
            top_k=TOP_K,
            min_new_tokens=new,
            max_new_tokens=new,
            pad_token_id=backbone.pad_id,
        )
    rows = [row[start : start + head + length] for row, start in zip(ids, first, strict=True)]
    texts = backbone.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return tuple(clean(text) + ". " for text in texts)


def clean(text: str) -> str:
    """NFKD, blank lines and braces out: what the official code does to its contexts."""
    text = unicodedata.normalize("NFKD", text).replace("\n\n", " ")
    return text.replace("{", " ").replace("}", " ")
