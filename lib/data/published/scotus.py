"""Supreme Court documents with their topic, in published files: MELO's SCOTUS task (melo 4).

A classifier learned the early documents (`upstream`); the later ones are edited towards their
class, a number as text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lib.data.published import reading
from lib.data.published.reading import Row
from lib.data.records import BadRecord, Dataset, Edit, Probe
from lib.errors import RecordError, UsageError

T = TypeVar("T")
VARIANTS = ("grace", "oyez")
LEARNED = ("train.jsonl", "train.json")  # 1982 to 1991
EDITED = ("test.jsonl", "test.json")  # 1992 to 2009
OYEZ = ("oyez_scdb_3096.jsonl", "oyez_scdb.jsonl")
ORIGIN = "the splits of tomh/grace-scotus as train.jsonl and test.jsonl, or an Oyez/SCDB file"
EARLY, LATE = range(1983), range(1991, 2010)  # years of decision in the Oyez/SCDB form
_NOTE = (
    "Oyez summaries of the facts (decisions before 1983 learned, those of 1991 to 2009 edited), "
    "with the Supreme Court Database's issue area as class, stand in for the opinions of "
    "grace-scotus."
)


def load(folder: Path, *, variant: str | None = None, strict: bool = True) -> Dataset:
    """GRACE's two files, or without them (or with `variant` "oyez") the Oyez/SCDB file.

    Edits and `upstream` are in file order. Raises UsageError for another variant, RecordError for
    missing or unreadable files.
    """
    if variant not in (None, *VARIANTS):
        raise UsageError(f"SCOTUS has no variant {variant!r}; known: {', '.join(VARIANTS)}.")
    has_splits = reading.find(folder, EDITED) is not None
    if variant == "oyez" or (variant is None and not has_splits and reading.find(folder, OYEZ)):
        return _oyez(folder, strict)
    learned, sources, skipped, left_out = _read(folder, LEARNED, _split, strict)
    edits, more_sources, more_skipped, more_left_out = _read(folder, EDITED, _split, strict)
    return Dataset(
        name="SCOTUS (grace-scotus)",
        edits=tuple(edits),
        upstream=_probes(learned),
        sources=(*sources, *more_sources),
        skipped=(*skipped, *more_skipped),
        left_out=(*left_out, *more_left_out),
    )


def document(identity: str, text: str, label: str) -> Edit:
    """A document that is edited towards a class."""
    return Edit(identity=identity, prompt=text, target=label, subject="", relation=identity)


def _oyez(folder: Path, strict: bool) -> Dataset:
    dated, sources, skipped, left_out = _read(folder, OYEZ, _summary, strict)
    early = [edit for year, edit in dated if year in EARLY]
    late = tuple(edit for year, edit in dated if year in LATE)
    if not early or not late:
        raise RecordError(f"{sources[0]} has no decision before 1983, or none of 1991 to 2009.")
    if others := len(dated) - len(early) - len(late):
        left_out = (*left_out, f"{others} decisions of other years")
    return Dataset(
        name="SCOTUS (Oyez summaries)",
        edits=late,
        upstream=_probes(early),
        sources=sources,
        substitution=_NOTE,
        skipped=skipped,
        left_out=left_out,
    )


def _read(
    folder: Path, names: tuple[str, ...], convert: Callable[[Row, str], T], strict: bool
) -> tuple[list[T], tuple[str, ...], tuple[BadRecord, ...], tuple[str, ...]]:
    """The rows of the first of `names` that is there, the file's name, its bad rows, and what else
    was left out."""
    path = reading.require(folder, names, ORIGIN)
    stem = reading.stem(path)
    rows, skipped, left_out = reading.collect(
        path, lambda row, index: convert(row, f"{stem}:{index}"), strict=strict
    )
    return rows, (path.name,), skipped, left_out


def _split(row: Row, identity: str) -> Edit:
    return document(identity, reading.words(row, "text"), _class(row, "label"))


def _summary(row: Row, identity: str) -> tuple[int, Edit]:
    """Year of decision, and facts and question with the issue area, which is counted from 1."""
    date = reading.text(row, "decision_date")
    if not date[:4].isdigit():
        raise RecordError(f"the field 'decision_date' begins with no year: {date!r}")
    area = int(_class(row, "issue_area"))
    if area == 0:
        raise RecordError("the field 'issue_area' is 0; areas are counted from 1")
    text = " ".join((reading.words(row, "facts"), *reading.texts(row, "question")))
    return int(date[:4]), document(identity, text, str(area - 1))


def _class(row: Row, name: str) -> str:
    label = reading.text(row, name).strip()
    if not label.isdigit():
        raise RecordError(f"the field {name!r} is no class number: {label!r}")
    return str(int(label))


def _probes(learned: list[Edit]) -> tuple[Probe, ...]:
    return tuple(Probe(edit.identity, edit.prompt, edit.target, "upstream") for edit in learned)
