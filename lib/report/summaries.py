"""What a report leaves for the front page: `<key>.summary.json`, checked when it is read back."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib.errors import StoreError
from lib.report.claims.claims import Beside
from lib.report.claims.verdict import COUNTED, MARKS, WORDS, decided_in, over_settings
from lib.report.orderings import Ordered
from lib.runs.settings import PROFILES
from lib.storage.atomic import write_text

SCHEMA = 4  # 1 counted claims and did not tell them, 2 knew other verdicts, 3 told levels
STATUSES = ("done", "partial", "failed")


def _known(entry: object, *names: str) -> None:
    """Numbers that JSON has as null are NaN again."""
    for name in names:
        if getattr(entry, name) is None:
            object.__setattr__(entry, name, math.nan)


@dataclass(frozen=True)
class Scale:
    """How large a setting of a report is: its backbone, the most edits that an editor makes, in
    batches of how many, under how many orders (seeds), by which editors. `spread`: the largest
    standard deviation over the orders of an editor's edit success, NaN for one order."""

    setting: str
    model: str
    edits: int
    batch: int
    seeds: int
    editors: tuple[str, ...]
    spread: float = math.nan

    def __post_init__(self) -> None:
        object.__setattr__(self, "editors", tuple(self.editors))  # JSON has lists
        _known(self, "spread")


@dataclass(frozen=True)
class Best:
    """One of the best editors by a measure, with its interval over `n` scored rows."""

    editor: str
    measure: str
    score: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0

    def __post_init__(self) -> None:
        _known(self, "score", "low", "high")


@dataclass(frozen=True)
class Told:
    """One sentence as one setting judges it: a claim of the paper, or a finding of our own.

    `setting` is the setting's title, `editor` whom the sentence is judged on, `section` the id of
    the report's section that shows the numbers ("" for none). `n` and `facts`: scored rows and
    independent facts behind the largest piece of evidence. `compared` is the row of evidence that
    the verdict hangs on ("" for none), `effect` its mean with its interval, `wanted` its bound.
    `because`: keys of the report's findings that say why the sentence fails.
    """

    key: str
    sentence: str
    source: str
    setting: str
    verdict: str
    evidence: str
    editor: str = ""
    section: str = ""
    marks: tuple[str, ...] = ()
    n: int = 0
    facts: int = 0
    compared: str = ""
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    wanted: str = ""
    because: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("marks", "because"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        _known(self, "effect", "low", "high")
        if self.verdict not in WORDS:
            raise ValueError(f"{self.key}: unknown verdict {self.verdict!r}")
        if not set(self.marks) <= set(MARKS):
            raise ValueError(f"{self.key}: unknown mark among {self.marks!r}")


@dataclass(frozen=True)
class PaperSummary:
    """What a report tells the front page. `report` is its file name relative to the index.

    `status`: "done", "partial" (some runs failed) or "failed" (no usable report). `made` says what
    the runs were made with: lists under "machines", "commits", "dates" and "versions". `runs`
    holds the seconds of each; other pages may show the same ones. `order` sorts the page.
    """

    key: str
    title: str
    venue: str = ""
    summary: str = ""
    status: str = "done"
    report: str = ""
    scales: tuple[Scale, ...] = ()
    orderings: tuple[Ordered, ...] = ()
    best: tuple[Best, ...] = ()
    claims: tuple[Told, ...] = ()
    findings: tuple[Told, ...] = ()
    substitutions: tuple[str, ...] = ()
    runs: Mapping[str, float] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    profile: str = ""
    order: int = 100
    short: str = ""
    made: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"{self.key}: status {self.status!r} is none of {STATUSES}")

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> "PaperSummary":
        """A summary from plain data; another schema and unknown keys are errors that say so."""
        written = content.get("schema", SCHEMA)
        if written != SCHEMA:
            raise ValueError(f"a summary of schema {written}, and this version reads {SCHEMA}")
        values = {key: value for key, value in content.items() if key != "schema"}
        unknown = set(values) - {item.name for item in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown entries: {', '.join(sorted(unknown))}")
        for name, kind in _KINDS.items():
            rows = values.get(name, ())
            values[name] = tuple(row if isinstance(row, kind) else kind(**row) for row in rows)
        for name in ("substitutions", "errors"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)

    @property
    def seconds(self) -> float:
        """What the runs of the page took in all, those included that other pages show too."""
        return sum(self.runs.values())

    @property
    def name(self) -> str:
        """The short name of the paper."""
        return self.short or self.title

    @property
    def safe_report(self) -> str:
        """`report` if it is a plain relative file name, else "": data never makes a script link."""
        plain = self.report and ":" not in self.report and not self.report.startswith(("/", "\\"))
        return self.report if plain else ""


_KINDS = {"scales": Scale, "orderings": Ordered, "best": Best, "claims": Told, "findings": Told}


def by_sentence(told: Iterable[Told]) -> list[tuple[Told, ...]]:
    """The judgements of each sentence together, in the order of their first appearance; within one,
    the setting with the most independent facts first."""
    found: dict[str, list[Told]] = {}
    for one in told:
        found.setdefault(one.key, []).append(one)
    return [tuple(sorted(group, key=lambda one: -one.facts)) for group in found.values()]


def overall(group: Iterable[Told]) -> str:
    """The verdict on one sentence over the settings that judged it (`verdict.over_settings`)."""
    return over_settings([(one.verdict, one.marks) for one in group])


def tally(told: Iterable[Told]) -> dict[str, int]:
    """How many sentences have each verdict over their settings (`COUNTED`); each counts once, in
    however many settings it was judged."""
    counts = Counter(overall(group) for group in by_sentence(told))
    return {verdict: counts[verdict] for verdict in COUNTED}


def beside(folder: Path, profile: str, paper: str) -> dict[str, tuple[Beside, ...]]:
    """What the longer profiles whose results lie beside `folder` say of a report's claims and
    findings, by key; a summary that is missing or cannot be read says nothing."""
    known = PROFILES[PROFILES.index(profile) + 1 :] if profile in PROFILES else ()
    found: dict[str, list[Beside]] = {}
    for name in known:
        path = Path(folder).parent / name / f"{paper}.summary.json"
        try:
            other = PaperSummary.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        page = other.safe_report
        link = f"../{name}/{page}" if page and (path.parent / page).is_file() else ""
        for group in by_sentence([*other.claims, *other.findings]):
            judged = [(one.verdict, one.marks) for one in group]
            found.setdefault(group[0].key, []).append(
                Beside(name, over_settings(judged), decided_in(judged), group[0].facts, link)
            )
    return {key: tuple(rows) for key, rows in found.items()}


def write_summary(folder: Path, summary: PaperSummary) -> None:
    """Write `<key>.summary.json` into `folder`, where the index looks for it."""
    content = {"schema": SCHEMA, **dataclasses.asdict(summary)}
    path = Path(folder) / f"{summary.key}.summary.json"
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False))


def read_summaries(folder: Path) -> list[PaperSummary]:
    """All summaries in `folder` in page order; one that cannot be read is an error that names the
    file and the way out."""
    found = []
    for path in sorted(Path(folder).glob("*.summary.json")):
        try:
            found.append(PaperSummary.from_dict(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            key = path.name.removesuffix(".summary.json")
            raise StoreError(
                f"{path}: {error}. Render that report again (./run_all.sh --only {key}; finished "
                "runs are reused), or delete the file."
            ) from error
    return sorted(found, key=lambda paper: (paper.order, paper.key))


def _finite(value: object) -> object:
    """JSON has no NaN: a missing number is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
