"""The front page: what was reproduced, what agrees, what was substituted, one link per report.

Each report leaves `<key>.summary.json` beside its HTML; the index is made of those files alone, so
it can be written again at any time and shows a failed report next to finished ones.
"""

import dataclasses
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib.atomic import write_text
from lib.claims import FAILS, HOLDS, UNKNOWN
from lib.errors import StoreError
from lib.render import ASSETS
from lib.tables import SYMBOLS, Cell, number

SCHEMA = 1
STATUSES = ("done", "partial", "failed")
COMPARED = ("consistent", "above", "below")


@dataclass(frozen=True)
class Headline:
    """One number worth a place on the front page; numbers are None where there is none."""

    label: str
    reported: float | None = None
    reproduced: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    verdict: str = "not comparable"
    digits: int = 2

    @classmethod
    def of(cls, cell: Cell, label: str = "", digits: int = 2) -> "Headline":
        """The headline of a table cell, labelled "editor, metric, setting" unless `label`."""
        numbers = {
            name: _plain(getattr(cell, name))
            for name in ("reported", "reproduced", "ci_low", "ci_high")
        }
        label = label or ", ".join(p for p in (cell.editor, cell.metric, cell.setting) if p)
        return cls(label, **numbers, n=cell.n, verdict=cell.verdict, digits=digits)


@dataclass(frozen=True)
class PaperSummary:
    """What a report tells the front page. `report` is its file name relative to the index.

    `status`: "done", "partial" (some runs failed) or "failed" (no usable report). `claims` counts
    verdicts. `order` sorts the page.
    """

    key: str
    title: str
    venue: str = ""
    summary: str = ""
    status: str = "done"
    report: str = ""
    headline: tuple[Headline, ...] = ()
    claims: Mapping[str, int] = field(default_factory=dict)
    substitutions: tuple[str, ...] = ()
    runtime_seconds: float | None = None
    errors: tuple[str, ...] = ()
    profile: str = ""
    order: int = 100

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"{self.key}: status {self.status!r} is none of {STATUSES}")
        unknown = set(self.claims) - {HOLDS, FAILS, UNKNOWN}
        if unknown:
            raise ValueError(f"{self.key}: unknown claim verdicts {sorted(unknown)}")

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> "PaperSummary":
        """A summary from plain data; keys it does not know are an error that names them."""
        values = {key: value for key, value in content.items() if key != "schema"}
        unknown = set(values) - {item.name for item in dataclasses.fields(cls)}
        if content.get("schema", SCHEMA) != SCHEMA or unknown:
            raise ValueError(
                f"not a schema {SCHEMA} summary (unknown: {', '.join(sorted(unknown)) or 'none'})"
            )
        rows = values.get("headline", ())
        values["headline"] = tuple(r if isinstance(r, Headline) else Headline(**r) for r in rows)
        for name in ("substitutions", "errors"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)

    @property
    def safe_report(self) -> str:
        """`report` if it is a plain relative file name, else "": data never makes a script link."""
        plain = self.report and ":" not in self.report and not self.report.startswith(("/", "\\"))
        return self.report if plain else ""


def write_summary(folder: Path, summary: PaperSummary) -> Path:
    """Write `<key>.summary.json` into `folder`, where the index looks for it."""
    content = {"schema": SCHEMA, **dataclasses.asdict(summary)}
    path = Path(folder) / f"{summary.key}.summary.json"
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False))
    return path


def read_summaries(folder: Path) -> list[PaperSummary]:
    """All summaries in `folder` in page order; a file that cannot be read is an error naming it."""
    found = []
    for path in sorted(Path(folder).glob("*.summary.json")):
        try:
            found.append(PaperSummary.from_dict(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{path}: {error}. Delete it and run the report again.") from error
    return sorted(found, key=lambda paper: (paper.order, paper.key))


def write_index(
    folder: Path,
    papers: Iterable[PaperSummary | Mapping[str, object]] | None = None,
    *,
    title: str = "Model editing, reproduced",
    profile: str = "",
    note: str = "",
) -> Path:
    """Write `index.html` into `folder` from `papers` (default: the summaries on disk there)."""
    folder = Path(folder)
    if papers is None:
        chosen = read_summaries(folder)
    else:
        chosen = [p if isinstance(p, PaperSummary) else PaperSummary.from_dict(p) for p in papers]
    profiles = dict.fromkeys(p for p in (profile, *(paper.profile for paper in chosen)) if p)
    body = [
        f"<h1>{_safe(title)}</h1>",
        '<p class="lead">Published results of model editors, run again: each report regenerates '
        "the tables and figures of its paper and prints the reported number beside the "
        "reproduced one.</p>",
        f"<p>{_safe(note)}</p>" if note else "",
        _glance(chosen, " + ".join(profiles)),
        *(_paper(paper, folder) for paper in chosen),
        "" if chosen else '<p class="empty">No report has been written into this folder yet.</p>',
        '<p class="notes">= consistent, ▲ above and ▼ below compare with the reported number at '
        "the paper's n (5 % level), whatever the better direction; · not comparable: nothing "
        "reported, or too little known about it. Brackets are 95 % intervals.</p>",
    ]
    css = (ASSETS / "report.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{_safe(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the results</a>\n'
        f'<div class="page single"><main id="content">\n{"".join(body)}\n</main></div>\n'
        "</body>\n</html>\n"
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _glance(papers: Sequence[PaperSummary], profile: str) -> str:
    cells = [row for paper in papers for row in paper.headline if row.verdict in COMPARED]
    agree = sum(row.verdict == "consistent" for row in cells)
    claims = _total(papers)
    facts = [
        ("Reports", f"<b>{sum(p.status == 'done' for p in papers)}</b> of {len(papers)} complete"),
        ("Headline numbers", f"<b>{agree}</b> of {len(cells)} comparable ones agree"),
        ("Claims that hold", f"<b>{claims[HOLDS]}</b> of {sum(claims.values())} tested"),
        ("Substitutions", f"<b>{len({s for p in papers for s in p.substitutions})}</b> in all"),
    ]
    seconds = [p.runtime_seconds for p in papers if p.runtime_seconds is not None]
    if seconds:
        facts.append(("Running time", _safe(duration(sum(seconds)))))
    if profile:
        facts.append(("Profile", _safe(profile)))
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{rows}</dl>'


def _paper(paper: PaperSummary, folder: Path) -> str:
    title, link = _safe(paper.title), paper.safe_report
    if link and (folder / link).exists():
        title = f'<a href="{_safe(link)}">{title}</a>'
    words = {"done": "✓ complete", "partial": "! partly failed", "failed": "✗ failed"}
    badge = f'<span class="badge {paper.status}">{words[paper.status]}</span>'
    line = " · ".join(_safe(part) for part in (paper.venue, _runtime(paper)) if part)
    parts = [
        f'<section class="paper" aria-labelledby="{_slug(paper.key)}">',
        f'<h2 id="{_slug(paper.key)}">{title}</h2><p class="venue">{badge} {line}</p>',
        f"<p>{_safe(paper.summary)}</p>" if paper.summary else "",
        _headlines(paper),
        _tally(paper.claims),
        _listed("Substituted", paper.substitutions, "swapped"),
        _listed("Errors", paper.errors, "problems"),
        "</section>",
    ]
    return "".join(parts)


def _headlines(paper: PaperSummary) -> str:
    if not paper.headline:
        return ""
    rows = []
    for row in paper.headline:
        if row.reproduced is None:
            ours = '<span class="error">no result</span>'
        else:
            ends = [number(end, row.digits) for end in (row.ci_low, row.ci_high)]
            interval = "no interval" if row.ci_low is None else f"[{ends[0]}, {ends[1]}]"
            ours = (
                f"<strong>{number(row.reproduced, row.digits)}</strong> "
                f'<span class="interval">{interval} (n={row.n})</span>'
            )
        word = f'<span aria-hidden="true">{SYMBOLS.get(row.verdict, "")}</span> {row.verdict}'
        rows.append(
            f'<tr><th scope="row">{_safe(row.label)}</th>'
            f'<td class="reported">{number(row.reported, row.digits)}</td>'
            f'<td>{ours}<span class="verdict {row.verdict.split()[0]}">{word}</span></td></tr>'
        )
    label = _safe(f"Headline numbers of {paper.title}")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table><thead><tr>'
        '<th scope="col">Number</th><th scope="col" class="reported">reported</th>'
        '<th scope="col">reproduced</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _tally(claims: Mapping[str, int]) -> str:
    total = sum(claims.values())
    if not total:
        return ""
    parts = [(claims.get(verdict, 0), verdict) for verdict in (HOLDS, FAILS, UNKNOWN)]
    bar = "".join(
        f'<span class="{verdict.split()[0]}" style="flex:{count}"></span>'
        for count, verdict in parts
        if count
    )
    verbs = {
        HOLDS: ("holds", "hold"),
        FAILS: ("fails", "fail"),
        UNKNOWN: ("cannot be told here", "cannot be told here"),
    }
    words = ", ".join(f"{count} {verbs[verdict][count != 1]}" for count, verdict in parts)
    return (
        f'<div class="tally">Claims: {words}<div class="bar" aria-hidden="true">{bar}</div></div>'
    )


def _listed(name: str, entries: Sequence[str], style: str) -> str:
    if not entries:
        return ""
    items = "".join(f"<li>{_safe(entry)}</li>" for entry in entries)
    return f'<div class="{style}">{name}:<ul>{items}</ul></div>'


def duration(seconds: float) -> str:
    """Seconds in the reader's units: "42 s", "7 min 5 s", "3 h 20 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _runtime(paper: PaperSummary) -> str:
    return "" if paper.runtime_seconds is None else duration(paper.runtime_seconds)


def _total(papers: Sequence[PaperSummary]) -> dict[str, int]:
    return {v: sum(p.claims.get(v, 0) for p in papers) for v in (HOLDS, FAILS, UNKNOWN)}


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _finite(value: object) -> object:
    """JSON has no NaN: a missing number is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _safe(text: object) -> str:
    return html.escape(str(text), quote=True)


def _slug(key: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in key) or "paper"
