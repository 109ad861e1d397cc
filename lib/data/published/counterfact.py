"""CounterFact in its published files: ROME's form and the one-paraphrase form of EasyEdit."""

from pathlib import Path

from lib.data.published import reading
from lib.data.published.reading import Row
from lib.data.records import Dataset, Edit, Probe
from lib.errors import RecordError, UsageError

# In the order in which they are looked for.
VARIANTS: dict[str, tuple[str, ...]] = {
    "full": ("counterfact.json", "counterfact.jsonl"),
    "edit": ("edit_10000.jsonl", "counterfact-edit.json"),
    "rome": ("rome_form_1031.jsonl", "counterfact_portability_gpt4.json"),
    "train": ("train_10000.jsonl", "counterfact-train.json"),
    "val": ("val_1919.jsonl", "counterfact-val.json"),
}
ORIGIN = "counterfact.json of the ROME project, or counterfact-edit.json of EasyEdit"

_NOTES = {
    "full": "",
    "edit": "",
    "rome": "1,031 of the 21,919 CounterFact records.",
    "train": "The training half of CounterFact as EasyEdit splits it.",
    "val": "The validation part of CounterFact as EasyEdit splits it.",
}


def load(folder: Path, *, variant: str | None = None, strict: bool = True) -> Dataset:
    """Edits of the first known file in `folder` (or of `variant`), in file order.

    Neighbourhood prompts are probes of kind "neighbour" with the true answer as target; each also
    gives a "distractor": the edit's own statement with the new target in front of it, the harder
    specificity test of the papers that read CounterFact.
    """
    if variant is None:
        for files in VARIANTS.values():
            path = reading.find(folder, files)
            if path is not None:
                break
        else:
            path = reading.require(folder, [f for fs in VARIANTS.values() for f in fs], ORIGIN)
    elif variant in VARIANTS:
        path = reading.require(folder, VARIANTS[variant], ORIGIN)
    else:
        raise UsageError(f"CounterFact has no variant {variant!r}; known: {', '.join(VARIANTS)}.")
    name = next(key for key, files in VARIANTS.items() if path.name.removesuffix(".gz") in files)
    edits, skipped, left_out = reading.collect(
        path, lambda row, index: _edit(row, f"{reading.stem(path)}:{index}"), strict=strict
    )
    return Dataset(
        name=f"CounterFact ({reading.stem(path)})",
        edits=tuple(edits),
        sources=(path.name,),
        substitution=_NOTES[name],
        skipped=skipped,
        left_out=left_out,
    )


def probes(
    identity: str, statement: str, neighbours: tuple[tuple[str, str], ...]
) -> tuple[Probe, ...]:
    """Neighbour probes for (prompt, true answer) pairs, then the same behind `statement`."""
    plain = [
        Probe(f"{identity}:neighbour:{number}", prompt, target, "neighbour")
        for number, (prompt, target) in enumerate(neighbours)
    ]
    distracted = [
        Probe(f"{identity}:distractor:{number}", f"{statement}. {prompt}", target, "distractor")
        for number, (prompt, target) in enumerate(neighbours)
    ]
    return (*plain, *distracted)


def _edit(row: Row, identity: str) -> Edit:
    if "requested_rewrite" in row:
        return _rome(row, identity)
    if "prompt" in row:
        return _easyedit(row, identity)
    raise RecordError("neither 'requested_rewrite' (ROME) nor 'prompt' (EasyEdit) is here")


def _rome(row: Row, identity: str) -> Edit:
    rewrite = row["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise RecordError("the field 'requested_rewrite' is not an object")
    template, subject = reading.text(rewrite, "prompt"), reading.text(rewrite, "subject")
    if template.count("{}") != 1:
        raise RecordError(f"the prompt {template!r} does not hold the place of the subject '{{}}'")
    targets = {}
    for field in ("target_new", "target_true"):
        value = rewrite.get(field)
        if not isinstance(value, dict):
            raise RecordError(f"the field {field!r} is missing")
        targets[field] = reading.text(value, "str")
    prompt = reading.as_words(template.replace("{}", subject), "prompt")
    neighbours = tuple(
        (text, targets["target_true"]) for text in reading.texts(row, "neighborhood_prompts")
    )
    return Edit(
        identity=identity,
        prompt=prompt,
        target=reading.as_words(targets["target_new"], "target_new"),
        subject=subject.strip(),
        subject_at=template.index("{}") + len(subject) - len(subject.lstrip()),
        rephrases=reading.texts(row, "paraphrase_prompts"),
        locality=probes(identity, f"{prompt} {targets['target_new']}", neighbours),
        relation=str(rewrite.get("relation_id") or ""),
        target_true=targets["target_true"],
        portability=reading.portability(row, identity),
    )


def _easyedit(row: Row, identity: str) -> Edit:
    prompt, target = reading.words(row, "prompt"), reading.words(row, "target_new")
    neighbours: tuple[tuple[str, str], ...] = ()
    if row.get("locality_prompt"):
        pair = reading.text(row, "locality_prompt"), reading.text(row, "locality_ground_truth")
        neighbours = (pair,) if reading.worded(row, pair[0]) else ()
    return Edit(
        identity=identity,
        prompt=prompt,
        target=target,
        subject=reading.subject_in(prompt, reading.text(row, "subject")),
        rephrases=reading.texts(row, "rephrase_prompt"),
        locality=probes(identity, f"{prompt} {target}", neighbours),
        target_true=reading.text(row, "ground_truth"),
    )
