"""The front page: what was run, what agrees, what fails and why; claims with their best evidence.

Each report leaves `<key>.summary.json` beside its HTML (`summaries`); the index is made of those
files alone, so it can be written again at any time and shows a failed report next to finished ones.
Its markup stands in `templates/index.html.j2`; this module says what goes into it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

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
    SYMBOLS,
    VACUOUS,
    decided_in,
)
from lib.report.orderings import Ordered, signed, together
from lib.report.summaries import (
    PaperSummary,
    Scale,
    Told,
    beside,
    by_sentence,
    overall,
    read_summaries,
    tally,
)
from lib.report.tables import number
from lib.report.templates import fill
from lib.runs.settings import ROOT
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
STATES = {"done": "✓ complete", "partial": "! partly failed", "failed": "✗ failed"}
LEGEND = (
    "A sentence opens its evidence in every setting. It counts once: it holds (fails) if it does "
    "so in at least one setting and does the opposite in none. The effect is that of the "
    "comparison which decides, in the setting with the most facts, held against what is wanted; "
    "elsewhere: the other settings, by size."
)
Others = Mapping[str, Mapping[str, Sequence[Beside]]]  # report, sentence -> other profiles


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
    found = _unique(chosen, "findings")
    orders = [(paper, one) for paper in chosen for one in paper.orderings]
    page = fill(
        "index",
        title=title,
        note=note,
        abstract=abstract(chosen, profiles),
        facts=_facts(chosen, profiles),
        legend=LEGEND,
        claims=_groups(chosen, "claims", linked, others),
        findings=_groups(chosen, "findings", linked, others),
        of_findings=f"Of {_counted(len(by_sentence(found)), 'finding')} of our own, judged on the "
        f"same runs, {counts_in_words(tally(found))}.",
        orderings=[_order(paper, one) for paper, one in orders],
        of_orderings=f"The order of the methods: {together([one for _, one in orders])} agree "
        "with the reported order",
        swapped=_swapped(chosen, linked),
        scales=[_scale(paper, one) for paper in chosen for one in paper.scales],
        papers=[_report(paper, linked) for paper in chosen],
        commands=_commands(profiles),
        cite=citation(),
    )  # fmt: skip
    write_text(folder / "index.html", f"{page}\n")
    return folder / "index.html"


def counts_in_words(counts: Mapping[str, int]) -> str:
    """ "12 hold, 1 fails, 3 are inconclusive": verdicts that nobody got are left out, except that
    "hold" and "fail" are always told."""
    parts = [
        f"{counts[verdict]} {VERBS[verdict][counts[verdict] != 1]}"
        for verdict in COUNTED
        if counts[verdict] or verdict in (HOLDS, FAILS)
    ]
    return ", ".join(parts)


def abstract(papers: Sequence[PaperSummary], profiles: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The study in three short paragraphs, (what it is about, text): what was run, what agrees,
    what fails and why; every number of them counted in the summaries."""
    if not papers:
        return []
    return [
        ("What was run.", " ".join(_was_run(papers, profiles))),
        ("What agrees.", " ".join(_agrees(papers))),
        ("What fails, and why.", " ".join(_fails(papers))),
    ]


def _was_run(papers: Sequence[PaperSummary], profiles: Sequence[str]) -> Iterable[str]:
    scales = [scale for paper in papers for scale in paper.scales]
    seconds = _seconds(papers)
    if scales:
        editors = {name for scale in scales for name in scale.editors}
        models = _listed(dict.fromkeys(scale.model for scale in scales))
        named = f" in the profile {' and '.join(profiles)}" if profiles else ""
        yield (
            f"{len(editors)} editors and variants made up to {max(s.edits for s in scales):,} "
            f"edits on {models}, in {_counted(len(seconds), 'run')}{named}."
        )
    if swapped := {text for paper in papers for text in paper.substitutions}:
        yield (
            f"Models, data, precision or sizes are not the papers' ({len(swapped)} substitutions): "
            "claims, differences and the order of methods are compared, levels are not."
        )
    if broken := [paper.name for paper in papers if paper.status != "done"]:
        yield f"Incomplete, and counted as far as told: {', '.join(broken)}."


def _agrees(papers: Sequence[PaperSummary]) -> Iterable[str]:
    making = [paper for paper in papers if paper.claims]
    claims = tally(_unique(papers, "claims"))
    if total := sum(claims.values()):
        yield (
            f"Of {_counted(total, 'claim')} of {_counted(len(making), 'paper')}, "
            f"{counts_in_words(claims)}."
        )
    told = [paper for paper in papers if paper.orderings]
    if told:
        orders = [one for paper in told for one in paper.orderings]
        yield (
            f"In the tables of {_listed(p.name for p in told)}, {together(orders)} have the "
            "reported order."
        )
    if silent := [paper.name for paper in making if not paper.orderings]:
        yield f"For {_listed(silent)} there are no reported scores of several methods to order."


def _fails(papers: Sequence[PaperSummary]) -> Iterable[str]:
    """Per report: how many claims fail somewhere, and the findings that say why."""
    parts = []
    for paper in papers:
        if groups := by_sentence(paper.claims):
            failing = [group for group in groups if overall(group) in (FAILS, DIFFERS)]
            reasons = dict.fromkeys(text for group in failing for text in _because(paper, group))
            why = "; ".join(f"{text[:1].lower()}{text[1:].rstrip('.')}" for text in reasons)
            why = f" ({why})" if why else ""
            parts.append(f"{len(failing)} of {paper.name}'s {len(groups)}{why}")
    if parts:
        yield f"Of the claims, these fail in at least one setting: {_listed(parts)}."


def _because(paper: PaperSummary, group: Sequence[Told]) -> list[str]:
    """The findings of a report that say why a claim fails, where it does and they hold."""
    if overall(group) not in (FAILS, DIFFERS):
        return []
    found = {told[0].key: told for told in by_sentence(paper.findings)}
    keys = dict.fromkeys(key for one in group for key in one.because)
    return [found[k][0].sentence for k in keys if k in found and overall(found[k]) == HOLDS]


def _unique(papers: Sequence[PaperSummary], which: str) -> list[Told]:
    """The judgements of all reports; equal keys of two reports are two sentences."""
    return [
        replace(one, key=f"{paper.key}/{one.key}")
        for paper in papers
        for one in getattr(paper, which)
    ]


def _facts(papers: Sequence[PaperSummary], profiles: Sequence[str]) -> list[tuple[str, Any, str]]:
    """The box of scale: (name, value, more)."""
    scales = [scale for paper in papers for scale in paper.scales]
    found: list[tuple[str, Any, str]] = []
    if scales:
        found.append(("Models", _listed(dict.fromkeys(scale.model for scale in scales)), ""))
        batches = {scale.batch for scale in scales}
        each = f"in batches of {min(batches)}" + (f" to {max(batches)}" if len(batches) > 1 else "")
        edits = _bold(f"{max(scale.edits for scale in scales):,}")
        found.append(("Edits in a sequence, at most", edits, each))
        found.append(("Orders of the edits", *_orders(scales)))
    for name, which in (("Claims that hold", "claims"), ("Findings that hold", "findings")):
        counts = tally(_unique(papers, which))
        tested = sum(counts.values()) - counts[NOT_TESTABLE]
        found.append((name, _bold(counts[HOLDS], f" of {tested} tested"), ""))
    orders = [one for paper in papers for one in paper.orderings]
    if orders:
        agree, pairs = (sum(getattr(one, name) for one in orders) for name in ("agree", "pairs"))
        found.append(("Pairs of methods in the reported order", _bold(agree, f" of {pairs}"), ""))
    done = sum(paper.status == "done" for paper in papers)
    found.append(("Reports", _bold(done, f" of {len(papers)} complete"), ""))
    if seconds := _seconds(papers):
        machines = dict.fromkeys(m for paper in papers for m in paper.made.get("machines", ()))
        found.append(("Running time", duration(sum(seconds.values())), "; ".join(machines)))
    if profiles:
        found.append(("Profile", " + ".join(profiles), ""))
    return found


def _orders(scales: Sequence[Scale]) -> tuple[Markup, str]:
    """How many orders of edits, and how far edit success lies apart between them."""
    seeds = {scale.seeds for scale in scales}
    spread = [scale.spread for scale in scales if not math.isnan(scale.spread)]
    many = str(min(seeds)) + (f" to {max(seeds)}" if len(seeds) > 1 else "")
    more = f"edit success ± {max(spread):.2f} (SD) at most" if spread else "no spread measured"
    return _bold(many), more


def _bold(value: object, rest: str = "") -> Markup:
    return Markup("<b>{}</b>{}").format(value, rest)


def _groups(
    papers: Sequence[PaperSummary], which: str, linked: set[str], others: Others
) -> list[dict[str, Any]]:
    """One group of rows a report, in page order."""
    found = []
    for paper in papers:
        told = getattr(paper, which)
        if not told:
            continue
        report = paper.safe_report if paper.key in linked else ""
        name = "Claims" if which == "claims" else "Findings"
        found.append({
            "name": paper.name, "link": report, "counts": f"{name}: {counts_in_words(tally(told))}",
            "rows": [_row(paper, group, report, others[paper.key]) for group in by_sentence(told)],
        })  # fmt: skip
    return found


def _row(
    paper: PaperSummary,
    group: Sequence[Told],
    report: str,
    others: Mapping[str, Sequence[Beside]],
) -> dict[str, Any]:
    """A sentence: its verdict over the settings, the largest that can tell, and all the others."""
    first = next((one for one in group if one.verdict != NOT_TESTABLE), group[0])
    known = first.verdict != NOT_TESTABLE and not math.isnan(first.effect)
    elsewhere = others.get(first.key, ())
    judged = [(one.verdict, one.marks) for one in group]
    word, beyond = overall(group), [one for one in group if one is not first]
    return {
        "id": f"{_slug(paper.key)}-{_slug(first.key)}",
        "sentence": first.sentence,
        "source": first.source,
        "badge": Markup(badge(word, where=reach(word, decided_in(judged)))),
        "best": _glyph(first.verdict, first.marks, _place(first)),
        "effect": _effect(first, first.effect) if known else "",
        "interval": _interval(first) if known else "",
        "wanted": first.wanted if known else "",
        "facts": f"{first.facts:,}" if known and first.facts else "counted" if known else "",
        "compared": first.compared if known else "",
        "decided": _decided(first) if known else "",
        "others": [_glyph(one.verdict, one.marks, _place(one)) for one in beyond]
        + [_glyph(one.verdict, (), f"the profile {one.profile}") for one in elsewhere],
        "settings": [_setting(one, report) for one in (first, *beyond)],
        "beside": [Markup(one.to_html()) for one in elsewhere],
        "because": _because(paper, group),
        **_link(first, report),
        "short": first.section.partition(":")[0],
    }


def _glyph(verdict: str, marks: Sequence[str], place: str) -> dict[str, str]:
    """A verdict as one sign; what it means and where is said in words."""
    named = marks[0] if marks else verdict
    kind = "marked" if named in MARKS else named.split()[0]
    word = f"{verdict}, {named}" if named in MARKS else named
    return {"symbol": SYMBOLS[named], "kind": kind, "about": f"{word}: {place}"}


def _setting(one: Told, report: str) -> dict[str, Any]:
    return {
        "badge": Markup(badge(one.verdict, one.marks)),
        "place": _place(one),
        "evidence": one.evidence,
        **_link(one, report),
    }


def _link(one: Told, report: str) -> dict[str, str]:
    """Where the numbers of a sentence stand."""
    link = f"{report}#{section_id(one.section)}" if report and one.section else ""
    return {"link": link, "section": one.section}


def _place(one: Told) -> str:
    return f"{one.setting}, judged on {one.editor}" if one.editor else one.setting


def _decided(one: Told) -> str:
    """The comparison that a verdict hangs on, in words."""
    shown = f"{_effect(one, one.effect)} {_interval(one)}".strip()
    return f"Decided by: {one.compared}, {shown}; wanted: {one.wanted}."


def _effect(one: Told, value: float) -> str:
    """A number with two digits; differences have a sign, as their bound has."""
    if math.isinf(value):
        return "∞"
    return signed(value) if one.wanted[2:3] in ("+", "−") else number(value).replace("-", "−")


def _interval(one: Told) -> str:
    if math.isnan(one.low) or one.low == one.high:
        return ""
    return f"[{_effect(one, one.low)}, {_effect(one, one.high)}]"


def _order(paper: PaperSummary, one: Ordered) -> dict[str, Any]:
    return {**vars(one), "name": paper.name, "tau": one.tau_in_words}


def _scale(paper: PaperSummary, one: Scale) -> dict[str, Any]:
    spread = "one order" if math.isnan(one.spread) else f"{one.spread:.3f}"
    return {**vars(one), "name": paper.name, "spread": spread, "editors": ", ".join(one.editors)}


def _swapped(
    papers: Sequence[PaperSummary], linked: set[str]
) -> list[tuple[str, list[dict[str, str]]]]:
    """Every substitution once, with the reports that use it."""
    found: dict[str, list[dict[str, str]]] = {}
    for paper in papers:
        link = paper.safe_report if paper.key in linked else ""
        for text in dict.fromkeys(paper.substitutions):
            found.setdefault(text, []).append({"name": paper.name, "link": link})
    return list(found.items())


def _report(paper: PaperSummary, linked: set[str]) -> dict[str, Any]:
    took = duration(paper.seconds) if paper.runs else ""
    best = ", ".join(
        f"{one.editor} {number(one.score)} [{number(one.low)}, {number(one.high)}]"
        for one in paper.best
    )
    return {
        "title": paper.title,
        "link": paper.safe_report if paper.key in linked else "",
        "status": paper.status,
        "state": STATES[paper.status],
        "venue": " · ".join(part for part in (paper.venue, took) if part),
        "summary": paper.summary,
        "best": f"Best {paper.best[0].measure}: {best}." if best else "",
        "errors": paper.errors,
    }


def _commands(profiles: Sequence[str]) -> str:
    chosen = "" if profiles in ([], ["laptop"]) else f" --profile {profiles[0]}"
    run = f"./run_all.sh{chosen}"
    width = len("./run_all.sh --test") if not chosen else len(run)
    return (
        f"{run:<{width}}  # runs everything, renders the pages\n"
        f"{'./run_all.sh --test':<{width}}  # the test suite"
    )


def citation(path: Path = ROOT / "CITATION.cff") -> dict[str, str]:
    """Licence, code and BibTeX from a CITATION.cff; {} where there is none, as in a wheel."""
    if not path.is_file():
        return {}
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = [
        entry.get("name") or ", ".join(
            entry[part] for part in ("family-names", "given-names") if part in entry
        )
        for entry in told["authors"]
    ]  # fmt: skip
    url = str(told.get("repository-code", told.get("url", "")))
    fields = {
        "author": " and ".join(f"{{{name}}}" for name in names),
        "title": f"{{{told['title']}}}",
        "year": str(told.get("date-released", ""))[:4],
        "version": str(told["version"]),
        "url": url,
    }
    body = "".join(f",\n  {name} = {{{value}}}" for name, value in fields.items() if value)
    return {
        "licence": f"Licence: {told['license']}",
        "url": url if url.startswith("https://") else "",
        "code": f"this project, version {told['version']}, folders lib and papers",
        "bibtex": f"@software{{model_editing_study{body}\n}}",
    }


def _seconds(papers: Sequence[PaperSummary]) -> dict[str, float]:
    """The seconds of every run once; reports share runs."""
    return {run: seconds for paper in papers for run, seconds in paper.runs.items()}


def duration(seconds: float) -> str:
    """Seconds in the reader's units: "42 s", "7 min 5 s", "3 h 20 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _listed(names: Iterable[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _slug(key: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in key) or "paper"
