"""What a notebook or the command line asks for: a paper's plan, its missing runs, its results."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lib.errors import TakenError, UsageError
from lib.metrics.estimates import with_units
from lib.runs import machine, plan
from lib.runs.execute import execute
from lib.runs.plan import Run
from lib.runs.progress import BarProgress, LineProgress, Progress
from lib.runs.resources import Resources
from lib.runs.schedule import memory, parallel
from lib.runs.schedule.jobs import name_of
from lib.runs.settings import ROOT, profile_of, read_paper
from lib.runs.store import Finished, Store
from lib.storage.cache import check_cache_dir
from lib.storage.documents import Sourced, merged
from lib.storage.fingerprints import content_hash

DEVICE, GPU_MEMORY = "STUDY_DEVICE", "STUDY_GPU_MEMORY"  # of another machine than this one
ATTEMPTS = 3  # at runs whose materials change while others are done
RUN_COLUMNS = ("run", "setting", "backbone", "dataset", "editor", "sweep", "value", "seed")


def output_root(output: str | Path | None = None) -> Path:
    """The outputs folder: the argument, else STUDY_OUTPUT, else `outputs/` of the project."""
    chosen = output or os.environ.get("STUDY_OUTPUT")
    return Path(os.path.expanduser(chosen)) if chosen else ROOT / "outputs"


def device_of_runs() -> str:
    """Where runs compute: STUDY_DEVICE ("cuda" where a plan is made for other machines), else a GPU
    if there is one, else the processor."""
    return os.environ.get(DEVICE) or machine.default_device()


def memory_of(device: str) -> float:
    """All memory of the device that a run may take, in GiB: STUDY_GPU_MEMORY for a card, else what
    this machine has. Raises UsageError where nobody can know it."""
    given = os.environ.get(GPU_MEMORY)
    if device == "cpu" or not given:
        if device != "cpu" and machine.default_device() == "cpu":
            raise UsageError(f"no {device} card is here: say its memory with --gpu-memory GIB")
        return machine.memory_gigabytes(device)
    return float(given)


def check_project(folder: Path) -> None:
    """Raises UsageError if `folder` is the notebooks' folder of another copy of the project, whose
    results this library would write into its own outputs."""
    other = folder.resolve().parent
    if (
        folder.name == "notebooks"
        and (other / "lib" / "runs" / "study.py").is_file()
        and not other.samefile(ROOT)
    ):
        raise UsageError(
            f"a notebook of {other} runs with the library of {ROOT}: choose the kernel of "
            f"{other / '.venv'} ({other / 'run_all.sh'} makes it), or open it with "
            f"`{other / '.venv/bin/python'} -m jupyterlab`"
        )


class Outline(ABC):
    """What a study's documents say of its settings, and what its errors say of their editors.

    Whatever has `document`, the profile's YAML, and `errors()` can be asked.
    """

    document: dict[str, Any]

    @abstractmethod
    def errors(self) -> dict[str, str]:
        """Run title to error text, for the runs that failed."""

    def overridden(self) -> list[tuple[str, Any, Any]]:
        """Every value that overrides change: (where, the profile's, here)."""
        return []

    @property
    def settings(self) -> list[str]:
        """The settings that this profile runs, in order."""
        settings = self.document["settings"].items()
        return [name for name, setting in settings if setting.get("enabled", True)]

    def title(self, setting: str) -> str:
        """How pages call a setting."""
        return self.document["settings"][setting]["title"]

    def editors(self, setting: str) -> list[str]:
        """The editors of a setting in the order of its table."""
        return list(self.document["settings"][setting]["editors"])

    def sweeps(self, setting: str) -> dict[str, dict[str, Any]]:
        """The sweeps of a setting by name."""
        return self.document["settings"][setting].get("sweeps", {})

    def batch_size(self, setting: str) -> int:
        """Edits per batch, in the main table."""
        return self.document["settings"][setting]["stream"]["batch_size"]

    def edits(self, setting: str, editor: str = "") -> int:
        """How many edits of the stream an editor makes ("": one that makes all of them)."""
        here = self.document["settings"][setting]
        own = here["editors"].get(editor, {}).get("stream", {})
        return plan.edits_of(merged(here["stream"], own))

    def error(self, setting: str, editor: str) -> str:
        """The error of an editor's failed run, "" for none. `editor`: as run titles call it, with
        what is varied ("ELDER, layers 2")."""
        start = f"{editor} on {setting},"
        return next((text for title, text in self.errors().items() if title.startswith(start)), "")

    def reason(self, setting: str, editor: str) -> str:
        """Why an editor has no number: the last line of `error`, "" for none."""
        lines = self.error(setting, editor).strip().splitlines()
        return lines[-1] if lines else ""


@dataclass
class Study(Outline):
    """One paper in one profile: open it, look at `plan`, call `run_missing`, read the results."""

    paper: str
    profile: str
    folder: Path
    runs: list[Run]
    document: dict[str, Any]
    original: dict[str, Any]
    sourced: list[Sourced]
    store: Store
    resources: Resources
    asked: set[tuple[str, str]] = field(default_factory=set)  # settings and sweeps, by readers
    overrides: dict[str, Any] = field(default_factory=dict)
    _finished: dict[str, Finished] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        paper: str,
        profile: str = "laptop",
        *,
        output: str | Path | None = None,
        data_dir: str | Path | None = None,
        seeds: int | None = None,
        strict: bool = True,
        device: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> "Study":
        """The study of a paper; nothing is loaded or run yet. Empty strings mean the default, `~`
        at the start of a folder's name the home folder.

        `overrides` change single values of the profile (`profile_of`). What they change are other
        runs; they lie beside the profile's own, pages in a folder of their own (PROFILE-HASH).
        """
        if "ipykernel.kernelapp" in sys.modules:  # this is a notebook's kernel
            check_project(Path.cwd())
        chosen = Path(os.path.expanduser(data_dir)) if data_dir else None
        device = device or device_of_runs()
        document, sourced = profile_of(paper, profile, overrides)
        source = "hub" if profile == "paper" else "embedded"
        planned = plan.runs(
            paper,
            profile,
            seeds=seeds or None,
            data_dir=chosen,
            device=device,
            source=source,
            strict=strict,
            threads=parallel.threads(),
            overrides=overrides,
        )
        if device != "cpu":
            planned = memory.counted(planned, memory_of(device))
        for run in planned:
            if run.asked:
                document["settings"][run.setting]["dtype"] = run.spec["dtype"]
        folder = output_root(output or None) / profile
        store = Store(folder)
        if overrides:
            folder = folder.with_name(f"{profile}-{content_hash(overrides)[:8]}")
        return cls(
            paper=paper,
            profile=profile,
            folder=folder,
            runs=[store.told(run) for run in planned],
            document={**read_paper(paper), **document},
            original=profile_of(paper, "paper")[0],
            sourced=sourced,
            store=store,
            resources=Resources(data_dir=chosen, strict=strict, source=source),
            overrides=dict(overrides or {}),
        )

    def unique_runs(self, of: Collection[tuple[str, str]] | None = None) -> list[Run]:
        """The runs, each once: a sweep's default value is the run of the main table. `of`: those of
        these settings and sweeps."""
        found: dict[str, Run] = {}
        for run in self.runs:
            if of is None or (run.setting, run.sweep) in of:
                found.setdefault(run.identity, run)
        return list(found.values())

    def main_run(self, setting: str, editor: str) -> Run:
        """The first run of an editor in a setting's main table. UsageError if there is none."""
        for run in self._selected(setting, ""):
            if run.editor == editor:
                return run
        raise UsageError(f"{editor} has no run on {setting!r} in the profile {self.profile}")

    def to_do(
        self, of: Collection[tuple[str, str]] | None = None, only: str | None = None
    ) -> list[Run]:
        """The runs that the store does not have and that fit the device: all, those `of` some
        settings and sweeps, or the one that is called `only` (`schedule.jobs.name_of`)."""
        runs = self.unique_runs(of)
        if only is not None:
            runs = [run for run in self.runs if name_of(run) == only]
        missing = [run for run in runs if self.finished(run) is None]
        return [run for run in missing if only is not None or not self.too_large(run)]

    def too_large(self, run: Run) -> str:
        """Why the device can never do the run, "" if it can."""
        room = memory_of(run.spec["device"])
        if run.gigabytes <= room:
            return ""
        where = "the machine" if run.spec["device"] == "cpu" else "the card"
        return f"left out: it needs about {run.gigabytes:.1f} GiB and {where} has {room:.1f} GiB"

    def left_out(self, of: Collection[tuple[str, str]] | None = None) -> dict[str, str]:
        """Run title to reason, for the missing runs that do not fit the device."""
        missing = (run for run in self.unique_runs(of) if self.store.state(run) != "done")
        found = {run.title: self.too_large(run) for run in missing}
        return {title: reason for title, reason in found.items() if reason}

    def plan(self) -> pd.DataFrame:
        """One row per run: what, its state in the store, estimated time and memory."""
        rows = [
            {
                "setting": run.setting,
                "editor": run.editor,
                "varied": f"{run.sweep} = {run.value}" if run.sweep else "",
                "seed": run.seed,
                "edits": plan.edits_of(run.spec["stream"]),
                "state": self.state(run),
                "estimated seconds": round(run.seconds),
                "peak GiB": run.gigabytes,
                "run": run.identity,
            }
            for run in self.unique_runs()
        ]
        return pd.DataFrame(rows)

    def state(self, run: Run) -> str:
        """ "done", "failed", "started", "to do", or "left out" of what the device can do."""
        state = self.store.state(run)
        return "left out" if state != "done" and self.too_large(run) else state

    def replaced(self) -> list[str]:
        """A sentence for every dtype that runs do not take because the processor lacks it."""
        settings: dict[tuple[str, str, str], dict[str, None]] = {}
        for run in self.runs:
            if run.asked:
                key = (run.spec["dtype"], run.asked, run.replaced["why"])
                settings.setdefault(key, {})[run.setting] = None
        return [
            f"{used} instead of {asked} in {', '.join(names)}: {why}"
            for (used, asked, why), names in settings.items()
        ]

    def check_memory(self, runs: Sequence[Run] | None = None) -> None:
        """Refuse, before anything starts, runs (None: all that are missing) that would fit the
        device if others did not use it now."""
        if runs is None:
            left = (run for run in self.unique_runs() if self.store.state(run) != "done")
            runs = [run for run in left if not self.too_large(run)]
        room = machine.available_gigabytes(runs[0].spec["device"]) if runs else 0.0
        for run in runs:
            if run.gigabytes > room:
                raise UsageError(
                    f"{run.title} needs about {run.gigabytes:.1f} GiB and {room:.1f} GiB are free. "
                    "Choose a smaller profile, or close other programs."
                )

    def run_missing(
        self,
        *,
        quiet: bool = False,
        prefix: str = "",
        retry_failed: bool = True,
        free: bool = False,
        of: Collection[tuple[str, str]] | None = None,
        only: str | None = None,
    ) -> bool:
        """Do every run that the store does not have; True if all are finished in the end, apart
        from those that do not fit the device.

        Runs on one backbone follow each other in the plan, so that it is loaded once. A run that
        failed before is tried again unless `retry_failed` is False. `free`: only those that no
        other process works on. `of`, `only`: those alone (`to_do`).
        """
        progress: Progress = LineProgress(prefix) if quiet else BarProgress()
        if to_do := self.to_do(of, only):
            check_cache_dir()
            self.check_memory(to_do)
        if not retry_failed:
            to_do = [run for run in to_do if self.store.failure(run) is None]
        for attempt in range(ATTEMPTS):
            if attempt:
                print(
                    f"{prefix}materials came out otherwise than before (weights tuned anew?): "
                    f"{len(to_do)} runs of the former ones are done again",
                    file=sys.stderr,
                )
            self._do(to_do, progress, free=free)
            self.runs = [self.store.told(run) for run in self.runs]
            to_do = [run for run in self.to_do(of, only) if self.store.failure(run) is None]
            if free or not to_do:
                break
        return not self.to_do(of, only)

    def _do(self, runs: list[Run], progress: Progress, *, free: bool = False) -> None:
        """Do the runs; those that another process works on last, or, if `free`, not at all."""
        taken = []
        for run in runs:
            try:
                execute(run, self.store, self.resources, progress, wait=False)
            except TakenError:
                taken.append(run)
        for run in () if free else taken:
            execute(run, self.store, self.resources, progress)

    def finished(self, run: Run) -> Finished | None:
        """A run's results, verified once; None if it has none."""
        if run.identity not in self._finished:
            found = self.store.finished(run)
            if found is None:
                return None
            self._finished[run.identity] = found
        return self._finished[run.identity]

    def errors(self, of: Collection[tuple[str, str]] | None = None) -> dict[str, str]:
        """Run title to error text, for the runs that failed or do not fit the device (`of`: of
        these settings, sweeps)."""
        found = self.left_out(of)
        for run in self.unique_runs(of):
            failure = None if self.finished(run) else self.store.failure(run)
            if failure is not None:
                found[run.title] = failure["error"]
        return found

    def _selected(self, setting: str | None, sweep: str | None) -> list[Run]:
        found = [
            run
            for run in self.runs
            if (setting is None or run.setting == setting) and (sweep is None or run.sweep == sweep)
        ]
        self.asked |= {(run.setting, run.sweep) for run in found}
        return found

    def _frames(self, which: str, setting: str | None, sweep: str | None) -> pd.DataFrame:
        frames = []
        for run in self._selected(setting, sweep):
            found = self.finished(run)
            if found is not None and not getattr(found, which).empty:
                named = {
                    "run": run.identity,
                    "setting": run.setting,
                    "backbone": found.manifest["backbone"]["name"],
                    "dataset": found.manifest["dataset"]["name"],
                    "editor": run.editor,
                    "sweep": run.sweep,
                    "value": run.value,
                    "seed": run.seed,
                }
                frames.append(getattr(found, which).assign(**named))
        if not frames:
            return pd.DataFrame(columns=list(RUN_COLUMNS))
        return pd.concat(frames, ignore_index=True)

    def records(self, setting: str | None = None, sweep: str | None = "") -> pd.DataFrame:
        """One row per scored prompt of the finished runs (`sweep=""`: those of the main table),
        with the fact and the batch of edits that it belongs to (`with_units`)."""
        return with_units(self._frames("records", setting, sweep))

    def steps(self, setting: str | None = None, sweep: str | None = "") -> pd.DataFrame:
        """One row per edited batch of the finished runs."""
        return self._frames("steps", setting, sweep)

    def observations(self, setting: str | None = None, sweep: str | None = "") -> pd.DataFrame:
        """What the editors of the finished runs said about themselves (`Editor.observe`)."""
        return self._frames("observations", setting, sweep)

    def manifests(self, setting: str | None = None, sweep: str | None = "") -> dict[str, dict]:
        """Run identity to manifest, for the finished runs."""
        found = {run.identity: self.finished(run) for run in self._selected(setting, sweep)}
        return {name: item.manifest for name, item in found.items() if item is not None}

    def departures(self, setting: str) -> list[tuple[str, Any, Any]]:
        """Every value of a setting that the profile changes: (where, paper profile's, here)."""
        return _changed(self.original["settings"][setting], self.document["settings"][setting])

    def overridden(self) -> list[tuple[str, Any, Any]]:
        """See `Outline.overridden`."""
        given, _ = profile_of(self.paper, self.profile)
        named = {name.partition(".")[0]: None for name in self.overrides}
        return [
            (f"{name}.{place}", before, now)
            for name in named
            for place, before, now in _changed(
                given["settings"][name], self.document["settings"][name]
            )
        ]


def _changed(there: Any, here: Any) -> list[tuple[str, Any, Any]]:
    """The values that differ between two settings: (where, there, here)."""
    before, now = dict(_leaves(there)), dict(_leaves(here))
    known = dict.fromkeys([*before, *now])
    names = [name for name in known if "cost" not in name.split(".")]  # plans, not results
    return [
        (name, before.get(name, "–"), now.get(name, "–"))
        for name in names
        if before.get(name) != now.get(name) and name not in ("title", "enabled", "like")
    ]


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their dotted paths; lists count as values."""
    if isinstance(node, dict):
        for key, item in node.items():
            yield from _leaves(item, f"{path}.{key}".strip("."))
    else:
        yield path, node
