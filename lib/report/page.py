"""What every report's notebook shows besides its own tables: its beginning and end, lists,
provenance, figures, and how the lines of a method that it spells out compare with the library's.

A notebook shows in Jupyter what its page shows; only the style of tables and the links below the
outputs, which a page has otherwise or not, are Jupyter's own.
"""

import ast
import html
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import HTML, display

from lib.report import summaries, tables
from lib.report.figures import files, style
from lib.report.figures.files import save_drawing
from lib.report.pages.notebook import ASSETS, PAGE_MARKUP
from lib.report.templates import fill
from lib.runs.settings import ROOT
from lib.runs.study import Study

# Where notebooks show HTML: JupyterLab and Notebook, older ones, VS Code. Two classes outdo the
# rules for tables that the first has itself.
LAB = ".jp-RenderedHTML.jp-OutputArea-output"
OUTPUTS = f":is({LAB}, .rendered_html, .output_container)"
# What a page's colours are called where a notebook has its own.
THEME = {
    "ink": "content-font-color1", "muted": "content-font-color2", "rule": "border-color2",
    "faint": "layout-color2", "link": "content-link-color",
}  # fmt: skip
# Rules about the page as a whole: a notebook has a theme of its own, and prints in its own way.
WHOLE = re.compile(
    r"@media (?:print|\(prefers-color-scheme: dark\)) \{(?:[^{}]*\{[^{}]*\})*[^{}]*\}"
)
EXACT = 1e-5  # of the largest value: what rounding may leave between two ways to compute


def begin(
    paper: str,
    profile: str,
    output: str = "",
    data_dir: str = "",
    seeds: int = 0,
    skip_bad: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Study:
    """The study of a report, opened with the parameters of its notebook (`Study.open`); the values
    that it overrides are shown. In Jupyter outputs get the pages' style, and links to what made
    them."""
    study = Study.open(
        paper, profile, output=output, data_dir=data_dir, seeds=seeds, strict=not skip_bad,
        overrides=overrides,
    )  # fmt: skip
    _in_jupyter(f"<style>{notebook_style()}</style>")
    if study.overridden():
        display(text_list("Overridden on this page", overridden(study)), metadata={"open": True})
    shell = get_ipython()
    if shell is not None:
        for known in list(shell.events.callbacks["post_run_cell"]):
            if isinstance(known, partial) and known.func is _link_sources:
                shell.events.unregister("post_run_cell", known)
        shell.events.register("post_run_cell", partial(_link_sources, study.folder))
    return study


def run(study: Study, *, retry_failed: bool = True) -> None:
    """Show the plan, do what is missing with a bar for each run, and name what failed."""
    display(frame(study.plan().drop(columns="run")))
    study.run_missing(retry_failed=retry_failed)
    for title, error in study.errors().items():
        print(f"FAILED {title}: {error}")


def show(
    study: Study,
    make: Callable[[Study, str], Any],
    settings: Sequence[str] | None = None,
    *,
    titled: bool = False,
) -> None:
    """Show what `make(study, setting)` gives for every setting (default: those that run), below its
    title if `titled`; frames as tables, text as markup, nothing for None."""
    for setting in study.settings if settings is None else settings:
        made = make(study, setting)
        if made is None:
            continue
        if titled:
            display(HTML(f"<h3>{html.escape(study.title(setting))}</h3>"))
        if isinstance(made, pd.DataFrame):
            made = frame(made)
        display(HTML(made) if isinstance(made, str) else made)


def end(study: Study, summary: summaries.PaperSummary) -> None:
    """Show data and provenance, and tell the front page the summary."""
    display(data_counts(study), provenance(study))
    summaries.write_summary(study.folder, summary)


def overridden(study: Study) -> list[str]:
    """A sentence for each value that the page's overrides change."""
    return [
        f"{' › '.join(place.split('.'))}: {now} instead of {before} in the profile {study.profile}."
        for place, before, now in study.overridden()
    ]


def notebook_style() -> str:
    """The pages' style for a notebook's outputs, in the notebook's colours."""
    css = WHOLE.sub("", (ASSETS / "report.css").read_text("utf-8")).replace(":root", "&")
    colours = "".join(f"--{ours}: var(--jp-{theirs});" for ours, theirs in THEME.items())
    return f"{OUTPUTS} {{\n{css}\n}}\n{LAB} {{{colours}}}"


def _in_jupyter(markup: str) -> None:
    """Show markup in a notebook and not on its page."""
    display({"text/html": markup, PAGE_MARKUP: ""}, raw=True)


def _link_sources(folder: Path, result: Any) -> None:
    """After a cell: links to the functions of reports that it names, from where the notebook lies
    (executed for a page, beside it)."""
    names = get_ipython().user_ns
    found = [place(maker) for maker in makers(result.info.raw_cell or "", names)]
    if found and result.success:
        here = folder if Path.cwd().samefile(ROOT) else Path.cwd()
        links = (_link(path, line, name, here) for path, line, name in found)
        _in_jupyter(f"<small>Made by {', '.join(links)}</small>")


def makers(code: str, names: Mapping[str, object]) -> list[Callable[..., object]]:
    """The functions of reports that a cell names, in their order: of papers, and of `lib.report`
    but for this module."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a magic of IPython
        return []
    found = {}
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)]
    for node in sorted(named, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(node, ast.Name):
            made = names.get(node.id)
        else:
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            made = getattr(names.get(owner), node.attr, None)
        home = getattr(made, "__module__", "") if inspect.isfunction(made) else ""
        if home.startswith(("papers.", "lib.report.")) and home != __name__:
            found[made] = None
    return list(found)


def place(function: Callable[..., object]) -> tuple[str, int, str]:
    """Where a function of the project is written: file, below the project, line and name."""
    path = Path(inspect.getsourcefile(function)).resolve().relative_to(ROOT.resolve())
    return path.as_posix(), inspect.getsourcelines(function)[1], function.__qualname__


def _link(path: str, line: int, name: str, here: Path) -> str:
    address = Path(os.path.relpath(ROOT / path, here)).as_posix()
    text = f"<code>{html.escape(name)}</code> ({html.escape(path)}, line {line})"
    return f'<a href="{html.escape(address)}">{text}</a>'


def check(ours: torch.Tensor, theirs: torch.Tensor, function: Callable[..., object]) -> HTML:
    """That the lines of a notebook compute what `function` of the library, or the layer that it
    makes, does: `ours` against `theirs`. AssertionError if they differ by more than rounding."""
    apart = (ours - theirs).abs().max().item()
    assert ours.shape == theirs.shape and apart <= EXACT * max(1.0, theirs.abs().max().item()), (
        f"these lines are {apart:.3g} away from {function.__qualname__}"
    )
    path, line, name = place(function)
    return HTML(
        f"<p class=checked>The same as <code>{html.escape(name)}</code> ({html.escape(path)}, "
        f"line {line}); the largest difference is {apart:.1e}.</p>"
    )


def deviations(study: Study) -> HTML:
    """The numbered list of deviations."""
    heads = ("", "paper or configuration", "official code", "here", "what it changes")
    rows = [
        (str(number), entry["paper"], entry["code"], entry["here"], entry["effect"])
        for number, entry in enumerate(study.document["deviations"], start=1)
    ]
    return _table(heads, rows, "Numbered deviations and known discrepancies")


def provenance(study: Study) -> HTML:
    """What the runs were made with."""
    rows, titles = [], {run.identity: run.title for run in reversed(study.runs)}
    for setting in study.document["settings"]:
        for identity, manifest in study.manifests(setting).items():
            seconds, versions = manifest["seconds"], manifest["versions"]
            rows.append(
                (
                    titles[identity],
                    identity,
                    f"{manifest['git_commit']}; "
                    + ", ".join(f"{name} {version}" for name, version in versions.items()),
                    f"{manifest['device']}, {manifest['backbone']['dtype']}",
                    f"fit {seconds['fit']:.0f}, edit {seconds['edit']:.0f}, "
                    f"evaluate {seconds['evaluate']:.0f}",
                    f"{manifest['peak_memory_bytes'] / 2**30:.1f}",
                )
            )
    heads = ("run", "identity", "code and libraries", "machine", "seconds", "peak GiB")
    return _table(heads, rows, "Provenance of every run of the main tables")


def html_table(heads: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """A plain table with every string escaped."""
    return tables.plain(pd.DataFrame(list(rows), columns=list(heads), dtype=object), caption)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> HTML:
    return HTML(html_table(heads, rows, caption))


def text_list(title: str, texts: Sequence[str]) -> HTML:
    """A titled list of sentences."""
    return HTML(fill("texts", title=title, texts=texts))


def heading(text: str) -> HTML:
    """A heading that was computed, below the section's own."""
    return HTML(fill("heading", text=text))


def paragraph(text: str) -> HTML:
    """A sentence or more that was computed, as running text."""
    return HTML(paragraphs([text]))


def paragraphs(texts: Iterable[str]) -> str:
    """Computed sentences as paragraphs, empty ones left out."""
    return fill("texts", title="", texts=[text for text in texts if text])


def sources(study: Study, *, together: bool = False) -> HTML:
    """Every sourced hyper-parameter of the profile's settings.

    `together`: settings and editors with the same value from the same source share a row.
    """
    rows = []
    for item in study.sourced:
        parts = item.path.split(".")
        if parts[0] == "settings" and parts[1] in study.settings:
            rows.append((parts[1], ".".join(parts[2:]), item.value, item.source))
    if together:
        rows = _by_source(rows)
    rows = [(name, path.replace(".", " › "), value, source) for name, path, value, source in rows]
    return _table(("setting", "parameter", "value", "seen in"), rows, "Sources of the values")


def data_counts(study: Study) -> HTML:
    """Counts and content hash of what each setting edited and scored."""
    rows = []
    for setting in study.document["settings"]:
        seen = set()
        for manifest in study.manifests(setting).values():
            data, counts = manifest["dataset"], manifest["dataset"]["counts"]
            if data["content"] in seen:
                continue
            seen.add(data["content"])
            counted = ", ".join(f"{name} {count}" for name, count in counts.items())
            model = manifest["backbone"]
            rows.append(
                (
                    f"{setting}, seed {manifest['seed']}",
                    data["name"],
                    counted,
                    "; ".join(data["sources"]),
                    "; ".join((f"{len(data['skipped'])} skipped", *data.get("left_out", ()))),
                    data["content"][:16],
                    f"{model['provenance']} ({model['content'][:12]})",
                )
            )
    heads = ("setting", "data", "counts", "sources", "left out", "content", "backbone")
    return _table(heads, rows, "Data and backbones")


def draw(study: Study, setting: str, name: str, plot: style.Plot, text: str) -> None:
    """Save a figure of one setting ("": of none) and show it; `text` begins its caption and its
    alternative, which ends with what the plot found."""
    told = f"{text}: {study.title(setting)}" if setting else text
    full = "-".join(part for part in (study.paper, name, setting) if part)
    display(files.save(plot, study.folder / "figures", full, told, caption=f"{told}."))


def drawing(study: Study, name: str, text: str, about: str = "A drawing; no data.") -> None:
    """Show a drawing of `papers/<paper>/drawings/`, copied beside the page's figures; `text` begins
    caption and alternative, `about` ends the caption."""
    source = ROOT / "papers" / study.paper / "drawings" / f"{name}.svg"
    folder, full = study.folder / "figures", f"{study.paper}-{name}"
    display(save_drawing(source, folder, full, text, caption=f"{text}. {about}"))


def departures(study: Study, setting: str, *, together: bool = False) -> HTML:
    """What the profile changes against the paper's settings.

    `together`: editors in which a value changes in the same way share a row, and an editor or a
    sweep that one of the profiles leaves out has one row.
    """
    changed = study.departures(setting)
    if together:
        changed = _as_wholes(study, setting, changed)
    rows = [(" › ".join(name.split(".")), before, now) for name, before, now in changed]
    if together:
        rows = _by_value(changed)
    caption = f"{study.document['settings'][setting]['title']}: what this profile changes"
    return _table(("where", "paper profile", "here"), rows, caption)


def _as_wholes(
    study: Study, setting: str, changed: Sequence[tuple[str, object, object]]
) -> list[tuple[str, object, object]]:
    """The changes; those of an editor or a sweep in one profile only as one change."""
    here, paper = (d["settings"][setting] for d in (study.document, study.original))
    rest, wholes = list(changed), []
    for group in ("editors", "sweeps"):
        now, before = (part.get(group, {}) for part in (here, paper))
        for name in [name for name in {**before, **now} if (name in now) != (name in before)]:
            others = [row for row in rest if not row[0].startswith(f"{group}.{name}.")]
            if len(others) < len(rest):
                words = ("run", "left out") if name in before else ("–", "added")
                wholes.append((f"{group}.{name}", *words))
            rest = others
    return [*rest, *wholes]


def _by_value(changed: Sequence[tuple[str, object, object]]) -> list[tuple[str, object, object]]:
    """Rows of editors whose value changes in the same way, in one row."""
    found: dict[str, tuple[str, list[str], object, object]] = {}
    for name, before, now in changed:
        editor, rest = _editor_of(name)
        key = f"{rest}|{before}|{now}|{bool(editor)}"
        found.setdefault(key, (rest, [], before, now))[1].extend(editor)
    return [
        (" › ".join([", ".join(editors), *rest.split(".")]).removeprefix(" › "), before, now)
        for rest, editors, before, now in found.values()
    ]


def _by_source(
    rows: Sequence[tuple[str, str, object, str]],
) -> list[tuple[str, str, object, str]]:
    """Rows of settings and editors that share parameter, value and source, in one row."""
    found: dict[str, tuple[list[str], list[str], str, object, str]] = {}
    for setting, path, value, source in rows:
        editor, rest = _editor_of(path)
        key = f"{rest}|{value}|{source}|{bool(editor)}"
        place = found.setdefault(key, ([], [], rest, value, source))
        place[0].append(setting)
        place[1].extend(editor)
    return [
        (
            ", ".join(dict.fromkeys(settings)),
            ".".join(filter(None, (", ".join(dict.fromkeys(editors)), rest))),
            value,
            source,
        )
        for settings, editors, rest, value, source in found.values()
    ]


def _editor_of(path: str) -> tuple[list[str], str]:
    """["MEMIT"], "config.steps" from "editors.MEMIT.config.steps"; [] for any other path."""
    parts = path.split(".")
    if parts[0] == "editors" and len(parts) > 2:
        return [parts[1]], ".".join(parts[2:])
    return [], path


def frame(table: pd.DataFrame) -> HTML:
    """A data frame as an HTML table: whole texts, escaped, no row numbers."""
    return HTML(tables.plain(table))
