"""What editing costs: seconds, parameters, stored numbers, memory, and slower forward passes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

COSTS = ("seconds_per_edit", "parameters", "stored_floats")
SIZES = ("parameters", "stored_floats")


def costs_by_editor(records: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """One row per edited batch with `editor` and the columns `COSTS`.

    Seconds are per edit of that batch; parameters and stored floats are those of the batch's run
    after its last batch, because they grow with the edits.
    """
    names = ["run", "editor", *COSTS]
    if steps.empty or records.empty:
        return pd.DataFrame(columns=names)
    order = [name for name in ("run", "batch", "n_edits") if name in steps]
    rows = steps.sort_values(order, kind="stable").copy()
    rows["editor"] = rows["run"].map(records.drop_duplicates("run").set_index("run")["editor"])
    per_run, size = rows.groupby("run", sort=False), batch_sizes(rows)
    rows["seconds_per_edit"] = rows["seconds_edit"] / size.where(size > 0)
    for column in ("parameters", "stored_floats"):
        rows[column] = per_run[column].transform("last")
    place = {editor: place for place, editor in enumerate(dict.fromkeys(records["editor"]))}
    rows = rows.dropna(subset=["editor"])
    return rows.sort_values("editor", key=lambda e: e.map(place), kind="stable")[names]


def batch_sizes(steps: pd.DataFrame) -> pd.Series:
    """How many edits each batch made, from steps in their order. Where every batch starts from the
    backbone again, `n_edits` counts that batch alone."""
    size = steps.groupby("run", sort=False)["n_edits"].diff()
    return size.where(size > 0, steps["n_edits"])


def inference(records: pd.DataFrame, manifests: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row per run: setting, editor, and how long a forward pass takes without and with edits.

    `overhead` is edited / base - 1; timings are the fastest of `repeats`, missing where the run
    timed none. `peak_gib` is the peak memory of the whole run in GiB, `fit_seconds` what it spent
    before its first edit.
    """
    names = [
        "run", "setting", "editor", "base_seconds", "edited_seconds", "overhead", "repeats",
        "peak_gib", "fit_seconds",
    ]  # fmt: skip
    if records.empty:
        return pd.DataFrame(columns=names)
    rows = []
    for row in records.drop_duplicates("run").itertuples():
        manifest = manifests.get(row.run)
        if manifest is None:
            continue
        timed = manifest.get("inference") or {}
        base, edited = timed.get("base_seconds"), timed.get("edited_seconds")
        overhead = edited / base - 1 if base and edited is not None else None
        peak = manifest.get("peak_memory_bytes")
        memory = None if peak is None else peak / 2**30
        fit = (manifest.get("seconds") or {}).get("fit")
        rows.append(
            (row.run, row.setting, row.editor, base, edited, overhead, timed.get("repeats"), memory,
             fit)
        )  # fmt: skip
    frame = pd.DataFrame(rows, columns=names)
    return frame.astype({name: float for name in names[3:]})


def saved_bytes(folder: Path) -> int:
    """Bytes of everything that an editor wrote to keep its edits; 0 where nothing was kept."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
