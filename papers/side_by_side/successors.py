"""Do the successors of each family beat it? Each against the best editor before it, by size."""

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from papers.side_by_side.compare import LEVEL, SCORE_NAME, adjusted, best_of, rivals
from papers.side_by_side.costs import Cost
from papers.side_by_side.scores import SCORE, present

# What came after which editors, in the order of the four papers' families.
AFTER = {
    "AlphaEdit": ("MEMIT", "COMEBA-HK intended"),
    "RLEdit": ("MEND", "MALMEN"),
    "UltraEdit": ("MEND", "MALMEN"),
    "WISE": ("GRACE", "MELO intended", "ELDER"),
}
AHEAD, BEHIND, OPEN = "ahead of", "behind", "not told apart from"


def against_before(records: pd.DataFrame, edits: int) -> pd.DataFrame:
    """Every successor that was scored after so many edits against the best of those before it.

    Columns: editor, before, mean, low, high (editing score, successor minus the one before), p,
    at_floor, adjusted (Holm over the successors of this size), word.
    """
    names = ["editor", "reference", "mean", "low", "high", "p", "at_floor"]
    found = []
    for editor in present(records, edits, list(AFTER)):
        before = best_of(records, list(AFTER[editor]), edits)
        pair = rivals(records, [editor, before], edits, before, {SCORE_NAME: SCORE})
        found.append(pair[names])
    frame = adjusted(pd.concat(found) if found else pd.DataFrame(columns=names))
    words = [
        OPEN if not row.adjusted < LEVEL else AHEAD if row.mean > 0 else BEHIND
        for row in frame.itertuples()
    ]
    return frame.rename(columns={"reference": "before"}).assign(word=words)


def told(records: pd.DataFrame, sizes: list[int], costs: Mapping[str, Cost]) -> Iterator[str]:
    """A sentence for each measured size, the largest first: which successor beats the best before
    it, by how much, and what an edit costs against one of that."""
    for edits in sorted(sizes, reverse=True):
        found = against_before(records, edits)
        if len(found):
            each = "; ".join(_one(row, costs) for row in found.itertuples())
            yield f"What came after, at {edits:,} edits: {each} (Holm over {len(found)})."


def _one(row, costs: Mapping[str, Cost]) -> str:
    ends = "" if math.isnan(row.low) else f" [{row.low:+.2f}, {row.high:+.2f}]"
    gap = f"{row.mean:+.2f}{ends}".replace("-", "−")
    spent = [costs[name].per_edit.mean for name in (row.editor, row.before) if name in costs]
    paid = f", {spent[0]:.2g} s an edit against {spent[1]:.2g} s" if len(spent) == 2 else ""
    return f"{row.editor} is {row.word} {row.before} ({gap}{paid})"
