"""Claims: sentences of a paper, each with a test on reproduced numbers and a verdict.

A test is a function of `Material` that returns a `Finding` (`verdict`); `TESTS` names the factories
that make them (`comparisons`, `costs`).
"""

import html
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from lib.report.claims.comparisons import (
    ahead_at_equal_edits,
    ahead_on_subset,
    at_least,
    better_at_largest,
    better_at_sizes,
    better_on_some,
    better_than,
    better_variant,
    carries_more,
    codes_move,
    defers,
    family_ahead,
    flat_retention,
    gap_grows,
    hidden_by_forcing,
    left_to_backbone,
    mean_within,
    no_worse_than_before,
    none_keeps,
    read_higher_by_all,
    reads_higher,
    stable_over,
    stable_over_steps,
    sum_overshoots,
)
from lib.report.claims.costs import (
    constant_size,
    fewest,
    fits,
    less_time,
    overhead_below,
    passes_stay_flat,
)
from lib.report.claims.verdict import SYMBOLS, UNKNOWN, Finding, Material, Test

TESTS: dict[str, Callable[..., Test]] = {
    test.__name__: test
    for test in (
        ahead_at_equal_edits, ahead_on_subset, at_least, better_at_largest, better_at_sizes,
        better_on_some, better_than, better_variant, carries_more, codes_move, constant_size,
        defers, family_ahead, fewest, fits, flat_retention, gap_grows, hidden_by_forcing,
        left_to_backbone, less_time, mean_within, no_worse_than_before, none_keeps,
        overhead_below, passes_stay_flat, read_higher_by_all, reads_higher, stable_over,
        stable_over_steps, sum_overshoots,
    )
}  # fmt: skip


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
            raise ValueError(f"claim {texts[0]}: no test {name!r}; there are {', '.join(TESTS)}")
        return cls(*texts, TESTS[name](**arguments), shown, str(arguments.get("editor", "")))


@dataclass(frozen=True)
class Judgement:
    """Claims with their findings, in order; shows itself as a list in notebooks."""

    rows: tuple[tuple[Claim, Finding], ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims hold, fail, cannot be told."""
        return {verdict: sum(f.verdict == verdict for _, f in self.rows) for verdict in SYMBOLS}

    @property
    def tidy(self) -> pd.DataFrame:
        """One row per claim: key, sentence, source, verdict, evidence."""
        names = ["key", "sentence", "source", "verdict", "evidence"]
        rows = [(c.key, c.sentence, c.source, f.verdict, f.evidence) for c, f in self.rows]
        return pd.DataFrame(rows, columns=names)

    def to_html(self) -> str:
        """An ordered list; the verdict is a word with a symbol, never a colour alone."""
        items = "".join(
            f'<li class="claim"><p class="sentence">{html.escape(claim.sentence)} '
            f'<cite>{html.escape(claim.source)}</cite></p><p class="finding">'
            f'<span class="badge {found.verdict.split()[0]}"><span aria-hidden="true">'
            f"{SYMBOLS[found.verdict]}</span> {found.verdict}</span> "
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
            found = Finding(UNKNOWN, reason)
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
