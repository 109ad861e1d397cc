"""What MELO's figures draw: swept values, reported curves, retention, the index, its keys."""

import re

import pandas as pd
from safetensors.numpy import load_file

from lib.report.figures.parts import levels
from lib.report.figures.rows import against_default, differences, kept_edits, then_and_now
from lib.report.figures.style import Plot
from lib.runs.study import Study
from papers import common
from papers.melo import figures
from papers.melo.scores import group_of, scored, success

# Sweep -> item of the reported CSV, pattern of its methods, and how a value is called.
REPORTED = {
    "radius": ("Fig radius {model}", r"MELO R=([\d.]+)"),
    "location": ("Fig VecDB location {model}", r"MELO VecDB=\[(\d+)\]"),
}
CALLED = {"radius": "radius", "location": "block", "rank": "rank", "capacity": "blocks"}
QUANTITIES = {  # of the reported curves: what a legend calls them
    "ES (F1)": "edit success, F1", "Generality/Holdout (F1)": "generality, F1",
    "Locality (F1)": "locality, F1",
}  # fmt: skip
SWEPT = {
    "edits": "Edits", "holdout": "Held-out rephrases", "near": "Near answers kept",
}  # fmt: skip
COUNTED = {  # column of ours -> item and metric of the reported CSV
    "clusters": ("Fig clusters", "clusters in VecDB"), "conflicts": ("Fig conflicts", "conflicts"),
    "forgotten": ("Fig forgotten", "forgotten edits (F-Edits)"),
}  # fmt: skip
KEY_COMPONENTS = ((1, 2), (1, 5))  # the second pair is the paper's, of 30


def reported_curves(study: Study, setting: str, sweep: str) -> dict[str, pd.DataFrame]:
    """The digitised curves of a sweep by quantity: method, n_edits, value, and the swept `x`."""
    place = study.document["settings"][setting]["reported"]
    if not place or sweep not in REPORTED:
        return {}
    item, pattern = REPORTED[sweep]
    names = {name: name for name in QUANTITIES}
    return _curves(item.format(model=place["model"]), pattern, CALLED[sweep], names)


def _curves(item: str, pattern: str, called: str, names: dict[str, str]) -> dict[str, pd.DataFrame]:
    known = common.reported("melo")
    rows = known[(known["item"] == item) & known["method"].str.fullmatch(pattern)]
    swept = [float(re.match(pattern, method)[1]) for method in rows["method"]]
    label = [f"{called} {value:g}" for value in swept]
    rows = rows.assign(method=label, x=swept, n_edits=rows["n_edits"].astype(float))
    found = {name: rows[rows["metric"] == metric] for name, metric in names.items()}
    columns = ["method", "x", "n_edits", "value"]
    return {name: part[columns] for name, part in found.items() if len(part)}


def sweep_differences(study: Study, setting: str, sweep: str) -> Plot:
    """Each swept value minus the main table's: decoded edits, held-out rephrases and unchanged near
    answers after the last edit, and the shape of the reported curves."""
    records, called = scored(study, setting, sweep), CALLED.get(sweep, sweep)
    if len(records):
        # Near questions are right if they stay as they were, edits if they become what was asked.
        near = records["subset"] == "near"
        right = records["exact_match"].where(~near, records["agreement"])
        records = records.assign(right=right)
    main = scored(study, setting)["run"].unique()
    rows = against_default(
        records, "right", SWEPT, main, lambda editor, value: f"{editor}, {called} {float(value):g}"
    )
    default = records[records["run"].isin(main)].drop_duplicates(["editor", "value"])
    usual = [
        f"{editor} {float(value):g}"
        for editor, value in zip(default["editor"], default["value"], strict=True)
    ]
    told = reported_curves(study, setting, sweep)
    return differences(
        rows, titles=SWEPT, xlabel="minus the usual",
        about=f"Usual {called}: {', '.join(usual) or 'not among the values'}.",
        beside=(lambda panel: figures.reported_shape(panel, told, QUANTITIES)) if told else None,
    )  # fmt: skip


def retention(study: Study, setting: str) -> Plot:
    """How an edit stands right after its batch and after the last one, an editor a row."""
    metric, label = success(study, setting)
    records = study.records(setting)
    about = f"Score: {label}; {study.edits(setting):,} edits."
    return then_and_now(
        kept_edits(records, metric), levels=levels(records, metric, "edits"), about=about
    )


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
    pair of components. None where no index holds a cluster."""
    found = {}
    for editor in study.editors(setting):
        index = saved_index(study, setting, editor) if editor.startswith("MELO") else None
        if index is not None:
            found[editor] = index["keys"], index["owners"].tolist()
    pairs = KEY_COMPONENTS if is_question_answering(study, setting) else KEY_COMPONENTS[:1]
    about = f"{study.document['settings'][setting]['backbone']}, first order seed."
    plot = figures.key_maps(found, pairs, about)
    return plot if len(plot.data) else None


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
