"""The speed comparisons run and find equal results; their seconds are nobody's test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("program", "lines"), [("speed.py", 14), ("official_malmen.py", 12)])
def test_both_ways_give_the_same_results(program: str, lines: int) -> None:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{program}", "--tiny"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    verdicts = [row.split("|")[-2].strip() for row in rows if " yes: " in row or " NO: " in row]
    assert len(verdicts) == lines, done.stdout + done.stderr
    assert [verdict for verdict in verdicts if not verdict.startswith("yes: ")] == []
    assert done.returncode == 0, done.stderr
