"""Editors by name: `build("melo", backbone, {...})`; each method is one module."""

import dataclasses
import importlib
import types
import typing
from typing import Any

from lib.backbones.backbone import Backbone
from lib.editors.base import Editor, EditorConfig
from lib.editors.parts.sites import Site
from lib.errors import EditorError

# What an edit leaves behind (the taxonomy of Yao et al., 2023), in the order of reports.
FAMILIES = (
    "weights edited", "adapter or patch routed", "memory beside the model", "hyper-network",
)  # fmt: skip
WEIGHTS, ROUTED, MEMORY, NETWORK = FAMILIES
# kind: (module, editor class, configuration class, family); imported when asked for
REGISTRY = {
    "melo": ("lib.editors.adapters.melo", "Melo", "MeloConfig", ROUTED),
    "comeba_hk": ("lib.editors.locate.comeba_hk", "ComebaHk", "ComebaHkConfig", ROUTED),
    "memit": ("lib.editors.locate.memit", "Memit", "MemitConfig", WEIGHTS),
    "rome": ("lib.editors.locate.rome", "Rome", "RomeConfig", WEIGHTS),
    "grace": ("lib.editors.memory.grace", "Grace", "GraceConfig", ROUTED),
    "defer": ("lib.editors.memory.defer", "Defer", "DeferConfig", ROUTED),
    "elder": ("lib.editors.adapters.elder", "Elder", "ElderConfig", ROUTED),
    "lora": ("lib.editors.adapters.lora", "Lora", "LoraConfig", WEIGHTS),
    "malmen": ("lib.editors.hypernet.malmen", "Malmen", "MalmenConfig", NETWORK),
    "mend": ("lib.editors.hypernet.malmen", "Mend", "MendConfig", NETWORK),
    "serac": ("lib.editors.memory.serac", "Serac", "SeracConfig", MEMORY),
    "t_patcher": ("lib.editors.memory.t_patcher", "TPatcher", "TPatcherConfig", ROUTED),
    "wilke": ("lib.editors.locate.rome", "Wilke", "WilkeConfig", WEIGHTS),
    "ft": ("lib.editors.finetune", "FineTune", "FtConfig", WEIGHTS),
    "ft_l": ("lib.editors.finetune", "FtL", "FtLConfig", WEIGHTS),
    "ft_epochs": ("lib.editors.finetune", "FineTuneEpochs", "FtEpochsConfig", WEIGHTS),
}


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


def build(kind: str, backbone: Backbone, config: dict[str, Any], **resources: Any) -> Editor:
    """An editor on a backbone from plain values (as a YAML file or a notebook gives them).

    `resources` are caches and texts by name; the editor gets those it declares in `needs`, None
    where one is missing.
    """
    editor = class_of(kind)
    module = importlib.import_module(module_of(kind))
    configuration = _configure(kind, getattr(module, REGISTRY[kind][2]), config)
    return editor(backbone, configuration, **{name: resources.get(name) for name in editor.needs})


def _configure(kind: str, cls: type, values: dict[str, Any]) -> EditorConfig:
    fields = typing.get_type_hints(cls)
    unknown = set(values) - set(fields)
    if unknown:
        known = ", ".join(field.name for field in dataclasses.fields(cls))
        raise EditorError(f"{kind} has no setting {sorted(unknown)}; it has {known}")
    return cls(**{name: _typed(fields[name], value) for name, value in values.items()})


def _typed(annotation: Any, value: Any) -> Any:
    """A YAML value as its field wants it: mappings become sites, lists become tuples."""
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    options = typing.get_args(annotation) if union else (annotation,)
    if isinstance(value, dict) and Site in options:
        return Site(**value)
    for option in options:
        if isinstance(value, list) and typing.get_origin(option) is tuple:
            item = typing.get_args(option)[0]
            return tuple(_typed(item, one) for one in value)
    return value
