"""Figures on disk (SVG, PNG, CSV), and the markup that shows them in a page beside them."""

import contextlib
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

from lib.report.figures.style import Plot, gathered, legend_below, use_style
from lib.report.pages.notebook import PAGE_MARKUP, with_pictures
from lib.storage.atomic import write_bytes, write_text

_PIXELS = 96 / 72  # CSS pixels per typographic point
_NARROW = 4.2  # inches: the width of the stacked drawing that phones get


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

    Panels also get `name`-narrow.svg, one below the other, for phones. `alt` says in words what the
    drawing shows. `caption` precedes the plot's own facts (n, seeds, interval, model). Links to
    the files are relative to `page_folder` (default: `folder`'s parent).
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
    svg, png, csv, narrow = folder / f"{name}.svg", folder / f"{name}.png", None, None
    write_text(svg, _svg(figure, name, alt))
    write_bytes(png, _png(figure))
    if figure.get_label() == "panels":
        narrow = folder / f"{name}-narrow.svg"
        with _stacked(figure):
            write_text(narrow, _svg(figure, name, alt))
    if data is not None:
        csv = folder / f"{name}.csv"
        write_text(csv, data.to_csv(index=False))
    return _saved(svg, narrow, png, csv, alt, caption, Path(page_folder or folder.parent))


def save_drawing(source: Path, folder: Path, name: str, alt: str, caption: str) -> SavedFigure:
    """Copy a drawing that was made by hand, `source` (.svg), into `folder` as `name`, with its
    narrow SVG and its numbers (.csv) where these lie beside it; shown like a figure."""
    copies: list[Path | None] = []
    for end in (".svg", "-narrow.svg", ".csv"):
        original = source.with_name(f"{source.stem}{end}")
        if end != ".svg" and not original.is_file():
            copies.append(None)
            continue
        copies.append(folder / f"{name}{end}")
        write_bytes(copies[-1], original.read_bytes())
    svg, narrow, csv = copies
    return _saved(svg, narrow, None, csv, alt, caption, folder.parent)


def _saved(
    svg: Path, narrow: Path | None, png: Path | None, csv: Path | None,
    alt: str, caption: str, base: Path,
) -> SavedFigure:  # fmt: skip
    links = [
        f'<a href="{_address(path, base)}">{kind}</a>'
        for path, kind in ((csv, "numbers (CSV)"), (svg, "SVG"), (png, "PNG"))
        if path is not None
    ]
    source = ""
    if narrow is not None:
        address = _address(narrow, base)
        source = f'<source media="(max-width: 40rem)" srcset="{address}" {_size(narrow)}>'
    markup = (
        f'<figure class="figure"><picture>{source}<img src="{_address(svg, base)}" '
        f'alt="{html.escape(alt)}" {_size(svg)} loading="lazy"></picture>'
        f"<figcaption>{html.escape(caption)} "
        f'<span class="files">{" · ".join(links)}</span></figcaption></figure>'
    )
    return SavedFigure(svg, png, csv, markup, base)


def _address(path: Path, base: Path) -> str:
    return html.escape(Path(os.path.relpath(path, base)).as_posix())


def _size(svg: Path) -> str:
    found = re.search(r'<svg[^>]*? width="([\d.]+)pt" height="([\d.]+)pt"', svg.read_text("utf-8"))
    width, height = (round(float(size) * _PIXELS) for size in found.groups())
    return f'width="{width}" height="{height}"'


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The SVG with `alt` as its title; its texts stay texts."""
    with use_style():
        mpl.rcParams["svg.hashsalt"] = name
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Title": alt})
    # The layout was measured in DejaVu Sans; browsers without it get the nearest wide face.
    text = stream.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text[text.index("<svg") :]


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
