"""What editing costs: seconds per edit, parameters and stored numbers, one row per batch."""

import pandas as pd

COSTS = ("seconds_per_edit", "parameters", "stored_floats")


def costs_by_editor(records: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """One row per edited batch with `editor` and the columns `COSTS`.

    Seconds are per edit of that batch; parameters and stored floats are those of the batch's run
    after its last batch, because they grow with the edits.
    """
    names = ["run", "editor", *COSTS]
    if steps.empty or records.empty:
        return pd.DataFrame(columns=names)
    rows = steps.sort_values(["run", "n_edits"]).copy()
    rows["editor"] = rows["run"].map(records.drop_duplicates("run").set_index("run")["editor"])
    per_run = rows.groupby("run", sort=False)
    size = per_run["n_edits"].diff().fillna(rows["n_edits"])
    rows["seconds_per_edit"] = rows["seconds_edit"] / size.where(size > 0)
    for column in ("parameters", "stored_floats"):
        rows[column] = per_run[column].transform("last")
    order = {editor: place for place, editor in enumerate(dict.fromkeys(records["editor"]))}
    rows = rows.dropna(subset=["editor"])
    return rows.sort_values("editor", key=lambda e: e.map(order), kind="stable")[names]
