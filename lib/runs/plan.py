"""From a paper's YAML file to the list of runs of one profile, without loading anything."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.data.published import reading
from lib.errors import UsageError
from lib.runs.settings import parts_of, profile_of, varied
from lib.storage import fingerprints
from lib.storage.documents import merged
from lib.storage.fingerprints import content_hash

DTYPES = ("float32", "float16", "bfloat16")
# How many times longer a run takes in float32 than in a dtype that the processor computes in.
FLOAT32_SECONDS = 2
# Sweeps are read at the end only, and nothing else is measured along them unless they say so.
UNSWEPT = {"checkpoint_every": 0, "checkpoints": [], "inference_repeats": 0, "observe": False}
# What a run's spec holds of its setting only if it is given there.
GIVEN = ("dtype", "known", "corpus", "variant", "training")
# What of a spec says which materials a run takes, and what of it bears on making them as well.
MATERIALS = (
    "backbone", "tune", "dataset", "stream", "known", "corpus", "corpus_files", "variant",
    "training", "folder",
)  # fmt: skip
ARITHMETIC = ("dtype", "device", "threads", "versions")
# Modules that make materials, or keep and show results: a run is told by the materials' contents.
APART = (
    *fingerprints.TOLD, "lib.backbones.sources", "lib.backbones.tuning",
    "lib.backbones.knowledge", "lib.editors.registry", "lib.runs.plan", "lib.runs.progress",
    "lib.runs.resources", "lib.runs.schema", "lib.runs.settings", "lib.runs.store",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One editor on one setting with one seed. `spec` is everything that is asked for; `contents`
    are the hashes of the materials that it stands for (`Materials.contents`), empty until they were
    made once. The other fields say how reports call it, what it is expected to cost (`preparing`:
    seconds of it before the first edit), and which dtype its setting asks for where `spec` has
    float32 in its place."""

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
    contents: dict[str, str] = field(default_factory=dict)
    preparing: float = 0.0

    @functools.cached_property
    def asks(self) -> str:
        """Content hash of what decides the materials: settings, files, the length that prompts may
        have, and the code that reads files, loads and tunes the backbone and makes the stream."""
        decides = {key: self.spec.get(key) for key in (*MATERIALS, *ARITHMETIC)}
        code = fingerprints.code("lib.runs.resources")
        protocol = self.spec["protocol"]
        room = [self.spec["config"].get("max_length")]
        room += [protocol.get(name) for name in ("max_new_tokens", "decode")]
        return content_hash([decides, _needs(self.spec["editor"]), room, code])

    @functools.cached_property
    def identity(self) -> str:
        """The run's name in the store: a hash of what edits and scores, of the arithmetic, and of
        the contents of backbone, stream and texts; pages that ask for the same share the run. As
        long as the contents are unknown, of what asks for them; no finished run has such a name."""
        decides = {key: value for key, value in self.spec.items() if key not in MATERIALS}
        whole = content_hash([decides, self.contents or self.asks])
        return f"{self.spec['editor']}-{whole[:16]}"

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
    strict: bool = True,
    threads: int = 1,
    overrides: Mapping[str, Any] | None = None,
) -> list[Run]:
    """All runs of a paper in one profile, main table first; equal runs appear once per use.

    `strict`: a malformed record of a file is an error, not left out. `threads`: how many a run
    computes with on a CPU, where their number moves last digits. `overrides`: see `profile_of`.

    A setting that names `folders` of its own reads these of `data_dir` beside the paper's
    `datasets`; without the first of them it has no runs there. With the `source` "hub" what has no
    folder comes from there.
    """
    document, _ = profile_of(paper, profile, overrides)
    described = _data_source(document["datasets"], data_dir, source, strict)
    arithmetic = {"device": device, **({"threads": threads} if device == "cpu" else {})}
    enabled = {
        name: setting
        for name, setting in document["settings"].items()
        if setting.get("enabled", True) and (source == "hub" or _has_files(setting, data_dir))
    }
    texts = data_dir / "wikipedia" if data_dir else None
    if texts is not None and texts.is_dir() and any(s.get("corpus") for s in enabled.values()):
        texts_content = _content(texts)
    else:
        texts_content = None
    _keep_readable_tasks(enabled, data_dir, source)
    planned = []
    for name, setting in enabled.items():
        own = _with_own(described, setting, data_dir)
        decides = _decides(name, setting, own, texts_content, device) | arithmetic
        if folder := _local(setting["backbone"]):
            decides["folder"] = folder
        general = {}
        if setting["protocol"].get("lm_eval"):
            from lib.evaluation.general.ability import identity  # loads transformers, as below

            general = identity(data_dir)
        for seed in range(seeds or setting["seeds"]):
            planned += _setting_runs(paper, name, setting, seed, decides, general)
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


def _data_source(
    datasets: list[str], data_dir: Path | None, source: str, strict: bool
) -> dict[str, Any]:
    if data_dir is None:
        return {"source": source, "strict": strict}
    folder = data_dir.resolve()
    if not folder.is_dir():
        raise UsageError(f"--data-dir {data_dir}: there is no such folder")
    given = [name for name in datasets if (folder / name).is_dir()]
    missing = [name for name in datasets if name not in given]
    if missing and source != "hub":
        raise UsageError(
            f"--data-dir {data_dir} has no sub-folder {', '.join(missing)}; put the published "
            f"files into {', '.join(f'{name}/' for name in datasets)} (README, Published data)"
        )
    return {
        "source": "files",
        "files": {name: _content(folder / name) for name in given},
        **({"hub": missing} if missing else {}),
        "strict": strict,
    }


def _local(backbone: str) -> str:
    from lib.backbones.sources import loading  # loads transformers, as above

    return loading.local(backbone)


def _content(folder: Path) -> str:
    """Hash of the files in a dataset's folder that its readers may read."""
    folder = folder.resolve()
    return fingerprints.files(reading.data_files(folder), folder)


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
    own = {name: _content(data_dir / name) for name in found}
    return {**described, "files": {**described["files"], **own}}


def _setting_runs(
    paper: str,
    name: str,
    setting: dict[str, Any],
    seed: int,
    decides: dict[str, Any],
    general: dict[str, Any],
) -> Iterator[Run]:
    from lib.backbones.sources import loading  # load torch, which wrong usage should not wait for
    from lib.editors import backbones_of, module_of
    from lib.editors.registry import REGISTRY

    asked = setting["dtype"] if decides.get("dtype") != setting.get("dtype") else ""
    for label, sweep, value, chosen in _variants(setting, seed):
        entry = chosen["editor"]
        others = backbones_of(entry["kind"], entry["config"])
        # What loads other backbones is told by the code that finds them.
        apart = tuple(name for name in APART if not others or name != "lib.backbones.sources")
        cost = {**setting["cost"], **entry.get("cost", {})}
        stream = merged(chosen["stream"], {"seed": seed})
        spec = decides | {
            "stream": stream,
            "editor": entry["kind"],
            "config": merged(entry["config"], {"seed": seed}),
            "protocol": chosen["protocol"],
            # `lib.editors` makes configurations of values, `lib.runs.execute` resumes.
            "code": fingerprints.code(
                module_of(entry["kind"]), "lib.editors", "lib.runs.execute", apart=apart
            ),
            "class": REGISTRY[entry["kind"]][1],
            "versions": fingerprints.versions(),
        }
        if others:
            spec["others"] = {name: loading.local(name) for name in others}
        if chosen["protocol"].get("lm_eval"):
            spec["general"] = general
        trained = not (sweep and setting["sweeps"][sweep].get("retrains") is False)
        slower = FLOAT32_SECONDS if asked else 1
        before = cost["seconds"] * slower
        seconds = before + trained * cost["seconds_per_edit"] * edits_of(stream) * slower
        needs = cost["gigabytes"]
        yield Run(
            paper, name, label, sweep, value, seed, spec, seconds, needs, asked, preparing=before
        )


def _variants(setting: dict[str, Any], seed: int) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Label, sweep, value, and what is run in one order: an editor's entry, a stream, a protocol.

    A sweep's value that changes nothing is the run of the main table.
    """
    main = {
        label: {"editor": entry, **parts_of(setting, entry)}
        for label, entry in setting["editors"].items()
    }
    for label, chosen in main.items():
        yield label, "", "", chosen
    sweeps = setting.get("sweeps", {})
    here = {name: axis for name, axis in sweeps.items() if seed < (axis.get("seeds") or seed + 1)}
    for sweep, axis in here.items():
        for label in axis["editors"]:
            for value in axis["values"]:
                chosen, parameter = main[label], axis["parameter"]
                shorter = merged(chosen["stream"], axis.get("stream", {}))
                if shorter != chosen["stream"] or varied(chosen, parameter, value) != chosen:
                    measured = {**chosen["protocol"], **UNSWEPT, **axis.get("protocol", {})}
                    measured.pop("lm_eval", None)
                    asked = {**chosen, "stream": shorter, "protocol": measured}
                    chosen = varied(asked, parameter, value)
                yield label, sweep, str(value), chosen


def _needs(editor: str) -> tuple[str, ...]:
    from lib.editors import needs_of  # loads transformers, as above

    return tuple(sorted({"training", "corpus"} & {*needs_of(editor)}))


def edits_of(stream: dict[str, Any]) -> int:
    """How many edits a run makes of a stream: all, or the `first` so many."""
    return stream.get("first") or stream["n_edits"]
