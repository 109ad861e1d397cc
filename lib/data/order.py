"""Seeded order of facts: the same on every machine, and spread over relations and answers.

Nothing here depends on hash order or on a library's random generator: a fact's place is the
sha256 of seed, purpose and identity.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class Named(Protocol):
    """What facts and edits have in common."""

    identity: str
    relation: str
    subject: str


class Answered(Named, Protocol):
    """A fact with the object that it is about."""

    object: str


T = TypeVar("T", bound=Named)
A = TypeVar("A", bound=Answered)


def place(seed: int, purpose: str, identity: str) -> int:
    """A fixed pseudo-random number in [0, 2^64) for `identity`."""
    digest = hashlib.sha256(f"{seed}\x1f{purpose}\x1f{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def shuffled(facts: Iterable[T], seed: int, purpose: str) -> list[T]:
    """`facts` in seeded order; the order of any two does not depend on which others are there."""
    return sorted(facts, key=lambda f: (place(seed, purpose, f.identity), f.identity))


def is_probe(fact: Named, seed: int, share: float) -> bool:
    """Whether this fact's subject is set aside for probes (a fixed `share` of all subjects).

    The decision is the subject's, in all relations: no edit ever touches a subject that a
    locality probe asks about.
    """
    return place(seed, "probe", fact.subject.casefold()) < share * 2**64


def one_per_subject(facts: Sequence[T]) -> list[T]:
    """One fact for each subject, from the relation that has been given the fewest so far."""
    by_subject: dict[str, list[T]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject.casefold(), []).append(fact)
    given: dict[str, int] = {}
    chosen = []
    # Subjects with one fact leave no choice and go first; the others then even out.
    for subject in sorted(by_subject, key=lambda s: (len(by_subject[s]), s)):
        fact = min(by_subject[subject], key=lambda f: (given.get(f.relation, 0), f.relation))
        given[fact.relation] = given.get(fact.relation, 0) + 1
        chosen.append(fact)
    return chosen


def round_robin(facts: Sequence[T], cap: int | None = None) -> list[T]:
    """One fact of each relation in turn, at most `cap` per relation; order inside is kept."""
    queues: dict[str, deque[T]] = {}
    for fact in facts:
        queues.setdefault(fact.relation, deque()).append(fact)
    turns = [list(queues[name])[:cap] for name in sorted(queues)]
    longest = max((len(turn) for turn in turns), default=0)
    return [turn[i] for i in range(longest) for turn in turns if i < len(turn)]


def fresh_answers_first(facts: Sequence[A], cap: int | None = None) -> list[A]:
    """Like `round_robin`, but an answer comes back only when no relation has a new one left.

    MELO's selection takes each answer string once; with this order a prefix of N facts holds as
    many answers, and as evenly many relations, as the data allow.
    """
    left = {name: deque() for name in sorted({fact.relation for fact in facts})}
    for fact in facts:
        if cap is None or len(left[fact.relation]) < cap:
            left[fact.relation].append(fact)
    ordered: list[A] = []
    while any(left.values()):
        used: set[str] = set()
        later: dict[str, deque[A]] = {name: deque() for name in left}
        while any(left.values()):
            for name, queue in left.items():
                while queue:
                    fact = queue.popleft()
                    if fact.object.casefold() in used:
                        later[name].append(fact)
                        continue
                    used.add(fact.object.casefold())
                    ordered.append(fact)
                    break
        left = later
    return ordered
