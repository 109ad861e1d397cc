"""Plain English prose cut into sentences by rules; no model and no trained list."""

import re

# A full stop behind these ends no sentence, nor behind initials.
_ABBREVIATION = re.compile(
    "(?i:mr|mrs|ms|dr|prof|st|sr|jr|rev|hon|gen|col|lt|maj|capt|cmdr|adm|sgt|cpl|gov|sen|rep|pres"
    "|ca|c|b|d|vs|v|no|nos|vol|pp|p|ed|eds|e.g|i.e|etc|al|inc|ltd|co|corp|bros|mt|ft|approx|fl"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec)"
    r"|(?:[A-Z]\.)*[A-Z]"
)
# An end mark with the quotes and brackets that close behind it, white space, and what may begin
# the next sentence.
_END = re.compile(r"([.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")


def sentences(text: str) -> list[str]:
    """The sentences of `text`, in order, without outer white space.

    A sentence ends at ".", "!" or "?" before a capital letter or a digit; not behind an
    abbreviation or a single capital letter ("J. Ozols"), nor inside brackets that are still open.
    """
    found, start = [], 0
    for end in _END.finditer(text):
        head = text[start : end.start() + 1]
        if end[1] == "." and _abbreviated(head):
            continue
        if text[start : end.end()].count("(") > text[start : end.end()].count(")"):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    return [*found, *filter(None, [text[start:].strip()])]


def _abbreviated(head: str) -> bool:
    """Whether the word before the closing full stop of `head` is an abbreviation or an initial."""
    word = re.split(r"[\s\-–(\[\"'“‘]+", head[:-1])[-1]
    return bool(_ABBREVIATION.fullmatch(word))
