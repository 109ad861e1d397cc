"""Editors by name: `build("melo", backbone, {...})`; each method is one module."""

import dataclasses
import importlib
import typing
from pathlib import Path
from typing import Any

from lib.backbones import Backbone
from lib.editors.base import BASE, Editor, EditorConfig, EditReport
from lib.editors.sites import Site
from lib.errors import EditorError

# kind: (module, editor class, configuration class); imported when asked for
REGISTRY = {
    "melo": ("lib.editors.melo", "Melo", "MeloConfig"),
    "grace": ("lib.editors.grace", "Grace", "GraceConfig"),
    "lora": ("lib.editors.lora", "Lora", "LoraConfig"),
    "ft": ("lib.editors.ft", "FineTune", "FtConfig"),
}

__all__ = ["BASE", "REGISTRY", "EditReport", "Editor", "EditorConfig", "Site", "build", "module_of"]


def module_of(kind: str) -> str:
    """The module that holds an editor; an unknown kind is an error naming the known ones."""
    if kind not in REGISTRY:
        raise EditorError(f"unknown editor {kind!r}; the editors are {', '.join(REGISTRY)}")
    return REGISTRY[kind][0]


def build(
    kind: str, backbone: Backbone, config: dict[str, Any], *, blocks_cache: Path | None = None
) -> Editor:
    """An editor on a backbone from plain values (as a YAML file or a notebook gives them)."""
    module = importlib.import_module(module_of(kind))
    _, editor_name, config_name = REGISTRY[kind]
    configuration = _configure(kind, getattr(module, config_name), config)
    editor = getattr(module, editor_name)
    if kind == "melo":
        return editor(backbone, configuration, blocks_cache=blocks_cache)
    return editor(backbone, configuration)


def _configure(kind: str, cls: type, values: dict[str, Any]) -> EditorConfig:
    fields = typing.get_type_hints(cls)
    unknown = set(values) - set(fields)
    if unknown:
        known = ", ".join(field.name for field in dataclasses.fields(cls))
        raise EditorError(f"{kind} has no setting {sorted(unknown)}; it has {known}")
    built = {
        name: Site(**value)
        if fields[name] is Site
        else tuple(Site(**item) for item in value)
        if name == "sites"
        else value
        for name, value in values.items()
    }
    return cls(**built)
