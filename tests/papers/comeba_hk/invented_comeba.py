"""An invented study of COMEBA-HK: every frame its page reads, and nothing that ran."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from tests.papers import invented_study
from tests.papers.invented_study import about, facts

SKILL = {  # reliability, generality, locality after the edit; what is lost of each by the end
    "COMEBA-HK": (0.95, 0.7, 0.97, 0.02),
    "COMEBA-HK intended": (0.9, 0.6, 0.98, 0.02),
    "COMEBA-HK without hooks": (0.97, 0.8, 0.8, 0.3),
    "MEMIT": (0.7, 0.4, 0.85, 0.5),
    "ROME": (0.95, 0.8, 0.7, 0.9),
    "FT (EasyEdit)": (0.6, 0.2, 0.6, 0.6),
    "GRACE": (0.98, 0.05, 1.0, 0.0),
}
EDITORS = {name: {"config": {"alpha": 2.2}} for name in SKILL} | {"SERAC": None}
SETTINGS = ("cf-single", "cf-consecutive", "zsre-single", "zsre-consecutive")
SWEEPS = {"alpha": (0.5, 2.2), "batch": (4, 12), "lambda": (1500.0, 15000.0), "layers": (1, 3),
          "statistics": (1000, 30000)}  # fmt: skip
SUBSETS = {"edits": 1, "holdout": 2, "near": 2, "upstream": 1}
BATCH, EVERY = 4, 12


def _row(common: dict, subset: str, i: int, k: int, moment: str, n: int, skill: tuple, noise: Any):
    own = {"edits": skill[0], "holdout": skill[1], "near": skill[2], "upstream": skill[2]}[subset]
    right = float(noise.random() < (0.1 if moment == "before" else own))
    kept = 1.0 if moment == "before" else float(noise.random() < skill[2])
    competing = common["setting"].startswith("cf") and subset != "upstream"
    return common | {
        "moment": moment, "n_edits": n, "subset": subset, "batch": i // BATCH, "edit_index": i,
        "record": f"fact{i}#{k}" if subset in ("edits", "holdout") else f"{subset}{i}.{k}",
        "fact": f"fact{i}", "prompt": f"<b>{subset}</b> {i} {k} of Ash is", "target": "Oslo",
        "subject": "Ash", "other": "Rome" if competing else "", "prediction": "<i>Bern</i>",
        "exact_match": right, "agreement": kept, "answer_accuracy": right,
        "answer_agreement": kept, "answer_nll": 1.0 - right, "other_nll": 0.5,
        "prefers_target": right if competing else math.nan,
        "prompt_accuracy": right * float(noise.random() < 0.8),
    }  # fmt: skip


@functools.cache
def records(setting: str, sweep: str = "", n: int = 24) -> pd.DataFrame:
    """One row per scored prompt, in the columns of finished runs. Made once: do not write to it."""
    noise, rows = np.random.default_rng(len(setting) + len(sweep)), []
    editors = SKILL if not sweep else {"COMEBA-HK": SKILL["COMEBA-HK"]}
    for editor, (reliable, general, local, lost) in editors.items():
        for value in SWEEPS[sweep] if sweep else ("",):
            common = {
                "run": f"{editor}-{setting}-{sweep}-{value}", "setting": setting, "seed": 0,
                "backbone": "tiny-llama", "dataset": "invented", "editor": editor, "sweep": sweep,
                "value": str(value),
            }  # fmt: skip
            moments = [("before", 0, range(n)), ("own", BATCH, range(n))]
            if "consecutive" in setting:
                steps = [("checkpoint", EVERY, range(n)), ("end", n, range(n))]
                moments = [moments[0], ("own", n, range(n)), *steps]
            for moment, edits, indices in moments:
                for i in indices:
                    own_only = moment == "own" and "consecutive" in setting
                    after = moment in ("checkpoint", "end")
                    skill = (reliable - lost * after * 0.5, general - lost * after * 0.5, local)
                    for subset, count in SUBSETS.items():
                        for k in range(count if not own_only or subset == "edits" else 0):
                            done = BATCH * (i // BATCH + 1) if own_only else edits
                            rows.append(_row(common, subset, i, k, moment, done, skill, noise))
    return pd.DataFrame(rows)


def steps(setting: str, n: int = 24) -> pd.DataFrame:
    """One row per edited batch; only GRACE grows."""
    rows = []
    for editor in SKILL:
        for number in range(n // BATCH):
            done = BATCH if "single" in setting else BATCH * (number + 1)
            row = {
                "run": f"{editor}-{setting}--", "setting": setting, "editor": editor, "seed": 0,
                "sweep": "", "value": "", "batch": number, "n_edits": done,
                "seconds_edit": 2.0 + 0.1 * number,
                "loss_first": 3.0, "loss_last": 0.1, "parameters": 4000, "stored_floats": 9000,
            }  # fmt: skip
            if editor == "GRACE":
                row |= {"parameters": 64 * done, "stored_floats": 64 * done}
            if editor in ("COMEBA-HK", "COMEBA-HK intended"):
                row |= {"alpha_2": 2.2 - 0.02 * number, "alpha_3": 2.1 - 0.03 * number}
            rows.append(row)
    return pd.DataFrame(rows)


@functools.cache
def observations(setting: str, n: int = 24) -> pd.DataFrame:
    """One row per token; short prompts, a one-token prompt without a z score among them. Made
    once: do not write to it."""
    noise, rows = np.random.default_rng(5), []
    for editor in ("COMEBA-HK", "COMEBA-HK intended"):
        for subset, count in (("edits", 1), ("holdout", 2), ("near", 2)):
            for i in range(n):
                for k in range(count):
                    tokens = 1 if i == 0 and k == 1 else int(noise.integers(4, 12))
                    z = noise.normal(size=tokens) * 0.4
                    if subset != "near":
                        z[tokens // 2] = (tokens - 1) / math.sqrt(tokens) - 0.05
                    for position in range(tokens):
                        known = tokens > 1
                        rows.append(
                            {
                                "run": f"{editor}-{setting}--", "setting": setting, "seed": 0,
                                "backbone": "tiny-llama", "dataset": "invented", "sweep": "",
                                "editor": editor, "value": "", "subset": subset,
                                "record": f"{subset}{i}.{k}", "edit_index": i, "layer": 3,
                                "position": position, "tokens": tokens, "token": "x",
                                "is_subject": subset != "near" and position == tokens // 2,
                                "z": float(z[position]) if known else None, "alpha": 2.1,
                                "swapped": bool(known and z[position] >= 2.1),
                            }
                        )  # fmt: skip
    return pd.DataFrame(rows)


def manifest(editor: str, setting: str) -> dict[str, Any]:
    """What a finished run says about itself."""
    return about(
        f"{editor} on {setting}, seed 0", 24, BATCH,
        seconds={"fit": 12.0, "edit": 3.0, "evaluate": 4.0},
        inference={"base_seconds": 0.1, "edited_seconds": 0.108, "repeats": 5},
        backbone={"name": "tiny-llama", "content": "c" * 64, "provenance": "random",
                  "substitution": "A tiny model.", "dtype": "float32"},
        dataset=facts(24, holdout=48),
    )  # fmt: skip


@dataclass
class InventedStudy(invented_study.InventedStudy):
    """The study of COMEBA-HK. `varied`: whether any value is varied."""

    varied: bool = True
    paper = "comeba_hk"

    @functools.cached_property
    def document(self) -> dict[str, Any]:
        axes = SWEEPS if self.varied else ()
        swept = {name: {"editors": ["COMEBA-HK"], "title": f"the {name}"} for name in axes}
        settings = {
            name: {
                "title": f"{name}, a tiny model", "editors": EDITORS,
                "sweeps": swept if name == "cf-single" else {},
                "stream": {"n_edits": 24, "batch_size": BATCH},
            }
            for name in SETTINGS
        }  # fmt: skip
        return self.said() | {"title": "COMEBA-HK (CoachHooK)", "settings": settings}

    @property
    def original(self) -> dict[str, Any]:
        paper = {"stream": {"n_edits": 10000, "batch_size": 30}, "editors": EDITORS}
        return {"settings": dict.fromkeys(SETTINGS, paper)}

    def frame(self, which: str, setting: str, sweep: str) -> pd.DataFrame:
        if which == "records":
            absent = sweep and (setting != "cf-single" or not self.varied)
            rows = records(setting, sweep if not absent else "")
            return rows.iloc[:0] if absent else rows
        rows = {"steps": steps, "observations": observations}[which](setting)
        return rows.iloc[:0] if sweep else rows

    def finished(self, setting: str, sweep: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for editor in SKILL:
            yield f"{editor}-{setting}--", editor, manifest(editor, setting)

    def departures(self, setting: str) -> list[tuple[str, Any, Any]]:
        return [("stream.n_edits", 10000, 24)]

    def plan(self) -> pd.DataFrame:
        return pd.DataFrame([{"setting": "cf-single", "run": "x", "state": "done"}])

    def run_missing(self, **_: object) -> bool:
        return True

    def unique_runs(self) -> list[SimpleNamespace]:
        return []
