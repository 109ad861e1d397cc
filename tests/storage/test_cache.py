"""The one cache, over its three kinds of entry: made once, whole or absent, and never lost."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from safetensors import SafetensorError

from lib.errors import AssetError, StoreError
from lib.runs.study import Study
from lib.storage.cache import Cache
from tests.processes import start

WORDS = {"mill": "Der Müller zählt.", "brook": "Nine stones."}
IDENTITY = ["invented", 3]


def no_more() -> None:
    """What `while_making` does by default."""


def use(kind: str, root: Path, while_making: Callable[[], None] = no_more) -> dict[str, str]:
    """WORDS, through an entry of a kind; `while_making` is called while it is half made."""
    cache = Cache(root)

    def make_folder(scratch: Path) -> None:
        (scratch / "part").mkdir()
        (scratch / "part" / "mill.txt").write_text(WORDS["mill"], "utf-8")
        while_making()
        (scratch / "brook.txt").write_text(WORDS["brook"], "utf-8")

    def make_file() -> bytes:
        while_making()
        return json.dumps(WORDS).encode()

    def make_lines(missing: list[str]) -> Iterator[dict[str, str]]:
        for number, key in enumerate(missing):
            if number == len(missing) - 1:
                while_making()
            yield {key: WORDS[key]}

    if kind == "folder":
        place = cache.folder("words", IDENTITY, make_folder)
        texts = (place / "part" / "mill.txt", place / "brook.txt")
        return {path.stem: path.read_text("utf-8") for path in texts}
    if kind == "file":
        return json.loads(cache.file("words", IDENTITY, make_file))
    return cache.lines("words", IDENTITY, WORDS, make_lines)


def refuse() -> None:
    raise AssertionError("made again")


def files(root: Path) -> list[Path]:
    """All files of entries below `root`: neither locks nor what a killed process left."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return [path for path in paths if not any(p.startswith(".") for p in path.parts)]


kinds = pytest.mark.parametrize("kind", ["folder", "file", "lines"])


@kinds
def test_an_entry_is_made_once(kind: str, tmp_path: Path) -> None:
    assert use(kind, tmp_path) == WORDS
    assert use(kind, tmp_path, refuse) == WORDS
    with pytest.raises(AssertionError, match="made again"):
        use(kind, tmp_path / "elsewhere", refuse)


def test_another_identity_is_another_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for identity in (["a", 1], ["a", 2], {"a": 1}):
        assert cache.file("words", identity, json.dumps(identity).encode) == (
            json.dumps(identity).encode()
        )
    assert len(files(tmp_path)) == 3


@kinds
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete", "foreign"])
def test_a_damaged_entry_is_made_again(kind: str, damage: str, tmp_path: Path) -> None:
    use(kind, tmp_path)
    for number in range(len(files(tmp_path))):
        path, made = files(tmp_path)[number], []
        content = path.read_bytes()
        if damage == "flip":
            middle = len(content) // 2
            path.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        elif damage == "delete":
            path.unlink()
        else:
            path.write_bytes(
                {"cut": content[:-3], "empty": b"", "foreign": b"\xff\x00{}\n[1]\n"}[damage]
            )
        assert use(kind, tmp_path, lambda made=made: made.append(1)) == WORDS
        assert made == [1]
        assert use(kind, tmp_path, refuse) == WORDS


def test_a_line_that_is_whole_survives_its_damaged_neighbour(tmp_path: Path) -> None:
    use("lines", tmp_path)
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    asked: list[str] = []

    def make(missing: list[str]) -> Iterator[dict[str, str]]:
        asked.extend(missing)
        yield {key: WORDS[key] for key in missing}

    assert Cache(tmp_path).lines("words", IDENTITY, WORDS, make) == WORDS
    assert asked == ["brook"]


# -- other processes -------------------------------------------------------------------------


def make_and_wait(connection: Connection, kind: str, root: str) -> None:
    def wait() -> None:
        connection.send("half made")
        connection.recv()

    connection.send(use(kind, Path(root), wait))


@kinds
def test_a_process_killed_while_making_leaves_nothing_half_made(kind: str, tmp_path: Path) -> None:
    process, connection = start(make_and_wait, kind, str(tmp_path))
    assert connection.recv() == "half made"
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert use(kind, tmp_path) == WORDS
    assert use(kind, tmp_path, refuse) == WORDS
    hidden = [path.name for path in (tmp_path / "words").glob(".*")]
    assert all(name.endswith(".lock") for name in hidden)  # what the killed one left is gone


@kinds
def test_two_processes_at_once_make_it_once(kind: str, tmp_path: Path) -> None:
    first, to_first = start(make_and_wait, kind, str(tmp_path))
    assert to_first.recv() == "half made"
    second, to_second = start(make_and_wait, kind, str(tmp_path))
    assert not to_second.poll(0.5)  # it waits for the first
    to_first.send("go on")
    assert to_first.recv() == to_second.recv() == WORDS
    for process in (first, second):
        process.join()
        assert process.exitcode == 0


# -- file systems that refuse ----------------------------------------------------------------


@kinds
def test_a_full_disk_is_told_and_leaves_nothing(kind: str, tmp_path: Path, monkeypatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"No space left.*Free space.*STUDY_CACHE"):
            use(kind, tmp_path)
    assert use(kind, tmp_path) == WORDS
    leftovers = [path.name for path in (tmp_path / "words").iterdir() if path.name[0] == "."]
    assert all(name.endswith(".lock") for name in leftovers)


def test_a_disk_that_fills_while_tensors_are_saved_is_told(tmp_path: Path) -> None:
    def make(_scratch: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(StoreError, match=r"No space left.*Free space"):
        Cache(tmp_path).folder("words", IDENTITY, make)


@kinds
def test_a_read_error_is_told_and_deletes_nothing(kind: str, tmp_path: Path, monkeypatch) -> None:
    use(kind, tmp_path)
    before = {path: path.read_bytes() for path in files(tmp_path)}

    def stutter(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", stutter)
        patch.setattr(hashlib, "file_digest", stutter)
        with pytest.raises(StoreError, match=r"cannot read .*/words/.*Input/output error.*Try"):
            use(kind, tmp_path, refuse)
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    assert use(kind, tmp_path, refuse) == WORDS


@contextlib.contextmanager
def read_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file system of `root` is mounted read-only (root may write where permissions refuse)."""

    def guarded(function: Callable, writes: Callable[..., bool]) -> Callable:
        def call(path: object, *arguments: object, **keywords: object) -> object:
            if str(path).startswith(str(root)) and writes(*arguments, **keywords):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return function(path, *arguments, **keywords)

        return call

    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", guarded(os.open, lambda flag=0, *_, **__: bool(flag & flags)))
        patch.setattr(io, "open", guarded(io.open, lambda mode="r", *_, **__: mode[0] not in "r"))
        for name in ("mkdir", "replace", "rename", "unlink", "chmod"):
            patch.setattr(os, name, guarded(getattr(os, name), lambda *_, **__: True))
        yield


@kinds
def test_a_read_only_cache_serves_what_it_holds(kind: str, tmp_path: Path, monkeypatch) -> None:
    use(kind, tmp_path)
    for path in tmp_path.rglob(".*.lock"):
        path.unlink()
    (tmp_path / "empty").mkdir()
    with read_only(tmp_path, monkeypatch):
        assert use(kind, tmp_path, refuse) == WORDS
        with pytest.raises(StoreError, match=r"/empty.*Read-only.*STUDY_CACHE.*--output"):
            use(kind, tmp_path / "empty", refuse)


def test_a_cache_that_cannot_be_made_is_told_before_any_run(tmp_path: Path, monkeypatch) -> None:
    from lib.__main__ import main

    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "file" / "cache"))
    study = Study.open("comeba_hk", "smoke", output=tmp_path / "out")
    with pytest.raises(AssetError, match=rf"{tmp_path}/file/cache.*STUDY_CACHE"):
        study.run_missing(quiet=True)
    arguments = ["--only", "comeba_hk", "--profile", "smoke", "--output", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--plan"]) == 0


@kinds
@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "ENOTSUP"])
def test_a_file_system_without_locks_is_told_and_read(
    kind: str, name: str, tmp_path: Path, monkeypatch
) -> None:
    error = getattr(errno, name)

    def flock(*_arguments: object) -> None:
        raise OSError(error, os.strerror(error))

    use(kind, tmp_path / "filled")
    monkeypatch.setattr(fcntl, "flock", flock)
    said = rf"cannot lock in {tmp_path}/empty.*{os.strerror(error)}.*STUDY_CACHE.*--output"
    with pytest.raises(StoreError, match=said):
        use(kind, tmp_path / "empty", refuse)
    assert use(kind, tmp_path / "filled", refuse) == WORDS


@pytest.fixture(params=[0o002, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


@kinds
def test_permissions_are_those_of_the_users_umask(kind: str, umask: int, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    use(kind, root)
    for path in root.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_files_that_a_library_keeps_to_its_owner_are_shared_too(umask: int, tmp_path: Path) -> None:
    def make(scratch: Path) -> None:
        (scratch / "weights").touch(0o600)
        (scratch / "weights").write_text("1 2 3")

    place = Cache(tmp_path).folder("words", IDENTITY, make)
    assert stat.S_IMODE((place / "weights").stat().st_mode) == 0o666 & ~umask
