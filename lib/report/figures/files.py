"""Figures on disk (SVG, PNG, CSV), and the markup that shows them in a page beside them."""

import html
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from lib.report.figures.style import Plot, use_style
from lib.report.pages.notebook import PAGE_MARKUP, with_pictures
from lib.storage.atomic import write_bytes, write_text

_PIXELS = 96 / 72  # CSS pixels per typographic point
# The layout was measured in DejaVu Sans; browsers without it get the nearest wide face.
_FONT = "text{font-family:'DejaVu Sans',Verdana,sans-serif}"
_NAMED = " font-family: 'DejaVu Sans';"
_PLACES = ("d", "x", "y", "width", "height", "transform")
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class SavedFigure:
    """A figure on disk (`svg`, `png` and `csv`, or None) and what shows it in a page.

    `markup` names the files relative to `page_folder`. A notebook, which may lie anywhere, shows
    the same with the pictures inside.
    """

    svg: Path
    png: Path | None
    csv: Path | None
    markup: str
    page_folder: Path

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        inside = with_pictures(self.markup, self.page_folder)
        return {PAGE_MARKUP: self.markup, "text/html": inside}


def save(
    figure: Figure | Plot,
    folder: Path,
    name: str,
    alt: str,
    data: pd.DataFrame | None = None,
    *,
    caption: str = "",
    page_folder: Path | None = None,
) -> SavedFigure:
    """Write `name`.svg, .png (double size) and .csv into `folder`; returns what notebooks show.

    `alt` says in words what the drawing shows; a plot's own finding follows it. `caption` precedes
    the plot's own facts (n, seeds, interval). Links to the files are relative to `page_folder`
    (default: `folder`'s parent).
    """
    if not alt.strip():
        raise ValueError(f"figure {name}: write a text alternative (alt)")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"figure name {name!r}: use letters, digits, - and _ only")
    folder = Path(folder)
    if isinstance(figure, Plot):
        data = figure.data if data is None else data
        caption = " ".join(part for part in (caption, figure.caption) if part)
        alt = f"{alt.rstrip('.')}. {figure.finding}" if figure.finding else alt
        figure = figure.figure
    with use_style():  # one layout for all files, however often they are written
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    svg, png, csv = folder / f"{name}.svg", folder / f"{name}.png", None
    write_text(svg, _svg(figure, name, alt))
    write_bytes(png, _png(figure))
    if data is not None:
        csv = folder / f"{name}.csv"
        write_text(csv, data.to_csv(index=False))
    return _saved(svg, png, csv, alt, caption, Path(page_folder or folder.parent))


def save_drawing(source: Path, folder: Path, name: str, alt: str, caption: str) -> SavedFigure:
    """Copy a drawing that was made by hand, `source` (.svg), into `folder` as `name`, with its
    numbers (.csv) where these lie beside it; shown like a figure, with its description as
    alternative."""
    told = ElementTree.fromstring(source.read_text("utf-8")).findtext(f"{{{_SVG}}}desc")
    alt = f"{alt}. {told}" if told else alt
    svg, csv = folder / f"{name}.svg", None
    write_bytes(svg, source.read_bytes())
    numbers = source.with_suffix(".csv")
    if numbers.is_file():
        csv = folder / f"{name}.csv"
        write_bytes(csv, numbers.read_bytes())
    return _saved(svg, None, csv, alt, caption, folder.parent)


def _saved(
    svg: Path, png: Path | None, csv: Path | None, alt: str, caption: str, base: Path
) -> SavedFigure:
    links = [
        f'<a href="{_address(path, base)}">{kind}</a>'
        for path, kind in ((csv, "numbers (CSV)"), (svg, "SVG"), (png, "PNG"))
        if path is not None
    ]
    markup = (
        '<figure class="figure"><div class="scroll" role="region" tabindex="0" '
        f'aria-label="Figure, scrolls sideways"><img src="{_address(svg, base)}" '
        f'alt="{html.escape(alt)}" {_size(svg)} loading="lazy"></div>'
        f"<figcaption>{html.escape(caption)} "
        f'<span class="files">{" · ".join(links)}</span></figcaption></figure>'
    )
    return SavedFigure(svg, png, csv, markup, base)


def _address(path: Path, base: Path) -> str:
    return html.escape(Path(os.path.relpath(path, base)).as_posix())


def _size(svg: Path) -> str:
    root = ElementTree.fromstring(svg.read_text("utf-8"))
    width, height = (
        round(float(root.attrib[side].removesuffix("pt")) * _PIXELS) for side in ("width", "height")
    )
    return f'width="{width}" height="{height}"'


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The SVG with `alt` as its title; its texts stay texts, its places have one decimal, and what
    no reader needs (metadata, comments, white space, names of groups) is left out."""
    with use_style():
        mpl.rcParams["svg.hashsalt"] = name
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Title": alt})
    root = ElementTree.fromstring(stream.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for part in root.iter():
        part.text, part.tail = (part.text or "").strip(), None
        if part.tag == f"{{{_SVG}}}style":
            part.text = _FONT + part.text
        part.attrib |= {key: _short(text) for key, text in part.items() if key in _PLACES}
        if "style" in part.attrib:
            part.set("style", part.attrib["style"].replace(_NAMED, ""))
        if part.get("transform", "").startswith("rotate(-0 "):
            del part.attrib["transform"]
        if part.tag == f"{{{_SVG}}}g":  # only names of shapes are referred to
            part.attrib.pop("id", None)
    return ElementTree.tostring(root, encoding="unicode")


def _short(place: str) -> str:
    """Coordinates to a tenth of a point, without the spaces that need not be."""
    place = _NUMBER.sub(lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), place)
    return re.sub(r"\s*([A-Za-z]|$)\s*", r"\1", place)


def _png(figure: Figure) -> bytes:
    with use_style():
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=192, metadata={"Software": None})
    return stream.getvalue()
