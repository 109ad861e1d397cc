"""What the speed comparison runs on: invented facts, a MELO configuration, and sizes."""

import itertools
from dataclasses import dataclass
from typing import Any

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
    """A backbone with MELO's settings for it, and how much of everything is done.

    `training_steps` belong to the frozen-prefix line; the blocks of the other lines are trained
    with `config["steps"]`. `solves` are (key width, batch) of the closed-form lines.
    """

    backbone: str
    config: dict[str, Any]
    repeats: int
    training_rows: int
    training_steps: int
    new_tokens: int
    index_queries: int
    documents: int
    requests: int
    solves: tuple[tuple[int, int], ...]


def _melo(first: int, router: int, radius: float, lr: float, steps: int) -> dict[str, Any]:
    """MELO with its intended key and conflict policy, two adapted layers."""
    return {
        "sites": [{"part": "mlp_out", "block": first}, {"part": "mlp_out", "block": first + 1}],
        "router": {"part": "mlp_out", "block": router},
        "n_blocks": 20,
        "rank_per_block": 2,
        "radius": radius,
        "lr": lr,
        "steps": steps,
        "key_position": "last_prompt_token",
        "conflict_policy": "fixed",
    }


FULL = Size(
    backbone="smollm2-135m",
    config=_melo(first=26, router=23, radius=40.0, lr=5e-3, steps=12),
    repeats=3,
    training_rows=8,
    training_steps=10,
    new_tokens=4,
    index_queries=50,
    documents=64,
    requests=8,
    solves=((1536, 8), (6400, 30)),
)
TINY = Size(
    backbone="tiny-llama",
    config=_melo(first=3, router=1, radius=0.5, lr=2e-2, steps=12),
    repeats=1,
    training_rows=8,
    training_steps=10,
    new_tokens=6,
    index_queries=8,
    documents=8,
    requests=3,
    solves=((64, 4),),
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
