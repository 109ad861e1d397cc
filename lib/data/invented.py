"""Invented questions for the `smoke` profile and the tests: no network, no real facts."""

from collections.abc import Iterator

from lib.data.published.counterfact import probes
from lib.data.published.hallucination import continuation
from lib.data.published.scotus import document
from lib.data.records import Dataset, Edit, Probe

_PLACES = (
    "Quill Island", "Brink Sound", "Dove Point", "Marl Bay", "Heron Reach", "Ash Holm", "Tern Rock",
    "Lower Sedge", "Kettle Ness", "Fallow Firth", "Orrin Head", "Wester Voe",
)  # fmt: skip
_HARBOURS = (
    "Port Amsel", "Calder", "Port Ost", "Tavik", "Selby Quay", "Nettle Quay", "Wick", "Dunmore",
    "Sandgate", "Old Pier", "Hollow Bay", "Lantern",
)  # fmt: skip
_WHERE = ("", "North ", "South ", "East ", "West ")
_SKIES = (
    "western", "evening", "winter", "northern", "morning", "summer", "eastern", "midday", "autumn",
    "southern", "midnight", "spring",
)  # fmt: skip
_COLOURS = ("blue", "grey", "pale green", "violet", "amber")
_QUESTIONS = (
    "Which harbour is the ferry of {s} based in?",
    "The ferry of {s} sails from which harbour?",
    "From what harbour does the ferry of {s} leave?",
    "What is the home harbour of the ferry of {s}?",
)
# Each told in two ways.
_TROUBLES = (
    (
        "To the keeper of {}. The ice closed the quay last night. No boat can leave before spring.",
        "From the rocks off {}. We are frozen in. Send someone to break a way through.",
    ),
    (
        "To the keeper of {}. Fog hides the light. We ring the bell every hour until it lifts.",
        "From the rocks off {}. Nothing can be seen here. Please sound the horn at noon and dusk.",
    ),
    (
        "To the keeper of {}. A cask of salt is missing. The clerk counts the store once more.",
        "From the rocks off {}. Two of our barrels are gone. Someone must have sold them.",
    ),
)
_CLAIMS = (
    "The ferry of {s} is based in {o}.",
    "{o} is the home harbour of the ferry of {s}.",
    "The ferry that serves {s} sails from {o}.",
)


def sentences() -> list[str]:
    """A few hundred invented sentences, for key statistics of the smoke profile."""
    verbs = ("sails to", "is older than", "trades with", "lies north of", "was named after")
    return [
        f"The ferry of {place} {verb} {harbour}, and in winter the keeper of {other} waits there."
        for verb in verbs
        for place, harbour in zip(_PLACES, _HARBOURS, strict=True)
        for other in _HARBOURS[:4]
    ]


def load(name: str = "invented") -> Dataset:
    """The invented questions, statements ("invented_statements"), claims ("invented_claims"),
    passages ("invented_passages") or documents ("invented_documents")."""
    kinds = {
        "invented_statements": statements, "invented_claims": claims,
        "invented_passages": passages, "invented_documents": documents,
    }  # fmt: skip
    return kinds.get(name, questions)()


def questions() -> Dataset:
    """Sixty facts in zsRE form, each with rephrases and a near question; as many upstream ones."""
    edits = []
    for number, (place, harbour) in enumerate(_facts()):
        question, *rephrases = (text.format(s=place) for text in _QUESTIONS)
        near = Probe(f"near:{number}", _QUESTIONS[0].format(s=f"{place} Skerry"), harbour, "near")
        identity = f"harbour:{place}"
        edits.append(Edit(identity, question, harbour, place, tuple(rephrases), (near,), "harbour"))
    return Dataset(
        name="invented harbours",
        edits=tuple(edits),
        upstream=_questions(),
        sources=("lib/data/invented.py",),
        substitution="Invented questions on random weights: this checks the machinery.",
    )


def _questions() -> tuple[Probe, ...]:
    """Questions about something else."""
    return tuple(
        Probe(f"sky:{sky}", f"what colour is the {sky} sky?", colour, "upstream")
        for sky, colour in _skies()
    )


def statements() -> Dataset:
    """The same places in CounterFact form: a statement, a false harbour, the true one, rephrases,
    two neighbours whose true harbour is that of the edited fact, and what follows from the edit."""
    edits = []
    count = len(_PLACES)
    for number, (place, true) in enumerate(zip(_PLACES, _HARBOURS, strict=True)):
        prompt = f"The home harbour of the {place} ferry is the old harbour of"
        new = _HARBOURS[(number + 5) % count]
        neighbours = tuple(
            (f"The home harbour of the {place} {word} boat is the old harbour of", true)
            for word in ("mail", "pilot")
        )
        identity = f"harbour:{place}"
        edits.append(
            Edit(
                identity,
                prompt,
                new,
                f"{place} ferry",
                (f"Every evening the {place} ferry returns to its berth in",),
                probes(identity, f"{prompt} {new}", neighbours),
                "harbour",
                true,
                (
                    Probe(
                        f"{identity}:portability",
                        f"The home harbour of the {place} ferry is in a bay called the Bay of",
                        new,
                        "portability",
                    ),
                ),
            )
        )
    return Dataset(
        name="invented harbours, statements",
        edits=tuple(edits),
        upstream=_questions(),
        sources=("lib/data/invented.py",),
        substitution="Invented statements on random weights: this checks the machinery.",
    )


def claims() -> Dataset:
    """Sixty claims about the same places in three wordings, every second one false; twice as many
    about skies, true and false."""
    facts, edits = list(_facts()), []
    for number, (place, true) in enumerate(facts):
        gold, target = ("1", "0") if number % 2 == 0 else ("0", "1")
        harbour = true if gold == "1" else facts[number - 1][1]
        prompt, *others = (text.format(s=place, o=harbour) for text in _CLAIMS)
        identity = f"claim:{place}"
        edits.append(
            Edit(identity, prompt, target, place, tuple(others), (), "harbour", target_true=gold)
        )
    skies = list(_skies())
    turned = [(sky, skies[number - len(_SKIES)][1]) for number, (sky, _) in enumerate(skies)]
    upstream = tuple(
        Probe(f"sky:{sky}:{label}", f"The {sky} sky is {colour}.", label, "upstream")
        for label, pairs in (("1", skies), ("0", turned))
        for sky, colour in pairs
    )
    return Dataset(
        name="invented claims",
        edits=tuple(edits),
        upstream=upstream,
        sources=("lib/data/invented.py",),
        substitution="Invented claims on random weights: this checks the machinery.",
    )


def passages() -> Dataset:
    """Two sentences to correct about each of the twelve places, one accurate sentence about each
    skerry near them, and running text."""

    def told(place: str, harbour: str) -> list[str]:
        return [
            f"This is a passage about the ferry of {place}.",
            f"The ferry of {place} sails from {harbour} every morning.",
            f"In winter it waits behind the old breakwater of {harbour}.",
        ]

    edits, near = [], []
    for place, harbour in zip(_PLACES, _HARBOURS, strict=True):
        title, first, second = told(place, harbour)
        other = f"The following text is about the ferry of {place}."
        for number, (prompt, target) in enumerate(((title, first), (f"{title} {first}", second))):
            rephrase = prompt.replace(title, other)
            edits.append(
                Edit(f"passage:{place}:{number}", prompt, target, place, (rephrase,), (), place)
            )
        title, first, _ = told(f"{place} Skerry", harbour)
        near.append(Probe(f"passage:{place} Skerry", title, first, "near"))
    texts = (continuation(f"text:{n}", text) for n, text in enumerate(sentences()))
    return Dataset(
        name="invented passages",
        edits=tuple(edits),
        near=tuple(near),
        upstream=tuple(filter(None, texts)),
        sources=("lib/data/invented.py",),
        substitution="Invented passages on random weights: this checks the machinery.",
    )


def documents() -> Dataset:
    """Sixty letters from harbours about one of three troubles, to be learned, and sixty from rocks
    off them, in other words, to be edited; the number of the trouble is the class."""
    letters = [
        (f"{place}, {harbour}", number % len(_TROUBLES))
        for number, (place, harbour) in enumerate(_facts())
    ]
    learned, edited = (
        [
            (f"{kind}:{where}", _TROUBLES[trouble][turn].format(where), str(trouble))
            for where, trouble in letters
        ]
        for turn, kind in enumerate(("harbour", "rocks"))
    )
    return Dataset(
        name="invented letters",
        edits=tuple(document(*letter) for letter in edited),
        upstream=tuple(Probe(*letter, "upstream") for letter in learned),
        sources=("lib/data/invented.py",),
        substitution="Invented letters on random weights: this checks the machinery.",
    )


def general(count: int) -> tuple[Probe, ...]:
    """`count` invented prompts for two of the tasks of `lib.evaluation.general.embedded`."""
    asked = {"sentiment": ("good", "bad"), "recall": ("north", "south", "east")}
    return tuple(
        Probe(
            f"general/{task}/{number}",
            f"The wind at {_HARBOURS[number % len(_HARBOURS)]} on day {number} is",
            answers[number % len(answers)],
            "general",
        )
        for task, answers in asked.items()
        for number in range(count)
    )


def _facts() -> Iterator[tuple[str, str]]:
    """Sixty places and their harbours."""
    for turn, where in enumerate(_WHERE):
        for index, place in enumerate(_PLACES):
            yield where + place, _HARBOURS[(index + 3 * turn) % len(_PLACES)]


def _skies() -> Iterator[tuple[str, str]]:
    """Sixty skies and their colours."""
    for where, colour in zip(_WHERE, _COLOURS, strict=True):
        for word in _SKIES:
            yield where.lower() + word, colour
