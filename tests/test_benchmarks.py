"""The comparisons of speed run and find equal results; their seconds are nobody's test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE

ROOT = Path(__file__).resolve().parents[1]


# program: lines of its tables of seconds
@pytest.mark.parametrize(
    "program, lines",
    [
        ("official_elder.py", 3),
        ("official_locate.py", 8),
        ("official_malmen.py", 12),
        ("official_melo.py", 12),
    ],
)
def test_the_fast_ways_give_the_plain_results(program: str, lines: int) -> None:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{program}", "--tiny"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    seconds = done.stdout.strip().split("\n\n")[1]  # below the setting
    rows = [line for line in seconds.splitlines() if line.startswith("| ")][1:]
    verdicts = [row.split("|")[-2].strip() for row in rows]
    assert len(verdicts) == lines, done.stdout + done.stderr
    assert [verdict for verdict in verdicts if not verdict.startswith("yes: ")] == []
    assert done.returncode == 0, done.stderr
