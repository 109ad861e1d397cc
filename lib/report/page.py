"""What every report's notebook shows besides its own tables: lists, provenance, figures."""

from collections.abc import Iterable, Sequence

import pandas as pd
from IPython.display import HTML, display

from lib.report import tables
from lib.report.figures import files, style
from lib.report.figures.files import save_drawing
from lib.report.templates import fill
from lib.runs.settings import ROOT
from lib.runs.study import Study


def deviations(study: Study) -> str:
    """The numbered list of deviations as an HTML table."""
    heads = ("", "paper or configuration", "official code", "here", "what it changes")
    rows = [
        (str(number), entry["paper"], entry["code"], entry["here"], entry["effect"])
        for number, entry in enumerate(study.document["deviations"], start=1)
    ]
    return html_table(heads, rows, "Numbered deviations and known discrepancies")


def provenance(study: Study) -> str:
    """What the runs were made with, as an HTML table."""
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
    return html_table(heads, rows, "Provenance of every run of the main tables")


def html_table(heads: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """A plain table with every string escaped."""
    return tables.plain(pd.DataFrame(list(rows), columns=list(heads), dtype=object), caption)


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


def sources(study: Study, *, together: bool = False) -> str:
    """Every sourced hyper-parameter of the profile's settings as an HTML table.

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
    return html_table(("setting", "parameter", "value", "seen in"), rows, "Sources of the values")


def data_counts(study: Study) -> str:
    """Counts and content hash of what each setting edited and scored, as an HTML table."""
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
    return html_table(heads, rows, "Data and backbones")


def draw(study: Study, setting: str, name: str, plot: style.Plot, text: str) -> None:
    """Save a figure of one setting ("": of none) and show it; `text` is caption and alternative."""
    caption = f"{text}, {setting}." if setting else f"{text}."
    full = "-".join(part for part in (study.paper, name, setting) if part)
    display(files.save(plot, study.folder / "figures", full, text, caption=caption))


def drawing(study: Study, name: str, text: str, about: str = "A drawing; no data.") -> None:
    """Show a drawing of `papers/<paper>/drawings/`, copied beside the page's figures; `text` is
    caption and alternative, `about` ends the caption."""
    source = ROOT / "papers" / study.paper / "drawings" / f"{name}.svg"
    folder, full = study.folder / "figures", f"{study.paper}-{name}"
    display(save_drawing(source, folder, full, text, caption=f"{text}. {about}"))


def departures(study: Study, setting: str, *, together: bool = False) -> str:
    """What the profile changes against the paper's settings, as an HTML table.

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
    return html_table(("where", "paper profile", "here"), rows, caption)


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
