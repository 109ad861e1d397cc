"""An invented study of the side-by-side page: every frame its page reads, and nothing that ran."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import yaml

from lib.runs.study import Outline

PAPER = Path(__file__).parents[3] / "papers" / "side_by_side"
NAMES = ("settings.yaml", "page.yaml")
N, BATCH, FIRST, FEWER, FACTS = 30, 5, 10, 20, "facts"
# kind; reliability, generality, near, unrelated at the end; reliability right after the own batch
EDITORS: dict[str, tuple[str, tuple[float, ...]]] = {
    "FT": ("ft", (0.3, 0.3, 0.2, 0.4, 1.0)),
    "ROME": ("rome", (0.8, 0.6, 0.6, 0.8, 0.9)),
    "GRACE": ("grace", (1.0, 0.2, 1.0, 1.0, 1.0)),
    "SERAC": ("serac", (0.9, 0.8, 0.9, 0.9, 0.9)),
    "MEND": ("mend", (0.7, 0.8, 0.9, 0.9, 0.9)),
}
NASTY = 'Is <b>Ash</b> & "Marl" <script>alert(1)</script> a harbour?'
COLUMNS = ["run", "setting", "backbone", "dataset", "editor", "sweep", "value", "seed"]
SUBSETS = ("edits", "holdout", "near", "upstream", "portability")


def edits_of(editor: str) -> int:
    """ROME edits the beginning of the stream alone."""
    return FEWER if editor == "ROME" else N


@functools.cache
def records(seeds: int = 1) -> pd.DataFrame:
    """One row per scored prompt, in the columns of finished runs; FT fades, the others do not."""
    rows: list[dict[str, Any]] = []
    for editor in EDITORS:
        for seed in range(seeds):
            made = edits_of(editor)
            moments = [("before", 0, N), ("own", 0, made), ("checkpoint", FIRST, FIRST)]
            moments += [("checkpoint", FEWER, FEWER)] if made > FEWER else []
            moments += [("end", made, made)]
            for moment, edits, count in moments:
                for i in range(min(count, made)):
                    rows += _rows(editor, seed, moment, edits, i)
    return pd.DataFrame(rows)


def _rows(editor: str, seed: int, moment: str, edits: int, i: int) -> list[dict[str, Any]]:
    kept = EDITORS[editor][1]
    skill = dict(zip(SUBSETS, (*kept[:4], 0.2), strict=True))
    if moment == "own":
        skill, edits = {"edits": kept[4]}, BATCH * (i // BATCH + 1)
    if editor == "FT" and edits == FIRST:
        skill["edits"] = 1.0
    fact = (i + 3 * seed) % N  # the same facts in another order
    found = []
    for subset, share in skill.items():
        right = float((fact * 7 + 3) % N < share * N) if moment != "before" else 0.0
        stays = moment == "before" or subset not in ("near", "upstream") or right
        found.append(
            _named(editor, seed)
            | {
                "moment": moment, "n_edits": edits, "subset": subset, "edit_index": i,
                "record": f"{subset}:{fact}#0", "fact": f"fact {fact}", "prompt": f"{NASTY} {fact}",
                "target": "Port <i>Ost</i>", "prediction": "Port" if right else "<u>Bern</u>",
                "answer_accuracy": max(right, 0.5), "prompt_accuracy": right,
                "begins_with": right, "exact_match": right, "agreement": float(stays),
                "answer_agreement": float(stays), "route": "base", "subject": "", "other": "",
            }
        )  # fmt: skip
    if i < 4 and moment != "own":
        found.append(
            found[0]
            | {"subset": "general", "record": f"general/sums/{i}", "edit_index": -1,
               "fact": f"general/sums/{i}", "prompt": f"{NASTY * 4} {i}", "prompt_accuracy": i % 2,
               "answer_accuracy": i % 2}
        )  # fmt: skip
    return found


def _named(editor: str, seed: int) -> dict[str, Any]:
    return {
        "run": f"{editor}-{seed}", "setting": FACTS, "backbone": "tiny", "dataset": "invented",
        "editor": editor, "sweep": "", "value": "", "seed": seed,
    }  # fmt: skip


@functools.cache
def steps(seeds: int = 1) -> pd.DataFrame:
    """One row per edited batch: GRACE slows down and grows, the others do neither."""
    rows = []
    for editor in EDITORS:
        for seed in range(seeds):
            for batch in range(edits_of(editor) // BATCH):
                made, grace = BATCH * (batch + 1), editor == "GRACE"
                rows.append(
                    _named(editor, seed)
                    | {"batch": batch, "n_edits": made,
                       "seconds_edit": BATCH * (0.1 * (1 + made) if grace else 0.5),
                       "parameters": 100 * made if grace else 400, "stored_floats": 0}
                )  # fmt: skip
    return pd.DataFrame(rows)


def manifest(editor: str, seed: int) -> dict[str, Any]:
    """What a finished run says about itself."""
    slower = {"SERAC": 0.12}.get(editor, 0.08)
    return {
        "title": f"{editor} on {FACTS}, seed {seed}", "seed": seed, "device": "cpu",
        "git_commit": "abc", "versions": {"torch": "2"},
        "spec": {"stream": {"n_edits": edits_of(editor), "batch_size": BATCH}},
        "seconds": {"fit": 20.0 if editor in ("SERAC", "MEND") else 0.0, "edit": 3.0,
                    "evaluate": 4.0},
        "peak_memory_bytes": 2**30,
        "inference": {"base_seconds": 0.08, "edited_seconds": slower, "repeats": 3},
        "backbone": {"name": "tiny", "dtype": "float32", "substitution": "A tiny model.",
                     "provenance": "random", "content": "0" * 64},
        "dataset": {"name": "invented", "substitution": "Invented facts.", "skipped": [],
                    "sources": ["none"], "content": "0" * 64,
                    "counts": {"edits": N, "facts": N}},
    }  # fmt: skip


@functools.cache
def _paper() -> dict[str, Any]:
    parts = [yaml.safe_load((PAPER / name).read_text("utf-8")) for name in NAMES]
    return parts[0] | parts[1]


@dataclass
class InventedStudy(Outline):
    """Answers as a `Study` does. `lost` names editors whose runs failed; `empty`: nothing ran."""

    folder: Path
    lost: tuple[str, ...] = ()
    empty: bool = False
    seeds: int = 1
    paper: str = "side_by_side"
    profile: str = "laptop"
    sourced: list = field(default_factory=list)

    @property
    def document(self) -> dict[str, Any]:
        blocks = _paper()
        editors = {name: {"kind": kind, "config": {}} for name, (kind, _) in EDITORS.items()}
        editors["ROME"]["stream"] = {"first": FEWER}
        kept = ("title", "venue", "summary", "short", "order", "claims", "findings", "deviations")
        setting = {
            "title": "invented facts, a tiny model", "editors": editors,
            "stream": {"n_edits": N, "batch_size": BATCH}, "protocol": {"max_new_tokens": 2},
        }  # fmt: skip
        found = {name: blocks[name] for name in kept if name in blocks}
        return found | {"settings": {FACTS: setting}}

    @property
    def original(self) -> dict[str, Any]:
        return {"settings": {FACTS: {"stream": {"n_edits": 1000, "batch_size": 10}}}}

    @property
    def runs(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(identity=f"{editor}-{seed}", setting=FACTS, editor=editor, sweep="",
                            seed=seed)
            for editor in EDITORS for seed in range(self.seeds)
        ]  # fmt: skip

    def finished(self, run: SimpleNamespace) -> SimpleNamespace | None:
        if self.empty or run.editor in self.lost:
            return None
        kept = self.folder / "runs" / run.identity
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "edits.bin").write_bytes(bytes(6000 if run.editor == "GRACE" else 2**20))
        return SimpleNamespace(editor=kept)

    def _kept(self, frame: pd.DataFrame) -> pd.DataFrame:
        if self.empty:
            return pd.DataFrame(columns=COLUMNS)
        return frame[~frame["editor"].isin(self.lost)].reset_index(drop=True)

    def records(self, setting: str = FACTS, sweep: str | None = "") -> pd.DataFrame:
        return self._kept(records(self.seeds))

    def steps(self, setting: str = FACTS, sweep: str | None = "") -> pd.DataFrame:
        return self._kept(steps(self.seeds))

    def observations(self, setting: str = FACTS, sweep: str | None = "") -> pd.DataFrame:
        told = _named("MEND", 0) | {"kind": "training", "seconds": 60.0, "cached": True}
        return self._kept(pd.DataFrame([told]))

    def manifests(self, setting: str | None = None, sweep: str | None = "") -> dict[str, dict]:
        if self.empty:
            return {}
        return {
            run.identity: manifest(run.editor, run.seed)
            for run in self.runs
            if run.editor not in self.lost
        }

    def errors(self) -> dict[str, str]:
        text = "Traceback\n  somewhere\nEditorError: <b>out of room</b>"
        return {f"{name} on {FACTS}, seed 0": text for name in self.lost}
