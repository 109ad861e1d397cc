"""Claims: sentences of a paper, each with a test on reproduced numbers and a verdict.

A test is a function of `Material` that returns a `Verdict`; `TESTS` names the functions that make
them: those imported here, and a paper's own (`papers/<paper>/claims.py`).
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from lib.report.claims import comparisons, costs  # noqa: F401  (they register their tests)
from lib.report.claims.verdict import (
    BY_CONSTRUCTION,
    COUNTED,
    DIFFERS,
    HOLDS,
    INCONCLUSIVE,
    MARKS,
    NOT_TESTABLE,
    SYMBOLS,
    TESTS,
    Evidence,
    Material,
    Test,
    Verdict,
    decided_in,
    over_settings,
)
from lib.report.templates import fill

SAID = ["key", "sentence", "source", "editor", "verdict", "marks", "evidence"]
NUMBERS = ["row", *(item.name for item in dataclasses.fields(Evidence)[1:])]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, where it stands, and the test that decides about it.

    `shown` is the heading of the report's section with its table or figure, "" for none; `editor`
    whom the sentence is judged on. `by_construction`: the method is made so that it must hold.
    `because`: keys of the findings that say why it fails, where it does and they hold.
    """

    key: str
    sentence: str
    source: str
    test: Test
    shown: str = ""
    editor: str = ""
    by_construction: bool = False
    because: tuple[str, ...] = ()

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Claim":
        """A claim from {key, sentence, source, test: name in `TESTS`, **its arguments}."""
        arguments = dict(spec)
        texts = [str(arguments.pop(name)) for name in ("key", "sentence", "source")]
        name, shown = str(arguments.pop("test")), str(arguments.pop("shown", ""))
        built = bool(arguments.pop("by_construction", False))
        because = tuple(arguments.pop("because", ()))
        if name not in TESTS:
            near = difflib.get_close_matches(name, TESTS)
            known = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(TESTS)}"
            raise ValueError(f"claim {texts[0]}: no test {name!r}; {known}")
        editor = str(arguments.get("editor", ""))
        return cls(*texts, TESTS[name](**arguments), shown, editor, built, because)


@dataclass(frozen=True)
class Judgement:
    """Claims with their verdicts in one setting, in order; shows itself as a list in notebooks."""

    rows: tuple[tuple[Claim, Verdict], ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims have each verdict of one setting."""
        found = [over_settings([(verdict.word, verdict.marks)]) for _, verdict in self.rows]
        return {word: found.count(word) for word in COUNTED if word != DIFFERS}

    @property
    def tidy(self) -> pd.DataFrame:
        """One row per claim: `SAID`, n and independent facts."""
        rows = [(*_said(claim, found), found.n, found.facts) for claim, found in self.rows]
        return pd.DataFrame(rows, columns=[*SAID, "n", "facts"])

    @property
    def numbers(self) -> pd.DataFrame:
        """One row per row of evidence: `SAID`, the row's numbers (`NUMBERS`) and, as "says", what
        they say by its rule. A claim without evidence has one row without numbers."""
        rows = [
            (*_said(claim, found), *told)
            for claim, found in self.rows
            for told in [(*dataclasses.astuple(row), row.outcome) for row in found.rows]
            or [(None,) * (len(NUMBERS) + 1)]
        ]
        return pd.DataFrame(rows, columns=[*SAID, *NUMBERS, "says"])

    def to_html(self) -> str:
        """An ordered list; the verdict is a word with a symbol, never a colour alone."""
        return Verdicts({"": self}).to_html()

    def _repr_html_(self) -> str:
        return self.to_html()


def _said(claim: Claim, found: Verdict) -> tuple[str, ...]:
    return (
        claim.key, claim.sentence, claim.source, claim.editor, found.word, ", ".join(found.marks),
        found.evidence,
    )  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """What another profile says of a claim: its verdict (of `COUNTED`), in how many settings of how
    many that could test it, the independent facts of the largest, and the page that says so."""

    profile: str
    verdict: str
    settings: tuple[int, int]
    facts: int
    link: str = ""

    def to_html(self) -> str:
        """ "overnight: holds in 2 of 3 settings (500 facts)" with a link to the page."""
        facts = f" ({self.facts:,} facts)" if self.facts else ""
        text = f"{reach(self.verdict, self.settings)}{facts}"
        own = badge(self.verdict)
        return fill("badge", profile=self.profile, link=self.link, badge=own, text=text)


@dataclass(frozen=True)
class Verdicts:
    """Every claim as all settings judge it, the one with the most independent facts first; shows
    itself as a list with one entry a claim. `titles` of settings, `beside` by key of the claim."""

    by_setting: Mapping[str, Judgement]
    titles: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, tuple[Beside, ...]] = field(default_factory=dict)

    @property
    def tidy(self) -> pd.DataFrame:
        """`Judgement.tidy` of all settings, with the column "setting" in front."""
        return _together({name: judged.tidy for name, judged in self.by_setting.items()})

    @property
    def numbers(self) -> pd.DataFrame:
        """`Judgement.numbers` of all settings, with the column "setting" in front."""
        return _together({name: judged.numbers for name, judged in self.by_setting.items()})

    def to_html(self) -> str:
        """An ordered list: sentence, verdict over the settings, evidence of each setting."""
        found: dict[str, list[tuple[str, Claim, Verdict]]] = {}
        for name, judged in self.by_setting.items():
            for claim, verdict in judged.rows:
                title = self.titles.get(name, name)
                found.setdefault(claim.key, []).append((title, claim, verdict))
        entries = [self._entry(key, rows) for key, rows in found.items()]
        return fill("claims", claims=entries) if entries else ""

    def _entry(self, key: str, rows: list[tuple[str, Claim, Verdict]]) -> dict[str, object]:
        claim = rows[0][1]
        judged = [(verdict.word, verdict.marks) for _, _, verdict in rows]
        word = over_settings(judged)
        return {
            "sentence": claim.sentence, "source": claim.source, "badge": badge(word),
            "where": reach(word, decided_in(judged)), "shown": claim.shown,
            "section": section_id(claim.shown),
            "beside": [one.to_html() for one in self.beside.get(key, ())],
            "rows": [
                {
                    "badge": badge(found.word, found.marks), "title": title,
                    "evidence": found.evidence,
                }
                for title, _, found in _first(rows, word)
            ],
        }  # fmt: skip

    def _repr_html_(self) -> str:
        return self.to_html() or "<p><em>No setting of this profile can test one.</em></p>"


def _together(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames of settings, one below the other, each row with its setting in front."""
    if not frames:
        return Judgement(()).numbers.assign(setting=[])
    parts = [frame.astype(object).assign(setting=name) for name, frame in frames.items()]
    rows = pd.concat(parts, ignore_index=True).infer_objects()
    return rows[["setting", *(name for name in rows if name != "setting")]]


def _first(rows: list[tuple[str, Claim, Verdict]], word: str) -> list[tuple[str, Claim, Verdict]]:
    """The rows with the one that stands unfolded first: of those with the verdict over the settings
    the one with the most independent facts. The others follow, the largest first."""
    ordered = sorted(rows, key=lambda row: -row[2].facts)
    ahead = next((row for row in ordered if row[2].word == word), ordered[0])
    return [ahead, *(row for row in ordered if row is not ahead)]


def badge(verdict: str, marks: Iterable[str] = (), where: str = "") -> str:
    """A verdict (one of `COUNTED`) and its marks as words with a symbol, never a colour alone."""
    marks = tuple(marks)
    named = marks[0] if marks else verdict
    text = f"{HOLDS}, {named}" if named in MARKS else verdict
    kind = "marked" if named in MARKS else named.split()[0]
    return fill("badge", profile="", kind=kind, symbol=SYMBOLS[named], text=text + where)


def reach(verdict: str, settings: tuple[int, int]) -> str:
    """ " in 1 of 3 settings": where a verdict is not that of all settings that could test it."""
    same, testable = settings
    if verdict in (DIFFERS, INCONCLUSIVE, NOT_TESTABLE) or same == testable:
        return ""
    return f" in {same} of {testable} settings"


def judge(claims: Iterable[Claim], material: Material) -> Judgement:
    """Every claim judged; one whose test breaks is inconclusive, with the reason."""
    rows = []
    for claim in claims:
        try:
            found = claim.test(material)
        except Exception as error:  # a broken test must not take the report down
            found = Verdict(
                INCONCLUSIVE, f"The test could not run: {type(error).__name__}: {error}"
            )
            if material.records.empty:
                found = Verdict(NOT_TESTABLE, "No run that it could be read on is finished.")
        if claim.by_construction and found.word == HOLDS:
            found = dataclasses.replace(found, marks=(*found.marks, BY_CONSTRUCTION))
        rows.append((claim, found))
    return Judgement(tuple(rows))


def section_id(heading: str) -> str:
    """The id that `notebook.finish` gives to the first section with this heading."""
    return re.sub(r"[^\w-]+", "-", heading.lower()).strip("-")
