"""Facts (relation, subject, objects) of the embedded default, cleaned and without duplicates."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lib.data.embedded import bigbench, tables
from lib.data.embedded.relations import MAIN, TABLES, relations
from lib.errors import AssetError
from lib.storage import archives


@dataclass(frozen=True)
class Fact:
    """One triple. `objects` are all accepted objects, sorted; edits use facts with exactly one."""

    relation: str
    subject: str
    objects: tuple[str, ...]
    source: str

    @property
    def identity(self) -> str:
        """Stable name, e.g. "capital:Finland"."""
        return f"{self.relation}:{self.subject}"

    @property
    def object(self) -> str:
        """The stored object (the first accepted one)."""
        return self.objects[0]

    def prompt(self, form: str) -> str:
        """The wording `form` of this fact's relation about its subject."""
        return relations()[self.relation].prompt(form, self.subject)


@dataclass(frozen=True)
class FactStore:
    """All facts, by relation and subject in a fixed order, and what they were read from.

    `missing` says why the large source is absent ("" if it is there).
    """

    facts: tuple[Fact, ...]
    sources: tuple[str, ...]
    missing: str = ""


# Prefix and suffix of the stored cloze prompts; the first that matches decides.
_RULES = (
    ("country", "The country of ", " is"),
    ("original_country", "The original country of ", " is"),
    ("native_language", "The native language of ", " is"),
    ("official_language", "The official language of ", " is"),
    ("place_language", "The language used in ", " is"),
    ("work_language", "The language of ", " is"),
    ("capital", "The capital of ", " is"),
    ("continent", "The continent of ", " is"),
    ("headquarters", "The headquarters location of ", " is"),
    ("capital_of", "", " is capital of"),
)
_LANGUAGES = ("native_language", "official_language", "place_language", "work_language")
# Objects of the stored triples that are not of the relation's kind.
_NO_OBJECT = {
    "country": {"Afghan", "German", "Korea", "Bohemia", "Macau"},
    "original_country": {"Europe", "Cornwall", "Tibet", "Korea"},
    "place_language": {"Ali", "E", "U", "Afar", "Dakota"},
    "native_language": {"Egyptian", "Sioux", "Norman", "Romani"},
    "official_language": {"Egyptian"},
    "capital": {"Swords", "Petra"},
    "headquarters": {"Georgetown", "Manhattan"},
}
_NO_SUBJECT = {"The Picture of Dorian Gray skeere", "United States of America"}  # wrong as stored

# A subject that happened rather than lies somewhere does not fit "is located in", and an invented
# country for a massacre has no place in a public report. `citizenship of NAME` is a claim about a
# person and is left out with these.
_HAPPENED = re.compile(
    r"^(?:citizenship|history|family|occupation|congress|death|Death|History|Siege|Battle|Treaty|"
    r"Assassination|Murder|Fall|Sack|Burning|Bombing|Trial) of |^\d|"
    r"(?i:\b(?:wars?|battle|revolution\w*|earthquake|olympics|paralympics|massacre|attacks?|"
    r"crisis|elections?|conflict|crash|coup|pact|summit|championships?|world cup|bombings?|"
    r"tsunami|riots?|protests?|genocide|famine|flight \d+|uprising|rebellion|mutiny|invasion|"
    r"campaign|operation|offensive|referendum|terrorism|holocaust|killings?|shootings?|pogrom|"
    r"disaster|fire|pandemic|epidemic|disappearance|resolution|agreement|convention|period|rush|"
    r"era|movement|festival|reich|incident|restoration|partition|unification|intifada|rule|"
    r"camp|prison|declaration|expulsion|purge|disorder|slavery|cuisine|law|independence|"
    r"calendar|literature|culture|music|people|peoples|politics|dollar|lira|euro|award)\b)"
)
# Places to which more than one country lays claim: no single answer, and none of our business.
_DISPUTED = re.compile(
    r"Gaza|Crimea|Kashmir|Jerusalem|West Bank|Golan|Palestin|Tibet|Abkhazia|Ossetia|Sahara|"
    r"Donetsk|Luhansk|Sevastopol|Simferopol|Kosovo|Hebron|Karabakh|Transnistria|Cyprus|Spratly|"
    r"Paracel|Senkaku|Liancourt|Dokdo|Kuril|Taiwan|Taipei|Falkland|Gibraltar|Srinagar|Ladakh"
)
# Nobody lives in these, so "most people in ... speak" does not fit.
_NO_PEOPLE = re.compile(
    r"(?i:universit|college|institut|database|league|\btv\b|espn|zdf|television|movie|school|"
    r"network|channel|radio|company|wiki|dynasty|council|union|nations|bank|federation|congress|"
    r"parliament|army|church|mountains|office|court|academy)"
)
_PLACES = {"country", "continent", "official_language", "place_language", "capital", "headquarters"}
_CLAIMED = {"country", "official_language", "capital", "capital_of", "city_country"}


def facts() -> FactStore:
    """All embedded facts; from the small tables alone if the large archive cannot be had.

    Raises AssetError if the tables cannot be had either.
    """
    table_rows = tables.rows()
    small = [f"{name} {archives.ASSETS[name].version}" for name in tables.PACKAGES]
    try:
        stored = bigbench.rows("triples")
    except AssetError as error:
        chosen = [row for row in table_rows if row[0] in TABLES]
        return FactStore(_clean(_from_tables(chosen)), tuple(small), str(error))
    # The table's capitals repeat the triples' `capital_of`, so they are for the fallback only.
    chosen = [row for row in table_rows if row[0] in MAIN and row[0] != "capital_of"]
    version = f"bigbench {archives.ASSETS['bigbench'].version}"
    read = [*_from_triples(stored, version), *_from_tables(chosen)]
    return FactStore(_clean(read), (version, *small))


def _from_tables(rows: Iterable[tuple[str, str, str, str]]) -> Iterator[Fact]:
    for relation, subject, value, source in rows:
        yield Fact(relation, subject, (value,), source)


def _from_triples(rows: Iterable[dict[str, object]], source: str) -> Iterator[Fact]:
    for row in rows:
        prompt = str(row["prompt"])
        for relation, start, end in _RULES:
            if prompt.startswith(start) and prompt.endswith(end):
                subject = prompt[len(start) : len(prompt) - len(end)].strip()
                objects = tuple(str(value) for value in row["objects"])
                yield Fact(relation, subject, objects, source)
                break


def _clean(read: Iterable[Fact]) -> tuple[Fact, ...]:
    """Facts merged by relation and subject, without the unfit ones, sorted."""
    merged: dict[tuple[str, str], Fact] = {}
    for fact in read:
        key = fact.relation, fact.subject
        earlier = merged.get(key)
        objects = {*fact.objects, *(earlier.objects if earlier else ())}
        merged[key] = Fact(fact.relation, fact.subject, tuple(sorted(objects)), fact.source)
    tongues = {o.casefold() for f in merged.values() if f.relation in _LANGUAGES for o in f.objects}
    capitals = {f.subject: f.objects for f in merged.values() if f.relation == "country_capital"}
    kept = []
    for fact in merged.values():
        # A language is not "located in a country", nor has it a capital.
        language = fact.subject.split()[-1].casefold() in tongues or fact.subject.endswith("ese")
        # Some stored capitals are those of former centuries; the table's are of today.
        former = capitals.get(fact.subject, fact.objects) != fact.objects
        if not _fits(fact) or (fact.relation in _PLACES and language):
            continue
        if not (fact.relation == "capital" and former):
            kept.append(fact)
    return tuple(sorted(kept, key=lambda fact: (fact.relation, fact.subject)))


def _fits(fact: Fact) -> bool:
    """Whether the wordings of the relation suit this subject and do not give the object away."""
    subject, relation = fact.subject, fact.relation
    if len(subject) < 2 or subject in _NO_SUBJECT or subject[-1] in "?!":
        return False
    if set(fact.objects) & _NO_OBJECT.get(relation, set()):
        return False
    if relation in _PLACES and (subject[0].islower() or _HAPPENED.search(subject)):
        return False
    if relation == "work_language" and subject[0].islower():  # "kanji", "iOS": no works
        return False
    if relation == "city_country" and set(subject) & set("/(,"):
        return False
    if relation == "place_language" and _NO_PEOPLE.search(subject):
        return False
    if relation in _CLAIMED and any(_DISPUTED.search(name) for name in (subject, *fact.objects)):
        return False
    if subject[0].islower() and " of " in subject:  # "death of ...", "canton of ...": no title
        return False
    return relation.startswith("element_") or not any(
        _given_away(subject, value) for value in fact.objects
    )


def _given_away(subject: str, value: str) -> bool:
    """Whether the subject spells the object or its adjective: "Mexico City", "Canadian Shield"."""
    lower, value = subject.casefold(), value.casefold()
    if value in lower or lower in value:
        return True
    start = value[: 5 if len(value) > 5 else 4]
    return " " not in value and any(word.startswith(start) for word in lower.split())
