"""Records of JSON and JSONL files, plain or gzip, with the line each one begins on."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lib.data.records import BadRecord, Probe
from lib.errors import RecordError

T = TypeVar("T")
Row = dict[str, object]


def find(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` that exists in `folder`, plain or with .gz behind it."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def stem(path: Path) -> str:
    """The file's name without .gz, .jsonl, .json."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")


def require(folder: Path, names: Sequence[str], origin: str) -> Path:
    """Like `find`, but a missing file is a RecordError that says where it comes from."""
    path = find(folder, names)
    if path is None:
        raise RecordError(
            f"none of {', '.join(names)} (plain or .gz) is in {folder}. Origin: {origin}. Put the "
            "file there and pass the folder above it with --data-dir, or leave --data-dir out to "
            "use the embedded substitute."
        )
    return path


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}. Check --data-dir.") from error
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise RecordError(
                f"{path} is not a whole gzip file: {error}. Copy it again."
            ) from error
    return content.removeprefix(b"\xef\xbb\xbf")


def document(path: Path) -> object:
    """A JSON file as one value; a RecordError names the line on which it breaks."""
    try:
        return json.loads(_content(path).decode("utf-8"))
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}, line {error.lineno}: broken JSON ({error.msg}).") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 at byte {error.start}.") from error


def _lines(content: bytes) -> Iterator[tuple[int, object]]:
    """(line, value or error) of JSONL. Split at newlines only: text may hold U+2028 and friends."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8"))
        except ValueError as error:
            yield number, error


def _array(content: bytes) -> Iterator[tuple[int, object]]:
    """(line, value or error) of a JSON array, element by element; stops at a broken element."""
    decoder = json.JSONDecoder()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        yield content[: error.start].count(b"\n") + 1, error
        return
    at, line = text.index("[") + 1, text.count("\n", 0, text.index("[")) + 1
    while True:
        begin = at
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line += text.count("\n", begin, at)
        if at < len(text) and text[at] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError as error:
            yield line, error
            return
        yield line, value
        line += text.count("\n", at, end)
        at = end


def numbered(path: Path) -> Iterator[tuple[int, object]]:
    """(line, parsed value) of every record; a record that does not parse is given as its error."""
    content = _content(path)
    return _array(content) if content.lstrip()[:1] == b"[" else _lines(content)


def collect(
    path: Path, convert: Callable[[Row, int], T], *, strict: bool = True
) -> tuple[list[T], tuple[BadRecord, ...]]:
    """`convert(row, index)` of every record, and the records that could not be used.

    `strict`: the first bad record raises a RecordError naming file and line; otherwise bad records
    are returned. A file without any usable record always raises.
    """
    good: list[T] = []
    bad: list[BadRecord] = []
    for index, (line, value) in enumerate(numbered(path)):
        try:
            if isinstance(value, Exception):
                raise RecordError(f"broken JSON or encoding ({value})")
            if not isinstance(value, dict):
                raise RecordError(f"expected an object, found {type(value).__name__}")
            good.append(convert(value, index))
        except RecordError as error:
            if strict:
                raise RecordError(
                    f"{path}, line {line}: {error}. Mend the record, or pass --skip-bad to leave "
                    "such records out (they are counted in the report)."
                ) from error
            bad.append(BadRecord(file=path.name, line=line, reason=str(error)))
    if not good:
        raise RecordError(f"{path} holds no usable record ({len(bad)} bad ones).")
    return good, tuple(bad)


def text(row: Row, name: str) -> str:
    """The field as non-empty text (numbers become text); anything else is a RecordError."""
    if name not in row:
        raise RecordError(f"the field {name!r} is missing (found: {', '.join(map(str, row))})")
    return as_text(row[name], name)


def as_text(value: object, name: str) -> str:
    """`value` as non-empty text: a string, a number, or the first element of a (nested) list."""
    while isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RecordError(f"the field {name!r} is not text")
    if not value.strip():
        raise RecordError(f"the field {name!r} is empty")
    return value


def texts(row: Row, name: str) -> tuple[str, ...]:
    """The field as texts: a list of strings or one string; () if absent. Blank ones are dropped."""
    value = row.get(name)
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise RecordError(f"the field {name!r} is not a list of texts")
    return tuple(item for item in values if item.strip())


def first_answer(row: Row) -> str:
    """output[0].answer of a KILT record; RecordError if there is none."""
    outputs = row.get("output")
    if not isinstance(outputs, list) or not outputs or not isinstance(outputs[0], dict):
        raise RecordError("the field 'output' is not a list with an answer")
    return text(outputs[0], "answer")


def subject_in(prompt: str, subject: str) -> str:
    """`subject` as it is spelled in `prompt` (case may differ); RecordError if it is not there."""
    found = spelled_in(prompt, subject)
    if not found:
        raise RecordError(f"the subject {subject!r} does not occur in the prompt {prompt!r}")
    return found


def spelled_in(prompt: str, subject: str) -> str:
    """`subject` as it is spelled in `prompt` (case may differ), "" if it is not there."""
    at = prompt.lower().find(subject.lower())
    return prompt[at : at + len(subject)] if at >= 0 else ""


def portability(row: Row, identity: str) -> tuple[Probe, ...]:
    """The one-hop question of EasyEdit's portability files; () for a record without one.

    Its answer follows from the record's new target and another fact ("Recalled Relation").
    Raises RecordError if the field is there and holds no question with an answer.
    """
    found = row.get("portability")
    if not found:
        return ()
    if not isinstance(found, Mapping):
        raise RecordError("the field 'portability' is not an object")
    question, answer = text(found, "New Question"), text(found, "New Answer")
    return (Probe(f"{identity}:portability", question, answer, "portability"),)
