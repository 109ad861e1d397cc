"""From a paper's YAML file to the list of runs of one profile, without loading anything."""

import copy
import importlib.resources
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib import fingerprints
from lib.data.records import content_hash
from lib.editors import module_of
from lib.errors import UsageError

PROFILES = ("smoke", "laptop", "gpu", "paper")
PAPERS = ("melo",)


@dataclass(frozen=True)
class Run:
    """One editor on one setting with one seed. `spec` is everything that decides the result;
    the other fields say how reports call it and what it is expected to cost."""

    paper: str
    setting: str
    editor: str
    sweep: str
    value: str
    seed: int
    spec: dict[str, Any]
    seconds: float
    gigabytes: float

    @property
    def identity(self) -> str:
        """Content hash of `spec`: the run's name in the store."""
        return f"{self.paper}-{self.setting}-{content_hash(self.spec)[:16]}"

    @property
    def title(self) -> str:
        """How progress lines and errors call the run."""
        swept = f", {self.sweep} {self.value}" if self.sweep else ""
        return f"{self.editor}{swept} on {self.setting}, seed {self.seed}"


@dataclass(frozen=True)
class Sourced:
    """A hyper-parameter as the YAML file states it: where, what, and where it was seen."""

    path: str
    value: Any
    source: str


def read_paper(paper: str) -> dict[str, Any]:
    """The paper's YAML file as it stands."""
    if paper not in PAPERS:
        raise UsageError(f"unknown paper {paper!r}; the papers are {', '.join(PAPERS)}")
    text = importlib.resources.files("lib.papers").joinpath(f"{paper}.yaml").read_text("utf-8")
    return yaml.safe_load(text)


def merged(base: Any, over: Any) -> Any:
    """`base` with the mappings of `over` laid over it; other values replace."""
    if not isinstance(base, dict) or not isinstance(over, dict) or "value" in over:
        return copy.deepcopy(over)
    return {
        key: merged(base[key], over[key])
        if key in base and key in over
        else copy.deepcopy(over.get(key, base.get(key)))
        for key in [*base, *(key for key in over if key not in base)]
    }


def plain(node: Any, path: str = "", found: list[Sourced] | None = None) -> Any:
    """The tree with every {value, source} replaced by its value; `found` collects them."""
    if isinstance(node, dict):
        if set(node) == {"value", "source"}:
            if found is not None:
                found.append(Sourced(path, node["value"], node["source"]))
            return node["value"]
        return {key: plain(item, f"{path}.{key}".strip("."), found) for key, item in node.items()}
    if isinstance(node, list):
        return [plain(item, path, found) for item in node]
    return node


def profile_of(paper: str, profile: str) -> tuple[dict[str, Any], list[Sourced]]:
    """The settings of one profile, and every sourced hyper-parameter in them."""
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}; the profiles are {', '.join(PROFILES)}")
    document = read_paper(paper)
    chosen = merged(document["common"], document["profiles"][profile] or {})
    found: list[Sourced] = []
    return plain(chosen, found=found), found


def runs(
    paper: str,
    profile: str,
    *,
    seeds: int | None = None,
    data_dir: Path | None = None,
    device: str = "cpu",
    source: str = "embedded",
) -> list[Run]:
    """All runs of a paper in one profile, main table first; equal runs appear once per use."""
    document, _ = profile_of(paper, profile)
    described = _data_source(document["datasets"], data_dir, source)
    planned = []
    for name, setting in document["settings"].items():
        if setting.get("enabled", True):
            for seed in range(seeds or setting["seeds"]):
                planned += _setting_runs(paper, name, setting, seed, described, device)
    return planned


def _data_source(datasets: list[str], data_dir: Path | None, source: str) -> dict[str, Any]:
    if data_dir is None:
        return {"source": source, "code": fingerprints.code("lib.data")}
    folder = data_dir.resolve()
    if not folder.is_dir():
        raise UsageError(f"--data-dir {data_dir}: there is no such folder")
    missing = [name for name in datasets if not (folder / name).is_dir()]
    if missing:
        raise UsageError(
            f"--data-dir {data_dir} has no sub-folder {', '.join(missing)}; put the published "
            f"files into {', '.join(f'{name}/' for name in datasets)} (README, Published data)"
        )
    return {
        "source": "files",
        "files": {name: fingerprints.folder(folder / name) for name in datasets},
        "code": fingerprints.code("lib.data"),
    }


def _setting_runs(
    paper: str,
    name: str,
    setting: dict[str, Any],
    seed: int,
    source: dict[str, Any],
    device: str,
) -> Iterator[Run]:
    editors, protocol = setting["editors"], setting["protocol"]
    variants = [(label, "", "", entry, protocol) for label, entry in editors.items()]
    for sweep, axis in setting.get("sweeps", {}).items():
        for label in axis["editors"]:
            for value in axis["values"]:
                changed = _with(editors[label], axis["parameter"], value)
                # Sweeps are read at the end only; their default value is the main table's run.
                same = changed == editors[label]
                scored = protocol if same else {**protocol, "checkpoint_every": 0}
                variants.append((label, sweep, str(value), changed, scored))
    for label, sweep, value, entry, scored in variants:
        cost = {**setting["cost"], **entry.get("cost", {})}
        stream = merged(setting["stream"], {"seed": seed})
        spec = {
            "backbone": setting["backbone"],
            "tune": setting.get("tune"),
            "dataset": {"name": setting["dataset"], **source},
            "stream": stream,
            "editor": entry["kind"],
            "config": merged(entry["config"], {"seed": seed}),
            "protocol": scored,
            "device": device,
            "code": fingerprints.code("lib.protocol", "lib.streams", module_of(entry["kind"])),
            "versions": fingerprints.versions(),
        }
        trained = not (sweep and setting["sweeps"][sweep].get("retrains") is False)
        seconds = cost["seconds"] + trained * cost["seconds_per_edit"] * stream["n_edits"]
        yield Run(paper, name, label, sweep, value, seed, spec, seconds, cost["gigabytes"])


def _with(entry: dict[str, Any], parameter: str, value: Any) -> dict[str, Any]:
    """An editor's entry with one setting of its configuration changed (dots descend)."""
    changed = json.loads(json.dumps(entry))
    place = changed["config"]
    *parents, last = parameter.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    return changed
