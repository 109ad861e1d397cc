"""The rows that MALMEN's page reads: every run by the number of facts that it edits at once."""

import pandas as pd

from lib.report.claims.comparisons import METRIC, SWEEP
from lib.runs.study import Study

OWN, RIVAL, SUM = "MALMEN", "MEND", "MALMEN with a plain sum"
NEEDED = ("m", "moment", "subset", "record", "prompt", METRIC)


def generates(study: Study, setting: str) -> bool:
    """Whether the setting's backbone writes text (a classifier's answer is one class)."""
    return setting in study.document["tables"]["decoded"]["settings"]


def planned(study: Study, setting: str) -> dict[int, list[str]]:
    """The editors of the page's main tables at each m of this profile, smallest first."""
    here = study.editors(setting)
    shown = [name for name in study.document["tables"]["main"]["editors"] if name in here]
    found = {study.batch_size(setting): shown}
    axis = study.sweeps(setting).get(SWEEP)
    for value in axis["values"] if axis else ():
        swept = [name for name in shown if name in axis["editors"]]
        found[value] = [name for name in shown if name in {*found.get(value, ()), *swept}]
    return dict(sorted(found.items()))


def sizes(study: Study, setting: str) -> list[int]:
    """All m of a setting, smallest first."""
    return list(planned(study, setting))


def by_m(study: Study, setting: str, which: str = "records") -> pd.DataFrame:
    """Rows ("records", "steps", "observations") of the main table and of the sweep over m, each
    run once, with `m` and with `sweep` "m" throughout. Observations keep the m they name."""
    read = getattr(study, which)
    main, swept = read(setting), read(setting, SWEEP)
    if "m" not in main and "m" not in swept:
        main = main.assign(m=study.batch_size(setting))
        swept = swept.assign(m=pd.to_numeric(swept["value"]).astype("int64"))
    parts = [part for part in (swept, main[~main["run"].isin(swept["run"])]) if len(part)]
    if not parts:  # nothing ran: no rows, but every column that readers ask for
        main = main.reindex(columns=list(dict.fromkeys([*main, *NEEDED])))
    rows = pd.concat(parts, ignore_index=True) if parts else main
    return rows.assign(sweep=SWEEP)


def observed(study: Study, setting: str, kind: str) -> pd.DataFrame:
    """What editors observed of one kind, in the main table and in the sweep over m; `m` is the
    number of facts that the observation is about."""
    rows = by_m(study, setting, "observations")
    if "kind" not in rows:
        return pd.DataFrame(columns=["kind", "run", "editor", "m", "cached", "step"])
    found = rows[rows["kind"] == kind]
    return found.dropna(axis="columns", how="all") if len(found) else found


def unedited(records: pd.DataFrame) -> pd.DataFrame:
    """The scores before any edit, once: they are the same in every run that has them (runs of the
    sweep may leave decoding out)."""
    before = records[records["moment"] == "before"] if len(records) else records
    if before.empty:
        return before
    decoded = before.groupby("run", sort=False)["begins_with"].count()
    return before[before["run"] == decoded.idxmax()]
