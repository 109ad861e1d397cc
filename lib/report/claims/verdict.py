"""What a claim's test sees and says: `Material` in, a `Verdict` out, and the arithmetic between.

All tests compare scores of the same prompts, correct for the number of comparisons (Holm) and say
"cannot be told here" when the data allow both answers; absence of evidence never counts as "holds".
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd

from lib.metrics.estimates import counted, difference
from lib.metrics.intervals import Difference, Interval, holm

HOLDS, FAILS, UNKNOWN = "holds", "fails", "cannot be told here"
SYMBOLS = {HOLDS: "✓", FAILS: "✗", UNKNOWN: "?"}
LEVEL = 0.95
FEWEST_FACTS = 10  # resampling fewer independent facts gives intervals that are far too narrow


@dataclass(frozen=True)
class Material:
    """What claims are judged on (columns as the runs write): scored prompts, edited batches, timed
    forward passes (`costs.inference`), and what editors observed about themselves. `times` has a
    row per run: editor, m (facts edited at once), and seconds `train` and `edit` for one batch."""

    records: pd.DataFrame
    steps: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    inference: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    observations: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    times: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a test: its word and the sentence of numbers it rests on."""

    word: str
    evidence: str

    def __post_init__(self) -> None:
        if self.word not in SYMBOLS:
            raise ValueError(f"verdict {self.word!r} is none of {', '.join(SYMBOLS)}")


Test = Callable[[Material], Verdict]
Maker = TypeVar("Maker", bound=Callable[..., Test])
TESTS: dict[str, Callable[..., Test]] = {}


def claim_test(maker: Maker) -> Maker:
    """Register a maker of tests, so that a `page.yaml` can name it."""
    if maker.__name__ in TESTS:
        raise ValueError(f"there is a test {maker.__name__!r} already")
    TESTS[maker.__name__] = maker
    return maker


def scores(
    records: pd.DataFrame, metric: str, subset: str, setting: str | None, sweep: str = ""
) -> pd.DataFrame:
    """Rows of a subset that have the score, of one setting and of the main table or one sweep."""
    if metric not in records:
        raise ValueError(f"no score {metric!r} in these runs")
    rows = records[(records["subset"] == subset) & records[metric].notna()]
    if "sweep" in rows:
        rows = rows[rows["sweep"] == sweep]
    return rows if setting is None else rows[rows["setting"] == setting]


def paired(a: pd.DataFrame, b: pd.DataFrame, metric: str, level: float = LEVEL) -> Difference:
    """Differences a - b of the same prompt, setting and seed (`estimates.difference`)."""
    return difference(a, b, metric, level=level)


def decide(
    pairs: Sequence[tuple[str, Difference]],
    what: str,
    margin: float,
    better: str = "higher",
    *,
    strictly: bool = False,
) -> Verdict:
    """One verdict over several differences (name, ours minus theirs).

    Fails if any difference is significantly against us (Holm). Holds if every interval stays above
    -margin. `strictly`: holds only if every difference is significantly for us, and fails also
    where an interval shows a gain of at most the margin.
    """
    sign = {"higher": 1.0, "lower": -1.0}[better]
    adjusted = holm([difference.p for _, difference in pairs])
    parts, words = [], []
    for (name, d), p in zip(pairs, adjusted, strict=True):
        if d.n == 0:
            parts.append(f"{name}: no common prompts")
            words.append(UNKNOWN)
            continue
        parts.append(f"{name}: {amount(d)}, {chance(p)}")
        ends = sorted((sign * d.low, sign * d.high)) if d.known else (-math.inf, math.inf)
        significant = p < 1 - LEVEL
        if significant and sign * d.mean < 0:
            words.append(FAILS)
        elif d.clusters < FEWEST_FACTS:
            parts[-1] += f", only {d.clusters} independent facts"
            words.append(UNKNOWN)
        elif strictly:
            better_indeed = significant and ends[0] > 0
            words.append(HOLDS if better_indeed else FAILS if ends[1] <= margin else UNKNOWN)
        else:
            words.append(HOLDS if ends[0] >= -margin else UNKNOWN)
    word = next((w for w in (FAILS, UNKNOWN) if w in words), HOLDS if words else UNKNOWN)
    tail = f" (Holm over {len(pairs)})" if len(pairs) > 1 else ""
    return Verdict(
        word, f"Difference in {what}: {'; '.join(parts)}{tail}; margin {margin:g}, "
        f"{better} is better."
    )  # fmt: skip


def one_bound(name: str, at_least: float | None, at_most: float | None) -> None:
    """Refuse a test that names both bounds or none."""
    if (at_least is None) == (at_most is None):
        raise ValueError(f"{name}: give at_least or at_most")


def bounded(
    found: Interval, what: str, at_least: float | None = None, at_most: float | None = None
) -> Verdict:
    """Whether a mean is at least, or at most, so large (one of the two is None): the whole interval
    decides, and one that holds the bound cannot tell."""
    if not found.n:
        return Verdict(UNKNOWN, f"{what}: no rows.")
    bound = at_least if at_most is None else at_most
    ends = f"[{found.low:.3f}, {found.high:.3f}]" if found.known else "no interval"
    wanted = f"wanted: at {'least' if at_most is None else 'most'} {bound:g}"
    evidence = f"{what}: {found.mean:.3f} {ends}, {counted(found)}; {wanted}."
    if not found.known or found.clusters < FEWEST_FACTS:
        return Verdict(UNKNOWN, f"{evidence} Only {found.clusters} independent facts.")
    above, below = found.low >= bound, found.high <= bound
    holds, fails = (above, found.high < bound) if at_most is None else (below, found.low > bound)
    return Verdict(HOLDS if holds else FAILS if fails else UNKNOWN, evidence)


def amount(d: Difference) -> str:
    """A difference as a reader wants it: "+0.120 [+0.050, +0.190], n = 48"."""
    middle, low, high = (f"{x:+.3f}".replace("-", "−") for x in (d.mean, d.low, d.high))
    return f"{middle} {f'[{low}, {high}]' if d.known else 'no interval'}, {counted(d)}"


def chance(p: float) -> str:
    """A p-value in words that never show more digits than it has."""
    return "p undefined" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
