"""Starts the jobs of a plan with Snakemake: on Slurm, on other clusters, on the cards here."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.errors import TakenError, UsageError
from lib.runs.schedule.parallel import cores
from lib.runs.settings import ROOT
from lib.storage import atomic
from lib.storage.cache import lock

FOLDER = ".workflow"  # of the profile's outputs: the plan, marks of what is done, logs
VISIBLE = "CUDA_VISIBLE_DEVICES"
LOOK_AGAIN = 0.2  # seconds until a card is asked for again, where more jobs began than there are


def environment() -> dict[str, str]:
    """What jobs on other machines need of this process's environment: where the library, caches and
    models are. Secrets are not among it; they come from the machine that does a job."""
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    own = {name: value for name, value in os.environ.items() if name.startswith("STUDY_")}
    hub = {name: os.environ[name] for name in ("HF_HOME", "HF_HUB_OFFLINE") if name in os.environ}
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONSAFEPATH": "1", **own, **hub}


def cards() -> list[str]:
    """The cards that jobs of this machine may take: those of CUDA_VISIBLE_DEVICES, else all."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [card for card in given.split(",") if card]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextlib.contextmanager
def card_of(names: Sequence[str]) -> Iterator[str]:
    """One of the cards for this process alone, before CUDA is touched; the lock of a killed process
    is free. Waits while other jobs of this user hold all of them."""
    folder = Path(tempfile.gettempdir()) / f"model-editing-study-cards-{os.getuid()}"
    with contextlib.ExitStack() as held:
        while True:
            for name in names:
                with contextlib.suppress(TakenError):
                    held.enter_context(lock(folder / name.replace("/", "-"), wait=False))
                    os.environ[VISIBLE] = name
                    yield name
                    return
            time.sleep(LOOK_AGAIN)


def start(plan: dict[str, Any], folder: Path, executor: str, at_once: int | None) -> bool:
    """Do a plan's jobs with Snakemake's `executor`; whether every job came to its end. `at_once`:
    jobs under way, by default as many as a cluster takes, here one for each card or core.

    Raises UsageError without Snakemake, TakenError if another call works on the same outputs.
    """
    program = _program()
    place = folder / FOLDER
    with lock(folder / "workflow", wait=False):
        # What is done says the store; marks are of this call alone.
        shutil.rmtree(place / "done", ignore_errors=True)
        atomic.write_text(place / "plan.json", json.dumps(plan, indent=1))
        here = executor == "local"
        on_cards = [job for job in plan["jobs"] if job["gpu"]]
        found = cards() if here and on_cards else []
        if here and on_cards and not found:
            raise UsageError("--cluster local: no card is here for runs that are planned on one")
        if here:
            limit = ("--cores", str(at_once or max(cores(), len(found))))
        else:
            limit = ("--jobs", str(at_once or max(len(plan["jobs"]), 1)))
        command = [
            program, "--snakefile", str(ROOT / "workflow" / "Snakefile"),
            "--directory", str(place), "--config", f"plan={place / 'plan.json'}",
            "--executor", executor, *limit, "--keep-going", "--rerun-triggers", "mtime",
            "--latency-wait", "60", "--quiet", "rules",
        ]  # fmt: skip
        if found:
            command += ["--resources", f"gpu={len(found)}"]
        print(f"{len(plan['jobs'])} jobs, logs in {place / 'log'}", file=sys.stderr)
        # Snakemake imports what its own environment has.
        own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        return subprocess.run(command, env=own, check=False).returncode == 0


def _program() -> str:
    beside = Path(sys.executable).with_name("snakemake")
    found = str(beside) if beside.is_file() else shutil.which("snakemake")
    if not found:
        raise UsageError(
            "--cluster needs Snakemake: .venv/bin/python -m pip install '.[cluster]' in the "
            "project, or `snakemake` with its executor on the PATH"
        )
    return found
