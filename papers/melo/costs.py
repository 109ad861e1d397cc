"""What an edit costs, per editor and setting: time, parameters, stored keys, peak memory."""

import pandas as pd

from lib.metrics import costs
from lib.metrics.intervals import mean_interval
from lib.report.tables import regenerated
from lib.runs.study import Study
from papers.common import kept

BYTES = 4  # of a stored number: keys and values are kept in float32
REPORTED = (
    "The paper's efficiency table is not available: no stored source shows its numbers. What the "
    "official figures show is the editing time of 5,000 edits, in the time panels above."
)


@regenerated("efficiency")
def efficiency(study: Study) -> pd.DataFrame:
    """One row per editor and setting with numbers: seconds of preparation before the first edit and
    per edit (mean over batches and 95 % interval), trained parameters and stored bytes after the
    last edit, peak memory of the whole run in GiB (the model itself included)."""
    rows = [row for name in study.settings for row in _rows(study, name)]
    return kept(study, "melo-efficiency", pd.DataFrame(rows))


def _rows(study: Study, setting: str) -> list[dict[str, object]]:
    records, manifests = study.records(setting), study.manifests(setting)
    spent = costs.costs_by_editor(records, study.steps(setting))
    memory = costs.inference(records, manifests)
    fitted = pd.Series({name: m["seconds"]["fit"] for name, m in manifests.items()}, dtype=float)
    found = []
    for editor in study.editors(setting):
        mine, runs = spent[spent["editor"] == editor], memory[memory["editor"] == editor]
        seconds = mean_interval(mine["seconds_per_edit"].astype(float))
        last = mine.groupby("run")[["parameters", "stored_floats"]].last().astype(float).mean()
        found.append(
            {
                "setting": study.title(setting), "editor": editor,
                "preparation_seconds": fitted.reindex(runs["run"]).mean(),
                "seconds_per_edit": seconds.mean, "low": seconds.low, "high": seconds.high,
                "batches": seconds.n, "parameters": last["parameters"],
                "stored_bytes": BYTES * last["stored_floats"],
                "peak_gib": runs["peak_gib"].max(), "runs": len(runs),
                "error": study.error(setting, editor),
            }
        )  # fmt: skip
    return found


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """`efficiency` for readers."""
    if frame.empty:
        return frame
    rows = []
    for row in frame.itertuples():
        interval = "" if pd.isna(row.low) else f" [{row.low:.3g}, {row.high:.3g}]"
        absent = row.error or "not measured"
        rows.append(
            {
                "setting": row.setting, "editor": row.editor,
                "preparation, s": _plain(row.preparation_seconds, "{:,.1f}"),
                "s per edit [95 %]": absent
                if pd.isna(row.seconds_per_edit)
                else f"{row.seconds_per_edit:.3g}{interval}",
                "batches": row.batches,
                "trained parameters": _plain(row.parameters, "{:,.0f}"),
                "stored beside them, kB": _plain(row.stored_bytes / 1000, "{:,.1f}"),
                "peak of the run, GiB": _plain(row.peak_gib, "{:.2f}"),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _plain(value: float, form: str) -> str:
    return "–" if pd.isna(value) else form.format(value)
