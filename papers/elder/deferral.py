"""Does the deferral rule defer? What ELDER's runs observed, beside what could be expected.

A prompt is deferred to the unedited model if its code is at least epsilon digits from every
stored one. Every run gives both distances of every prompt: to the codes as they were stored, and
to those that the routers give the edits after the last one. So any epsilon can be read off.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lib.data.records import TITLES
from lib.metrics.estimates import estimate
from lib.metrics.intervals import Interval
from lib.report.figures.parts import counted
from lib.report.tables import regenerated
from lib.runs.study import Study
from papers.common import kept
from papers.elder.scores import OWN, REFRESHED, ours, scored
from papers.elder.simulation import Routers, random_deferred, random_nearest, simulate

PROMPTS = {name: TITLES[name].lower() for name in ("edits", "holdout", "near", "upstream")}
PROMPTS["general"] = "general tasks"
UNRELATED = ("upstream", "general")
COLUMNS = (
    "run", "editor", "sweep", "setting", "seed", "backbone", "dataset", "subset", "record",
    "edit_index", "stored", "refreshed", "own_stored", "own_refreshed", "own_allocation", "code",
    "deferred",
    "layers", "experts", "k", "epsilon", "refresh", "n_stored", "distinct", "distinct_refreshed",
)  # fmt: skip
ABOUT = ("layers", "experts", "k", "epsilon", "refresh", "distinct", "distinct_refreshed")


@dataclass(frozen=True)
class Rule:
    """A deferral rule: which codes are kept ("stored" as released, or "refreshed"), and epsilon."""

    codes: str
    epsilon: int

    def deferred(self, rows: pd.DataFrame) -> pd.Series:
        """Whether it defers each row: 0 or 1; a distance equal to epsilon is deferred."""
        return (rows[self.codes].astype(float) >= self.epsilon).astype(float)


def distances(study: Study, setting: str) -> pd.DataFrame:
    """One row per prompt and run of ELDER, with `COLUMNS`: all variants of the main table, and
    the sweep over N. A run of both is here once."""
    names = ["", *(["experts"] if "experts" in study.sweeps(setting) else [])]
    parts = [part for name in names if len(part := _observed(study, setting, name))]
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    rows = pd.concat(parts, ignore_index=True)
    return rows[~(rows["sweep"].ne("") & rows["run"].isin(parts[0]["run"]))]


def _observed(study: Study, setting: str, sweep: str) -> pd.DataFrame:
    seen = study.observations(setting, sweep)
    if "kind" not in seen:
        return seen.iloc[:0]
    about = seen[seen["kind"] == "codes"].set_index("run")
    rows = seen[seen["kind"] == "distance"].drop(columns=[*ABOUT], errors="ignore")
    rows = rows.join(about[[*ABOUT]], on="run").join(about["stored"].rename("n_stored"), on="run")
    return rows[[*COLUMNS]]


def about(rows: pd.DataFrame) -> str:
    """A caption's facts: runs, seeds and data of some of these rows."""
    if rows.empty:
        return "No run."
    runs, seeds = rows["run"].nunique(), rows["seed"].nunique()
    data = " + ".join(dict.fromkeys(rows["dataset"].astype(str)))
    return "; ".join([counted(runs, "run"), counted(seeds, "seed"), data]) + "."


def published(study: Study, setting: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of ELDER as published, and the distances of random codes to as many different
    random codes as its first run stored."""
    rows = distances(study, setting)
    rows = rows[(rows["editor"] == OWN) & (rows["sweep"] == "")]
    if rows.empty:
        return rows, random_nearest(1, 1, 1, 0)
    shape = (int(rows[name].iloc[0]) for name in ("layers", "experts", "k", "distinct"))
    return rows, random_nearest(*shape)


def by_experts(rows: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """The rows for each N, smallest first, with ELDER's epsilon. Memory never changes the routers,
    so an N that only "ELDER refreshed" has is taken from it."""
    own = rows[rows["editor"] == OWN]
    if own.empty:
        return {}
    more = rows[(rows["editor"] == REFRESHED) & ~rows["experts"].isin(own["experts"])]
    both = pd.concat([own, more.assign(epsilon=own["epsilon"].iloc[0])], ignore_index=True)
    return {int(n): part for n, part in both.groupby("experts", sort=True)}


def rate(rows: pd.DataFrame, rule: Rule) -> Interval:
    """The share that a rule defers; prompts about one fact are one unit."""
    return estimate(rows.assign(deferred=np.asarray(rule.deferred(rows), float)), "deferred")


@regenerated("deferral")
def rates_table(study: Study, setting: str) -> pd.DataFrame:
    """Deferred shares as measured and as expected: for each N the codes as stored with the run's
    epsilon, and refreshed codes with the epsilon that the settings name for that N."""
    layout, found = study.document["tables"]["deferral"], []
    for experts, rows in by_experts(distances(study, setting)).items():
        for rule in _rules(rows, layout):
            start = {"N": experts, "codes": rule.codes, "epsilon": rule.epsilon}
            shares = {
                name: _written(rate(part, rule)) if len(part) else "–"
                for subset, name in PROMPTS.items()
                for part in [rows[rows["subset"] == subset]]
            }
            found.append({**start, "shares of": "this run", **shares})
            empty = dict.fromkeys(PROMPTS.values(), "–")
            chance = {PROMPTS["upstream"]: f"{by_chance(rows, rule):.2f}"}
            found.append({**start, "shares of": "expected: random codes", **empty, **chance})
            for name, routers in simulations(study, setting, rows).items():
                alone = simulated_rates(routers, rule)
                told = {PROMPTS[subset]: f"{share:.2f}" for subset, share in alone.items()}
                found.append({**start, "shares of": f"expected: {name}", **empty, **told})
    return kept(study, f"elder-deferral-{setting}", pd.DataFrame(found))


def _rules(rows: pd.DataFrame, layout: Mapping[str, Any]) -> Iterator[Rule]:
    first = rows.iloc[0]
    yield Rule("stored", int(first["epsilon"]))
    if (chosen := layout["epsilon"].get(int(first["experts"]))) is not None:
        yield Rule("refreshed", chosen)


def by_chance(rows: pd.DataFrame, rule: Rule) -> float:
    """What the rule would defer of random codes, with as many different random codes stored as
    the runs have; the mean over runs."""
    distinct = "distinct" if rule.codes == "stored" else "distinct_refreshed"
    runs = rows.drop_duplicates("run")
    shares = [
        random_deferred(int(r.layers), int(r.experts), int(r.k), rule.epsilon, int(n))
        for r, n in zip(runs.itertuples(), runs[distinct], strict=True)
    ]
    return float(np.mean(shares))


def simulations(study: Study, setting: str, rows: pd.DataFrame) -> dict[str, Routers]:
    """Routers alone with the shape, batches, steps and learning rate of a run; queries that are
    independent, and queries that have a part in common."""
    layout, first = study.document["tables"]["deferral"], rows.iloc[0]
    config = study.document["settings"][setting]["editors"][OWN]["config"]
    edits = min(int(first["n_stored"]), layout["most_edits"])
    return {
        f"routers alone, cosine {alike:g}": Routers(
            int(first["layers"]), int(first["experts"]), int(first["k"]), edits,
            study.batch_size(setting), config["steps"], config["lr"], layout["width"], alike,
        )
        for alike in layout["alike"]
    }  # fmt: skip


def simulated_rates(routers: Routers, rule: Rule) -> dict[str, float]:
    """Shares that a rule defers of simulated edits, rephrases and unrelated queries."""
    rows = simulate(routers)
    return {subset: float(rule.deferred(part).mean()) for subset, part in rows.groupby("subset")}


def thresholds(rows: pd.DataFrame) -> pd.DataFrame:
    """Deferred shares for every epsilon: columns experts, codes, subset, epsilon, mean, low, high,
    n, and `rule`, the epsilon of the runs; the subset "random codes" is the expectation."""
    found = []
    for experts, part in by_experts(rows).items():
        most = int(2 * part["k"].iloc[0] * part["layers"].iloc[0])
        own = int(part["epsilon"].iloc[0])
        for codes in ("stored", "refreshed"):
            for epsilon in range(0, most + 3, 2):
                rule, key = Rule(codes, epsilon), (experts, codes)
                for subset, mine in part.groupby("subset", sort=False):
                    got = rate(mine, rule)
                    found.append((*key, subset, epsilon, got.mean, got.low, got.high, got.n, own))
                chance = by_chance(part, rule)
                found.append((*key, "random codes", epsilon, chance, np.nan, np.nan, 0, own))
    names = ["experts", "codes", "subset", "epsilon", "mean", "low", "high", "n", "rule"]
    return pd.DataFrame(found, columns=names)


@regenerated("kept-answers")
def kept_answers(study: Study, setting: str) -> pd.DataFrame:
    """Of the prompts that no edit is about: how many the rule deferred, and how often all first
    choices stayed the unedited model's, apart for those that it deferred and that it let pass."""
    records, found = scored(study, setting), []
    records = records[records["moment"] == "end"]
    for editor in ours(study, setting):
        for subset in ("near", *UNRELATED):
            rows = records[(records["editor"] == editor) & (records["subset"] == subset)]
            if rows.empty:
                continue
            deferred = rows["route"] == "base"
            same = {
                f"same answer, {name}": _written(estimate(part, "same_answers"))
                if len(part)
                else "none"
                for name, part in (("deferred", rows[deferred]), ("let pass", rows[~deferred]))
            }
            found.append(
                {"editor": editor, "prompts": PROMPTS[subset], "n": len(rows),
                 "deferred": f"{deferred.mean():.2f}", **same}
            )  # fmt: skip
    return kept(study, f"elder-kept-answers-{setting}", pd.DataFrame(found))


def _written(share: Interval) -> str:
    text = f"{share.mean:.2f}"
    ends = f" [{share.low:.2f}, {share.high:.2f}]" if share.known else ""
    return f"{text}{ends} (n={share.n})"
