"""One cache for all that is dear to make: read it, or lock, read again, make it whole, keep it.

    cache = Cache.user()
    folder = cache.folder("tuned", identity, make)      # make(scratch) writes files
    content = cache.file("general", identity, make)     # make() gives bytes
    rows = cache.lines("knowledge", identity, keys, make)  # make(missing) yields {key: row}, ...

An entry lies at ROOT/kind/hash of its identity, which says everything that decides its content:
code (`fingerprints`), versions, inputs. Every entry carries its own sha256; one that no longer
agrees is made again. Reading needs no lock and no place to write, so a read-only cache serves.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
from filelock import FileLock, Timeout

from lib.errors import AssetError, StoreError, TakenError
from lib.storage import atomic
from lib.storage.atomic import digest
from lib.storage.fingerprints import content_hash

T = TypeVar("T")
Row = Any  # whatever JSON holds

MANIFEST = "content.json"  # of an entry that is a folder: sha256 of each of its files
ABSENT = (FileNotFoundError, NotADirectoryError)


def cache_dir() -> Path:
    """The study's cache folder: STUDY_CACHE, else the platform's place for caches."""
    chosen = os.environ.get("STUDY_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    return Path(platformdirs.user_cache_dir("model-editing-study"))


def check_cache_dir() -> None:
    """AssetError unless the cache folder is there or can be made; it may be read-only."""
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(
            f"cannot create the cache folder {cache_dir()}: {error}. Set STUDY_CACHE to a folder "
            "that can be written."
        ) from error


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Only one process at a time is inside for the same `path`; the others wait, or raise
    TakenError if `wait` is off. The lock of a killed process is free. StoreError where nothing can
    be written or the file system has no locks (a file in their place would outlive a killed
    process)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f".{path.name}.lock"), fallback_to_soft=False)
        held.acquire(blocking=wait)
    except Timeout as error:
        raise TakenError(f"another process works on {path.name}") from error
    except OSError as error:
        raise StoreError(
            f"cannot lock in {path.parent}: {error}. Choose a folder that can be written, on a "
            "file system with locks: STUDY_CACHE for the cache, --output for results."
        ) from error
    try:
        yield
    finally:
        held.release()


def once(path: Path, read: Callable[[], T | None], make: Callable[[], T]) -> T:
    """What `read` gives; where that is None, what `make` gives, under the lock of `path`."""
    found = read()
    if found is None:
        with lock(path):
            found = read()
            if found is None:
                atomic.sweep(path.parent, path.name)
                found = make()
    return found


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """A read error says nothing about the content: it is told and deletes nothing."""
    try:
        yield
    except ABSENT:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot read {path}: {error}. Try again; if it stays so, delete it or choose another "
            "folder: STUDY_CACHE for the cache, --output for results."
        ) from error


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of each file of an entry that is a folder, as it was kept."""
    return json.loads((folder / MANIFEST).read_text("utf-8"))


def whole(folder: Path) -> bool:
    """Whether the folder is there and every file is as it was kept."""
    try:
        with reading(folder):
            recorded = hashes(folder)
            return bool(recorded) and all(
                digest(folder / name) == kept for name, kept in recorded.items()
            )
    except (*ABSENT, ValueError, AttributeError):
        return False


def keep(folder: Path, write: Callable[[Path], object]) -> Path:
    """The folder with what `write(scratch)` puts into it, in the place of what was there."""
    with atomic.folder(folder) as scratch:
        write(scratch)
        files = sorted(file for file in scratch.rglob("*") if file.is_file())
        recorded = {str(file.relative_to(scratch)): digest(file) for file in files}
        (scratch / MANIFEST).write_text(json.dumps(recorded, indent=1) + "\n", "utf-8")
    return folder


@dataclass(frozen=True)
class Cache:
    """Entries below `root`, by kind ("tuned", "statistics/gpt2") and identity (plain values)."""

    root: Path

    @classmethod
    def user(cls) -> "Cache":
        """The cache that all runs of this user share (STUDY_CACHE)."""
        return cls(cache_dir())

    def place(self, kind: str, identity: object) -> Path:
        """Where an entry lies, whether or not it has been made."""
        return self.root / kind / content_hash(identity)[:32]

    def folder(self, kind: str, identity: object, make: Callable[[Path], object]) -> Path:
        """The entry's folder; `make(scratch)` writes its files."""
        place = self.place(kind, identity)
        return once(place, lambda: place if whole(place) else None, lambda: keep(place, make))

    def read(self, kind: str, identity: object) -> bytes | None:
        """The content of an entry that is a file; None if it is absent or damaged."""
        recorded, _, content = _content(self.place(kind, identity)).partition(b"\n")
        return content if recorded == _sha256(content) else None

    def write(self, kind: str, identity: object, content: bytes) -> bytes:
        """Keep an entry that is a file; gives `content` back."""
        atomic.write_bytes(self.place(kind, identity), _sha256(content) + b"\n" + content)
        return content

    def file(self, kind: str, identity: object, make: Callable[[], bytes]) -> bytes:
        """The content of an entry that is a file."""
        return once(
            self.place(kind, identity),
            lambda: self.read(kind, identity),
            lambda: self.write(kind, identity, make()),
        )

    def lines(
        self,
        kind: str,
        identity: object,
        keys: Iterable[str],
        make: Callable[[list[str]], Iterable[dict[str, Row]]],
    ) -> dict[str, Row]:
        """The row of each key from an append-only file; `make(missing)` yields those that it lacks
        in pieces, each of which is stored at once, so that a killed process loses one piece."""
        place, wanted = self.place(kind, identity).with_suffix(".jsonl"), list(dict.fromkeys(keys))

        def read() -> dict[str, Row] | None:
            stored = _stored(place)
            return stored if stored.keys() >= set(wanted) else None

        def fill() -> dict[str, Row]:
            stored = _stored(place)
            for piece in make([key for key in wanted if key not in stored]):
                _append(place, piece)
                stored |= piece
            return stored

        found = once(place, read, fill)
        return {key: found[key] for key in wanted}


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode("ascii")


def _content(path: Path) -> bytes:
    """The bytes of a file; none if it is absent."""
    try:
        with reading(path):
            return path.read_bytes()
    except ABSENT:
        return b""


def _stored(path: Path) -> dict[str, Row]:
    """Rows by key; a torn, damaged or foreign line is passed over, so that it is made again."""
    found = {}
    for line in _content(path).split(b"\n"):
        recorded, _, text = line.partition(b" ")
        if recorded == _sha256(text)[:16]:
            key, row = json.loads(text)
            found[key] = row
    return found


def _append(path: Path, rows: dict[str, Row]) -> None:
    """Add lines in one write, on a fresh line even if the last process died inside one."""
    texts = [json.dumps(item, ensure_ascii=False).encode("utf-8") for item in rows.items()]
    content = b"".join(_sha256(text)[:16] + b" " + text + b"\n" for text in texts)
    try:
        with open(path, "ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                content = content if file.read(1) == b"\n" else b"\n" + content
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise atomic.unwritable(path, error) from error
