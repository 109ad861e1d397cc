"""Hashes that decide whether a stored result is still the result of this code and this data."""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path

from lib.storage.atomic import digest

LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy")


@functools.cache
def _parts(module: str) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files of a module, which are its source and the data files beside it that the source
    names, and the modules of this project that it imports."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return (), ()
    source = Path(spec.origin)
    found: set[str] = set()
    named: set[object] = set()
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from lib import x` names modules, `from lib.x import y` may name objects
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant):
            named.add(node.value)
    ours = {name for name in found if name.split(".")[0] == "lib"}
    beside = (file for file in source.parent.iterdir() if file.name in named and file.is_file())
    data = sorted(file for file in beside if file.suffix != ".py")
    return (source, *data), tuple(sorted(name for name in ours if _is_module(name)))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def code(*modules: str) -> str:
    """sha256 over the sources of some modules and of every project module that they import, and
    over the data files that these modules name, such as `relations.yaml`."""
    pending, seen = list(modules), set()
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += _parts(name)[1]
    return own(*sorted(seen))


def own(*modules: str) -> str:
    """sha256 over the sources of some modules and the data files that they name, whatever they
    import: for what is dear to make again and known to be decided there."""
    total = hashlib.sha256()
    for name in modules:
        for file in _parts(name)[0]:
            total.update(f"{name}:{file.name}".encode() + file.read_bytes())
    return total.hexdigest()


def content_hash(value: object) -> str:
    """sha256 (hex) of dataclasses, mappings and sequences written as canonical JSON."""

    def plain(item: object) -> object:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        raise TypeError(f"{type(item).__name__} has no canonical form")

    text = json.dumps(value, default=plain, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the libraries that can move a result."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def folder(path: Path) -> str:
    """sha256 over names and contents of all files below a folder."""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            total.update(f"{file.relative_to(path)}:{digest(file)}\n".encode())
    return total.hexdigest()
