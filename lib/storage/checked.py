"""Plain values, as files hold them, checked against a type: every fault with its place and the
nearest name."""

import dataclasses
import difflib
import functools
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_json

FORBID = ConfigDict(extra="forbid")
"""A dataclass with this as `__pydantic_config__` refuses keys that are none of its fields."""

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
MISSING = ("missing", "missing_argument")
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")

Place = tuple[str | int, ...]


class Described(BaseModel):
    """A mapping of which every key is known."""

    model_config = FORBID


class FaultyError(ValueError):
    """Values that are not of their type. `faults`: where (dotted), and what is wrong there."""

    def __init__(self, faults: Sequence[tuple[Place, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{dotted(path)}: {text}" for path, text in self.faults))


def dotted(path: Place) -> str:
    """A path as messages write it: "settings.zsre.stream.n_edits"."""
    return ".".join(map(str, path))


def checked(wanted: Any, values: Any) -> Any:
    """The plain values as an instance of the type `wanted`: a `Described`, a dataclass, a union.

    Nothing is converted but lists to tuples and mappings to what they describe: text is no number
    and 2.5 no whole one. Raises FaultyError with every fault.
    """
    try:
        return _adapter(wanted).validate_json(to_json(values), strict=True)
    except ValidationError as error:
        told: dict[Place, list[str]] = {}
        for fault in error.errors(include_url=False):
            path = _within(values, fault["loc"])
            if fault["type"] in MISSING:
                path = (*path, fault["loc"][-1])
            told.setdefault(path, []).append(_said(fault, _names(wanted, path[:-1])))
        # What every member of a union says of the whole tells less than what one says of a part.
        above = {path[:depth] for path in told for depth in range(len(path))}
        faults = [(path, ", or ".join(dict.fromkeys(texts))) for path, texts in told.items()]
        raise FaultyError([fault for fault in faults if fault[0] not in above]) from None


@functools.cache
def _adapter(wanted: Any) -> TypeAdapter:
    return TypeAdapter(wanted)


def nearest(name: str, known: Iterable[str]) -> str:
    """What an error says about a name that is none of `known`: the nearest, or all of them."""
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"


def _within(values: Any, steps: Iterable[str | int]) -> Place:
    """The steps of an error that lead through the values, without the names of union members."""
    path: list[str | int] = []
    for step in steps:
        if isinstance(values, Mapping):
            by_text = {str(key): item for key, item in values.items()}
            if str(step) in by_text:
                path.append(step)
                values = by_text[str(step)]
        elif isinstance(values, Sequence) and not isinstance(values, str) and type(step) is int:
            path.append(step)
            values = values[step]
    return tuple(path)


def _said(fault: Mapping[str, Any], known: Iterable[str]) -> str:
    """One fault in words, with the remedy where there is one."""
    kind, given = fault["type"], fault["input"]
    if kind in UNKNOWN:
        return f"no such key; {nearest(str(fault['loc'][-1]), known)}"
    if kind in MISSING:
        return "is missing"
    if kind == "literal_error":
        return f"{given!r} is none of {fault['ctx']['expected']}"
    shown = textwrap.shorten(repr(given), 60, placeholder=" ...")
    text = f"{fault['msg'].replace('Input should', 'should', 1)}, not {shown}"
    return (
        f"{text}; no quotes, and 1.0e-2 for 1e-2, which YAML reads as a word"
        if _is_number(given)
        else text
    )


def _is_number(given: Any) -> bool:
    """Whether a text looks like a number."""
    return isinstance(given, str) and NUMBER.fullmatch(given) is not None


def _names(wanted: Any, path: Place) -> list[str]:
    """The keys that a mapping at this path of a type may have."""
    found = [wanted]
    for step in path:
        found = [inner for one in found for option in _options(one) for inner in _at(option, step)]
    options = [option for one in found for option in _options(one)]
    return [name for option in options for name in _fields(option)]


def _options(wanted: Any) -> list[Any]:
    """The members of a union, without annotations; of another type the type."""
    if typing.get_origin(wanted) is typing.Annotated:
        return _options(typing.get_args(wanted)[0])
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):
        return [one for member in typing.get_args(wanted) for one in _options(member)]
    return [wanted]


def _at(wanted: Any, step: str | int) -> list[Any]:
    """The types of what stands at one step below a type."""
    inside = typing.get_args(wanted)
    if typing.get_origin(wanted) in (dict, Mapping):
        return [inside[1]]
    if inside:
        return [inside[0]]
    fields = _fields(wanted)
    return [fields[step]] if step in fields else []


def _fields(wanted: Any) -> dict[str, Any]:
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        return {name: field.annotation for name, field in wanted.model_fields.items()}
    if dataclasses.is_dataclass(wanted):
        hints = typing.get_type_hints(wanted)
        return {field.name: hints[field.name] for field in dataclasses.fields(wanted)}
    return {}
