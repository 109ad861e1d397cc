"""A plan as jobs that wait for each other: preparations that runs share, runs, pages.

A job is a command line of this study with what it needs; whoever can start commands in an order
(`workflow/Snakefile`) needs nothing else. Jobs have names that are the same on every machine:
a run's identity depends on the arithmetic of the processor and on materials that were not made yet.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lib.editors import needs_of
from lib.errors import UsageError
from lib.runs.plan import Run
from lib.storage.fingerprints import content_hash

NOTED = 3  # exit status of a job whose failure is in the store or on the page: others go on
# What of a spec decides the materials that runs share, apart from the stream's order.
SHARED = ("backbone", "tune", "dtype", "dataset", "known", "variant")
OF_STREAM = ("kind", "limit", "unanswered", "flip_predictions")
# Of a configuration: what does not decide a trained network, and what begins the names of what
# decides statistics and stored states.
UNTRAINED = ("train_m", "loss_after")
OF_TEXT = ("blocks", "n_layers", "moment_adjustment", "statistics_", "memory_")


@dataclass(frozen=True)
class Job:
    """A command with what it waits for (names) and what it needs: time, memory, a card. `kind`:
    prepare, run or page."""

    name: str
    kind: str
    title: str
    papers: tuple[str, ...]
    after: tuple[str, ...]
    seconds: float
    gigabytes: float
    gpu: bool

    def as_dict(self, command: Sequence[str]) -> dict[str, Any]:
        """Plain values, with the command that does the job."""
        return {**asdict(self), "command": list(command)}


def name_of(run: Run) -> str:
    """The run's place in the plan as a word: "elder.zsre.elder-replayed.layers-2.seed0"."""
    swept = [f"{run.sweep}-{run.value}"] if run.sweep else []
    parts = (run.paper, run.setting, run.editor, *swept, f"seed{run.seed}")
    return ".".join(re.sub(r"[^a-z0-9_.+]+", "-", part.lower()).strip("-") for part in parts)


def jobs_of(to_do: Iterable[Run], papers: Sequence[str]) -> list[Job]:
    """The jobs of the runs that are missing and of the papers' pages, each after those that it
    waits for. Runs of one identity are one job; what several runs prepare alike is a job before
    them, what one alone prepares is part of it. Raises UsageError if two runs have one name."""
    users: dict[str, list[Run]] = {}
    for run in to_do:
        users.setdefault(run.identity, []).append(run)
    runs = [alike[0] for alike in users.values()]
    names = [name_of(run) for run in runs]
    if double := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two runs are called {', '.join(sorted(double))}; rename an editor")
    of_backbone = _shared(runs, lambda run: [run.spec["backbone"]])
    of_materials = _shared(runs, _materials)
    of_fit = _shared(runs, _fitted)
    jobs: dict[str, Job] = {}
    waits: dict[str, tuple[str, ...]] = {}
    for run in runs:
        after: tuple[str, ...] = ()
        levels = (("backbone", of_backbone), ("materials", of_materials), ("fit", of_fit))
        for level, shared in levels:
            first = shared.get(run.identity)
            if first is None or (level == "materials" and first is of_backbone[run.identity]):
                continue  # the backbone's job makes the materials of its run
            name = f"{level}.{name_of(first)}"
            if name not in jobs:
                seconds = first.preparing if level == "fit" else 0.0
                title = f"{TITLES[level]} of {first.title}"
                made = Job(name, "prepare", title, (), after, seconds, first.gigabytes, _gpu(first))
                jobs[name] = made
            after = (name,)
        waits[run.identity] = after
    prepared = [
        replace(
            job, papers=_papers(run for run in to_do if name in _line(waits[run.identity], jobs))
        )
        for name, job in jobs.items()
    ]
    done = []
    for run in runs:
        after = waits[run.identity]
        fitted = any(name.startswith("fit.") for name in after)
        seconds = run.seconds - run.preparing * fitted
        used = _papers(users[run.identity])
        done.append(
            Job(name_of(run), "run", run.title, used, after, seconds, run.gigabytes, _gpu(run))
        )
    pages = [
        Job(f"page.{paper}", "page", f"page of {paper}", (paper,),
            tuple(job.name for job in done if paper in job.papers), 0.0, 2.0, False)
        for paper in papers
    ]  # fmt: skip
    return [*prepared, *done, *pages]


TITLES = {
    "backbone": "backbone and first materials",
    "materials": "tuned weights, facts and texts",
    "fit": "statistics or trained networks",
}


def _line(after: tuple[str, ...], jobs: dict[str, Job]) -> set[str]:
    """All preparations that stand before a job."""
    return {*after, *(name for one in after for name in _line(jobs[one].after, jobs))}


def _gpu(run: Run) -> bool:
    return run.spec["device"] != "cpu"


def _papers(runs: Iterable[Run]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(run.paper for run in runs))


def _shared(runs: Sequence[Run], key: Callable[[Run], object]) -> dict[str, Run]:
    """Run identity to the first run of the same key, where several have it; None is no key."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if (decides := key(run)) is not None:
            groups.setdefault(content_hash(decides), []).append(run)
    several = (group for group in groups.values() if len(group) > 1)
    return {run.identity: group[0] for group in several for run in group}


def _materials(run: Run) -> list[object]:
    given = [run.spec.get(name) for name in SHARED]
    return [*given, *(run.spec["stream"].get(name) for name in OF_STREAM)]


def _fitted(run: Run) -> list[object] | None:
    """What decides the networks or statistics that `Editor.fit` makes; None if it makes none."""
    spec, config = run.spec, run.spec["config"]
    needs = {*needs_of(spec["editor"])} & {"networks_cache", "corpus"}
    if "networks_cache" in needs:
        decides = {name: value for name, value in config.items() if name not in UNTRAINED}
        m = config.get("train_m") or spec["stream"]["batch_size"]
        return [_materials(run), spec["editor"], decides, m, spec.get("training")]
    if "corpus" in needs:
        decides = {name: value for name, value in config.items() if name.startswith(OF_TEXT)}
        return [_materials(run), decides, spec.get("corpus")]
    return None


def critical_path(jobs: Sequence[Job]) -> tuple[float, list[str]]:
    """The longest chain of jobs that wait for each other: its seconds, and the names in order."""
    longest: dict[str, tuple[float, list[str]]] = {}
    for job in jobs:  # each stands after those that it waits for
        before = max((longest[name] for name in job.after), default=(0.0, []))
        longest[job.name] = before[0] + job.seconds, [*before[1], job.name]
    return max(longest.values(), default=(0.0, []))


def gpu_hours(jobs: Iterable[Job]) -> float:
    """Hours that cards are busy in all."""
    return sum(job.seconds for job in jobs if job.gpu) / 3600
