"""Hashes that decide whether a stored result is still the result of this code and this data."""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

from lib.store import digest

LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy")


@functools.cache
def _imports(module: str) -> tuple[str, ...]:
    """The modules of this project that a module's source imports."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ()
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from lib import x` names modules, `from lib.x import y` may name objects
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in found if name.split(".")[0] == "lib"}
    return tuple(sorted(name for name in ours if _is_module(name)))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def code(*modules: str) -> str:
    """sha256 over the sources of some modules and of every project module that they import."""
    pending, seen = list(modules), set()
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += _imports(name)
    total = hashlib.sha256()
    for name in sorted(seen):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            total.update(name.encode() + Path(spec.origin).read_bytes())
    return total.hexdigest()


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
