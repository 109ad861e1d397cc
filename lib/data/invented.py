"""Invented questions for the `smoke` profile and the tests: no network, no real facts."""

from lib.data.counterfact import probes
from lib.data.records import Dataset, Edit, Probe

_PLACES = (
    "Quill Island", "Brink Sound", "Dove Point", "Marl Bay", "Heron Reach", "Ash Holm", "Tern Rock",
    "Lower Sedge", "Kettle Ness", "Fallow Firth", "Orrin Head", "Wester Voe",
)  # fmt: skip
_HARBOURS = (
    "Port Amsel", "Calder", "Port Ost", "Tavik", "Selby Quay", "Nettle Quay", "Wick", "Dunmore",
    "Sandgate", "Old Pier", "Hollow Bay", "Lantern",
)  # fmt: skip
_QUESTIONS = (
    "Which harbour is the ferry of {s} based in?",
    "The ferry of {s} sails from which harbour?",
    "From what harbour does the ferry of {s} leave?",
    "What is the home harbour of the ferry of {s}?",
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


def load() -> Dataset:
    """Twelve facts in zsRE form, each with rephrases and a near question; a few upstream ones."""
    edits = []
    for number, (place, harbour) in enumerate(zip(_PLACES, _HARBOURS, strict=True)):
        question, *rephrases = (text.format(s=place) for text in _QUESTIONS)
        near = Probe(f"near:{number}", _QUESTIONS[0].format(s=f"{place} Skerry"), harbour, "near")
        identity = f"harbour:{place}"
        edits.append(Edit(identity, question, harbour, place, tuple(rephrases), (near,), "harbour"))
    upstream = tuple(
        Probe(f"sky:{word}", f"what colour is the {word} sky?", "blue", "upstream")
        for word in ("western", "evening", "winter", "northern", "morning", "summer")
    )
    return Dataset(
        name="invented harbours",
        edits=tuple(edits),
        upstream=upstream,
        sources=("lib/data/invented.py",),
        substitution="Invented questions on random weights: this checks the machinery.",
    )


def statements() -> Dataset:
    """The same places in CounterFact form: a statement, a false harbour, the true one, rephrases,
    and two neighbours whose true harbour is that of the edited fact."""
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
            )
        )
    return Dataset(
        name="invented harbours, statements",
        edits=tuple(edits),
        sources=("lib/data/invented.py",),
        substitution="Invented statements on random weights: this checks the machinery.",
    )
