"""Renders a paper's notebook to HTML and writes the front page."""

import argparse
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

from lib.errors import StoreError, StudyError
from lib.report import summaries
from lib.report.pages import index, notebook
from lib.runs.settings import FOLDER, ROOT
from lib.runs.study import Study
from lib.storage import fingerprints
from lib.storage.atomic import digest

NOTEBOOKS = ROOT / "notebooks"
DRAWN_BY = ("matplotlib", "seaborn", "pandas", "nbconvert", "papermill", "jinja2")


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
    if error or errors:
        return False
    study.store.cache.write("pages", _shows(study, options), _written(study))
    return True


def is_current(study: Study, options: argparse.Namespace) -> bool:
    """Whether the paper's page and what lies beside it are there, and show what there is now."""
    shows = _shows(study, options)
    return bool(shows) and study.store.cache.read("pages", shows) == _written(study)


def _shows(study: Study, options: argparse.Namespace) -> list[object]:
    """All that decides a page: runs as they are stored, code and files that make it, how it is
    asked for; empty while a run or the notebook is missing."""
    found = [study.finished(run) for run in study.unique_runs()]
    source = NOTEBOOKS / f"{study.paper}.ipynb"
    if None in found or not source.is_file():
        return []
    own = FOLDER / study.paper
    modules = [f"papers.{study.paper}.{path.stem}" for path in own.glob("*.py")]
    report = [f"lib.report.{name}" for name in ("page", "summaries", "pages.notebook")]
    folders = (own, Path(notebook.__file__).parents[1])
    given = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    given = {path for path in given if path.suffix not in (".py", ".pyc")}
    return [
        [study.paper, study.profile, options.self_contained, options.skip_bad, options.seeds],
        study.overrides,
        [str(options.output), str(options.data_dir), study.replaced()],
        [digest(run.editor.with_name("manifest.json")) for run in found],
        fingerprints.code(*sorted(modules), *report, "lib.runs.study"),
        _said_beside(study),
        [digest(source), fingerprints.files(given, ROOT)],
        {name: importlib.metadata.version(name) for name in DRAWN_BY},
    ]


def _said_beside(study: Study) -> dict[str, list[str]]:
    """What longer profiles say of the claims of the page, which it shows too."""
    found = summaries.beside(study.folder, study.profile, study.paper)
    return {key: [one.to_html() for one in rows] for key, rows in found.items()}


def _written(study: Study) -> bytes:
    """The files of a paper beside its runs, with their hashes: pages, tables, figures, records."""
    files = {}
    for path in study.folder.rglob(f"{study.paper}[.-]*"):
        if "runs" not in path.relative_to(study.folder).parts:
            inside = path.rglob("*") if path.is_dir() else [path]
            files |= {str(file.relative_to(study.folder)): digest(file) for file in inside}
    return json.dumps(files, sort_keys=True).encode("utf-8")


def _write_page(study: Study, options: argparse.Namespace, page: Path) -> str:
    """Write a paper's executed notebook and its page; the error of the execution, "" for none."""
    parameters = {
        "profile": study.profile,
        "output": str(options.output),
        "data_dir": str(options.data_dir or ""),
        "seeds": options.seeds or 0,
        "skip_bad": options.skip_bad,
        "overrides": study.overrides,
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
