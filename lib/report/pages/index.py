"""The front page, the study's abstract: every claim with its verdict, findings, substitutions.

Each report leaves `<key>.summary.json` beside its HTML (`summaries`); the index is made of those
files alone, so it can be written again at any time and shows a failed report next to finished ones.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lib.report.claims.claims import Beside, badge, reach, section_id
from lib.report.claims.verdict import (
    BY_CONSTRUCTION,
    COUNTED,
    DIFFERS,
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    MARKS,
    NOT_TESTABLE,
    VACUOUS,
    decided_in,
)
from lib.report.pages.notebook import ASSETS
from lib.report.summaries import (
    PaperSummary,
    Told,
    beside,
    by_sentence,
    overall,
    read_summaries,
    tally,
)
from lib.report.tables import AGREEMENT, number
from lib.storage.atomic import write_text

VERBS = {  # one sentence, several
    HOLDS: ("holds", "hold"),
    FAILS: ("fails", "fail"),
    DIFFERS: ("differs between settings", "differ between settings"),
    INCONCLUSIVE: ("is inconclusive", "are inconclusive"),
    BY_CONSTRUCTION: ("holds by construction", "hold by construction"),
    VACUOUS: ("is vacuous", "are vacuous"),
    NOT_TESTABLE: ("is not testable in this profile", "are not testable in this profile"),
}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def counts_in_words(counts: Mapping[str, int]) -> str:
    """ "12 hold, 1 fails, 3 are inconclusive": verdicts that nobody got are left out, except that
    "hold" and "fail" are always told."""
    parts = [
        f"{counts[verdict]} {VERBS[verdict][counts[verdict] != 1]}"
        for verdict in COUNTED
        if counts[verdict] or verdict in (HOLDS, FAILS)
    ]
    return ", ".join(parts)


def tally_bar(told: Sequence[Told], name: str) -> str:
    """Counts of sentences in words, and the same as a bar."""
    if not told:
        return ""
    counts = tally(told)
    bar = "".join(
        f'<span class="{"marked" if verdict in MARKS else verdict.split()[0]}" '
        f'style="flex:{counts[verdict]}"></span>'
        for verdict in COUNTED
        if counts[verdict]
    )
    return (
        f'<div class="tally">{name}: {counts_in_words(counts)}'
        f'<div class="bar" aria-hidden="true">{bar}</div></div>'
    )


def told_list(
    paper: PaperSummary, told: Sequence[Told], *, link: bool,
    others: Mapping[str, Sequence[Beside]] | None = None,
) -> str:  # fmt: skip
    """A list with one row a sentence: the sentence and its verdict over the settings; unfolded, its
    source and the evidence of each setting. `link`: whether the report can be linked to; `others`:
    what other profiles say of a sentence, by its key."""
    if not told:
        return ""
    letters = _letters(told)
    report = paper.safe_report if link else ""
    said = others or {}
    rows = "".join(
        _row(group, letters, report, said.get(group[0].key, ())) for group in by_sentence(told)
    )
    return f'{_legend(letters)}<ol class="told">{rows}</ol>'


def _letters(told: Iterable[Told]) -> dict[str, str]:
    """A letter for every setting if there are several; numbers where letters run out."""
    places = list(dict.fromkeys(one.setting for one in told))
    if len(places) < 2:
        return dict.fromkeys(places, "")
    names = [*_LETTERS, *map(str, range(1, len(places)))]
    return dict(zip(places, names, strict=False))


def _legend(letters: Mapping[str, str]) -> str:
    items = "".join(f"<li><b>{a}</b> {_safe(place)}</li>" for place, a in letters.items() if a)
    return f'<ul class="places" aria-label="Settings">{items}</ul>' if items else ""


def _row(
    group: Sequence[Told], letters: Mapping[str, str], report: str, others: Sequence[Beside]
) -> str:
    first = group[0]
    chips = " ".join([_chip(group), *(one.to_html() for one in others)])
    source = f'<p class="source">{_safe(first.source)}</p>' if first.source else ""
    evidence = "".join(_evidence(one, letters[one.setting], report) for one in group)
    return (
        f'<li><details><summary><span class="sentence">{_safe(first.sentence)}</span> '
        f"{chips}</summary>{source}<dl>{evidence}</dl></details></li>"
    )


def _chip(group: Sequence[Told]) -> str:
    """One badge: the verdict over the settings, and in how many of them it is reached."""
    judged = [(one.verdict, one.marks) for one in group]
    word = overall(group)
    return badge(word, where=reach(word, decided_in(judged)))


def _evidence(one: Told, letter: str, report: str) -> str:
    judged = f", judged on {one.editor}" if one.editor else ""
    place = f"{f'{letter}: ' if letter else ''}{one.setting}{judged}"
    link = ""
    if report and one.section:
        target = _safe(f"{report}#{section_id(one.section)}")
        link = f' <a href="{target}">{_safe(one.section)}</a>'
    word = badge(one.verdict, one.marks)
    return f"<dt>{word} {_safe(place)}</dt><dd>{_safe(one.evidence)}{link}</dd>"


COMPARED = ("consistent", "above", "below")


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
    profiles = list(dict.fromkeys(p for p in (profile, *(q.profile for q in chosen)) if p))
    linked = {p.key for p in chosen if p.safe_report and (folder / p.safe_report).exists()}
    others = {paper.key: beside(folder, paper.profile or profile, paper.key) for paper in chosen}
    body = [
        f"<h1>{_safe(title)}</h1>",
        f'<p class="lead">{_safe(abstract(chosen, profiles))}</p>',
        f"<p>{_safe(note)}</p>" if note else "",
        _glance(chosen, " + ".join(profiles)),
        *(_paper(paper, paper.key in linked, others[paper.key]) for paper in chosen),
        "" if chosen else '<p class="empty">No report has been written into this folder yet.</p>',
        _findings(chosen, linked, others),
        _substitutions(chosen, linked),
        '<p class="notes">= consistent, ▲ above and ▼ below compare with the reported number at '
        "the paper's n (5 % level), whatever the better direction; · not comparable: nothing "
        "reported, or too little known about it. Brackets are 95 % intervals. A claim counts once: "
        "it holds (fails) if it does so in at least one setting and does the opposite in none; "
        "settings that are inconclusive or cannot test it take nothing away, and their number is "
        "told. What holds by construction or is vacuous is counted apart.</p>",
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


def abstract(papers: Sequence[PaperSummary], profiles: Sequence[str] = ()) -> str:
    """The study in a few sentences, every number of them counted in the summaries."""
    said = [
        "Published results of model editors, run again: each report regenerates the tables and "
        "figures of its paper and prints the reported number beside the reproduced one."
    ]
    claims = tally(_unique(papers, "claims"))
    if total := sum(claims.values()):
        making = sum(bool(paper.claims) for paper in papers)
        said.append(
            f"Of {_counted(total, 'claim')} of {_counted(making, 'paper')}, "
            f"{counts_in_words(claims)}."
        )
    findings = tally(_unique(papers, "findings"))
    if total := sum(findings.values()):
        said.append(
            f"Of {_counted(total, 'finding')} of our own, judged on the same runs in the same way, "
            f"{counts_in_words(findings)}."
        )
    machines = dict.fromkeys(m for p in papers for m in p.made.get("machines", ()))
    if papers:
        where = f", run on {' and '.join(machines)}" if machines else ""
        named = f", in the profile {' and '.join(profiles)}" if profiles else ""
        said.append(f"{_counted(len(papers), 'report')}{where}{named}.")
    broken = [paper.name for paper in papers if paper.status != "done"]
    if broken:
        said.append(f"Incomplete, and counted as far as told: {', '.join(broken)}.")
    return " ".join(said)


def _unique(papers: Sequence[PaperSummary], which: str) -> list[Told]:
    """The judgements of all reports; equal keys of two reports are two sentences."""
    return [
        Told(**{**vars(one), "key": f"{paper.key}/{one.key}"})
        for paper in papers
        for one in getattr(paper, which)
    ]


def _glance(papers: Sequence[PaperSummary], profile: str) -> str:
    cells = [row for paper in papers for row in paper.headline if row.verdict in COMPARED]
    agree = sum(row.verdict == "consistent" for row in cells)
    facts = [
        ("Reports", f"<b>{sum(p.status == 'done' for p in papers)}</b> of {len(papers)} complete"),
        ("Headline numbers", f"<b>{agree}</b> of {len(cells)} comparable ones agree"),
    ]
    for name, which in (("Claims that hold", "claims"), ("Findings that hold", "findings")):
        counts = tally(_unique(papers, which))
        tested = sum(counts.values()) - counts[NOT_TESTABLE]
        facts.append((name, f"<b>{counts[HOLDS]}</b> of {tested} tested"))
    facts.append(("Substitutions", f"<b>{len(_swapped(papers))}</b> in all"))
    if runs := {run: seconds for paper in papers for run, seconds in paper.runs.items()}:
        facts.append(("Running time", _safe(duration(sum(runs.values())))))
    if profile:
        facts.append(("Profile", _safe(profile)))
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{rows}</dl>'


def _paper(paper: PaperSummary, linked: bool, others: Mapping[str, Sequence[Beside]]) -> str:
    title = _safe(paper.title)
    if linked:
        title = f'<a href="{_safe(paper.safe_report)}">{title}</a>'
    words = {"done": "✓ complete", "partial": "! partly failed", "failed": "✗ failed"}
    state = f'<span class="badge {paper.status}">{words[paper.status]}</span>'
    line = " · ".join(_safe(part) for part in (paper.venue, _runtime(paper)) if part)
    parts = [
        f'<section class="paper" aria-labelledby="{_slug(paper.key)}">',
        f'<h2 id="{_slug(paper.key)}">{title}</h2><p class="venue">{state} {line}</p>',
        f"<p>{_safe(paper.summary)}</p>" if paper.summary else "",
        _headlines(paper),
        tally_bar(paper.claims, "Claims"),
        told_list(paper, paper.claims, link=linked, others=others),
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
        word = f'<span aria-hidden="true">{AGREEMENT.get(row.verdict, "")}</span> {row.verdict}'
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


def _findings(
    papers: Sequence[PaperSummary], linked: set[str],
    others: Mapping[str, Mapping[str, Sequence[Beside]]],
) -> str:  # fmt: skip
    """What this study found that no paper says, per report, judged as claims are."""
    told = [
        f'<h3 id="found-{_slug(paper.key)}">{_safe(paper.name)}</h3>'
        + told_list(paper, paper.findings, link=paper.key in linked, others=others[paper.key])
        for paper in papers
        if paper.findings
    ]
    if not told:
        return ""
    return (
        '<section class="paper"><h2 id="findings">Findings of our own</h2>'
        "<p>What no paper says and the runs behind these pages show, or do not: sentences of this "
        "study, each with the same kind of test, on the same runs.</p>"
        f"{''.join(told)}</section>"
    )


def _swapped(papers: Sequence[PaperSummary]) -> dict[str, list[PaperSummary]]:
    """Every substitution once, with the reports that use it."""
    found: dict[str, list[PaperSummary]] = {}
    for paper in papers:
        for text in dict.fromkeys(paper.substitutions):
            found.setdefault(text, []).append(paper)
    return found


def _substitutions(papers: Sequence[PaperSummary], linked: set[str]) -> str:
    swapped = _swapped(papers)
    if not swapped:
        return ""

    def used(paper: PaperSummary) -> str:
        name = _safe(paper.name)
        target = f"{paper.safe_report}#substitutions"
        return f'<a href="{_safe(target)}">{name}</a>' if paper.key in linked else name

    items = "".join(
        f"<li>{_safe(text)} <cite>{', '.join(used(paper) for paper in users)}</cite></li>"
        for text, users in swapped.items()
    )
    return (
        '<section class="paper"><h2 id="substitutions">Substitutions</h2>'
        "<p>Where backbones, data, precision or sizes are not the paper's, with the reports that "
        f'use them.</p><ul class="swapped">{items}</ul></section>'
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
    return duration(paper.seconds) if paper.runs else ""


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _safe(text: object) -> str:
    return html.escape(str(text), quote=True)


def _slug(key: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in key) or "paper"
