"""Two ways to one result, timed in turns: medians of several repeats, and whether they agree."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Measured = tuple[float, Any]
Variant = Callable[[], Measured]
"""Does the work once; gives the seconds that count and the result."""


@dataclass(frozen=True)
class Agreement:
    """Whether two results are equal, and in which sense (for the table)."""

    equal: bool
    sense: str


@dataclass(frozen=True)
class Line:
    """One row of the table; seconds are medians."""

    what: str
    plain: float
    fast: float
    agreement: Agreement

    def cells(self) -> tuple[str, ...]:
        """What, plain seconds, fast seconds, ratio, results equal."""
        verdict = "yes" if self.agreement.equal else "NO"
        return (
            self.what,
            f"{self.plain:.3g}",
            f"{self.fast:.3g}",
            f"{self.plain / self.fast:.1f}",
            f"{verdict}: {self.agreement.sense}",
        )


def timed(work: Callable[[], Any]) -> Variant:
    """A variant all of whose work counts."""

    def measured() -> Measured:
        began = time.perf_counter()
        result = work()
        return time.perf_counter() - began, result

    return measured


def exactly(plain: Any, fast: Any) -> Agreement:
    """Equal as Python values: numbers bit for bit."""
    return Agreement(plain == fast, "exactly")


def compare(
    what: str,
    plain: Variant,
    fast: Variant,
    agree: Callable[[Any, Any], Agreement],
    repeats: int,
) -> Line:
    """Run both in turns, one uncounted round first; the order swaps from round to round.

    The results of every round are compared, those of the first one too.
    """
    plain_seconds: list[float] = []
    fast_seconds: list[float] = []
    verdicts: list[Agreement] = []
    for turn in range(repeats + 1):
        if turn % 2:
            (of_fast, quick), (of_plain, slow) = fast(), plain()
        else:
            (of_plain, slow), (of_fast, quick) = plain(), fast()
        plain_seconds.append(of_plain)
        fast_seconds.append(of_fast)
        verdicts.append(agree(slow, quick))
    verdict = next((each for each in verdicts if not each.equal), verdicts[-1])
    return Line(
        what, statistics.median(plain_seconds[1:]), statistics.median(fast_seconds[1:]), verdict
    )
