"""What other authors measured with the official codes, and whether their orderings are ours too."""

import itertools
from pathlib import Path

import pandas as pd

from lib.errors import RecordError
from lib.report.claims.comparisons import METRIC
from lib.report.claims.verdict import paired
from lib.report.tables import regenerated
from lib.runs.study import Study
from papers.common import kept
from papers.malmen.scores import OWN, by_m, planned

FILE = Path(__file__).parent / "reported_by_others.csv"
SIDES = ("AG", "TF")  # decoded answers, teacher-forced
READ_AS = {  # their measure, our subset and metric: locality is agreement with the answer before
    "ES": ("reliability", "edits", METRIC),
    "GS": ("generality", "holdout", METRIC),
    "same as before": ("locality", "upstream", "answer_agreement"),
}
COLUMNS = (
    "dataset", "n_edits", "model", "method",
    *(f"{name}_{side}" for name, _, _ in READ_AS.values() for side in SIDES), "score", "source",
)  # fmt: skip


def load_others(path: Path = FILE) -> pd.DataFrame:
    """One row per dataset, model, method and number of edits; scores in %, and the source."""
    frame = pd.read_csv(path)
    if tuple(frame.columns) != COLUMNS:
        raise RecordError(f"{path}: expected the columns {', '.join(COLUMNS)}")
    return frame


@regenerated("others")
def others_table(study: Study) -> pd.DataFrame:
    """A row per dataset, model and number of edits, a column per method: teacher-forced ES, GS and
    locality."""
    known = load_others()
    three = [f"{name}_TF" for name, _, _ in READ_AS.values()]
    text = known[three].map("{:.1f}".format).agg(" / ".join, axis=1)
    wide = known.assign(text=text).pivot(
        index=["dataset", "model", "n_edits"], columns="method", values="text"
    )
    frame = wide[known["method"].unique()].reset_index().rename_axis(columns=None)
    return kept(study, "malmen-others", frame.rename(columns={"n_edits": "facts at once, m"}))


@regenerated("orderings")
def orderings(study: Study, setting: str) -> pd.DataFrame:
    """For each pair of methods that both have, and each score: how often the first is ahead in the
    others' runs on the same dataset, our difference at the largest m that both ran, and whether
    ours has the order of most of theirs. Empty where others have no such dataset or pair."""
    known = load_others()
    known = known[known["dataset"] == study.document["settings"][setting]["reported"]["dataset"]]
    records = by_m(study, setting)
    methods = sorted(known["method"].unique(), key=lambda name: (name != OWN, name))
    rows = []
    for one, other in itertools.combinations(methods, 2):
        both = [m for m, names in planned(study, setting).items() if {one, other} <= {*names}]
        if not both or records.empty:
            continue
        here = records[(records["m"] == both[-1]) & (records["moment"] == "own")]
        for score, (name, subset, metric) in READ_AS.items():
            theirs = known.pivot(index=["model", "n_edits"], columns="method")[f"{name}_TF"]
            ahead, behind = (
                int((theirs[a] > theirs[b]).sum()) for a, b in ((one, other), (other, one))
            )
            part = here[here["subset"] == subset]
            sides = [part[part["editor"] == editor] for editor in (one, other)]
            if any(side.empty for side in sides):
                continue  # a run failed; the main table says why
            found = paired(*sides, metric)
            rows.append(
                {
                    "methods": f"{one} − {other}", "score": score,
                    "others: ahead": f"{ahead} of {len(theirs)}", "m here": both[-1],
                    "here": f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]",
                    "same order": _same(ahead - behind, found.low, found.high),
                }
            )  # fmt: skip
    return kept(study, f"malmen-orderings-{setting}", pd.DataFrame(rows))


def _same(lead: int, low: float, high: float) -> str:
    """Whether a lead (runs ahead minus runs behind) has the sign of an interval that excludes 0."""
    ours = (low > 0) - (high < 0)
    if not lead or not ours:
        return "inconclusive"
    return "yes" if (lead > 0) == (ours > 0) else "no"


def agreement(frame: pd.DataFrame) -> str:
    """How many of the orderings are the same, as a sentence; "" for none."""
    if frame.empty:
        return ""
    counts = frame["same order"].value_counts()
    told = counts.get("yes", 0) + counts.get("no", 0)
    return (
        f"{counts.get('yes', 0)} of the {told} orderings that are clear here are those of most "
        f"of the others' runs; {len(frame) - told} are inconclusive."
    )
