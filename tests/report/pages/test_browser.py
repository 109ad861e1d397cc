"""Finished pages in a real browser, wide and narrow, with the network switched off."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib.report.pages.index import write_index
from lib.report.pages.notebook import execute, to_html
from lib.report.summaries import PaperSummary, Told, write_summary
from lib.runs.settings import ROOT
from tests.report.pages.browser_checks import check_page, opened, problems, why_no_browser

reason = why_no_browser()
pytestmark = pytest.mark.skipif(bool(reason), reason=f"pages are not opened: {reason}")

CODE = """
import sys
from pathlib import Path
sys.path.insert(0, root)
from tests.report.invented import records, steps
from lib.metrics import costs
from lib.report import tables
from lib.report.claims import claims, comparisons
from lib.report.claims.verdict import Material
from lib.report.figures import curves, rows as figure_rows
from lib.report.figures.files import save
rows, batches, out = records(n=24), steps(n=24), Path(folder) / "figures"
cells = [
    tables.measure(rows, "f1_ids", item="T", metric=f"{subset} with a rather long name",
                   editor=editor, subset=subset, reported=0.9, n_reported=100)
    for editor in ("MELO", "LoRA", "Absent") for subset in ("edits", "holdout", "upstream")
]
more = [tables.Cell("T", cells[0].setting, "", "", f"editor {i}", cells[0].metric, reproduced=i)
        for i in range(9)]
tables.build_table([*cells, *more], caption="A wide table " * 9)
#
save(curves.score_curves(rows, "f1_ids"), out, "one", "Lines & more")
#
save(figure_rows.cost_rows(costs.costs_by_editor(rows, batches)), out, "two", "Costs")
#
claims.judge([claims.Claim("k", "Best <b>of</b> all. " + "x" * 99, "Table 2",
              comparisons.at_least("MELO", ["LoRA"], "f1_ids"))], Material(rows, batches))
#
print("word" * 200)
rows.head()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [
        new_markdown_cell("# A report\n\nIntroduction with `a_very_long_name_" + "x" * 80 + "`."),
        new_code_cell('folder = root = ""', metadata={"tags": ["parameters"]}),
        new_markdown_cell(
            "## Results\n\n#### Deep\n\n| a | b |\n|---|---|\n| 1 | " + "y" * 90 + " |"
        ),
        *(new_code_cell(part.strip()) for part in CODE.split("#\n")),
        new_markdown_cell("## Results\n\n> quoted\n\n1. one\n2. two"),
    ]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), place / "n.ipynb")
    parameters = {"folder": str(place), "root": str(ROOT)}
    done = execute(place / "n.ipynb", place / "demo.ipynb", parameters, progress=False)
    assert not done.failed, done.error
    to_html(done.notebook, place / "demo.html", "Demo")
    to_html(done.notebook, place / "whole.html", "Demo", self_contained=True)
    summary = PaperSummary(
        "demo", "A title that is long enough to wrap on a phone", report="demo.html",
        claims=tuple(
            Told(f"k{i % 2}", "Said " + "w" * 60, "Table 1", f"setting {i}", verdict, "y" * 150)
            for i, verdict in enumerate(("holds", "fails", "inconclusive"))
        ), substitutions=("z" * 120,), errors=("E: " + "w" * 120,),
        status="partial",
    )  # fmt: skip
    write_summary(place, summary)
    write_index(place)
    return place


@pytest.mark.parametrize("name", ["demo.html", "index.html"])
def test_page_is_sound_on_desktop_and_phone(folder: Path, name: str) -> None:
    check_page(folder / name)


def test_a_self_contained_page_is_sound_alone(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.html"
    alone.write_bytes((folder / "whole.html").read_bytes())
    check_page(alone)
    (tmp_path / "torn.html").write_bytes((folder / "demo.html").read_bytes())
    assert "cannot be shown: Lines & more" in "\n".join(problems(tmp_path / "torn.html", (1280,)))


def test_a_failed_report_is_sound_too(tmp_path: Path) -> None:
    nbformat.write(
        new_notebook(cells=[new_code_cell("1 / 0  # " + "n" * 200)]), tmp_path / "n.ipynb"
    )
    done = execute(tmp_path / "n.ipynb", tmp_path / "o.ipynb", progress=False)
    check_page(to_html(done.notebook, tmp_path / "o.html", "Broken", failure=done.error))


def test_tables_sort_filter_and_are_one_tab_stop(folder: Path) -> None:
    with opened(folder / "demo.html") as page:
        region = page.locator(".scroll", has=page.locator("table.results")).first
        rows = region.locator("tbody tr")
        before = rows.all_inner_texts()
        region.focus()
        page.keyboard.press("Enter")  # into the table: its filter, and then its first heading
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        first = region.locator("thead th").first
        assert first.get_attribute("aria-sort") == "descending"
        assert rows.all_inner_texts() == sorted(before, key=str.lower)
        page.keyboard.press("Escape")
        page.keyboard.press("Tab")
        inside = "e => e.contains(document.activeElement)"
        assert not region.evaluate(inside)  # the next stop is outside
        many = page.locator(".scroll", has=page.locator("input")).last
        many.locator("input").fill("no such row")
        assert many.locator("tbody tr:visible").count() == 0


def test_the_check_finds_what_it_looks_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<html><body><h1>a</h1><h3>b</h3><img src="http://example.invalid/x.png"><svg></svg>'
        '<div id="i" style="width:900px">wide</div><p id="i"></p><a href="#nowhere">x</a>'
        '<main><p style="color:#888;background:#999">dim</p><div class="scroll">'
        '<table style="width:900px"><tr><th>a</table></div></main>'
        "<script>console.error('loud'); throw new Error('thrown')</script></body></html>"
    )
    found = "\n".join(problems(bad))
    for wanted in (
        "390 px: wider than the screen: div", "asked the network", "console error: loud",
        "page error: thrown", "img without alt", "svg without a name", "id used twice: i",
        "picture that cannot be shown: ", "no lang", "no title", "level skipped: b",
        "link to nowhere", "a script element that the policy", "table without a caption",
        "heading without a scope", "dark: contrast", "lost in print: TABLE",
    ):  # fmt: skip
        assert wanted in found
    assert "1280 px: wider" not in found
