"""How a relation is put into words: forms of a prompt, and the article before place names."""

import re
from dataclasses import dataclass

FORMS = ("canonical", "sentence", "sentence2", "label", "question", "bare")

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


def worded(
    name: str,
    canonical: str,
    sentences: tuple[str, str],
    label: str,
    *questions: str,
    places: bool = True,
) -> tuple[str, Relation]:
    """One entry of a table of relations: its name and its wordings."""
    return name, Relation(name, canonical, sentences, label, questions, places)


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
