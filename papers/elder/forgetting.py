"""What ELDER forgets: every edit at its own moment, after the last one, and what is said instead.

Read off the records: whether an edit was right when its batch was done, whether it still is at the
end, and whose answer the decoded one is. Of other edits' answers it counts whether the other's
query is among the nearest of the edit's own, as the runs observed them.
"""

from collections.abc import Mapping

import pandas as pd

from lib.editors.adapters.elder_distances import NEIGHBOURS
from lib.report import page
from lib.report.tables import regenerated
from lib.runs.study import Study
from papers.common import kept
from papers.elder.scores import OWN, ours, scored

NEAR = f"a later edit's, one of the {NEIGHBOURS} nearest"
RIGHT, LATER, EARLIER, BEFORE, ELSE = (
    "its own", "a later edit's, further off", "an earlier edit's", "the unedited model's",
    "something else",
)  # fmt: skip
SAID = (RIGHT, NEAR, LATER, EARLIER, BEFORE, ELSE)
COLUMNS = ("run", "editor", "record", "edit_index", "moment", "said")
MOMENTS = {"own": "own moment", "end": "after the last edit"}


def answers(records: pd.DataFrame, observations: pd.DataFrame) -> pd.DataFrame:
    """Whose answer every edit gets at its own moment and at the end, one of `SAID`.

    `records`: `scored` rows of the main table. A right answer is right in every token; another is
    that of an edit if one begins with the other, as far as it was decoded: first a later edit's,
    then an earlier one's, then the unedited model's. Columns: `COLUMNS`.
    """
    rows = records[(records["subset"] == "edits") & (records["sweep"] == "")]
    before = rows[rows["moment"] == "before"].set_index(["run", "record"])["prediction"]
    near = _neighbours(observations)
    found = []
    for run, part in rows[rows["moment"].isin(MOMENTS)].groupby("run", sort=False):
        targets = part.drop_duplicates("edit_index").set_index("edit_index")["target"].to_dict()
        for row in part.itertuples():
            own = int(row.edit_index)
            said = _said(row, own, targets, near.get((run, own), ()))
            if said == ELSE and _same(row.prediction, before.get((run, row.record))):
                said = BEFORE
            found.append((run, row.editor, row.record, own, row.moment, said))
    return pd.DataFrame(found, columns=[*COLUMNS])


def _neighbours(observations: pd.DataFrame) -> dict[tuple[str, int], set[int]]:
    if "neighbours" not in observations:
        return {}
    rows = observations.dropna(subset=["neighbours"])
    rows = rows[rows["subset"] == "edits"]
    places = zip(rows["run"], rows["edit_index"].astype(int), strict=True)
    numbers = (set(map(int, text.split())) for text in rows["neighbours"])
    return dict(zip(places, numbers, strict=True))


def _said(row: tuple, own: int, targets: Mapping[int, str], near: set[int]) -> str:
    if row.right_answers == 1:
        return RIGHT
    others = {i for i, target in targets.items() if i != own and _same(row.prediction, target)}
    later = {i for i in others if i > own}
    if later:
        return NEAR if later & set(near) else LATER
    return EARLIER if others else ELSE


def _same(said: object, answer: object) -> bool:
    """Whether one text begins with the other; empty or missing ones say nothing."""
    texts = [text.strip() if isinstance(text, str) else "" for text in (said, answer)]
    return all(texts) and (texts[0].startswith(texts[1]) or texts[1].startswith(texts[0]))


def fates(study: Study, setting: str) -> pd.DataFrame:
    """`answers` of ELDER and the variants that a setting plans."""
    records, seen = scored(study, setting), study.observations(setting)
    records = records[records["editor"].isin(ours(study, setting))]
    return answers(records, seen)


@regenerated("fates")
def fates_table(study: Study, setting: str) -> pd.DataFrame:
    """How many edits of each variant get whose answer, at their own moment and at the end."""
    rows = fates(study, setting)
    counted = rows.groupby(["editor", "moment", "said"]).size().unstack(fill_value=0)
    counted = counted.reindex(columns=[*SAID], fill_value=0).rename_axis(columns=None)
    wanted = [
        (name, moment)
        for name in ours(study, setting)
        for moment in MOMENTS
        if (name, moment) in counted.index
    ]
    shown = counted.loc[wanted].reset_index() if wanted else counted.reset_index()
    shown["moment"] = shown["moment"].map(MOMENTS)
    return kept(study, f"elder-fates-{setting}", shown)


def forgetting_text(study: Study, setting: str) -> str:
    """What the records say of each variant, as HTML paragraphs."""
    rows, steps = fates(study, setting), study.steps(setting)
    parts = [
        _told(name, rows[rows["editor"] == name], steps, study.observations(setting))
        for name in ours(study, setting)
        if (rows["editor"] == name).any()
    ]
    if not parts:
        return page.paragraphs([f"No run of {OWN} was scored."])
    return page.paragraphs(parts)


def _told(name: str, rows: pd.DataFrame, steps: pd.DataFrame, seen: pd.DataFrame) -> str:
    by_moment = {moment: rows.loc[rows["moment"] == moment, "said"] for moment in MOMENTS}
    right = {moment: int((said == RIGHT).sum()) for moment, said in by_moment.items()}
    wrong = by_moment["end"][by_moment["end"] != RIGHT]
    text = (
        f"{name}: {right['own']} of {len(by_moment['own'])} edits are right at their own moment, "
        f"{right['end']} of {len(by_moment['end'])} after the last edit."
    )
    if len(wrong):
        later = int(wrong.isin([NEAR, LATER]).sum())
        text += (
            f" Of the {len(wrong)} that are wrong then, {later} say a later edit's answer, "
            f"{int((wrong == NEAR).sum())} of these one whose query is among the {NEIGHBOURS} "
            f"nearest; {int((wrong == EARLIER).sum())} say an earlier edit's, "
            f"{int((wrong == BEFORE).sum())} the unedited model's."
        )
    return f"{text} {_apart(rows, steps, seen)}".strip()


def _apart(rows: pd.DataFrame, steps: pd.DataFrame, seen: pd.DataFrame) -> str:
    """How far the edits' codes are from what their answers were allocated."""
    if "digits_from_allocation" not in steps or "own_allocation" not in seen:
        return ""
    then = steps[steps["run"].isin(rows["run"])]["digits_from_allocation"].dropna()
    mine = seen[seen["run"].isin(rows["run"])]
    last = mine[mine["subset"] == "edits"]["own_allocation"].dropna().astype(float)
    codes = mine["code"].dropna()
    if then.empty or last.empty:
        return ""
    return (
        f"The edits' codes are {then.mean():.1f} of {len(codes.iloc[0])} digits from the "
        f"allocation of their answers right after their batch, {last.mean():.1f} after the last."
    )
