"""What MELO's figures draw: swept values over the edits, reported curves, the index, its keys."""

import re

import pandas as pd
from safetensors.numpy import load_file

from lib.report.figures import curves
from lib.report.figures.style import Plot
from lib.runs.study import Study
from papers import common
from papers.melo import figures
from papers.melo.scores import group_of, scored

# Sweep -> item of the reported CSV, pattern of its methods, and how a value is called.
REPORTED = {
    "radius": ("Fig radius {model}", r"MELO R=([\d.]+)"),
    "location": ("Fig VecDB location {model}", r"MELO VecDB=\[(\d+)\]"),
}
CALLED = {"radius": "radius", "location": "block", "rank": "rank", "capacity": "blocks"}
QUANTITIES = {
    "edits": "ES (F1)", "released_holdout": "Generality/Holdout (F1)", "upstream": "Locality (F1)",
    "time": "cumulative edit time",
}  # fmt: skip
COUNTED = {  # column of ours -> item and metric of the reported CSV
    "clusters": ("Fig clusters", "clusters in VecDB"), "conflicts": ("Fig conflicts", "conflicts"),
    "forgotten": ("Fig forgotten", "forgotten edits (F-Edits)"),
}  # fmt: skip
KEY_COMPONENTS = ((1, 2), (1, 5))  # the second pair is the paper's, of 30


def reported_curves(study: Study, setting: str, sweep: str) -> dict[str, pd.DataFrame]:
    """The digitised curves of a sweep by quantity: value, n_edits, and the label in `method`."""
    place = study.document["settings"][setting]["reported"]
    if not place or sweep not in REPORTED:
        return {}
    item, pattern = REPORTED[sweep]
    return _curves(item.format(model=place["model"]), pattern, CALLED[sweep], QUANTITIES)


def _curves(item: str, pattern: str, called: str, names: dict[str, str]) -> dict[str, pd.DataFrame]:
    known = common.reported("melo")
    rows = known[(known["item"] == item) & known["method"].str.fullmatch(pattern)]
    label = [f"{called} {float(re.match(pattern, m)[1]):g}" for m in rows["method"]]
    rows = rows.assign(method=label, n_edits=rows["n_edits"].astype(float))
    found = {name: rows[rows["metric"] == metric] for name, metric in names.items()}
    return {name: part[["method", "n_edits", "value"]] for name, part in found.items() if len(part)}


def sweep_curves(study: Study, setting: str, sweep: str, editor: str = "MELO") -> Plot:
    """The paper's four panels: F1 on edits, on the edited prompts as "holdout", on upstream
    questions, and editing time against edits, a line per swept value; ours adds held-out ones."""
    records = _labelled(scored(study, setting, sweep), sweep, editor)
    if records.empty:
        records = records.assign(edit_index=[])
    # As the official loop: ES of the edits applied so far, "holdout" of all, those to come as well.
    due = (records["edit_index"] < records["n_edits"]) | (records["moment"] == "before")
    own = records["subset"] == "edits"
    steps = _labelled(study.steps(setting, sweep), sweep, editor)
    return figures.scores_over_edits(
        records[due | ~own], steps, "f1_released", by="method", ylabel="F1",
        reported=reported_curves(study, setting, sweep),
    )  # fmt: skip


def sweep_ends(study: Study, setting: str, sweep: str) -> Plot:
    """Decoded edits and rephrases, and unchanged near answers, against a swept setting."""
    records = scored(study, setting, sweep)
    if records.empty:
        return curves.sweep(records, "value", "share", xlabel=study.sweeps(setting)[sweep]["title"])
    # Near questions are right if they stay as they were, edits if they become what was asked.
    kept = records["subset"].isin(["near", "upstream"])
    share = records["exact_match"].where(~kept, records["agreement"])
    rows = records.assign(swept=records["value"].astype(float), share=share)
    title = study.sweeps(setting)[sweep]["title"]
    subsets = ("edits", "holdout", "near")
    return curves.sweep(rows, "swept", "share", subsets=subsets, xlabel=title, ylabel="share")


def index_curves(study: Study, setting: str, editor: str = "MELO") -> Plot:
    """Clusters, conflicts and forgotten keys against edits, a line per radius, and as reported."""
    sweep = "radius" if "radius" in study.sweeps(setting) else ""
    steps = _labelled(study.steps(setting, sweep), sweep, editor)
    place, told, answers = study.document["settings"][setting]["reported"], {}, {}
    known = common.reported("melo")
    if place and place["model"] in set(known.loc[known["item"] == "Fig clusters", "model"]):
        for name, (item, metric) in COUNTED.items():
            told |= _curves(item, REPORTED["radius"][1], CALLED["radius"], {name: metric})
        line = known.loc[known["metric"] == "distinct answers among edits", "value"]
        answers["reported"] = float(line.iloc[0])
    for manifest in study.manifests(setting).values():
        answers["here"] = float(manifest["dataset"]["counts"]["answers"])
    return figures.counts_over_edits(steps, by="method", reported=told, distinct_answers=answers)


def _labelled(frame: pd.DataFrame, sweep: str, editor: str) -> pd.DataFrame:
    """The rows of one editor with `method`: what the swept value is called."""
    rows = frame[frame["editor"] == editor]
    if not sweep or rows.empty:
        return rows.assign(method=rows["editor"])
    return rows.assign(method=[f"{CALLED.get(sweep, sweep)} {float(v):g}" for v in rows["value"]])


def key_maps(study: Study, setting: str) -> Plot | None:
    """Keys of every MELO variant's first run; in the setting of the paper's picture also on its
    pair of components. None where nothing is saved."""
    found = {}
    for editor in study.editors(setting):
        index = saved_index(study, setting, editor) if editor.startswith("MELO") else None
        if index is not None:
            found[editor] = index["keys"], index["owners"].tolist()
    pairs = KEY_COMPONENTS if is_question_answering(study, setting) else KEY_COMPONENTS[:1]
    about = f"{study.document['settings'][setting]['backbone']}, first order seed."
    return figures.key_maps(found, pairs, about) if found else None


def saved_index(study: Study, setting: str, editor: str) -> dict | None:
    """Keys, blocks, centres and radii of MELO's index at the end of the first seed's run."""
    for run in study.runs:
        if (run.setting, run.editor, run.sweep, run.seed) == (setting, editor, "", 0):
            found = study.finished(run)
            if found is not None:
                return dict(load_file(found.editor / "index.safetensors"))
    return None


def is_question_answering(study: Study, setting: str) -> bool:
    """Whether a setting belongs to the zsRE group, whose figures the paper draws."""
    return group_of(study, setting) == "zsre"
