"""Files and folders that appear whole or not at all, whatever kills the process meanwhile.

What is written gets the permissions that the user's umask gives, so that a group may share it.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from lib.errors import StoreError

# Seconds between two checkpoints of work that takes long: what a kill costs at most.
CHECKPOINT_SECONDS = float(os.environ.get("STUDY_CHECKPOINT_SECONDS", "30"))
WRITING_ERRORS = (OSError, SafetensorError)  # safetensors says so too when a disk is full


def unwritable(path: Path, error: Exception) -> StoreError:
    """The error that says that `path` cannot be written, and what to do."""
    return StoreError(
        f"cannot write {path}: {error}. Free space, or choose another folder: --output for "
        "results, STUDY_CACHE for the cache."
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    """A new name beside `path` that nothing reads."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def sweep(folder: Path, name: str = "") -> None:
    """Remove what killed processes left in `folder` of writing `name` (and what begins like it);
    only for who holds the lock of all that."""
    for left in folder.glob(f".{name}*.{'[0-9a-f]' * 8}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`: beside it first, synced, then renamed over it."""
    scratch = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        _sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 `content` to `path` atomically."""
    write_bytes(path, content.encode("utf-8"))


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` that becomes `path` when the block ends without error.

    An existing `path` is replaced. On an error the scratch folder is removed and `path` is as it
    was; a killed process leaves only the scratch folder, which nothing reads.
    """
    scratch = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        yield scratch
        mode = stat.S_IMODE(scratch.stat().st_mode)  # what the umask, or the folder above, gives
        for child in scratch.rglob("*"):
            # Some libraries write files that only their owner may read.
            child.chmod(mode if child.is_dir() else mode & 0o666)
            _sync(child)
        old = None
        if path.exists():
            old = _beside(path)
            os.replace(path, old)
        os.replace(scratch, path)
        _sync(path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except WRITING_ERRORS as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def digest(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
