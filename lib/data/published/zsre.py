"""zsRE in its published files: MEND's raw form, the trimmed form of EasyEdit, and KnowEdit."""

from pathlib import Path

from lib.data.published import reading
from lib.data.published.reading import NoNewAnswerError, Row
from lib.data.records import Dataset, Edit, Probe
from lib.errors import RecordError, UsageError

# In the order in which they are looked for (MELO reads the raw MEND training file).
VARIANTS: dict[str, tuple[str, ...]] = {
    "mend": ("zsre_train.jsonl", "structured_zeroshot-train-new_annotated_final.jsonl"),
    "knowedit": ("knowedit_1304_rephrase10.jsonl", "ZsRE-test-all.json"),
    "train": ("train_10000.jsonl", "zsre_mend_train_10000.json", "zsre_mend_train.json"),
    "eval": ("eval_1037.jsonl", "zsre_mend_eval.json", "zsre_mend_edit.json"),
    "mend-dev": ("structured_zeroshot-dev-new_annotated_final.jsonl",),
    "train-full": ("train_1000_full.jsonl", "zsre_mend_train.json"),
}
ORIGIN = "the zsRE files linked from the MEND repository, or the data folder of EasyEdit / KnowEdit"

_NOTES = {
    "mend": "",
    "mend-dev": "The development file stands in for the training file that MELO reads.",
    "knowedit": (
        "KnowEdit's zsRE test records stand in for MEND's training file: the rephrases were "
        "written by a language model, and the target is the file's counterfactual target_new, "
        "not the true answer."
    ),
    "train": "Trimmed MEND training records: one rephrase each, edited toward the true answer.",
    "eval": "Trimmed MEND evaluation records: one rephrase each, and the target is the file's "
    "counterfactual alt, not the true answer.",
    "train-full": "Trimmed MEND training records: one rephrase each, and the target is the file's "
    "counterfactual alt, not the true answer.",
}


def load(folder: Path, *, variant: str | None = None, strict: bool = True) -> Dataset:
    """Edits of the first known file in `folder` (or of `variant`), in file order.

    Trimmed records carry their NQ question as a probe of kind "upstream", worded as in the file;
    `upstream` collects these questions once each; those whose `alt` is empty are left out and
    counted, as official code leaves them out (comeba_hk 5.2). KnowEdit's locality prompts are kind
    "near".
    """
    path, name = choose(folder, variant)
    edits, skipped, left_out = reading.collect(
        path, lambda row, index: _edit(row, f"{reading.stem(path)}:{index}"), strict=strict
    )
    upstream = {p.prompt: p for edit in edits for p in edit.locality if p.kind == "upstream"}
    return Dataset(
        name=f"zsRE ({reading.stem(path)})",
        edits=tuple(edits),
        upstream=tuple(upstream.values()),
        sources=(path.name,),
        substitution=_NOTES[name],
        skipped=skipped,
        left_out=left_out,
    )


def choose(folder: Path, variant: str | None = None) -> tuple[Path, str]:
    """The file to read and the variant that describes it: MEND's whole training file serves as
    "train" too, but is "train-full"."""
    if variant is not None and variant not in VARIANTS:
        raise UsageError(f"zsRE has no variant {variant!r}; known: {', '.join(VARIANTS)}.")
    wanted = VARIANTS if variant is None else {variant: VARIANTS[variant]}
    files = list(dict.fromkeys(name for names in wanted.values() for name in names))
    path = reading.require(folder, files, ORIGIN)
    plain = path.name.removesuffix(".gz")
    return path, next(name for name in reversed(VARIANTS) if plain in VARIANTS[name])


def _edit(row: Row, identity: str) -> Edit:
    if "input" in row:
        return _raw(row, identity)
    if "src" in row:
        return _trimmed(row, identity)
    if "target_new" in row:
        return _knowedit(row, identity)
    raise RecordError("neither 'input' (MEND), 'src' (trimmed) nor 'target_new' (KnowEdit) is here")


def _raw(row: Row, identity: str) -> Edit:
    """MEND's own record: question, output[0].answer (the true answer), filtered rephrases."""
    prompt = reading.words(row, "input")
    meta = row.get("meta")
    surfaces = reading.texts(meta, "sub_surface") if isinstance(meta, dict) else ()
    subjects = [name.strip() for name in (*reading.texts(row, "subject"), *surfaces)]
    return Edit(
        identity=identity,
        prompt=prompt,
        target=reading.as_words(reading.first_answer(row), "output"),
        # Several surface forms may be listed; only one that stands in the question is of use.
        subject=next((subject for subject in subjects if subject in prompt), ""),
        rephrases=reading.texts(row, "filtered_rephrases"),
    )


def _trimmed(row: Row, identity: str) -> Edit:
    if row.get("alt") == "":
        raise NoNewAnswerError("the field 'alt' is empty")
    prompt = reading.words(row, "src")
    answers = reading.texts(row, "answers")
    locality = ()
    if row.get("loc"):
        asked, answer = reading.text(row, "loc"), reading.text(row, "loc_ans")
        if reading.worded(row, asked):
            locality = (Probe(f"{identity}:nq", asked, answer, "upstream"),)
    return Edit(
        identity=identity,
        prompt=prompt,
        target=reading.words(row, "alt"),
        subject=reading.subject_in(prompt, reading.text(row, "subject")),
        rephrases=reading.texts(row, "rephrase"),
        locality=locality,
        target_true=answers[0] if answers else "",
        portability=reading.portability(row, identity),
    )


def _knowedit(row: Row, identity: str) -> Edit:
    prompt = reading.words(row, "prompt")
    groups = row.get("locality") or {}
    if not isinstance(groups, dict):
        raise RecordError("the field 'locality' is not an object")
    found = [item for group in groups.values() for item in group or ()]
    near = (
        Probe(
            f"{identity}:near:{number}",
            reading.text(item, "prompt"),
            reading.text(item, "ground_truth"),
            "near",
        )
        for number, item in enumerate(found)
    )
    return Edit(
        identity=identity,
        prompt=prompt,
        target=reading.words(row, "target_new"),
        # Three published records name their subject by an alias that the question does not use.
        subject=reading.spelled_in(prompt, reading.text(row, "subject")),
        rephrases=(
            *reading.texts(row, "rephrase_prompt"),
            *reading.texts(row, "generate_prompt"),
        ),
        locality=tuple(probe for probe in near if reading.worded(row, probe.prompt)),
        target_true=reading.as_text(row["ground_truth"], "ground_truth")
        if row.get("ground_truth")
        else "",
    )
