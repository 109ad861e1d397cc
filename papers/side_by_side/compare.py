"""Editors against each other on the same rows: ranks, differences, order seeds, what was lost.

Only editors that were scored after the same number of edits meet. Every p-value is Holm-adjusted
over all comparisons that stand together.
"""

from dataclasses import asdict

import pandas as pd

from lib.metrics import ranking
from lib.metrics.intervals import Difference, holm, paired_difference, spread_over_seeds
from lib.metrics.ranking import Standing
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
    """One row per measure of `RANKED` and editor: its `Standing` and the number of facts."""
    rows = []
    for measure, parts in RANKED.items():
        chosen = sample(at(records, edits), present(records, edits, editors), parts)
        found = ranking.standings(chosen)
        rows += [{"measure": measure, "units": len(chosen.units), **asdict(one)} for one in found]
    names = ["measure", "units", *Standing.__dataclass_fields__]
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

    Columns: measure, reference, editor, mean, low, high, n, units, p (Holm not yet applied).
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
                 found.clusters, found.p)
            )  # fmt: skip
    names = ["measure", "reference", "editor", "mean", "low", "high", "n", "units", "p"]
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


def tied(records: pd.DataFrame, editors: list[str], edits: int) -> pd.DataFrame:
    """The best editor by the editing score after so many edits and all others against it.

    Columns: editor, score, low, high, rank_low, rank_high, best (how often first), mean (difference
    from the best), adjusted (Holm over this size; NaN for the best itself), tied.
    """
    found = [one for one in standings(records, editors, edits) if one.score == one.score]
    names = ["editor", "score", "low", "high", "rank_low", "rank_high", "best"]
    frame = pd.DataFrame([asdict(one) for one in found], columns=[*Standing.__dataclass_fields__])
    if not found:
        return frame[names].assign(mean=[], adjusted=[], tied=[])
    against = adjusted(rivals(records, editors, edits, found[0].editor, {SCORE_NAME: SCORE}))
    joined = frame[names].merge(against[["editor", "mean", "adjusted"]], how="left", on="editor")
    return joined.assign(tied=~(joined["adjusted"] < LEVEL))


def lost(records: pd.DataFrame, editors: list[str]) -> pd.DataFrame:
    """Decoded reliability of all edits after the editor's last, minus right after their own batch.

    Columns: editor, edits, own, end, mean, low, high, n, adjusted (Holm over the editors).
    """
    rows, part = [], RELIABILITY.rows(records)
    for editor in editors:
        mine = part[part["editor"] == editor]
        own, end = (mine[mine["moment"] == moment] for moment in ("own", "end"))
        pairs = _joined(end, own, RELIABILITY.column)
        if pairs.empty:
            continue
        found = paired_difference(pairs["a"], pairs["b"], groups=pairs["unit"])
        rows.append(
            (editor, int(end["n_edits"].max()), pairs["b"].mean(), pairs["a"].mean(), found.mean,
             found.low, found.high, found.n, found.p)
        )  # fmt: skip
    names = ["editor", "edits", "own", "end", "mean", "low", "high", "n", "p"]
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
    pairs = _joined(mine, theirs, parts[0].column)
    return paired_difference(pairs["a"], pairs["b"], groups=pairs["unit"])


def _joined(a: pd.DataFrame, b: pd.DataFrame, column: str) -> pd.DataFrame:
    """Scores `a` and `b` of the same rows, with the fact (`unit`) of each."""
    keys = ["seed", "record", "prompt"]
    left, right = (frame.groupby([*keys, "unit"])[column].mean() for frame in (a, b))
    return pd.concat([left, right], axis=1, join="inner", keys=["a", "b"]).reset_index("unit")
