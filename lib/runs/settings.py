"""A paper's YAML file: read once, checked, and laid out for one profile."""

import contextlib
import copy
import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.errors import UsageError
from lib.storage import documents
from lib.storage.checked import FaultyError, Place, checked, dotted, nearest
from lib.storage.documents import Sourced, merged, plain

# Where papers/, notebooks/ and outputs/ lie.
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "papers"
PROFILES = ("smoke", "laptop", "gpu", "paper")


@functools.cache
def papers() -> tuple[str, ...]:
    """The papers of the study in their order: folders that hold a settings.yaml."""
    found = {path.parent.name: path for path in FOLDER.glob("*/settings.yaml")}
    return tuple(sorted(found, key=lambda paper: documents.read(found[paper])["order"]))


def read_paper(paper: str) -> dict[str, Any]:
    """The paper's YAML file as it stands; the caller's own to change."""
    return copy.deepcopy(documents.read(_file(paper)))


def profile_of(paper: str, profile: str) -> tuple[dict[str, Any], list[Sourced]]:
    """The settings of one profile as plain values, and every sourced hyper-parameter in them.

    An editor's `config` is its settings on the backbone (`lib/editors/settings`) with the entry's
    `changes` laid over them. Raises UsageError for what the file may not hold: one line for every
    fault, with file, place and remedy.
    """
    document, sourced = _checked_profile(paper, profile)
    return copy.deepcopy(document), list(sourced)


@functools.cache
def _checked_profile(paper: str, profile: str) -> tuple[dict[str, Any], list[Sourced]]:
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}; the profiles are {', '.join(PROFILES)}")
    path = _file(paper)
    try:
        return laid_out(documents.read(path), profile)
    except FaultyError as error:
        name = path.relative_to(ROOT)
        lines = (f"{name}: {dotted(place)}: {text}" for place, text in error.faults)
        raise UsageError("\n".join(lines)) from None


def _file(paper: str) -> Path:
    if paper not in papers():
        raise UsageError(f"unknown paper {paper!r}; the papers are {', '.join(papers())}")
    return FOLDER / paper / "settings.yaml"


def laid_out(document: Mapping[str, Any], profile: str) -> tuple[dict[str, Any], list[Sourced]]:
    """`profile_of` for a parsed file. Raises FaultyError with every fault that could be seen."""
    from lib.editors.settings.places import spelled_out  # loads torch, as the schema does
    from lib.runs import schema

    checked(schema.Document, plain(document))
    settings, faults = layered(document, profile), _Faults()
    for name, setting in settings.items():
        for place, text in _faults_of(plain(setting)):
            faults.append((_written(document, profile, name, place), text))
    if faults:
        raise FaultyError(faults)
    settings = {name: _configured(setting) for name, setting in settings.items()}
    sourced: list[Sourced] = []
    datasets = document["common"]["datasets"]
    made = plain({"datasets": datasets, "settings": settings}, found=sourced)
    for setting in made["settings"].values():
        for entry in setting["editors"].values():
            entry["config"] = spelled_out(entry["config"])
    return made, sourced


def layered(document: Mapping[str, Any], profile: str) -> dict[str, dict[str, Any]]:
    """The settings of a profile, values with their sources: what `common` and then the profile say
    of every setting and of each. Raises FaultyError for a setting that `common` does not have."""
    common, own = document["common"], document["profiles"][profile] or {}
    known = common["settings"]
    named = [("settings", name) for name in own.get("settings", {})]
    named += [("leaves_out", name) for name in own.get("leaves_out", ())]
    faults = [
        (("profiles", profile, *place), f"no such setting; {nearest(place[1], known)}")
        for place in named
        if place[1] not in known
    ]
    if faults:
        raise FaultyError(faults)
    found = {}
    for name, given in common["settings"].items():
        setting = merged(common.get("every", {}), given)
        if name in own.get("leaves_out", ()):
            setting["enabled"] = False
        else:
            setting = merged(setting, own.get("every", {}))
            setting = merged(setting, own.get("settings", {}).get(name, {}))
        # A profile leaves an editor or a sweep of the paper out by giving it no entry.
        for group in ("editors", "sweeps"):
            entries = setting.get(group, {})
            setting[group] = {key: entry for key, entry in entries.items() if entry is not None}
        found[name] = setting
    return found


def _configured(setting: dict[str, Any]) -> dict[str, Any]:
    """The setting with the whole configuration of its editors in place of what they change."""
    from lib.editors import stated

    backbone, editors = plain(setting["backbone"]), {}
    for label, entry in setting["editors"].items():
        config = merged(stated(entry["kind"], backbone), entry.get("changes", {}))
        rest = {key: item for key, item in entry.items() if key not in ("kind", "changes")}
        editors[label] = {"kind": entry["kind"], "config": config, **rest}
    return {**setting, "editors": editors}


def parts_of(setting: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The setting's stream and protocol with what the editor's entry changes of them: an expensive
    editor may edit only the first so many of the stream, or be scored less often."""
    return {part: merged(setting[part], entry.get(part, {})) for part in ("stream", "protocol")}


def varied(chosen: dict[str, Any], parameter: str, value: Any) -> dict[str, Any]:
    """A variant (`editor`, `stream`, `protocol`) with one value changed; dots descend. "stream."
    and "protocol." lead to the setting's, anything else into the editor's configuration.
    Raises FaultyError for a parameter that leads nowhere."""
    changed = json.loads(json.dumps(chosen))
    *parents, last = parameter.split(".")
    place = changed if parents[:1] in (["stream"], ["protocol"]) else changed["editor"]["config"]
    for parent in parents:
        if not isinstance(place.get(parent), dict):
            raise FaultyError([((parent,), f"no such part; {nearest(parent, place)}")])
        place = place[parent]
    place[last] = value
    return changed


# -- What a setting may not say ----------------------------------------------------------------


class _Faults(list[tuple[Place, str]]):
    """Faults with their places, as they come."""

    @contextlib.contextmanager
    def at(self, *place: str) -> Iterator[None]:
        """Keeps the faults that the block meets, at this place."""
        try:
            yield
        except FaultyError as error:
            self += [((*place, *path), text) for path, text in error.faults]


def _faults_of(setting: dict[str, Any]) -> _Faults:
    """The faults of one plain setting; those of editors and sweeps if it has no other."""
    from lib.runs import schema  # loads torch, as all below

    found = _Faults()
    with found.at():
        checked(schema.Setting, setting)
    found = found or _unknown_names(setting)
    return found or _wrong_changes(setting)


def _unknown_names(setting: dict[str, Any]) -> _Faults:
    """Names of backbones, datasets and editors that there are not."""
    from lib.backbones.sources import loading
    from lib.data.datasets import DATASETS
    from lib.editors import REGISTRY

    named = [(("dataset",), setting["dataset"], DATASETS)]
    if not setting["backbone"].startswith("dir:"):
        named.append((("backbone",), setting["backbone"], loading.names()))
    for label, entry in setting["editors"].items():
        named.append((("editors", label, "kind"), entry["kind"], REGISTRY))
    for sweep, axis in setting["sweeps"].items():
        named += [
            (("sweeps", sweep, "editors"), name, setting["editors"]) for name in axis["editors"]
        ]
    return _Faults(
        (place, f"{name!r} is none that is known; {nearest(name, known)}")
        for place, name, known in named
        if name not in known
    )


def _wrong_changes(setting: dict[str, Any]) -> _Faults:
    """Faults of what editors and sweeps change."""
    from lib.editors import configured
    from lib.editors.settings.places import spelled_out
    from lib.runs import schema

    types = {"stream": schema.Stream, "protocol": schema.Protocol, "cost": schema.Cost}
    found, editors = _Faults(), plain(_configured(setting))["editors"]
    for label, entry in editors.items():
        with found.at("editors", label, "changes"):
            configured(entry["kind"], entry["config"])
        for part in types.keys() & entry.keys():
            with found.at("editors", label, part):
                checked(types[part], merged(setting[part], entry[part]))
    for sweep, axis in setting["sweeps"].items() if not found else ():
        with found.at("sweeps", sweep, "protocol"):
            checked(schema.Protocol, merged(setting["protocol"], axis.get("protocol", {})))
        with found.at("sweeps", sweep):
            for label, value in itertools.product(axis["editors"], axis["values"]):
                entry = editors[label]
                spelled = {**entry, "config": spelled_out(entry["config"])}
                chosen = {"editor": spelled, **parts_of(setting, entry)}
                made = varied(chosen, axis["parameter"], value)
                configured(entry["kind"], made["editor"]["config"])
                checked(schema.Stream, made["stream"])
                checked(schema.Protocol, made["protocol"])
    return found


def _written(document: Mapping[str, Any], profile: str, setting: str, place: Place) -> Place:
    """Where the file says what a setting of a profile says at `place`."""
    own = ("profiles", profile)
    blocks = [
        (*own, "settings", setting), (*own, "every"),
        ("common", "settings", setting), ("common", "every"),
    ]  # fmt: skip
    deepest = max(blocks, key=lambda block: _depth(document, (*block, *place)) - len(block))
    return (*deepest, *place)


def _depth(node: Any, place: Place) -> int:
    """How many steps of a place lead through nested mappings."""
    for depth, step in enumerate(place):
        if not isinstance(node, Mapping) or step not in node:
            return depth
        node = node[step]
    return len(place)
