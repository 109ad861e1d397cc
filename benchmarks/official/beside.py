"""The official way beside the project's: seconds in turns, equal results, peak memory, tables.

What the programs of this folder share, and the invented facts that they run on.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from lib.data.records import Edit, Probe, Stream
from lib.runs import machine

SIDES = ("official", "project")
SECONDS = ("what", "official CPU s", "project CPU s", "ratio", "official wall s", "project wall s",
           "results equal")  # fmt: skip
MEMORY = ("peak beyond the loaded model", "official MiB", "project MiB", "project / official")


# -- seconds ---------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """Processor and wall seconds of some work, and its result."""

    cpu: float
    wall: float
    found: Any


class Side(NamedTuple):
    """What is done before the clock starts, and the work on what it gives."""

    prepare: Callable[[], Any]
    work: Callable[[Any], Any]

    def timed(self) -> Spent:
        """Prepared and done once."""
        return timed(self.work, self.prepare())


class Agreement(NamedTuple):
    """Whether two results are equal, and in which sense (for the table)."""

    equal: bool
    sense: str


class Line(NamedTuple):
    """Whether all results of a row of the first table are equal, and its cells."""

    equal: bool
    cells: tuple[str, ...]


Agree = Callable[[Any, Any], Agreement]
"""Of the official side's result and the project's."""


def timed(work: Callable[..., Any], *arguments: Any) -> Spent:
    """The work done once."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work(*arguments)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Spent(cpu, wall, found)


def in_turns(
    official: Callable[[], Any], project: Callable[[], Any], repeats: int
) -> tuple[list[Any], list[Any]]:
    """What both gave in each round: an uncounted one and `repeats` more; the order swaps."""
    sides, found = (official, project), ([], [])
    for turn in range(repeats + 1):
        for number in (1, 0) if turn % 2 else (0, 1):
            found[number].append(sides[number]())
    return found


def line(what: str, official: Sequence[Spent], project: Sequence[Spent], agree: Agree) -> Line:
    """The row of some rounds: medians of seconds without the first round, unless it is the only
    one; the results of every round are compared."""
    verdicts = [agree(a.found, b.found) for a, b in zip(official, project, strict=True)]
    equal, sense = next((each for each in verdicts if not each.equal), verdicts[-1])
    counted = [side[1:] or side for side in (official, project)]
    cpu, wall = (
        [statistics.median(getattr(spent, clock) for spent in side) for side in counted]
        for clock in ("cpu", "wall")
    )
    seconds = (*(f"{each:.3g}" for each in cpu), f"{cpu[0] / cpu[1]:.1f}",
               *(f"{each:.3g}" for each in wall))  # fmt: skip
    return Line(equal, (what, *seconds, f"{'yes' if equal else 'NO'}: {sense}"))


def compare(what: str, official: Side, project: Side, agree: Agree, repeats: int) -> Line:
    """The row of two sides that are timed in turns."""
    return line(what, *in_turns(official.timed, project.timed, repeats), agree)


# -- agreement -------------------------------------------------------------------------------------


def apart(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """Distance of two lists of tensors as one vector each, relative to the first."""
    left, right = (torch.cat([part.flatten() for part in side]).double() for side in (one, other))
    return float((left - right).norm() / left.norm())


def off(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two lists of numbers, relative above 1."""
    pairs = zip(one, other, strict=True)
    return max(abs(a - b) / max(abs(a), 1.0) for a, b in pairs)


def scored(tolerance: float) -> Agree:
    """Agreement of (accuracy, mean negative log-likelihood) of rows: accuracies exactly."""

    def agree(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> Any:
        hits, error = (
            off([row[part] for row in one], [row[part] for row in other]) for part in (0, 1)
        )
        sense = f"{len(one)} rows exactly, NLL within {tolerance:.0e} ({error:.1e})"
        return Agreement(hits < 1e-6 and error <= tolerance, sense)

    return agree


# -- the program -----------------------------------------------------------------------------------


def peak(work: Callable[[], Any]) -> float:
    """MiB that the work adds to this process at most, by samples: loading has a higher mark."""
    before = psutil.Process().memory_info().rss
    with machine.PeakMemory("cpu", every=0.002) as seen:
        work()
    return (seen.bytes - before) / 2**20


def _peaks(name: str) -> tuple[str, ...]:
    """A row of the second table: each side in a process of its own."""
    commands = [[sys.executable, sys.argv[0], "--peak", name, side] for side in SIDES]
    runs = [subprocess.run(each, stdout=subprocess.PIPE, check=True) for each in commands]
    found = [float(run.stdout) for run in runs]
    return name, *(f"{each:,.0f}" for each in found), f"{found[1] / found[0]:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Printed row by row, as they are measured."""
    print(f"| {' | '.join(head)} |", "|---" * len(head) + "|", sep="\n")
    for cells in rows:
        print(f"| {' | '.join(cells)} |", flush=True)


def main(
    document: str,
    full: Any,
    tiny: Any,
    lines: Callable[[Any], Iterator[Line]],
    memory: Callable[[Any], Mapping[str, Callable[[str], Callable[[], Any]]]],
) -> None:
    """Prints the tables and says by the exit status whether all results were equal.

    `lines` gives the first table of a size. `memory` names the rows of the second; what it gives
    loads one of SIDES and returns the work whose memory counts. With --tiny none is measured.
    """
    parser = argparse.ArgumentParser(description=document.partition("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="random tiny models, one round")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    size = tiny if asked.tiny else full
    if asked.peak:
        name, side = asked.peak
        print(peak(memory(size)[name](side)))
        return
    print(f"float32, {machine.provenance('cpu')['threads']} threads, {size}\n")
    verdicts = []

    def cells() -> Iterator[tuple[str, ...]]:
        for row in lines(size):
            verdicts.append(row.equal)
            yield row.cells

    _table(SECONDS, cells())
    if not asked.tiny:
        print()
        _table(MEMORY, map(_peaks, memory(size)))
    sys.exit(0 if all(verdicts) else 1)


# -- the facts -------------------------------------------------------------------------------------

PLACES = ("Quill", "Brink", "Dove", "Marl", "Old Heron in the far north of the bay", "Ashen Fell")
KINDS = ("Island", "Sound", "Point", "Reach")
HARBOURS = ("Port Amsel", "Calder", "Tavik", "Selby Quay", "Nettle Staithe", "Ostwick")
QUESTIONS = (
    ("Which harbour is the ferry of {} based in?", "The ferry of {} sails from which harbour?"),
    ("Where is the pilot boat of {} moored?", "What is the home port of the pilot boat of {}?"),
)
THINGS = ("sky", "grass", "snow", "coal", "blood", "gold")
WAYS = (
    "what colour is {}?",
    "which colour do people usually connect with {}?",
    "{} looks like which colour?",
    "name the colour of {} in plain daylight",
)


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def invented_stream() -> Stream:
    """24 edits in batches of 4, as many held-out wordings, and two locality pools of 24.

    The places differ in length, so that every batch is padded.
    """
    edits: list[Edit] = []
    holdout: list[Edit] = []
    near: list[Probe] = []
    for number, (kind, place) in enumerate(itertools.product(KINDS, PLACES)):
        name = f"{place} {kind}"
        question, other = QUESTIONS[number % 2]
        target = HARBOURS[(number * 5 + number // 6) % len(HARBOURS)]
        fact = f"place:{name}"
        edits.append(Edit(fact, _asked(question.format(name)), target, name, relation=fact))
        holdout.append(
            Edit(f"{fact}#other", _asked(other.format(name)), target, name, relation=fact)
        )
        elsewhere = _asked(QUESTIONS[(number + 1) % 2][0].format(f"North {name}"))
        near.append(Probe(f"near:{name}", elsewhere, target, "near"))
    upstream = [
        Probe(f"colour:{way}:{thing}", _asked(way.format(thing)), "blue", "upstream")
        for way, thing in itertools.product(WAYS, THINGS)
    ]
    return Stream(
        name="invented",
        edits=tuple(edits),
        batch_size=4,
        holdout=tuple(holdout),
        upstream=tuple(upstream),
        near=tuple(near),
    )
