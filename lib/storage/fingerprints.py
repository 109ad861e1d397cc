"""Hashes that decide whether a stored result is still the result of this code and this data."""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Iterable
from pathlib import Path

import psutil

from lib.errors import StoreError
from lib.storage.atomic import digest

# Modules that keep files and read data: what they give to others is told by its own content.
TOLD = (
    "lib.storage.archives", "lib.storage.atomic", "lib.storage.cache", "lib.storage.fingerprints",
    "lib.data.corpus", "lib.data.datasets", "lib.data.embedded", "lib.data.invented",
    "lib.data.published", "lib.data.streams", "lib.data.training",
)  # fmt: skip
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy")


@functools.cache
def _parts(module: str) -> tuple[str, tuple[Path, ...], tuple[str, ...]]:
    """What a module says, the data files beside it that it names, and the modules of this project
    that it imports."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return "", (), ()
    source = Path(spec.origin)
    tree = _without_docstrings(ast.parse(source.read_text("utf-8")))
    found: set[str] = set()
    named: set[object] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from lib import x` names modules, `from lib.x import y` may name objects
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant):
            named.add(node.value)
    ours = {name for name in found if name.split(".")[0] in ("lib", "papers")}
    beside = (file for file in source.parent.iterdir() if file.name in named and file.is_file())
    data = sorted(file for file in beside if file.suffix != ".py")
    return ast.dump(tree), tuple(data), tuple(sorted(name for name in ours if _is_module(name)))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """The tree without statements that are a constant alone: they do nothing when it runs."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_constant(line)]
    return tree


def _is_constant(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def code(*modules: str, apart: tuple[str, ...] = ()) -> str:
    """sha256 over what some modules and every project module that they import do, and over the data
    files that these name, such as `relations.yaml`. Comments, docstrings and layout do not count.

    Modules in `apart`, or below a package there, are left out with what they alone import: what
    they make is told by its own content.
    """
    pending, seen = list(modules), set()
    while pending:
        name = pending.pop()
        if name not in seen and not any(f"{name}.".startswith(f"{other}.") for other in apart):
            seen.add(name)
            pending += _parts(name)[2]
    return own(*sorted(seen))


def own(*modules: str) -> str:
    """The same over some modules alone, whatever they import: for what is dear to make again and
    known to be decided there."""
    total = hashlib.sha256()
    for name in modules:
        said, files, _ = _parts(name)
        total.update(f"{name}:{said}".encode())
        for file in files:
            total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()


def content_hash(value: object) -> str:
    """sha256 (hex) of dataclasses, mappings and sequences written as canonical JSON; a dataclass's
    field that is None is no part of it, so that a new one changes no hash."""

    def given(pairs: list[tuple[str, object]]) -> dict[str, object]:
        return {name: value for name, value in pairs if value is not None}

    def plain(item: object) -> object:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item, dict_factory=given)
        raise TypeError(f"{type(item).__name__} has no canonical form")

    text = json.dumps(value, default=plain, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the libraries that can move a result."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def processor() -> str:
    """Name and cores of the processor, whose sums round in their own way."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {psutil.cpu_count()} cores"
    return f"{platform.machine()}, {psutil.cpu_count()} cores"


def files(paths: Iterable[Path], folder: Path) -> str:
    """sha256 over contents of files and their names below a folder, in any order."""
    total = hashlib.sha256()
    for file in sorted(paths):
        try:
            total.update(f"{file.relative_to(folder)}:{digest(file)}\n".encode())
        except OSError as error:
            raise StoreError(f"cannot read {file}: {error.strerror}. Make it readable.") from error
    return total.hexdigest()


def folder(path: Path) -> str:
    """The same over all files below a folder."""
    return files(filter(Path.is_file, path.rglob("*")), path)
