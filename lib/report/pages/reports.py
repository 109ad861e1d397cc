"""Renders a paper's notebook to HTML and writes the front page."""

import argparse
import shutil
import sys
from pathlib import Path

from lib.errors import StoreError, StudyError
from lib.report import summaries
from lib.report.pages import index, notebook
from lib.runs.settings import ROOT
from lib.runs.study import Study

NOTEBOOKS = ROOT / "notebooks"


def render_paper(study: Study, options: argparse.Namespace) -> bool:
    """Execute `notebooks/<paper>.ipynb` on the finished runs and write its page; True if all its
    cells ran and no run failed. A failing cell shows its error in the page; if there is no page at
    all, the error is printed and the front page tells it. Raises StoreError on a full disk."""
    _check_space(study.folder)
    summary = study.folder / f"{study.paper}.summary.json"
    summary.unlink(missing_ok=True)
    page = study.folder / f"{study.paper}.html"
    try:
        error = _write_page(study, options, page)
    except StudyError as problem:
        error = str(problem)
        page.unlink(missing_ok=True)  # what an earlier call left must not pass for this one
    if error:
        print(f"{study.paper}: {error}", file=sys.stderr)
    errors = study.errors()
    if not (summary.exists() and page.exists()):
        summaries.write_summary(
            study.folder,
            summaries.PaperSummary(
                key=study.paper,
                title=study.document["title"],
                venue=study.document["venue"],
                summary=study.document["summary"],
                status="failed",
                report=page.name if page.exists() else "",
                errors=(error or "the notebook wrote no summary", *errors.values()),
                profile=study.profile,
                short=study.document["short"],
            ),
        )
    return not error and not errors


def _write_page(study: Study, options: argparse.Namespace, page: Path) -> str:
    """Write a paper's executed notebook and its page; the error of the execution, "" for none."""
    parameters = {
        "profile": study.profile,
        "output": str(options.output),
        "data_dir": str(options.data_dir or ""),
        "seeds": options.seeds or 0,
        "skip_bad": options.skip_bad,
        "retry_failed": False,  # the command line tried them just now
    }
    done = notebook.execute(
        NOTEBOOKS / f"{study.paper}.ipynb",
        study.folder / f"{study.paper}.ipynb",
        parameters,
        progress=False,
    )
    notebook.to_html(
        done.notebook,
        page,
        study.document["short"],
        failure=done.error,
        self_contained=options.self_contained,
    )
    return done.error


def write_index(folder: Path) -> Path:
    """`index.html` from the summaries that the reports left in the folder."""
    return index.write_index(folder, profile=folder.name)


def _check_space(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StoreError(f"cannot create {folder}: {error}. Choose --output.") from error
    if free < 64 * 2**20:
        raise StoreError(
            f"only {free / 2**20:.0f} MiB are free in {folder}; free some space or choose --output"
        )
