"""How long a forward pass takes, with or without an editor in the model."""

import time
from collections.abc import Sequence

import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode_prompts


@torch.no_grad()
def forward_seconds(
    backbone: Backbone, prompts: Sequence[str], *, repeats: int, max_length: int | None = None
) -> float:
    """Seconds of one pass of the model over a batch of prompts: the fastest of `repeats`, after a
    first untimed one, because whatever else the machine does can only add to it.

    The whole model runs, head included, right-padded and without a key-value cache; a seq2seq
    model decodes one position.
    """
    batch = encode_prompts(backbone, prompts, max_length=max_length, side="right")
    inputs = batch.inputs()
    if backbone.family.kind == "causal":
        inputs |= {"position_ids": batch.positions()}
    if backbone.family.kind == "seq2seq":
        start = backbone.model.config.decoder_start_token_id
        inputs |= {"decoder_input_ids": torch.full_like(batch.input_ids[:, :1], start)}
    options = {} if backbone.family.kind == "classifier" else {"use_cache": False}
    seconds = []
    for _ in range(repeats + 1):
        _wait(backbone)
        began = time.perf_counter()
        backbone.model(**inputs, **options)
        _wait(backbone)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _wait(backbone: Backbone) -> None:
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)
