"""The default claims, from packages alone: WikiTriple-Claims to edit, FEVER-BB claims beside them.

A fact gives one claim in three wordings, true or with the object of another fact of its relation.
Facts are paired for that, so that every object stands in as many true claims as in false ones: the
words alone do not give a claim away.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from lib.data.embedded import bigbench
from lib.data.embedded.facts import single_facts, store
from lib.data.embedded.triples import Fact
from lib.data.order import is_probe, one_per_subject, place, round_robin, shuffled
from lib.data.published import fever
from lib.data.records import Dataset, Edit, Probe
from lib.errors import RecordError

FORMS = ("canonical", "sentence", "sentence2")
TAUGHT = 0.25  # share of subjects set aside for the upstream training of a classifier


def load(*, limit: int | None = None, seed: int = 0) -> Dataset:
    """WikiTriple-Claims with FEVER-BB claims as `upstream`; `limit`: number of edits.

    Edits: one claim about each subject, half of them true, one relation after the other, edited
    away from the gold class. `taught`: true and false claims about other subjects.
    """
    source = store()
    order = shuffled(one_per_subject(single_facts()), seed, "claims")
    free = [fact for fact in order if not is_probe(fact, seed, TAUGHT)]
    edits = [_edit(fact, value) for fact, value in _claims(free, seed)]
    if not edits:
        raise RecordError("WikiTriple-Claims has no usable fact.")
    edits.sort(key=lambda edit: (place(seed, "claims", edit.identity), edit.identity))
    taught = _taught([fact for fact in order if is_probe(fact, seed, TAUGHT)], seed)
    unrelated = (
        f"claims of the same kind are the unrelated ones, because the large archive is absent "
        f"({source.missing})."
        if source.missing
        else "the unrelated claims are FEVER's, from a BIG-bench task."
    )
    return Dataset(
        name="WikiTriple-Claims",
        edits=tuple(round_robin(edits)[:limit]),
        upstream=taught if source.missing else _fever(seed),
        taught=taught,
        sources=source.sources,
        substitution=(
            "True and false sentences about facts of Wikidata and GeoNames stand in for FEVER's "
            f"claims with rephrases; {unrelated}"
        ),
    )


def _fever(seed: int) -> tuple[Probe, ...]:
    rows = bigbench.rows("fever")
    return fever.in_order([(str(r["claim"]), fever.CLASSES[str(r["label"])]) for r in rows], seed)


def _pairs(facts: Sequence[Fact]) -> Iterator[tuple[Fact, Fact]]:
    """Facts of one relation and different objects, two by two. Where an object has more than half
    of the relation's facts, those beyond find no partner and are left out."""
    by_relation: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_relation[fact.relation].append(fact)
    for _, same in sorted(by_relation.items()):
        count = Counter(fact.object for fact in same)
        same.sort(key=lambda fact: (-count[fact.object], fact.object))  # stable: seeded inside
        half = len(same) // 2
        for one, other in zip(same[:half], same[half:], strict=False):
            if one.object != other.object:
                yield one, other


def _claims(facts: Sequence[Fact], seed: int) -> Iterator[tuple[Fact, str]]:
    """Each paired fact once with an object: a drawn one of the pair with its own, and the other
    with the same."""
    for one, other in _pairs(facts):
        drawn = place(seed, "truth", one.identity + other.identity) % 2
        value = (one, other)[drawn].object
        yield from ((one, value), (other, value))


def _worded(fact: Fact, value: str) -> tuple[str, ...]:
    return tuple(f"{fact.prompt(form)} {value}." for form in FORMS)


def _edit(fact: Fact, value: str) -> Edit:
    gold = "1" if value == fact.object else "0"
    prompt, *rephrases = _worded(fact, value)
    return Edit(
        identity=f"claim:{fact.identity}",
        prompt=prompt,
        target=fever.OTHER[gold],
        subject=fact.subject,
        rephrases=tuple(rephrases),
        relation=fact.relation,
        target_true=gold,
    )


def _taught(facts: Sequence[Fact], seed: int) -> tuple[Probe, ...]:
    """Both claims about both facts of each pair, in a drawn wording, in seeded order."""
    found = []
    for pair in _pairs(facts):
        for fact in pair:
            for value in (pair[0].object, pair[1].object):
                identity = f"taught:{fact.identity}:{value}"
                claim = _worded(fact, value)[place(seed, "form", identity) % len(FORMS)]
                found.append(Probe(identity, claim, str(int(value == fact.object)), "upstream"))
    found.sort(key=lambda probe: (place(seed, "taught", probe.identity), probe.identity))
    return tuple(found)
