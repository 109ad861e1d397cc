"""How much faster the project's way is than the plain formulation, and whether both agree.

    python benchmarks/speed.py           # SmolLM2-135M, a few minutes on two cores
    python benchmarks/speed.py --tiny    # a random tiny model, seconds: for the equalities

Prints one table; exit status 1 if any two results differ. Both ways run in turns in one process, so
only the ratios mean something on another machine. benchmarks/README.md explains the lines.
"""

import argparse
import sys
from collections.abc import Iterator

from speed_elder import elder_lines
from speed_hyper import hyper_lines
from speed_locate import locate_lines
from speed_setting import FULL, TINY, Size
from speed_timing import Line

from lib.backbones.sources import loading
from lib.runs import machine

HEADER = ("what", "plain seconds", "fast seconds", "ratio", "results equal")


def lines(size: Size) -> Iterator[Line]:
    """All comparisons, one after the other."""
    backbone = loading.load(size.backbone)
    yield from locate_lines(backbone, size)
    yield from hyper_lines(backbone, size)
    yield from elder_lines(backbone, size)


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
