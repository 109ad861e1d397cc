"""What is learned before any edit, apart from it: facts for editors, tasks for classifiers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from lib.data.order import place, round_robin
from lib.data.records import BadRecord, Dataset, Edit, Probe, Stream
from lib.data.streams import PromptStyle
from lib.errors import RecordError
from lib.storage.fingerprints import content_hash

Choice = Callable[[Edit], tuple[str, ...]]  # of a fact's rephrases


@dataclass(frozen=True)
class TrainingFacts:
    """Each `Edit` has at least one rephrase, and in `locality` one unrelated prompt with its gold
    answer (kind "upstream"). Subjects, facts and unrelated prompts of `train`, of `valid` and of
    the test stream are disjoint (of documents, some may be measured for locality). `skipped` and
    `left_out` are those of the dataset that they come from."""

    name: str
    train: tuple[Edit, ...]
    valid: tuple[Edit, ...]
    sources: tuple[str, ...] = ()
    substitution: str = ""
    skipped: tuple[BadRecord, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """sha256 over all facts; two equal hashes are the same training data."""
        return content_hash([self.train, self.valid])


def training_facts(
    records: Dataset,
    test: Stream,
    *,
    n_train: int | None,
    n_valid: int,
    style: PromptStyle,
    held_out: int = 1,
    finish: Callable[[list[Edit]], list[Edit]] = list,
) -> TrainingFacts:
    """The first `n_valid` and the next `n_train` facts (None: all) that share no subject, fact or
    prompt with `test`: one record of each relation in turn, in file order.

    An unrelated prompt is the record's own upstream question, or the next of `records.upstream`;
    these are used once as far as they last. `held_out` is the number of rephrases that `test`
    measures: validation keeps these wordings, training the others where a record has more, a
    drawn one of them first. `finish` may change facts and leave some out. Raises RecordError if
    there are too few.
    """
    maker = _Maker(records, test, style, finish)
    valid = maker.take(n_valid, lambda fact: fact.rephrases[:held_out] or fact.rephrases)
    train = maker.take(
        n_train, lambda fact: _turned(fact, fact.rephrases[held_out:] or fact.rephrases)
    )
    return _facts_of(records, train, valid)


def document_facts(
    records: Dataset, test: Stream, *, n_train: int | None, n_valid: int
) -> TrainingFacts:
    """Facts from the documents that a classifier learned: every second one is to be given another
    class, which is drawn, and the one after it, with its own class, is the unrelated prompt. A
    document has no rephrase but itself.

    The first `n_valid` of these and the next `n_train` (None: all); documents that `test` measures
    locality on come last, and none is edited. Raises RecordError if there are too few.
    """
    edited, measured = ({row.prompt for row in rows} for rows in (test.edits, test.upstream))
    learned = [probe for probe in records.upstream if probe.prompt not in edited]
    learned.sort(key=lambda probe: probe.prompt in measured)
    facts = [
        _turned_document(probe, other, records.classes)
        for probe, other in zip(learned[::2], learned[1::2], strict=False)
    ]
    last = len(facts) if n_train is None else n_valid + n_train
    if not n_valid < last <= len(facts):
        raise RecordError(
            f"{records.name} gives {len(facts)} training documents for {n_valid} + "
            f"{n_train or 'any'}; lower training.n_train or training.n_valid of the setting"
        )
    valid, train = tuple(facts[:n_valid]), tuple(facts[n_valid:last])
    return _facts_of(records, train, valid)


def _facts_of(records: Dataset, train: tuple[Edit, ...], valid: tuple[Edit, ...]) -> TrainingFacts:
    told = (records.sources, records.substitution, records.skipped, records.left_out)
    return TrainingFacts(records.name, train, valid, *told)


def _turned_document(probe: Probe, other: Probe, classes: int) -> Edit:
    turn = 1 + place(0, "turn", probe.identity) % (classes - 1)
    return Edit(
        identity=probe.identity,
        prompt=probe.prompt,
        target=str((int(probe.target) + turn) % classes),
        subject="",
        rephrases=(probe.prompt,),
        locality=(other,),
        relation=probe.identity,
    )


class _Maker:
    """Makes facts of the records that share nothing with the parts taken before."""

    def __init__(
        self,
        records: Dataset,
        test: Stream,
        style: PromptStyle,
        finish: Callable[[list[Edit]], list[Edit]],
    ) -> None:
        self.name, self.style, self.finish = records.name, style, finish
        self.facts = {edit.relation for edit in test.edits}
        self.subjects = {edit.subject.casefold() for edit in test.edits} - {""}
        tested = (*test.edits, *test.holdout, *test.upstream)
        self.prompts = {style.key(row.prompt) for row in tested}
        self.pool = {style.key(p.prompt): p for p in map(style.probe, records.upstream)}
        apart = [fact for fact in map(self._styled, records.edits) if self._is_apart(fact)]
        self.records = iter(round_robin(apart))

    def take(self, count: int | None, choose: Choice) -> tuple[Edit, ...]:
        """The next `count` facts with the chosen ones of their rephrases; then bars all of them."""
        spare = cycle([probe for key, probe in self.pool.items() if key not in self.prompts])
        candidates = self._facts(spare, choose)
        taken: list[Edit] = []
        while count is None or len(taken) < count:
            chunk = list(islice(candidates, None if count is None else count - len(taken)))
            if not chunk:
                break
            taken += self.finish(chunk)
        if len(taken) < (1 if count is None else count):
            raise RecordError(
                f"{self.name} gives only {len(taken)} of {count or 'any'} training facts with a "
                "rephrase and an unrelated prompt beside the edited ones; lower training.n_train "
                "or training.n_valid of the setting, or use a larger file"
            )
        self._bar(taken)
        return tuple(taken)

    def _styled(self, record: Edit) -> Edit:
        fact = self.style.edit(record)
        rephrases = tuple(dict.fromkeys(text for text in fact.rephrases if text != fact.prompt))
        own = tuple(self.style.probe(p) for p in record.locality if p.kind == "upstream")
        return replace(fact, rephrases=rephrases, locality=own[:1])

    def _is_apart(self, fact: Edit) -> bool:
        texts = (fact.prompt, *fact.rephrases, *(probe.prompt for probe in fact.locality))
        return (
            bool(fact.rephrases)
            and fact.identity not in self.facts
            and fact.subject.casefold() not in self.subjects
            and all(self.style.key(text) not in self.prompts for text in texts)
        )

    def _facts(self, spare: Iterator[Probe], choose: Choice) -> Iterator[Edit]:
        for fact in self.records:
            if self._is_apart(fact):
                others = (p for p in islice(spare, 2) if p.prompt != fact.prompt)
                probe = fact.locality[0] if fact.locality else next(others, None)
                if probe is not None:
                    yield replace(fact, rephrases=choose(fact), locality=(probe,))

    def _bar(self, taken: Sequence[Edit]) -> None:
        self.facts |= {fact.identity for fact in taken}
        self.subjects |= {fact.subject.casefold() for fact in taken} - {""}
        for fact in taken:
            texts = (fact.prompt, *fact.rephrases, *(probe.prompt for probe in fact.locality))
            self.prompts |= {self.style.key(text) for text in texts}


def _turned(fact: Edit, rephrases: tuple[str, ...]) -> tuple[str, ...]:
    """The rephrases from a drawn one on, so that the first of each fact are of all wordings."""
    start = place(0, "rephrase", fact.identity) % len(rephrases)
    return (*rephrases[start:], *rephrases[:start])


Text = tuple[str, str]  # text, class number


@dataclass(frozen=True)
class UpstreamTask:
    """Texts to learn, and texts to score what was learned: of the same kind ("claims" or
    "documents") and of the edited one ("edits")."""

    learned: tuple[Text, ...]
    held_out: dict[str, tuple[Text, ...]]
    kind: str = "claims"

    def apart_from(self, dataset: Dataset) -> Dataset:
        """The dataset without the learned and the plain held-out claims. Of documents, `upstream`
        becomes the learned ones (melo 4: locality on the train split), `near` those held out."""
        if self.kind == "documents":
            return self._told_apart(dataset)
        used = {text for text, _ in (*self.learned, *self.held_out["claims"])}

        def is_apart(edit: Edit) -> bool:
            return not used & {edit.prompt, *(probe.prompt for probe in edit.locality)}

        return replace(
            dataset,
            edits=tuple(filter(is_apart, dataset.edits)),
            upstream=tuple(probe for probe in dataset.upstream if probe.prompt not in used),
        )

    def _told_apart(self, dataset: Dataset) -> Dataset:
        first, last = len(self.learned), len(self.learned) + len(self.held_out["documents"])
        held_out = tuple(replace(probe, kind="near") for probe in dataset.upstream[first:last])
        return replace(dataset, upstream=dataset.upstream[:first], near=held_out)


def upstream_task(source: Dataset, tune: Mapping[str, Any]) -> UpstreamTask:
    """The upstream task that a setting's `tune` describes."""
    if "documents" in tune:
        return document_task(source, documents=tune["documents"], held_out=tune["held_out"])
    names = ("claims", "held_out", "taught")
    return claim_task(source, **{name: tune[name] for name in names if name in tune})


def claim_task(
    source: Dataset, *, claims: int | None, held_out: int, taught: int | None = None
) -> UpstreamTask:
    """The last `claims` of the upstream pool (None: half of it) with `taught` claims of the edited
    kind about other subjects, where the data has any (None: half as many); and as held-out claims
    the `held_out` before them and the gold classes of the first edits.

    Raises RecordError if the pool holds no more than these.
    """
    pool = _texts(source.upstream)
    count = len(pool) // 2 if claims is None else claims
    if len(pool) <= count + held_out:
        raise RecordError(
            f"{source.name} brings {len(pool)} upstream claims, and {count} to learn with "
            f"{held_out} held out leave none to measure locality on; lower tune.claims"
        )
    last = len(pool) - count
    edited = [(edit.prompt, edit.target_true) for edit in source.edits if edit.target_true]
    same_kind = _texts(source.taught)[: count // 2 if taught is None else taught]
    return UpstreamTask(
        learned=(*pool[last:], *same_kind),
        held_out={"claims": pool[last - held_out : last], "edits": tuple(edited[:held_out])},
    )


def document_task(source: Dataset, *, documents: int | None, held_out: int) -> UpstreamTask:
    """The first `documents` of the upstream pool, at most all but `held_out` of it (None: these);
    held out are the next `held_out` documents, and the first edits with their classes.

    Raises RecordError if the pool holds no more than `held_out`.
    """
    pool = _texts(source.upstream)
    most = len(pool) - held_out
    if most < 1:
        raise RecordError(
            f"{source.name} brings {len(pool)} upstream documents, and {held_out} held out leave "
            "none to learn; lower tune.held_out"
        )
    count = most if documents is None else min(documents, most)
    edited = tuple((edit.prompt, edit.target) for edit in source.edits[:held_out])
    return UpstreamTask(
        learned=pool[:count],
        held_out={"documents": pool[count : count + held_out], "edits": edited},
        kind="documents",
    )


def _texts(probes: Iterable[Probe]) -> tuple[Text, ...]:
    return tuple((probe.prompt, probe.target) for probe in probes)
