"""Whether methods come in the same order here as somewhere else, where levels cannot be compared.

Pure arithmetic on reported scores and a `ranking.Sample` of ours: pairs of methods in the same
order, and Kendall's tau-b with its interval under resampling of the sample's units.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.metrics.ranking import RESAMPLES, Sample, percentiles, resampled

FEWEST_UNITS = 10  # resampling fewer gives intervals that are far too narrow


@dataclass(frozen=True)
class Ordering:
    """Two orders of `methods` against each other.

    `pairs` are those that the reported scores tell apart, `agree` those of them that our means put
    the same way. `clear`: pairs whose difference here has an interval without 0, `clear_agree` of
    them the same way. `tau` is 1 for the same order and -1 for the reverse, NaN where all scores
    of a side are equal; [`low`, `high`] is its interval, NaN with fewer than `FEWEST_UNITS` units.
    """

    methods: int
    pairs: int
    agree: int
    clear: int
    clear_agree: int
    tau: float = math.nan
    low: float = math.nan
    high: float = math.nan
    units: int = 0


def ordering(
    reported: Sequence[float], sample: Sample, *, level: float = 0.95, resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ordering:  # fmt: skip
    """The order of `reported`, a score for each editor of the sample, against the sample's."""
    told = np.asarray(reported, float)
    if told.shape != (len(sample.editors),) or not np.isfinite(told).all():
        raise ValueError(f"{told} are no reported scores of {len(sample.editors)} editors")
    theirs, ours = _signs(told), _signs(sample.scores)
    known, apart = theirs != 0, np.zeros(theirs.shape)
    low = high = math.nan
    if len(sample.units) >= FEWEST_UNITS:
        draws = resampled(sample, resamples, seed)
        draws = draws[np.isfinite(draws).all(axis=-1)]
        taus, at = _tau(theirs, _signs(draws)), percentiles(sample, level)
        if len(known_taus := taus[np.isfinite(taus)]):
            low, high = (float(end) for end in np.percentile(known_taus, at))
        gaps = np.percentile(_gaps(draws), at, axis=0)
        apart = (gaps[0] > 0).astype(float) - (gaps[1] < 0)
    return Ordering(
        len(told), int(known.sum()), int((known & (theirs == ours)).sum()),
        int((known & (apart != 0)).sum()), int((known & (theirs == apart)).sum()),
        float(_tau(theirs, ours)), low, high, len(sample.units),
    )  # fmt: skip


def _gaps(scores: np.ndarray) -> np.ndarray:
    """The differences of all pairs of methods [..., pairs]; what rounding makes is none."""
    first, second = np.array(list(itertools.combinations(range(scores.shape[-1]), 2))).T
    return np.round(scores[..., first] - scores[..., second], 12)


def _signs(scores: np.ndarray) -> np.ndarray:
    return np.sign(_gaps(scores))


def _tau(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Kendall's tau-b from the signs of pairs (the last axis)."""
    untied = (one != 0).sum(axis=-1) * (other != 0).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return (one * other).sum(axis=-1) / np.sqrt(np.where(untied > 0, untied, np.nan))
