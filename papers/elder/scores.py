"""The rows that ELDER's page reads: right or wrong per prompt, and who edited how many facts."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from lib.report import tables
from lib.report.tables import UNEDITED_MODEL
from lib.runs.study import Study

OWN, REFRESHED, REPLAYED = "ELDER", "ELDER refreshed", "ELDER replayed"
REPORTED = {UNEDITED_MODEL: "Base"}  # how the paper calls a row of another name
CORRECTED = " intended"  # behind the name of a method whose released code was corrected
EXTENSIONS = (REFRESHED, REPLAYED)
NEEDED = (
    "run", "setting", "editor", "sweep", "value", "seed", "record", "prompt", "edit_index",
    "subset", "moment", "n_edits", "route", "target", "prediction", "answer_accuracy",
    "answer_agreement",
)  # fmt: skip


def told_as(editor: str) -> str:
    """The name under which the paper reports an editor, the unedited model, or the method that an
    editor corrects."""
    return REPORTED.get(editor, editor.removesuffix(CORRECTED))


def editors_of(study: Study, setting: str) -> list[str]:
    """The editors of a setting in the order of the paper's Table 1, ours behind them."""
    here = study.editors(setting)
    return [name for name in study.document["tables"]["main"]["order"] if name in here]


def ours(study: Study, setting: str) -> list[str]:
    """The variants of ELDER that a setting plans."""
    return [name for name in editors_of(study, setting) if name in (OWN, *EXTENSIONS)]


def scored(study: Study, setting: str, sweep: str = "") -> pd.DataFrame:
    """Records with three columns more: `right_answers` (1: every answer token is the model's first
    choice, elder 5), `same_answers` (1: every first choice is the unedited model's), and `task`
    (of general ability; "" elsewhere)."""
    return with_scores(study.records(setting, sweep))


def with_scores(records: pd.DataFrame) -> pd.DataFrame:
    """See `scored`; no records give no rows, but every column that readers ask for."""
    absent = {name: pd.Series(dtype=object) for name in NEEDED if name not in records}
    rows = records.assign(**absent) if records.empty else records
    for name, column in (
        ("right_answers", "answer_accuracy"),
        ("same_answers", "answer_agreement"),
    ):
        share = rows[column].astype(float)
        rows = rows.assign(**{name: (share == 1.0).astype(float).where(share.notna())})
    named = rows["record"].astype(str).str.extract(r"^general/([^/]+)/", expand=False)
    return rows.assign(task=named.where(rows["subset"] == "general", "").fillna(""))


@dataclass(frozen=True)
class Line:
    """A line of a table: what it is called, whose scores it shows and after how many edits.

    `reported`: the name under which the paper may have it. `comparable`: whether it made all the
    edits of its setting. `absent`: why there is no score, "" for a line that was planned.
    """

    label: str
    editor: str
    edits: int
    reported: str = ""
    comparable: bool = True
    absent: str = ""

    def of(self, records: pd.DataFrame) -> pd.DataFrame:
        """The line's own rows, under its label."""
        own = self.editor == UNEDITED_MODEL
        rows = tables.unedited(records) if own else at_edits(records, self.editor, self.edits)
        return rows.assign(editor=self.label)

    def why(self, study: Study, setting: str) -> str:
        """Why the line has no score: it was not planned, or its run failed."""
        return self.absent or study.reason(setting, self.editor)


def lines(study: Study, setting: str) -> Iterator[Line]:
    """The lines of a setting's tables: the unedited model, the paper's editors whether they are
    planned or not, our extensions, and, below editors that make fewer edits, ELDER after as many.
    """
    yield Line(UNEDITED_MODEL, UNEDITED_MODEL, 0, reported=told_as(UNEDITED_MODEL))
    usual, here = study.edits(setting, OWN), editors_of(study, setting)
    edits = {name: study.edits(setting, name) for name in here}
    for name in study.document["tables"]["main"]["order"]:
        if name not in here:
            if name not in EXTENSIONS:
                yield Line(name, name, 0, reported=told_as(name), absent=tables.NOT_RUN)
            continue
        fewer = edits[name] < usual
        label = f"{name}, {edits[name]:,} edits" if fewer else name
        yield Line(label, name, edits[name], reported=told_as(name), comparable=not fewer)
        later = [edits[other] for other in here[here.index(name) + 1 :]]
        if fewer and edits[name] not in later:
            yield Line(f"{OWN}, after {edits[name]:,} edits", OWN, edits[name])


def at_edits(records: pd.DataFrame, editor: str, edits: int) -> pd.DataFrame:
    """Everything of an editor scored when the model held so many edits: a checkpoint or the end."""
    rows = records[(records["editor"] == editor) & (records["n_edits"] == edits)]
    return rows[rows["moment"].isin(["checkpoint", "end"])]


def by_edits(records: pd.DataFrame) -> pd.DataFrame:
    """Rows of the edits made so far, at all checkpoints and at the end."""
    rows = records[records["moment"].isin(["checkpoint", "end"])]
    known = rows["edit_index"].astype(float) < rows["n_edits"].astype(float)
    return rows[known]
