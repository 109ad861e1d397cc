"""Tasks of general ability that lm-eval lacks (`tasks/`), and the functions that they name."""

from pathlib import Path
from typing import Any

from lib.storage.fingerprints import content_hash

FOLDER = Path(__file__).with_name("tasks")
# The hub's order of CoNLL-2003's tags: O, then B- and I- of each of these.
ENTITIES = ("person", "organization", "location", "miscellaneous")


def content() -> str:
    """Content hash of the YAML files."""
    return content_hash([path.read_text("utf-8") for path in sorted(FOLDER.glob("*.yaml"))])


def entities(words: list[str], tags: list[int]) -> list[tuple[str, str]]:
    """(text, type) of every entity of a sentence, in order; `tags` are the hub's numbers."""
    found: list[tuple[list[str], int]] = []
    before = 0
    for word, tag in zip(words, tags, strict=True):
        kind = (tag + 1) // 2
        if tag and tag == 2 * kind and before in (tag, tag - 1):
            found[-1][0].append(word)
        elif tag:
            found.append(([word], kind))
        before = tag
    return [(" ".join(parts), ENTITIES[kind - 1]) for parts, kind in found]


def entity_questions(sentences: Any) -> Any:
    """One row for each type of entity that a sentence holds: recall asks about no other."""
    from datasets import Dataset

    rows = []
    for row in sentences:
        found = entities(row["tokens"], row["ner_tags"])
        for kind in ENTITIES:
            gold = [text for text, of in found if of == kind]
            if gold:
                rows.append({"sentence": " ".join(row["tokens"]), "kind": kind, "entities": gold})
    return Dataset.from_list(rows)


def entity_recall(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Share of the gold entities that are substrings of the answer. ELDER calls it F1."""
    gold = row["entities"]
    return {"entity_recall": sum(entity in answers[0] for entity in gold) / len(gold)}


def rouge(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Mean F of ROUGE-1, -2 and -L, without stemming, by the package that lm-eval brings."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scores = RougeScorer(kinds).score(row["summary"], answers[0])
    return {"rouge": sum(scores[kind].fmeasure for kind in kinds) / len(kinds)}
