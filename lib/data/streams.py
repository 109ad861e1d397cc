"""From a dataset to the ordered stream that a paper's protocol edits."""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from lib.data.records import BadRecord, Dataset, Edit, Probe, Stream
from lib.errors import RecordError, UsageError

NQ_MARK = "nq question: "


@dataclass(frozen=True)
class PromptStyle:
    """`template` wraps every prompt ("Question: {}\\nAnswer:"). `true_targets`: edit towards the
    true answer where a record has one. Upstream questions: `question_mark` ends them with "?",
    `keep_mark` leaves the zsRE files' "nq question: " in front of them (MALMEN, ref 4),
    `upstream_template` wraps them in place of `template`, where edits are statements.

    Raises UsageError for a template without exactly one {}.
    """

    template: str = "{}"
    true_targets: bool = False
    question_mark: bool = False
    keep_mark: bool = False
    upstream_template: str = ""

    def __post_init__(self) -> None:
        for template in (self.template, self.upstream_template or "{}"):
            if template.count("{}") != 1:
                raise UsageError(f"a prompt template needs exactly one {{}}: {template!r}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "PromptStyle":
        """The style among a stream's options."""
        return cls(**{f.name: options[f.name] for f in fields(cls) if f.name in options})

    def wrap(self, prompt: str) -> str:
        """The prompt in its template."""
        return self.template.format(prompt)

    def wrapped(self, record: Edit) -> Edit:
        """The record with its prompt in the template, and the subject where it stood in it."""
        place, head = record.subject_span, self.template.partition("{}")[0].format()
        return replace(
            record,
            prompt=self.wrap(record.prompt),
            subject=record.subject.strip(),
            subject_at=None if place is None else len(head) + place[0],
        )

    def edit(self, record: Edit) -> Edit:
        """The record with prompt, rephrases and target as this style wants them."""
        true = self.true_targets and record.target_true
        return replace(
            self.wrapped(record),
            rephrases=tuple(self.wrap(text) for text in record.rephrases),
            target=record.target_true if true else record.target,
            # What follows from the file's target does not follow from the true one.
            portability=() if true else tuple(self.probe(probe) for probe in record.portability),
        )

    def probe(self, probe: Probe) -> Probe:
        """The probe with its prompt as this style wants it."""
        text = probe.prompt
        if probe.kind == "upstream":
            text = text if self.keep_mark else text.removeprefix(NQ_MARK)
            text += "?" if self.question_mark and not text.endswith("?") else ""
            if self.upstream_template:
                return replace(probe, prompt=self.upstream_template.format(text))
        return replace(probe, prompt=self.wrap(text))

    def key(self, prompt: str) -> str:
        """What a wrapped prompt asks: equal for two that differ by the mark, by case or by the
        closing question mark alone."""
        head, tail = self.template.split("{}")
        asked = prompt[len(head) : len(prompt) - len(tail)]
        return asked.removeprefix(NQ_MARK).casefold().rstrip(" ?")


# What a setting's `stream` holds beside the arguments of the function that makes it.
ELSEWHERE = ("kind", "limit", "unanswered", "flip_predictions", "n_general", "first")


def stream_of(spec: dict[str, Any], dataset: Dataset) -> Stream:
    """The stream that a setting's `stream` describes; with `first`, the beginning of it."""
    kind = spec["stream"].get("kind", "balanced")
    if kind not in STREAMS:
        raise UsageError(f"there is no stream of kind {kind!r}; known: {', '.join(STREAMS)}")
    options = {key: value for key, value in spec["stream"].items() if key not in ELSEWHERE}
    stream = STREAMS[kind](dataset, **options)
    return stream.beginning(spec["stream"].get("first") or len(stream.edits))


def readable_stream(
    dataset: Dataset,
    make: Callable[[Dataset], Stream],
    check: Callable[[Edit | Probe], None],
    *,
    strict: bool = True,
) -> Stream:
    """The stream that `make` gives of the dataset. `check` raises a RecordError for a prompt that
    is, with its answer, longer than the backbone can read.

    `strict`: the first such prompt ends it. Otherwise the record that it belongs to, or the
    question that it is, is left out and listed in `skipped`, and the next ones of the dataset take
    the place.
    """
    skipped: dict[str, BadRecord] = {}
    while True:
        try:
            made, unread = make(dataset), {}
        except RecordError as error:
            if not skipped:
                raise
            first = next(iter(skipped.values())).reason
            raise RecordError(f"{error}; {len(skipped)} were left out. {first}") from error
        for row in (*made.edits, *made.holdout, *made.upstream, *made.near, *made.portability):
            try:
                check(row)
            except RecordError as error:
                name = re.sub(r"#\d+$", "", row.identity)  # of a wording: its record
                unread[name] = BadRecord("; ".join(dataset.sources), 0, str(error))
                rest = _without(dataset, unread)
                if strict or rest == dataset:
                    raise
        if not unread:
            return replace(made, skipped=tuple(skipped.values()))
        skipped, dataset = skipped | unread, rest


def _without(dataset: Dataset, names: Container[str]) -> Dataset:
    """The dataset without the records, and without the probes, of these identities."""

    def others(probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
        return tuple(probe for probe in probes if probe.identity not in names)

    return replace(
        dataset,
        edits=tuple(
            replace(edit, locality=others(edit.locality), portability=others(edit.portability))
            for edit in dataset.edits
            if edit.identity not in names
        ),
        upstream=others(dataset.upstream),
        near=others(dataset.near),
    )


def pool(dataset: Dataset, kind: str, count: int) -> tuple[Probe, ...]:
    """The first `count` locality probes of a kind: "upstream", or one that the edits carry, where
    there is no pool of it."""
    carried = (probe for edit in dataset.edits for probe in edit.locality if probe.kind == kind)
    shared = {"upstream": dataset.upstream, "near": dataset.near or carried}
    found: Iterable[Probe] = shared.get(kind, carried)
    kept, seen = [], set()
    for probe in found:
        if len(kept) == count:
            break
        if probe.prompt not in seen:
            seen.add(probe.prompt)
            kept.append(probe)
    return tuple(kept)


def balanced_stream(
    dataset: Dataset,
    *,
    n_edits: int,
    batch_size: int,
    seed: int,
    max_rephrases: int = 16,
    n_upstream: int = 1000,
    n_near: int = 0,
    template: str = "{}",
) -> Stream:
    """MELO's zsRE stream (melo 4, official code).

    In file order, records without a rephrase or with an answer that was already used are skipped.
    The question and the first half of its rephrases are edits, the other half is held out; the
    edits are the first `n_edits` of them in random order. The holdout here is the *intended* one:
    rephrases of edited facts that no edit uses (the released code scored the edits themselves).
    `template` wraps every prompt, edits and probes alike ("Question: {}\\nAnswer:").
    """
    inner: list[Edit] = []
    outer: list[list[Edit]] = []
    answers: set[str] = set()
    for record in dataset.edits:
        if len(inner) >= n_edits:
            break
        if not record.rephrases or record.target in answers:
            continue
        answers.add(record.target)
        others = [text for text in dict.fromkeys(record.rephrases) if text != record.prompt]
        kept = others[:max_rephrases]
        half = len(kept) // 2
        inner += [_wording(record, i, text) for i, text in enumerate((record.prompt, *kept[:half]))]
        outer.append([_wording(record, half + 1 + i, text) for i, text in enumerate(kept[half:])])
    if len(inner) < n_edits:
        raise RecordError(
            f"{dataset.name} gives only {len(inner)} edits with distinct answers and rephrases, "
            f"{n_edits} were asked for; lower n_edits or use a larger file"
        )
    order = torch.randperm(n_edits, generator=torch.Generator().manual_seed(seed)).tolist()
    edits = tuple(inner[index] for index in order)
    edited = {edit.relation for edit in edits}
    taken = {edit.prompt for edit in edits}
    holdout = tuple(
        edit
        for group in outer
        for edit in group
        if edit.relation in edited and edit.prompt not in taken
    )
    style = PromptStyle(template)

    def probes(kind: str, count: int) -> tuple[Probe, ...]:
        found = pool(dataset, kind, count)
        return tuple(replace(probe, prompt=style.wrap(probe.prompt)) for probe in found)

    return Stream(
        name=dataset.name,
        edits=tuple(map(style.wrapped, edits)),
        batch_size=batch_size,
        holdout=tuple(map(style.wrapped, holdout)),
        upstream=probes("upstream", n_upstream),
        near=probes("near", n_near),
        notes=(f"{len(edited)} facts, {len(answers)} distinct answers",),
    )


def record_stream(
    dataset: Dataset,
    *,
    n_edits: int,
    batch_size: int,
    seed: int,
    max_rephrases: int = 1,
    n_near: int = 2,
    n_upstream: int = 1,
    n_portability: int = 0,
    dedup_subjects: bool = False,
    need_subject: bool = True,
    template: str = "{}",
    true_targets: bool = False,
    question_mark: bool = False,
    keep_mark: bool = False,
    upstream_template: str = "",
) -> Stream:
    """Whole records and everything that belongs to them: the stream of COMEBA-HK (ref 5) and of
    MALMEN (malmen 4).

    Edits are the first `n_edits` records with a subject, in file order for seed 0 (official code)
    and shuffled for other seeds; `dedup_subjects` keeps the first record of each subject. Beside
    each edit stand its first `max_rephrases` rephrases (as the file has them: 15 of EasyEdit's
    10,000 CounterFact rephrases repeat their prompt, and the official code scores them), its first
    `n_near` neighbours or near questions, its first `n_portability` questions about what follows
    from it, where it has any, and its first `n_upstream` upstream questions; a record without any
    takes the next ones of the dataset's pool. `owners` says which row belongs to which
    edit. `need_subject`: leave records without a subject out. The last five options are those of
    `PromptStyle`; by default questions lose the zsRE files' mark "nq question: " (ref 5.2). Raises
    RecordError if there are too few records or questions.
    """
    style = PromptStyle(template, true_targets, question_mark, keep_mark, upstream_template)
    chosen = chosen_records(dataset, n_edits, dedup_subjects, need_subject)
    chosen = [style.edit(record) for record in chosen]
    if seed:
        generator = torch.Generator().manual_seed(seed)
        chosen = [chosen[i] for i in torch.randperm(n_edits, generator=generator).tolist()]
    groups = [
        (
            _rephrasings(record)[:max_rephrases],
            upstream,
            [style.probe(p) for p in record.locality if p.kind in ("neighbour", "near")][:n_near],
            list(record.portability[:n_portability]),
        )
        for record, upstream in zip(
            chosen, _own_or_next(dataset, chosen, n_upstream, style), strict=True
        )
    ]
    rows = {
        name: [(index, row) for index, group in enumerate(groups) for row in group[place]]
        for place, name in enumerate(("holdout", "upstream", "near", "portability"))
    }
    return Stream(
        name=dataset.name,
        edits=tuple(_wording(record, 0, record.prompt) for record in chosen),
        batch_size=batch_size,
        notes=(f"{n_edits} records, {len({record.subject for record in chosen})} subjects",),
        owners={name: tuple(index for index, _ in found) for name, found in rows.items()},
        **{name: tuple(row for _, row in found) for name, found in rows.items()},
    )


def document_stream(
    dataset: Dataset,
    *,
    n_edits: int,
    batch_size: int,
    n_upstream: int,
    n_near: int = 0,
    seed: int = 0,
) -> Stream:
    """MELO's SCOTUS stream (melo 4): the first `n_edits` documents in file order, whatever `seed`
    is, and whether or not the classifier has them right.

    `upstream` are the first documents that the classifier learned from, `near` the first that were
    held out of them (`lib.data.training`). Raises RecordError if there are too few edits.
    """
    if len(dataset.edits) < n_edits:
        raise RecordError(
            f"{dataset.name} gives only {len(dataset.edits)} documents to edit, {n_edits} were "
            "asked for; lower n_edits or use a larger file"
        )
    return Stream(
        name=dataset.name,
        edits=dataset.edits[:n_edits],
        batch_size=batch_size,
        upstream=pool(dataset, "upstream", n_upstream),
        near=pool(dataset, "near", n_near),
        notes=(
            f"{n_edits} documents of {len({e.target for e in dataset.edits[:n_edits]})} classes",
        ),
    )


def chosen_records(
    dataset: Dataset, n_edits: int, dedup_subjects: bool = False, need_subject: bool = True
) -> list[Edit]:
    """The records that a `record_stream` edits, in file order."""
    chosen: list[Edit] = []
    subjects: set[str] = set()
    for record in dataset.edits:
        named = bool(record.subject) or not need_subject
        if named and not (dedup_subjects and record.subject in subjects):
            subjects.add(record.subject)
            chosen.append(record)
        if len(chosen) == n_edits:
            return chosen
    kind = "records with subjects of their own" if dedup_subjects else "records with a subject"
    raise RecordError(
        f"{dataset.name} gives only {len(chosen)} {kind if need_subject else 'records'}, {n_edits} "
        "were asked for; lower n_edits, raise the setting's limit (and known, where it has one), "
        "or use a larger file"
    )


def _rephrasings(record: Edit) -> list[Edit]:
    texts = dict.fromkeys(record.rephrases)
    return [_wording(record, number, text) for number, text in enumerate(texts, start=1)]


def _own_or_next(
    dataset: Dataset, chosen: list[Edit], count: int, style: PromptStyle
) -> Iterator[list[Probe]]:
    """Each record's own upstream questions, or the next unused ones of the pool."""
    own = [[probe for probe in record.locality if probe.kind == "upstream"] for record in chosen]
    taken = {probe.prompt for probes in own for probe in probes}
    edited = {text for record in chosen for text in (record.prompt, *record.rephrases)}
    spare = [
        probe
        for probe in pool(dataset, "upstream", len(dataset.upstream))
        if probe.prompt not in taken and style.wrap(probe.prompt) not in edited
    ]
    wanted = count * sum(not probes for probes in own)
    if len(spare) < wanted:
        raise RecordError(
            f"{dataset.name} brings {len(spare)} upstream questions for {wanted} places; add "
            "questions (nq/ in the data folder), lower n_edits or n_upstream, or set it to 0"
        )
    for probes in own:
        taking = probes[:count] if probes else [spare.pop(0) for _ in range(count)]
        yield [style.probe(probe) for probe in taking]


def _wording(record: Edit, number: int, prompt: str) -> Edit:
    """One wording of a fact as an edit of its own; `relation` then names the fact."""
    return replace(
        record,
        identity=f"{record.identity}#{number}",
        prompt=prompt,
        subject=record.subject if record.subject in prompt else "",
        subject_at=record.subject_at if prompt == record.prompt else None,
        rephrases=(),
        locality=(),
        relation=record.identity,
    )


def passage_stream(
    dataset: Dataset,
    *,
    n_edits: int,
    batch_size: int,
    seed: int,
    n_near: int = 0,
    n_upstream: int = 1000,
) -> Stream:
    """MELO's hallucination stream (melo 4): the first `n_edits` sentences to correct, in data order
    whatever the seed, batch after batch.

    `near` are accurate sentences (ARR), `upstream` running texts, nothing is held out; `relation`
    names the passage. Raises RecordError if there are too few edits.
    """
    chosen = dataset.edits[:n_edits]
    if len(chosen) < n_edits:
        raise RecordError(
            f"{dataset.name} gives only {len(chosen)} sentences to correct, {n_edits} were asked "
            "for; lower n_edits, raise known (sentences read), or use a larger file"
        )
    return Stream(
        name=dataset.name,
        edits=tuple(replace(edit, rephrases=(), locality=()) for edit in chosen),
        batch_size=batch_size,
        upstream=pool(dataset, "upstream", n_upstream),
        near=pool(dataset, "near", n_near),
        notes=(f"{n_edits} sentences of {len({e.relation for e in chosen})} passages",),
    )


STREAMS = {
    "balanced": balanced_stream, "records": record_stream, "documents": document_stream,
    "passages": passage_stream,
}  # fmt: skip
