"""What a backbone was found to know of the embedded data: numbers, no model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lib.data.embedded.triples import Fact
from lib.data.records import Edit
from lib.storage.fingerprints import content_hash


@dataclass(frozen=True)
class Answer:
    """What the backbone did with one wording of one fact (teacher forcing).

    `first`: its most likely next token begins an accepted object; `full`: every token of one is
    its most likely one; `top`: that next token as text; `typed`: among the first tokens of the
    relation's objects, the most likely begins an accepted one.
    """

    first: bool
    full: bool
    top: str
    typed: bool


@dataclass(frozen=True)
class Knowledge:
    """Answers by fact identity and form; facts beyond the cap were not asked and are absent."""

    answers: dict[str, dict[str, Answer]]
    forms: tuple[str, ...]
    first_tokens: dict[str, int] = field(default_factory=dict)

    def knows(self, fact: Fact, forms: Sequence[str] | None = None) -> bool | None:
        """Whether an accepted object comes out whole in any of `forms` (default: all asked).

        None if the fact was not asked in any of them.
        """
        asked = self.answers.get(fact.identity, {})
        found = [asked[form].full for form in forms or self.forms if form in asked]
        return any(found) if found else None

    def first_token(self, value: str) -> int | None:
        """Id of the first token of an object; None if it was not among the facts."""
        return self.first_tokens.get(value)

    @property
    def content(self) -> str:
        """sha256 over all answers, for run identities."""
        return content_hash([self.answers, list(self.forms)])


@dataclass(frozen=True)
class Likelihoods:
    """Mean negative log-likelihood (nats per token of the target, no end mark) by edit identity;
    edits beyond the cap were not read and are absent."""

    answers: dict[str, float]

    def perplexity(self, edit: Edit) -> float | None:
        """exp of the mean negative log-likelihood; None if the edit was not read."""
        nll = self.answers.get(edit.identity)
        return None if nll is None else math.exp(nll)

    @property
    def content(self) -> str:
        """sha256 over all values, for run identities."""
        return content_hash(self.answers)
