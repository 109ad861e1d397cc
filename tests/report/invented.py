"""Invented result frames in the shape that finished runs have."""

import math

import numpy as np
import pandas as pd

NASTY = 'Is <b>Ash</b> & "Marl" <script>alert(1)</script> a harbour?'
SKILL = {  # right after its edit, end of stream, held out, upstream at the end
    "MELO": (0.98, 0.97, 0.6, 0.80),
    "GRACE": (0.97, 0.96, 0.3, 0.80),
    "LoRA": (0.95, 0.45, 0.5, 0.35),
}
PARAMETERS = {"MELO": 300, "GRACE": 90, "LoRA": 4000}


def records(editors: tuple[str, ...] = tuple(SKILL), n: int = 48, seeds: int = 1) -> pd.DataFrame:
    """One row per scored prompt; two phrasings per held-out fact."""
    noise, rows = np.random.default_rng(3), []

    def add(common: dict, moment: str, n_edits: int, subset: str, i: int, skill: float) -> None:
        right = noise.random() < skill
        score = 1.0 if right else float(noise.choice([0.0, 0.25, 0.5]))
        name = f"{subset}:{i // 2}#{i % 2}" if subset == "holdout" else f"{subset}:{i}"
        rows.append(
            common
            | {
                "moment": moment, "n_edits": n_edits, "subset": subset, "record": name,
                "edit_index": i if subset == "edits" else -1, "prompt": f"{NASTY} {i}",
                "target": "yes", "prediction": "yes" if right else "<i>no</i>", "route": "base",
                "f1_ids": score, "exact_match": float(right), "nll": 0.1 + (1 - score),
            }
        )  # fmt: skip

    for editor in editors:
        own, end, general, local = SKILL[editor]
        for seed in range(seeds):
            common = {
                "run": f"{editor}-{seed}", "setting": "tiny", "backbone": "tiny-t5",
                "dataset": "invented", "editor": editor, "seed": seed,
            }  # fmt: skip
            for i in range(n):
                add(common, "before", 0, "edits", i, 0.1)
                add(common, "before", 0, "upstream", i, 0.8)
                add(common, "own", 8 * (i // 8 + 1), "edits", i, own)
            for k, moment in ((n // 2, "checkpoint"), (n, "checkpoint"), (n, "end")):
                for i in range(n):
                    if i < k:
                        add(common, moment, k, "edits", i, end)
                    add(common, moment, k, "holdout", i, general)
                    add(common, moment, k, "upstream", i, local)
    return pd.DataFrame(rows)


def steps(editors: tuple[str, ...] = tuple(SKILL), n: int = 48, seeds: int = 1) -> pd.DataFrame:
    """One row per edited batch of eight; only MELO keeps an index."""
    noise, rows = np.random.default_rng(4), []
    for editor in editors:
        for seed in range(seeds):
            for k in range(8, n + 1, 8):
                index = editor == "MELO"
                rows.append(
                    {
                        "run": f"{editor}-{seed}", "n_edits": k, "loss_first": 3.0,
                        "seconds_edit": float(noise.uniform(0.9, 1.1)), "loss_last": 0.1,
                        "clusters": 0.8 * k if index else math.nan,
                        "conflicts": 0.1 * k if index else math.nan, "forgotten": math.nan,
                        "parameters": PARAMETERS[editor], "stored_floats": 16 * k * index,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)
