"""How a relation is put into words: forms of a prompt, and the article before place names."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lib.errors import RecordError

FORMS = ("canonical", "sentence", "sentence2", "label", "question", "bare")
# Section 4 of the measurements behind the embedded data: fourteen relations a small model knows in
# part and that make no claim about a person beyond the language he or she grew up with.
MAIN = (
    "country", "original_country", "native_language", "official_language", "place_language",
    "work_language", "capital", "capital_of", "continent", "headquarters", "city_country",
    "country_capital", "country_region", "element_symbol",
)  # fmt: skip
# What the small tables alone can fill.
TABLES = (
    "city_country", "country_capital", "country_region", "element_symbol", "capital_of",
    "element_number", "country_currency",
)  # fmt: skip
_WORDED = {"canonical", "sentences", "label", "questions"}

# Two solved examples that touch no relation of the study, so they suggest no object.
_SOLVED = (
    "Question: What is the opposite of hot?\nAnswer: cold\n"
    "Question: How many legs does a spider have?\nAnswer: eight\n"
)


@dataclass(frozen=True)
class Relation:
    """The wordings of one relation: what the object is, four statements, ten questions.

    `places`: subjects are places and institutions, some of which take an article in a sentence.
    """

    name: str
    canonical: str
    sentences: tuple[str, str]
    label: str
    questions: tuple[str, ...]
    places: bool = True

    def prompt(self, form: str, subject: str) -> str:
        """The wording of `form` (one of FORMS) about `subject`.

        "question" stands behind two solved examples, for models that only continue text; "bare"
        is the first question alone, as the zsRE-form records use it.
        """
        if form == "label":
            return self.label.replace("{s}", subject)
        template = {
            "canonical": self.canonical,
            "sentence": self.sentences[0],
            "sentence2": self.sentences[1],
            "question": self.questions[0],
            "bare": self.questions[0],
        }[form]
        text = self.fill(template, subject)
        return f"{_SOLVED}Question: {text}\nAnswer:" if form == "question" else text

    def fill(self, template: str, subject: str) -> str:
        """`template` about `subject`, with "the" before names of places that take it."""
        if not self.places or not takes_article(subject):
            return template.replace("{s}", subject)
        article = "The" if template.startswith("{s}") else "the"
        return template.replace("{s}", f"{article} {subject}")

    def asked(self, subject: str) -> tuple[str, ...]:
        """All questions about `subject`; the first is the edit, the others its rephrases."""
        return tuple(self.fill(question, subject) for question in self.questions)


@cache
def relations() -> dict[str, Relation]:
    """The relations of `relations.yaml` by name, in its order; read once."""
    return read(Path(__file__).with_name("relations.yaml"))


def read(path: Path) -> dict[str, Relation]:
    """The relations of a file; raises RecordError where one is not worded as it should be."""
    given = yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {name: _relation(f"{path}: {name}", name, fields) for name, fields in given.items()}


def _relation(where: str, name: str, given: Any) -> Relation:
    if not isinstance(given, dict) or given.keys() - {"places"} != _WORDED:
        raise RecordError(f"{where} must hold {', '.join(sorted(_WORDED))} and may hold places")
    sentences, questions = given["sentences"], given["questions"]
    if not isinstance(sentences, list) or len(sentences) != 2:
        raise RecordError(f"{where}: sentences must be a list of two")
    if not isinstance(questions, list) or not questions:
        raise RecordError(f"{where}: questions must be a list that is not empty")
    if not isinstance(places := given.get("places", True), bool):
        raise RecordError(f"{where}: places must be true or false, not {places!r}")
    for text in (given["canonical"], given["label"], *sentences, *questions):
        if not isinstance(text, str) or text.count("{s}") != 1:
            raise RecordError(f"{where}: {text!r} is no text with one {{s}} for the subject")
    lists = {"sentences": tuple(sentences), "questions": tuple(questions)}
    return Relation(name, **{**given, **lists})


_STARTS = re.compile(
    r"(?:Kingdom|Republic|Empire|Duchy|Grand Duchy|Archduchy|Principality|Province|University|"
    r"Gulf|Bay|Sea|Strait|Straits|Isle|Isles|Emirate|Sultanate|Crown|Union|Bank|Free State|"
    r"Free City|Commonwealth|Confederation|Electorate|Dominion|Khanate|Viceroyalty|Federation|"
    r"Captaincy General|Community|Organization|Organisation|Museum|Palace|Cathedral|Battle|"
    r"Margraviate|County Palatine|Tower|Order|Government|House|Colony|Council|Court|Tsardom|"
    r"County|Island|Temples|Arch|Church|Autonomous University|National \w+|State|Tomb|Garden) of |"
    r"Union between |United States|International Council |River |"
    r"(?:Federal|Democratic|People's|Socialist|Federated|Union of) .*(?:Republic|States)\b"
)
_ENDS = re.compile(
    r"(?:River|river|Sea|Ocean|Desert|Mountains|Islands|Empire|Caliphate|Caliphates|Sultanate|"
    r"Khanate|[Dd]ynasty|Republic|Kingdom|Peninsula|Plateau|Archipelago|Channel|Strait|Gulf|Basin|"
    r"Confederacy|Confederation|Federation|Union|Region|region|Canal|Alps|States|Isles|Delta|"
    r"Plain|Plains|Steppe|Territory|Protectorate|Museum|Bridge|Range|Reich|Bloc|Raj|Emirates|"
    r"Company|Corporation|League|Council|Society|Metro|Authority|Administration|archipelago|"
    r"sultanate|Line|Tunnel|Cordillera|Ridge|Telescope|Seaway|Territories|Netherlands|Station|"
    r"Horde|Highlands|Lowlands|Coast Guard|Association|Organization|Organisation)"
)
_WITH_ARTICLE = """
Netherlands Philippines Bahamas Maldives Gambia Comoros Seychelles Nile Danube Ganges Thames Rhine
Volga Sahara Alps Himalayas Andes Caucasus Balkans Cyclades Yenisei Pyrenees Carpathians
"""
_EXACT = frozenset(_WITH_ARTICLE.split()) | {
    "United Kingdom",
    "Holy See",
    "South Caucasus",
    "White Nile",
    "Blue Nile",
    "South Magnetic Pole",
    "Republic of the Congo",
    "Democratic Republic of the Congo",
    "Cocos (Keeling) Islands",
    "Papal States",
    "French Southern and Antarctic Lands",
}


def takes_article(subject: str) -> bool:
    """Whether a place or institution of this name stands with "the" in a sentence."""
    if subject in _EXACT or _STARTS.match(subject):
        return True
    return " " in subject and _ENDS.fullmatch(subject.split(" ")[-1]) is not None
