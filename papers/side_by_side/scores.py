"""The rows and measures of the side-by-side page: which editors, right or wrong, kept or changed,
when.

All measures are shares of rows between 0 and 1. The unit of intervals is the fact that was edited,
as its rephrase and the questions that belong to it rise and fall with it, or the batch in which it
was edited (`lib.metrics.estimates`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.editors.registry import FAMILIES, REGISTRY
from lib.metrics.costs import saved_bytes
from lib.metrics.estimates import BATCH, FACT, FEWEST_BATCHES, with_units
from lib.metrics.ranking import Sample
from lib.report import tables
from lib.runs.study import Study

OTHERS = "other"
APART = ("serac",)  # kinds whose answers need trained networks that are not saved with the edits
# Kinds whose papers edit once, from the unedited model: their networks are trained for that.
SINGLE_ROUND = ("mend", "malmen")
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


def single_round(study: Study, setting: str, editor: str) -> bool:
    """Whether an editor's method is for one round of edits (`SINGLE_ROUND`), and runs consecutively
    here as all do."""
    return study.document["settings"][setting]["editors"][editor].get("kind") in SINGLE_ROUND


def family_words(study: Study, setting: str) -> dict[str, str]:
    """What stands below an editor's name: its family, or that it is a single-round method."""
    return {
        name: "single round" if single_round(study, setting, name) else BRIEFLY.get(family, family)
        for name, family in families(study, setting).items()
    }


def needs_networks(study: Study, setting: str, editor: str) -> bool:
    """Whether an editor's edits are of no use without the networks that it trained."""
    return study.document["settings"][setting]["editors"][editor].get("kind") in APART


def scored(study: Study, setting: str) -> pd.DataFrame:
    """Records with columns more (`with_scores`)."""
    return with_scores(study.records(setting))


def with_scores(records: pd.DataFrame) -> pd.DataFrame:
    """Records with `tokens` (share of the answer's tokens that are the first choice when the answer
    is fed in, the field's usual number), `right` (1: all of them are, what is applied being decided
    on the prompt alone), `decoded` (1: what the model writes begins with the answer, as far as was
    decoded), `kept` (1: it writes what the unedited model wrote), `kept_forced` (1: its first
    choices along the fed-in answer are the unedited model's), and the fact and batch that own the
    row (`with_units`). No records give no rows, but every column."""
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
    return with_units(rows)


def sizes(records: pd.DataFrame) -> list[int]:
    """The numbers of edits at which everything was scored, the largest last."""
    rows = records[records["moment"].isin(["checkpoint", "end"])]
    return sorted(int(n) for n in rows["n_edits"].unique())


def at(records: pd.DataFrame, edits: int) -> pd.DataFrame:
    """Everything scored when the model held so many edits: a checkpoint, or an editor's end."""
    rows = records[records["moment"].isin(["checkpoint", "end"]) & (records["n_edits"] == edits)]
    return rows.drop_duplicates(["run", "subset", "record", "prompt"], keep="last")


def unedited(records: pd.DataFrame, edits: int) -> pd.DataFrame:
    """The unedited model on the same rows as after so many edits (`tables.unedited`)."""
    return tables.unedited(records[records["edit_index"] < edits])


def present(records: pd.DataFrame, edits: int, editors: list[str]) -> list[str]:
    """The editors that were scored after so many edits, in the order given."""
    here = set(at(records, edits)["editor"])
    return [name for name in editors if name in here]


def sample(rows: pd.DataFrame, editors: list[str], parts: tuple[Measure, ...] = SCORE) -> Sample:
    """The parts of a measure for some editors on the units that all of them were scored on, in
    every part under at least one common seed.

    Units are facts; in a single order of at least `FEWEST_BATCHES` batches they are the batches,
    as another order would have made others. Several orders are resampled themselves.
    """
    frames = [part.rows(rows[rows["editor"].isin(editors)]) for part in parts]
    facts = {unit for frame in frames for unit in frame["unit"]}
    unit = _unit_of(frames)
    if unit == BATCH:
        frames = [frame.assign(unit=frame["edit_batch"].astype(str)) for frame in frames]
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
    count = int(kept.sum()) if unit == FACT else len(facts)
    return Sample(tuple(editors), chosen, sums[..., kept], counts[..., kept], unit, count)


def _unit_of(frames: Sequence[pd.DataFrame]) -> str:
    """What is resampled where all these rows are read together."""
    rows = pd.concat([frame[["seed", "edit_batch", "unit"]] for frame in frames])
    batches, facts = rows["edit_batch"].nunique(), rows["unit"].nunique()
    one_order = rows["seed"].nunique() == 1 and bool((rows["edit_batch"] >= 0).all())
    return BATCH if one_order and FEWEST_BATCHES <= batches < facts else FACT


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
