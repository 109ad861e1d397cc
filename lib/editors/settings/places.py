"""Places in a backbone, written in one line: "blocks 13-17 mlp_out", "encoder 5-6 mlp_out"."""

import re
from typing import Any

from lib.storage.checked import FaultyError

# Keys of a configuration that name layers, and whether they name several.
LAYERS = {"site": False, "router": False, "sensor": False, "sites": True}
STACKS = ("encoder", "decoder")
FORMS = (
    'write "blocks 13-17 mlp_out", "block 3 attn_query+attn_value" or '
    '"encoder 5-6 mlp_out, decoder 5-6 mlp_out"'
)
GROUP = re.compile(r"(blocks?|encoder|decoder) (\d+)(?:-(\d+))? (\w+(?:\+\w+)*)")
SPAN = re.compile(r"(\d+)-(\d+)")


def spelled_out(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with every place as the editors take it: layers as mappings of part, block
    and stack, `blocks` as a list of numbers. Raises FaultyError for a line that names none."""
    return {key: _spelled_out(key, value) for key, value in config.items()}


def _spelled_out(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if key in LAYERS:
        found = layers(value)
        if found is None:
            raise FaultyError([((key,), f"{value!r} names no layers; {FORMS}")])
        if not LAYERS[key] and len(found) != 1:
            raise FaultyError([((key,), f"{value!r} names {len(found)} layers; name one")])
        return found if LAYERS[key] else found[0]
    if key == "blocks" and (span := SPAN.fullmatch(value)):
        return list(_numbers(*span.groups()))
    return value


def layers(line: str) -> list[dict[str, Any]] | None:
    """The layers of a line, block by block ("encoder 6-7 mlp_in+mlp_out, decoder 7 mlp_out");
    None if it names none."""
    matches = [GROUP.fullmatch(group) for group in line.split(", ")]
    if None in matches:
        return None
    return [
        {"part": part, "block": block} | ({"stack": where} if where in STACKS else {})
        for where, first, last, parts in (match.groups() for match in matches)
        for block in _numbers(first, last)
        for part in parts.split("+")
    ]


def _numbers(first: str, last: str | None) -> range:
    return range(int(first), int(last or first) + 1)
