"""What plain text looks like inside a backbone: second moments of MLP keys, and stored inputs.

Key statistics are E[k k^T] of the inputs of MLP output matrices (ref: MEMIT). One pass over the
text serves all layers. Sums are float32, as the official code keeps them; a
killed pass goes on from its last checkpoint, and a larger sample goes on from a smaller one.
"""

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded, batch_rows
from lib.backbones.passes.hooks import capture, stop_before
from lib.data.corpus import Corpus
from lib.storage import atomic, fingerprints
from lib.storage.atomic import CHECKPOINT_SECONDS
from lib.storage.cache import Cache, keep, once, whole

COLUMNS = 256  # of a block of the second moment
GROUP = 16  # documents between two decisions: enough yet?
SUM = "sum.safetensors"


@dataclass(frozen=True)
class KeyText:
    """How much text: `tokens` counted at least (whole groups of 16 documents), documents cut at
    `length` tokens (0: the model's maximum) and at most `documents` of them (0: all)."""

    tokens: int = 100_000
    length: int = 0
    documents: int = 0


@dataclass(frozen=True)
class Moment:
    """Uncentred second moment `matrix` [f, f] (float32) of one layer over `count` tokens."""

    matrix: Tensor
    count: int
    documents: int


@dataclass(frozen=True)
class Estimate:
    """What a pass will cost, before it starts."""

    layers: int
    tokens: int
    megabytes: float

    def __str__(self) -> str:
        return (
            f"key statistics of {self.layers} layers over {self.tokens:,} tokens in one pass, "
            f"{self.megabytes:,.0f} MB in the cache"
        )


def estimate(backbone: Backbone, blocks: Sequence[int], sample: KeyText) -> Estimate:
    """Size of the statistics of some blocks: float32 matrices of the MLP's inner width."""
    widths = [key_width(backbone, block) for block in blocks]
    return Estimate(len(widths), sample.tokens, sum(4 * width**2 for width in widths) / 1e6)


def key_width(backbone: Backbone, block: int) -> int:
    """f: the input width of the block's MLP output matrix."""
    module = backbone.module("mlp_out", block)
    first, second = module.weight.shape
    return second if isinstance(module, torch.nn.Linear) else first


def collected(backbone: Backbone, blocks: Sequence[int], corpus: Corpus, sample: KeyText) -> bool:
    """Whether the cache holds the second moments of all these blocks already."""
    places = (
        Cache.user().place("statistics", _identity(backbone, "mlp_out", block, corpus, sample))
        for block in blocks
    )
    return all(_enough(place, sample.tokens) for place in places)


def second_moments(
    backbone: Backbone, blocks: Sequence[int], corpus: Corpus, sample: KeyText
) -> dict[int, Moment]:
    """The second moment of each block's keys, from the cache or by one pass over the corpus.

    Positions of the backbone's document prefix are left out (they serve as attention sink and
    would drown everything else); all other real positions count.
    """
    cache = Cache.user()
    places = {
        block: cache.place("statistics", _identity(backbone, "mlp_out", block, corpus, sample))
        for block in blocks
    }

    def read() -> dict[int, Path] | None:
        found = {block: _enough(place, sample.tokens) for block, place in places.items()}
        return None if None in found.values() else found

    def make() -> dict[int, Path] | None:
        missing = {
            block: place for block, place in places.items() if not _enough(place, sample.tokens)
        }
        for place in missing.values():
            atomic.sweep(place)
        said = estimate(backbone, list(missing), sample)
        print(f"{backbone.name}: {said}, text: {corpus.name}", file=sys.stderr)
        _collect(backbone, missing, corpus, sample)
        return read()

    # Under one lock: one pass serves all blocks.
    paths = once(cache.place("statistics", backbone.arithmetic), read, make)
    return {block: _read(path, sample, corpus) for block, path in paths.items()}


def _identity(
    backbone: Backbone, part: str, block: int, corpus: Corpus, sample: KeyText
) -> list[object]:
    """What decides the inputs of a part over a text, but for how much of it is read."""
    return [
        backbone.arithmetic,
        fingerprints.own(__name__),
        fingerprints.code(
            "lib.backbones.passes.hooks", "lib.backbones.encoding", apart=fingerprints.TOLD
        ),
        backbone.path(part, block),
        corpus.content,
        document_length(backbone, sample),
        sample.documents,
    ]


def document_length(backbone: Backbone, sample: KeyText) -> int:
    """Tokens at which documents are cut: the sample's choice, within what the model can read."""
    longest = backbone.model.config.max_position_embeddings
    return min(sample.length or longest, longest)


def _counts(path: Path) -> tuple[int, int, int, bool]:
    """Documents, tokens, tokens before the last group, and whether the corpus ended there."""
    documents, count, before, ended = path.name.split("-")
    return int(documents), int(count), int(before), ended == "end"


def _enough(place: Path, tokens: int) -> Path | None:
    """The sum whose last group was the one that reached `tokens` (or that ended the corpus)."""
    for path in sorted([*place.glob("*-part"), *place.glob("*-end")]):
        _, count, before, ended = _counts(path)
        if (before < tokens <= count or (ended and count < tokens)) and whole(path):
            return path
    return None


def _read(path: Path, sample: KeyText, corpus: Corpus) -> Moment:
    documents, count, _, ended = _counts(path)
    if ended and count < sample.tokens:
        print(f"{corpus.name} gives only {count:,} of {sample.tokens:,} tokens", file=sys.stderr)
    return Moment(load_file(path / SUM)["sum"] / count, count, documents)


@torch.no_grad()
def _collect(backbone: Backbone, places: dict[int, Path], corpus: Corpus, sample: KeyText) -> None:
    """One pass over the corpus for all blocks of `places`; keeps one sum of each."""
    documents, count, sums = _start(backbone, places, sample)
    total = min(sample.documents or len(corpus.texts), len(corpus.texts))
    written = time.monotonic()
    bar = tqdm(
        total=sample.tokens, initial=count, desc="key statistics", unit="token", unit_scale=True,
        file=sys.stderr, mininterval=1, leave=False,
    )  # fmt: skip
    while count < sample.tokens and documents < total:
        texts = corpus.texts[documents : min(documents + GROUP, total)]
        before = count
        count += add_documents(backbone, texts, document_length(backbone, sample), sums)
        documents += len(texts)
        bar.update(count - before)
        done = count >= sample.tokens or documents >= total
        if done or time.monotonic() - written > CHECKPOINT_SECONDS:
            kind = "end" if documents >= total else "part" if done else "progress"
            for block, place in places.items():
                old = list(place.glob("*-progress"))
                tensors = {"sum": symmetric(sums[block]).cpu()}
                keep(
                    place / f"{documents:08}-{count}-{before}-{kind}",
                    lambda scratch, tensors=tensors: save_file(tensors, scratch / SUM),
                )
                for path in old:
                    shutil.rmtree(path)
            written = time.monotonic()
    bar.close()


def _start(
    backbone: Backbone, places: dict[int, Path], sample: KeyText
) -> tuple[int, int, dict[int, Tensor]]:
    """Where a pass for all these blocks can go on: documents read, tokens counted, sums."""
    stored = [
        {_counts(path)[:2]: path for path in place.glob("[0-9]*")} for place in places.values()
    ]
    common = set.intersection(*(set(paths) for paths in stored))
    for point in sorted((point for point in common if point[1] < sample.tokens), reverse=True):
        paths = [of_block[point] for of_block in stored]
        if all(map(whole, paths)):
            read = (load_file(path / SUM, str(backbone.device))["sum"] for path in paths)
            return *point, dict(zip(places, read, strict=True))
    widths = {block: key_width(backbone, block) for block in places}
    return 0, 0, {b: torch.zeros(f, f, device=backbone.device) for b, f in widths.items()}


def add_documents(
    backbone: Backbone, texts: Sequence[str], length: int, sums: dict[int, Tensor]
) -> int:
    """Add k k^T of the tokens of some documents to the upper triangle of each block's sum [f, f];
    returns how many tokens counted."""
    counted, beyond = 0, max(sums) + 1
    for batch, real in document_batches(backbone, texts, length):
        with contextlib.ExitStack() as context:
            seen = {
                block: context.enter_context(capture(backbone.module("mlp_out", block)))
                for block in sums
            }
            if beyond < backbone.n_blocks():
                context.enter_context(stop_before(backbone.module("block", beyond)))
            backbone.model.base_model(**batch.inputs(), use_cache=False)
        for block, taken in seen.items():
            add_outer(sums[block], taken.input[real].float())
        counted += int(real.sum())
    return counted


def add_outer(total: Tensor, keys: Tensor) -> None:
    """Add k k^T of some keys [n, f] to the upper triangle of a sum [f, f], a block of columns after
    the other; what is below the triangle means nothing from then on."""
    for at in range(0, len(total), COLUMNS):
        columns = slice(at, at + COLUMNS)
        total[columns, at:].addmm_(keys[:, columns].T, keys[:, at:])


def symmetric(total: Tensor) -> Tensor:
    """The sum [f, f] of which `add_outer` keeps the upper triangle."""
    return total.triu() + total.triu(1).T


def document_batches(
    backbone: Backbone, texts: Sequence[str], length: int
) -> Iterator[tuple[Encoded, Tensor]]:
    """Documents, cut at `length` tokens, as right-padded batches of about 2048 tokens, each with
    the mask [B, T] of the tokens that count: real ones behind the backbone's document prefix."""
    head = len(backbone.tokenizer(backbone.prefix)["input_ids"]) if backbone.prefix else 0
    rows = [
        backbone.tokenizer(backbone.prefix + text, truncation=True, max_length=length)["input_ids"]
        for text in texts
    ]
    pending = sorted((row for row in rows if len(row) > head), key=len)
    while pending:
        # Rows of like length together, so that little is padded.
        widest = len(pending[-1])
        take = max(1, min(len(pending), math.ceil(2048 / widest)))
        some, pending = pending[-take:], pending[:-take]
        batch = batch_rows(backbone, some, [len(row) for row in some], "right")
        real = batch.attention_mask.bool()
        real[:, :head] = False
        yield batch, real


def stored_states(
    backbone: Backbone, part: str, block: int, corpus: Corpus, sample: KeyText
) -> Tensor:
    """The inputs [n, d] of a part of the unedited backbone at the first `sample.tokens` tokens that
    count, in the backbone's precision, on the host; from the cache or by one pass over the text.

    Documents are read as for the key statistics. A corpus that ends earlier gives fewer rows, and a
    line on standard error.
    """

    def make(scratch: Path) -> None:
        states = _collect_states(backbone, part, block, corpus, sample)
        save_file({"states": states}, scratch / "states.safetensors")

    identity = [_identity(backbone, part, block, corpus, sample), sample.tokens]
    kept = Cache.user().folder("states", identity, make)
    states = load_file(kept / "states.safetensors")["states"]
    if len(states) < sample.tokens:
        print(
            f"{corpus.name} gives only {len(states):,} of {sample.tokens:,} tokens", file=sys.stderr
        )
    return states


@torch.no_grad()
def _collect_states(
    backbone: Backbone, part: str, block: int, corpus: Corpus, sample: KeyText
) -> Tensor:
    texts = corpus.texts[: sample.documents or None]
    length, count, found = document_length(backbone, sample), 0, []
    bar = tqdm(
        total=sample.tokens, desc="stored states", unit="token", unit_scale=True, file=sys.stderr,
        mininterval=1, leave=False,
    )  # fmt: skip
    for start in range(0, len(texts), GROUP):
        for batch, real in document_batches(backbone, texts[start : start + GROUP], length):
            with capture(backbone.module(part, block)) as seen:
                backbone.model.base_model(**batch.inputs(), use_cache=False)
            found.append(seen.input[real].cpu())
            count += len(found[-1])
            bar.update(len(found[-1]))
        if count >= sample.tokens:
            break
    bar.close()
    return torch.cat(found)[: sample.tokens].contiguous()
