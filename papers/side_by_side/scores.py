"""The rows and measures of the side-by-side page: which editors, right or wrong, kept or changed,
when.

All measures are shares of rows between 0 and 1. The unit of every interval is the fact that was
edited: its rephrase and the questions that belong to it rise and fall with it.
"""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.editors import FAMILIES, REGISTRY
from lib.metrics.costs import saved_bytes
from lib.metrics.ranking import Sample
from lib.runs.study import Study

UNEDITED_MODEL = "Unedited model"
OTHERS = "other"
APART = ("serac",)  # kinds whose answers need trained networks that are not saved with the edits
BRIEFLY = {
    "weights edited": "weights", "adapter or patch routed": "routed",
    "memory beside the model": "memory", OTHERS: "",
}  # fmt: skip
NEEDED = (
    "run", "editor", "seed", "record", "fact", "prompt", "target", "edit_index", "subset", "moment",
    "n_edits", "prediction", "answer_accuracy", "prompt_accuracy", "begins_with",
    "answer_agreement", "agreement",
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """A column of the overview: the mean of `column` over the rows of `subsets`."""

    key: str
    group: str
    title: str
    subsets: tuple[str, ...]
    column: str

    def rows(self, records: pd.DataFrame) -> pd.DataFrame:
        """The rows that count."""
        return records[records["subset"].isin(self.subsets) & records[self.column].notna()]


RELIABILITY = Measure("reliability", "Reliability", "decoded", ("edits",), "decoded")
GENERALITY = Measure("generality", "Generality", "decoded", ("holdout",), "decoded")
NEAR = Measure("near", "Locality", "same relation", ("near",), "kept")
UNRELATED = Measure("unrelated", "Locality", "unrelated", ("upstream",), "kept")
PORTABILITY = Measure("portability", "Portability", "decoded", ("portability",), "decoded")
GENERAL = Measure("general", "General ability", "right", ("general",), "right")
LOCALITY = Measure("locality", "Locality", "both", ("near", "upstream"), "kept")
MEASURES = (
    Measure("reliability_forced", "Reliability", "teacher-forced", ("edits",), "tokens"),
    RELIABILITY,
    Measure("generality_forced", "Generality", "teacher-forced", ("holdout",), "tokens"),
    GENERALITY,
    NEAR,
    UNRELATED,
    PORTABILITY,
    GENERAL,
)
SCORE = (RELIABILITY, GENERALITY, LOCALITY)  # the parts of the editing score


def family_of(study: Study, setting: str, editor: str) -> str:
    """The family of an editor, by its kind."""
    entry = study.document["settings"][setting]["editors"].get(editor, {})
    kind = entry.get("kind", "")
    return REGISTRY[kind][3] if kind in REGISTRY else OTHERS


def editors_of(study: Study, setting: str) -> list[str]:
    """The editors of a setting, family by family."""
    names, order = study.editors(setting), [*FAMILIES, OTHERS]
    return sorted(names, key=lambda name: order.index(family_of(study, setting, name)))


def families(study: Study, setting: str) -> dict[str, str]:
    """Editor to family, family by family."""
    return {name: family_of(study, setting, name) for name in editors_of(study, setting)}


def needs_networks(study: Study, setting: str, editor: str) -> bool:
    """Whether an editor's edits are of no use without the networks that it trained."""
    return study.document["settings"][setting]["editors"][editor].get("kind") in APART


def scored(study: Study, setting: str) -> pd.DataFrame:
    """Records with six columns more (`with_scores`)."""
    return with_scores(study.records(setting))


def with_scores(records: pd.DataFrame) -> pd.DataFrame:
    """Records with `tokens` (share of the answer's tokens that are the first choice when the answer
    is fed in, the field's usual number), `right` (1: all of them are, what is applied being decided
    on the prompt alone), `decoded` (1: what the model writes begins with the answer, as far as was
    decoded), `kept` (1: it writes what the unedited model wrote), `kept_forced` (1: its first
    choices along the fed-in answer are the unedited model's), and `unit`, the fact that owns the
    row. No records give no rows, but every column."""
    absent = {name: np.nan for name in NEEDED if name not in records}
    rows = records.assign(**absent)
    forced = rows["prompt_accuracy"].astype(float).fillna(rows["answer_accuracy"].astype(float))
    same = rows["answer_agreement"].astype(float)
    rows = rows.assign(
        tokens=rows["answer_accuracy"].astype(float),
        right=(forced == 1).astype(float).where(forced.notna()),
        decoded=rows["begins_with"].astype(float),
        kept=rows["agreement"].astype(float),
        kept_forced=(same == 1).astype(float).where(same.notna()),
    )
    return rows.assign(unit=_units(rows))


def _units(rows: pd.DataFrame) -> pd.Series:
    """The fact of the edit that a row belongs to; the row's own identity in a shared pool."""
    edits = rows[rows["subset"] == "edits"].drop_duplicates(["run", "edit_index"])
    named = edits.set_index(["run", "edit_index"])["fact"]
    owner = pd.MultiIndex.from_frame(rows[["run", "edit_index"]])
    facts = pd.Series(named.reindex(owner).to_numpy(), index=rows.index, dtype=object)
    own = rows["record"].astype(str).str.replace(r"#\d+$", "", regex=True)
    return facts.where(facts.notna(), own)


def sizes(records: pd.DataFrame) -> list[int]:
    """The numbers of edits at which everything was scored, the largest last."""
    rows = records[records["moment"].isin(["checkpoint", "end"])]
    return sorted(int(n) for n in rows["n_edits"].unique())


def at(records: pd.DataFrame, edits: int) -> pd.DataFrame:
    """Everything scored when the model held so many edits: a checkpoint, or an editor's end."""
    rows = records[records["moment"].isin(["checkpoint", "end"]) & (records["n_edits"] == edits)]
    return rows.drop_duplicates(["run", "subset", "record", "prompt"], keep="last")


def unedited(records: pd.DataFrame, edits: int) -> pd.DataFrame:
    """The unedited model on the same rows as after so many edits, one run per
    seed, as `UNEDITED_MODEL`."""
    before = records[(records["moment"] == "before") & (records["edit_index"] < edits)]
    if before.empty:
        return before
    counted = before.groupby(["seed", "run"], sort=False).size().reset_index(name="rows")
    best = counted.loc[counted.groupby("seed")["rows"].idxmax()]
    return before[before["run"].isin(best["run"])].assign(editor=UNEDITED_MODEL)


def present(records: pd.DataFrame, edits: int, editors: list[str]) -> list[str]:
    """The editors that were scored after so many edits, in the order given."""
    here = set(at(records, edits)["editor"])
    return [name for name in editors if name in here]


def sample(rows: pd.DataFrame, editors: list[str], parts: tuple[Measure, ...] = SCORE) -> Sample:
    """The parts of a measure for some editors on the units that all of them were scored on, in
    every part under at least one common seed."""
    frames = [part.rows(rows[rows["editor"].isin(editors)]) for part in parts]
    seeds = sorted({seed for frame in frames for seed in frame["seed"]})
    everyone = {unit for frame in frames for unit in frame["unit"]}
    units = sorted(everyone, key=str)
    shape = (len(editors), len(parts), len(seeds), len(units))
    sums, counts = np.zeros(shape), np.zeros(shape)
    place = ({e: i for i, e in enumerate(editors)}, {s: i for i, s in enumerate(seeds)},
             {u: i for i, u in enumerate(units)})  # fmt: skip
    for number, (part, frame) in enumerate(zip(parts, frames, strict=True)):
        who, under, what = (
            frame[name].map(index).to_numpy(int)
            for name, index in zip(("editor", "seed", "unit"), place, strict=True)
        )
        np.add.at(sums, (who, number, under, what), frame[part.column].to_numpy(float))
        np.add.at(counts, (who, number, under, what), 1.0)
    common = (counts > 0).all(axis=(0, 1))  # [seeds, units]
    sums, counts = sums * common, counts * common
    kept = common.any(axis=0)
    chosen = tuple(str(unit) for unit, keep in zip(units, kept, strict=True) if keep)
    return Sample(tuple(editors), chosen, sums[..., kept], counts[..., kept])


def address(study: Study, editor: str, subset: str, edits: int | str, seed: int = 0) -> str:
    """Where the records behind a number stand, relative to the report. `edits`: how many the model
    held, "before" or "own"."""
    return f"{study.paper}-records/{page_name(editor, seed)}#{subset}-{edits}"


def page_name(editor: str, seed: int = 0) -> str:
    """The file that holds an editor's records."""
    name = re.sub(r"[^a-z0-9]+", "-", editor.lower()).strip("-")
    return f"{name}.html" if seed == 0 else f"{name}-seed-{seed}.html"


def size_of(study: Study, setting: str) -> pd.DataFrame:
    """One row per finished run: run, editor, seed, and the bytes of the saved edits."""
    rows = [
        (run.identity, run.editor, run.seed, saved_bytes(found.editor))
        for run in study.runs
        if run.setting == setting and not run.sweep and (found := study.finished(run)) is not None
    ]
    return pd.DataFrame(rows, columns=["run", "editor", "seed", "bytes"])
