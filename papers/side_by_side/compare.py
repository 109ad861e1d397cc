"""Editors against each other on the same rows: ranks, differences, order seeds, what was lost.

Only editors that were scored after the same number of edits meet. A difference has one p-value
wherever it stands; what it is worth among all comparisons that stand together (Holm) is said beside
it. Two editors are as good as each other only if an interval shows it (`WITHIN`).
"""

import math
from dataclasses import asdict, replace

import pandas as pd

from lib.metrics import ranking
from lib.metrics.estimates import difference, estimate
from lib.metrics.intervals import Difference, holm, spread_over_seeds
from lib.metrics.ranking import Standing
from lib.report.claims.verdict import chance
from papers.side_by_side.scores import (
    GENERALITY,
    LOCALITY,
    MEASURES,
    RELIABILITY,
    SCORE,
    Measure,
    at,
    present,
    sample,
)

LEVEL = 0.05
MARGIN = 0.05  # of the editing score: an editor at most so much worse is an alternative
BEST, WITHIN, WORSE, INCONCLUSIVE = "the best", "within the margin", "worse", "inconclusive"
SCORE_NAME = "editing score"
RANKED: dict[str, tuple[Measure, ...]] = {
    SCORE_NAME: SCORE,
    "reliability": (RELIABILITY,),
    "generality": (GENERALITY,),
    "locality": (LOCALITY,),
}


def standings(
    records: pd.DataFrame, editors: list[str], edits: int, parts: tuple[Measure, ...] = SCORE
) -> list[Standing]:
    """Every editor's standing after so many edits, best first."""
    return ranking.standings(sample(at(records, edits), present(records, edits, editors), parts))


def ranks(records: pd.DataFrame, editors: list[str], edits: int) -> pd.DataFrame:
    """One row per measure of `RANKED` and editor: its `Standing`, what was resampled (`unit`), how
    many of these, and of how many facts. A measure of one part has the interval that it has
    everywhere (`estimate`)."""
    rows, now = [], at(records, edits)
    for measure, parts in RANKED.items():
        chosen = sample(now, present(records, edits, editors), parts)
        told = {"measure": measure, "units": len(chosen.units), "unit": chosen.unit,
                "facts": chosen.facts}  # fmt: skip
        for one in ranking.standings(chosen):
            if len(parts) == 1:
                mine = parts[0].rows(now[now["editor"] == one.editor])
                found = estimate(mine, parts[0].column)
                one = replace(one, score=found.mean, low=found.low, high=found.high)
            rows.append(told | asdict(one))
    names = ["measure", "units", "unit", "facts", *Standing.__dataclass_fields__]
    return pd.DataFrame(rows, columns=names)


def best_of(records: pd.DataFrame, editors: list[str], edits: int) -> str:
    """The editor with the highest editing score after so many edits; "" if none was scored."""
    found = [one for one in standings(records, editors, edits) if one.score == one.score]
    return found[0].editor if found else ""


def rivals(
    records: pd.DataFrame,
    editors: list[str],
    edits: int,
    reference: str,
    measures: dict[str, tuple[Measure, ...]],
) -> pd.DataFrame:
    """Every other editor minus `reference`, per measure, on the same rows after so many edits.

    Columns: measure, reference, editor, mean, low, high, n, facts, unit, p (Holm not yet applied),
    at_floor (no smaller p was possible).
    """
    rows, here = [], present(records, edits, editors)
    now = at(records, edits)
    for measure, parts in measures.items():
        for editor in here if reference in here else ():
            if editor == reference:
                continue
            found = _difference(now, editor, reference, parts)
            rows.append(
                (measure, reference, editor, found.mean, found.low, found.high, found.n,
                 found.facts, found.unit, found.p, found.at_floor)
            )  # fmt: skip
    names = ["measure", "reference", "editor", "mean", "low", "high", "n", "facts", "unit", "p",
             "at_floor"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def adjusted(frame: pd.DataFrame) -> pd.DataFrame:
    """The comparisons with `adjusted`: Holm over all of them."""
    return frame.assign(adjusted=holm(frame["p"].astype(float).tolist()))


def compared(
    records: pd.DataFrame, editors: list[str], edits: int, references: list[str]
) -> pd.DataFrame:
    """The paired table after so many edits: every editor against each reference, in the editing
    score and every measure but the teacher-forced ones, Holm over the whole table."""
    told = [one for one in MEASURES if one.column != "tokens"]
    measures = {SCORE_NAME: SCORE} | {one.key: (one,) for one in told}
    parts = [rivals(records, editors, edits, name, measures) for name in references]
    frame = pd.concat(parts, ignore_index=True) if parts else rivals(records, [], 0, "", {})
    return adjusted(frame[frame["n"] > 0].reset_index(drop=True))


def tested(p: float, adjusted: float, at_floor: bool = False) -> str:
    """A p-value as every page prints it, and what it is among the comparisons that stand together:
    "p = 0.012, Holm 0.048". "(floor)": no smaller one is possible with so few units, or swaps."""
    if math.isnan(p):
        return chance(p)
    floor = " (floor)" if at_floor else ""
    among = "< 0.001" if adjusted < 0.001 else f"{adjusted:.3f}"
    text = f"{chance(p, at_floor)}{floor}"
    return text if math.isnan(adjusted) or adjusted == p else f"{text}, Holm {among}"


def marked(p: float, adjusted: float, at_floor: bool = False) -> str:
    """`tested` for a narrow column: "p ≤ 1e-4*", the star where Holm calls it significant."""
    return f"{chance(p, at_floor)}{'*' if adjusted < LEVEL else ''}"


def against_best(records: pd.DataFrame, editors: list[str], edits: int) -> pd.DataFrame:
    """The best editor by the editing score after so many edits and all others against it.

    Columns: editor, score, low, high, rank, rank_low, rank_high, best (how often first), mean,
    lower and upper (difference from the best with its interval), p, at_floor, adjusted (Holm over
    this size; NaN for the best itself), word: `BEST`; `WITHIN`, if the interval shows that the
    editor is at most `MARGIN` worse; `WORSE`, if it is so significantly and not within;
    `INCONCLUSIVE`.
    """
    found = [one for one in standings(records, editors, edits) if one.score == one.score]
    names = ["editor", "score", "low", "high", "rank", "rank_low", "rank_high", "best"]
    more = ["mean", "lower", "upper", "p", "at_floor", "adjusted"]
    frame = pd.DataFrame([asdict(one) for one in found], columns=[*Standing.__dataclass_fields__])
    if not found:
        return frame[names].assign(**{name: [] for name in (*more, "word")})
    against = adjusted(rivals(records, editors, edits, found[0].editor, {SCORE_NAME: SCORE}))
    against = against.drop(columns=["reference", "measure"])
    against = against.rename(columns={"low": "lower", "high": "upper"})[["editor", *more]]
    joined = frame[names].merge(against, how="left", on="editor")
    return joined.assign(word=[_word(row, found[0].editor) for row in joined.itertuples()])


def _word(row, best: str) -> str:
    """What an editor is against the best; without an interval nothing is shown to be alike."""
    if row.editor == best:
        return BEST
    if row.lower >= -MARGIN:
        return WITHIN
    return WORSE if row.adjusted < LEVEL else INCONCLUSIVE


def single_rounds(records: pd.DataFrame, editors: list[str], edits: int) -> pd.DataFrame:
    """Decoded reliability of the first so many edits, each right after its own batch.

    Columns: editor, own, low, high, n. No later batch has come over these edits yet; the batches
    before them have.
    """
    rows = RELIABILITY.rows(records)
    rows = rows[(rows["moment"] == "own") & (rows["edit_index"] < edits)]
    found = [
        (name, one.mean, one.low, one.high, one.n)
        for name in editors
        for one in [estimate(rows[rows["editor"] == name], RELIABILITY.column)]
    ]
    return pd.DataFrame(found, columns=["editor", "own", "low", "high", "n"])


def lost(records: pd.DataFrame, editors: list[str]) -> pd.DataFrame:
    """Decoded reliability of all edits after the editor's last, minus right after their own batch.

    Columns: editor, edits, own, end, mean, low, high, n, unit, p, at_floor, adjusted (Holm over the
    editors).
    """
    rows, part = [], RELIABILITY.rows(records)
    for editor in editors:
        mine = part[part["editor"] == editor]
        own, end = (mine[mine["moment"] == moment] for moment in ("own", "end"))
        found = difference(end, own, RELIABILITY.column)
        if not found.n:
            continue
        at_end = estimate(end, RELIABILITY.column).mean
        rows.append(
            (editor, int(end["n_edits"].max()), at_end - found.mean, at_end, found.mean, found.low,
             found.high, found.n, found.unit, found.p, found.at_floor)
        )  # fmt: skip
    names = ["editor", "edits", "own", "end", "mean", "low", "high", "n", "unit", "p", "at_floor"]
    return adjusted(pd.DataFrame(rows, columns=names))


def over_seeds(records: pd.DataFrame, editors: list[str], edits: int) -> pd.DataFrame:
    """The editing score of every editor under each order seed: editor, seeds, mean, sd, low, high.
    One seed has no sd."""
    rows = []
    for editor in present(records, edits, editors):
        mine = at(records[records["editor"] == editor], edits)
        by_seed = {
            seed: float(sample(part, [editor]).scores[0]) for seed, part in mine.groupby("seed")
        }
        found = spread_over_seeds(by_seed.values(), by_seed.keys())
        rows.append((editor, found.seeds, found.mean, found.sd, found.low, found.high))
    return pd.DataFrame(rows, columns=["editor", "seeds", "mean", "sd", "low", "high"])


def _difference(
    rows: pd.DataFrame, editor: str, reference: str, parts: tuple[Measure, ...]
) -> Difference:
    """Of one part by pairs of rows; of the score by resampling and swapping facts."""
    if len(parts) > 1:
        return ranking.difference(sample(rows, [editor, reference], parts), editor, reference)
    counted = parts[0].rows(rows)
    mine, theirs = (counted[counted["editor"] == name] for name in (editor, reference))
    return difference(mine, theirs, parts[0].column)
