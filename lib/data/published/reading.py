"""Records of JSON, JSONL and text files, plain or gzip, with the line each one begins on."""

import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from lib.data.records import BadRecord, Probe, find_subject
from lib.errors import RecordError

T = TypeVar("T")
SUFFIXES = (".json", ".jsonl", ".txt")  # each also with .gz behind it
REMEDY = (
    "Mend the record, or pass --skip-bad to leave such records out (they are counted in the "
    "report)."
)


class Row(dict[str, object]):
    """A record as it was read; `wordless` counts its texts that are dropped because they hold no
    letter and no digit."""

    wordless = 0


class UnusedError(RecordError):
    """A record in which there is nothing to edit. It is left out and counted by its `kind`, in
    strict loads too."""

    kind: ClassVar[str]


class WordlessError(UnusedError):
    """The question or the answer of a record holds no letter and no digit."""

    kind = "without a letter or a digit"


class NoNewAnswerError(UnusedError):
    """The field with a record's new answer is empty."""

    kind = "without a new answer"


def data_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files in a dataset's folder that readers may read, by name: those with one of the
    suffixes, plain or gzip. What file managers and editors leave there (.DS_Store, ._x.jsonl,
    x.jsonl~, x.jsonl.bak) is not among them, nor is anything in folders below; none if there is no
    such folder."""
    return sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.removesuffix(".gz").endswith(suffixes)
        and not path.name.startswith(".")
        and path.is_file()
    )


def find(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` that exists in `folder`, plain or with .gz behind it."""
    there = {path.name: path for path in data_files(folder)}
    wanted = (file for name in names for file in (name, f"{name}.gz"))
    return next((there[file] for file in wanted if file in there), None)


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
        return json.loads(_content(path).decode("utf-8"), **_JSON)
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}, line {error.lineno}: broken JSON ({error.msg}).") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 at byte {error.start}.") from error


@dataclass(frozen=True)
class _Unusable:
    """Stands where a file holds no value that could be used, and says why."""

    reason: str


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        for key in found:
            if keys.count(key) > 1:
                found[key] = _Unusable(f"an object has the key {key!r} twice")
    return found


# A record with such a value is malformed, and the records behind it are still read.
_JSON = {
    "object_pairs_hook": _object,
    "parse_constant": lambda name: _Unusable(f"{name} is no value"),
}


def _refuse(value: _Unusable) -> None:
    raise ValueError(value.reason)


def _check(value: object) -> None:
    """ValueError for what cannot be written as it was read: NaN and Infinity, a number beyond all
    floats, half a surrogate pair, a key that an object has twice."""
    json.dumps(value, ensure_ascii=False, allow_nan=False, default=_refuse).encode("utf-8")


def _lines(content: bytes, parse: Callable[[str], object]) -> Iterator[tuple[int, object]]:
    """(line, value or error) of every line that is not blank. Split at newlines only: text may
    hold U+2028 and friends."""
    for number, line in enumerate(io.BytesIO(content), start=1):
        if not line.strip():
            continue
        try:
            yield number, parse(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            yield number, error


def _array(path: Path, content: bytes) -> Iterator[tuple[int, object]]:
    """(line, value) of a JSON array, element by element. Where an element breaks, or something
    stands behind the closing bracket, what follows cannot be read: a RecordError."""
    decoder = json.JSONDecoder(**_JSON)
    text = content.decode("utf-8", "surrogateescape")  # `_check` refuses the records with these
    at, line = text.index("[") + 1, text.count("\n", 0, text.index("[")) + 1
    while True:
        begin = at
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line += text.count("\n", begin, at)
        if at < len(text) and text[at] == "]":
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise RecordError(
                f"{path}, line {line}: broken JSON in an array ({error}), and what follows cannot "
                "be told apart. Mend the file."
            ) from error
        yield line, value
        line += text.count("\n", at, end)
        at = end
    if behind := text[at + 1 :].strip():
        raise RecordError(
            f"{path}, line {line}: the array ends here, and {behind[:20]!r} follows. Put all "
            "records into one array, or one on each line without brackets."
        )


def numbered(path: Path) -> Iterator[tuple[int, object]]:
    """(line, parsed value) of every record; a record that does not parse is given as its error. A
    line of a text file is a record with the field "text"."""
    content = _content(path)
    if path.name.removesuffix(".gz").endswith(".txt"):
        return _lines(content, lambda line: {"text": line.strip()})
    if content.lstrip()[:1] == b"[":
        return _array(path, content)
    return _lines(content, lambda line: json.loads(line, **_JSON))


def collect(
    path: Path,
    convert: Callable[[Row, int], T],
    *,
    strict: bool = True,
    rows: Iterable[tuple[int, object]] | None = None,
    unit: str = "line",
    remedy: str = REMEDY,
) -> tuple[list[T], tuple[BadRecord, ...], tuple[str, ...]]:
    """`convert(row, index)` of every record, the records that could not be used, and in words, with
    counts, what was left out because there is nothing in it to edit, ask or say.

    `strict`: the first bad record raises a RecordError naming file, line and `remedy`; otherwise
    bad records are returned. A file without any usable record always raises. `rows` are the file's
    records where they do not stand one behind the other, `unit` what they are numbered by.
    """
    good: list[T] = []
    bad: list[BadRecord] = []
    unused: Counter[str] = Counter()
    single = 0
    for index, (line, value) in enumerate(numbered(path) if rows is None else rows):
        try:
            if isinstance(value, Exception):
                raise RecordError(f"broken JSON or encoding ({value})")
            try:
                _check(value)
            except (ValueError, RecursionError) as error:
                raise RecordError(f"broken JSON or encoding ({error})") from error
            if not isinstance(value, dict):
                raise RecordError(f"expected an object, found {type(value).__name__}")
            row = Row(value)
            good.append(convert(row, index))
            single += row.wordless
        except UnusedError as error:
            unused[error.kind] += 1
        except RecordError as error:
            if strict:
                raise RecordError(f"{path}, {unit} {line}: {error}. {remedy}") from error
            bad.append(BadRecord(file=path.name, line=line, reason=str(error)))
    if not good:
        raise RecordError(f"{path} holds no usable record ({len(bad)} bad ones).")
    left_out = [f"{count} records of {path.name} {kind}" for kind, count in unused.items()]
    if single:
        left_out.append(f"{single} single texts of {path.name} {WordlessError.kind}")
    return good, tuple(bad), tuple(left_out)


def worded(row: Mapping[str, object], text: str) -> bool:
    """Whether the text holds a letter or a digit of any script; a `Row` counts those without."""
    has_words = any(map(str.isalnum, text))
    if isinstance(row, Row):
        row.wordless += not has_words
    return has_words


def words(row: Row, name: str) -> str:
    """The field as text with a letter or a digit: a question or an answer that is edited. Raises
    WordlessError for text without, RecordError for anything else."""
    return as_words(text(row, name), name)


def as_words(value: str, name: str) -> str:
    """`value` if it holds a letter or a digit of any script; else a WordlessError."""
    if not any(map(str.isalnum, value)):
        raise WordlessError(f"the field {name!r} holds no letter and no digit")
    return value


def text(row: Mapping[str, object], name: str) -> str:
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


def texts(row: Mapping[str, object], name: str) -> tuple[str, ...]:
    """The field as texts: a list of strings or one string; () if absent. Those without a letter or
    a digit are dropped and counted."""
    value = row.get(name)
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise RecordError(f"the field {name!r} is not a list of texts")
    return tuple(item for item in values if worded(row, item))


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
    """`subject` as it is spelled in `prompt` (case may differ), without white space around it; ""
    if it is not there."""
    begin, end = find_subject(prompt, subject) or (0, 0)
    return prompt[begin:end]


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
    if not worded(row, question):
        return ()
    return (Probe(f"{identity}:portability", question, answer, "portability"),)
