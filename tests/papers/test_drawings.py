"""Drawings are SVG files that stand alone, and every one is shown by a notebook."""

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from lib.report import page
from lib.runs.settings import ROOT

DRAWINGS = sorted(ROOT.glob("papers/*/drawings/*.svg"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SVG = "{http://www.w3.org/2000/svg}"


def shown(notebook: Path) -> dict[str, str]:
    """The drawings that a notebook shows: their names and what it says they show."""
    found = {}
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        code = "".join(cell["source"])
        if "page.drawing(" in code:
            name = re.search(r'page\.drawing\(study, "([^"]+)"', code)[1]
            found[name] = re.search(r'^text = "([^"]+)"', code, re.MULTILINE)[1]
    return found


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_drawing_stands_alone_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and [child.tag for child in root[:2]] == [
        f"{SVG}title", f"{SVG}desc",
    ]  # fmt: skip
    assert root[0].text == shown(ROOT / "notebooks" / f"{path.parts[-3]}.ipynb")[path.stem]
    assert len(root[1].text) > 100
    named = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(named) == len(set(named))
    used = set(re.findall(r"url\(([^)]+)\)", text))
    for element in root.iter():
        kind = element.tag.removeprefix(SVG)
        assert kind not in ("script", "image", "foreignObject", "metadata", "a"), kind
        assert not any(attribute.startswith("on") for attribute in element.attrib)
        used |= {value for key, value in element.attrib.items() if key.endswith("href")}
    assert used == {f"#{name}" for name in named}  # nothing outside, and nothing unused
    assert "@import" not in text
    assert root.get("width") == "590.4pt"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_drawing_is_shown_and_every_one_shown_is_there(notebook: Path) -> None:
    found = {path.stem for path in DRAWINGS if path.parts[-3] == notebook.stem}
    assert found == set(shown(notebook))


def test_drawings_are_copied_beside_the_page_and_shown_like_figures(tmp_path: Path, monkeypatch):
    seen = []
    monkeypatch.setattr(page, "display", seen.append)
    study = SimpleNamespace(paper="malmen", folder=tmp_path)
    page.drawing(study, "two-facts", "Two & more", "Arithmetic.")
    page.drawing(study, "stages", "Stages")
    copies = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    originals = (ROOT / "papers/malmen/drawings").iterdir()
    assert copies == {f"malmen-{path.name}": path.read_bytes() for path in originals}
    numbers, plain = (one.markup for one in seen)
    told = html.escape(ElementTree.fromstring(copies["malmen-two-facts.svg"])[1].text)
    assert f'src="figures/malmen-two-facts.svg" alt="Two &amp; more. {told}" width="787"' in numbers
    assert "<figcaption>Two &amp; more. Arithmetic. " in numbers
    assert 'href="figures/malmen-two-facts.csv">numbers' in numbers and "PNG" not in numbers
    assert "<figcaption>Stages. A drawing; no data. " in plain and "CSV" not in plain
