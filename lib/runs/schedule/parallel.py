"""Several papers at once, each in a process of its own with its share of the cores.

Small tensors do not fill two cores: two papers with one thread each end sooner than one after the
other with two. Threads never exceed the cores, because oversubscribed ones wait for each other. A
process that finds no paper left does the runs that are still free in the others'.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from lib.errors import UsageError
from lib.runs.settings import ROOT

# What libraries read when they start their threads.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs(asked: int | None, peaks: Sequence[float], device: str, room: float) -> int:
    """How many processes run at the same time: as asked, else one for each core, or for as many
    cores as a run has threads; on a GPU one.

    `peaks` [runs]: the memory each run needs, and `room`: what is free, both in GiB. Without
    `asked`, no more than fit together. Raises UsageError for less than one.
    """
    if asked is not None:
        if asked < 1:
            raise UsageError(f"--jobs {asked}: at least one paper has to run at a time")
        return asked
    count = 1 if device != "cpu" else min(len(peaks), max(cores() // threads(), 1))
    largest = sorted(peaks, reverse=True)
    while count > 1 and sum(largest[:count]) > room:
        count -= 1
    return max(count, 1)


def threads() -> int:
    """Threads that a run computes with on a CPU: STUDY_THREADS, else one. Not what the machine has:
    their number moves the last digits of sums, and so the text that a model writes."""
    given = os.environ.get("STUDY_THREADS", "1")
    if not given.isdigit() or int(given) < 1:
        raise UsageError(f"STUDY_THREADS={given}: give a number of threads, 1 or more")
    return int(given)


def run(papers: Sequence[str], arguments: Sequence[str], count: int) -> bool:
    """`python -m lib` with the given arguments for each paper alone, `count` at a time in the given
    order, and where a place is left, one more that does what runs of all papers are free; whether
    all ended well. What they print appears as it comes."""
    environment = threads_of(os.environ, max(cores() // count, 1))
    # Wherever this process found the library, the others find it too.
    paths = (str(ROOT), environment.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment["PYTHONSAFEPATH"] = "1"  # and never in the caller's folder

    def one(chosen: Sequence[str]) -> int:
        own = ("--only", *chosen, "--jobs", "1", "--part")  # the last mention of a flag counts
        command = [sys.executable, "-m", "lib", *arguments, *own]
        return subprocess.run(command, env=environment, check=False).returncode

    free = [(",".join(papers), "--free-runs")] * (count - 1)
    with ThreadPoolExecutor(count) as pool:
        return not any(list(pool.map(one, [*((paper,) for paper in papers), *free])))


def threads_of(environment: Mapping[str, str], count: int) -> dict[str, str]:
    """The environment of a process that may use `count` threads, or fewer if it says so."""
    limits = {
        name: str(min(count, int(environment[name])) if _number(environment.get(name)) else count)
        for name in THREADS
    }
    return {**environment, **limits}


def _number(text: str | None) -> bool:
    return bool(text) and text.isdigit() and int(text) > 0
