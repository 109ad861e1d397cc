"""Figures on disk (SVG, PNG, CSV) and inside a page, where nothing may come from a network."""

import contextlib
import hashlib
import html
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from lib.atomic import write_bytes, write_text
from lib.figure_style import Plot, gathered, legend_below, use_style
from lib.svg import compact, shared_styles

_PIXELS = 96 / 72  # CSS pixels per typographic point
_SMALLEST = 0.80  # an inline figure shrinks no further; narrower screens scroll it
_NARROW = 4.2  # inches: the width of the stacked drawing that phones get


@dataclass(frozen=True)
class SavedFigure:
    """A figure on disk (`svg`, `png`, `csv` or None) that notebooks show as inline SVG."""

    svg: Path
    png: Path
    csv: Path | None
    markup: str

    def _repr_html_(self) -> str:
        return self.markup


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

    `alt` says in words what the drawing shows. `caption` precedes the plot's own facts (n, seeds,
    interval, model). Links to the files are relative to `page_folder` (default: `folder`'s parent).
    """
    if not alt.strip():
        raise ValueError(f"figure {name}: write a text alternative (alt)")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"figure name {name!r}: use letters, digits, - and _ only")
    folder = Path(folder)
    if isinstance(figure, Plot):
        data = figure.data if data is None else data
        caption = " ".join(part for part in (caption, figure.caption) if part)
        figure = figure.figure
    text, png = _svg(figure, name), _png(figure)
    drawing = _inline(text, name, alt)
    if figure.get_label() == "panels":
        with _stacked(figure):
            narrow = _inline(_svg(figure, name), f"{name}-narrow", alt)
        drawing = f'<div class="wide">{drawing}</div><div class="narrow">{narrow}</div>'
    svg_path, png_path = folder / f"{name}.svg", folder / f"{name}.png"
    write_text(svg_path, _alone(text, name, alt))
    write_bytes(png_path, png)
    csv_path = None
    if data is not None:
        csv_path = folder / f"{name}.csv"
        write_text(csv_path, data.to_csv(index=False))
    base = Path(page_folder) if page_folder is not None else folder.parent
    links = [
        f'<a href="{html.escape(os.path.relpath(path, base))}">{kind}</a>'
        for path, kind in ((csv_path, "numbers (CSV)"), (svg_path, "SVG"), (png_path, "PNG"))
        if path is not None
    ]
    markup = (
        f'<figure class="figure"><div class="drawing scroll" role="region" tabindex="0" '
        f'aria-label="Figure, scrolls sideways on narrow screens">{drawing}</div>'
        f"<figcaption>{html.escape(caption)} "
        f'<span class="files">{" · ".join(links)}</span></figcaption></figure>'
    )
    return SavedFigure(svg_path, png_path, csv_path, markup)


def _svg(figure: Figure, name: str) -> str:
    with use_style():
        mpl.rcParams["svg.hashsalt"] = name
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    # The layout was measured in DejaVu Sans; browsers without it get the nearest wide face.
    text = stream.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    text = text.replace("Verdana, sans-serif, sans-serif", "Verdana, sans-serif")
    return compact(text[text.index("<svg") :])


def _png(figure: Figure) -> bytes:
    """The drawing that `_svg` has just laid out, as it stands: no second layout."""
    engine = figure.get_layout_engine()
    figure.set_layout_engine(None)
    try:
        with use_style():
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=192, metadata={"Software": None})
    finally:
        figure.set_layout_engine(engine)
    return stream.getvalue()


def _described(text: str, key: str, alt: str) -> str:
    """The SVG with a title and a description that screen readers announce."""
    ids = f"{key}-title"
    described = f'<title id="{ids}">{html.escape(alt)}</title>'
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<title>.*?</title>", "", text, flags=re.DOTALL)
    return re.sub(
        r"<svg\b([^>]*)>", rf'<svg\1 role="img" aria-labelledby="{ids}">\n {_literal(described)}',
        text, count=1,
    )  # fmt: skip


def _alone(text: str, name: str, alt: str) -> str:
    """`text` as a file of its own."""
    text, rules = shared_styles(text, "svg")
    return _described(text.replace("</style>", f"{rules}</style>", 1), name, alt)


def _inline(text: str, name: str, alt: str) -> str:
    """`text` for inclusion in a page: own ids, size in CSS, nothing that other figures can hit."""
    digest = hashlib.sha256(f"{name}\0{alt}\0{text}".encode()).hexdigest()[:8]
    key = f"f{digest}"
    names = dict.fromkeys(re.findall(r'\bid="([^"]+)"', text))
    own = {name: f"{key}-{i}" for i, name in enumerate(names)}
    text = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{own[m[1]]}"', text)
    text = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{own[m[1]]})", text)
    text = re.sub(r'href="#([^"]+)"', lambda m: f'href="#{own[m[1]]}"', text)
    # A <style> inside inline SVG applies to the whole page: keep its rules in this figure.
    text, rules = shared_styles(text, f".{key}")
    text = re.sub(r'<style type="text/css">.*?</style>', _style(key, rules), text, flags=re.DOTALL)
    width = float(re.search(r'width="([\d.]+)pt"', text)[1]) * _PIXELS
    style = f"width:100%;max-width:{width:.0f}px;min-width:{width * _SMALLEST:.0f}px;height:auto"
    head = f'<svg class="{key}" style="{style}"'
    text = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", text, count=2)
    text = text.replace("<svg", head, 1)
    return _described(text, key, alt)


def _style(key: str, rules: str) -> str:
    return f"<style>.{key} *{{stroke-linejoin:round;stroke-linecap:butt}}{rules}</style>"


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")


@contextlib.contextmanager
def _stacked(figure: Figure) -> Iterator[None]:
    """The panels one below the other on a narrow sheet while the block lasts."""
    width, height = figure.get_size_inches()
    axes = [place for place in figure.axes if place.axison]
    spare = [place for place in figure.axes if not place.axison]
    specs = [place.get_subplotspec() for place in axes]
    rows = specs[0].get_gridspec().nrows
    hidden = [*spare, *figure.legends]
    for artist in hidden:
        artist.set_visible(False)
        artist.set_in_layout(False)
    handles, labels = gathered(axes)
    taller = len(axes) / rows if len(axes) > 1 else _NARROW / width
    figure.set_size_inches(_NARROW, height * taller + 0.17 * len(labels))
    grid = figure.add_gridspec(len(axes), 1)
    for place, spec in zip(axes, grid, strict=True):
        place.set_subplotspec(spec)
    with use_style():
        below = legend_below(figure, handles, labels)
    try:
        yield
    finally:
        if below is not None:
            below.remove()
        for place, spec in zip(axes, specs, strict=True):
            place.set_subplotspec(spec)
        for artist in hidden:
            artist.set_visible(True)
            artist.set_in_layout(True)
        figure.set_size_inches(width, height)
