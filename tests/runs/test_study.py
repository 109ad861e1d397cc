"""The command line, the notebook and the pages, end to end on the smoke profile."""

import csv
import functools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

from lib.runs import plan
from lib.runs.settings import papers
from lib.runs.store import Store
from lib.runs.study import Outline
from tests.processes import PATIENCE
from tests.report import evidence_checks
from tests.report.pages import browser_checks
from tests.runs import kills as kills_of

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def study(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """`./run_all.sh` with the arguments, but for the environment that it makes."""
    as_the_script = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(cwd)}
    offline = {"OMP_NUM_THREADS": "1", "STUDY_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "lib", *arguments],
        cwd=cwd,
        env={**os.environ, **as_the_script, **offline, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke profile, run and rendered once, with no network and empty caches."""
    folder = tmp_path_factory.mktemp("study")
    done = study("--profile", "smoke", "--output", str(folder), STUDY_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "smoke"


class Asked(Outline):
    document: ClassVar[dict] = {
        "settings": {
            "facts": {
                "title": "some facts", "stream": {"n_edits": 8, "batch_size": 4},
                "editors": {"FT": {}, "ROME": {"stream": {"first": 2}}},
            },
            "left-out": {"enabled": False},
        }
    }  # fmt: skip

    def errors(self) -> dict[str, str]:
        return {
            "ROME on facts, seed 1": "Traceback\nEditorError: no room\n",
            "FT on facts-2, s": "x",
        }


def test_a_study_answers_for_its_settings() -> None:
    asked = Asked()
    assert asked.settings == ["facts"] and asked.title("facts") == "some facts"
    assert asked.editors("facts") == ["FT", "ROME"] and asked.sweeps("facts") == {}
    assert asked.edits("facts") == asked.edits("facts", "FT") == 8
    assert asked.edits("facts", "ROME") == 2 and asked.batch_size("facts") == 4
    assert asked.error("facts", "ROME").startswith("Traceback")
    assert asked.reason("facts", "ROME") == "EditorError: no room"
    assert asked.error("facts", "FT") == asked.reason("facts", "FT") == ""


def test_every_page_table_and_figure_is_there(output: Path) -> None:
    kinds = ("html", "ipynb", "summary.json")
    for name in ("index.html", *(f"{paper}.{kind}" for paper in papers() for kind in kinds)):
        assert (output / name).stat().st_size > 500
    figures = {path.name for path in (output / "figures").iterdir()}
    drawn = {name[:-4] for name in figures if name.endswith(".png")}
    drawn |= {f"{p.parts[-3]}-{p.stem}" for p in ROOT.glob("papers/*/drawings/*.svg")}
    assert len(drawn) >= 30
    assert {name[:-4] for name in figures if name.endswith(".svg")} == drawn
    with (output / "tables" / "melo-table2.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {"item", "setting", "backbone", "dataset", "editor", "n_edits", "metric", "reported",
            "reproduced", "ci_low", "ci_high", "n", "seeds", "verdict",
            "substitutions"} <= set(rows[0])  # fmt: skip
    reported = {row["editor"]: row["reported"] for row in rows if row["metric"] == "ES (F1)"}
    assert reported["MELO"] == "0.98" and reported["GRACE"] == "0.96"
    own = [row for row in rows if row["editor"] == "MELO"]
    assert all(row["n"] != "0" and row["reproduced"] for row in own)
    assert all("random" in row["substitutions"] or row["substitutions"] for row in own)


def test_verdicts_and_counts_follow_from_the_files_beside_the_pages(output: Path) -> None:
    verdicts = evidence_checks.read(output, "verdicts")
    assert set(verdicts["page"]) == set(papers())
    assert evidence_checks.check_verdicts(verdicts) >= 40
    evidence_checks.check_front_page(output / "index.html", verdicts)


def test_no_two_pages_contradict_each_other(output: Path) -> None:
    cells = evidence_checks.read(output, "cells")
    assert set(cells["page"]) == set(papers())
    found = evidence_checks.contradictions(evidence_checks.read(output, "verdicts"), cells)
    assert not found, "\n".join(found[:10])


@pytest.mark.skipif(browser_checks.browser_path() is None, reason=browser_checks.why_no_browser())
@pytest.mark.parametrize("page", ["index.html", "melo.html", "comeba_hk.html"])
def test_the_pages_load_in_a_browser_without_a_network(output: Path, page: str) -> None:
    browser_checks.check_page(output / page)


def test_a_second_call_reuses_every_run(output: Path) -> None:
    manifests = {p: p.stat().st_mtime_ns for p in output.glob("runs/*/manifest.json")}
    planned = [run for paper in papers() for run in plan.runs(paper, "smoke", device="cpu")]
    assert len(manifests) == len({run.identity for run in planned})
    planned = study("--profile", "smoke", "--plan", "--output", str(output.parent))
    assert planned.stdout.count(" 0 to do") == len(papers())
    assert 'src="figures/' in (output / "melo.html").read_text("utf-8")
    arguments = ("--profile", "smoke", "--only", "melo", "--output", str(output.parent))
    done = study(*arguments, "--self-contained")
    assert done.returncode == 0, done.stderr[-3000:]
    assert " 0 to do" in done.stderr
    shown = (output / "melo.html").read_text("utf-8")
    assert 'src="data:image/svg+xml,' in shown and 'src="figures/' not in shown
    made = (output / "melo.html").stat().st_mtime_ns
    assert "nothing that the page shows has changed" in study(*arguments, "--self-contained").stderr
    assert (output / "melo.html").stat().st_mtime_ns == made
    assert {p: p.stat().st_mtime_ns for p in output.glob("runs/*/manifest.json")} == manifests


def test_the_plan_starts_nothing(tmp_path: Path) -> None:
    done = study("--profile", "smoke", "--plan", "--output", str(tmp_path))
    assert done.returncode == 0
    assert "to do" in done.stdout and "GiB" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--only", "mello"], "melo"),
        (["--profile", "huge"], "smoke, laptop, overnight, gpu, paper"),
        (["--sedes", "3"], "--sedes"),
        (["--seeds", "0"], "at least one"),
        (["--data-dir", "/nowhere/at/all"], "no such folder"),
    ],
)
def test_wrong_usage_names_the_valid_and_exits_with_2(arguments: list[str], named: str) -> None:
    done = study(*arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


BROKEN = """

def bad_luck(*_):
    raise RuntimeError("<b>bad luck</b>")


FineTune._edit = bad_luck
"""


def test_a_failed_run_leaves_the_others_and_shows_in_the_page(output: Path, tmp_path: Path) -> None:
    """The FT editor of a copied project breaks; everything else is done and the page says so.

    Finished runs of other editors are still good there: only the last one has to run, after FT.
    """
    runs = map(Store(output).told, plan.runs("melo", "smoke", device="cpu"))
    editors = {run.identity: run.spec["editor"] for run in runs}
    others = [identity for identity, editor in editors.items() if editor != "ft"]
    failing = len(editors) - len(others)
    assert failing > 1 and others[-1] == list(editors)[-1]
    for name in (*others[:-1], "shared/contents"):
        shutil.copytree(output / "runs" / name, tmp_path / "out" / "smoke" / "runs" / name)
    copy = tmp_path / "project"
    for name in ("lib", "papers", "notebooks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "lib" / "editors" / "finetune.py").open("a", encoding="utf-8") as file:
        file.write(BROKEN)
    arguments = ("--profile", "smoke", "--only", "melo", "--output", str(tmp_path / "out"))
    done = study(*arguments, cwd=copy, PYTHONPATH=str(copy))
    assert done.returncode == 1, done.stderr[-2000:]
    assert f" {failing + 1} to do" in done.stderr
    folder = tmp_path / "out" / "smoke"
    assert {path.parent.name for path in folder.glob("runs/*/manifest.json")} == set(others)
    page = (folder / "melo.html").read_text("utf-8")
    assert "&lt;b&gt;bad luck&lt;/b&gt;" in page
    assert "<b>bad luck</b>" not in page
    assert json.loads((folder / "melo.summary.json").read_text("utf-8"))["status"] == "partial"


def test_a_study_that_is_killed_again_and_again_ends_as_the_unbroken_one(
    output: Path, tmp_path: Path
) -> None:
    broken, rng, kills = kills_of.Calls(tmp_path, ["--only", "comeba_hk"]), random.Random(1), []
    moments = functools.partial(rng.uniform, 0.0, 5.0)
    for _ in kills_of.endings(broken, 2, moments, lambda *killed: kills.append(killed)):
        found = kills_of.differences(output, broken.folder, "comeba_hk")
        assert found == []
    assert len(kills) == 2 and len(kills_of.titles(broken.folder)) > 20
    record = next(broken.folder.glob("runs/*/records.parquet"))
    pd.read_parquet(record).assign(nll=0.5).to_parquet(record)
    (broken.folder / "tables" / "comeba_hk-hooks.csv").unlink()
    found = kills_of.differences(output, broken.folder, "comeba_hk")
    assert len(found) == 2 and record.parent.name in found[0] and "comeba_hk-hooks" in found[1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert all(len("".join(cell["source"]).splitlines()) <= 16 for cell in code)


def published_data() -> Path | None:
    """The folder with the published files, if this machine has one."""
    named = os.environ.get("STUDY_PUBLISHED_DATA")
    for folder in (Path(named) if named else None, ROOT.parent / "shared" / "data"):
        if folder is not None and (folder / "zsre").is_dir():
            return folder
    return None


@pytest.mark.skipif(
    published_data() is None,
    reason="no published data here (set STUDY_PUBLISHED_DATA to a folder with zsre/ and nq/)",
)
def test_a_melo_stream_can_be_built_from_the_published_files() -> None:
    from lib.data.streams import stream_of
    from lib.runs.resources import Resources, facts_of

    run = plan.runs("melo", "laptop", seeds=1, data_dir=published_data(), device="cpu")[0]
    stream = stream_of(run.spec, facts_of(Resources(data_dir=published_data()).read, run.spec))
    assert len(stream.edits) == run.spec["stream"]["n_edits"]
    assert len(stream.holdout) > 0 and len(stream.upstream) == 80
    assert len({edit.target for edit in stream.edits}) >= 10


@pytest.mark.skipif(published_data() is None, reason="no published data here")
@pytest.mark.parametrize("setting", ["cf-consecutive", "zsre-consecutive"])
def test_a_comeba_hk_stream_can_be_built_from_the_published_files(setting: str) -> None:
    from lib.data.streams import stream_of
    from lib.runs.resources import Resources, facts_of

    folder = published_data()
    runs = plan.runs("comeba_hk", "paper", seeds=1, data_dir=folder, device="cpu")
    run = next(run for run in runs if run.setting == setting)
    stream = stream_of(run.spec, facts_of(Resources(data_dir=folder).read, run.spec))
    assert len(stream.edits) == len(stream.holdout) == 1000
    assert all(edit.subject in edit.prompt for edit in stream.edits)
    assert len(stream.near if setting.startswith("cf") else stream.upstream) == 1000
    if setting.startswith("cf"):
        assert all(edit.target_true for edit in stream.edits)
    pairs = zip(stream.edits, stream.holdout, strict=True)
    repeated = [edit.relation for edit, rephrase in pairs if edit.prompt == rephrase.prompt]
    assert repeated == ([f"edit_10000:{i}" for i in (92, 516)] if setting.startswith("cf") else [])
