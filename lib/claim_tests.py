"""Tests of claims about scores: against other editors, against before, over steps, over a sweep.

Each function makes a `Test`. `metric` is a score column, `subset` the rows it is read on.
"""

from collections.abc import Sequence

from lib.findings import LEVEL, UNKNOWN, Finding, Material, Test, decide, paired, scores


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
    return _against(editor, others, metric, subset, moment, margin, better, setting, False, "")


def better_than(
    editor: str,
    others: Sequence[str],
    metric: str,
    subset: str = "edits",
    *,
    moment: str = "end",
    margin: float = 0.02,
    better: str = "higher",
    setting: str | None = None,
    missing: str = "",
) -> Test:
    """`editor` scores better than each of `others` on the same prompts.

    Holds if every difference is significant (Holm) and its Bonferroni-widened interval lies above
    zero. Fails if any other is significantly better, or the gain is shown to be at most `margin`.
    `missing` names, in the evidence, rivals that the claim means and that were not run.
    """
    return _against(editor, others, metric, subset, moment, margin, better, setting, True, missing)


def _against(
    editor: str,
    others: Sequence[str],
    metric: str,
    subset: str,
    moment: str,
    margin: float,
    better: str,
    setting: str | None,
    strictly: bool,
    missing: str,
) -> Test:
    def test(material: Material) -> Finding:
        rows = scores(material.records, metric, subset, setting)
        rows = rows[rows["moment"] == moment]
        mine = rows[rows["editor"] == editor]
        level = 1 - (1 - LEVEL) / max(len(others), 1)
        rivals = {other: rows[rows["editor"] == other] for other in others}
        pairs = [
            (f"{editor} against {other}", paired(mine, theirs, metric, level))
            for other, theirs in rivals.items()
        ]
        found = decide(pairs, f"{metric}, {subset}", margin, better, strictly=strictly)
        return Finding(found.verdict, f"{found.evidence} {missing}".strip())

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
        rows = scores(material.records, metric, subset, setting)
        mine = rows[rows["editor"] == editor]
        before = mine[mine["moment"] == "before"]
        if before.empty:  # the unedited scores may stand in another editor's run
            before = rows[rows["moment"] == "before"]
        after = mine[mine["moment"] == "end"]
        pairs = [(f"{editor} after all edits against before", paired(after, before, metric))]
        return decide(pairs, f"{metric}, {subset}", margin, better)

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
        rows = scores(material.records, metric, subset, setting)
        rows = rows[rows["editor"] == editor]
        own, end = rows[rows["moment"] == "own"], rows[rows["moment"] == "end"]
        ages = rows["edit_index"]
        oldest = ages <= (ages.max() + 1) / 3 - 1 if len(rows) else ages.astype(bool)
        old = set(rows.loc[oldest, "record"])
        pairs = [("all edits, end against own moment", paired(end, own, metric))]
        parts = [frame[frame["record"].isin(old)] for frame in (end, own)]
        pairs.append(("oldest third, end against own moment", paired(*parts, metric)))
        return decide(pairs, f"{metric}, {subset}", margin, better)

    return test


def stable_over_steps(
    editor: str,
    metric: str,
    subset: str = "edits",
    *,
    margin: float = 0.05,
    better: str = "higher",
    setting: str | None = None,
) -> Test:
    """What was edited by an earlier checkpoint scores after the last step as it did then.

    One comparison per checkpoint, on the rows of the edits applied so far (`edit_index`).
    """

    def test(material: Material) -> Finding:
        rows = scores(material.records, metric, subset, setting)
        rows = rows[(rows["editor"] == editor) & (rows["edit_index"] < rows["n_edits"])]
        end, earlier = rows[rows["moment"] == "end"], rows[rows["moment"] == "checkpoint"]
        if earlier.empty:
            return Finding(
                UNKNOWN, f"No checkpoint of {editor} before the end: nothing to compare."
            )
        pairs = [
            (f"end against {then} edits", paired(end, part, metric))
            for then, part in earlier.groupby("n_edits")
        ]
        return decide(pairs, f"{metric}, {subset} edited by then, {editor}", margin, better)

    return test


def stable_over(
    editor: str,
    sweep: str,
    metric: str,
    subset: str = "edits",
    *,
    moment: str = "end",
    margin: float = 0.05,
    better: str = "higher",
    setting: str | None = None,
) -> Test:
    """Scores of the same prompts do not fall as the swept value grows from its smallest."""

    def test(material: Material) -> Finding:
        rows = scores(material.records, metric, subset, setting, sweep)
        rows = rows[(rows["editor"] == editor) & (rows["moment"] == moment)]
        by_value = {value: part for value, part in rows.groupby(rows["value"].astype(float))}
        if len(by_value) < 2:
            known = ", ".join(f"{value:g}" for value in by_value) or "none"
            return Finding(UNKNOWN, f"Too few values of {sweep} were run with {editor} ({known}).")
        (first, base), *others = by_value.items()
        pairs = [
            (f"{value:g} against {first:g}", paired(part, base, metric)) for value, part in others
        ]
        return decide(pairs, f"{metric}, {subset}, {editor} by {sweep}", margin, better)

    return test
