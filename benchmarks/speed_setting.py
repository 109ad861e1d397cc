"""What the speed comparisons run on: invented facts, and sizes."""

import itertools
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Size:
    """A backbone, and how much of everything is done. `solves` are (key width, batch) of the
    closed-form lines, `ridges` (rows, key width) of MALMEN's."""

    backbone: str
    repeats: int
    training_rows: int
    index_queries: int
    documents: int
    requests: int
    solves: tuple[tuple[int, int], ...]
    ridges: tuple[tuple[int, int], ...]


FULL = Size(
    backbone="smollm2-135m",
    repeats=3,
    training_rows=8,
    index_queries=50,
    documents=64,
    requests=8,
    solves=((1536, 8), (6400, 30)),
    ridges=((100, 1536), (400, 3072), (6000, 3072)),
)
TINY = Size(
    backbone="tiny-llama",
    repeats=1,
    training_rows=8,
    index_queries=8,
    documents=8,
    requests=3,
    solves=((64, 4),),
    ridges=((12, 48),),
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
