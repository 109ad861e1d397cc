"""A drawing's SVG made small: what is drawn stays the same to a hundredth of a point.

Matplotlib names every group, repeats every style and breaks every path into lines; a report that
holds thirty drawings would weigh more in that than in all else together.
"""

import re
from collections import Counter

_TAG = re.compile(r"<[^!?][^>]*>")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_GROUP = re.compile(r"<g(?:\s[^>]*)?/?>|</g>")
_PATH = re.compile(r'\sd="([^"]*)"')
_COMMAND = re.compile(r"\s*([MLHVCSQTAZmlhvcsqtaz])\s*")
_CIRCLE = re.compile(r"M(?:-?[\d.]+ -?[\d.]+)((?:C(?:-?[\d.]+ ){5}-?[\d.]+){8})z")
_NEAR = 0.03  # points: two roundings
_STYLE = re.compile(r'\sstyle="([^"]*)"')


def compact(text: str) -> str:
    """The SVG without comments, line breaks, names that nothing refers to and groups that hold
    nothing together; numbers rounded to two decimals."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = _TAG.sub(lambda tag: _tidy(tag[0]), text)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r'\sid="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r">\s+<", "><", text)
    return _without_bare_groups(text)


def _without_bare_groups(text: str) -> str:
    opened: list[str] = []

    def kept(match: re.Match[str]) -> str:
        tag = match[0]
        if tag == "</g>":
            return "" if opened.pop() == "<g>" else tag
        if not tag.endswith("/>"):
            opened.append(tag)
        return "" if tag in ("<g>", "<g/>") else tag

    return _GROUP.sub(kept, text)


def _tidy(tag: str) -> str:
    tag = re.sub(r'\stransform="rotate\(-?0(?: [^)]*)?\)"', "", tag)
    tag = _NUMBER.sub(lambda m: _short(float(m[0])), tag)
    tag = _PATH.sub(lambda m: f' d="{_path(m[1])}"', tag)
    return _STYLE.sub(lambda m: f' style="{_tight(m[1])}"', tag)


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _path(steps: str) -> str:
    return _CIRCLE.sub(_arcs, _COMMAND.sub(_letter, steps).strip())


def _arcs(match: re.Match[str]) -> str:
    """Eight curves that make a circle as two arcs; other curves as they are."""
    numbers = [float(x) for x in re.findall(r"-?[\d.]+", match[1])]
    ends = [complex(x, y) for x, y in zip(numbers[4::6], numbers[5::6], strict=True)]
    middle = sum(ends) / len(ends)
    radii = [abs(end - middle) for end in ends]
    if max(radii) - min(radii) > _NEAR:
        return match[0]
    radius = sum(radii) / len(radii)
    left, y, r, wide = map(_short, (middle.real - radius, middle.imag, radius, 2 * radius))
    return f"M{left} {y}a{r} {r} 0 1 0 {wide} 0a{r} {r} 0 1 0-{wide} 0z"


def _letter(command: re.Match[str]) -> str:
    return command[1]


def _tight(style: str) -> str:
    return re.sub(r"([:;])\s+", r"\1", style.strip())


def shared_styles(text: str, scope: str) -> tuple[str, str]:
    """The SVG with every style that occurs twice as a class, and the rules of these classes for
    elements inside `scope` (a CSS selector)."""
    counts = Counter(_STYLE.findall(text))
    names = {style: f"s{i}" for i, style in enumerate(s for s, n in counts.items() if n > 1)}

    def named(match: re.Match[str]) -> str:
        return f' class="{names[match[1]]}"' if match[1] in names else match[0]

    rules = "".join(f"{scope} .{name}{{{style}}}" for style, name in names.items())
    return _STYLE.sub(named, text), rules
