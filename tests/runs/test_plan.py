"""From a paper's settings to runs: sweeps and the optional keys of a setting."""

from pathlib import Path

import pytest

from lib.errors import UsageError
from lib.runs import machine, plan


def document(**changes: object) -> dict:
    """A paper with one setting, as `plan.profile_of` gives it."""
    setting = {
        "dataset": "counterfact", "backbone": "tiny-gpt2", "seeds": 1,
        "stream": {"kind": "records", "n_edits": 4, "batch_size": 2},
        "protocol": {"rounds": "single", "checkpoint_every": 3, "observe": True},
        "editors": {"FT": {"kind": "ft", "config": {"steps": 3}}},
        "cost": {"seconds": 1, "seconds_per_edit": 0.5, "gigabytes": 1.0},
        "sweeps": {
            "batch": {"editors": ["FT"], "parameter": "stream.batch_size", "values": [2, 4]},
            "rounds": {"editors": ["FT"], "parameter": "protocol.rounds",
                       "values": ["single", "consecutive"]},
            "steps": {"editors": ["FT"], "parameter": "steps", "values": [3, 5]},
        },
    }  # fmt: skip
    return {"datasets": ["counterfact"], "settings": {"cf": setting | changes}}


def planned(monkeypatch, data_dir: Path | None = None, **changes: object) -> list[plan.Run]:
    monkeypatch.setattr(plan, "profile_of", lambda *a: (document(**changes), []))
    return plan.runs("melo", "smoke", data_dir=data_dir)


def test_sweeps_may_vary_the_stream_and_the_protocol(monkeypatch) -> None:
    main, *swept = planned(monkeypatch)
    found = {(run.sweep, run.value): run for run in swept}
    for same in (("batch", "2"), ("rounds", "single"), ("steps", "3")):
        assert found[same].identity == main.identity
    assert found["batch", "4"].spec["stream"]["batch_size"] == 4
    assert found["rounds", "consecutive"].spec["protocol"]["rounds"] == "consecutive"
    assert found["steps", "5"].spec["config"]["steps"] == 5
    for run in (found["batch", "4"], found["rounds", "consecutive"], found["steps", "5"]):
        protocol = run.spec["protocol"]
        assert not protocol["observe"] and not protocol["inference_repeats"]
        assert protocol["checkpoint_every"] == 0
    assert main.spec["protocol"]["observe"]
    assert main.spec["stream"]["batch_size"] == 2


def test_a_sweep_may_be_run_in_fewer_orders_than_its_setting(monkeypatch) -> None:
    steps = {"editors": ["FT"], "parameter": "steps", "values": [4, 5]}
    sweeps = {"once": {**steps, "seeds": 1}, "all": steps}
    runs = planned(monkeypatch, seeds=3, sweeps=sweeps)
    assert sorted(run.seed for run in runs if run.sweep == "") == [0, 1, 2]
    assert sorted(run.seed for run in runs if run.sweep == "all") == [0, 0, 1, 1, 2, 2]
    assert sorted(run.seed for run in runs if run.sweep == "once") == [0, 0]


def test_settings_may_name_a_dtype_a_corpus_and_a_cap(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "cpu_computes_in", lambda dtype: True)
    plain = planned(monkeypatch)[0]
    assert {"dtype", "known", "corpus"}.isdisjoint(plain.spec)
    run = planned(monkeypatch, dtype="bfloat16", known=200, corpus="invented")[0]
    assert run.spec["dtype"] == "bfloat16" and run.spec["known"] == 200
    assert run.spec["corpus"] == "invented" and "corpus_files" not in run.spec
    assert run.identity != plain.identity
    with pytest.raises(UsageError, match="float32, float16, bfloat16"):
        planned(monkeypatch, dtype="float8")
    for folder in ("counterfact", "wikipedia"):
        (tmp_path / folder).mkdir()
    found = []
    for text in ("one", "two"):
        (tmp_path / "wikipedia" / "a.txt").write_text(text, "utf-8")
        found.append(planned(monkeypatch, data_dir=tmp_path, corpus="wikipedia")[0].spec)
    assert found[0]["corpus_files"] != found[1]["corpus_files"]
    assert "corpus_files" not in planned(monkeypatch, data_dir=tmp_path)[0].spec


def test_a_setting_with_folders_of_its_own_is_planned_where_they_are(monkeypatch, tmp_path) -> None:
    (tmp_path / "counterfact").mkdir()
    assert len(planned(monkeypatch, data_dir=tmp_path)) > 1
    assert not planned(monkeypatch, data_dir=tmp_path, folders=["passages", "text"])
    assert planned(monkeypatch, folders=["passages", "text"])
    contents = []
    for name in ("passages", "text"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text("{}", "utf-8")
        run = planned(monkeypatch, data_dir=tmp_path, folders=["passages", "text"])[0]
        contents.append(run.spec["dataset"]["files"])
    assert [set(files) for files in contents] == [
        {"counterfact", "passages"}, {"counterfact", "passages", "text"},
    ]  # fmt: skip
