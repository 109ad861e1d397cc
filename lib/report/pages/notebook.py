"""Notebooks become pages: run one with papermill, render it as a static HTML file.

The page needs no network and no script; its figures lie beside it or, if asked for, inside. What a
notebook prints to stderr (progress bars, warnings) stays in the .ipynb and does not reach the page.
"""

import base64
import copy
import html as html_lib
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from lib.errors import StoreError, StudyError, UsageError
from lib.report import templates
from lib.runs.settings import ROOT
from lib.storage.atomic import write_text

ASSETS = templates.FOLDER
# What a page takes of an output in place of the HTML that a notebook shows.
PAGE_MARKUP = "application/vnd.model-editing-study.page+html"
KERNEL_SECONDS = 900
_SLOW = "close other programs, or give it more STUDY_KERNEL_SECONDS"
_BROKEN = "install ipykernel where the study runs (./run_all.sh without conda does that)"
_MARKER = "papermill-error-cell-tag"
# Cells with this tag are folded: a section from its heading on, or what a step of code shows.
FOLDED = "folded"
# Markdown and scripts made from data at run time never reach the page: only escaped HTML does.
_SHOWN = ("text/html", "image/svg+xml", "image/png", "text/plain")
_HEADING = re.compile(r"<h([1-6])(\s[^>]*)?>(.*?)</h\1>", re.DOTALL)
_BARE = re.compile(  # a heading, or a table without a caption and the region that it scrolls in
    r"<h(?P<level>[1-6])(?:\s[^>]*)?>(?P<inner>.*?)</h(?P=level)>|"
    r'(?P<before><div(?=[^>]* class="scroll")[^>]*? aria-label=")(?P<label>[^"]*)'
    r'(?P<after>"[^>]*>\s*<table[^>]*>)'
    r"(?P<next>\s*<(?!caption))",
    re.DOTALL,
)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PICTURE = re.compile(r'(<img\b[^>]*?\ssrc=")([^":]+\.svg)(?=")')
_SAFE = "/:;=,()'"  # what may stand in a quoted address as it is
_FOLDER = re.compile(  # a quoted absolute path; its last part is the second group
    r"""(["'])(?:[A-Za-z]:)?[/\\](?:(?:\\.|(?!\1)[^\\])*(?:/|\\\\))?((?:\\["']|(?!\1)[^/\\])+)/?\1"""
)


@dataclass(frozen=True)
class Execution:
    """What became of a notebook: `error` is "" when all cells ran."""

    notebook: Path
    seconds: float
    error: str = ""

    @property
    def failed(self) -> bool:
        """True if a cell raised, or the kernel did not start, died or fell silent."""
        return bool(self.error)


def kernel_seconds() -> int:
    """How long a kernel may take to start, and to deliver what a finished cell printed:
    STUDY_KERNEL_SECONDS, else long enough for a machine that does much else."""
    told = os.environ.get("STUDY_KERNEL_SECONDS", "")
    if told and not (told.isdecimal() and int(told)):
        raise UsageError(f"STUDY_KERNEL_SECONDS={told}: a whole number of seconds is needed")
    return int(told or KERNEL_SECONDS)


def execute(
    notebook: Path,
    out_ipynb: Path,
    parameters: Mapping[str, object] | None = None,
    *,
    progress: bool = True,
    kernel: str = "python3",
    cwd: Path = ROOT,
) -> Execution:
    """Run `notebook` with `parameters` into `out_ipynb`, saved after every cell.

    A failing cell or kernel ends the run but not the caller: the notebook so far is on disk and the
    result says what happened. Raises StudyError if there is no such notebook, StoreError if it
    cannot be written. Progress goes to stderr.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillException, PapermillExecutionError

    notebook, out_ipynb = Path(notebook).absolute(), Path(out_ipynb).absolute()
    if not notebook.is_file():
        raise StudyError(f"no notebook at {notebook}: run from the project folder or give its path")
    bar = {"desc": notebook.stem, "file": sys.stderr, "leave": True} if progress else False
    start, patience, error = time.monotonic(), kernel_seconds(), ""
    try:
        out_ipynb.parent.mkdir(parents=True, exist_ok=True)
        out_ipynb.unlink(missing_ok=True)  # what an earlier run left must not pass for this one
        papermill.execute_notebook(
            _as_it_is(notebook), _as_it_is(out_ipynb), parameters=dict(parameters or {}),
            kernel_name=kernel, progress_bar=bar, cwd=str(cwd), log_output=False,
            stderr_file=sys.stderr if progress else None,
            start_timeout=patience, iopub_timeout=patience,
        )  # fmt: skip
    except PapermillExecutionError as problem:
        error = f"Cell {problem.cell_index + 1} raised {problem.ename}: {problem.evalue}"
    except CellTimeoutError:
        error = f"The kernel fell silent for {patience} seconds: {_SLOW}"
    except DeadKernelError as problem:
        error = f"The kernel died, most likely out of memory ({problem}): close other programs"
    except NoSuchKernel as problem:
        error = f"There is no Jupyter kernel {kernel!r} ({problem}): {_BROKEN}"
    except RuntimeError as problem:  # what jupyter_client says of a kernel that does not answer
        error = f"The kernel did not start ({problem}): {_SLOW}, or {_BROKEN}"
    except OSError as problem:
        places = (out_ipynb, *out_ipynb.parents)
        if problem.filename is None or Path(problem.filename) in places:
            raise StoreError(
                f"cannot write {out_ipynb}: {problem}. Free space or choose --output."
            ) from problem
        error = f"The kernel did not start ({problem}): {_BROKEN}"
    except PapermillException as problem:
        error = f"{type(problem).__name__}: {problem}"
    return Execution(out_ipynb, time.monotonic() - start, _ANSI.sub("", error))


def _as_it_is(path: Path) -> str:
    """The path for papermill, which takes braces for places of parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def to_html(
    ipynb: Path,
    html: Path,
    title: str,
    *,
    back: str = "index.html",
    lang: str = "en",
    failure: str = "",
    self_contained: bool = False,
) -> Path:
    """Render an executed notebook as a page at `html`; returns the path.

    `back` is the link to the index, relative to the page. `failure` is shown on top; where it is
    empty and a cell of the notebook failed, that cell is named. `self_contained`: the pictures are
    inside the page, not in files beside it.
    """
    import nbformat
    from nbconvert.exporters import HTMLExporter
    from traitlets.config import Config

    ipynb, html = Path(ipynb), Path(html)
    if not ipynb.is_file():
        raise StudyError(f"no executed notebook at {ipynb}: run the report first")
    notebook = _cleaned(nbformat.read(ipynb, as_version=4))
    page = {
        "title": title, "lang": lang, "back": back, "failure": failure or _failure(notebook),
        "css": templates.text("report.css"), "script": templates.text("tables.js"),
        "policy": templates.policy(),
    }  # fmt: skip
    config = Config()
    config.NbConvertBase.display_data_priority = list(_SHOWN)
    exporter = HTMLExporter(
        config=config, template_name="report", extra_template_basedirs=[str(ASSETS)],
        filters={
            "scroll_tables": scroll_tables, "focusable": _focusable, "code_label": _code_label,
            "picture_label": _picture_label, "base64": _base64,
        },
    )  # fmt: skip
    body, _ = exporter.from_notebook_node(notebook, resources={"page": page})
    text = finish(body, title)
    write_text(html, with_pictures(text, html.parent) if self_contained else text)
    return html


def with_pictures(page: str, folder: Path) -> str:
    """The page with the SVG files of `folder` that it shows inside it, as data: addresses."""

    def inside(match: re.Match[str]) -> str:
        path = folder / unquote(html_lib.unescape(match[2]))
        if not path.is_file():
            raise StoreError(f"there is no picture at {path}: render the report again")
        return f"{match[1]}data:image/svg+xml,{quote(path.read_text('utf-8'), safe=_SAFE)}"

    return _PICTURE.sub(inside, page)


def finish(page: str, title: str) -> str:
    """The page with a sane heading order, unique heading ids and a list of contents.

    Exactly one h1 (the first; `title` if there is none), and no level is skipped on the way down.
    """
    if not re.search(r"<h1[\s>]", page):
        heading = f"<h1>{html_lib.escape(title)}</h1>"
        page = re.sub(r'(<main id="content">)', lambda m: m[1] + heading, page, count=1)
    seen: dict[str, int] = {}
    entries: list[tuple[int, str, str]] = []
    state = {"level": 0}

    def mend(match: re.Match[str]) -> str:
        level, attributes, inner = int(match[1]), match[2] or "", match[3]
        # Later h1 become h2; h4 right after h2 becomes h3.
        level = 1 if state["level"] == 0 else min(max(level, 2), state["level"] + 1)
        state["level"] = level
        inner = re.sub(r'<a class="anchor-link".*?</a>', "", inner, flags=re.DOTALL)
        text = html_lib.unescape(re.sub(r"<[^>]+>", "", inner)).strip()
        name = re.sub(r"[^\w-]+", "-", text.lower()).strip("-") or "section"
        seen[name] = seen.get(name, 0) + 1
        name = name if seen[name] == 1 else f"{name}-{seen[name]}"
        if level in (2, 3):
            entries.append((level, name, text))
        attributes = re.sub(r'\s*\bid="[^"]*"', "", attributes)
        label = html_lib.escape(f"Link to {text}")
        anchor = f'<a class="anchor-link" href="#{name}" aria-label="{label}">#</a>'
        return f'<h{level} id="{name}"{attributes}>{inner}{anchor}</h{level}>'

    head, main, rest = page.partition("<main")
    rest = _captioned(_HEADING.sub(mend, rest))
    # The contents follow the title and the introduction: before the first section, that is.
    places = [rest.find(mark, rest.find("</h1>")) for mark in ("</section>", "<h2")]
    places[0] += len("</section>") if places[0] >= 0 else 0
    place = min((p for p in places if p >= 0), default=len(rest))
    return head + main + rest[:place] + _contents(entries) + rest[place:]


def _captioned(main: str) -> str:
    """Every table with a caption: one without gets the heading above it, for those who hear it."""
    heading = ""

    def caption(match: re.Match[str]) -> str:
        nonlocal heading
        if match["level"]:
            text = re.sub(r'<a class="anchor-link".*?</a>', "", match["inner"], flags=re.DOTALL)
            heading = html_lib.escape(html_lib.unescape(re.sub(r"<[^>]+>", "", text)).strip())
            return match[0]
        label = match["label"] if match["label"] not in ("", "Table") else heading or "Table"
        return (
            f"{match['before']}{label}{match['after']}"
            f'<caption class="quiet"><span>{label}</span></caption>{match["next"]}'
        )

    return _BARE.sub(caption, main)


def scroll_tables(markup: str) -> str:
    """Every bare table inside a region that scrolls sideways and can be reached by keyboard."""
    if "<table" not in markup or 'class="scroll"' in markup:
        return markup
    markup = re.sub(r"<style scoped>.*?</style>", "", markup, flags=re.DOTALL)
    markup = re.sub(r'(<table\b[^>]*?)\sborder="\d+"', r"\1", markup)
    markup = re.sub(r"<th(?=[\s>])(?![^>]*scope)", '<th scope="col"', markup)
    opening = '<div class="scroll" role="region" tabindex="0" aria-label="Table">'
    return re.sub(
        r"<table\b.*?</table>", lambda m: f"{opening}{m[0]}</div>", markup, flags=re.DOTALL
    )


def _cleaned(notebook: object) -> object:
    """A copy without progress bars, stderr, widgets and papermill's own error notices; of folders
    in the parameters only the last part is shown."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [
        cell for cell in notebook.cells if _MARKER not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = _FOLDER.sub(r"\1…/\2\1", cell.source)
        kept = []
        for output in cell.outputs:
            if PAGE_MARKUP in output.get("data", {}):
                output.data["text/html"] = output.data[PAGE_MARKUP]
            if output.output_type == "stream":
                if output.name != "stdout":
                    continue
                # What a terminal would show: text before a carriage return is overwritten.
                output.text = re.sub(r"[^\n]*\r(?!\n)", "", _ANSI.sub("", output.text))
                if not output.text.strip():
                    continue
            elif (
                "data" in output
                and not set(output.data) & set(_SHOWN[:3])
                and any("widget" in kind for kind in output.data)
            ):
                continue
            kept.append(output)
        cell.outputs = kept
    _fold(notebook.cells)
    return notebook


def _fold(cells: list) -> None:
    """Mark where folds begin and end, in `cell.fold` and `cell.unfold`. A fold that shows an error
    or printed something is open."""
    for cell in cells:
        cell.fold, cell.unfold = None, False
    for place, cell in enumerate(cells):
        if FOLDED not in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "code":
            inside, title = [cell], cell.metadata["summary"]
        else:
            level = _level(cell)
            title, _, cell.source = cell.source.partition("\n")
            end = (i for i in range(place + 1, len(cells)) if 0 < _level(cells[i]) <= level)
            inside = cells[place : next(end, len(cells))]
        inside[-1].unfold = True
        outputs = [output for one in inside for output in one.get("outputs", [])]
        cell.fold = {
            "title": title, "counted": _counted(outputs),
            "open": any(map(_told, outputs)),
        }  # fmt: skip


def _told(output: object) -> bool:
    """Whether an output must be seen: an error, something printed, or marked so."""
    printed = output.output_type in ("stream", "error")
    return printed or output.get("metadata", {}).get("open", False)


def _level(cell: object) -> int:
    """The level of the heading that a cell of text begins with, 0 for none."""
    found = re.match(r"(#+) ", cell.source) if cell.cell_type == "markdown" else None
    return len(found[1]) if found else 0


def _counted(outputs: list) -> str:
    """How many entries and figures outputs show: "27 entries, 1 figure"."""
    shown = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    entries, pictures = shown.count('scope="row"') + shown.count("<li>"), shown.count("<figure")
    parts = ((entries, "entry", "entries"), (pictures, "figure", "figures"))
    return ", ".join(f"{n:,} {one if n == 1 else more}" for n, one, more in parts if n)


def _failure(notebook: object) -> str:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                name = _ANSI.sub("", f"{output.ename}: {output.evalue}")
                return f"A step failed and those after it did not run. {name}"
    return ""


def _contents(entries: list[tuple[int, str, str]]) -> str:
    if len(entries) < 2:
        return ""
    items = "".join(
        f"<li{' class=deeper' if level == 3 else ''}>"
        f'<a href="#{name}">{html_lib.escape(text)}</a></li>'
        for level, name, text in entries
    )
    return f'<nav class="contents" aria-label="Contents"><p>Contents</p><ol>{items}</ol></nav>'


def _focusable(markup: str) -> str:
    return markup.replace("<pre>", '<pre tabindex="0">', 1)


def _code_label(cell: Mapping[str, object]) -> str:
    tags = cell["metadata"].get("tags", [])
    if "injected-parameters" in tags:
        return "Parameters of this run"
    if "parameters" in tags:
        return "Default parameters"
    count = cell.get("execution_count")
    return f"Code of step {count}" if count else "Code (did not run)"


def _picture_label(cell: Mapping[str, object]) -> str:
    return f"Picture made by step {cell.get('execution_count') or '?'}; its data is in the code"


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8")).decode("ascii")
