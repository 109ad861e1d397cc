"""The records every editor and protocol shares: `Edit`, `Probe`, `Dataset`, `Stream`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lib.errors import RecordError
from lib.storage.fingerprints import content_hash

SUBSETS = ("edits", "holdout", "upstream", "near", "portability", "general")
# What the prompts of a subset are called, and what a score on them is called. A paper whose pages
# must speak its own words has them beside what shows them.
TITLES = {
    "edits": "Edits", "holdout": "Rephrases", "upstream": "Unrelated questions",
    "near": "Same relation", "portability": "What follows", "general": "General ability",
}  # fmt: skip
SCORE_TITLES = {
    "edits": "Edit success", "holdout": "Held-out rephrases", "upstream": "Locality (upstream)",
    "near": "Locality (near)",
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """A prompt that is scored beside the edits, most of them to be left alone.

    `kind` says why it is there: "upstream" (what the backbone was trained for), "near" (same
    relation, other subject), "neighbour" (same relation and same true object), "distractor" (the
    edit's own statement before a neighbour prompt), "general" (general ability: nothing to do with
    the edits). Of kind "portability" is what an edit should change: its answer follows from the new
    fact. `target` is the gold answer, "" if unknown.
    """

    identity: str
    prompt: str
    target: str
    kind: str


@dataclass(frozen=True)
class Edit:
    """One fact to change: after the edit `prompt` should be answered by `target`.

    `rephrases` ask for the same fact in other words; `locality` are probes that belong to this
    record; `target_true` is the answer before the edit where the record says so (CounterFact);
    `portability` are questions whose answer follows from the new fact. `subject_at` is where the
    subject begins in the prompt, if the source says so: kept only where `find_subject` would find
    another place.
    """

    identity: str
    prompt: str
    target: str
    subject: str
    rephrases: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    relation: str = ""
    target_true: str = ""
    portability: tuple[Probe, ...] = ()
    subject_at: int | None = None

    def __post_init__(self) -> None:
        for name in ("identity", "prompt", "target"):
            if not getattr(self, name).strip():
                raise RecordError(f"edit {self.identity or '?'}: the field '{name}' is empty")
        if self.subject and not (self.subject.strip() and self.subject in self.prompt):
            raise RecordError(
                f"edit {self.identity}: the subject {self.subject!r} does not occur in the prompt "
                f"{self.prompt!r}"
            )
        if self.subject_at is None:
            return
        if not self.subject or not self.prompt.startswith(self.subject, self.subject_at):
            raise RecordError(
                f"edit {self.identity}: the subject {self.subject!r} does not stand at index "
                f"{self.subject_at} of the prompt {self.prompt!r}"
            )
        if self.subject_span == find_subject(self.prompt, self.subject):
            object.__setattr__(self, "subject_at", None)

    @property
    def subject_span(self) -> tuple[int, int] | None:
        """Begin and end of the subject in the prompt, without white space around it; None for an
        edit without a subject."""
        if self.subject_at is None:
            return find_subject(self.prompt, self.subject)
        begin = self.subject_at + len(self.subject) - len(self.subject.lstrip())
        return begin, begin + len(self.subject.strip())


def find_subject(prompt: str, subject: str) -> tuple[int, int] | None:
    """Begin and end of the subject in the prompt, white space around it aside; None if it is not
    there. A word of its own is preferred to a part of a longer one, then the subject as it is
    spelled to one in another case, then the first to those behind it."""
    name, places = subject.strip(), []
    for flags in (0, re.IGNORECASE) if name else ():
        begins = [m.start() for m in re.finditer(f"(?={re.escape(name)})", prompt, flags)]
        found = [(begin, begin + len(name)) for begin in begins]
        for begin, end in found:
            if not (prompt[:begin][-1:].isalnum() or prompt[end : end + 1].isalnum()):
                return begin, end
        places += found
    return places[0] if places else None


@dataclass(frozen=True)
class BadRecord:
    """A record that was left out under `--skip-bad`, and why. `line` is 0 for one that is left out
    for its length: its file is read long before the backbone is known."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Edits and locality pools as read from one source, before any protocol orders them.

    `name` is what reports print (a substitute never carries the published name); `substitution`
    says in one sentence what stands in for what, "" for published data; `sources` are files or
    packages with versions; `taught` are probes like the edits that only the upstream training of
    a classifier may use; `near` are probes that belong to no single edit, where edits bring none;
    `left_out` says in words, with counts, what of the files is in no record without being
    malformed.
    """

    name: str
    edits: tuple[Edit, ...] = ()
    upstream: tuple[Probe, ...] = ()
    sources: tuple[str, ...] = ()
    substitution: str = ""
    skipped: tuple[BadRecord, ...] = ()
    taught: tuple[Probe, ...] = ()
    near: tuple[Probe, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """sha256 over all records; two equal hashes are the same data."""
        given = [part for part in (self.taught, self.near) if part]
        return content_hash([self.edits, self.upstream, *given])

    @property
    def classes(self) -> int:
        """How many classes a classifier of these records needs: targets are numbers from 0 on."""
        return 1 + max(int(row.target) for row in (*self.edits, *self.upstream, *self.taught))


@dataclass(frozen=True)
class Stream:
    """An ordered list of edits cut into batches, with what is measured beside them.

    `holdout` are rephrases of the edited facts that no edit uses: pairs (prompt, target) with
    identity, written as `Edit`s so that they can be scored like edits; `upstream` and `near` are
    the locality pools; `portability` asks for what follows from the edits. `owners` names, for each
    of these four subsets, the index of the edit that each of its rows belongs to (a subset without
    rows may be missing); empty where rows are shared pools. `general` (tests of general ability)
    is a shared pool always. `skipped` are records that were left out because the backbone cannot
    read them.

    Raises RecordError if `owners` does not match the rows.
    """

    name: str
    edits: tuple[Edit, ...]
    batch_size: int
    holdout: tuple[Edit, ...] = ()
    upstream: tuple[Probe, ...] = ()
    near: tuple[Probe, ...] = ()
    notes: tuple[str, ...] = field(default=())
    owners: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    general: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    skipped: tuple[BadRecord, ...] = ()

    def __post_init__(self) -> None:
        if not self.owners:
            return
        for subset in ("holdout", "upstream", "near", "portability"):
            named, rows = self.owners.get(subset, ()), getattr(self, subset)
            if len(named) != len(rows) or any(not 0 <= i < len(self.edits) for i in named):
                raise RecordError(
                    f"stream {self.name}: the owners of its {len(rows)} {subset} rows must be "
                    f"{len(rows)} edit indices below {len(self.edits)}"
                )

    def owner(self, subset: str, index: int) -> int:
        """The edit that row `index` of a subset belongs to; -1 for a row of a shared pool."""
        if subset == "edits":
            return index
        return self.owners[subset][index] if self.owners and subset != "general" else -1

    def beginning(self, count: int) -> "Stream":
        """The stream of the first `count` edits and the rows that belong to them; shared pools stay
        whole. Raises RecordError for more edits than there are."""
        if count == len(self.edits):
            return self
        if not 0 < count < len(self.edits):
            raise RecordError(f"stream {self.name} has {len(self.edits)} edits, not {count}")
        kept: dict[str, Any] = {}
        owners = {}
        for subset, named in self.owners.items():
            pairs = zip(getattr(self, subset), named, strict=True)
            mine = [(row, owner) for row, owner in pairs if owner < count]
            kept[subset] = tuple(row for row, _ in mine)
            owners[subset] = tuple(owner for _, owner in mine)
        notes = (*self.notes, f"the first {count} of these edits")
        return replace(self, edits=self.edits[:count], notes=notes, owners=owners, **kept)

    @property
    def conflicting(self) -> int:
        """How many prompts are edited towards more than one answer. All are edited, in order: what
        the prompt is answered by in the end is up to the editor."""
        answers: dict[str, set[str]] = {}
        for edit in self.edits:
            answers.setdefault(edit.prompt, set()).add(edit.target)
        return sum(len(targets) > 1 for targets in answers.values())

    def batches(self) -> Iterator[Sequence[Edit]]:
        """The edits in order, `batch_size` at a time; the last batch may be shorter."""
        for start in range(0, len(self.edits), self.batch_size):
            yield self.edits[start : start + self.batch_size]

    @property
    def content(self) -> str:
        """sha256 over everything that decides a result."""
        decides = [self.edits, self.batch_size, self.holdout, self.upstream, self.near]
        given = [dict(self.owners), self.general, self.portability]
        return content_hash([*decides, *(value for value in given if value)])
