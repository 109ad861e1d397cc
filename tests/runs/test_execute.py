"""Runs and the store: identity, resuming after a kill, damage, failures, sharing."""

import contextlib
import itertools
import json
import random
import signal
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import pytest

from lib.errors import TakenError, UsageError
from lib.evaluation.evaluator import Evaluator
from lib.runs import plan
from lib.runs.execute import execute
from lib.runs.progress import LineProgress
from lib.runs.resources import Resources
from lib.runs.settings import PROFILES, profile_of
from lib.runs.store import Store
from lib.runs.study import Study
from tests.processes import PATIENCE, start

SCORES = [
    "subset", "moment", "n_edits", "record", "prediction", "route", "nll", "token_accuracy",
    "f1_ids", "f1_ids_released", "exact_match", "agreement", "edit_index", "batch",
    "answer_accuracy", "answer_agreement", "answer_nll", "prompt_accuracy",
]  # fmt: skip


SINGLE = {
    "stream": {
        "kind": "records", "n_edits": 6, "batch_size": 2, "seed": 0, "n_near": 1, "n_upstream": 1,
    },
    "protocol": {"max_new_tokens": 6, "rounds": "single", "observe": True, "inference_repeats": 2},
}  # fmt: skip


def smoke_runs(setting: str = "zsre-t5", single: bool = False) -> dict[str, plan.Run]:
    """The main runs of a smoke setting; `single`: in single rounds of a stream of records."""
    runs = plan.runs("melo", "smoke", device="cpu")
    changes = SINGLE if single else {}
    return {
        run.editor: replace(run, spec=run.spec | changes)
        for run in runs
        if run.setting == setting and not run.sweep
    }


def results(store: Store, run: plan.Run) -> pd.DataFrame:
    found = store.finished(run)
    assert found is not None
    return found.records[SCORES]


def run_until(
    connection: Connection, root: Path, setting: str, editor: str, rounds: str, last: int | None
) -> None:
    """One smoke run in a process of its own, which tells of every record; after the `last` one
    (None: never) it waits for leave to go on."""
    run, plain = smoke_runs(setting, rounds == "single")[editor], Evaluator.records
    count = itertools.count(1)

    def records(*arguments, **keywords):
        for record in plain(*arguments, **keywords):
            yield record
            connection.send("record")
            if next(count) == last:
                connection.recv()

    Evaluator.records = records
    sys.exit(not execute(run, Store(root), Resources(checkpoint_seconds=0.0), LineProgress()))


@pytest.mark.parametrize(
    ("setting", "editor", "rounds"),
    [
        ("zsre-t5", "MELO", "consecutive"),
        ("zsre-causal", "FT", "consecutive"),
        ("zsre-causal", "LoRA", "single"),
    ],
)
def test_killed_and_resumed_equals_unbroken(
    setting: str, editor: str, rounds: str, tmp_path: Path
) -> None:
    """Killed up to three times, each at a random moment in which it cannot have ended."""
    run = smoke_runs(setting, rounds == "single")[editor]
    assert execute(run, Store(tmp_path / "whole"), Resources(), LineProgress())
    expected = results(Store(tmp_path / "whole"), run)
    rng, codes = random.Random(f"{setting}{editor}"), []
    few, many = len(expected) // 4, len(expected) * 3 // 4
    for last in (*(rng.randint(few, many) for _ in range(3)), None):
        process, connection = start(run_until, tmp_path / "broken", setting, editor, rounds, last)
        with connection, contextlib.suppress(EOFError):  # it ended
            for _ in range(rng.randint(few, last)) if last else itertools.count():
                connection.recv()
            process.kill()
        process.join(PATIENCE)
        codes.append(process.exitcode)
        if process.exitcode == 0:
            break
    assert codes[0] == -signal.SIGKILL and codes[-1] == 0
    assert set(codes) == {-signal.SIGKILL, 0}
    pd.testing.assert_frame_equal(results(Store(tmp_path / "broken"), run), expected)


@pytest.mark.parametrize("single", [False, True], ids=["consecutive", "single"])
@pytest.mark.parametrize("editor", ["MELO", "GRACE", "LoRA", "FT"])
def test_a_resumed_run_goes_on_from_its_checkpoint(
    editor: str, single: bool, tmp_path: Path, monkeypatch
) -> None:
    """Deterministic counterpart of the kill: stop after the first batch, then go on. The scores of
    the unedited backbone are lost in between, as if they had never reached the disk."""
    import lib.runs.execute

    run, store = smoke_runs(single=single)[editor], Store(tmp_path)
    plain, calls = lib.evaluation.protocol.run_sequence, []

    def stopping(editor, *arguments, after_batch, start_batch, **keywords):
        calls.append(start_batch)

        def stop(done: int) -> None:
            after_batch(done)
            if len(calls) == 1:
                raise KeyboardInterrupt

        return plain(editor, *arguments, after_batch=stop, start_batch=start_batch, **keywords)

    monkeypatch.setattr(lib.runs.execute, "run_sequence", stopping)
    with pytest.raises(KeyboardInterrupt):
        execute(run, store, Resources(checkpoint_seconds=0.0), LineProgress())
    assert store.state(run) == "started"
    for file in (store.cache.root / "before").iterdir():
        file.unlink()
    assert execute(run, store, Resources(checkpoint_seconds=0.0), LineProgress())
    assert calls == [0, 1]
    other = Store(tmp_path / "whole")
    assert execute(run, other, Resources(), LineProgress())
    pd.testing.assert_frame_equal(results(store, run), results(other, run))


def test_finished_runs_are_reused(tmp_path: Path, monkeypatch) -> None:
    run, store = smoke_runs()["FT"], Store(tmp_path)
    assert execute(run, store, Resources(), LineProgress())
    import lib.runs.execute

    monkeypatch.setattr(lib.runs.execute, "_execute", lambda *a: pytest.fail("it ran again"))
    assert execute(run, store, Resources(), LineProgress())


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest"])
def test_a_damaged_run_is_computed_again(damage: str, tmp_path: Path) -> None:
    run, store = smoke_runs()["FT"], Store(tmp_path)
    execute(run, store, Resources(), LineProgress())
    before = results(store, run)
    folder = store.root / store.told(run).identity
    if damage == "truncate":
        data = (folder / "records.parquet").read_bytes()
        (folder / "records.parquet").write_bytes(data[: len(data) // 2])
    elif damage == "delete":
        (folder / "steps.parquet").unlink()
    else:
        (folder / "manifest.json").write_text("{")
    assert store.finished(run) is None
    assert execute(run, store, Resources(), LineProgress())
    pd.testing.assert_frame_equal(results(store, run), before)


def test_a_failed_run_is_noted_and_tried_again(tmp_path: Path, monkeypatch) -> None:
    import lib.runs.execute

    run, store = smoke_runs()["FT"], Store(tmp_path)
    build = lib.editors.build

    def broken(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lib.runs.execute, "build", broken)
    assert not execute(run, store, Resources(), LineProgress())
    assert store.state(run) == "failed"
    assert "No space left" in store.failure(run)["error"]
    monkeypatch.setattr(lib.runs.execute, "build", build)
    assert execute(run, store, Resources(), LineProgress())
    assert store.failure(run) is None


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    """The second comes while the first has not ended."""
    first, connection = start(run_until, tmp_path, "zsre-t5", "FT", "", 5)
    for _ in range(5):
        assert connection.recv() == "record"
    second, other = start(run_until, tmp_path, "zsre-t5", "FT", "", None)
    connection.send("go on")
    for process in (first, second):
        process.join(PATIENCE)
        assert process.exitcode == 0
    with pytest.raises(EOFError):
        other.recv()  # it made no record
    run = smoke_runs()["FT"]
    assert len(list((tmp_path / "runs").glob("*/manifest.json"))) == 1
    results(Store(tmp_path), run)


def test_the_manifest_says_what_was_run(tmp_path: Path) -> None:
    run, store = smoke_runs()["MELO"], Store(tmp_path)
    execute(run, store, Resources(), LineProgress())
    manifest = store.finished(run).manifest
    assert manifest["spec"] == json.loads(json.dumps(run.spec))
    assert manifest["peak_memory_bytes"] > 2**20
    assert set(manifest["seconds"]) == {"fit", "edit", "evaluate"}
    assert {"torch", "transformers", "peft", "python"} <= set(manifest["versions"])
    assert manifest["dataset"]["counts"]["edits"] == 8
    assert manifest["backbone"]["content"]


def test_what_decides_a_result_decides_the_identity() -> None:
    runs = plan.runs("melo", "smoke", device="cpu")
    main = {r.identity for r in runs if not r.sweep}
    assert len(main) == len([r for r in runs if not r.sweep])
    other_seed = plan.runs("melo", "smoke", seeds=2, device="cpu")
    assert len({r.identity for r in other_seed}) == 2 * len({r.identity for r in runs})
    elsewhere = plan.runs("melo", "smoke", device="cuda")
    assert {r.identity for r in elsewhere}.isdisjoint(r.identity for r in runs)
    # a sweep's default value is the run of the main table
    swept = [r for r in runs if r.sweep == "radius" and r.value == "0.5"]
    assert swept[0].identity in main


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_plans(profile: str, tmp_path: Path) -> None:
    study = Study.open("melo", profile, output=tmp_path)
    table = study.plan()
    assert (table["state"] == "to do").all()
    assert (table["estimated seconds"] >= 0).all() and (table["peak GiB"] > 0).all()
    assert table["run"].is_unique


def test_a_plan_that_cannot_fit_is_refused(tmp_path: Path, monkeypatch) -> None:
    from lib.runs import machine

    study = Study.open("melo", "laptop", output=tmp_path)
    monkeypatch.setattr(machine, "available_gigabytes", lambda device: 0.25)
    with pytest.raises(UsageError, match=r"0\.2 GiB are free|0\.3 GiB are free"):
        study.run_missing()


def test_every_sourced_value_of_the_paper_profile_has_a_source() -> None:
    _, sourced = profile_of("melo", "paper")
    assert len(sourced) > 25
    assert all(item.source.strip() for item in sourced)


def test_a_run_that_another_process_does_is_not_waited_for(tmp_path: Path) -> None:
    run, store = smoke_runs()["FT"], Store(tmp_path)
    process, connection = start(run_until, tmp_path, "zsre-t5", "FT", "consecutive", 1)
    with connection:
        connection.recv()  # it is inside, and waits for leave
        with pytest.raises(TakenError, match="another process"):
            execute(run, store, Resources(), LineProgress(), wait=False)
        assert store.finished(run) is None and store.failure(run) is None
        connection.send("go on")
        with contextlib.suppress(EOFError):
            while True:
                connection.recv()
    process.join(PATIENCE)
    assert process.exitcode == 0 and execute(run, store, Resources(), LineProgress(), wait=False)


def test_taken_runs_come_last(tmp_path: Path, monkeypatch) -> None:
    import lib.runs.study

    study, tried = Study.open("melo", "smoke", output=tmp_path, device="cpu"), []

    def execute(run, store, resources, progress, *, wait=True):
        tried.append((run.title, wait))
        if run is taken and not wait:
            raise TakenError("another process works on it")
        return True

    monkeypatch.setattr(lib.runs.study, "execute", execute)
    taken, *others = study.unique_runs()
    study._do([taken, *others], LineProgress())
    assert tried == [(run.title, False) for run in (taken, *others)] + [(taken.title, True)]
    tried.clear()
    study._do([taken, *others], LineProgress(), free=True)
    assert tried == [(run.title, False) for run in (taken, *others)]
