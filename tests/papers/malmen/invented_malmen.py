"""An invented study of MALMEN: every frame its page reads, and nothing that ran."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tests.papers import invented_study
from tests.papers.invented_study import about, facts

OWN, SUM, FIRST = "MALMEN", "MALMEN with a plain sum", "MALMEN on the first matrix"
SKILL = {  # ES, GS, LS at the smallest m, and what GS and ES lose for every doubling of m
    OWN: (0.97, 0.9, 0.3, 0.0), "MEND": (0.95, 0.85, 0.25, 0.3), "MEMIT": (0.9, 0.5, 0.33, 0.0),
    "FT": (0.9, 0.4, 0.1, 0.1), SUM: (0.9, 0.7, 0.2, 0.3), FIRST: (0.9, 0.8, 0.25, 0.0),
}  # fmt: skip
SIZES, USUAL, N = (4, 8, 16), 8, 32
EDITORS = {
    "zsre": (OWN, "MEND", "MEMIT", "FT", SUM), "fever": (OWN, "MEND", "FT", SUM, FIRST),
}  # fmt: skip
SWEPT = {
    "m": {"zsre": (OWN, "MEND", "MEMIT", "FT"), "fever": (OWN, "MEND", "FT")},
    "ridge": {"zsre": (), "fever": (OWN,)}, "init": {"zsre": (), "fever": (OWN,)},
}  # fmt: skip
VALUES = {"m": SIZES, "ridge": ("learned", "fixed", "none"), "init": (True, False)}
SUBSETS = ("edits", "holdout", "upstream")


def runs(setting: str, sweep: str = "") -> list[dict[str, Any]]:
    """The runs of the main table or of one sweep; equal ones have one name."""
    editors = SWEPT.get(sweep, {}).get(setting, ()) if sweep else EDITORS[setting]
    found = []
    for editor in editors:
        for value in VALUES[sweep] if sweep else ("",):
            m = value if sweep == "m" else USUAL
            same = not sweep or value in (USUAL, "learned", True)
            changed = "" if same else f"-{sweep}-{value}"
            found.append(
                {
                    "run": f"{setting}-{editor}{changed}", "setting": setting, "editor": editor,
                    "sweep": sweep, "value": str(value), "seed": 0, "backbone": "tiny",
                    "dataset": "invented", "_m": m,
                }
            )  # fmt: skip
    return found


def _common(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "_m"}


@functools.cache
def records(setting: str, sweep: str = "", n: int = N) -> pd.DataFrame:
    """One row per scored prompt, in the columns of finished runs."""
    rows = []
    for run in runs(setting, sweep):
        noise = np.random.default_rng(len(run["run"]))
        es, gs, ls, lost = SKILL[run["editor"]]
        fall = lost * np.log2(run["_m"] / SIZES[0]) / 2
        fall += 0.4 * (run["value"] == "none")  # an ablation that hurts
        right = {"edits": es - fall, "holdout": gs - fall, "upstream": ls}
        for moment in ("before", "own"):
            for subset in SUBSETS:
                before = 0.35 if subset == "upstream" else 0.0
                share = right[subset] if moment == "own" else before
                # The same facts for every run: what is easy for one is easy for all.
                hits = (np.arange(n) * 7 % n < share * n).astype(float)
                kept = (noise.random(n) < 0.7) if moment == "own" else np.ones(n)
                for i in range(n):
                    rows.append(
                        _common(run)
                        | {
                            "moment": moment, "subset": subset, "edit_index": i,
                            "n_edits": run["_m"] if moment == "own" else 0,
                            "record": f"{subset}:fact{i}#0", "prompt": f"<b>{subset}</b> {i}?",
                            "target": "Oslo", "prediction": "<i>Bern</i>",
                            "answer_accuracy": hits[i], "answer_agreement": float(kept[i]),
                            "agreement": float(kept[i]),
                            "begins_with": hits[i] * float(kept[i]),
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


@functools.cache
def steps(setting: str, sweep: str = "", n: int = N) -> pd.DataFrame:
    """One row per edited batch; MEMIT pays for every fact."""
    return pd.DataFrame(
        [
            _common(run)
            | {
                "batch": batch, "n_edits": run["_m"], "loss_first": 3.0, "loss_last": 0.2,
                "seconds_edit": (0.5 if run["editor"] == "MEMIT" else 0.01) * run["_m"],
                "parameters": 100, "stored_floats": 200,
            }
            for run in runs(setting, sweep)
            for batch in range(n // run["_m"])
        ]
    )  # fmt: skip


@functools.cache
def observations(setting: str, sweep: str = "") -> pd.DataFrame:
    """Curves, trainings, layers and memory of the editors with a network."""
    rows = []
    for run in runs(setting, sweep):
        if run["editor"] in ("MEMIT", "FT") or sweep not in ("", "m"):
            continue
        m, summing = run["_m"], run["editor"] != OWN
        common = _common(run) | {"m": m}
        rows.append(
            common
            | {"kind": "training", "seconds": 20.0, "steps": 4, "facts": 4 * m,
               "cached": m != USUAL, "parameters": 900}
        )  # fmt: skip
        rows.append(
            common
            | {"kind": "memory", "joint_bytes": 3e6 * m, "decoupled_bytes": 5e6,
               "row_store_bytes": 1e4 * m}
        )  # fmt: skip
        for step in range(5):
            rows.append(common | {"kind": "curve", "step": step, "facts": step * m} | _curve(step))
        for layer in (3, 4):
            summed = 0.2 * m + 0.1 * layer
            rows.append(
                common
                | {
                    "kind": "module", "path": f"model.layers.{layer}.mlp.down_proj", "rows": 2 * m,
                    "eta": 0.01, "ridge": 1.0, "residual": summed if summing else 0.02 * layer,
                    "summed_residual": summed, "shift_norm": 1.0, "summed_norm": 0.3 * m,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _curve(step: int) -> dict[str, float]:
    losses = {"generality": 3.0 - 0.5 * step, "locality": 0.1 * step} if step else {}
    if step % 2:
        return losses
    return losses | {"valid_ES": 0.2 * step, "valid_GS": 0.15 * step, "valid_LS": 0.35}


def manifest(run: dict[str, Any]) -> dict[str, Any]:
    """What a finished run says about itself."""
    trained = {"name": "invented", "content": "t" * 64, "sources": ["none"], "substitution": "",
               "train": 64, "valid": 16,
               "examples": [{"prompt": "Where is Ash?", "target": "Oslo", "rephrase": "Ash is in?",
                             "unrelated": "<i>who</i>", "unrelated_target": "Bern"}]}  # fmt: skip
    return about(
        f"{run['editor']} on {run['setting']}, seed 0", N, USUAL,
        training=trained if run["editor"] not in ("MEMIT", "FT") else None,
        backbone={"name": "tiny", "content": "c" * 64, "dtype": "float32",
                  "provenance": "fine-tuned here, accuracy 0.800 of 50 held-out claims "
                                "(commonest class 0.520)", "substitution": "A tiny model."},
        dataset=facts(N, holdout=N),
    )  # fmt: skip


@dataclass
class InventedStudy(invented_study.InventedStudy):
    """The study of MALMEN."""

    paper = "malmen"

    @property
    def document(self) -> dict[str, Any]:
        settings = {}
        for name, editors in EDITORS.items():
            swept = {
                sweep: {"editors": list(by[name]), "values": list(VALUES[sweep]), "title": sweep}
                for sweep, by in SWEPT.items()
                if by[name]
            }
            settings[name] = {
                "title": f"{name}, a tiny model", "stream": {"n_edits": N, "batch_size": USUAL},
                "editors": {editor: {"config": {"batch_rows": 4}} for editor in editors},
                "sweeps": swept,
                "reported": {"zsre": {"dataset": "zsRE"}, "fever": {"dataset": "FEVER"}}[name],
            }  # fmt: skip
        return self.said() | {"settings": settings}

    @property
    def original(self) -> dict[str, Any]:
        cost = {"seconds": 3600, "seconds_per_edit": 3.6, "gigabytes": 1.0}
        editors = {OWN: {}, "MEMIT": {"cost": {"seconds_per_edit": 7.2}}}
        paper = {"stream": {"n_edits": 1000, "batch_size": 30}, "editors": editors, "cost": cost}
        return {"settings": dict.fromkeys(("zsre", "fever", "zsre-gptj"), paper)}

    def frame(self, which: str, setting: str, sweep: str) -> pd.DataFrame:
        frame = {"records": records, "steps": steps, "observations": observations}[which]
        return frame(setting, sweep)

    def finished(self, setting: str, sweep: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for run in runs(setting, sweep):
            yield run["run"], run["editor"], manifest(run)

    def titles(self) -> list[str]:
        return [f"{e}{m} on {s}, seed 0" for e in self.lost for s in EDITORS for m in ("", ", m 4")]
