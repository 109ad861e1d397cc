"""How far scores lie apart when everything random but the order of the edits is drawn again: tuned
backbones, initial adapters, router seeds. No interval over facts or batches holds this."""

from collections.abc import Sequence

import pandas as pd

KEYS = ("what", "editor", "subset", "moment")
PROMPT = ("record", "prompt", "edit_index")


def between_draws(
    first: pd.DataFrame, second: pd.DataFrame, scores: Sequence[str], moments: Sequence[str]
) -> pd.DataFrame:
    """One row per run (`what`, `editor`), subset, moment and score: its mean in both draws over the
    prompts that both scored, their absolute `difference`, and `n`, how many prompts that are.

    `moments`: at which rows are read; of rows scored at several numbers of edits the last counts.
    """
    found = []
    for name in scores:
        if name not in first or name not in second:
            continue
        sides = [_means(draw, name, moments) for draw in (first, second)]
        pairs = pd.concat(sides, axis=1, join="inner", keys=["first", "second"]).dropna()
        grouped = pairs.groupby(list(KEYS), sort=False)
        told = grouped.mean().assign(n=grouped.size(), score=name).reset_index()
        found.append(told.assign(difference=(told["first"] - told["second"]).abs()))
    names = [*KEYS, "score", "first", "second", "difference", "n"]
    return pd.concat(found, ignore_index=True)[names] if found else pd.DataFrame(columns=names)


def _means(rows: pd.DataFrame, score: str, moments: Sequence[str]) -> pd.Series:
    rows = rows[rows["moment"].isin(moments) & rows[score].notna()]
    rows = rows.sort_values("n_edits", kind="stable").drop_duplicates([*KEYS, *PROMPT], keep="last")
    return rows.set_index([*KEYS, *PROMPT])[score].astype(float)
