"""A user's own facts: `Edit` from a prompt and a target, and files of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from lib.data import records
from lib.data.published import reading
from lib.data.records import Probe, find_subject
from lib.errors import RecordError
from lib.storage.checked import nearest
from lib.storage.fingerprints import content_hash

Question: TypeAlias = str | tuple[str, str] | list[str] | dict[str, str] | Probe
"""A prompt, a pair of prompt and answer, {"prompt": ..., "target": ...}, or a `Probe`."""

FIELDS = ("prompt", "target", "subject", "rephrases", "locality", "portability", "target_true")


class Edit(records.Edit):
    """One fact to change: after the edit `prompt` should be answered by `target`.

    A "{}" in the prompt is where the subject stands. `rephrases` ask for the same fact in other
    words; `locality` are prompts that must keep their answer, `portability` questions whose answer
    follows from the new fact, each a prompt or a pair (prompt, answer). White space around prompt,
    target and subject is dropped: a target begins after one space. The other fields are those of
    `lib.data.records.Edit`; the identity is made of the content where none is given.

    RecordError for an empty prompt or target, and for a subject that the prompt does not hold.
    """

    def __init__(
        self,
        prompt: str,
        target: str,
        subject: str = "",
        rephrases: Sequence[str] = (),
        locality: Iterable[Question] = (),
        portability: Iterable[Question] = (),
        *,
        identity: str = "",
        **others: Any,
    ) -> None:
        for name, value in (("prompt", prompt), ("target", target), ("subject", subject)):
            if not isinstance(value, str):
                raise RecordError(f"the field '{name}' must be text, not {value!r}")
        prompt, subject = prompt.strip(), subject.strip()
        if "{}" in prompt and subject and "subject_at" not in others:
            if prompt.count("{}") != 1:
                raise RecordError(f"the prompt {prompt!r} holds {{}} more than once")
            others["subject_at"] = prompt.index("{}")
            prompt = prompt.replace("{}", subject)
        elif subject and subject not in prompt and (place := find_subject(prompt, subject)):
            subject = prompt[slice(*place)]  # as the prompt spells it
        rephrases = tuple(_text("rephrases", text) for text in _several("rephrases", rephrases))
        made = content_hash([prompt, target.strip()])[:8]
        identity = identity or f"{subject or prompt[:40]}:{made}"
        super().__init__(
            identity, prompt, target.strip(), subject, rephrases,
            _probes("locality", "near", identity, locality),
            portability=_probes("portability", "portability", identity, portability), **others,
        )  # fmt: skip


def edits(path: str | Path) -> list[Edit]:
    """The facts of a file: JSON Lines or one JSON array, plain or gzip, each an object with
    "prompt" and "target", and if wanted "subject", "rephrases" (a list), "locality" and
    "portability" (lists of prompts, [prompt, answer] or {"prompt", "target"}) and "target_true".

    RecordError names file, line and field of the first fact that cannot be used.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise RecordError(f"{path} is not there: give a JSON Lines file of facts")
    found, _, _ = reading.collect(path, lambda row, _: _fact(row), remedy="Mend the record.")
    return found


def _fact(row: reading.Row) -> Edit:
    for name in row:
        if name not in FIELDS:
            raise RecordError(f"the field '{name}' is not known ({nearest(str(name), FIELDS)})")
    for name in ("prompt", "target"):
        if name not in row:
            raise RecordError(f"the field '{name}' is missing")
        if not (isinstance(row[name], str) and row[name].strip()):
            raise RecordError(f"the field '{name}' must be text, not {row[name]!r}")
    return Edit(**row)


def checked_facts(facts: Any) -> list[records.Edit]:
    """One fact or several as a list, facts without a name of their own among them; RecordError for
    anything else, and for none."""
    found = [facts] if isinstance(facts, records.Edit) else list(facts)
    for fact in found:
        if not isinstance(fact, records.Edit):
            raise RecordError(f"{fact!r} is no fact: give lib.Edit(prompt, target, subject=...)")
    if not found:
        raise RecordError("there is no fact to edit: give at least one lib.Edit(prompt, target)")
    return found


def _several(name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, dict)) or not isinstance(values, Iterable):
        raise RecordError(f"the field '{name}' must be a list, not {values!r}")
    return list(values)


def _text(name: str, value: Any) -> str:
    if not (isinstance(value, str) and value.strip()):
        raise RecordError(f"the field '{name}' must hold texts, not {value!r}")
    return value.strip()


def _probes(
    name: str, kind: str, identity: str, questions: Iterable[Question]
) -> tuple[Probe, ...]:
    found = []
    for number, question in enumerate(_several(name, questions)):
        if isinstance(question, Probe):
            found.append(question)
            continue
        if isinstance(question, dict):
            prompt, target = question.get("prompt"), question.get("target", "")
        elif isinstance(question, str):
            prompt, target = question, ""
        elif len(question) == 2:
            prompt, target = question
        else:
            raise RecordError(f"the field '{name}' holds {question!r}, no pair of prompt, answer")
        if not isinstance(target, str):
            raise RecordError(f"the field '{name}' must hold texts, not {target!r}")
        found.append(
            Probe(f"{identity}:{name}:{number}", _text(name, prompt), target.strip(), kind)
        )
    return tuple(found)
