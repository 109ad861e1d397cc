"""The speed comparison runs and finds equal results; its seconds are nobody's test."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import PATIENCE

ROOT = Path(__file__).resolve().parents[1]


def test_the_fast_ways_give_the_plain_results() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/speed.py", "--tiny"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    verdicts = [row.split("|")[-2].strip() for row in rows]
    assert len(verdicts) == 17, done.stdout + done.stderr
    assert [verdict for verdict in verdicts if not verdict.startswith("yes: ")] == []
    assert done.returncode == 0, done.stderr
