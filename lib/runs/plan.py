"""From a paper's YAML file to the list of runs of one profile, without loading anything."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.data.records import content_hash
from lib.errors import UsageError
from lib.runs.settings import parts_of, profile_of, varied
from lib.storage import fingerprints
from lib.storage.documents import merged

DTYPES = ("float32", "float16", "bfloat16")
# How many times longer a run takes in float32 than in a dtype that the processor computes in.
FLOAT32_SECONDS = 2
# Sweeps are read at the end only, and nothing else is measured along them unless they say so.
UNSWEPT = {"checkpoint_every": 0, "checkpoints": [], "inference_repeats": 0, "observe": False}
# What a run's spec holds of its setting only if it is given there.
GIVEN = ("dtype", "known", "corpus", "variant", "training")


@dataclass(frozen=True)
class Run:
    """One editor on one setting with one seed. `spec` is everything that decides the result;
    the other fields say how reports call it, what it is expected to cost, and which dtype its
    setting asks for where `spec` has float32 in its place."""

    paper: str
    setting: str
    editor: str
    sweep: str
    value: str
    seed: int
    spec: dict[str, Any]
    seconds: float
    gigabytes: float
    asked: str = ""

    @functools.cached_property
    def identity(self) -> str:
        """Content hash of `spec`: the run's name in the store."""
        return f"{self.paper}-{self.setting}-{content_hash(self.spec)[:16]}"

    @property
    def title(self) -> str:
        """How progress lines and errors call the run."""
        swept = f", {self.sweep} {self.value}" if self.sweep else ""
        return f"{self.editor}{swept} on {self.setting}, seed {self.seed}"

    @property
    def replaced(self) -> dict[str, str]:
        """What the setting asks for instead of float32, and why it was not taken; else nothing."""
        if not self.asked:
            return {}
        why = f"the processor has no {self.asked} arithmetic that PyTorch can use"
        return {"asked": self.asked, "why": why}


def runs(
    paper: str,
    profile: str,
    *,
    seeds: int | None = None,
    data_dir: Path | None = None,
    device: str = "cpu",
    source: str = "embedded",
) -> list[Run]:
    """All runs of a paper in one profile, main table first; equal runs appear once per use.

    A setting that names `folders` of its own reads these of `data_dir` beside the paper's
    `datasets`; without the first of them it has no runs there.
    """
    document, _ = profile_of(paper, profile)
    described = _data_source(document["datasets"], data_dir, source)
    enabled = {
        name: setting
        for name, setting in document["settings"].items()
        if setting.get("enabled", True) and _has_files(setting, data_dir)
    }
    texts = data_dir / "wikipedia" if data_dir else None
    if texts is not None and texts.is_dir() and any(s.get("corpus") for s in enabled.values()):
        texts_content = fingerprints.folder(texts.resolve())
    else:
        texts_content = None
    _keep_readable_tasks(enabled, data_dir, source)
    planned = []
    for name, setting in enabled.items():
        own = _with_own(described, setting, data_dir)
        decides = _decides(name, setting, own, texts_content, device)
        if setting["protocol"].get("lm_eval"):
            from lib.evaluation.general.ability import identity  # loads transformers, as below

            decides["general"] = identity(data_dir)
        for seed in range(seeds or setting["seeds"]):
            planned += _setting_runs(paper, name, setting, seed, decides, device)
    return planned


def _keep_readable_tasks(settings: dict[str, Any], data_dir: Path | None, source: str) -> None:
    """Leave general tasks whose data are not given out of the settings' protocols."""
    for setting in settings.values():
        if named := setting["protocol"].get("lm_eval"):
            from lib.evaluation.general.ability import readable  # loads transformers, as below

            setting["protocol"]["lm_eval"] = readable(named, data_dir, source)


def _decides(
    name: str, setting: dict[str, Any], source: dict[str, Any], texts: str | None, device: str
) -> dict[str, Any]:
    """The part of a run's spec that all runs of a setting share."""
    given = {key: setting[key] for key in GIVEN if setting.get(key)}
    if given.get("dtype", DTYPES[0]) not in DTYPES:
        raise UsageError(f"setting {name}: dtype {given['dtype']!r} is none of {', '.join(DTYPES)}")
    if "dtype" in given:
        given["dtype"] = _computed_in(given["dtype"], device)
    if "corpus" in given and texts is not None:
        given["corpus_files"] = texts
    return {
        "backbone": setting["backbone"],
        "tune": setting.get("tune"),
        "dataset": {"name": setting["dataset"], **source},
        **given,
    }


def _computed_in(asked: str, device: str) -> str:
    """The dtype that runs take: float32 on a processor that cannot compute in the asked one."""
    from lib.runs import machine  # loads torch, which wrong usage should not wait for

    return DTYPES[0] if device == "cpu" and not machine.cpu_computes_in(asked) else asked


def _data_source(datasets: list[str], data_dir: Path | None, source: str) -> dict[str, Any]:
    if data_dir is None:
        return {"source": source, "code": fingerprints.code("lib.data.datasets")}
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
        "code": fingerprints.code("lib.data.datasets"),
    }


def _has_files(setting: dict[str, Any], data_dir: Path | None) -> bool:
    own = setting.get("folders")
    return not own or data_dir is None or (data_dir / own[0]).is_dir()


def _with_own(
    described: dict[str, Any], setting: dict[str, Any], data_dir: Path | None
) -> dict[str, Any]:
    """The description of the data with the folders that the setting alone reads."""
    if data_dir is None or not setting.get("folders"):
        return described
    found = [name for name in setting["folders"] if (data_dir / name).is_dir()]
    own = {name: fingerprints.folder(data_dir.resolve() / name) for name in found}
    return {**described, "files": {**described["files"], **own}}


def _setting_runs(
    paper: str,
    name: str,
    setting: dict[str, Any],
    seed: int,
    decides: dict[str, Any],
    device: str,
) -> Iterator[Run]:
    from lib.editors import module_of  # loads transformers, which wrong usage should not wait for

    more_code = ("lib.data.corpus",) if "corpus" in decides else ()
    if setting["protocol"].get("lm_eval"):
        more_code += ("lib.evaluation.general.ability",)
    asked = setting["dtype"] if decides.get("dtype") != setting.get("dtype") else ""
    for label, sweep, value, chosen in _variants(setting):
        entry = chosen["editor"]
        cost = {**setting["cost"], **entry.get("cost", {})}
        stream = merged(chosen["stream"], {"seed": seed})
        spec = decides | {
            "stream": stream,
            "editor": entry["kind"],
            "config": merged(entry["config"], {"seed": seed}),
            "protocol": chosen["protocol"],
            "device": device,
            "code": fingerprints.code(
                "lib.evaluation.protocol",
                "lib.runs.resources",
                module_of(entry["kind"]),
                *more_code,
            ),
            "versions": fingerprints.versions(),
        }
        trained = not (sweep and setting["sweeps"][sweep].get("retrains") is False)
        seconds = cost["seconds"] + trained * cost["seconds_per_edit"] * edits_of(stream)
        if asked:
            seconds *= FLOAT32_SECONDS
        yield Run(paper, name, label, sweep, value, seed, spec, seconds, cost["gigabytes"], asked)


def _variants(setting: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Label, sweep, value, and what is run: an editor's entry, a stream, a protocol.

    A sweep's value that changes nothing is the run of the main table.
    """
    main = {
        label: {"editor": entry, **parts_of(setting, entry)}
        for label, entry in setting["editors"].items()
    }
    for label, chosen in main.items():
        yield label, "", "", chosen
    for sweep, axis in setting.get("sweeps", {}).items():
        for label in axis["editors"]:
            for value in axis["values"]:
                chosen, parameter = main[label], axis["parameter"]
                if varied(chosen, parameter, value) != chosen:
                    measured = {**chosen["protocol"], **UNSWEPT, **axis.get("protocol", {})}
                    measured.pop("lm_eval", None)
                    chosen = varied({**chosen, "protocol": measured}, parameter, value)
                yield label, sweep, str(value), chosen


def edits_of(stream: dict[str, Any]) -> int:
    """How many edits a run makes of a stream: all, or the `first` so many."""
    return stream.get("first") or stream["n_edits"]
