"""Running text that edits should leave alone: a document's opening, and how it goes on."""

import re
from pathlib import Path

from lib.data import reading
from lib.data.records import BadRecord, Probe

TEXT_FILES = (
    "openwebtext_10k.jsonl", "openwebtext-10k.jsonl", "openwebtext_val_4007.jsonl",
)  # fmt: skip
DOCUMENTS = 1000  # the first so many (melo 4)
OPENING = 12  # words


def web_texts(
    path: Path, *, strict: bool = True
) -> tuple[tuple[Probe, ...], tuple[BadRecord, ...]]:
    """The first documents (field `text`) long enough to be cut, as probes of kind "upstream"."""
    stem = reading.stem(path)
    found, bad = reading.collect(
        path,
        lambda row, index: continuation(f"{stem}:{index}", reading.text(row, "text")),
        strict=strict,
    )
    return tuple(filter(None, found))[:DOCUMENTS], bad


def continuation(identity: str, text: str, words: int | None = None) -> Probe | None:
    """A probe whose prompt is the first `OPENING` words of `text` and whose target is the rest, up
    to `words` in all (None: to the end); None for a text without a rest.

    The official code scores every token and reads the key at the text's end. With an empty prompt
    all texts would share one key here, and what is decoded; so the opening is context only.
    """
    parts = list(re.finditer(r"\S+", text))[:words]
    if len(parts) <= OPENING:
        return None
    cut = parts[OPENING - 1].end()
    prompt, target = text[:cut].strip(), text[cut : parts[-1].end()].strip()
    return Probe(identity, prompt, target, "upstream")
