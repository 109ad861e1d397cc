"""The run store: one folder per run, whole or absent, safe to kill and safe to share.

    runs/<id>/            manifest.json, one .parquet per table, editor/   (a finished run)
    runs/<id>.failed.json what went wrong the last time
    runs/.<id>.work/      one .jsonl per table, checkpoint/                (a run under way)

Tables: `records` (one row per scored prompt), `steps` (one per edited batch), `observations` (what
an editor says about itself; empty for most). Rows are appended line by line; a checkpoint remembers
how long the files were, so a resumed run cuts what came after it and goes on from the editor's
saved state.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from lib.errors import StoreError
from lib.storage import atomic
from lib.storage.atomic import digest
from lib.storage.cache import Cache, lock

TABLES = ("records", "steps", "observations")


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
        try:
            return json.loads((self.folder / "checkpoint" / "position.json").read_text("utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {"batches": 0, "sizes": {}, "clock": {}}

    def _open(self, name: str) -> TextIO:
        path, size = self.folder / f"{name}.jsonl", self.position["sizes"].get(name, 0)
        path.touch()
        if path.stat().st_size < size:
            # The file lost lines that the checkpoint counted: nothing here can be trusted.
            raise StoreError(
                f"{path} is shorter than its checkpoint says; delete {self.folder} and run again"
            )
        with path.open("r+b") as file:
            file.truncate(size)
        return path.open("a", encoding="utf-8")

    @property
    def saved_editor(self) -> Path:
        """Where the checkpoint keeps the editor's state."""
        return self.folder / "checkpoint" / "editor"

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add one line to a table."""
        try:
            self._files[name].write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StoreError(f"cannot write {self.folder}: {error}. Free some space.") from error

    def checkpoint(self, batches: int, clock: dict[str, float], save_editor: Any) -> None:
        """Remember that `batches` batches are done; `save_editor(path)` writes the state."""
        sizes = {}
        for name, file in self._files.items():
            file.flush()
            sizes[name] = file.tell()
        with atomic.folder(self.folder / "checkpoint") as scratch:
            save_editor(scratch / "editor")
            position = {"batches": batches, "sizes": sizes, "clock": clock}
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
        for file in self._files.values():
            file.close()


class Store:
    """Runs of one output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root / "runs"
        self.cache = Cache(self.root / "shared")  # what the runs of this folder share

    def _work_folder(self, run: str) -> Path:
        return self.root / f".{run}.work"

    def _failure_file(self, run: str) -> Path:
        return self.root / f"{run}.failed.json"

    @contextlib.contextmanager
    def lock(self, run: str) -> Iterator[None]:
        """Only one process works on a run; others wait and then find it finished."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create {self.root}: {error}. Choose --output.") from error
        with lock(self.root / run):
            yield

    def state(self, run: str) -> str:
        """ "done", "failed", "started" or "to do"; cheap, files are not verified."""
        if (self.root / run / "manifest.json").exists():
            return "done"
        if self._failure_file(run).exists():
            return "failed"
        started = (self._work_folder(run) / "checkpoint").exists()
        return "started" if started else "to do"

    def finished(self, run: str) -> Finished | None:
        """The run if it is whole; damaged files are set aside, so that it will run again."""
        folder = self.root / run
        try:
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            for name, expected in manifest["files"].items():
                if digest(folder / name) != expected:
                    raise StoreError(f"{folder / name} changed after it was written")
            tables = (pd.read_parquet(folder / f"{name}.parquet") for name in TABLES)
            return Finished(manifest, *tables, folder / "editor")
        except FileNotFoundError:
            if not folder.exists():
                return None
        except (StoreError, OSError, ValueError, KeyError):
            pass
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
        return None

    def failure(self, run: str) -> dict[str, Any] | None:
        """Error and time of the latest failed try, if the run is not finished."""
        try:
            return json.loads(self._failure_file(run).read_text("utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def work(self, run: str) -> Work:
        """Open the run's working folder, at its latest checkpoint if there is one."""
        folder = self._work_folder(run)
        try:
            return Work(folder)
        except StoreError:
            shutil.rmtree(folder, ignore_errors=True)
            return Work(folder)

    def finish(self, run: str, work: Work, manifest: dict[str, Any], save_editor: Any) -> None:
        """Turn a work folder into a finished run, whole; `save_editor(path)` adds the edits."""
        frames = work.frames()
        with atomic.folder(self.root / run) as scratch:
            for name, frame in frames.items():
                frame.to_parquet(scratch / f"{name}.parquet", index=False)
            save_editor(scratch / "editor")
            files = {
                str(file.relative_to(scratch)): digest(file)
                for file in sorted(scratch.rglob("*"))
                if file.is_file()
            }
            described = manifest | {"status": "done", "files": files}
            (scratch / "manifest.json").write_text(json.dumps(described, indent=1), "utf-8")
        self._failure_file(run).unlink(missing_ok=True)
        shutil.rmtree(work.folder, ignore_errors=True)

    def fail(self, run: str, manifest: dict[str, Any], error: str) -> None:
        """Note a failed try; what it had computed stays for the next one."""
        described = manifest | {"status": "failed", "error": error}
        atomic.write_text(self._failure_file(run), json.dumps(described, indent=1))
