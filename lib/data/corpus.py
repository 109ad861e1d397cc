"""Plain text on which key statistics are collected: embedded, from files, or from the hub."""

import gzip
import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lib.data import invented
from lib.data.published import hub, reading
from lib.data.published.reading import Row
from lib.data.records import BadRecord
from lib.errors import RecordError, UsageError
from lib.storage.cache import Cache

CORPORA = ("new_wiki", "wikipedia", "invented")
SUFFIXES = (".jsonl", ".txt")  # of the files in wikipedia/
ARTICLES = 100_000  # of the hub's Wikipedia, as many as the official code draws
SEED = 1


@dataclass(frozen=True)
class Corpus:
    """Documents in reading order. `substitution` says what they stand in for ("": published);
    `skipped` are malformed ones that were left out."""

    name: str
    texts: tuple[str, ...]
    substitution: str = ""
    skipped: tuple[BadRecord, ...] = ()

    @cached_property
    def content(self) -> str:
        """sha256 over all documents."""
        total = hashlib.sha256()
        for text in self.texts:
            total.update(text.encode("utf-8") + b"\0")
        return total.hexdigest()


def load(name: str, data_dir: Path | None = None, *, strict: bool = True) -> Corpus:
    """The corpus `name`, shuffled as the official code does it (`random.Random(1)`).

    "new_wiki": Wikipedia paragraphs of the embedded data. "wikipedia": `data_dir`/wikipedia/ with
    *.jsonl (field "text") or *.txt (a document per line), plain or gzip; without that folder
    `ARTICLES` drawn from the hub's Wikipedia, once, and kept in the cache. "invented": a few
    made-up sentences. A blank document is none. `strict`: stop at a malformed document; otherwise
    leave it out. Raises UsageError for another name, RecordError where the text cannot be had.
    """
    if name not in CORPORA:
        raise UsageError(f"there is no corpus {name!r}; known: {', '.join(CORPORA)}.")
    if name == "invented":
        return _shuffled(name, invented.sentences(), "Invented sentences: machinery only.")
    if name == "new_wiki":
        from lib.data.embedded import bigbench

        note = "Wikipedia paragraphs of SQuAD-shifts stand in for the full Wikipedia."
        return _shuffled(name, bigbench.texts("new_wiki"), note)
    if data_dir is not None and (data_dir / "wikipedia").is_dir():
        return _shuffled(name, *_files(data_dir / "wikipedia", strict))
    return _shuffled(name, _drawn())


def _shuffled(
    name: str, texts: list[str], substitution: str = "", skipped: tuple[BadRecord, ...] = ()
) -> Corpus:
    order = list(range(len(texts)))
    random.Random(SEED).shuffle(order)
    kept = tuple(texts[index] for index in order if texts[index].strip())
    if not kept:
        raise RecordError(f"the corpus {name} holds no text")
    return Corpus(name, kept, substitution, skipped)


def _files(folder: Path, strict: bool) -> tuple[list[str], str, tuple[BadRecord, ...]]:
    """The documents of all files of a folder, what they stand in for (nothing), and the malformed
    ones."""
    found = reading.data_files(folder, SUFFIXES)
    if not found:
        raise RecordError(
            f"{folder} holds no text for the key statistics; put *.jsonl (field 'text') or *.txt "
            "files there, or run a profile that uses the embedded text"
        )
    texts: list[str] = []
    skipped: tuple[BadRecord, ...] = ()
    for path in found:
        documents, bad, _ = reading.collect(path, _text, strict=strict)
        texts += documents
        skipped += bad
    return texts, "", skipped


def _text(row: Row, _index: int) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise RecordError("the field 'text' is not text")
    return text


def kept_articles() -> Path:
    """Where the articles drawn from the hub's Wikipedia lie, or will."""
    return Cache.user().place("wikipedia", _identity())


def _identity() -> list[object]:
    return [hub.WIKIPEDIA, ARTICLES, SEED]


def _drawn() -> list[str]:
    """The articles, in the order of the dump."""

    def draw() -> bytes:
        texts = reservoir(str(row["text"]) for row in hub.WIKIPEDIA.load(streaming=True))
        return gzip.compress(json.dumps(texts, ensure_ascii=False).encode("utf-8"), mtime=0)

    return json.loads(gzip.decompress(Cache.user().file("wikipedia", _identity(), draw)))


def reservoir(texts: Iterable[str], size: int = ARTICLES, seed: int = SEED) -> list[str]:
    """`size` of the texts, each as likely as any other, in their order; all of them if there are no
    more. Only so many are held at a time."""
    draws, kept = random.Random(seed), []
    for place, text in enumerate(texts):
        if place < size:
            kept.append((place, text))
        elif (drawn := draws.randrange(place + 1)) < size:
            kept[drawn] = (place, text)
    return [text for _, text in sorted(kept)]
