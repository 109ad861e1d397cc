"""The comparisons of speed run and find equal results; their seconds are nobody's test. Numbers of
facts that decide a claim."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import facts_that_decide
from lib.metrics.intervals import wilson
from tests.processes import PATIENCE

ROOT = Path(__file__).resolve().parents[1]


# program: lines of its tables of seconds
@pytest.mark.parametrize(
    "program, lines",
    [
        ("official/elder.py", 3),
        ("official/locate.py", 8),
        ("official/malmen.py", 12),
        ("official/melo.py", 12),
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


def test_the_check_of_a_card_runs_on_a_processor(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_check.py", "--tiny", "--store", str(tmp_path),
         "--only", "ft,grace,memit,malmen,serac"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "STUDY_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "gpu_check.csv", keep_default_na=False)
    causal = ["ft", "grace", "malmen", "memit", "serac"]
    for shape, rows in table.groupby("shape"):
        wanted = ["ft", "grace", "malmen"] if shape.startswith("t5") else causal
        assert sorted(rows["editor"]) == wanted
    assert len(table["shape"].unique()) == 4 and table["finite"].all()
    assert (table["resumed_differs_by"] <= 1e-3).all() and (table["peak_gib"] > 0).all()


def evidence(**change: object) -> pd.Series:
    told = {"rule": "not worse", "mean": 0.0, "low": -0.138, "high": 0.138, "facts": 24, "p": 1.0,
            "margin": 0.05, "better": "higher", "changed": 0, "room": 1.0}  # fmt: skip
    return pd.Series(told | change)


@pytest.mark.parametrize(
    ("margin", "facts"),
    [(0.05, 73), (0.02, 189), (0.1, 35)],
)
def test_facts_of_which_none_may_change(margin: float, facts: int) -> None:
    share = wilson(0, 24).high
    row = evidence(low=-share, high=share, margin=margin)
    assert facts_that_decide.of_row(row) == (facts, "holds")
    assert wilson(0, facts).high <= margin < wilson(0, facts - 1).high
    assert facts_that_decide.of_row(row.replace("not worse", "better")) == (facts, "fails")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"mean": -0.1, "low": -0.3, "high": 0.1}, (24 * 4, "fails")),
        ({"mean": 0.1, "low": -0.1, "high": 0.3, "rule": "better"}, (24 * 4, "holds")),
        ({"mean": 0.01, "low": -0.07, "high": 0.09, "rule": "better"}, (24 * 4, "fails")),
        ({"mean": 0.1, "low": -0.1, "high": 0.3, "better": "lower"}, (96, "fails")),
        ({"mean": 0.6, "low": 0.4, "high": 0.8, "rule": "at least", "margin": 0.5}, (96, "holds")),
        ({"mean": 0.6, "low": 0.4, "high": 0.8, "rule": "at most", "margin": 0.5}, (96, "fails")),
        ({"low": float("nan"), "high": float("nan")}, facts_that_decide.UNCLEAR),
        ({"mean": 0.01, "low": -0.07, "high": 0.09, "rule": "better", "room": 0.02},
         (96, "not testable in this profile")),
        # Three of 24 fell: an interval without 0, and p = 2 / 2³. Six must fall.
        ({"mean": -0.125, "low": -0.2, "high": -0.04, "changed": 3}, (48, "fails")),
    ],
)  # fmt: skip
def test_intervals_narrow_with_the_root_of_the_facts(change: dict, found: tuple) -> None:
    assert facts_that_decide.of_row(evidence(**change)) == found


def test_one_row_that_fails_decides_and_all_that_hold_are_waited_for() -> None:
    place = {"page": "melo", "kind": "claim", "key": "k", "setting": "s", "verdict": "inconclusive",
             "group": float("nan"), "exact": False}  # fmt: skip
    holds, fails = {"mean": 0.1, "low": -0.1, "high": 0.3, "rule": "better"}, {
        "mean": -0.1, "low": -0.2, "high": 0.0, "rule": "better",
    }  # fmt: skip
    rows = [place | evidence(**holds).to_dict(), place | evidence(**fails).to_dict()]
    found = facts_that_decide.needed(pd.DataFrame(rows)).iloc[0]
    assert (found["needed"], found["then"]) == (11, "fails")
    half = [rows[0] | {"facts": 12}, rows[0]]
    assert facts_that_decide.needed(pd.DataFrame(half))["needed"].tolist() == [96]
    few = [rows[0] | {"rule": "not worse", "mean": 0.0, "low": -0.01, "high": 0.01, "facts": 6}]
    found = facts_that_decide.needed(pd.DataFrame([*few, rows[0] | {"mean": 0.5, "low": 0.4}]))
    assert found["needed"].tolist() == [40]  # ten facts of a part that has a quarter of all
    either = [row | {"group": name} for row, name in zip(rows, "ab", strict=True)]
    found = facts_that_decide.needed(pd.DataFrame(either)).iloc[0]
    assert (found["needed"], found["then"]) == (96, "holds")
    assert "| melo | k | s | 24 | inconclusive | 96 | holds |" in facts_that_decide.as_markdown(
        facts_that_decide.needed(pd.DataFrame(either))
    )
    counted = pd.DataFrame([row | {"exact": True} for row in rows])
    assert facts_that_decide.needed(counted).empty
