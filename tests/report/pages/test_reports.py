"""From finished runs to pages: a report that fails says so everywhere and stops no other."""

import json
import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import lib.__main__ as command
from lib.errors import StoreError, UsageError
from lib.report.pages import notebook, reports
from lib.runs.store import Store

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
GOOD = "print('all is well')"
SUMMARY = """
from lib.report.summaries import PaperSummary, write_summary
write_summary(output, PaperSummary("good", "Good", report="good.html"))
"""


class Report:
    """A study as `render_paper` and the command line see it, with one run that is done."""

    profile, runs, document = "smoke", (SimpleNamespace(gigabytes=0.1),), {}
    overrides: ClassVar[dict] = {}
    trouble: Exception | None = None

    def __init__(self, root: Path, paper: str, *cells: str) -> None:
        self.folder, self.paper = root / "out{}" / "smoke", paper
        self.store = Store(self.folder)
        self.document = dict.fromkeys(("title", "venue", "summary", "short"), paper.title())
        if cells:
            (root / "notebooks").mkdir(exist_ok=True)
            made = new_notebook(cells=[new_code_cell(cell) for cell in cells])
            made.metadata["kernelspec"] = KERNEL
            made.cells.insert(0, new_code_cell("output = ''", metadata={"tags": ["parameters"]}))
            nbformat.write(made, root / "notebooks" / f"{paper}.ipynb")

    def errors(self) -> dict[str, str]:
        return {}

    def to_do(self) -> list[object]:
        return []

    unique_runs = replaced = to_do

    def left_out(self) -> dict:
        return {}

    def run_missing(self, **_: object) -> bool:
        if self.trouble:
            raise self.trouble
        return True

    def summary(self) -> dict:
        return json.loads((self.folder / f"{self.paper}.summary.json").read_text("utf-8"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(reports, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path


def options(report: Report, **more: object) -> Namespace:
    told = {"output": report.folder, "data_dir": None, "seeds": None, "skip_bad": False, "jobs": 1}
    return Namespace(**told, self_contained=False, part=False, pages=False, **more)


def test_reports_go_on_beside_those_that_cannot(root: Path, capfd) -> None:
    """One after the other: no notebook, a dead kernel, a store that is full, a tight memory."""
    absent = Report(root, "absent")
    dead = Report(root, "dead", GOOD, "import os; os._exit(9)")
    full, tight = Report(root, "full", GOOD), Report(root, "tight", GOOD)
    full.trouble, tight.trouble = StoreError("no space left"), UsageError("0.1 GiB are free")
    good = Report(root, "good", GOOD, SUMMARY)
    absent.folder.mkdir(parents=True)
    (absent.folder / "absent.html").write_text("of an earlier call")
    assert command._execute([absent, dead, full, tight, good], options(good), []) == 1
    told = capfd.readouterr().err
    for sentence in (
        "absent: no notebook at ", "dead: The kernel died, ", "full: no space left",
        "tight: 0.1 GiB are free", "good: done in ", "some runs failed",
    ):  # fmt: skip
        assert sentence in told
    assert absent.summary()["status"] == dead.summary()["status"] == "failed"
    assert "absent.ipynb" in absent.summary()["errors"][0] and absent.summary()["report"] == ""
    page = (dead.folder / "dead.html").read_text("utf-8")
    assert "all is well" in page and "The kernel died" in page
    front = (good.folder / "index.html").read_text("utf-8")
    assert 'href="good.html"' in front and 'href="absent.html"' not in front
    assert "no notebook at" in front and "The kernel died" in front
    assert not (absent.folder / "absent.html").exists()


def test_a_report_alone_ends_well(root: Path) -> None:
    good = Report(root, "good", GOOD, SUMMARY)
    assert command._execute([good], options(good), []) == 0
    assert good.summary()["status"] == "done"
    assert "all is well" in (good.folder / "good.html").read_text("utf-8")


@pytest.mark.parametrize("change", ["flag", "notebook", "page gone", "page edited"])
def test_a_page_is_current_while_nothing_that_it_shows_has_changed(root: Path, change: str) -> None:
    good = Report(root, "good", GOOD, SUMMARY)
    asked, page = options(good), good.folder / "good.html"
    assert not reports.is_current(good, asked)
    assert reports.render_paper(good, asked) and reports.is_current(good, asked)
    if change == "flag":
        asked.self_contained = True
    elif change == "notebook":
        source = root / "notebooks" / "good.ipynb"
        source.write_text(source.read_text("utf-8").replace("all is well", "all is better"))
    elif change == "page gone":
        page.unlink()
    else:
        page.write_text("something else")
    assert not reports.is_current(good, asked)


def test_a_page_that_cannot_be_written_is_told_on_the_front_page(root: Path, monkeypatch) -> None:
    """The notebook ran and left its summary; the page itself then found no room."""

    def no_room(*_: object, **__: object) -> None:
        raise StoreError("cannot write good.html: no room. Free space or choose --output.")

    good = Report(root, "good", GOOD, SUMMARY)
    monkeypatch.setattr(notebook, "to_html", no_room)
    assert not reports.render_paper(good, options(good))
    assert good.summary()["status"] == "failed" and "--output" in good.summary()["errors"][0]


@pytest.mark.parametrize("fault", ["full", "not a folder"])
def test_no_room_for_a_report_is_told_before_it_is_made(
    fault: str, root: Path, monkeypatch
) -> None:
    good = Report(root, "good", GOOD)
    if fault == "full":
        told = "only 3 MiB are free in .*choose --output"
        usage = os.statvfs_result((4096, 4096, 768, 768, 768, 9, 9, 9, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _: usage)
    else:
        told = "cannot create .*Choose --output"
        (root / "out{}").write_text("a file stands where the folder should be")
    with pytest.raises(StoreError, match=told):
        reports.render_paper(good, options(good))
