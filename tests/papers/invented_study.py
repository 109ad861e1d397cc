"""What every invented study of a paper answers as a `Study` does, though nothing ran."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import yaml

from lib.runs.study import Outline

PAPERS = Path(__file__).parents[2] / "papers"
COLUMNS = ["run", "setting", "editor", "sweep", "value", "seed"]
SAID = (
    "title", "venue", "summary", "short", "order", "tables", "claims", "findings", "deviations",
)  # fmt: skip


@functools.cache
def read(path: Path) -> dict[str, Any]:
    """A paper's YAML, read once: do not write to it."""
    return yaml.safe_load(path.read_text("utf-8"))


def about(title: str, n_edits: int, batch_size: int, **more: Any) -> dict[str, Any]:
    """What the manifest of a finished run says in every study; `more` adds and replaces."""
    return {
        "title": title, "seed": 0, "git_commit": "abc", "date": "2000-01-01", "device": "cpu",
        "versions": {"torch": "2"}, "peak_memory_bytes": 2**31,
        "spec": {"stream": {"n_edits": n_edits, "batch_size": batch_size}},
        "seconds": {"fit": 0.2, "edit": 3.0, "evaluate": 4.0},
    } | more  # fmt: skip


def facts(n: int, **more: Any) -> dict[str, Any]:
    """A manifest's words about `n` invented edits."""
    return {
        "name": "invented", "content": "d" * 64, "sources": ["none"], "skipped": [],
        "substitution": "Invented facts.", "counts": {"edits": n, "facts": n, **more},
    }  # fmt: skip


@dataclass
class InventedStudy(Outline):
    """Answers as a `Study` does. `lost` names editors whose runs failed; `empty`: nothing ran.

    A study of one paper gives `document`, `original`, `frame` and `finished`.
    """

    folder: Path
    lost: tuple[str, ...] = ()
    empty: bool = False
    profile: str = "smoke"
    sourced: list = field(default_factory=list)
    runs: list = field(default_factory=list)

    paper: ClassVar[str]

    def frame(self, which: str, setting: str, sweep: str) -> pd.DataFrame:
        """The rows of "records", "steps" or "observations" if everything ran."""
        raise NotImplementedError

    def finished(self, setting: str, sweep: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Identity, editor and manifest of every run if everything ran."""
        raise NotImplementedError

    def said(self) -> dict[str, Any]:
        """What the paper's YAML says besides its settings."""
        folder = PAPERS / self.paper
        blocks = read(folder / "settings.yaml") | read(folder / "page.yaml")
        return {name: blocks[name] for name in SAID if name in blocks}

    def _read(self, which: str, setting: str, sweep: str | None) -> pd.DataFrame:
        swept = self.document["settings"][setting].get("sweeps", {}) if sweep is None else ()
        frames = [self.frame(which, setting, name) for name in (sweep or "", *swept)]
        filled = [frame for frame in frames if len(frame)]
        if self.empty or not filled:
            return pd.DataFrame(columns=COLUMNS)
        rows = pd.concat(filled, ignore_index=True) if len(filled) > 1 else filled[0]
        return rows[~rows["editor"].isin(self.lost)].reset_index(drop=True)

    def records(self, setting: str, sweep: str | None = "") -> pd.DataFrame:
        return self._read("records", setting, sweep)

    def steps(self, setting: str, sweep: str | None = "") -> pd.DataFrame:
        return self._read("steps", setting, sweep)

    def observations(self, setting: str, sweep: str | None = "") -> pd.DataFrame:
        return self._read("observations", setting, sweep)

    def manifests(self, setting: str | None = None, sweep: str | None = "") -> dict[str, dict]:
        return {
            identity: manifest
            for name in ([setting] if setting else self.settings)
            for identity, editor, manifest in self.finished(name, sweep or "")
            if not self.empty and editor not in self.lost
        }

    def titles(self) -> list[str]:
        """The titles of the runs that failed."""
        return [f"{editor} on {name}, seed 0" for editor in self.lost for name in self.settings]

    def errors(self) -> dict[str, str]:
        text = "Traceback\n  somewhere\nEditorError: <b>out of room</b>"
        return dict.fromkeys(self.titles(), text)
