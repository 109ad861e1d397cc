"""Plain text on which key statistics are collected: embedded, from files, or from the hub."""

import gzip
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lib.data import invented
from lib.errors import RecordError, UsageError

CORPORA = ("new_wiki", "wikipedia", "invented")
HUB = ("wikimedia/wikipedia", "20231101.en")


@dataclass(frozen=True)
class Corpus:
    """Documents in reading order. `substitution` says what they stand in for ("": published)."""

    name: str
    texts: tuple[str, ...]
    substitution: str = ""

    @cached_property
    def content(self) -> str:
        """sha256 over all documents."""
        total = hashlib.sha256()
        for text in self.texts:
            total.update(text.encode("utf-8") + b"\0")
        return total.hexdigest()


def load(name: str, data_dir: Path | None = None) -> Corpus:
    """The corpus `name`, shuffled as the official code does it (`random.Random(1)`).

    "new_wiki": Wikipedia paragraphs of the embedded data. "wikipedia": `data_dir`/wikipedia/ with
    *.jsonl (field "text") or *.txt (a document per line), plain or gzip; without `data_dir` the
    hub's Wikipedia. "invented": a few made-up sentences. Raises UsageError for another name,
    RecordError where the text cannot be had.
    """
    if name not in CORPORA:
        raise UsageError(f"there is no corpus {name!r}; known: {', '.join(CORPORA)}.")
    if name == "invented":
        return _shuffled(name, invented.sentences(), "Invented sentences: machinery only.")
    if name == "new_wiki":
        from lib.data.embedded import bigbench

        note = "Wikipedia paragraphs of SQuAD-shifts stand in for the full Wikipedia."
        return _shuffled(name, bigbench.texts("new_wiki"), note)
    if data_dir is not None:
        return _shuffled(name, list(_files(data_dir / "wikipedia")), "")
    return _shuffled(name, _hub(), "")


def _shuffled(name: str, texts: list[str], substitution: str) -> Corpus:
    order = list(range(len(texts)))
    random.Random(1).shuffle(order)
    kept = tuple(texts[index] for index in order if texts[index].strip())
    if not kept:
        raise RecordError(f"the corpus {name} holds no text")
    return Corpus(name, kept, substitution)


def _files(folder: Path) -> Iterator[str]:
    found = [path for path in sorted(folder.glob("*")) if path.is_file()]
    if not found:
        raise RecordError(
            f"{folder} holds no text for the key statistics; put *.jsonl (field 'text') or *.txt "
            "files there, or run a profile that uses the embedded text"
        )
    for path in found:
        reader = gzip.open if path.suffix == ".gz" else open
        with reader(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if ".txt" in path.suffixes:
                    yield line.strip()
                    continue
                try:
                    yield str(json.loads(line)["text"])
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise RecordError(f"{path}:{number}: no object with 'text'") from error


def _hub() -> list[str]:
    try:
        import datasets

        return datasets.load_dataset(*HUB, split="train")["text"]
    except Exception as error:  # the library raises anything from OSError to its own kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecordError(
            f"{HUB[0]} cannot be read from the hub ({first}). Check the network, or give "
            "--data-dir a folder wikipedia/ with *.jsonl files."
        ) from error
