"""Hidden states over plain text, one row per token: what unrelated inputs look like to a module."""

import sys

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lib.backbones import Backbone
from lib.checkpoints import locked
from lib.data.corpus import Corpus
from lib.data.records import content_hash
from lib.hooks import capture
from lib.statistics import GROUP, Sample, document_batches, document_length
from lib.storage import archives, atomic

_VERSION = 1


def stored_states(
    backbone: Backbone, part: str, block: int, corpus: Corpus, sample: Sample
) -> Tensor:
    """The inputs [n, d] of a part of the unedited backbone at the first `sample.tokens` tokens that
    count, in the backbone's precision, on the host; from the cache or by one pass over the text.

    Documents are read as for the key statistics (`lib.statistics`). A corpus that ends earlier
    gives fewer rows, and a line on standard error.
    """
    key = content_hash(
        [
            _VERSION,
            backbone.content,
            str(backbone.dtype),
            backbone.path(part, block),
            corpus.content,
            document_length(backbone, sample),
            sample.documents,
            sample.tokens,
            backbone.prefix,
        ]
    )
    place = archives.cache_dir() / "states" / f"{backbone.name}-{block}-{key[:20]}.safetensors"
    with locked(place):
        if not place.is_file():
            states = _collect(backbone, part, block, corpus, sample)
            atomic.write_bytes(place, save({"states": states}))
    states = load_file(place)["states"]
    if len(states) < sample.tokens:
        print(
            f"{corpus.name} gives only {len(states):,} of {sample.tokens:,} tokens", file=sys.stderr
        )
    return states


@torch.no_grad()
def _collect(backbone: Backbone, part: str, block: int, corpus: Corpus, sample: Sample) -> Tensor:
    texts = corpus.texts[: sample.documents or None]
    length, count, found = document_length(backbone, sample), 0, []
    for start in range(0, len(texts), GROUP):
        for batch, real in document_batches(backbone, texts[start : start + GROUP], length):
            with capture(backbone.module(part, block)) as seen:
                backbone.model.base_model(**batch.inputs(), use_cache=False)
            found.append(seen.input[real].cpu())
            count += len(found[-1])
        if count >= sample.tokens:
            break
    return torch.cat(found)[: sample.tokens].contiguous()
