"""A paper's YAML files: read once, checked, and laid out for one profile."""

import contextlib
import copy
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lib.errors import UsageError
from lib.storage import documents
from lib.storage.checked import FaultyError, Place, checked, dotted, nearest
from lib.storage.documents import Sourced, merged, plain

# Where papers/, notebooks/ and outputs/ lie.
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "papers"
PROFILES = ("smoke", "laptop", "overnight", "gpu", "paper")
DEFAULT = "laptop"
# What names entries in a setting, and a key that every entry has.
COMPLETE = {"editors": "kind", "sweeps": "parameter"}
# What stays a setting's own where it is like another page's.
OWN = ("title", "reported", "enabled", "editors", "sweeps")


@functools.cache
def papers() -> tuple[str, ...]:
    """The papers of the study in their order: folders that hold a settings.yaml."""
    found = {path.parent.name: path for path in FOLDER.glob("*/settings.yaml")}
    return tuple(sorted(found, key=lambda paper: documents.read(found[paper])["order"]))


def read_paper(paper: str) -> dict[str, Any]:
    """The paper's YAML files as they stand, settings and page; the caller's own to change."""
    return copy.deepcopy({**documents.read(_file(paper)), **_page(paper)})


def profile_of(
    paper: str, profile: str, overrides: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[Sourced]]:
    """The settings of one profile as plain values, and every sourced hyper-parameter in them.

    An editor's `config` is its settings on the backbone (`lib/editors/settings`) with the entry's
    `changes` laid over them. `overrides`: values by their dotted places in the profile's settings
    ("zsre-t5.editors.MELO.changes.radius"), laid over all that the file says. Raises UsageError for
    what file or overrides may not hold: one line for every fault, with place and remedy.
    """
    document, sourced = _checked_profile(paper, profile)
    if overrides:
        document, sourced = _overridden(paper, profile, overrides)
    return copy.deepcopy(document), list(sourced)


@functools.cache
def _checked_profile(paper: str, profile: str) -> tuple[dict[str, Any], list[Sourced]]:
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}; the profiles are {', '.join(PROFILES)}")
    path = _file(paper)
    with _told_of(path):
        return laid_out(documents.read(path), profile)


def _overridden(
    paper: str, profile: str, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Sourced]]:
    """The settings of a profile that is fine by itself, with the overrides laid over them."""
    document, place = documents.read(_file(paper)), ("profiles", profile, "settings")
    own, given = document["profiles"][profile] or {}, _nested(overrides)
    changed = {**own, "settings": merged(own.get("settings", {}), given)}
    try:
        made, sourced = laid_out(
            {**document, "profiles": {**document["profiles"], profile: changed}}, profile
        )
        idle = [name for name in given if not made["settings"][name].get("enabled", True)]
        if idle:
            raise FaultyError(
                [((name,), f"the profile {profile} does not run it") for name in idle]
            )
    except FaultyError as error:
        inside = [path[3:] if path[:3] == place else path for path, _ in error.faults]
        texts = zip(inside, error.faults, strict=True)
        lines = (f"overrides: {dotted(path)}: {text}" for path, (_, text) in texts)
        raise UsageError("\n".join(lines)) from None
    return made, sourced


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1, "a.c": 2} as {"a": {"b": 1, "c": 2}}, values as a file would hold them."""
    found: dict[str, Any] = {}
    try:
        for name, value in overrides.items():
            for step in reversed(name.split(".")):
                value = {step: value}
            found = merged(found, json.loads(json.dumps(value)))
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"overrides: {overrides!r}: write places and plain values, such as "
            '{"SETTING.editors.EDITOR.changes.NAME": 1.0}'
        ) from error
    return found


def assigned(flag: str, texts: Iterable[str]) -> dict[str, Any]:
    """What a flag's "NAME=VALUE" say, values as YAML reads them."""
    found = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not (mark and name):
            raise UsageError(f"{flag} {text}: write NAME=VALUE, such as {flag} steps=40")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"{flag} {text}: {value!r} is no value") from error
    return found


@functools.cache
def _page(paper: str) -> dict[str, Any]:
    from lib.runs import schema  # loads torch, which wrong usage should not wait for

    path = _file(paper, "page.yaml")
    with _told_of(path):
        checked(schema.Page, documents.read(path))
    return documents.read(path)


def _file(paper: str, name: str = "settings.yaml") -> Path:
    if paper not in papers():
        raise UsageError(f"unknown paper {paper!r}; the papers are {', '.join(papers())}")
    return FOLDER / paper / name


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Faults become a UsageError with a line for each: the file, the place, what is wrong."""
    try:
        yield
    except FaultyError as error:
        name = path.relative_to(ROOT)
        lines = (f"{name}: {dotted(place)}: {text}" for place, text in error.faults)
        raise UsageError("\n".join(lines)) from None


def laid_out(document: Mapping[str, Any], profile: str) -> tuple[dict[str, Any], list[Sourced]]:
    """`profile_of` for a parsed file. Raises FaultyError with every fault that could be seen."""
    from lib.editors.settings.places import spelled_out  # loads torch, as the schema does
    from lib.runs import schema

    checked(schema.Settings, plain(document))
    settings = layered(document, profile)
    faults = _unknown_changes(document, profile)
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
    of every setting and of each. One that the profile makes `like` another page's ("page/setting")
    begins with that: what is run there on the same stream serves both pages."""
    return {name: _setting(document, profile, name) for name in document["common"]["settings"]}


def _setting(document: Mapping[str, Any], profile: str, name: str) -> dict[str, Any]:
    common, changes = document["common"], _changes(document, profile, name)
    setting = merged(common.get("every", {}), common["settings"][name])
    if like := changes.get("like"):
        setting = _like(setting, _other(like, profile))
    setting = merged(setting, changes)
    # A profile leaves an editor or a sweep of the paper out by giving it no entry.
    for group in COMPLETE:
        entries = setting.get(group, {})
        setting[group] = {key: item for key, item in entries.items() if item is not None}
    return setting


def _other(like: str, profile: str) -> dict[str, Any]:
    """The setting "page/setting" of a profile. Raises FaultyError if there is none."""
    page, _, name = like.partition("/")
    if page not in papers():
        raise FaultyError([(("like",), f"{like!r}: no such page; {nearest(page, papers())}")])
    document = documents.read(_file(page))
    if name not in (known := document["common"]["settings"]):
        raise FaultyError([(("like",), f"{like!r}: no such setting; {nearest(name, known)}")])
    return _setting(document, profile, name)


def _like(setting: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The setting on the other's backbone, stream and protocol, with the other's editors where both
    have one of a name."""
    shared = {key: item for key, item in other.items() if key not in OWN}
    kept = {key: setting[key] for key in OWN if key in setting}
    editors = {
        name: other["editors"].get(name, entry) for name, entry in setting["editors"].items()
    }
    return {**shared, **kept, "editors": editors}


def _changes(document: Mapping[str, Any], profile: str, setting: str) -> dict[str, Any]:
    """What a profile changes of a setting: nothing, if it leaves it out."""
    if setting in (document["profiles"][profile] or {}).get("leaves_out", ()):
        return {"enabled": False}
    return _layers(document, profile, setting)


def _layers(document: Mapping[str, Any], profile: str, setting: str) -> dict[str, Any]:
    """What a profile says of a setting, over what the profile that it extends says of it."""
    own = document["profiles"][profile] or {}
    changes, base = own.get("settings", {}).get(setting, {}), {}
    if extended := own.get("extends"):
        base = _layers(document, extended, setting)
        if setting in document["profiles"][extended].get("leaves_out", ()):
            base["enabled"] = False
    if not (changes.get("like") or base.get("like")):  # such a setting is another page's
        changes = merged(own.get("every", {}), changes)
    return merged(base, changes)


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


def _unknown_changes(document: Mapping[str, Any], profile: str) -> _Faults:
    """Settings, editors and sweeps that a profile changes and that the paper does not have; an
    entry that is complete is the profile's own."""
    common, own = document["common"], document["profiles"][profile] or {}
    found = _Faults(
        (
            ("profiles", profile, group, name),
            f"no such setting; {nearest(name, common['settings'])}",
        )
        for group in ("settings", "leaves_out")
        for name in own.get(group, ())
        if name not in common["settings"]
    )
    for name, given in common["settings"].items():
        setting, changes = merged(common.get("every", {}), given), _changes(document, profile, name)
        for group, key in COMPLETE.items():
            known = setting.get(group, {})
            for label, entry in changes.get(group, {}).items():
                if label not in known and key not in (entry or {}):
                    place = _written(document, profile, name, (group, label))
                    found.append((place, f"no such {group[:-1]}; {nearest(label, known)}"))
    return found


def _unknown_names(setting: dict[str, Any]) -> _Faults:
    """Names of backbones, datasets and editors that there are not."""
    from lib.backbones.sources import loading
    from lib.data.datasets import DATASETS
    from lib.editors.registry import REGISTRY

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
        with found.at("sweeps", sweep, "stream"):
            checked(schema.Stream, merged(setting["stream"], axis.get("stream", {})))
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
    base = (document["profiles"][profile] or {}).get("extends")
    owns = [("profiles", name) for name in (profile, base) if name]
    blocks = [(*own, *part) for own in owns for part in (("settings", setting), ("every",))]
    blocks += [("common", "settings", setting), ("common", "every")]
    deepest = max(blocks, key=lambda block: _depth(document, (*block, *place)) - len(block))
    return (*deepest, *place)


def _depth(node: Any, place: Place) -> int:
    """How many steps of a place lead through nested mappings."""
    for depth, step in enumerate(place):
        if not isinstance(node, Mapping) or step not in node:
            return depth
        node = node[step]
    return len(place)
