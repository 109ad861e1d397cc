"""The front page's lists of judged sentences: one row each, with the evidence folded under it."""

import html
from collections.abc import Iterable, Mapping, Sequence

from lib.claims import section_id
from lib.findings import FAILS, HOLDS, SYMBOLS, UNKNOWN
from lib.summaries import DIFFERS, VERDICTS, PaperSummary, Told, by_sentence, tally

VERBS = {  # one sentence, several
    HOLDS: ("holds", "hold"),
    FAILS: ("fails", "fail"),
    DIFFERS: (
        "holds in one setting and fails in another",
        "hold in one setting and fail in another",
    ),
    UNKNOWN: (UNKNOWN,) * 2,
}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def counts_in_words(counts: Mapping[str, int]) -> str:
    """ "12 hold, 1 fails, 3 cannot be told here": verdicts that nobody got are left out, except
    that "hold" and "fail" are always told."""
    parts = [
        f"{counts[verdict]} {VERBS[verdict][counts[verdict] != 1]}"
        for verdict in VERDICTS
        if counts[verdict] or verdict in (HOLDS, FAILS)
    ]
    return ", ".join(parts)


def tally_bar(told: Sequence[Told], name: str) -> str:
    """Counts of sentences in words, and the same as a bar."""
    if not told:
        return ""
    counts = tally(told)
    bar = "".join(
        f'<span class="{verdict.split()[0]}" style="flex:{counts[verdict]}"></span>'
        for verdict in VERDICTS
        if counts[verdict]
    )
    return (
        f'<div class="tally">{name}: {counts_in_words(counts)}'
        f'<div class="bar" aria-hidden="true">{bar}</div></div>'
    )


def told_list(paper: PaperSummary, told: Sequence[Told], *, link: bool) -> str:
    """A list with one row a sentence: the sentence and its verdict in every setting; unfolded, its
    source and the evidence of each setting. `link`: whether the report can be linked to."""
    if not told:
        return ""
    letters = _letters(told)
    report = paper.safe_report if link else ""
    rows = "".join(_row(group, letters, report) for group in by_sentence(told))
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


def _row(group: Sequence[Told], letters: Mapping[str, str], report: str) -> str:
    first = group[0]
    source = f'<p class="source">{_safe(first.source)}</p>' if first.source else ""
    evidence = "".join(_evidence(one, letters[one.setting], report) for one in group)
    return (
        f'<li><details><summary><span class="sentence">{_safe(first.sentence)}</span> '
        f"{_chips(group, letters)}</summary>{source}<dl>{evidence}</dl></details></li>"
    )


def _chips(group: Sequence[Told], letters: Mapping[str, str]) -> str:
    """One badge per verdict, with the letters of the settings that reach it."""
    found = []
    for verdict in SYMBOLS:
        places = [letters[one.setting] for one in group if one.verdict == verdict]
        if places:
            where = f" {', '.join(places)}" if any(places) else ""
            found.append(badge(verdict, where))
    return " ".join(found)


def badge(verdict: str, where: str = "") -> str:
    """The verdict as a word with a symbol, never as a colour alone."""
    symbol = f'<span aria-hidden="true">{SYMBOLS[verdict]}</span>'
    return f'<span class="badge {verdict.split()[0]}">{symbol} {verdict}{_safe(where)}</span>'


def _evidence(one: Told, letter: str, report: str) -> str:
    judged = f", judged on {one.editor}" if one.editor else ""
    place = f"{f'{letter}: ' if letter else ''}{one.setting}{judged}"
    link = ""
    if report and one.section:
        target = _safe(f"{report}#{section_id(one.section)}")
        link = f' <a href="{target}">{_safe(one.section)}</a>'
    return f"<dt>{badge(one.verdict)} {_safe(place)}</dt><dd>{_safe(one.evidence)}{link}</dd>"


def _safe(text: object) -> str:
    return html.escape(str(text), quote=True)
