"""What the speed comparisons run on: invented facts."""

import itertools

from lib.data.records import Edit, Probe, Stream

PLACES = ("Quill", "Brink", "Dove", "Marl", "Old Heron in the far north of the bay", "Ashen Fell")
KINDS = ("Island", "Sound", "Point", "Reach")
HARBOURS = ("Port Amsel", "Calder", "Tavik", "Selby Quay", "Nettle Staithe", "Ostwick")
QUESTIONS = (
    ("Which harbour is the ferry of {} based in?", "The ferry of {} sails from which harbour?"),
    ("Where is the pilot boat of {} moored?", "What is the home port of the pilot boat of {}?"),
)
THINGS = ("sky", "grass", "snow", "coal", "blood", "gold")
WAYS = (
    "what colour is {}?",
    "which colour do people usually connect with {}?",
    "{} looks like which colour?",
    "name the colour of {} in plain daylight",
)


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def invented_stream() -> Stream:
    """24 edits in batches of 4, as many held-out wordings, and two locality pools of 24.

    The places differ in length, so that every batch is padded.
    """
    edits: list[Edit] = []
    holdout: list[Edit] = []
    near: list[Probe] = []
    for number, (kind, place) in enumerate(itertools.product(KINDS, PLACES)):
        name = f"{place} {kind}"
        question, other = QUESTIONS[number % 2]
        target = HARBOURS[(number * 5 + number // 6) % len(HARBOURS)]
        fact = f"place:{name}"
        edits.append(Edit(fact, _asked(question.format(name)), target, name, relation=fact))
        holdout.append(
            Edit(f"{fact}#other", _asked(other.format(name)), target, name, relation=fact)
        )
        elsewhere = _asked(QUESTIONS[(number + 1) % 2][0].format(f"North {name}"))
        near.append(Probe(f"near:{name}", elsewhere, target, "near"))
    upstream = [
        Probe(f"colour:{way}:{thing}", _asked(way.format(thing)), "blue", "upstream")
        for way, thing in itertools.product(WAYS, THINGS)
    ]
    return Stream(
        name="invented",
        edits=tuple(edits),
        batch_size=4,
        holdout=tuple(holdout),
        upstream=tuple(upstream),
        near=tuple(near),
    )
