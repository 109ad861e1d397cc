"""Who is best, and how sure that is: ranks of editors under resampling of facts and order seeds.

Pure arithmetic on a `Sample`. A measure is the mean of one part (reliability, say) or the harmonic
mean of several (the editing score: reliability, generality, locality; MEMIT's and ROME's "Score").
All editors are read on the same resample, so that what makes a fact hard moves them together.
Resampling cannot see the failures that a perfect editor did not have: where no draw differs, at
most the share f of `intervals` (upper Wilson limit of 0 in n facts) can, in every part.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lib.metrics.intervals import Difference, for_few, jackknife_t, wilson

RESAMPLES = 4000
SWAPS = 10_000
FEW = 10  # units up to which all swaps are counted
_CELLS = 4_000_000  # numbers held at once: 32 MB


@dataclass(frozen=True)
class Sample:
    """Scores of some editors on the same units: `sums` and `counts` [editors, parts, seeds, units].

    A unit (`unit`: a fact, or a batch of edits) may have several rows in a part and none under a
    seed. `units` names them, `facts` counts the facts that they hold.
    """

    editors: tuple[str, ...]
    units: tuple[str, ...]
    sums: np.ndarray
    counts: np.ndarray
    unit: str = "fact"
    facts: int = 0

    def __post_init__(self) -> None:
        if self.sums.shape != self.counts.shape or self.sums.ndim != 4:
            raise ValueError(f"sums {self.sums.shape} and counts {self.counts.shape} do not match")

    @property
    def scores(self) -> np.ndarray:
        """The measure of every editor on all rows [editors]."""
        _, _, seeds, units = self.sums.shape
        return self.under(np.ones((1, seeds, units)))[0]

    def under(self, weights: np.ndarray) -> np.ndarray:
        """The measure of every editor under weights [n, seeds, units]: [n, editors]."""
        editors, parts, *_ = self.sums.shape
        flat = weights.reshape(len(weights), -1)
        sums, counts = (
            flat @ side.reshape(editors * parts, -1).T for side in (self.sums, self.counts)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return harmonic((sums / counts).reshape(-1, editors, parts))


@dataclass(frozen=True)
class Standing:
    """An editor's measure with its interval, its rank (1: best), the interval of the rank and how
    often it is best; ties share a rank's place and the honour of being best."""

    editor: str
    score: float
    low: float
    high: float
    rank: float
    rank_low: float
    rank_high: float
    best: float


def harmonic(parts: np.ndarray) -> np.ndarray:
    """The harmonic mean over the last axis; 0 where a part is 0, NaN where one is missing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = parts.shape[-1] / (1.0 / parts).sum(axis=-1)
    return np.where(np.isnan(parts).any(axis=-1), np.nan, found)


def ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks over the last axis, 1 for the largest; equal scores share the mean of their places."""
    above = (scores[..., None, :] > scores[..., :, None]).sum(axis=-1)
    equal = (scores[..., None, :] == scores[..., :, None]).sum(axis=-1)
    return 1 + above + (equal - 1) / 2


def weights(seeds: int, units: int, resamples: int, draw: np.random.Generator) -> np.ndarray:
    """How often each unit under each order seed is drawn [resamples, seeds, units].

    Units are drawn with replacement; order seeds too, independently, where there are several.
    """
    of_units = draw.multinomial(units, np.full(units, 1 / units), resamples)
    of_seeds = draw.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    return (of_seeds[:, :, None] * of_units[:, None, :]).astype(float)


def standings(
    sample: Sample, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> list[Standing]:
    """Every editor's standing, best first. Intervals are percentiles of the resamples, widened for
    few units (`intervals.for_few`)."""
    if not sample.editors or not sample.units:
        return []
    drawn = resampled(sample, resamples, seed)
    # A resample may miss all rows of a part: rare, and of no use for comparing.
    drawn = drawn[np.isfinite(drawn).all(axis=-1)]
    shown, placed = sample.scores, ranks(sample.scores)
    under = ranks(np.round(drawn, 12))
    first = under == under.min(axis=-1, keepdims=True)
    best = (first / first.sum(axis=-1, keepdims=True)).mean(axis=0)
    ends = percentiles(sample, level)
    low, high = np.percentile(drawn, ends, axis=0)
    fixed = np.ptp(drawn, axis=0) == 0  # no draw differs: an interval of width 0 would be a lie
    least, most = _reach(sample, level)
    low, high = np.where(fixed, least, low), np.where(fixed, most, high)
    rank_low, rank_high = np.percentile(under, ends, axis=0, method="closest_observation")
    found = [
        Standing(*map(_plain, values))
        for values in zip(
            sample.editors, shown, low, high, placed, rank_low, rank_high, best, strict=True
        )
    ]
    return sorted(found, key=lambda standing: (standing.rank, -standing.best))


def difference(
    sample: Sample, one: str, other: str, *, level: float = 0.95, resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:  # fmt: skip
    """One editor's measure minus another's, its interval by resampling, and the p-value of "the two
    are exchangeable": both editors' rows of whole facts are swapped (`swapped`); where batches are
    the units, which are few, of "no difference" by Student's t (`jackknife_t`)."""
    a, b = (sample.editors.index(name) for name in (one, other))
    pair = replace(
        sample, editors=(one, other), sums=sample.sums[[a, b]], counts=sample.counts[[a, b]]
    )
    rows = int(pair.counts[0].sum())
    units = len(sample.units)
    gap = float(np.subtract(*pair.scores)) if units else math.nan
    if units < 2:
        return Difference(gap, math.nan, math.nan, rows, units, "none")
    drawn = np.subtract(*resampled(pair, resamples, seed).T)
    ends = percentiles(sample, level)
    if np.ptp(drawn[np.isfinite(drawn)]) > 0:
        low, high = (float(end) for end in np.nanpercentile(drawn, ends))
        method = "bootstrap percentile"
    else:
        low, high, method = *_unseen(pair, gap, level), "all equal"
    p, at_floor = swapped(pair, seed=seed)
    if sample.unit != "fact" and gap:
        without = 1 - np.eye(units)[:, None, :].repeat(sample.sums.shape[2], axis=1)
        p, at_floor = jackknife_t(gap, np.subtract(*pair.under(without).T)), False
    return Difference(
        gap, low, high, rows, units, method, sample.unit, sample.facts, p=p, at_floor=at_floor
    )


def swapped(pair: Sample, *, swaps: int = SWAPS, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p-value: how often swapping the two editors' rows, unit by unit, gives a difference
    of the measure as large as the one seen; and whether no smaller one was possible. Every way of
    swapping where few units differ, else `swaps` random ones (fixed seed). For one part with equal
    counts this is the sign-flip test."""
    moving = (pair.sums[0] != pair.sums[1]) | (pair.counts[0] != pair.counts[1])
    moving = moving.any(axis=(0, 1))
    fixed = [side[:, :, :, ~moving].sum(axis=(2, 3)) for side in (pair.sums, pair.counts)]
    sums, counts = (side[:, :, :, moving].sum(axis=2) for side in (pair.sums, pair.counts))
    units = sums.shape[-1]
    if not units:
        return 1.0, False
    observed = abs(np.subtract(*pair.scores))
    hits = total = 0
    for turned in _turns(units, swaps, np.random.default_rng(seed)):
        gaps = _gap((sums, counts), fixed, turned)
        hits += int((np.abs(gaps) >= observed - 1e-12).sum())
        total += len(turned)
    # As seen and with every unit swapped there are always two; random swaps add what was seen.
    return (
        (hits / total, hits == 2 < total) if units <= FEW else ((hits + 1) / (total + 1), hits == 0)
    )


def _unseen(pair: Sample, gap: float, level: float) -> tuple[float, float]:
    """The ends of the difference where no draw of units moves it: as far as either editor reaches
    with the other as it is, or, where they differ in all units, with both moved."""
    (least, most), now = _reach(pair, level), pair.scores
    if gap:
        return least[0] - most[1], most[0] - least[1]
    down, up = least - now, most - now
    return min(down[0], -up[1]), max(up[0], -down[1])


def _reach(sample: Sample, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The measure of every editor with a share f of every part lost, and gained [editors] each."""
    share = wilson(0, sample.facts or len(sample.units), level).high
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = sample.sums.sum(axis=(2, 3)) / sample.counts.sum(axis=(2, 3))
    return harmonic(np.maximum(parts - share, 0)), harmonic(np.minimum(parts + share, 1))


def percentiles(sample: Sample, level: float) -> tuple[float, float]:
    """The percentiles between which an interval of this level lies."""
    level = for_few(level, len(sample.units))
    return 100 * (1 - level) / 2, 100 * (1 + level) / 2


def _turns(units: int, swaps: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Which units are swapped, [some, units] at a time."""
    if units <= FEW:
        yield np.array(list(itertools.product((0.0, 1.0), repeat=units)))
        return
    size = max(1, _CELLS // units)
    while swaps > 0:
        yield draw.integers(0, 2, (min(size, swaps), units)).astype(float)
        swaps -= size


def _gap(
    sides: tuple[np.ndarray, np.ndarray], fixed: list[np.ndarray], turned: np.ndarray
) -> np.ndarray:
    """The difference of the measure with some units swapped: [some]."""
    values = []
    for side, still in zip(sides, fixed, strict=True):
        moved = turned @ (side[1] - side[0]).T  # what the first editor gains by the swaps
        values.append((side[0].sum(-1) + still[0] + moved, side[1].sum(-1) + still[1] - moved))
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (harmonic(s / c) for s, c in zip(*values, strict=True))
    return first - second


def resampled(sample: Sample, resamples: int, seed: int) -> np.ndarray:
    """The measure of every editor on every resample [resamples, editors]."""
    _, _, seeds, units = sample.sums.shape
    draw, size = np.random.default_rng(seed), max(1, _CELLS // (seeds * units))
    sizes = [min(size, resamples - at) for at in range(0, resamples, size)]
    return np.concatenate([sample.under(weights(seeds, units, n, draw)) for n in sizes])


def _plain(value: object) -> object:
    return value if isinstance(value, str) else float(value)
