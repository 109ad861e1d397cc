"""How an answer to a general task is scored: pure functions of texts (elder 5).

The descriptions are those of the benchmark's public scripts; where these cannot be followed, the
function says what is done instead. An answer that cannot be read is wrong.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

CUT = 13  # characters of an end mark that the public script takes off every summary


def holds_number(text: str, gold: Sequence[str]) -> float:
    """Whether the gold number is a substring; commas between digits are dropped (GSM8K)."""
    return float(gold[0] in text.replace(",", ""))


def says(*words: str) -> Callable[[str, Sequence[str]], float]:
    """A score: the text holds the gold word and, of `words`, no other, case aside (RTE, SST2)."""

    def score(text: str, gold: Sequence[str]) -> float:
        return float([word for word in words if word in text.lower()] == [gold[0]])

    return score


def equals(text: str, gold: Sequence[str]) -> float:
    """Whether the text is the gold word, case and outer spaces aside (BoolQ)."""
    return float(text.strip().lower() == gold[0])


def holds_letter(text: str, gold: Sequence[str]) -> float:
    """Whether the gold letter occurs (MuTual)."""
    return float(gold[0] in text)


def holds_answer(text: str, gold: Sequence[str]) -> float:
    """Whether a gold answer is a run of words of the text, both in lower case without punctuation
    and articles (NQ). Our definition: the public script searches the prompt's passage instead."""
    words = f" {' '.join(normalised(text))} "
    found = [normalised(answer) for answer in gold]
    return float(any(answer and f" {' '.join(answer)} " in words for answer in found))


def normalised(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and articles."""
    words = re.sub(r"[^\w\s]", "", text.lower()).split()
    return [word for word in words if word not in ("a", "an", "the")]


def share_found(text: str, gold: Sequence[str]) -> float:
    """Share of the gold entities that are substrings: a recall, although the paper calls it F1."""
    return sum(entity in text for entity in gold) / len(gold)


def mean_recall(items: Sequence[tuple[str, float, int]]) -> float:
    """Recall of each type of entity over all sentences, averaged over the types (CoNLL03).

    `items`: (type, share found, number of gold entities) of each prompt.
    """
    found: Counter[str] = Counter()
    wanted: Counter[str] = Counter()
    for kind, share, count in items:
        found[kind] += share * count
        wanted[kind] += count
    return sum(found[kind] / wanted[kind] for kind in wanted) / len(wanted)


def rouge(text: str, gold: Sequence[str]) -> float:
    """Mean F of ROUGE-1, -2 and -L, without stemming, of the text less its last 13 characters
    (SAMSum)."""
    found, wanted = (re.findall(r"[a-z0-9]+", t.lower()) for t in (text[:-CUT], gold[0]))
    overlaps = []
    for n in (1, 2):
        grams = [Counter(zip(*(w[i:] for i in range(n)), strict=False)) for w in (found, wanted)]
        overlaps.append((sum((grams[0] & grams[1]).values()), *(sum(g.values()) for g in grams)))
    overlaps.append((_longest_common(found, wanted), len(found), len(wanted)))
    scores = [2 * same / (a + b) if a + b else 0.0 for same, a, b in overlaps]
    return sum(scores) / len(scores)


def begins(text: str, gold: Sequence[str]) -> float:
    """Whether the text begins with the gold answer as whole words (the embedded tasks)."""
    return float(re.match(rf"{re.escape(gold[0])}(?!\w)", text.strip()) is not None)


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        corner = 0
        for column, other in enumerate(second, start=1):
            above = lengths[column]
            lengths[column] = corner + 1 if word == other else max(above, lengths[column - 1])
            corner = above
    return lengths[-1]
