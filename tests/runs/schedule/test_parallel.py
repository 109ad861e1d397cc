"""Several papers at a time: how many, with how many threads, and what is told of their end."""

import subprocess

import pytest

from lib.errors import UsageError
from lib.runs.schedule import parallel


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 4)


@pytest.mark.parametrize(
    ("asked", "peaks", "device", "room", "count"),
    [
        (None, [2.0] * 5, "cpu", 99.0, 4),  # one for each core
        (None, [2.0, 2.0], "cpu", 99.0, 2),  # no more than there are runs
        (None, [2.0] * 5, "cuda", 99.0, 1),  # one card
        (None, [2.0, 6.0, 3.0], "cpu", 9.5, 2),  # 6 + 3 fit, 6 + 3 + 2 do not
        (None, [6.0, 6.0], "cpu", 5.0, 1),  # the plan itself refuses what cannot fit
        (3, [2.0] * 5, "cuda", 1.0, 3),  # as asked
        (9, [2.0, 2.0], "cpu", 9.0, 9),
    ],
)
def test_how_many_papers_run_at_a_time(four_cores, asked, peaks, device, room, count):
    assert parallel.jobs(asked, peaks, device, room) == count


def test_less_than_one_at_a_time_is_refused():
    with pytest.raises(UsageError, match="--jobs 0"):
        parallel.jobs(0, [1.0], "cpu", 9.0)


def test_threads_never_exceed_the_share_nor_what_the_user_set():
    limited = parallel.threads_of({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "8", "HOME": "/x"}, 2)
    assert limited["OMP_NUM_THREADS"] == "1" and limited["MKL_NUM_THREADS"] == "2"
    assert limited["OPENBLAS_NUM_THREADS"] == "2" and limited["HOME"] == "/x"
    assert parallel.threads_of({"OMP_NUM_THREADS": "many"}, 2)["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("failing", [None, "malmen"])
def test_each_paper_is_a_call_of_its_own_and_one_failure_stops_no_other(
    four_cores, monkeypatch, failing
):
    calls = {}

    def run(command, env, check):
        paper = command[len(command) - 1 - command[::-1].index("--only") + 1]
        calls[paper] = command, env
        return subprocess.CompletedProcess(command, int(paper == failing))

    monkeypatch.setattr(parallel.subprocess, "run", run)
    papers = ["melo", "malmen", "elder"]
    fine = parallel.run(papers, ["--profile", "smoke", "--only", "melo,malmen,elder"], 2)
    # The last one helps with what is left of all.
    assert fine is (failing is None) and list(calls) == [*papers, ",".join(papers)]
    assert [paper for paper, (command, _) in calls.items() if "--free-runs" in command] == [
        ",".join(papers)
    ]
    for command, env in calls.values():
        assert command[1:3] == ["-m", "lib"] and "smoke" in command
        assert command[-2:] == ["1", "--part"] and env["OMP_NUM_THREADS"] in ("1", "2")
