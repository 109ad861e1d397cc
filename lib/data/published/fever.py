"""FEVER in its published files: claims with rephrases to edit, and plain claims with gold labels.

A target is a class number as text: "0" REFUTES, "1" SUPPORTS. A record is edited towards the
alternative that its file names, else away from its gold label; `target_true` is the gold label.
"""

from collections.abc import Iterable
from pathlib import Path

from lib.data.order import place
from lib.data.published import reading
from lib.data.published.reading import Row
from lib.data.records import BadRecord, Dataset, Edit, Probe
from lib.errors import RecordError, UsageError

CLASSES = {"REFUTES": "0", "SUPPORTS": "1", "false": "0", "true": "1"}
OTHER = {"0": "1", "1": "0"}
UNVERIFIABLE = "NOT ENOUGH INFO"

# De Cao's annotated KILT files (as MEND reads them), MALMEN's own, and what stands in for both.
VARIANTS: dict[str, tuple[str, ...]] = {
    "dev": (
        "fever-dev.jsonl", "fever-dev-kilt.jsonl", "fever_dev.json", "dev_rephrases_2048.jsonl",
    ),
    "train": (
        "fever-train.jsonl", "fever-train-kilt.jsonl", "fever_train.json",
        "dev_rephrases_2048.jsonl",
    ),
}  # fmt: skip
CLAIMS = ("paper_dev_9999.jsonl", "paper_dev.jsonl", "train.jsonl")
ORIGIN = "the annotated FEVER files linked from the KnowledgeEditor and MEND repositories"
_NOTE = (
    "Claims of FEVER's paper_dev with rephrases stand in for the annotated training and development"
    " files; its other claims serve for upstream training and as unrelated claims."
)


def load(folder: Path, *, variant: str | None = None, strict: bool = True) -> Dataset:
    """Edits of the first known file of `variant` ("dev" by default), in file order; records
    without a rephrase are left out, as by De Cao and MEND.

    `upstream`: the verifiable claims of a plain FEVER file that no record holds, else the records'
    own and unrelated claims; once each, in seeded order. Raises UsageError for another variant,
    RecordError for unreadable files.
    """
    if variant is not None and variant not in VARIANTS:
        raise UsageError(f"FEVER has no variant {variant!r}; known: {', '.join(VARIANTS)}.")
    path = reading.require(folder, VARIANTS[variant or "dev"], ORIGIN)
    stem = reading.stem(path)
    edits, skipped, left_out = reading.collect(
        path, lambda row, index: _edit(row, f"{stem}:{index}"), strict=strict
    )
    kept = tuple(edit for edit in edits if edit.rephrases)
    if bare := len(edits) - len(kept):
        left_out = (*left_out, f"{bare} records without a rephrase")
    claims, sources, more, more_left_out = _claims(folder, edits, strict)
    return Dataset(
        name=f"FEVER ({stem})",
        edits=kept,
        upstream=claims,
        sources=(path.name, *sources),
        substitution=_NOTE if stem.startswith("dev_rephrases") else "",
        skipped=(*skipped, *more),
        left_out=(*left_out, *more_left_out),
    )


def in_order(claims: Iterable[tuple[str, str]], seed: int = 0) -> tuple[Probe, ...]:
    """(claim, class) pairs as upstream probes, once each, in seeded order; claims that stand there
    with both classes are left out."""
    found: dict[str, set[str]] = {}
    for claim, label in claims:
        found.setdefault(claim, set()).add(label)
    single = {claim: min(labels) for claim, labels in found.items() if len(labels) == 1}
    return tuple(
        Probe(f"claim:{place(0, 'id', claim):016x}", claim, single[claim], "upstream")
        for claim in sorted(single, key=lambda claim: (place(seed, "claims", claim), claim))
    )


def _edit(row: Row, identity: str) -> Edit:
    if "claim" in row:
        return _joined(row, identity)
    if "input" in row:
        return _annotated(row, identity)
    if "prompt" in row:
        return _malmen(row, identity)
    raise RecordError("neither 'claim', 'input' (KILT) nor 'prompt' (MALMEN) is here")


def _joined(row: Row, identity: str) -> Edit:
    gold = _label(reading.text(row, "label"))
    return Edit(
        identity=identity,
        prompt=reading.words(row, "claim"),
        target=OTHER[gold],
        subject="",
        rephrases=reading.texts(row, "rephrases"),
        target_true=gold,
    )


def _annotated(row: Row, identity: str) -> Edit:
    """De Cao's record: claim, output[0].answer (gold), alternatives, filtered rephrases."""
    gold = _label(reading.first_answer(row))
    alternatives = reading.texts(row, "alternatives")
    return Edit(
        identity=identity,
        prompt=reading.words(row, "input"),
        target=_label(alternatives[0]) if alternatives else OTHER[gold],
        subject="",
        rephrases=reading.texts(row, "filtered_rephrases"),
        target_true=gold,
    )


def _malmen(row: Row, identity: str) -> Edit:
    """MALMEN's record, which brings its unrelated claim and does not say the gold label."""
    claim, label = reading.text(row, "unrel_prompt"), _label(reading.text(row, "unrel_ans"))
    unrelated = Probe(f"{identity}:unrelated", claim, label, "upstream")
    return Edit(
        identity=identity,
        prompt=reading.words(row, "prompt"),
        target=_label(reading.text(row, "alt")),
        subject="",
        rephrases=reading.texts(row, "equiv_prompt"),
        locality=(unrelated,) if reading.worded(row, claim) else (),
    )


def _label(name: str) -> str:
    if name not in CLASSES:
        raise RecordError(f"the label {name!r} is none of {', '.join(CLASSES)}")
    return CLASSES[name]


def _claims(
    folder: Path, edits: list[Edit], strict: bool
) -> tuple[tuple[Probe, ...], tuple[str, ...], tuple[BadRecord, ...], tuple[str, ...]]:
    """The upstream pool, the file it was read from, that file's bad records, and what else of it
    was left out."""
    own = [(edit.prompt, edit.target_true) for edit in edits if edit.target_true]
    brought = [(probe.prompt, probe.target) for edit in edits for probe in edit.locality]
    path = reading.find(folder, CLAIMS)
    if path is None:
        return in_order([*own, *brought]), (), (), ()
    rows, bad, left_out = reading.collect(path, lambda row, _: _claim(row), strict=strict)
    worded = {text for edit in edits for text in (edit.prompt, *edit.rephrases)}
    worded |= {text for text, _ in brought}
    verifiable = [pair for pair in rows if pair is not None]
    plain = [pair for pair in verifiable if pair[0] not in worded]
    claims = in_order(plain)
    counted = (
        (len(rows) - len(verifiable), "claims that cannot be verified"),
        (len(verifiable) - len(plain), "claims that an edited record holds"),
        (len({text for text, _ in plain}) - len(claims), "claims with both labels"),
    )
    told = (f"{count} {what} of {path.name}" for count, what in counted if count)
    return claims, (path.name,), bad, (*left_out, *told)


def _claim(row: Row) -> tuple[str, str] | None:
    """(claim, class) of a row of FEVER's own files; None if it cannot be verified."""
    claim, label = reading.words(row, "claim"), reading.text(row, "label")
    return None if label == UNVERIFIABLE else (claim, _label(label))
