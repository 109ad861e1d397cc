"""The copy of a finished profile for git: complete, small, without dead links or machine paths."""

import hashlib
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from lib.__main__ import main
from lib.errors import StoreError
from lib.report.pages.index import write_index
from lib.report.pages.publish import make
from lib.report.summaries import PaperSummary, write_summary
from lib.runs.settings import papers

SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
FIGURE = (
    '<img src="figures/drawn.svg" alt="b"><img src="figures/a.svg" alt="a">'
    '<figcaption><a href="figures/a.csv">numbers (CSV)</a> · <a href="figures/a.svg">SVG</a> · '
    '<a href="figures/a.png">PNG</a></figcaption>'
)


def page(inside: str) -> str:
    return f'<html><body><a href="index.html">All</a>{inside}</body></html>'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A finished output folder: two reports, one with a figure, one with pages of its own."""
    folder = tmp_path / "outputs" / "laptop"
    for place in ("figures", "tables", "records", "runs/melo-1"):
        (folder / place).mkdir(parents=True)
    for key, inside in (
        ("melo", f'{FIGURE}<a href="#here">x</a><a href="https://example.invalid/a.png">y</a>'),
        ("elder", '<a href="records/one.html#edits-3">1</a>'),
    ):
        (folder / f"{key}.html").write_text(page(inside))
        made = {"commits": ["abc"], "dates": ["2000-01-0" + ("2" if key == "melo" else "1")]}
        summary = PaperSummary(key, key, report=f"{key}.html", profile="laptop", made=made)
        write_summary(folder, summary)
    (folder / "records/one.html").write_text('<a href="../elder.html#t">back</a>')
    for name in ("figures/a.svg", "figures/drawn.svg", "figures/a.csv", "figures/a.png",
                 "figures/old.svg", "tables/t.csv", "melo.ipynb",
                 "runs/melo-1/manifest.json"):  # fmt: skip
        (folder / name).write_text(SVG if name.endswith("svg") else "a,b\n")
    write_index(folder)
    return folder


def copied(source: Path) -> Path:
    return make(source, source.with_name("reference"), ("melo", "elder"))


def test_what_links_lead_to_is_copied_and_nothing_else(source: Path) -> None:
    target = copied(source)
    names = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert names == {
        "index.html", "melo.html", "elder.html", "records/one.html", "figures/a.svg",
        "figures/a.csv", "tables/t.csv", "melo.summary.json", "elder.summary.json", "manifest.json",
    }  # fmt: skip
    text = (target / "melo.html").read_text()
    assert text.count("<a ") == 4 and text.count("a.png") == 0
    assert '<a href="figures/a.svg">SVG</a></figcaption>' in text
    assert text.count(f'="data:image/svg+xml,{quote(SVG, safe="/:=")}"') == 2


def test_the_manifest_says_what_it_was_made_of(source: Path) -> None:
    manifest = json.loads((copied(source) / "manifest.json").read_text())
    assert manifest["profile"] == "laptop" and manifest["commits"] == ["abc"]
    assert manifest["dates"] == ["2000-01-01", "2000-01-02"]
    assert manifest["command"].endswith("./run_all.sh --profile laptop --reference")
    for name, entry in manifest["files"].items():
        content = (source.with_name("reference") / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert len(manifest["files"]) == 9


def test_a_second_copy_replaces_the_first_and_is_the_same(source: Path) -> None:
    target = copied(source)
    first = (target / "manifest.json").read_bytes()
    (target / "left.html").write_text("of an earlier version")
    assert copied(source) == target and not (target / "left.html").exists()
    assert (target / "manifest.json").read_bytes() == first
    assert {p.name for p in target.parent.iterdir()} == {"laptop", "reference"}


def test_a_folder_that_is_no_copy_is_left_alone(source: Path) -> None:
    other = source.with_name("reference")
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    with pytest.raises(StoreError, match="no copy made by this command"):
        copied(source)
    assert (other / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "index.html").unlink(), "no finished output"),
        (lambda f: (f / "melo.html").unlink(), "no report on melo"),
        (lambda f: (f / "melo.summary.json").unlink(), "no report on melo"),
        (lambda f: write_summary(f, PaperSummary("melo", "M", status="partial", errors=("E: x",))),
         r"melo is not complete \(E: x\).*--profile laptop"),
        (lambda f: write_summary(f, PaperSummary("melo", "M", profile="gpu")), "profile gpu"),
        (lambda f: (f / "melo.html").write_text('<div class="failure">no</div>'), "failed step"),
        (lambda f: (f / "figures/a.csv").unlink(), "links to figures/a.csv"),
        (lambda f: (f / "figures/drawn.svg").unlink(), "no picture at .*drawn.svg"),
        (lambda f: (f / "melo.html").write_text(page('<a href="../x.html">x</a>')), "links to"),
        (lambda f: (f / "melo.html").write_text(page('<a href="runs/melo-1/manifest.json">x</a>')),
         "links to runs"),
        (lambda f: (f / "melo.html").write_text(page(str(f.parent) + "/laptop")), "folder of this"),
        (lambda f: (f / "tables/t.csv").write_text("a,/home/someone/data\n"), "/home/someone/data"),
        (lambda f: (f / "tables/t.csv").write_text("a,C:\\data\\x\n"), "folder of this machine"),
    ],
)  # fmt: skip
def test_what_is_not_fit_for_a_copy_is_refused(source: Path, change, said: str) -> None:
    change(source)
    with pytest.raises(StoreError, match=said):
        copied(source)
    assert not source.with_name("reference").exists()


def test_the_command_names_what_is_missing(source: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--reference", "--output", str(source.parent)]) == 1
    missing = next(key for key in papers() if key not in ("melo", "elder"))
    assert f"no report on {missing}" in capsys.readouterr().err


def test_of_borrowed_prompts_the_beginning_is_published(source: Path) -> None:
    long = "which harbour of the two &amp; more islands was founded first of all?"
    row = f"<td>1<td class=b>{long}<td>Wick<td>2<td class=b>short &lt;one&gt;?<td>Holm"
    (source / "records/one.html").write_text(f'<a href="../elder.html">back</a>{row}<td>{long}')
    made = (copied(source) / "records/one.html").read_text()
    assert "<td class=b>which harbour of the two &amp; more…<td>Wick" in made
    assert "<td class=b>short &lt;one&gt;?<td>Holm" in made and made.endswith(f"<td>{long}")
    assert long in (source / "records/one.html").read_text().split("<td class=b>")[1]


def test_pages_of_a_longer_profile_are_linked_to_in_their_own_copy(source: Path) -> None:
    link = '<a href="../gpu/melo.html">gpu</a>'
    (source / "melo.html").write_text(page(f"<p>{link}: holds</p>"))
    assert "gpu: holds" in (copied(source) / "melo.html").read_text()  # there is no copy of it yet
    longer = source.with_name("gpu")
    longer.mkdir()
    (longer / "melo.html").write_text(page("longer"))
    write_summary(longer, PaperSummary("melo", "melo", report="melo.html", profile="gpu"))
    write_index(longer)
    make(longer, source.with_name("reference") / "gpu", ["melo"])
    target = copied(source)  # replaces the copy around the other one, and not that one
    text = (target / "melo.html").read_text()
    assert '<a href="gpu/melo.html"' in text and (target / "gpu" / "melo.html").is_file()
    assert (target / "gpu" / "manifest.json").is_file()
