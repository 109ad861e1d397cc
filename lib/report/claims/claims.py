"""Claims: sentences of a paper, each with a test on reproduced numbers and a verdict.

A test is a function of `Material` that returns a `Verdict`; `TESTS` names the functions that make
them: those imported here, and a paper's own (`papers/<paper>/claims.py`).
"""

import difflib
import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from lib.report.claims import comparisons, costs  # noqa: F401  (they register their tests)
from lib.report.claims.verdict import SYMBOLS, TESTS, UNKNOWN, Material, Test, Verdict


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, where it stands, and the test that decides about it.

    `shown` is the heading of the report's section with its table or figure, "" for none; `editor`
    whom the sentence is judged on.
    """

    key: str
    sentence: str
    source: str
    test: Test
    shown: str = ""
    editor: str = ""

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Claim":
        """A claim from {key, sentence, source, test: name in `TESTS`, **its arguments}."""
        arguments = dict(spec)
        texts = [str(arguments.pop(name)) for name in ("key", "sentence", "source")]
        name, shown = str(arguments.pop("test")), str(arguments.pop("shown", ""))
        if name not in TESTS:
            near = difflib.get_close_matches(name, TESTS)
            known = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(TESTS)}"
            raise ValueError(f"claim {texts[0]}: no test {name!r}; {known}")
        return cls(*texts, TESTS[name](**arguments), shown, str(arguments.get("editor", "")))


@dataclass(frozen=True)
class Judgement:
    """Claims with their verdicts, in order; shows itself as a list in notebooks."""

    rows: tuple[tuple[Claim, Verdict], ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims hold, fail, cannot be told."""
        return {word: sum(found.word == word for _, found in self.rows) for word in SYMBOLS}

    @property
    def tidy(self) -> pd.DataFrame:
        """One row per claim: key, sentence, source, verdict, evidence."""
        names = ["key", "sentence", "source", "verdict", "evidence"]
        rows = [(c.key, c.sentence, c.source, f.word, f.evidence) for c, f in self.rows]
        return pd.DataFrame(rows, columns=names)

    def to_html(self) -> str:
        """An ordered list; the verdict is a word with a symbol, never a colour alone."""
        items = "".join(
            f'<li class="claim"><p class="sentence">{html.escape(claim.sentence)} '
            f'<cite>{html.escape(claim.source)}</cite></p><p class="finding">'
            f'<span class="badge {found.word.split()[0]}"><span aria-hidden="true">'
            f"{SYMBOLS[found.word]}</span> {found.word}</span> "
            f"{html.escape(found.evidence)}{_shown(claim)}</p></li>"
            for claim, found in self.rows
        )
        return f'<ol class="claims">{items}</ol>'

    def _repr_html_(self) -> str:
        return self.to_html()


def judge(claims: Iterable[Claim], material: Material) -> Judgement:
    """Every claim judged; one whose test cannot run is "cannot be told here", with the reason."""
    rows = []
    for claim in claims:
        try:
            found = claim.test(material)
        except Exception as error:  # a broken test must not take the report down
            reason = f"The test could not run: {type(error).__name__}: {error}"
            found = Verdict(UNKNOWN, reason)
        rows.append((claim, found))
    return Judgement(tuple(rows))


def section_id(heading: str) -> str:
    """The id that `notebook.finish` gives to the first section with this heading."""
    return re.sub(r"[^\w-]+", "-", heading.lower()).strip("-")


def _shown(claim: Claim) -> str:
    """A link to the section that shows the claim's numbers."""
    if not claim.shown:
        return ""
    return f' <a href="#{section_id(claim.shown)}">{html.escape(claim.shown)}</a>'
