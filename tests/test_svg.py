"""A small SVG draws what the large one drew."""

import re

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from lib.figure_files import save
from lib.svg import compact, shared_styles

DRAWN = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><!-- of a tool -->
<defs><style type="text/css">*{stroke-linejoin: round}</style><clipPath id="p1"><path d="M 0 0
L 9 9
z
"/></clipPath></defs>
<g id="figure_1"><g id="axes_1"><g transform="scale(2)">
<path id="m1" d="M 1.23456 2 L -3.004 4.5" clip-path="url(#p1)" style="fill: none; stroke: #1c1f24"/></g>
<text style="font-size: 9px; font-family: 'A B', serif" transform="rotate(-0 1 2)" x="1">two  1.23456 "words"</text>
<text style="font-size: 9px; font-family: 'A B', serif" transform="rotate(-90 1 2)">M 1 2</text>
<use xlink:href="#m1" x="0.10049"/></g></g></svg>"""  # noqa: E501


def test_names_breaks_and_digits_go_and_the_drawing_stays() -> None:
    small = compact(DRAWN)
    assert "<!--" not in small and "figure_1" not in small and "\n" not in small
    assert 'id="p1"' in small and 'id="m1"' in small  # something refers to them
    assert 'd="M0 0L9 9z"' in small and 'd="M1.23 2L-3 4.5"' in small and 'x="0.1"' in small
    assert small.count("<g") == 1 == small.count("</g>") and "scale(2)" in small
    assert "rotate(-0" not in small and "rotate(-90 1 2)" in small
    assert '>two  1.23456 "words"<' in small and ">M 1 2<" in small  # text is left alone
    assert compact(small) == small


def test_a_style_used_twice_becomes_a_class() -> None:
    text, rules = shared_styles(compact(DRAWN), ".f1")
    assert rules == ".f1 .s0{font-size:9px;font-family:'A B', serif}"
    assert text.count('class="s0"') == 2 and 'style="fill:none;stroke:#1c1f24"' in text


def test_circles_become_arcs_and_other_curves_stay() -> None:
    from matplotlib.path import Path as Curve

    def drawn(squeeze: float) -> str:
        points = Curve.circle((100.0, 1000.0), 3.0).vertices
        steps = [f"{100 + (x - 100) * squeeze:f} {y:f}" for x, y in points]
        curves = "".join(f"C {' '.join(steps[i : i + 3])} " for i in range(1, 25, 3))
        return compact(f'<path d="M {steps[0]} {curves}z"/>')

    assert drawn(1.0) == '<path d="M97 1000a3 3 0 1 0 6 0a3 3 0 1 0-6 0z"/>'
    assert drawn(0.5).count("C") == 8


def test_saved_figures_are_small_and_keep_their_texts(tmp_path) -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    axes.bar([1, 2, 3], [1, 2, 3], hatch="..")
    axes.set_title("A title")
    saved = save(figure, tmp_path, "bars", "three bars")
    text = saved.svg.read_text("utf-8")
    assert "A title" in text and len(text) < 20_000 and len(saved.markup) < 20_000
    # What is referred to is there, in the file and on the page.
    for drawing in (text, saved.markup):
        names = set(re.findall(r'\bid="([^"]+)"', drawing))
        assert set(re.findall(r"url\(#([^)]+)\)", drawing)) <= names
        assert set(re.findall(r'href="#([^"]+)"', drawing)) <= names
        classes = {
            name for group in re.findall(r'class="(s\d+)"', drawing) for name in group.split()
        }
        assert classes and all(f".{name}{{" in drawing for name in classes)


@pytest.mark.parametrize("fonttype", ["none", "path"])
def test_what_matplotlib_writes_stays_well_formed(tmp_path, fonttype: str) -> None:
    from io import StringIO
    from xml.etree import ElementTree

    figure, stream = Figure(figsize=(3, 2)), StringIO()
    figure.add_subplot().plot([1, 2, 3], [3, 1, 2], "o--", label="a < b & c")
    figure.legend()
    with mpl.rc_context({"svg.fonttype": fonttype}):
        figure.savefig(stream, format="svg")
    text = stream.getvalue()
    root = ElementTree.fromstring(compact(text[text.index("<svg") :]))
    drawn = [node for node in root.iter() if node.tag.rpartition("}")[2] in ("path", "use")]
    before = ElementTree.fromstring(text[text.index("<svg") :])
    assert len(drawn) == sum(n.tag.rpartition("}")[2] in ("path", "use") for n in before.iter())
