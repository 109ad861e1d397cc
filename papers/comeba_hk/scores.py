"""The rows that COMEBA-HK's scores are read on: locality of each form, averages per record."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.metrics.estimates import with_units
from lib.report.tables import NOT_RUN
from lib.runs.study import Study

MOMENTS = {"single": "own", "consecutive": "end"}
OWN, INTENDED, WITHOUT = "COMEBA-HK", "COMEBA-HK intended", "COMEBA-HK without hooks"
PROTOCOLS = {"single": "single-round editing", "consecutive": "consecutive editing"}

KEPT = ("near", "upstream")  # subsets on which nothing should change
PARTS = ("edits", "holdout", "locality")
NEEDED = (
    "run", "editor", "subset", "moment", "n_edits", "edit_index", "record", "prompt", "score",
    "answer_accuracy", "answer_agreement", "prompt_accuracy", "prefers_target", "exact_match",
    "agreement",
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A form of the data and its two settings ("" where the profile has none).

    `locality` is the subset that the paper's locality is read on.
    """

    key: str
    title: str
    locality: str
    single: str
    consecutive: str

    def setting(self, protocol: str) -> str:
        """The setting of a protocol ("single" or "consecutive"), "" for none."""
        return {"single": self.single, "consecutive": self.consecutive}[protocol]


def forms(study: Study) -> list[Form]:
    """The forms of the data with at least one setting in this profile."""
    planned, found = set(study.settings), []
    for key, entry in study.document["tables"]["forms"].items():
        names = {p: entry[p] if entry.get(p) in planned else "" for p in PROTOCOLS}
        if any(names.values()):
            found.append(Form(key, entry["title"], entry["locality"], **names))
    return found


def with_rivals(study: Study, scored: bool = True) -> list[str]:
    """The settings of the forms whose locality is read on the same relation (CounterFact's) and
    whose runs score the competing answers, or (not `scored`) do not."""
    named = [form.setting(p) for form in forms(study) if form.locality == "near" for p in PROTOCOLS]
    protocols = {name: study.document["settings"][name]["protocol"] for name in named if name}
    return [name for name, told in protocols.items() if told.get("rivals", True) is scored]


def consecutive(study: Study) -> list[str]:
    """The settings whose edits stay from batch to batch."""
    return [form.consecutive for form in forms(study) if form.consecutive]


def place(study: Study, setting: str) -> tuple[Form, str]:
    """The form and the protocol ("single" or "consecutive") of a setting."""
    for form in forms(study):
        for protocol in PROTOCOLS:
            if form.setting(protocol) == setting:
                return form, protocol
    raise ValueError(f"setting {setting!r} belongs to no form in the paper's tables")


def editors_of(study: Study, setting: str) -> dict[str, str]:
    """The editors of a setting in the paper's order, each with why it is not run here, or ""."""
    here, paper = (
        document["settings"][setting]["editors"] for document in (study.document, study.original)
    )
    names = dict.fromkeys([*paper, *here])
    return {name: "" if here.get(name) else NOT_RUN for name in names}


def scored(study: Study, setting: str, sweep: str = "") -> pd.DataFrame:
    """Records of a setting with `score` and the subsets `locality` and `average`."""
    return with_scores(study.records(setting, sweep), place(study, setting)[0].locality)


def with_scores(records: pd.DataFrame, locality: str) -> pd.DataFrame:
    """Records with `score`, and with the subsets `locality` and `average` added.

    `score` is `answer_accuracy` (EasyEdit's token_em) for edits and rephrases and
    `answer_agreement` for the rows that an edit should leave alone. `locality` names the subset
    of the paper's locality: "near" or "upstream". A row of `average` is one edit: the mean of its
    own reliability, the mean generality of its rephrases and the mean locality of its probes,
    where all three exist. `unit` is the fact of the edit that a row belongs to (`with_units`).
    """
    if records.empty:
        return records.assign(**{name: [] for name in NEEDED if name not in records})
    kept = records["subset"].isin(KEPT)
    absent = {name: np.nan for name in NEEDED if name not in records}
    rows = records.assign(**absent)
    rows["score"] = rows["answer_accuracy"].where(~kept, rows["answer_agreement"]).astype(float)
    rows = with_units(rows)
    local = rows[rows["subset"] == locality].assign(subset="locality")
    rows = pd.concat([rows, local], ignore_index=True)
    averages = _averages(rows)
    return pd.concat([rows, averages], ignore_index=True) if len(averages) else rows


def _averages(rows: pd.DataFrame) -> pd.DataFrame:
    keys = ["run", "moment", "n_edits", "edit_index"]
    owned = rows[rows["subset"].isin(PARTS) & (rows["edit_index"] >= 0)]
    means = owned.groupby([*keys, "subset"])["score"].mean().unstack("subset")
    if any(part not in means for part in PARTS):
        return rows.iloc[:0]
    average = means[list(PARTS)].dropna().mean(axis=1).rename("score")
    edits = owned[owned["subset"] == "edits"].drop_duplicates(keys).drop(columns="score")
    found = edits.merge(average.reset_index(), on=keys, how="inner")
    others = [name for name in NEEDED[9:] if name in found]
    return found.assign(subset="average", **dict.fromkeys(others, np.nan))
