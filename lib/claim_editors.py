"""Tests of sentences about all editors of one stream: what none of them does, what a family does
better than another, what one reading of a score says more than another.

Only editors that made all the edits of the stream meet: those with the most edits at their end.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from lib.findings import (
    FAILS,
    FEWEST_FACTS,
    HOLDS,
    LEVEL,
    UNKNOWN,
    Finding,
    Material,
    Test,
    decide,
    paired,
    scores,
)
from lib.metrics.intervals import Interval, facts, holm, mean_interval


def none_keeps(parts: Mapping[str, str], bound: float, *, setting: str | None = None) -> Test:
    """No editor has all `parts` (subset to score column) above `bound` after the last edit.

    Holds if every editor has a part whose interval (Bonferroni over the parts) lies below the
    bound; fails if one has all of them above it (Bonferroni over the editors).
    """

    def test(material: Material) -> Finding:
        rows = {
            subset: _last(scores(material.records, column, subset, setting))
            for subset, column in parts.items()
        }
        editors = list(dict.fromkeys(name for part in rows.values() for name in part["editor"]))
        if not editors:
            return Finding(UNKNOWN, "No editor was scored after the last edit.")
        short, keeping, told = [], [], []
        for editor in editors:
            below, above = (
                [_share(rows[s], c, editor, 1 - (1 - LEVEL) / n) for s, c in parts.items()]
                for n in (len(parts), len(editors))
            )
            if any(part.high < bound and part.clusters >= FEWEST_FACTS for part in below):
                short.append(editor)
            if all(part.low > bound and part.clusters >= FEWEST_FACTS for part in above):
                keeping.append(editor)
            worst = min(below, key=lambda part: part.mean)
            told.append((worst.mean, f"{editor} {worst.mean:.2f}"))
        nearest = ", ".join(text for _, text in sorted(told, reverse=True)[:3])
        evidence = (
            f"{len(short)} of {len(editors)} editors have a part below {bound:g} by its interval, "
            f"{len(keeping)} have all above it{': ' if keeping else ''}{', '.join(keeping)}. The "
            f"worst part is highest for {nearest}."
        )
        verdict = FAILS if keeping else HOLDS if len(short) == len(editors) else UNKNOWN
        return Finding(verdict, evidence)

    return test


def family_ahead(
    ours: Sequence[str],
    others: Sequence[str],
    parts: Mapping[str, str],
    *,
    margin: float = 0.02,
    setting: str | None = None,
) -> Test:
    """After the last edit the mean editor of `ours` scores better than that of `others` on the same
    prompts, in every part (subset to score column)."""

    def test(material: Material) -> Finding:
        pairs, met = [], {}
        for subset, column in parts.items():
            rows = _last(scores(material.records, column, subset, setting))
            sides = [rows[rows["editor"].isin(names)] for names in (ours, others)]
            met |= dict.fromkeys(name for side in sides for name in side["editor"])
            level = 1 - (1 - LEVEL) / len(parts)
            pairs.append((subset, paired(*sides, column, level)))
        found = decide(pairs, "means over the editors of each side", margin, strictly=True)
        left = [name for name in (*ours, *others) if name not in met]
        more = f" Not among the editors with all edits: {', '.join(left)}." if left else ""
        return Finding(found.verdict, f"{found.evidence}{more}")

    return test


def read_higher_by_all(
    column: str,
    than: str,
    subset: str = "edits",
    *,
    margin: float = 0.02,
    setting: str | None = None,
) -> Test:
    """After the last edit the score `column` is higher than the score `than` of the same answers,
    in the mean over all editors; the evidence counts those of which it is significantly so."""

    def test(material: Material) -> Finding:
        rows = _last(scores(material.records, column, subset, setting))
        rows = rows[rows[than].notna()]
        higher, lower = (rows.assign(read=rows[name].astype(float)) for name in (column, than))
        names = list(dict.fromkeys(rows["editor"]))
        single = [
            paired(*(side[side["editor"] == name] for side in (higher, lower)), "read")
            for name in names
        ]
        pairs = [("mean over editors", paired(higher, lower, "read"))]
        found = decide(pairs, f"{column} against {than}, {subset}", margin, strictly=True)
        adjusted = holm([one.p for one in single])
        sure = sum(p < 1 - LEVEL and one.mean > 0 for p, one in zip(adjusted, single, strict=True))
        more = f" Significant of {sure} of {len(names)} single editors (Holm)."
        return Finding(found.verdict, f"{found.evidence}{more}")

    return test


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows at the end of the editors that made the most edits."""
    end = rows[rows["moment"] == "end"]
    return end[end["n_edits"] == end["n_edits"].max()]


def _share(rows: pd.DataFrame, column: str, editor: str, level: float) -> Interval:
    mine = rows[rows["editor"] == editor]
    return mean_interval(mine[column].astype(float), groups=facts(mine["record"]), level=level)
