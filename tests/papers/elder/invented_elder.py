"""An invented study of ELDER: every frame its page reads, and nothing that ran."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tests.papers import invented_study
from tests.papers.invented_study import about, facts

N, BATCH, FEWER, EVERY = 24, 4, 8, 8
SKILL = {  # share of edits and of rephrases that are right at the end
    "ELDER": (0.95, 0.9), "ELDER refreshed": (0.95, 0.85), "FT-L": (0.2, 0.2), "LoRA": (0.3, 0.2),
    "ROME": (0.5, 0.4), "WilKE": (0.6, 0.4), "SERAC": (1.0, 0.6), "T-Patcher": (0.7, 0.5),
    "MELO intended": (0.5, 0.2), "GRACE": (0.9, 0.0), "ELDER replayed": (1.0, 0.9),
}  # fmt: skip
PLACES = {"counterfact": "CounterFact", "zsre": "ZsRE"}
SWEPT = {
    "counterfact": {
        "auxiliary": ("guided", "none", "balancing"), "experts": (4, 16),
        "routers": ("first", "with_experts"),
    },
    "zsre": {"auxiliary": ("guided", "none"), "layers": (2, 6)},
}  # fmt: skip
PARAMETERS = {
    "auxiliary": "auxiliary", "experts": "n_experts", "layers": "n_layers", "routers": "routers",
}  # fmt: skip
USUAL = ("guided", 4, 6, "first")
LAYERS, K, EPSILON = 6, 2, 12
TASKS = ("sentiment", "sentiment", "recall")


def runs(setting: str, sweep: str = "") -> list[dict[str, Any]]:
    """The runs of the main table or of one sweep; equal ones have one name."""
    found = []
    for editor in swept(sweep) if sweep else SKILL:
        for value in SWEPT[setting].get(sweep, ()) if sweep else ("",):
            changed = "" if not sweep or value in USUAL else f"-{sweep}-{value}"
            found.append(
                {
                    "run": f"{setting}-{editor}{changed}", "setting": setting, "editor": editor,
                    "sweep": sweep, "value": str(value), "seed": 0, "backbone": "tiny",
                    "dataset": "invented",
                }
            )  # fmt: skip
    return found


def swept(sweep: str) -> tuple[str, ...]:
    """The editors of a sweep."""
    return ("ELDER replayed",) if sweep == "routers" else ("ELDER",)


def edits_of(editor: str) -> int:
    """ROME and WilKE edit the beginning of the stream alone."""
    return FEWER if editor in ("ROME", "WilKE") else N


@functools.cache
def records(setting: str, sweep: str = "") -> pd.DataFrame:
    """One row per scored prompt, in the columns of finished runs."""
    rows = []
    for run in runs(setting, sweep):
        edits, (reliable, general) = edits_of(run["editor"]), SKILL[run["editor"]]
        weaker = 0.4 * (run["value"] in ("none", "balancing", "2", "with_experts"))
        right = {"edits": reliable - weaker, "holdout": general - weaker}
        moments = {"before": 0, "end": edits}
        moments |= {f"checkpoint {n}": n for n in range(EVERY, edits, EVERY)}
        for moment, made in moments.items():
            for subset in ("edits", "holdout", "near", "upstream"):
                for i in range(edits if moment in ("before", "end") else made):
                    hit = float(i * 7 % N < right.get(subset, 0.5) * N) if made else 0.0
                    rows.append(run | _row(moment, subset, i, made, hit, run["editor"]))
            if moment == "end":
                rows += [run | _row("own", "edits", i, i + 1, 1.0, "") for i in range(edits)]
            for i, task in enumerate(TASKS * 4 if moment in ("before", "end") else ()):
                row = _row(moment, "general", i, made, float(i % 3 > 0), run["editor"])
                rows.append(run | row | {"record": f"general/{task}/{i}", "edit_index": -1})
    return pd.DataFrame(rows)


def _row(moment: str, subset: str, i: int, made: int, hit: float, editor: str) -> dict[str, Any]:
    """Of ELDER's unrelated rows every fourth is deferred; what passes keeps half its answers."""
    deferred = editor.startswith("ELDER") and made and i % 4 == 0 and subset == "upstream"
    kept = 1.0 if not made or deferred or i % 2 else 0.5
    return {
        "moment": moment.split()[0], "subset": subset, "edit_index": i, "n_edits": made,
        "record": f"fact{i}#{subset}", "prompt": f"<b>{subset}</b> {i}?", "target": f"Oslo {i}",
        "subject": "", "other": "", "answer_accuracy": hit,
        "prediction": f"Oslo {i + 1}" if made and not hit else "<i>Bern</i>",
        "answer_agreement": kept, "begins_with": hit,
        "route": "mixture" if made and not deferred else "base",
    }  # fmt: skip


@functools.cache
def steps(setting: str, sweep: str = "") -> pd.DataFrame:
    """One row per edited batch; GRACE is slow and grows."""
    rows = []
    for run in runs(setting, sweep):
        grace = run["editor"] == "GRACE"
        for batch in range(edits_of(run["editor"]) // BATCH):
            made = BATCH * (batch + 1)
            seconds = (4.0 if grace else 1.0) * (1 + 0.01 * batch)
            rows.append(
                run
                | {"batch": batch, "n_edits": made, "seconds_edit": seconds,
                   "parameters": 100 * made if grace else 5000, "stored_floats": made}
                | ({"digits_from_allocation": 8.0} if run["editor"] == "ELDER" else {})
            )  # fmt: skip
    return pd.DataFrame(rows)


@functools.cache
def observations(setting: str, sweep: str = "") -> pd.DataFrame:
    """Distances and codes of both variants: with few experts nothing is far, with many all is."""
    rows = []
    for run in runs(setting, sweep):
        if not run["editor"].startswith("ELDER") or sweep not in ("", "experts"):
            continue
        refresh = run["editor"] == "ELDER refreshed"
        experts = 8 if refresh else int(run["value"] or 4)
        epsilon = 8 if refresh else EPSILON
        draw = np.random.default_rng(experts)
        for subset in ("edits", "holdout", "near", "upstream"):
            for i in range(N):
                own = subset in ("edits", "holdout")
                near = 4 if subset == "edits" else 6 if own else 2 * experts
                code = "".join(
                    "".join("1" if e in draw.permutation(experts)[:K] else "0"
                            for e in range(experts)) for _ in range(LAYERS)
                )  # fmt: skip
                rows.append(
                    run
                    | {
                        "kind": "distance", "subset": subset, "record": f"fact{i}#{subset}",
                        "edit_index": i, "stored": near, "refreshed": 0 if own else near,
                        "own_stored": near if own else None, "own_refreshed": 0 if own else None,
                        "own_allocation": 9 if own else None,
                        "neighbours": f"{i + 1} {i - 1}" if subset == "edits" else None,
                        "code": code, "deferred": (0 if own and refresh else near) >= epsilon,
                    }
                )  # fmt: skip
        rows.append(
            run
            | {"kind": "codes", "layers": LAYERS, "experts": experts, "k": K, "epsilon": epsilon,
               "stored": N, "distinct": N - 1, "distinct_refreshed": N - 2, "refresh": refresh}
        )  # fmt: skip
    return pd.DataFrame(rows)


def manifest(run: dict[str, Any]) -> dict[str, Any]:
    """What a finished run says about itself."""
    slower = {"ELDER": 0.082, "ELDER refreshed": 0.082, "SERAC": 0.4}.get(run["editor"], 0.08)
    return about(
        f"{run['editor']} on {run['setting']}, seed 0", edits_of(run["editor"]), BATCH,
        peak_memory_bytes=2**30,
        inference={"base_seconds": 0.08, "edited_seconds": slower, "repeats": 3},
        backbone={"name": "tiny", "dtype": "float32", "substitution": "A tiny model."},
        dataset=facts(N),
    )  # fmt: skip


def harness_rows(setting: str) -> pd.DataFrame:
    """Results of the benchmark's own tasks, before and after the edits."""
    return pd.DataFrame(
        [
            run
            | {"kind": "lm_eval", "task": task, "moment": moment, "n": 100,
               "value": 0.5 if moment == "before" else 0.4, "stderr": None if late else 0.05,
               "metric": "entity_recall" if late else "acc", "shots": 0, "task_version": "1.0",
               "harness": "0.4.13"}
            for run in runs(setting)
            for task, late in (("rte", False), ("conll03", True))
            for moment in ("before", "end")
        ]
    )  # fmt: skip


@dataclass
class InventedStudy(invented_study.InventedStudy):
    """The study of ELDER. `harness`: rows of the benchmark's own tasks stand in the stand-ins'
    place."""

    harness: bool = False
    paper = "elder"

    @property
    def document(self) -> dict[str, Any]:
        said, settings = self.said(), {}
        for name, dataset in PLACES.items():
            config = {"steps": 3, "lr": 0.01}
            editors = {editor: {"kind": "x", "config": config} for editor in SKILL}
            for editor in ("ROME", "WilKE"):
                editors[editor] = {"kind": "x", "config": {}, "stream": {"first": FEWER}}
            settings[name] = {
                "title": f"{name}, a tiny model", "editors": editors,
                "reported": {"model": "GPT2-XL", "dataset": dataset},
                "stream": {"n_edits": N, "batch_size": BATCH},
                "sweeps": {
                    sweep: {"editors": [*swept(sweep)], "values": list(values), "title": sweep,
                            "parameter": PARAMETERS[sweep]}
                    for sweep, values in SWEPT[name].items()
                },
            }  # fmt: skip
        tables = {**said["tables"]}
        tables["deferral"] = {**tables["deferral"], "width": 32}
        return said | {"settings": settings, "tables": tables}

    @property
    def original(self) -> dict[str, Any]:
        editors = {name: {"config": {"steps": 50}} for name in ("ELDER", "GRACE")}
        paper = {"stream": {"n_edits": 1000, "batch_size": 4}, "editors": editors}
        return {"settings": dict.fromkeys(PLACES, paper)}

    def frame(self, which: str, setting: str, sweep: str) -> pd.DataFrame:
        frame = {"records": records, "steps": steps, "observations": observations}[which]
        rows = frame(setting, sweep)
        if which == "observations" and self.harness and not sweep:
            rows = pd.concat([rows, harness_rows(setting)], ignore_index=True)
        return rows

    def finished(self, setting: str, sweep: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for run in runs(setting, sweep):
            yield run["run"], run["editor"], manifest(run)
