"""Editors by name: `build("melo", backbone, {...})`; each method is one module."""

import functools
import importlib
from pathlib import Path
from typing import Any

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.editors.base import Editor, EditorConfig
from lib.editors.registry import REGISTRY
from lib.editors.settings.places import spelled_out
from lib.errors import EditorError
from lib.storage import documents
from lib.storage.checked import FaultyError, checked, nearest
from lib.storage.documents import plain

SETTINGS = Path(__file__).parent / "settings"
"""YAML files: editor, backbone, hyper-parameters, each with its source where it has one."""


def module_of(kind: str) -> str:
    """The module that holds an editor; an unknown kind is an error naming the known ones."""
    if kind not in REGISTRY:
        raise EditorError(f"unknown editor {kind!r}; the editors are {', '.join(REGISTRY)}")
    return REGISTRY[kind][0]


def class_of(kind: str) -> type[Editor]:
    """The class of an editor."""
    return getattr(importlib.import_module(module_of(kind)), REGISTRY[kind][1])


def needs_of(kind: str) -> tuple[str, ...]:
    """Names of the resources that an editor takes beside its configuration."""
    return class_of(kind).needs


def backbones_of(kind: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Names of the backbones that an editor loads beside the one that it edits."""
    fields = class_of(kind).backbone_fields
    return tuple(getattr(configured(kind, config), name) for name in fields) if fields else ()


def build(kind: str, backbone: Backbone, config: dict[str, Any], **resources: Any) -> Editor:
    """An editor on a backbone from plain values (as a YAML file or a notebook gives them).

    `resources` are caches and texts by name; the editor gets those it declares in `needs`, None
    where one is missing. Raises EditorError for values that the editor does not have or that are
    of another type, one line for each.
    """
    editor = class_of(kind)
    try:
        configuration = configured(kind, config)
    except FaultyError as error:
        lines = (f"{kind}: {line}" for line in str(error).splitlines())
        raise EditorError("\n".join(lines)) from None
    return editor(backbone, configuration, **{name: resources.get(name) for name in editor.needs})


def configured(kind: str, values: dict[str, Any]) -> EditorConfig:
    """The configuration of an editor from plain values. Raises FaultyError."""
    module = importlib.import_module(module_of(kind))
    return checked(getattr(module, REGISTRY[kind][2]), spelled_out(values))


def settings_of(kind: str, backbone: str) -> dict[str, Any]:
    """The hyper-parameters of an editor on a backbone, as `build` takes them; empty where the study
    has none, so that the editor's defaults hold."""
    return spelled_out(plain(stated(kind, backbone)))


def stated(kind: str, backbone: str) -> dict[str, Any]:
    """As `settings_of`, in the words of the file: places in one line, values with their sources.

    Raises EditorError for what the editor does not take, with file, place and remedy.
    """
    module_of(kind)
    for path in sorted(SETTINGS.glob("*.yaml")):
        document = _named(path)
        if kind in document:
            found = document[kind].get(backbone, {})
            try:
                configured(kind, plain(found))
            except FaultyError as error:
                lines = (f"{path}: {kind}.{backbone}.{line}" for line in str(error).splitlines())
                raise EditorError("\n".join(lines)) from None
            return found
    return {}


@functools.cache
def _named(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """A file of settings, of editors and backbones that there are."""
    document = documents.read(path)
    backbones = dict.fromkeys(name for found in document.values() for name in found)
    for names, known in ((document, REGISTRY), (backbones, loading.names())):
        for name in names:
            if name not in known:
                raise EditorError(f"{path}: {name}: no such name; {nearest(name, known)}")
    return document
