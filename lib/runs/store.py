"""The run store: one folder per run, whole or absent, safe to kill and safe to share.

    runs/<id>/            manifest.json, one .parquet per table, editor/   (a finished run)
    runs/<id>.failed.json what went wrong the last time
    runs/.<id>.work/      one .jsonl per table, checkpoint/                (a run under way)
    runs/shared/          what runs share: contents of materials, scores before editing, ...

Tables: `records` (one row per scored prompt), `steps` (one per edited batch), `observations` (what
an editor says about itself; empty for most). Rows are appended line by line; a checkpoint remembers
how long the files were, so a resumed run cuts what came after it and goes on from the editor's
saved state.
"""

import contextlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow

from lib.errors import StoreError
from lib.runs.plan import Run
from lib.storage import atomic
from lib.storage.atomic import digest
from lib.storage.cache import Cache, lock

TABLES = ("records", "steps", "observations")


class _DamagedError(Exception):
    """A file is not what was written."""


@dataclass(frozen=True)
class Finished:
    """A run that is whole on disk."""

    manifest: dict[str, Any]
    records: pd.DataFrame
    steps: pd.DataFrame
    observations: pd.DataFrame
    editor: Path


class Work:
    """The open files of a run under way. Lines are flushed as they are written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.position = self._position()
        self._files = {name: self._open(name) for name in TABLES}

    def _position(self) -> dict[str, Any]:
        checkpoint = self.folder / "checkpoint"
        try:
            position = json.loads((checkpoint / "position.json").read_text("utf-8"))
            if position["files"] != _digests(checkpoint / "editor"):
                raise _DamagedError("the editor's state is not what the checkpoint kept")
            return position
        except FileNotFoundError:
            return {"batches": 0, "sizes": {}, "clock": {}}
        except (ValueError, KeyError) as error:
            raise _DamagedError("the checkpoint's position cannot be read") from error

    def _open(self, name: str) -> TextIO:
        path, size = self.folder / f"{name}.jsonl", self.position["sizes"].get(name, 0)
        path.touch()
        if path.stat().st_size < size:
            # The file lost lines that the checkpoint counted: nothing here can be trusted.
            raise _DamagedError(f"{name}.jsonl is shorter than its checkpoint says")
        with path.open("r+b") as file:
            file.truncate(size)
        return path.open("a", encoding="utf-8")

    @property
    def saved_editor(self) -> Path:
        """Where the checkpoint keeps the editor's state."""
        return self.folder / "checkpoint" / "editor"

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add one line to a table."""
        with self._written():
            self._files[name].write(json.dumps(line, ensure_ascii=False) + "\n")

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot write {self.folder}: {error}. Free some space.") from error

    def checkpoint(self, batches: int, clock: dict[str, float], save_editor: Any) -> None:
        """Remember that `batches` batches are done; `save_editor(path)` writes the state."""
        sizes = {}
        with self._written():
            for name, file in self._files.items():
                file.flush()
                os.fsync(file.fileno())  # before the checkpoint that counts its lines
                sizes[name] = file.tell()
        with atomic.folder(self.folder / "checkpoint") as scratch:
            save_editor(scratch / "editor")
            position = {"batches": batches, "sizes": sizes, "clock": clock}
            position["files"] = _digests(scratch / "editor")
            (scratch / "position.json").write_text(json.dumps(position), "utf-8")

    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables so far, by name."""
        self.close()
        frames = {}
        for name in TABLES:
            with (self.folder / f"{name}.jsonl").open(encoding="utf-8") as file:
                frames[name] = pd.DataFrame(json.loads(line) for line in file)
        return frames

    def close(self) -> None:
        """Flush and close the files."""
        with self._written():
            for file in self._files.values():
                file.close()


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): digest(file) for file in files}


class Store:
    """Runs of one output folder, found by the contents of their materials (`Run.identity`), which
    are remembered here by what asks for them (`Run.asks`)."""

    def __init__(self, root: Path) -> None:
        self.root = root / "runs"
        self.cache = Cache(self.root / "shared")  # what the runs of this folder share
        self._contents: dict[str, dict[str, str]] = {}

    def told(self, run: Run) -> Run:
        """The run under the contents of its materials, if they were ever made for this store."""
        if run.asks not in self._contents:
            stored = self.cache.read("contents", run.asks)
            if stored is not None:
                self._contents[run.asks] = json.loads(stored)
        return replace(run, contents=self._contents.get(run.asks, {}))

    def tell(self, run: Run, contents: dict[str, str]) -> Run:
        """Remember what the run's materials contain; the run under these contents."""
        asked = replace(run, contents={})
        if self.told(run).contents != contents:
            self.cache.write("contents", run.asks, json.dumps(contents).encode("utf-8"))
            self._contents[run.asks] = contents
            (self.root / f"{asked.identity}.failed.json").unlink(missing_ok=True)
        return replace(run, contents=contents)

    def _folder(self, run: Run) -> Path:
        return self.root / self.told(run).identity

    def _work_folder(self, run: Run) -> Path:
        folder = self._folder(run)
        return folder.with_name(f".{folder.name}.work")

    def _failure_file(self, run: Run) -> Path:
        folder = self._folder(run)
        return folder.with_name(f"{folder.name}.failed.json")

    @contextlib.contextmanager
    def lock(self, run: Run, *, wait: bool = True) -> Iterator[None]:
        """Only one process works on a run; others wait and then find it finished, or raise
        TakenError if `wait` is off."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create {self.root}: {error}. Choose --output.") from error
        with lock(self._folder(run), wait=wait):
            yield

    def state(self, run: Run) -> str:
        """ "done", "failed", "started" or "to do"; cheap, files are not verified."""
        if (self._folder(run) / "manifest.json").exists():
            return "done"
        if self._failure_file(run).exists():
            return "failed"
        started = (self._work_folder(run) / "checkpoint").exists()
        return "started" if started else "to do"

    def finished(self, run: Run) -> Finished | None:
        """The run if it is whole. Files whose content changed are set aside, so that it will run
        again; a file that cannot be read now is an error, because it may be whole.

        Raises StoreError for the latter.
        """
        folder = self._folder(run)
        try:
            if not folder.exists():
                return None
            try:
                manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
                changed = [n for n, kept in manifest["files"].items() if digest(folder / n) != kept]
                if changed:
                    raise _DamagedError(f"{', '.join(changed)} changed after being written")
            except (_DamagedError, FileNotFoundError, ValueError, KeyError) as error:
                self._set_aside(folder, error)
                return None
            tables = (pd.read_parquet(folder / f"{name}.parquet") for name in TABLES)
            return Finished(manifest, *tables, folder / "editor")
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            where = getattr(error, "filename", None) or folder
            raise StoreError(
                f"cannot read {where}: {getattr(error, 'strerror', None) or error}. The run is "
                "kept as it is; look after the disk, or choose another --output, and call again."
            ) from error

    def _set_aside(self, folder: Path, error: Exception) -> None:
        """Move a damaged run out of the way, where it can be looked at."""
        for number in itertools.count(1):
            target = folder.with_name(f".{folder.name}.damaged-{number}")
            if not target.exists():
                break
        with contextlib.suppress(FileNotFoundError):  # another process was first
            os.replace(folder, target)
            print(
                f"{folder} is damaged ({error}); set aside as {target.name}, it will run again",
                file=sys.stderr,
            )

    def failure(self, run: Run) -> dict[str, Any] | None:
        """Error and time of the latest failed try, if the run is not finished."""
        try:
            return json.loads(self._failure_file(run).read_text("utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def work(self, run: Run) -> Work:
        """Open the run's working folder, at its latest checkpoint if there is one."""
        folder = self._work_folder(run)
        try:
            try:
                return Work(folder)
            except _DamagedError as error:
                print(f"{folder}: {error}; the run starts anew", file=sys.stderr)
                shutil.rmtree(folder, ignore_errors=True)
                return Work(folder)
        except OSError as error:
            raise StoreError(
                f"cannot open {error.filename or folder}: {error.strerror or error}. What was "
                "computed is kept; free some space or look after the disk, and call again."
            ) from error

    def finish(self, run: Run, work: Work, manifest: dict[str, Any], save_editor: Any) -> None:
        """Turn a work folder into a finished run, whole; `save_editor(path)` adds the edits."""
        frames = work.frames()
        with atomic.folder(self._folder(run)) as scratch:
            for name, frame in frames.items():
                frame.to_parquet(scratch / f"{name}.parquet", index=False)
            save_editor(scratch / "editor")
            described = manifest | {"status": "done", "files": _digests(scratch)}
            (scratch / "manifest.json").write_text(json.dumps(described, indent=1), "utf-8")
        self._failure_file(run).unlink(missing_ok=True)
        shutil.rmtree(work.folder, ignore_errors=True)

    def fail(self, run: Run, manifest: dict[str, Any], error: str) -> None:
        """Note a failed try; what it had computed stays for the next one."""
        described = manifest | {"status": "failed", "error": error}
        atomic.write_text(self._failure_file(run), json.dumps(described, indent=1))
