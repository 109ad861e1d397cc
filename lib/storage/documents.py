"""YAML files whose values may bring a source: read, laid over each other, made plain."""

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib.errors import UsageError
from lib.storage.checked import FaultyError


@dataclass(frozen=True)
class Sourced:
    """A value as a YAML file states it: where, what, and where it was seen."""

    path: str
    value: Any
    source: str


@functools.cache
def read(path: Path) -> Any:
    """The file's content, parsed once and for all: do not write to it. Raises UsageError."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(path.read_text("utf-8"), Loader=loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} cannot be read as YAML, mend the file: {error}") from error


def merged(base: Any, over: Any) -> Any:
    """`base` with the mappings of `over` laid over it; other values, and those with a source,
    replace."""
    for node in (base, over):
        if not isinstance(node, dict) or "value" in node:
            return copy.deepcopy(over)
    return {
        key: merged(base[key], over[key])
        if key in base and key in over
        else copy.deepcopy(over.get(key, base.get(key)))
        for key in [*base, *(key for key in over if key not in base)]
    }


def plain(node: Any, path: str = "", found: list[Sourced] | None = None) -> Any:
    """The tree with every {value, source} replaced by its value; `found` collects them.

    Raises FaultyError for a pair with one of the two keys alone.
    """
    if isinstance(node, dict):
        if set(node) == {"value", "source"}:
            if found is not None:
                found.append(Sourced(path, node["value"], node["source"]))
            return node["value"]
        if len(node) == 2 and ("value" in node) != ("source" in node):
            wrong = next(key for key in node if key not in ("value", "source"))
            right = "source" if "value" in node else "value"
            place = (*filter(None, path.split(".")), wrong)
            raise FaultyError([(place, f"no such key; did you mean {right}?")])
        return {key: plain(item, f"{path}.{key}".strip("."), found) for key, item in node.items()}
    if isinstance(node, list):
        return [plain(item, path, found) for item in node]
    return node
