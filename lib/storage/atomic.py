"""Files and folders that appear whole or not at all, whatever kills the process meanwhile."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lib.errors import StoreError

# Seconds between two checkpoints of work that takes long: what a kill costs at most.
CHECKPOINT_SECONDS = float(os.environ.get("STUDY_CHECKPOINT_SECONDS", "30"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`: beside it first, synced, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
        _sync(path.parent)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error}. Free space or choose --output.") from error


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 `content` to `path` atomically."""
    write_bytes(path, content.encode("utf-8"))


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` that becomes `path` when the block ends without error.

    An existing `path` is replaced. On an error the scratch folder is removed and `path` is as it
    was; a killed process leaves only the scratch folder, which nothing reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch
        for child in scratch.rglob("*"):
            _sync(child)
        os.chmod(scratch, 0o755)
        old = None
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, old / path.name)
        os.replace(scratch, path)
        _sync(path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}. Free space or choose --output.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def digest(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
