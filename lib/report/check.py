"""What a profile needs before its first run and has not: `./run_all.sh --check`.

Data are read at full size, weights are not fetched: the hub is asked what it holds.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.backbones.sources.catalogue import ENTRIES, Package
from lib.backbones.sources.supply import Supply, supply_of
from lib.data import corpus
from lib.data.datasets import EMBEDDED
from lib.data.published.hub import ELSEWHERE, WIKIPEDIA, File
from lib.data.published.reading import find
from lib.editors import needs_of
from lib.errors import AssetError, StudyError
from lib.runs import machine
from lib.runs.resources import Read, chosen_of, learned_of, lessons_of, stream_of
from lib.runs.study import Study
from lib.storage import archives, hub
from lib.storage.archives import Asset

FINE, LEFT_OUT, UNKNOWN, MISSING = "ok", "left out", "not asked", "MISSING"
WIDTH = 80  # of the last column
GIGABYTE = 1e9


@dataclass(frozen=True)
class Need:
    """One thing that runs need: what for, what, what there is of it, and how to mend what is
    missing."""

    what: str
    wanted: str
    found: str
    state: str = FINE
    remedies: tuple[str, ...] = ()

    @property
    def is_met(self) -> bool:
        """Whether the runs can go without it as it is."""
        return self.state in (FINE, LEFT_OUT)


def needs(studies: Sequence[Study]) -> list[Need]:
    """Everything that the studies' runs need: data, weights, text, general tasks, disk, memory."""
    read = studies[0].resources.read  # all studies of a call have the same data
    elsewhere = _elsewhere(studies)
    data = [
        _data(study, setting, read, elsewhere)
        for study in studies
        for setting in dict.fromkeys(run.setting for run in study.runs)
    ]
    supplies = {name: supply_of(name) for name in _backbones(studies)}
    weights = [_weights(name, supply) for name, supply in supplies.items()]
    left = _packages_left(studies)
    rest = [*_packages(left), *_wikipedia(studies), *_general(studies)]
    rest += _disk(supplies.values(), left or ())
    return [*data, *weights, *rest, *_memory(studies, supplies.values())]


def table(found: Sequence[Need]) -> str:
    """The needs as lines of text, and below them how to mend what is not met."""
    heads = ("", "what", "needs", "found")
    rows = [heads, *((need.state, need.what, need.wanted, _cut(need.found)) for need in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads) - 1)]
    lines = [
        "  ".join([*(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
    unmet = [need for need in found if not need.is_met]
    if not unmet:
        return "\n".join([*lines, "", "nothing is missing"])
    mends: dict[str, list[str]] = {}
    for need in unmet:
        for remedy in need.remedies:
            mends.setdefault(remedy, []).append(need.what)
    told = [f"- {remedy}\n    for {_together(names)}" for remedy, names in mends.items()]
    unasked = sum(need.state == UNKNOWN for need in unmet)
    counts = [f"{len(unmet) - unasked} missing"]
    if unasked:
        counts.append(f"{unasked} of which the hub could not be asked (call again with network)")
    mending = ["To mend, DIR being the folder for --data-dir:", *told] if told else []
    return "\n".join([*lines, "", f"Of {len(found)} needs: {', '.join(counts)}.", *mending])


def _together(names: Iterable[str]) -> str:
    """Names of two words, those with the same first word after it."""
    groups: dict[str, list[str]] = {}
    for name in names:
        first, _, rest = name.partition(" ")
        groups.setdefault(first, []).append(rest)
    return "; ".join(f"{first} {', '.join(rest)}" for first, rest in groups.items())


def _cut(text: str) -> str:
    """The beginning of a reason: without what the column before says, and without its remedy."""
    text = re.split(r"; |, \d+ were asked for", text)[0]
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


# -- data ------------------------------------------------------------------------------------------


def _data(study: Study, setting: str, read: Read, elsewhere: Mapping[str, tuple[str, ...]]) -> Need:
    """The stream of a setting, and the facts to learn, made as its runs will make them. What only
    the backbone can say (which facts it knows, which way it classifies) is left out of account.
    `elsewhere`: by dataset, how to get files that are not on the hub."""
    runs = [run for run in study.runs if run.setting == setting]
    spec = max((run.spec for run in runs), key=lambda spec: spec["stream"]["n_edits"])
    teaches = any("training" in needs_of(run.spec["editor"]) for run in runs)
    learns = spec.get("training") if teaches else None
    options = spec["stream"] | {"n_general": 0}  # these come from packages
    spec = spec | {"stream": options}
    remedies = elsewhere.get(spec["dataset"]["name"], ())
    wanted = [f"{options['n_edits']:,} edits"]
    if learns:
        count = learns["n_train"]
        wanted.append(f"{f'{count:,}' if count else 'all'} + {learns['n_valid']:,} to learn")
    what, asked = f"{study.paper} {setting}", ", ".join(wanted)
    try:
        with _nothing_fetched(study):
            lessons = lessons_of(read, spec)
            chosen = chosen_of(read, spec, lessons, None)
            stream = stream_of(spec, chosen, None)
            found = [f"{len(stream.edits):,} edits"]
            if stream.holdout:
                found.append(f"{len(stream.holdout):,} rephrases")
            if learns:
                facts = learned_of(read, spec, lessons, chosen, None)
                found.append(f"{len(facts.train):,} + {len(facts.valid):,} to learn")
    except AssetError:
        return Need(what, asked, "in a package that the first run fetches")
    except StudyError as error:
        unknown = isinstance(error.__cause__, hub.UnreachableError)
        if unknown:
            return Need(what, asked, str(error.__cause__).partition(" (")[0], UNKNOWN, remedies)
        return Need(what, asked, str(error), MISSING, remedies or (str(error),))
    if options.get("n_portability") and not stream.portability:
        found.append("no portability questions")
        return Need(what, asked, ", ".join(found), MISSING, remedies)
    return Need(what, asked, ", ".join(found))


@contextlib.contextmanager
def _nothing_fetched(study: Study) -> Iterator[None]:
    """Archives are not fetched inside; the embedded data come from them."""
    before = os.environ.get("STUDY_OFFLINE")
    if study.resources.source == "embedded":
        os.environ["STUDY_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("STUDY_OFFLINE", None)
        else:
            os.environ["STUDY_OFFLINE"] = before


def _elsewhere(studies: Sequence[Study]) -> dict[str, tuple[str, ...]]:
    """By dataset, how to get the files that its settings read and that are neither on the hub nor
    given: all of them, as a dataset with a folder is read from there alone."""
    first = studies[0].resources
    wanted: dict[str, dict[File, None]] = {}
    for spec in (run.spec for study in studies for run in study.runs):
        name, training = spec["dataset"]["name"], spec.get("training") or {}
        for variant in (spec.get("variant"), training.get("variant", spec.get("variant"))):
            file = ELSEWHERE.get((name, variant))
            if file and not (first.data_dir and find(first.data_dir / name, (file.name,))):
                wanted.setdefault(name, {})[file] = None
    if first.source != "hub":
        return {}
    return {name: tuple(file.fetched(name) for file in files) for name, files in wanted.items()}


# -- weights and text ------------------------------------------------------------------------------


def _backbones(studies: Sequence[Study]) -> list[str]:
    """The names of all backbones: those that are edited, and those that editors load."""
    names: dict[str, None] = {}
    for study in studies:
        for run in study.runs:
            names |= dict.fromkeys((run.spec["backbone"], *run.spec.get("others", ())))
    return list(names)


def _weights(name: str, supply: Supply) -> Need:
    size = f"{supply.size / GIGABYTE:.1f} GB" if supply.size else ""
    fetched = "" if supply.to_fetch or supply.fault else ", at hand"
    remedies = (supply.remedy,) if supply.remedy else ()
    if supply.fault:
        state = UNKNOWN if supply.unknown else MISSING
        return Need(f"weights {name}", size, supply.fault, state, remedies)
    return Need(f"weights {name}", size, f"{supply.source}{fetched}")


def _packages_left(studies: Sequence[Study]) -> list[Asset] | None:
    """The archives of embedded data and tasks that are still to be fetched; None where no run reads
    any."""
    specs = [run.spec for study in studies for run in study.runs]
    if not any(
        spec["stream"].get("n_general")
        or (spec["dataset"].get("source") == "embedded" and spec["dataset"]["name"] in EMBEDDED)
        for spec in specs
    ):
        return None
    sources = (source for entry in ENTRIES.values() for source in entry.sources)
    weights = {source.asset for source in sources if isinstance(source, Package)}
    assets = (asset for name, asset in archives.ASSETS.items() if name not in weights)
    return [asset for asset in assets if not archives.at_hand(asset.name)]


def _packages(left: Sequence[Asset] | None) -> Iterator[Need]:
    if left is not None:
        size = sum(asset.size for asset in left) / GIGABYTE
        names = ", ".join(asset.package for asset in left)
        said = f"{size:.1f} GB to fetch: {names}" if left else "at hand"
        yield Need("packages", "embedded data and tasks", said)


def _wikipedia(studies: Sequence[Study]) -> Iterator[Need]:
    """The text of key statistics, where a run reads Wikipedia."""
    specs = (run.spec for study in studies for run in study.runs)
    if not any(
        spec.get("corpus") == "wikipedia" and "corpus" in needs_of(spec["editor"]) for spec in specs
    ):
        return
    folder, what = studies[0].resources.data_dir, "text wikipedia"
    wanted = f"{corpus.ARTICLES:,} articles"
    if folder is not None and (folder / "wikipedia").is_dir():
        yield Need(what, "", f"{folder / 'wikipedia'}")
    elif corpus.kept_articles().is_file():
        yield Need(what, wanted, "in the study's cache")
    else:
        try:
            held = hub.repository(WIKIPEDIA.repository, WIKIPEDIA.revision, "dataset")
        except hub.HubError as error:
            state = UNKNOWN if isinstance(error, hub.UnreachableError) else MISSING
            remedy = "put *.jsonl with a field 'text' into DIR/wikipedia/ and give --data-dir DIR"
            yield Need(what, wanted, error.fault, state, (remedy,))
            return
        parts = (size for file, size in held.files.items() if str(WIKIPEDIA.configuration) in file)
        streamed = sum(parts) / GIGABYTE
        yield Need(what, wanted, f"{held.name}: {streamed:.1f} GB pass by once, the articles stay")


def _general(studies: Sequence[Study]) -> Iterator[Need]:
    """General tasks that a profile asks for and that its runs leave out."""
    for study in studies:
        asked = [
            study.document["settings"][setting]["protocol"].get("lm_eval")
            for setting in dict.fromkeys(run.setting for run in study.runs)
        ]
        left = any(asked) and not any(run.spec["protocol"].get("lm_eval") for run in study.runs)
        if left:
            said = "without the extra 'general', or without a folder general/: not measured"
            yield Need(f"{study.paper} general tasks", "lm-eval", said, LEFT_OUT)


# -- the machine -----------------------------------------------------------------------------------


def _disk(supplies: Iterable[Supply], packages: Iterable[Asset]) -> Iterator[Need]:
    """Room for what is to be fetched, where the hub's files are kept. What runs write is not
    known before."""
    from huggingface_hub import constants

    fetched = [supply.to_fetch for supply in supplies] + [asset.size for asset in packages]
    wanted = sum(fetched) / GIGABYTE
    place = next(
        p for p in (Path(constants.HF_HOME), *Path(constants.HF_HOME).parents) if p.exists()
    )
    free = shutil.disk_usage(place).free / GIGABYTE
    remedy = "export HF_HOME=DIR, a folder on a larger disk (STUDY_CACHE and --output take others)"
    state, remedies = (FINE, ()) if wanted < free else (MISSING, (remedy,))
    asked = f"{wanted:.1f} GB to fetch"
    yield Need("disk", asked, f"{free:.0f} GB free at {place}", state, remedies)


def _memory(studies: Sequence[Study], supplies: Iterable[Supply]) -> Iterator[Need]:
    """Memory of the runs to do by the plan, on their device; and of the host for reading weights,
    where the device is another."""
    runs = [(study.paper, run) for study in studies for run in study.to_do()]
    device = runs[0][1].spec["device"] if runs else "cpu"
    room = machine.available_gigabytes(device)
    most = max((run.gigabytes for _, run in runs), default=0.0)
    large = dict.fromkeys(f"{paper} {run.setting}" for paper, run in runs if run.gigabytes > room)
    remedy = f"take a device with more memory; too large for this one: {_together(large)}"
    state, remedies = (MISSING, (remedy,)) if large else (FINE, ())
    asked = f"{most:.1f} GiB at most"
    seen = ", no GPU is seen" if device == "cpu" else ""
    yield Need(f"memory ({device})", asked, f"{room:.1f} GiB free{seen}", state, remedies)
    if device != "cpu":
        host, largest = machine.memory_gigabytes("cpu"), max(s.size for s in supplies) / 2**30
        state = FINE if largest < host else MISSING
        remedies = () if largest < host else ("a machine with more memory",)
        asked = f"{largest:.1f} GiB to read weights"
        yield Need("memory (host)", asked, f"{host:.1f} GiB", state, remedies)
