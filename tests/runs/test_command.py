"""Folders on the command line and in notebooks: as the caller means them."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lib.__main__ import main
from lib.errors import UsageError
from lib.runs.settings import ROOT
from lib.runs.study import Study, check_project, output_root


@pytest.fixture
def caller(tmp_path: Path, monkeypatch) -> Path:
    """The folder that the caller is in, with some data; its parent is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STUDY_OUTPUT", raising=False)
    for name in ("STUDY_CACHE", "STUDY_ASSETS", "STUDY_MODELS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # what the command sets is undone
    folder = tmp_path / "desk"
    for name in ("counterfact", "zsre", "nq"):
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "facts.jsonl").write_text("{}\n")
    monkeypatch.chdir(folder)
    return folder


def planned_into(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(["--only", "comeba_hk", "--profile", "smoke", "--plan", *arguments]) == 0
    return capsys.readouterr().out.splitlines()[0].partition(" into ")[2]


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        (["--output", "out"], "desk/out/smoke"), (["--output=../b"], "b/smoke"),
        (["--output=~/study"], "study/smoke"), (["--output", "/tmp/x y"], "/tmp/x y/smoke"),
        (["--output=~"], "smoke"), (["--output=a~b"], "desk/a~b/smoke"),
        ([], ROOT / "outputs" / "smoke"),
    ],
)  # fmt: skip
def test_an_output_folder_is_where_the_caller_means(
    caller: Path, capsys, told: list[str], meant: str
) -> None:
    assert planned_into(capsys, *told) == str(caller.parent / meant)


def test_data_and_archives_are_the_callers(caller: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("STUDY_CACHE", "cache")
    for data in ("data", "~/desk/data", str(caller / "data")):
        planned_into(capsys, f"--data-dir={data}", "--assets=data")
        assert os.environ["STUDY_ASSETS"] == str(caller / "data")
        assert os.environ["STUDY_CACHE"] == str(caller / "cache")
    assert main(["--data-dir", "elsewhere"]) == 2
    assert f"--data-dir {caller / 'elsewhere'}: there is no such folder" in capsys.readouterr().err


def test_a_notebook_may_say_home(caller: Path, monkeypatch) -> None:
    study = Study.open("comeba_hk", "smoke", output="~/study", data_dir="~/desk/data")
    assert study.folder == caller.parent / "study" / "smoke"
    assert study.resources.data_dir == caller / "data"
    monkeypatch.setenv("STUDY_OUTPUT", "~/other")
    assert output_root() == output_root("") == caller.parent / "other"


def test_a_notebook_of_another_copy_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Its kernel brings the library of this copy, whose outputs it would fill."""
    other = tmp_path / "copy" / "notebooks"
    other.mkdir(parents=True)
    check_project(other)  # no study beside it
    (tmp_path / "copy" / "lib" / "runs").mkdir(parents=True)
    (tmp_path / "copy" / "lib" / "runs" / "study.py").touch()
    with pytest.raises(UsageError, match=r"copy runs with the library of .*copy/\.venv"):
        check_project(other)
    check_project(ROOT / "notebooks")
    check_project(tmp_path / "copy")
    monkeypatch.chdir(other)
    Study.open("comeba_hk", "smoke", output=tmp_path)  # the command line, called from there
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", ModuleType("kernelapp"))
    with pytest.raises(UsageError, match="choose the kernel"):
        Study.open("comeba_hk", "smoke", output=tmp_path)


def test_a_value_from_the_shell_belongs_to_one_paper(tmp_path: Path, capsys) -> None:
    place = "cf-single.editors.COMEBA-HK.changes.alpha"
    given = ["--profile", "smoke", "--plan", "--output", str(tmp_path), "--set", f"{place}=1.5"]
    assert main([*given, "--only", "comeba_hk"]) == 0
    folder = Study.open("comeba_hk", "smoke", output=tmp_path, overrides={place: 1.5}).folder
    assert f"into {folder}\n" in capsys.readouterr().out
    assert main(given) == 2 and "--only" in capsys.readouterr().err
    assert main([*given[:-1], place, "--only", "comeba_hk"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
