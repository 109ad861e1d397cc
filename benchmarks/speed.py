"""How much faster the project's way is than the plain formulation, and whether both agree.

    python benchmarks/speed.py           # SmolLM2-135M, a few minutes on two cores
    python benchmarks/speed.py --tiny    # a random tiny model, seconds: for the equalities

Prints one table; exit status 1 if any two results differ. Both ways run in turns in one process, so
only the ratios mean something on another machine. benchmarks/README.md explains the lines.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from speed_hyper import hyper_lines
from speed_index import index_lines
from speed_locate import locate_lines
from speed_model import (
    Trained,
    batched_evaluation,
    checkpoints,
    edit_all,
    frozen_prefix,
    melo_on,
    mixed_batch,
)
from speed_setting import FULL, TINY, Size, invented_stream
from speed_timing import Line

from lib.backbones.sources import loading
from lib.runs import machine

HEADER = ("what", "plain seconds", "fast seconds", "ratio", "results equal")


def lines(size: Size) -> Iterator[Line]:
    """All comparisons, one after the other."""
    backbone, stream = loading.load(size.backbone), invented_stream()
    yield from index_lines(size.index_queries, size.repeats)
    yield frozen_prefix(backbone, stream, size)
    with tempfile.TemporaryDirectory() as blocks:
        melo = melo_on(backbone, size, Path(blocks))
        edit_all(melo, stream)
        trained = Trained(melo, stream, size)
        yield mixed_batch(trained)
        yield batched_evaluation(trained)
        yield checkpoints(trained)
        melo.close()
    yield from locate_lines(backbone, size)
    yield from hyper_lines(backbone, size)


def machine_line(size: Size) -> str:
    """What the numbers were measured on."""
    facts = machine.provenance("cpu")
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"{size.backbone}; {facts['device']}, {facts['threads']} threads; {versions}"


def main() -> None:
    """Prints the table and says by the exit status whether all results were equal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny random model, one repeat")
    size = TINY if parser.parse_args().tiny else FULL
    print(machine_line(size) + "\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    equal = True
    for line in lines(size):
        print(f"| {' | '.join(line.cells())} |", flush=True)
        equal &= line.agreement.equal
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
