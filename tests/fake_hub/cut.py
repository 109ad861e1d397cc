"""The project with a paper profile of a few edits in each setting: all backbones, datasets and
editors are the paper's own, seeds, sweeps and numbers of steps are not."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

from lib.editors import REGISTRY
from lib.runs.settings import ROOT, papers, profile_of

COPIED = ("lib", "papers", "notebooks", "pyproject.toml")
STREAMS = {
    "balanced": {"n_upstream": 4},
    "records": {},
    "documents": {"n_upstream": 6},
    "passages": {"n_upstream": 4, "n_near": 4},
}
# Of editors' configurations, where they have a field of the name.
FEWER: dict[str, Any] = {
    "steps": 2, "value_steps": 2, "contexts": [], "router_steps": 2,
    "statistics_tokens": 2000, "statistics_documents": 20, "epochs": 1, "rank": 4, "train_m": 2,
    "batch_rows": 4, "validate_every": 1, "iterations": 2, "classifier_iterations": 2,
    "classifier_rows": 4, "memory_tokens": 200, "memory_rows": 20,
}  # fmt: skip
EVERY = {
    "seeds": 1,
    "protocol": {"max_new_tokens": 2, "evaluation_batch": 8, "lm_eval": [], "inference_repeats": 1},
    "cost": {"seconds": 1.0, "seconds_per_edit": 0.1, "gigabytes": 0.5},
}


def copied(target: Path) -> Path:
    """The project below `target`, with the small profile in the place of `paper`."""
    for name in COPIED:
        source, to = ROOT / name, target / name
        if source.is_dir():
            shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            to.write_bytes(source.read_bytes())
    for paper in papers():
        path = target / "papers" / paper / "settings.yaml"
        text = path.read_text("utf-8")
        assert text.count("\n  paper: {}\n") == 1, path
        profile = json.dumps({"every": EVERY, "settings": _settings(paper)})
        path.write_text(text.replace("\n  paper: {}\n", f"\n  paper: {profile}\n"), "utf-8")
    return target


def _settings(paper: str) -> dict[str, Any]:
    """What is cut of each setting of the paper profile."""
    return {
        name: _setting(setting)
        for name, setting in profile_of(paper, "paper")[0]["settings"].items()
        if setting.get("enabled", True)
    }


def _setting(setting: dict[str, Any]) -> dict[str, Any]:
    kind = setting["stream"].get("kind", "balanced")
    protocol = {"checkpoints": [1, 2]} if setting["protocol"].get("checkpoints") else {}
    cut: dict[str, Any] = {
        "stream": {"n_edits": 4, "batch_size": 2, **STREAMS[kind]},
        "protocol": protocol,
        "sweeps": dict.fromkeys(setting["sweeps"]),
        "editors": {name: _editor(entry) for name, entry in setting["editors"].items()},
    }
    if setting.get("training"):
        cut["training"] = {"n_train": 4, "n_valid": 2}
    if "claims" in (setting.get("tune") or {}):
        cut["tune"] = {"claims": 10, "held_out": 4, "epochs": 1}
    if setting["stream"].get("n_general"):  # from packages: nothing to do with the hub
        cut["stream"]["n_general"] = 0
    return cut


def _editor(entry: dict[str, Any]) -> dict[str, Any]:
    module, _, configuration, _ = REGISTRY[entry["kind"]]
    fields = dataclasses.fields(getattr(importlib.import_module(module), configuration))
    changes = {field.name: FEWER[field.name] for field in fields if field.name in FEWER}
    # It tries every block for every edit.
    shorter = {"stream": {"first": 2}} if entry["kind"] == "wilke" else {}
    return {"changes": changes, "cost": EVERY["cost"], **shorter}
