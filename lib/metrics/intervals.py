"""Uncertainty: intervals of means, paired differences, and agreement with a reported number.

Everything here takes per-record scores and gives numbers back. Several rows of one unit (a fact's
rephrases, the edits of a batch) are not independent: with `groups`, whole units are resampled.
Which unit that is, `lib.metrics.estimates` decides from records; `Scale` says what a score can be.
"""

import functools
import itertools
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lib.metrics.scales import Scale

RESAMPLES = 2000
FLIPS = 10_000
_BATCH_CELLS = 4_000_000  # numbers held at once while resampling: 32 MB


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; `n` counts rows, `clusters` the units that were resampled, `facts`
    the different facts. `unit` says what the units are.

    `low` and `high` are NaN where no interval exists (fewer than two independent units).
    """

    mean: float
    low: float
    high: float
    n: int
    clusters: int
    method: str
    unit: str = "row"
    facts: int = 0

    @property
    def known(self) -> bool:
        """True if both ends of the interval are numbers."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Difference(Interval):
    """Mean of a - b over pairs, its interval, and the two-sided p-value of "no difference".

    `at_floor`: no smaller p-value is possible with so many units or random flips.
    """

    p: float = math.nan
    at_floor: bool = False


@dataclass(frozen=True)
class Spread:
    """Means of single seeds: their mean, sample standard deviation and extremes."""

    mean: float
    sd: float
    low: float
    high: float
    seeds: int


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion; NaN ends for n = 0."""
    if not 0 <= successes <= max(n, 0):
        raise ValueError(f"{successes} successes in {n} trials is impossible")
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, 0, "none")
    z = float(stats.norm.ppf(0.5 + level / 2))
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # At 0 and n the formula meets the border exactly; rounding must not push it past.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(p, low, high, n, n, "Wilson")


def mean_interval(
    values: Iterable[float],
    *,
    scale: Scale | None = None,
    groups: Iterable[object] | None = None,
    level: float = 0.95,
) -> Interval:
    """Mean of `values` (NaN rows left out) with its interval.

    A binary score of independent rows: Wilson. Others: bootstrap BCa with a fixed seed, widened for
    few units (`for_few`), its percentile form where BCa is undefined. All values equal: see
    `_constant`; without a `scale` (seconds, counts) there is no interval then.
    """
    scores, labels = _clean(values, groups)
    n = len(scores)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, 0, "none")
    sums, counts = _by_group(scores, labels)
    clusters = len(sums)
    mean = float(scores.mean())
    if clusters < 2:
        return Interval(mean, math.nan, math.nan, n, clusters, "none")
    if scale is not None and scale.binary and clusters == n:
        return wilson(float(scores.sum()), n, level)
    if np.ptp(scores) == 0:
        low, high = (math.nan, math.nan) if scale is None else scale.reach(mean)
        low, high = _constant(mean, clusters, level, low, high)
        return Interval(mean, low, high, n, clusters, "all equal")
    low, high, method = _bootstrap(sums, counts, level)
    return Interval(mean, low, high, n, clusters, method)


def paired_difference(
    a: Iterable[float],
    b: Iterable[float],
    *,
    scale: Scale | None = None,
    groups: Iterable[object] | None = None,
    level: float = 0.95,
    student: bool = False,
) -> Difference:
    """Mean of a - b over pairs in which both are defined, interval and p-value.

    p by flipping the signs of whole groups: all ways when few, else 10,000 random ones (fixed
    seed). With `student` by Student's t over the groups (`jackknife_t`): for units so few that
    flips could not tell (ten batches allow none below 2 / 2^10).
    """
    left, right = np.asarray(list(a), float), np.asarray(list(b), float)
    if left.shape != right.shape:
        raise ValueError(f"pairs need equal lengths, got {len(left)} and {len(right)}")
    scores, labels = _clean(left - right, groups)
    n = len(scores)
    if n == 0:
        return Difference(math.nan, math.nan, math.nan, 0, 0, "none")
    sums, counts = _by_group(scores, labels)
    clusters, mean = len(sums), float(scores.mean())
    if clusters < 2:
        return Difference(mean, math.nan, math.nan, n, clusters, "none")
    if np.ptp(scores) == 0:
        span = math.nan if scale is None else max(scale.span, abs(mean))
        low, high = _constant(mean, clusters, level, -span, span)
        method = "all equal"
    else:
        low, high, method = _bootstrap(sums, counts, level)
    p, at_floor = _sign_flip(sums)
    if student:
        left_out = (sums.sum() - sums) / (counts.sum() - counts)
        p, at_floor = jackknife_t(mean, left_out), False
    return Difference(mean, low, high, n, clusters, method, p=p, at_floor=at_floor)


def z_score(
    reported: float,
    values: Iterable[float],
    n_reported: int,
    *,
    scale: Scale | None = None,
    groups: Iterable[object] | None = None,
    resolution: float = 0.0,
) -> float:
    """Distance between our mean and a reported one in standard errors; NaN if undefined.

    z = (m - r) / sqrt(s_n^2 + s^2 / n_r): m our mean, s_n^2 the variance of m (between groups
    where given), s the standard deviation of our single records, n_r the paper's number of records
    (the paper prints no deviation, so ours stands in for it). |m - r| is first reduced by
    `resolution`, half a unit of the last printed digit. If all scores of a scale of 0 to 1 agree, s
    is that of Agresti and Coull's shifted proportion (x + 2)/(n + 4), because s = 0 would make
    every reported number "different".
    """
    scores, labels = _clean(values, groups)
    sums, counts = _by_group(scores, labels)
    clusters = len(sums)
    if clusters < 2 or not math.isfinite(reported) or not n_reported or n_reported < 1:
        return math.nan
    mean, variance = float(scores.mean()), float(scores.var(ddof=1))
    if variance == 0:
        if scale is None or (scale.low, scale.high) != (0.0, 1.0):
            return math.nan
        shifted = (mean * clusters + 2) / (clusters + 4)
        variance = shifted * (1 - shifted)
        of_mean = variance / clusters
    else:
        residuals = sums - mean * counts
        of_mean = clusters / (clusters - 1) * float((residuals**2).sum()) / counts.sum() ** 2
    gap = mean - reported
    gap = math.copysign(max(abs(gap) - resolution, 0.0), gap)
    return gap / math.sqrt(of_mean + variance / n_reported)


def compare(
    reported: float | None,
    values: Iterable[float],
    n_reported: int | None,
    *,
    scale: Scale | None = None,
    groups: Iterable[object] | None = None,
    resolution: float = 0.0,
    level: float = 0.95,
) -> str:
    """Our scores against a reported mean: "consistent", "above", "below" or "not comparable".

    "above" is a larger number, whether or not larger is better. "not comparable": nothing
    reported, the paper's n unknown, or fewer than two records of ours. Formula: `z_score`.
    """
    if reported is None or n_reported is None:
        return "not comparable"
    z = z_score(reported, values, n_reported, scale=scale, groups=groups, resolution=resolution)
    if math.isnan(z):
        return "not comparable"
    if abs(z) <= stats.norm.ppf(0.5 + level / 2):
        return "consistent"
    return "above" if z > 0 else "below"


def spread_over_seeds(values: Iterable[float], seeds: Iterable[object]) -> Spread:
    """How far the means of single seeds lie apart; sd is NaN for one seed."""
    scores, labels = _clean(values, seeds)
    if not len(scores):
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    sums, counts = _by_group(scores, labels)
    means = sums / counts
    sd = float(means.std(ddof=1)) if len(means) > 1 else math.nan
    return Spread(float(means.mean()), sd, float(means.min()), float(means.max()), len(means))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values in the given order; NaN stays NaN and is not counted."""
    adjusted = [math.nan] * len(pvalues)
    known = sorted((p, i) for i, p in enumerate(pvalues) if not math.isnan(p))
    running = 0.0
    for rank, (p, i) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * p))
        adjusted[i] = running
    return adjusted


def facts(records: Iterable[str]) -> list[str]:
    """The fact of each record identity: phrasings "fact#1", "fact#2" of one fact are one unit."""
    return [re.sub(r"#\d+$", "", str(record)) for record in records]


def _clean(
    values: Iterable[float], groups: Iterable[object] | None
) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(list(values), float)
    labels = np.arange(len(scores)) if groups is None else np.asarray([str(g) for g in groups])
    if len(labels) != len(scores):
        raise ValueError(f"{len(scores)} values but {len(labels)} group labels")
    keep = ~np.isnan(scores)
    return scores[keep], labels[keep]


def _by_group(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the groups, in an order that does not depend on what they are called: the
    same rows then give the same interval wherever they are asked for."""
    _, index = np.unique(labels, return_inverse=True)
    sums, counts = np.bincount(index, scores), np.bincount(index).astype(float)
    order = np.lexsort((counts, sums))
    return sums[order], counts[order]


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    return sums.sum(axis=axis) / counts.sum(axis=axis)


def for_few(level: float, units: int) -> float:
    """The level at which a bootstrap over so few units covers about `level`.

    Resampling n units shows a spread that is too small by sqrt((n - 1) / n) and has the tails of
    the normal, not of Student's distribution; asking for the tail probability
    Phi(-sqrt(n / (n - 1)) t) makes up for both (Hesterberg 2015, The American Statistician 69,
    section 5.3.4).
    """
    if units < 2:
        return level
    t = stats.t.ppf(0.5 + level / 2, units - 1)
    return float(1 - 2 * stats.norm.sf(math.sqrt(units / (units - 1)) * t))


def _bootstrap(sums: np.ndarray, counts: np.ndarray, level: float) -> tuple[float, float, str]:
    return _resampled(sums.tobytes(), counts.tobytes(), level)


@functools.lru_cache(maxsize=4096)
def _resampled(sums_of: bytes, counts_of: bytes, level: float) -> tuple[float, float, str]:
    """`_bootstrap` of the bytes of sums and counts: tables, figures and claims ask for the same."""
    sums, counts = (np.frombuffer(side) for side in (sums_of, counts_of))
    batch = max(1, _BATCH_CELLS // len(sums))
    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = stats.bootstrap(
                    (sums, counts), _ratio, paired=True, vectorized=True, method=method,
                    confidence_level=for_few(level, len(sums)), n_resamples=RESAMPLES,
                    batch=batch, rng=np.random.default_rng(0),
                )  # fmt: skip
            except ValueError:
                continue
        low, high = (float(end) for end in result.confidence_interval)
        if math.isfinite(low) and math.isfinite(high):
            return low, high, f"bootstrap {method}"
    return math.nan, math.nan, "none"


def _constant(
    value: float, clusters: int, level: float, lowest: float, highest: float
) -> tuple[float, float]:
    """Interval when all records agree: no resampling can see the records that would not.

    At most a share f (upper Wilson limit of 0 in `clusters`) of units can differ, each by no more
    than the scale allows (`lowest`, `highest`). No distribution is assumed, and the rule is the
    same for every score: for scores of 1 or 0 it is Wilson's interval, for an unchanged likelihood
    f times its declared span. NaN without a scale.
    """
    share = wilson(0, clusters, level).high
    return value + share * (lowest - value), value + share * (highest - value)


def jackknife_t(value: float, left_out: np.ndarray) -> float:
    """Two-sided p-value of "0" for an estimate over independent units, by Student's t with as many
    degrees of freedom as units less one; `left_out` [units] is the estimate without each of them.

    For a mean of units of equal size this is the paired t test of their means (Tukey's jackknife).
    """
    units = len(left_out)
    error = math.sqrt((units - 1) / units * float(((left_out - left_out.mean()) ** 2).sum()))
    if not error:
        return math.nan if value else 1.0
    return float(2 * stats.t.sf(abs(value) / error, units - 1))


def _sign_flip(sums: np.ndarray) -> tuple[float, bool]:
    """The p-value, and whether no smaller one was possible."""
    moving = sums[sums != 0]
    if not len(moving):
        return 1.0, False
    observed = abs(moving.sum())
    tolerance = 1e-12 * np.abs(moving).sum()
    if len(moving) <= 12:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(moving))))
        hits = int((np.abs(signs @ moving) >= observed - tolerance).sum())
        # As seen, and with every sign turned; a single unit can tell nothing.
        return hits / len(signs), hits == 2 < len(signs)
    generator, hits, left = np.random.default_rng(0), 0, FLIPS
    while left:
        rows = min(left, max(1, _BATCH_CELLS // len(moving)))
        signs = generator.integers(0, 2, (rows, len(moving))) * 2.0 - 1.0
        hits += int((np.abs(signs @ moving) >= observed - tolerance).sum())
        left -= rows
    return (hits + 1) / (FLIPS + 1), hits == 0
