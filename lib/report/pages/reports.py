"""Renders a paper's notebook to HTML and writes the front page."""

import argparse
import shutil
from pathlib import Path

from lib.errors import StoreError
from lib.report import summaries
from lib.report.pages import index, notebook
from lib.runs.settings import ROOT
from lib.runs.study import Study

NOTEBOOKS = ROOT / "notebooks"


def render_paper(study: Study, options: argparse.Namespace) -> bool:
    """Execute `notebooks/<paper>.ipynb` on the finished runs and write its page; True if all its
    cells ran and no run failed. A failing cell shows its error in the page."""
    study.folder.mkdir(parents=True, exist_ok=True)
    _check_space(study.folder)
    parameters = {
        "profile": study.profile,
        "output": str(options.output.resolve()),
        "data_dir": str(options.data_dir.resolve()) if options.data_dir else "",
        "seeds": options.seeds or 0,
        "skip_bad": options.skip_bad,
        "retry_failed": False,  # the command line tried them just now
    }
    summary = study.folder / f"{study.paper}.summary.json"
    summary.unlink(missing_ok=True)
    executed = study.folder / f"{study.paper}.ipynb"
    done = notebook.execute(
        NOTEBOOKS / f"{study.paper}.ipynb", executed, parameters, progress=False
    )
    page = study.folder / f"{study.paper}.html"
    notebook.to_html(
        done.notebook,
        page,
        study.document["short"],
        failure=done.error,
        self_contained=options.self_contained,
    )
    errors = study.errors()
    if not summary.exists():
        summaries.write_summary(
            study.folder,
            summaries.PaperSummary(
                key=study.paper,
                title=study.document["title"],
                venue=study.document["venue"],
                summary=study.document["summary"],
                status="failed",
                report=page.name,
                errors=(done.error or "the notebook wrote no summary", *errors.values()),
                profile=study.profile,
                short=study.document["short"],
            ),
        )
    return not done.failed and not errors


def write_index(folder: Path) -> Path:
    """`index.html` from the summaries that the reports left in the folder."""
    return index.write_index(folder, profile=folder.name)


def _check_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < 64 * 2**20:
        raise StoreError(
            f"only {free / 2**20:.0f} MiB are free in {folder}; free some space or choose --output"
        )
