"""What every editor costs after so many edits, and what more edits would cost.

Measured: seconds of every batch, seconds before the first edit, bytes of the saved edits at the
end, peak memory, forward passes. Anything beyond the last measured edit is a projection and says
so.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from lib.metrics import costs
from lib.metrics.intervals import Interval, mean_interval
from lib.runs.study import Study
from papers.side_by_side.scores import editors_of, needs_networks, size_of

RISE = 1.2  # seconds per edit must grow at least so many times to be called growing
FEWEST = 4  # batches below which no trend is read
MIB = 2**20
BYTES = 4  # of a parameter of a trained network


@dataclass(frozen=True)
class Cost:
    """One editor's costs, means over its order seeds.

    `fit`: seconds before the first edit, of the run that took longest. `per_edit`: seconds per edit
    over batches. `overhead`: how much longer a forward pass takes with the edits, as a share (NaN:
    not timed). `saved`: bytes of the saved edits after `edits` edits, `growth` bytes more per edit
    (an estimate from what the editor counts), `networks` the bytes of trained networks without
    which they are of no use. `start` and `slope`: seconds per edit = start + slope * edits made.
    """

    editor: str
    edits: int
    fit: float
    per_edit: Interval
    overhead: Interval
    peak: float
    saved: float
    growth: float
    networks: float
    start: float
    slope: float
    runs: int

    def seconds(self, edits: int) -> float:
        """Seconds for the first so many edits, the fit before them included."""
        return self.fit + self.start * edits + self.slope * edits**2 / 2

    def bytes_at(self, edits: int) -> float:
        """Bytes kept for so many edits, networks included; measured at `edits`, else from the
        growth."""
        return self.networks + max(0.0, self.saved + self.growth * (edits - self.edits))

    @property
    def pace(self) -> str:
        """How seconds per edit go on, in words."""
        return "seconds per edit grow" if self.slope else "constant seconds per edit"

    @property
    def growing(self) -> str:
        """How the saved edits grow, in words."""
        return f"{self.growth / 1024:,.2g} KiB more per edit" if self.growth else "constant"


def costs_of(study: Study, setting: str) -> dict[str, Cost]:
    """The costs of every editor that finished."""
    records, steps = study.records(setting), study.steps(setting)
    if steps.empty:
        return {}
    manifests, saved = study.manifests(setting), size_of(study, setting)
    timed = costs.inference(records, manifests)
    batches = per_batch(steps)
    found = {}
    for editor in editors_of(study, setting):
        mine = batches[batches["editor"] == editor]
        if mine.empty:
            continue
        told = [manifests[run] for run in mine["run"].unique() if run in manifests]
        start, slope = trend(mine)
        networks = 0.0
        if needs_networks(study, setting, editor):
            networks = float(mine["parameters"].iloc[-1]) * BYTES
            mine = mine.assign(numbers=mine["stored_floats"].astype(float))
        size = saved[saved["editor"] == editor]["bytes"].astype(float).mean()
        overhead = timed[timed["editor"] == editor]["overhead"].astype(float)
        found[editor] = Cost(
            editor=editor,
            edits=int(mine["n_edits"].max()),
            fit=_fit(study.observations(setting), editor, told),
            per_edit=mean_interval(mine["seconds_per_edit"]),
            overhead=mean_interval(overhead),
            peak=_mean(manifest["peak_memory_bytes"] / 2**30 for manifest in told),
            saved=size,
            growth=_growth(mine, size),
            networks=networks,
            start=start,
            slope=slope,
            runs=len(told),
        )
    return found


def per_batch(steps: pd.DataFrame) -> pd.DataFrame:
    """Steps with `seconds_per_edit` and `numbers` (all that the editor counts as added or kept)."""
    rows = steps.sort_values(["run", "n_edits"], kind="stable")
    made = rows.groupby("run", sort=False)["n_edits"].diff().fillna(rows["n_edits"])
    absent = {name: 0.0 for name in costs.SIZES if name not in rows}
    rows = rows.assign(**absent)
    numbers = rows[list(costs.SIZES)].astype(float).fillna(0.0).sum(axis=1)
    return rows.assign(seconds_per_edit=rows["seconds_edit"] / made, size=made, numbers=numbers)


def trend(batches: pd.DataFrame) -> tuple[float, float]:
    """Seconds per edit as (start, slope): the mean and 0, unless they grow with the edits made,
    significantly (5 %, least squares over batches) and by more than `RISE` over the run."""
    x = (batches["n_edits"] - batches["size"] / 2).to_numpy(float)
    y = batches["seconds_per_edit"].to_numpy(float)
    mean = float(batches["seconds_edit"].sum() / batches["size"].sum())
    if len(set(x)) < FEWEST or y.std() == 0:
        return mean, 0.0
    line = stats.linregress(x, y)
    begin, end = (line.intercept + line.slope * place for place in (x.min(), x.max()))
    grows = line.slope > 0 and line.pvalue < 0.05 and end > RISE * max(begin, 0)
    return (float(line.intercept), float(line.slope)) if grows else (mean, 0.0)


def _fit(seen: pd.DataFrame, editor: str, told: Iterable[Mapping[str, Any]]) -> float:
    """Seconds before the first edit. Networks and statistics that a run found in the cache cost it
    nothing: the longest run counts, or what a training says of itself where it was observed."""
    took = [float(manifest["seconds"]["fit"]) for manifest in told]
    if "kind" in seen and "seconds" in seen:
        mine = seen[(seen["kind"] == "training") & (seen["editor"] == editor)]
        took += mine["seconds"].astype(float).dropna().tolist()
    return max(took, default=math.nan)


def _growth(batches: pd.DataFrame, saved: float) -> float:
    """Bytes per edit: what the editor counts grows from its first batch to its last, in bytes of
    the saved edits per number counted."""
    per_run = list(_ends(batches))
    last = _mean(end["numbers"] for _, end in per_run)
    if not last or not saved:
        return 0.0
    rates = [
        (end["numbers"] - begin["numbers"]) / (end["n_edits"] - begin["n_edits"])
        for begin, end in per_run
        if end["n_edits"] > begin["n_edits"]
    ]
    return _mean(rates) * saved / last if rates else 0.0


def _ends(batches: pd.DataFrame) -> Iterator[tuple[pd.Series, pd.Series]]:
    for _, run in batches.groupby("run", sort=False):
        yield run.iloc[0], run.iloc[-1]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan
