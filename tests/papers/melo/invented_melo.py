"""An invented study of MELO: every frame its page reads, and nothing that ran."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tests.papers import invented_study
from tests.papers.invented_study import about, facts

N, BATCH, EVERY = 24, 4, 12
GROUPS = {"zsre-t5": "zsre", "hallucination": "hallucination", "scotus": "scotus"}
PLACES = {
    "zsre-t5": {"model": "T5-Small", "dataset": "zsRE"},
    "hallucination": {"model": "GPT2-XL", "dataset": "Hallucination"},
    "scotus": {"model": "BERT", "dataset": "SCOTUS"},
}  # fmt: skip
SKILL = {  # share of edits, of rephrases and of other rows that are right at the end
    "MELO": (0.5, 0.0, 1.0), "MELO intended": (0.9, 0.8, 1.0), "GRACE": (1.0, 0.4, 1.0),
    "LoRA": (0.5, 0.5, 0.3), "FT": (0.6, 0.5, 0.5), "Defer": (1.0, 0.9, 0.1),
}  # fmt: skip
RADII = ("50.0", "75.0")


def editors_of(setting: str) -> list[str]:
    """ROME edits texts alone."""
    return [*SKILL, *(["ROME"] if setting == "hallucination" else [])]


def runs(setting: str, sweep: str = "") -> list[dict[str, Any]]:
    """The runs of the main table or of the radius sweep, whose second value is the main run."""
    if sweep and (sweep != "radius" or setting != "zsre-t5"):
        return []
    named = (
        [("MELO", radius) for radius in RADII] if sweep else [(e, "") for e in editors_of(setting)]
    )
    return [
        {
            "run": f"{setting}-{editor}{'-50' if value == RADII[0] else ''}", "setting": setting,
            "editor": editor, "sweep": sweep, "value": value, "seed": 0, "backbone": "tiny",
            "dataset": "invented",
        }
        for editor, value in named
    ]  # fmt: skip


@functools.cache
def records(setting: str, sweep: str = "") -> pd.DataFrame:
    """One row per scored prompt, in the columns of finished runs."""
    rows = []
    for run in runs(setting, sweep):
        edit, rephrase, kept = SKILL.get(run["editor"], (0.2, 0.2, 0.9))
        share = {"edits": edit, "holdout": rephrase, "upstream": kept, "near": kept}
        if GROUPS[setting] != "zsre":
            share.pop("holdout")
        for moment, made in (("before", 0), ("own", N), ("checkpoint", EVERY), ("end", N)):
            for subset in share if moment != "own" else ("edits",):
                for i in range(N):
                    due = subset not in ("edits", "holdout") or (made and i < made)
                    hit = float(due and i * 7 % N < (share[subset] if made else 1) * N)
                    rows.append(run | _row(setting, run["editor"], moment, subset, i, made, hit))
    return pd.DataFrame(rows)


def _row(
    setting: str, editor: str, moment: str, subset: str, i: int, made: int, hit: float
) -> dict[str, Any]:
    """The released key sees the target: on texts MELO serves no prompt that stands alone."""
    blind = editor == "MELO" and setting == "hallucination"
    text = GROUPS[setting] != "scotus"
    own = subset in ("edits", "holdout")
    loss = 0.1 if hit else 4.0
    return {
        "moment": moment, "subset": subset, "edit_index": i if own else -1, "n_edits": made,
        "batch": i // BATCH, "record": f"fact{i // 2}#{i + N * (subset == 'holdout')}",
        "fact": f"fact{i // 2}",
        "prompt": f"<b>{subset}</b> {i}?", "target": "Oslo", "subject": "", "other": "",
        "prediction": "<i>Bern</i>", "exact_match": hit, "begins_with": 0.0 if blind else hit,
        "f1_ids": hit if text else math.nan, "token_accuracy": hit,
        "f1_ids_released": (hit or math.nan) if text else math.nan,
        "agreement": 0.0 if own else hit, "answer_nll_released": loss,
        "answer_nll": 4.0 if blind and own else loss, "tokens": 5,
        "route": "base" if blind or not made else "block 0",
    }  # fmt: skip


@functools.cache
def steps(setting: str, sweep: str = "") -> pd.DataFrame:
    """One row per edited batch; the index grows, LoRA has the most parameters."""
    return pd.DataFrame(
        [
            run
            | {"batch": batch, "n_edits": BATCH * (batch + 1), "seconds_edit": 1.0 + 0.1 * batch,
               "parameters": 9000 if run["editor"] == "LoRA" else 100 * (batch + 1),
               "stored_floats": 64 * (batch + 1), "clusters": 3 * (batch + 1),
               "conflicts": batch, "forgotten": 0}
            for run in runs(setting, sweep)
            for batch in range(N // BATCH)
        ]
    )  # fmt: skip


def manifest(run: dict[str, Any]) -> dict[str, Any]:
    """What a finished run says about itself."""
    return about(
        f"{run['editor']} on {run['setting']}, seed 0", N, BATCH,
        backbone={"name": "tiny", "dtype": "float32", "substitution": "A tiny model."},
        dataset=facts(N // 2, answers=7),
    )  # fmt: skip


@dataclass
class InventedStudy(invented_study.InventedStudy):
    """The study of MELO with one setting per column group of Table 2."""

    paper = "melo"

    @property
    def document(self) -> dict[str, Any]:
        settings = {}
        for name in GROUPS:
            editors = {e: {"kind": "x", "config": {"steps": 3}} for e in editors_of(name)}
            if name == "hallucination":
                editors["MELO intended"]["config"] = {"key_position": "last_prompt_token"}
            swept = {"radius": {"editors": ["MELO"], "values": [50.0, 75.0], "title": "radius",
                                "parameter": "radius"}}  # fmt: skip
            settings[name] = {
                "title": f"{name}, a tiny model", "editors": editors, "reported": PLACES[name],
                "stream": {"n_edits": N, "batch_size": BATCH}, "backbone": "tiny",
                "sweeps": swept if name == "zsre-t5" else {},
            }  # fmt: skip
        return self.said() | {"settings": settings}

    @property
    def original(self) -> dict[str, Any]:
        stream = {"n_edits": 1000, "batch_size": 100}
        return {
            "settings": {
                name: {
                    "stream": stream,
                    "dataset": group,
                    "reported": PLACES[name],
                    "cost": {"gigabytes": 16.0},
                }
                for name, group in GROUPS.items()
            }
        }

    def frame(self, which: str, setting: str, sweep: str) -> pd.DataFrame:
        made = {"records": records, "steps": steps}.get(which)
        return made(setting, sweep) if made else pd.DataFrame()

    def finished(self, setting: str, sweep: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for run in runs(setting, sweep):
            yield run["run"], run["editor"], manifest(run)


def index() -> tuple[np.ndarray, np.ndarray]:
    """Keys [20, 8] of two clusters that lie apart, and the cluster of each."""
    owners = np.repeat([0, 1], 10)
    return np.random.default_rng(0).normal(size=(20, 8)) + 9.0 * owners[:, None], owners
