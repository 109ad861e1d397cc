"""Natural Questions in its published files: question and answer(s), one pool of upstream probes."""

from pathlib import Path

from lib.data.published import reading
from lib.data.published.reading import Row
from lib.data.records import Dataset, Probe
from lib.errors import RecordError, UsageError

VARIANTS: dict[str, tuple[str, ...]] = {
    "train": ("nq_train.json", "nq_train.jsonl"),
    "zsre": ("from_zsre_locality.jsonl",),
    "dev": ("open_dev_3610.jsonl", "NQ-open.dev.jsonl"),
    "efficientqa": ("efficientqa_dev_1800.jsonl", "NQ-open.efficientqa.dev.1.1.jsonl"),
}
ORIGIN = "nq_train.json linked from the MEND repository, or NQ-open.dev.jsonl of Natural Questions"

_NOTES = {
    "train": "",
    "zsre": "The NQ questions that MEND attached to zsRE stand in for nq_train.json.",
    "dev": "The NQ-open development questions stand in for nq_train.json.",
    "efficientqa": "The EfficientQA development questions stand in for nq_train.json.",
}


def load(folder: Path, *, variant: str | None = None, strict: bool = True) -> Dataset:
    """Probes of kind "upstream" in file order, question as in the file, first answer as target."""
    if variant is not None and variant not in VARIANTS:
        raise UsageError(f"NQ has no variant {variant!r}; known: {', '.join(VARIANTS)}.")
    files = [f for fs in VARIANTS.values() for f in fs] if variant is None else VARIANTS[variant]
    path = reading.require(folder, files, ORIGIN)
    name = next(key for key, fs in VARIANTS.items() if path.name.removesuffix(".gz") in fs)
    stem = reading.stem(path)
    rows, unit = None, "line"
    if path.name.removesuffix(".gz") == "nq_train.json":
        columns = reading.document(path)
        if isinstance(columns, dict):
            rows, unit = _columns(path, columns), "question"
    probes, skipped, left_out = reading.collect(
        path, lambda row, index: _probe(row, f"{stem}:{index}"), strict=strict, rows=rows, unit=unit
    )
    return Dataset(
        name=f"NQ ({stem})",
        upstream=tuple(probes),
        sources=(path.name,),
        substitution=_NOTES[name],
        skipped=skipped,
        left_out=left_out,
    )


def _probe(row: Row, identity: str) -> Probe:
    field = "answer" if "answer" in row else "answers"
    return Probe(identity, reading.words(row, "question"), reading.text(row, field), "upstream")


def _columns(path: Path, columns: dict[str, object]) -> list[tuple[int, object]]:
    """MEND's generator writes one object with two lists, `questions` and `answers`: the pairs,
    counted from 1."""
    questions, answers = columns.get("questions"), columns.get("answers")
    if not isinstance(questions, list) or not isinstance(answers, list):
        raise RecordError(f"{path}: the lists 'questions' and 'answers' are missing.")
    if len(questions) != len(answers) or not questions:
        raise RecordError(f"{path}: {len(questions)} questions but {len(answers)} answers.")
    pairs = zip(questions, answers, strict=True)
    return list(enumerate(({"question": q, "answer": a} for q, a in pairs), start=1))
