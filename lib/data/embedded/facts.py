"""The default data, from packages alone: WikiTriple-QA, WikiTriple-CF, NQ-swap originals.

They are substitutes with their own names: zsRE's and CounterFact's records are in no package.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from lib.data.embedded import bigbench
from lib.data.embedded.known import Knowledge
from lib.data.embedded.relations import relations
from lib.data.embedded.triples import Fact, FactStore, facts
from lib.data.order import (
    fresh_answers_first,
    is_probe,
    one_per_subject,
    place,
    round_robin,
    shuffled,
)
from lib.data.published import counterfact
from lib.data.records import Dataset, Edit, Probe
from lib.errors import RecordError


@dataclass(frozen=True)
class Hop:
    """How a statement about a subject goes on to something about its object: the relation's wording
    `form` up to `ending`, then `onward`, answered by the fact `relation` of the object."""

    form: str
    ending: str
    onward: str
    relation: str


_CAPITAL = "a country whose capital is the city of"
HOPS = {
    "country": Hop("canonical", "the country called", _CAPITAL, "country_capital"),
    "city_country": Hop("canonical", "the country of", _CAPITAL, "country_capital"),
    "original_country": Hop("sentence2", "the country called", _CAPITAL, "country_capital"),
    "capital_of": Hop(
        "canonical",
        "the region or country called",
        "a country that lies on the continent of",
        "country_region",
    ),
}


def onward_facts(store: FactStore) -> dict[tuple[str, str], str]:
    """The object of each fact that a hop may end at, by relation and subject; facts with several
    accepted objects are left out."""
    wanted = {hop.relation for hop in HOPS.values()}
    return {
        (fact.relation, fact.subject): fact.object
        for fact in store.facts
        if fact.relation in wanted and len(fact.objects) == 1
    }


def composed(fact: Fact, new: str, onward: Mapping[tuple[str, str], str]) -> tuple[Probe, ...]:
    """What follows from making `new` the object of a fact, if the embedded facts tell; else ().

    Left out where the old and the new object have the same answer: nothing would follow.
    """
    hop = HOPS.get(fact.relation)
    if hop is None:
        return ()
    answer = onward.get((hop.relation, new))
    statement = fact.prompt(hop.form)
    if answer is None or answer == onward.get((hop.relation, fact.object)):
        return ()
    prompt = statement.removesuffix(hop.ending) + hop.onward
    return (Probe(f"{fact.identity}:portability", prompt, answer, "portability"),)


CAP = 250  # facts per relation (section 3 of the data measurements); lifted if `limit` needs more
QA_PROBES, CF_PROBES = 0.15, 0.3  # share of subjects set aside for locality probes
NEAR = 2  # "near" probes for each edit
NEIGHBOURS = 10  # as many as CounterFact has
LONGEST_ANSWER = 4  # words of an NQ answer


@cache
def store() -> FactStore:
    """All embedded facts, read once for each process."""
    return facts()


def candidates(dataset: str, *, seed: int = 0) -> list[Fact]:
    """Facts worth asking a backbone about for `dataset`, the most useful first.

    Give these to `knowledge.known_facts`: a capped pass then covers the first edits that `load`
    would return. For "counterfact" the probes' facts are among them.
    """
    single = single_facts()
    if dataset == "counterfact":
        return round_robin(shuffled(single, seed, "cf"))
    return _qa_order(single, seed, cap=None)


def qa(*, limit: int | None = None, known: Knowledge | None = None, seed: int = 0) -> Dataset:
    """WikiTriple-QA, in the form of zsRE: a question, its stored answer, nine rephrases.

    Without `known`, all single-object facts; with it, those the backbone was asked and answered
    wrongly in every wording asked. Two "near" probes ask for other subjects of the same relation,
    none of which is edited; facts the backbone knows come first. `limit`: number of edits.
    """
    source = store()
    single = single_facts()
    pool = defaultdict(list)
    for fact in shuffled(single, seed, "near"):
        if is_probe(fact, seed, QA_PROBES):
            pool[fact.relation].append(fact)
    if known is not None:
        for facts_ in pool.values():
            facts_.sort(key=lambda fact: known.knows(fact) is not True)  # stable: known ones first
        single = [fact for fact in single if known.knows(fact) is False]
    chosen = _qa_order(single, seed, CAP)
    if limit is not None and len(chosen) < limit:
        chosen = _qa_order(single, seed, None)
    if limit is not None:
        chosen = _enough(chosen, limit, "WikiTriple-QA", known)
    edits = tuple(_question(fact, pool[fact.relation], seed, known) for fact in chosen)
    asked = "" if known is None else " Edits are facts that the backbone answers wrongly."
    return Dataset(
        name="WikiTriple-QA",
        edits=edits,
        upstream=_upstream(source, seed),
        sources=source.sources,
        substitution=(
            "Facts of Wikidata and GeoNames asked with our own questions stand in for zsRE; "
            f"{_pool_note(source)} {_relations_note(source, edits)}{asked}"
        ),
    )


def cf(*, limit: int | None = None, known: Knowledge | None = None, seed: int = 0) -> Dataset:
    """WikiTriple-CF, in the form of CounterFact: a known fact and a false object of its relation.

    `target_new` is drawn with probability proportional to an object's number of subjects, never an
    accepted object, never with the first token of the true one. Rephrases: the two other
    sentences. Neighbours: up to ten facts with the same relation and true object whose subjects
    are never edited; each also as a distractor behind the edit's statement. What follows from an
    edit is asked where a second fact tells. Edits that have neighbours come first. With `known`,
    edits and neighbours are facts the backbone completes correctly.
    """
    source = store()
    single = single_facts()
    objects: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for fact in single:
        objects[fact.relation][fact.object] += 1
    if known is not None:
        single = [fact for fact in single if known.knows(fact, forms=("canonical",))]
    near = defaultdict(list)
    edited = []
    for fact in shuffled(single, seed, "cf"):
        if is_probe(fact, seed, CF_PROBES):
            near[fact.relation, fact.object].append(fact)
        else:
            edited.append(fact)
    edited = shuffled(one_per_subject(edited), seed, "cf")
    # Facts that have neighbours go first: without them an edit has no specificity to measure.
    groups: list[list[Fact]] = [[], []]
    for fact in edited:
        groups[not near[fact.relation, fact.object]].append(fact)
    chosen = [fact for group in groups for fact in round_robin(group, CAP)]
    if limit is not None and len(chosen) < limit:
        chosen = [fact for group in groups for fact in round_robin(group)]
    onward, edits = onward_facts(source), []
    for fact in chosen:
        if new := _other_object(fact, objects[fact.relation], seed, known):
            edit = _statement(fact, new, near[fact.relation, fact.object], seed)
            edits.append(replace(edit, portability=composed(fact, new, onward)))
    if limit is not None:
        edits = _enough(edits, limit, "WikiTriple-CF", known)
    checked = (
        "edits and neighbours are facts that the backbone completes correctly."
        if known is not None
        else "it was not checked whether the backbone knows the edited facts."
    )
    return Dataset(
        name="WikiTriple-CF",
        edits=tuple(edits),
        sources=source.sources,
        substitution=(
            "Facts of Wikidata and GeoNames with an object exchanged inside the relation stand in "
            f"for CounterFact; {checked} {_relations_note(source, edits)}"
        ),
    )


def nq(*, limit: int | None = None, seed: int = 0) -> Dataset:
    """NQ-swap originals: Natural Questions with the answers they had before BIG-bench's swap.

    All answers are names (the swap task keeps only such questions), so the pool is narrower than
    NQ. `limit`: number of questions.
    """
    probes = _originals(seed)
    return Dataset(
        name="NQ-swap originals",
        upstream=probes[:limit],
        sources=(store().sources[0],),
        substitution=(
            "Natural Questions whose answer is a name, taken from a BIG-bench task, stand in for "
            "the NQ training file."
        ),
    )


def single_facts() -> list[Fact]:
    """All embedded facts with exactly one accepted object."""
    return [fact for fact in store().facts if len(fact.objects) == 1]


def _qa_order(single: Sequence[Fact], seed: int, cap: int | None) -> list[Fact]:
    free = [fact for fact in single if not is_probe(fact, seed, QA_PROBES)]
    return fresh_answers_first(shuffled(one_per_subject(free), seed, "qa"), cap)


def _enough(chosen: list, limit: int, name: str, known: Knowledge | None) -> list:
    if not chosen:
        raise RecordError(
            f"{name} has no usable fact"
            + (" among those the backbone was asked; raise the cap." if known is not None else ".")
        )
    return chosen[:limit]


def _question(fact: Fact, pool: Sequence[Fact], seed: int, known: Knowledge | None) -> Edit:
    relation = relations()[fact.relation]
    prompt, *rephrases = relation.asked(fact.subject)
    # Begin at a place of the pool that belongs to this fact; known facts, in front, go first.
    front = sum(known.knows(f) is True for f in pool) if known is not None else 0
    usable = pool[:front] if front >= NEAR else pool
    start = place(seed, "near", fact.identity) % max(len(usable), 1)
    picked = [usable[(start + i) % len(usable)] for i in range(min(NEAR, len(usable)))]
    locality = tuple(
        Probe(f"near:{near.identity}", near.prompt("bare"), near.object, "near") for near in picked
    )
    return Edit(
        identity=fact.identity,
        prompt=prompt,
        target=fact.object,
        subject=fact.subject,
        rephrases=tuple(rephrases),
        locality=locality,
        relation=fact.relation,
    )


def _statement(fact: Fact, new: str, near: Sequence[Fact], seed: int) -> Edit:
    prompt = fact.prompt("canonical")
    start = place(seed, "neighbours", fact.identity) % max(len(near), 1)
    turned = [*near[start:], *near[:start]][:NEIGHBOURS]
    neighbours = tuple((other.prompt("canonical"), other.object) for other in turned)
    return Edit(
        identity=fact.identity,
        prompt=prompt,
        target=new,
        subject=fact.subject,
        rephrases=(fact.prompt("sentence"), fact.prompt("sentence2")),
        locality=counterfact.probes(fact.identity, f"{prompt} {new}", neighbours),
        relation=fact.relation,
        target_true=fact.object,
    )


def _other_object(
    fact: Fact, counts: dict[str, int], seed: int, known: Knowledge | None
) -> str | None:
    """An object of the relation, drawn by number of subjects; None if there is no other."""

    def begins(value: str) -> object:
        token = known.first_token(value) if known is not None else None
        return value[:3].casefold() if token is None else token

    options = [
        value
        for value in sorted(counts)
        if value not in fact.objects and begins(value) != begins(fact.object)
    ]
    total = sum(counts[value] for value in options)
    if total == 0:
        return None
    at = place(seed, "new object", fact.identity) % total
    for value in options:
        at -= counts[value]
        if at < 0:
            return value
    return None


# Natural Questions as BIG-bench stores it is split into words and marks: put clitics back.
_SPLIT = (
    (re.compile(r"(\w) (n't)\b"), r"\1\2"),
    (re.compile(r" ('(?:s|d|m|re|ve|ll)\b)"), r"\1"),
    (re.compile(r"\b(gon|wan) (na)\b"), r"\1\2"),
    (re.compile(r" ([,.;:?!%)])"), r"\1"),
    (re.compile(r"([(]) "), r"\1"),
)


def joined(text: str) -> str:
    """`text` with the spaces of word splitting taken out ("rick 's wife" -> "rick's wife")."""
    text = " ".join(text.replace("``", '"').replace("''", '"').split())
    for pattern, by in _SPLIT:
        text = pattern.sub(by, text)
    return text


@cache
def _originals(seed: int) -> tuple[Probe, ...]:
    """NQ questions with their original answer of at most four words, once each, in seeded order."""
    found: dict[str, str] = {}
    for row in bigbench.rows("conflicts"):
        question, answer = joined(str(row["question"])), joined(str(row["original"])).strip(" .,;:")
        if question and answer and len(answer.split()) <= LONGEST_ANSWER:
            found.setdefault(question, answer)
    ordered = sorted(found, key=lambda question: (place(seed, "nq", question), question))
    return tuple(
        Probe(f"nq:{place(0, 'id', question):016x}", question, found[question], "upstream")
        for question in ordered
    )


def _upstream(source: FactStore, seed: int) -> tuple[Probe, ...]:
    if not source.missing:
        return _originals(seed)
    held_out = [f for f in single_facts() if is_probe(f, seed, QA_PROBES)]
    return tuple(
        Probe(f"upstream:{fact.identity}", fact.prompt("bare"), fact.object, "upstream")
        for fact in round_robin(shuffled(held_out, seed, "upstream"))
    )


def _pool_note(source: FactStore) -> str:
    if source.missing:
        return "questions about other facts of the same tables stand in for Natural Questions."
    return "the upstream questions are Natural Questions whose answer is a name."


def _relations_note(source: FactStore, edits: Sequence[Edit]) -> str:
    count = len({edit.relation for edit in edits})
    if not source.missing:
        return f"{count} relations."
    return (
        f"Only {count} relations, from two small tables, because the large archive is absent "
        f"({source.missing})"
    )
