"""Claims: sentences of a paper, each with a test on reproduced numbers and a verdict.

A test is a function of `Material` that returns a `Finding`. The factories below make the common
ones. All compare scores of the same prompts, correct for the number of comparisons (Holm) and say
"cannot be told here" when the data allow both answers; absence of evidence never counts as "holds".
"""

import dataclasses
import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lib.costs import COSTS, costs_by_editor
from lib.intervals import Difference, Interval, facts, holm, mean_interval, paired_difference

HOLDS, FAILS, UNKNOWN = "holds", "fails", "cannot be told here"
SYMBOLS = {HOLDS: "✓", FAILS: "✗", UNKNOWN: "?"}
LEVEL = 0.95
FEWEST_FACTS = 10  # resampling fewer independent facts gives intervals that are far too narrow


@dataclass(frozen=True)
class Material:
    """What claims are judged on: scored prompts and edited batches (columns as the runs write)."""

    records: pd.DataFrame
    steps: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Finding:
    """A verdict and the sentence of numbers it rests on."""

    verdict: str
    evidence: str

    def __post_init__(self) -> None:
        if self.verdict not in SYMBOLS:
            raise ValueError(f"verdict {self.verdict!r} is none of {', '.join(SYMBOLS)}")


Test = Callable[[Material], Finding]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, where it stands, and the test that decides about it."""

    key: str
    sentence: str
    source: str
    test: Test

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Claim":
        """A claim from {key, sentence, source, test: name in `TESTS`, **its arguments}."""
        arguments = dict(spec)
        texts = [str(arguments.pop(name)) for name in ("key", "sentence", "source")]
        name = str(arguments.pop("test"))
        if name not in TESTS:
            raise ValueError(f"claim {texts[0]}: no test {name!r}; there are {', '.join(TESTS)}")
        return cls(*texts, TESTS[name](**arguments))


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
            f"{html.escape(found.evidence)}</p></li>"
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


def at_least(
    editor: str,
    others: Sequence[str],
    metric: str,
    subset: str = "edits",
    *,
    moment: str = "end",
    margin: float = 0.02,
    better: str = "higher",
    setting: str | None = None,
) -> Test:
    """`editor` scores at least as well as each of `others` on the same prompts.

    Fails if any other is significantly better (Holm). Holds if the interval of every difference
    (Bonferroni-widened) stays above -margin.
    """

    def test(material: Material) -> Finding:
        rows = _rows(material.records, metric, subset, setting)
        rows = rows[rows["moment"] == moment]
        mine = rows[rows["editor"] == editor]
        level = 1 - (1 - LEVEL) / max(len(others), 1)
        rivals = {other: rows[rows["editor"] == other] for other in others}
        pairs = [
            (f"{editor} against {other}", _paired(mine, theirs, metric, level))
            for other, theirs in rivals.items()
        ]
        return _decide(pairs, f"{metric}, {subset}", margin, better)

    return test


def no_worse_than_before(
    editor: str,
    metric: str,
    subset: str = "upstream",
    *,
    margin: float = 0.02,
    better: str = "higher",
    setting: str | None = None,
) -> Test:
    """After all edits `editor` answers the prompts of `subset` as well as the unedited backbone."""

    def test(material: Material) -> Finding:
        rows = _rows(material.records, metric, subset, setting)
        mine = rows[rows["editor"] == editor]
        before = mine[mine["moment"] == "before"]
        if before.empty:  # the unedited scores may stand in another editor's run
            before = rows[rows["moment"] == "before"]
        after = mine[mine["moment"] == "end"]
        pairs = [(f"{editor} after all edits against before", _paired(after, before, metric))]
        return _decide(pairs, f"{metric}, {subset}", margin, better)

    return test


def flat_retention(
    editor: str,
    metric: str,
    subset: str = "edits",
    *,
    margin: float = 0.05,
    better: str = "higher",
    setting: str | None = None,
) -> Test:
    """Edits score after the whole stream as right after their own batch; the oldest third too."""

    def test(material: Material) -> Finding:
        rows = _rows(material.records, metric, subset, setting)
        rows = rows[rows["editor"] == editor]
        own, end = rows[rows["moment"] == "own"], rows[rows["moment"] == "end"]
        ages = rows["edit_index"]
        oldest = ages <= (ages.max() + 1) / 3 - 1 if len(rows) else ages.astype(bool)
        old = set(rows.loc[oldest, "record"])
        pairs = [("all edits, end against own moment", _paired(end, own, metric))]
        parts = [frame[frame["record"].isin(old)] for frame in (end, own)]
        pairs.append(("oldest third, end against own moment", _paired(*parts, metric)))
        return _decide(pairs, f"{metric}, {subset}", margin, better)

    return test


def fewest(editor: str, others: Sequence[str], columns: Sequence[str] = ("parameters",)) -> Test:
    """`editor` needs the least of the summed cost `columns` (names in `COSTS`) of all editors.

    Intervals over batches decide for seconds; counts do not vary and are compared as they are.
    """
    unknown = set(columns) - set(COSTS)
    if unknown:
        raise ValueError(f"no cost {', '.join(sorted(unknown))}; there are {', '.join(COSTS)}")

    def test(material: Material) -> Finding:
        costs = {name: _cost(material, name, columns) for name in (editor, *others)}
        what = " + ".join(columns)
        listed = "; ".join(f"{name} {_amount(cost)}" for name, cost in costs.items())
        evidence = f"{what}: {listed}."
        missing = [name for name, cost in costs.items() if math.isnan(cost.mean)]
        if missing:
            return Finding(UNKNOWN, f"{evidence} Not measured: {', '.join(missing)}.")
        low, high = _ends(costs[editor])
        rivals = [_ends(costs[other]) for other in others]
        if all(high < rival_low for rival_low, _ in rivals):
            return Finding(HOLDS, evidence)
        if any(low > rival_high for _, rival_high in rivals):
            return Finding(FAILS, evidence)
        return Finding(UNKNOWN, f"{evidence} The amounts are equal or their intervals overlap.")

    return test


TESTS: dict[str, Callable[..., Test]] = {
    "at_least": at_least,
    "no_worse_than_before": no_worse_than_before,
    "flat_retention": flat_retention,
    "fewest": fewest,
}


def _rows(records: pd.DataFrame, metric: str, subset: str, setting: str | None) -> pd.DataFrame:
    if metric not in records:
        raise ValueError(f"no score {metric!r} in these runs")
    rows = records[(records["subset"] == subset) & records[metric].notna()]
    return rows if setting is None else rows[rows["setting"] == setting]


def _paired(a: pd.DataFrame, b: pd.DataFrame, metric: str, level: float = LEVEL) -> Difference:
    """Differences a - b of the same prompt, setting and seed; one fact is one unit."""
    keys = ["setting", "seed", "record", "prompt"]
    left, right = (frame.groupby(keys)[metric].mean() for frame in (a, b))
    joined = pd.concat([left, right], axis=1, join="inner", keys=["a", "b"])
    units = facts(joined.index.get_level_values("record"))
    return paired_difference(joined["a"], joined["b"], groups=units, level=level)


def _decide(
    pairs: Sequence[tuple[str, Difference]], what: str, margin: float, better: str
) -> Finding:
    sign = {"higher": 1.0, "lower": -1.0}[better]
    adjusted = holm([difference.p for _, difference in pairs])
    parts, verdicts = [], []
    for (name, d), p in zip(pairs, adjusted, strict=True):
        if d.n == 0:
            parts.append(f"{name}: no common prompts")
            verdicts.append(UNKNOWN)
            continue
        middle, low, high = (f"{x:+.3f}".replace("-", "−") for x in (d.mean, d.low, d.high))
        interval = f"[{low}, {high}]" if d.known else "no interval"
        chance = "p undefined" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        parts.append(f"{name}: {middle} {interval}, n = {d.n}, {chance}")
        worst = min(sign * d.low, sign * d.high) if d.known else -math.inf
        if p < 1 - LEVEL and sign * d.mean < 0:
            verdicts.append(FAILS)
        elif d.clusters < FEWEST_FACTS:
            parts[-1] += f", only {d.clusters} independent facts"
            verdicts.append(UNKNOWN)
        else:
            verdicts.append(HOLDS if worst >= -margin else UNKNOWN)
    verdict = next((v for v in (FAILS, UNKNOWN) if v in verdicts), HOLDS if verdicts else UNKNOWN)
    tail = f" (Holm over {len(pairs)})" if len(pairs) > 1 else ""
    return Finding(
        verdict, f"Difference in {what}: {'; '.join(parts)}{tail}; margin {margin:g}, "
        f"{better} is better."
    )  # fmt: skip


def _cost(material: Material, editor: str, columns: Sequence[str]) -> Interval:
    costs = costs_by_editor(material.records, material.steps)
    costs = costs[costs["editor"] == editor]
    total = costs[list(columns)].sum(axis=1, skipna=False)
    if "seconds_per_edit" not in columns:  # constant within a run: one value per run
        total = total.groupby(costs["run"]).first()
    return mean_interval(total)


def _ends(cost: Interval) -> tuple[float, float]:
    return (cost.low, cost.high) if cost.known else (cost.mean, cost.mean)


def _amount(cost: Interval) -> str:
    if math.isnan(cost.mean):
        return "not measured"
    text = f"{cost.mean:,.0f}" if cost.mean >= 100 else f"{cost.mean:.3g}"
    return f"{text} [{cost.low:.3g}, {cost.high:.3g}]" if cost.known else text
