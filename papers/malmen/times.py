"""Time on MALMEN's page: runs split by activity, and totals beside the two reported ones."""

from collections.abc import Iterator

import pandas as pd

from lib.report import page, tables
from lib.report.reported import reported_value
from lib.runs.study import Study
from papers import common
from papers.malmen.scores import OWN, by_m, observed

READ = 1.0  # seconds: a preparation below it was read from a cache or is none


def times(study: Study, setting: str) -> pd.DataFrame:
    """One row per run: editor, m, and seconds. `train`: the hyper-network's training as it was
    when it was done, else what the editor prepared; `edit`: one batch of m facts (mean over
    batches); `edit_all` and `evaluate`: all batches of the run."""
    names = ["run", "editor", "m", "train", "edit", "edit_all", "evaluate", "batches", "cached"]
    steps, trainings = by_m(study, setting, "steps"), observed(study, setting, "training")
    manifests = study.manifests(setting) | study.manifests(setting, "m")
    rows = []
    for (run, editor, m), batches in steps.groupby(["run", "editor", "m"], sort=False):
        seconds = manifests[run]["seconds"]
        mine = trainings[trainings["run"] == run] if len(trainings) else trainings
        known = len(mine) > 0
        train = float(mine["seconds"].iloc[0]) if known else seconds["fit"]
        cached = bool(mine["cached"].iloc[0]) if known else False
        edit = float(batches["seconds_edit"].mean())
        total = float(batches["seconds_edit"].sum())
        rows.append((run, editor, int(m), train, edit, total, seconds["evaluate"], len(batches),
                     cached))  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def time_notes(frame: pd.DataFrame) -> str:
    """Which trainings were read from the cache, and which preparations took next to nothing, as
    an HTML paragraph; "" if there is nothing to say."""
    cached = [f"{row.editor} ({row.train:,.1f} s)" for row in frame.itertuples() if row.cached]
    little = frame[(frame["editor"] == "MEMIT") & (frame["train"] < READ)]
    notes = []
    if cached:
        notes.append(
            f"Networks found in the cache, with what their training took when it was done: "
            f"{', '.join(cached)}."
        )
    if len(little):
        notes.append("MEMIT's key statistics were found in the cache, or are small.")
    return page.paragraphs([" ".join(notes)])


def total_times(study: Study) -> str:
    """The two reported totals beside ours at the largest common m and the plan's estimate, as an
    HTML table."""
    known = common.reported("malmen")
    spot = {"item": "text:time", "metric": "total_time"}
    told = [reported_value(known, **spot, method=name) for name in (OWN, "MEMIT")]
    row = known.iloc[0]
    where = f"reported: {row['model']}, {row['dataset']}, {row['n_edits']:,} facts, one A100"
    rows = [_totals(where, *told, "h", row["source"])]
    for setting in study.document["settings"]:
        rows += _ours(study, setting)
    hours = [_estimated(study, "zsre-gptj", name) for name in (OWN, "MEMIT")]
    facts = study.original["settings"]["zsre-gptj"]["stream"]["n_edits"]
    rows.append(
        _totals(
            f"estimated: GPT-J (6B), zsRE, {facts:,} facts, profile paper", *hours, "h",
            "this study's plan, not measured",
        )
    )  # fmt: skip
    heads = ("what", "MALMEN", "MEMIT", "MALMEN / MEMIT", "source")
    return page.html_table(heads, rows, "Total time, training included")


def _ours(study: Study, setting: str) -> Iterator[tuple[str, ...]]:
    frame = times(study, setting)
    both = [set(frame.loc[frame["editor"] == name, "m"]) for name in (OWN, "MEMIT")]
    common_m = set.intersection(*both)
    if not common_m:
        return
    m = max(common_m)
    at = frame[frame["m"] == m].groupby("editor")[["train", "edit"]].mean().sum(axis=1)
    where = f"here: {study.title(setting)}, {m:,} facts"
    yield _totals(where, at[OWN], at["MEMIT"], "s", "measured: preparation and one batch")


def _totals(what: str, ours: float, theirs: float, unit: str, source: str) -> tuple[str, ...]:
    ratio = f"{ours / theirs:.2f}" if theirs else tables.MISSING
    digits = 4 if unit == "h" else 3
    both = (f"{amount:,.{digits}g}\N{NO-BREAK SPACE}{unit}" for amount in (ours, theirs))
    return what, *both, ratio, source


def _estimated(study: Study, setting: str, editor: str) -> float:
    """Hours of one run by the paper profile's costs."""
    chosen = study.original["settings"][setting]
    cost = {**chosen["cost"], **chosen["editors"][editor].get("cost", {})}
    return (cost["seconds"] + cost["seconds_per_edit"] * chosen["stream"]["n_edits"]) / 3600
