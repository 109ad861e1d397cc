"""General ability from the embedded data: short prompts with one right answer, six tasks.

They stand in for the benchmark on which ELDER measures what editing costs (elder 5). A row is right
if the greedy answer is the gold answer, token by token; so, as there, an answer in any other form
is wrong. Prompts are ours, 44 tokens long on average. Names in "recall", "reading" and "entities"
are subjects that no embedded dataset edits.

Right answers of the unedited SmolLM2-135M-Instruct in bfloat16 on 100 items of each task, on the
development items and on the first of the measured ones (`benchmarks/general_ability.py`):

    task        stands for  development  measured  chance  tokens
    sentiment   SST2        0.79         0.84      0.50    70
    sums        GSM8K       0.90         0.92      0       58
    recall      NQ          0.47         0.51      0.23    9
    reading     BoolQ       0.68         0.70      0.50    34
    entities    CoNLL03     0.75         0.79      0.50    47
    completion  -           0.53         0.54      0       44

Chance is what an answer of the right form would score: one of two labels, one of the two names or
objects in the prompt, the most frequent object of the relation. Left out because that model is at
chance: true or false for VitaminC's claims behind their evidence (for RTE; 18 wordings, at best
0.55 of two balanced classes), yes or no for StrategyQA (for BoolQ; 0.50, always "no"), the type of
a bare name (for CoNLL03; 0.29 of three). Nothing embedded is like MuTual or SAMSum. First trials
of wordings drew on items of both kinds; the development items decided.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, cycle, zip_longest

from lib.data import datasets, invented
from lib.data.embedded import bigbench, facts
from lib.data.embedded.triples import Fact
from lib.data.order import is_probe, place, shuffled
from lib.data.records import Edit, Probe

DEVELOPMENT = 0.2  # share of all items on which tasks and wordings were chosen
_SENTIMENT = (
    "Review: A cold room, a rude porter, never again.\nSentiment: negative\n\n"
    "Review: The staff were kind and the soup was lovely.\nSentiment: positive\n\n"
    "Review: {text}\nSentiment:"
)
_ENTITY = (
    "Sentence: Ada Lund sold the boat in Calder.\nPerson: Ada Lund\nPlace: Calder\n\n"
    "Sentence: {text}\n{kind}:"
)
_SUM = (
    "Question: {name} has {a} {things}, finds {b} more and gives {c} away. How many {things} are "
    "left?\nAnswer: {a} + {b} = {all}. {all} - {c} = {left}. In numbers, the answer is"
)
_SCENES = (
    "In the spring {person} moved to {city} and opened a small shop.",
    "The people of {city} remember the speech that {person} gave.",
    "{person} was late because the train from {city} had broken down.",
    "A letter from {city} reached {person} after two weeks.",
)
_OWNERS = ("Ada", "Bram", "Cora", "Dov")
_THINGS = ("cups", "apples", "stamps", "coins")
_REVIEWS = ("hotels", "medicine", "products", "reviews")
_SENTENCE_END = re.compile(r"(?<=[.!?]) +")
_CLAUSE_END = re.compile(r"[A-Za-z]{4,}[.,]")


@dataclass(frozen=True)
class Item:
    """One prompt of a task with its gold answer. `group`: what the choice of items balances;
    `subjects`: the names in it that an edit might change."""

    key: str
    group: str
    prompt: str
    target: str
    subjects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """`stands_for` is the task of ELDER's benchmark that this one resembles, by its name in the
    paper's tables ("": none); `chance` and `what` are for reports."""

    stands_for: str
    chance: float
    what: str


TASKS = {
    "sentiment": Task("SST2", 0.5, "opening sentences of a review: positive or negative"),
    "sums": Task("GSM8K", 0.0, "a result repeated from the worked solution in the prompt"),
    "recall": Task("NQ", 0.23, "a known fact about a name, no text given"),
    "reading": Task("BoolQ", 0.5, "a fact about one of two names in a text of two sentences"),
    "entities": Task("CoNLL03", 0.5, "the person or the place in a sentence"),
    "completion": Task("", 0.0, "the last word of a clause, which the text has used before"),
}
FROM_TABLES = ("sums", "recall", "reading")  # tasks that are left if the large archive is absent


def general_probes(dataset: str, count: int, edits: Sequence[Edit]) -> tuple[Probe, ...]:
    """Tests of general ability beside `edits` of a dataset, `count` items per task: from the
    embedded data, about no edited subject; for the invented datasets invented ones."""
    if not count:
        return ()
    if dataset in datasets.INVENTED:
        return invented.general(count)
    return probes(count, edited={edit.subject.casefold() for edit in edits})


def probes(
    count: int, *, edited: Collection[str] = (), seed: int = 0, development: bool = False
) -> tuple[Probe, ...]:
    """The first `count` items of each task in seeded order, evenly from its groups.

    `edited`: casefolded subjects that must not occur (published files edit any). `development`
    gives the items on which the tasks were chosen instead. Identities are "general/<task>/<n>".
    """
    found, barred = [], set(edited)
    for task in FROM_TABLES if facts.store().missing else TASKS:
        groups: dict[str, list[Item]] = {}
        for item in _items(task, seed):
            own = place(0, "general development", item.key) < DEVELOPMENT * 2**64
            if own == development and not {s.casefold() for s in item.subjects} & barred:
                groups.setdefault(item.group, []).append(item)
        turns = zip_longest(*(groups[name] for name in sorted(groups)))
        chosen = [item for item in chain.from_iterable(turns) if item is not None][:count]
        found += [
            Probe(f"general/{task}/{number}", item.prompt, item.target, "general")
            for number, item in enumerate(chosen)
        ]
    return tuple(found)


def task_of(probe: Probe) -> str:
    """The task (a key of TASKS) of one of these probes."""
    return probe.identity.split("/")[1]


@cache
def _items(task: str, seed: int) -> tuple[Item, ...]:
    """All items of a task, once each, in seeded order."""
    found = {item.key: item for item in _MAKERS[task]()}
    return tuple(sorted(found.values(), key=lambda i: (place(seed, "general", i.key), i.key)))


def _facts(relations: Collection[str] = (), *, read: bool | None = None) -> list[Fact]:
    """Single-object facts whose subjects are never edited; `read`: those for "reading" (True) or
    those for "recall" (False)."""
    return [
        fact
        for fact in shuffled(facts.single_facts(), 0, "general")
        if is_probe(fact, 0, facts.QA_PROBES)
        and (not relations or fact.relation in relations)
        and (read is None or read == (place(0, "read", fact.subject.casefold()) % 2 == 0))
    ]


def _sentiment() -> Iterator[Item]:
    """Reviews translated from Polish, cut to their opening sentences of 8 to 25 words."""
    for row in chain.from_iterable(bigbench.rows(f"multiemo_{name}") for name in _REVIEWS):
        opening: list[str] = []
        for sentence in _SENTENCE_END.split(facts.joined(str(row["text"]))):
            if len(opening) + len(sentence.split()) > 25:
                break
            opening += sentence.split()
        text, label = " ".join(opening), str(row["label"])
        if len(opening) >= 8 and label in ("positive", "negative"):
            yield Item(text, label, _SENTIMENT.format(text=text), label)


def _sums() -> Iterator[Item]:
    """Two steps with their results, as GSM8K's prompt in that benchmark holds its solution."""
    for number in range(2000):

        def draw(what: str, low: int, high: int, key: str = str(number)) -> int:
            return low + place(0, f"sums {what}", key) % (high - low + 1)

        a, b, c = draw("a", 11, 60), draw("b", 2, 39), draw("c", 1, 9)
        name, things = _OWNERS[draw("name", 0, 3)], _THINGS[draw("things", 0, 3)]
        text = _SUM.format(name=name, things=things, a=a, b=b, c=c, all=a + b, left=a + b - c)
        yield Item(text, "", text, str(a + b - c))


def _recall() -> Iterator[Item]:
    for fact in _facts(read=False):
        # In work_language the most frequent object alone would do better than the model.
        if fact.relation != "work_language":
            prompt = fact.prompt("label")
            yield Item(fact.identity, fact.relation, prompt, fact.object, (fact.subject,))


def _reading() -> Iterator[Item]:
    """Two facts of one relation, then the first or the second asked in another form."""
    pool: dict[str, list[Fact]] = {}
    for fact in _facts(read=True):
        pool.setdefault(fact.relation, []).append(fact)
    for group in pool.values():
        for number, fact in enumerate(group):
            later = [*group[number + 1 :], *group[:number]]
            other = next((o for o in later if o.object != fact.object), None)
            if other is None:
                continue
            told = [f"{f.prompt('canonical')} {f.object}." for f in (fact, other)]
            text = " ".join(told if place(0, "first", fact.identity) % 2 else told[::-1])
            prompt = f"{text} {fact.prompt('label')}"
            subjects = (fact.subject, other.subject)
            yield Item(fact.identity, fact.relation, prompt, fact.object, subjects)


def _entities() -> Iterator[Item]:
    """A person and a city in a sentence of ours; who or where is asked."""
    people = [f.subject for f in _facts(("native_language",)) if " " in f.subject]
    cities = [fact.subject for fact in _facts(("city_country",))]
    for number, (person, city) in enumerate(zip(cycle(people), cities, strict=False)):
        text = _SCENES[number // 2 % len(_SCENES)].format(person=person, city=city)
        kind, target = (("Person", person), ("Place", city))[number % 2]
        prompt = _ENTITY.format(text=text, kind=kind)
        yield Item(f"{person}|{city}", kind, prompt, target, (person, city))


def _completion() -> Iterator[Item]:
    """Behind 15 to 45 words of a paragraph, the last word of a clause that stood before in it."""
    for text in chain.from_iterable(bigbench.texts(kind) for kind in ("nyt", "squad")):
        words = facts.joined(text).split()
        for at in range(15, min(len(words), 46)):
            last = words[at][:-1]
            before = {word.strip("\"'“”‘(),.;:") for word in words[:at]}
            if _CLAUSE_END.fullmatch(words[at]) and last in before:
                prompt = " ".join(words[:at])
                yield Item(prompt, "", prompt, last)
                break


_MAKERS = {
    "sentiment": _sentiment,
    "sums": _sums,
    "recall": _recall,
    "reading": _reading,
    "entities": _entities,
    "completion": _completion,
}
