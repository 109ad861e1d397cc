"""Questions whose answer follows from an edit: as published, or composed of two embedded facts."""

from collections.abc import Mapping
from dataclasses import dataclass

from lib.data import reading
from lib.data.reading import Row
from lib.data.records import Probe
from lib.data.triples import Fact, FactStore
from lib.errors import RecordError


def published(row: Row, identity: str) -> tuple[Probe, ...]:
    """The one-hop question of EasyEdit's portability files; () for a record without one.

    Its answer follows from the record's new target and another fact ("Recalled Relation").
    Raises RecordError if the field is there and holds no question with an answer.
    """
    found = row.get("portability")
    if not found:
        return ()
    if not isinstance(found, Mapping):
        raise RecordError("the field 'portability' is not an object")
    question, answer = reading.text(found, "New Question"), reading.text(found, "New Answer")
    return (Probe(f"{identity}:portability", question, answer, "portability"),)


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
