"""The plan as jobs: names, what waits for what, the critical path, cards."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lib.__main__ import main
from lib.errors import StoreError, TakenError, UsageError
from lib.runs import plan
from lib.runs.schedule import fanout, jobs
from lib.runs.schedule.jobs import Job
from lib.runs.schedule.preparing import prepare
from lib.runs.settings import papers
from lib.runs.study import Study
from lib.storage import cache
from tests.processes import PATIENCE

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu"])
def test_every_run_is_one_job_and_no_job_waits_for_a_later_one(profile: str) -> None:
    planned = [run for paper in papers() for run in plan.runs(paper, profile)]
    made = jobs.jobs_of(planned, papers())
    names = [job.name for job in made]
    assert len(set(names)) == len(names)
    for job in made:
        assert {*job.after} <= {*names[: names.index(job.name)]}
    runs = [job for job in made if job.kind == "run"]
    assert len(runs) == len({run.identity for run in planned})
    for paper in papers():  # a page waits for all of its runs, also those that another page shares
        page = next(job for job in made if job.name == f"page.{paper}")
        assert len(page.after) == len({run.identity for run in planned if run.paper == paper})
    assert {name for job in made for name in job.after if name.startswith("fit.")}


def test_what_one_run_prepares_alone_is_no_job_and_what_two_prepare_is_done_once() -> None:
    planned = [run for run in plan.runs("side_by_side", "smoke", seeds=1)]
    kinds = {run.editor: run for run in planned}
    alone = jobs.jobs_of([kinds["MEMIT"]], [])
    assert [(job.kind, job.after) for job in alone] == [("run", ())]
    assert alone[0].seconds == kinds["MEMIT"].seconds
    first, fit, *done = jobs.jobs_of([kinds["MEMIT"], kinds["COMEBA-HK intended"]], [])
    assert (first.kind, fit.kind) == ("prepare", "prepare")
    assert fit.after == (first.name,) and {job.after for job in done} == {(fit.name,)}
    assert sum(job.seconds for job in (fit, *done)) == pytest.approx(
        kinds["MEMIT"].seconds + kinds["COMEBA-HK intended"].seconds - fit.seconds
    )
    same = replace(kinds["MEMIT"], paper="another")
    together = jobs.jobs_of([kinds["MEMIT"], same], [])
    assert [job.papers for job in together] == [("side_by_side", "another")]
    with pytest.raises(UsageError, match="two runs are called"):
        jobs.jobs_of([kinds["MEMIT"], replace(kinds["FT"], editor="MEMIT")], [])


def test_the_critical_path_is_the_longest_chain() -> None:
    def job(name: str, seconds: float, *after: str, gpu: bool = True) -> Job:
        return Job(name, "run", name, ("p",), after, seconds, 1.0, gpu)

    chain = [
        job("a", 10),
        job("b", 1800, "a"),
        job("c", 900, "a"),
        job("d", 60, "b", "c", gpu=False),
    ]
    assert jobs.critical_path(chain) == (1870, ["a", "b", "d"])
    assert jobs.critical_path([]) == (0.0, [])
    assert jobs.gpu_hours(chain) == 2710 / 3600


def test_a_preparation_leaves_nothing_for_the_runs_to_make(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    study = Study.open("side_by_side", "smoke", output=tmp_path, seeds=1)
    run = next(run for run in study.runs if run.editor == "MALMEN")
    prepare(run, study.store, study.resources, fit=True)
    assert study.store.state(run) == "to do" and study.store.told(run).contents
    made = sorted((tmp_path / "cache" / "networks").iterdir())
    assert study.run_missing(quiet=True, only=jobs.name_of(run))
    assert sorted((tmp_path / "cache" / "networks").iterdir()) == made
    assert [run.editor for run in study.unique_runs() if study.finished(run)] == ["MALMEN"]
    assert study.finished(study.store.told(run)).manifest["seconds"]["fit"] < 60


def test_the_plan_as_json_is_all_that_a_cluster_needs(tmp_path: Path, capsys, monkeypatch) -> None:
    for name in ("STUDY_DEVICE", "STUDY_GPU_MEMORY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # what the command sets is undone
    asked = ["--only", "malmen", "--profile", "paper", "--plan", "--json", "--output"]
    asked += [str(tmp_path), "--device", "cuda", "--gpu-memory", "23.7", "--seeds", "1"]
    assert main(asked) == 0
    told = json.loads(capsys.readouterr().out)
    summary = told["papers"]["malmen"]
    assert summary["to_do"] + len(summary["left_out"]) == summary["runs"]
    assert any("zsre-gptj" in title for title in summary["left_out"])
    assert all("23.7 GiB" in reason for reason in summary["left_out"].values())
    assert 0 < summary["critical_path"]["seconds"] <= summary["gpu_hours"] * 3600
    first = told["jobs"][0]
    assert first["gpu"] and first["command"][:1] == ["env"] and "--device" in first["command"]
    assert main([*asked[:2], "run", "no.such.run", "--profile", "smoke"]) == 2
    assert "plans no such run" in capsys.readouterr().err
    assert main(["walk", "far"]) == 2 and main(["--json"]) == 2


def test_without_snakemake_it_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UsageError, match=r"pip install '\.\[cluster\]'"):
        fanout.start({"jobs": []}, tmp_path, "slurm", None)


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fanout, "_program", lambda: "snakemake")
    monkeypatch.setattr(cache.FileLock, "acquire", refuse)
    with pytest.raises(StoreError, match="on a file system with locks: STUDY_CACHE"):
        fanout.start({"jobs": []}, tmp_path, "local", None)


WORKER = """
import sys, time
from pathlib import Path
from lib.runs.schedule.fanout import card_of
folder, number = Path(sys.argv[1]), int(sys.argv[2])
with card_of("0 1 2 3 4 5 6 7".split()) as card:
    (folder / card).touch()
    while len(list(folder.iterdir())) < number:  # nobody ends before all have begun
        time.sleep(0.05)
"""


def test_eight_jobs_take_eight_cards_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    started = tmp_path / "started"
    started.mkdir()
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORKER, str(started), "8"]
    workers = [subprocess.Popen(command, env=own) for _ in range(8)]
    assert [worker.wait(PATIENCE) for worker in workers] == [0] * 8
    assert sorted(path.name for path in started.iterdir()) == list("01234567")


def test_a_card_is_taken_by_one_and_free_afterwards(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fanout.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv(fanout.VISIBLE, "4,7")
    assert fanout.cards() == ["4", "7"]
    with fanout.card_of(fanout.cards()) as first, fanout.card_of(["4", "7"]) as second:
        assert (first, second) == ("4", "7") and os.environ[fanout.VISIBLE] == "7"
        with (
            pytest.raises(TakenError),
            cache.lock(tmp_path / f"model-editing-study-cards-{os.getuid()}" / "4", wait=False),
        ):
            pass
    with fanout.card_of(["4"]) as again:
        assert again == "4"
