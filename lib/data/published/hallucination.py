"""GPT-3's Wikipedia-style biographies with their corrections (SelfCheckGPT WikiBio; melo 4).

The prompt of sentence j is "This is a Wikipedia passage about {name}." with GPT-3's sentences
before j. An inaccurate sentence is edited to the j-th sentence of the real article (its last one
where the article is shorter); an accurate one is a probe that should stay as likely as it was, and
so is running text of the web.
"""

import re
from pathlib import Path

from lib.data.published import reading
from lib.data.published.reading import Row
from lib.data.records import BadRecord, Dataset, Edit, Probe
from lib.errors import RecordError, UsageError

VARIANTS: dict[str, tuple[str, ...]] = {
    "stream": ("grace_stream_1908.jsonl",),
    "passages": ("wikibio_gpt3_238.jsonl", "wiki_bio_gpt3_hallucination.jsonl"),
}
ORIGIN = "the hub's potsawee/wiki_bio_gpt3_hallucination, split evaluation, as JSON lines"
PROMPT = "This is a Wikipedia passage about {name}. "
TEXT_FILES = (
    "openwebtext_10k.jsonl", "openwebtext-10k.jsonl", "openwebtext_val_4007.jsonl",
)  # fmt: skip
DOCUMENTS = 1000  # of running text, the first so many (melo 4)
OPENING = 12  # words of a document that are context only
_SPLIT = "Articles are split into sentences by our rules, not by NLTK's splitter."
_NAMED = "Where no field 'concept' is given, the name is the beginning of GPT-3's text."
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


def load(folder: Path, *, variant: str | None = None, strict: bool = True) -> Dataset:
    """Corrections as edits, accurate sentences as `near` probes, both in data order; web text as
    `upstream`, from this folder or from text/ beside it.

    "stream": one sentence a row, made ready (`kind`, `concept`, `prompt`, `target_new`).
    "passages": one passage a row (`gpt3_sentences`, `annotation`, `wiki_bio_text`, `concept`). A
    correction whose article is not in the file is left out. Raises RecordError for unusable rows
    or if a file is missing, UsageError for another variant.
    """
    if variant is not None and variant not in VARIANTS:
        raise UsageError(f"biographies have no variant {variant!r}; known: {', '.join(VARIANTS)}.")
    files = [f for fs in VARIANTS.values() for f in fs] if variant is None else VARIANTS[variant]
    path = reading.require(folder, files, ORIGIN)
    ready = path.name.removesuffix(".gz") in VARIANTS["stream"]
    convert = _ready_row if ready else _passage
    found, skipped, left_out = reading.collect(path, convert, strict=strict)
    rows = [row for group in found for row in group]
    edits = tuple(row for row in rows if isinstance(row, Edit))
    missing = sum(row is None for row in rows)
    if not edits:
        raise RecordError(f"{path} has no correction with a target")
    texts, text_path, bad, more_left_out = _texts(folder, strict)
    notes = [
        f"{missing} of {len(edits) + missing} corrections have no article here and are left out."
        if missing
        else "",
        "" if ready else f"{_SPLIT} {_NAMED}",
        "" if "10k" in text_path.name else f"{text_path.name} stands in for openwebtext-10k.",
    ]
    return Dataset(
        name=f"WikiBio ({reading.stem(path)})",
        edits=edits,
        upstream=texts,
        near=tuple(row for row in rows if isinstance(row, Probe)),
        sources=(path.name, text_path.name),
        substitution=" ".join(filter(None, notes)),
        skipped=(*skipped, *bad),
        left_out=(*left_out, *more_left_out),
    )


def continuation(identity: str, text: str, words: int | None = None) -> Probe | None:
    """A probe whose prompt is the first `OPENING` words of `text` and whose target is the rest, up
    to `words` in all (None: to the end); None for a text without a rest.

    The official code scores every token and reads the key at the text's end. With an empty prompt
    all texts would share one key here, and what is decoded; so the opening is context only.
    """
    parts = list(re.finditer(r"\S+", text))[:words]
    if len(parts) <= OPENING:
        return None
    cut = parts[OPENING - 1].end()
    prompt, target = text[:cut].strip(), text[cut : parts[-1].end()].strip()
    return Probe(identity, prompt, target, "upstream")


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


def _texts(
    folder: Path, strict: bool
) -> tuple[tuple[Probe, ...], Path, tuple[BadRecord, ...], tuple[str, ...]]:
    """The first documents (field `text`) long enough to be cut, the file that holds them, its bad
    records, and what else of it was left out."""
    beside = folder.parent / "text"
    path = reading.find(folder, TEXT_FILES) or reading.find(beside, TEXT_FILES)
    if path is None:
        raise RecordError(
            f"none of {', '.join(TEXT_FILES)} (plain or .gz) is in {folder} or {beside}: the text "
            "that edits should leave alone. Origin: the hub's stas/openwebtext-10k as JSON lines "
            "with a field 'text'."
        )
    stem = reading.stem(path)
    found, bad, left_out = reading.collect(
        path,
        lambda row, index: continuation(f"{stem}:{index}", reading.words(row, "text")),
        strict=strict,
    )
    if short := found.count(None):
        left_out = (*left_out, f"{short} texts of {path.name} with no more than {OPENING} words")
    return tuple(filter(None, found))[:DOCUMENTS], path, bad, left_out


def _ready_row(row: Row, index: int) -> list[Edit | Probe | None]:
    kind = reading.text(row, "kind")
    if kind not in ("edit", "accurate"):
        raise RecordError(f"the field 'kind' is {kind!r}, neither 'edit' nor 'accurate'")
    if kind == "edit" and row.get("target_new") is None:
        return [None]
    name, place = reading.text(row, "concept"), f"{row.get('passage', index)}:{row.get('sentence')}"
    prompt, target = reading.words(row, "prompt"), reading.words(row, "target_new")
    return [_row(kind == "edit", name, place, prompt, target)]


def _passage(row: Row, index: int) -> list[Edit | Probe | None]:
    written, labels = row.get("gpt3_sentences"), row.get("annotation")
    if not isinstance(written, list) or not isinstance(labels, list) or not written:
        raise RecordError("the fields 'gpt3_sentences' and 'annotation' are not lists")
    if len(written) != len(labels) or not all(isinstance(s, str) for s in (*written, *labels)):
        raise RecordError(f"{len(written)} sentences but {len(labels)} annotations, or no text")
    name = str(row.get("concept") or "").strip() or _name(written[0])
    article = row.get("wiki_bio_text") or ""
    if not isinstance(article, str):
        raise RecordError("the field 'wiki_bio_text' is not text")
    true = sentences(article)[: len(labels)]
    found: list[Edit | Probe | None] = []
    for j, label in enumerate(labels):
        wrong = "inaccurate" in label
        target = (true[min(j, len(true) - 1)] if true else None) if wrong else written[j].strip()
        prompt = PROMPT.format(name=name) + " ".join(written[:j])
        if target is None:
            found.append(None)
        elif reading.worded(row, target):
            found.append(_row(wrong, name, f"{index}:{j}", prompt, target))
    return found


def _row(wrong: bool, name: str, place: str, prompt: str, target: str) -> Edit | Probe:
    if wrong:
        subject = reading.spelled_in(prompt, name)
        return Edit(f"wikibio:{place}", prompt, target, subject, relation=name)
    return Probe(f"wikibio:{place}", prompt, target, "near")


def _name(text: str) -> str:
    """The beginning of a biography up to its dates or its verb, in lower case."""
    return re.split(r" \(| is | was |,", text, maxsplit=1)[0].strip(' "').lower()


def _abbreviated(head: str) -> bool:
    """Whether the word before the closing full stop of `head` is an abbreviation or an initial."""
    word = re.split(r"[\s\-–(\[\"'“‘]+", head[:-1])[-1]
    return bool(_ABBREVIATION.fullmatch(word))
