"""Notebooks run and become pages that need nothing but themselves, also when a cell fails."""

import functools
import json
import re
import resource
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.errors import StoreError, StudyError, UsageError
from lib.report.pages.notebook import (
    PAGE_MARKUP,
    execute,
    finish,
    scroll_tables,
    to_html,
    with_pictures,
)
from lib.runs.settings import ROOT

NASTY = '<script>alert("x")</script>'


def notebook(path: Path, *cells: object) -> Path:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=list(cells), metadata={"kernelspec": kernel}), path)
    return path


def code(source: str, *outputs: object, tags: tuple[str, ...] = ()) -> object:
    return new_code_cell(
        source, outputs=list(outputs), execution_count=3, metadata={"tags": list(tags)}
    )


def shown(data: dict[str, str]) -> object:
    return new_output("display_data", data=data)


def stream(name: str, text: str) -> object:
    return new_output("stream", name=name, text=text)


def page(tmp_path: Path, *cells: object, **options: object) -> str:
    source = notebook(tmp_path / "in.ipynb", *cells)
    return to_html(source, tmp_path / "out.html", "A <title>", **options).read_text("utf-8")


def body(text: str) -> str:
    return text[text.index("<body") :]


def test_a_notebook_runs_with_its_parameters(tmp_path: Path) -> None:
    source = notebook(
        tmp_path / "n.ipynb",
        new_markdown_cell("# Report"),
        new_code_cell("size = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("import lib; print('size', size)"),
    )
    done = execute(source, tmp_path / "sub" / "o.ipynb", {"size": 7}, progress=False)
    assert not done.failed and done.seconds > 0
    text = to_html(done.notebook, tmp_path / "o.html", "T").read_text()
    assert "size 7" in text
    assert "Parameters of this run" in text and "Default parameters" in text


def test_a_failing_cell_still_gives_a_page(tmp_path: Path) -> None:
    source = notebook(
        tmp_path / "n.ipynb",
        new_code_cell("print('before')"),
        new_code_cell("raise ValueError('no <b>luck</b>')"),
        new_code_cell("print('late' + 'comer')"),
    )
    done = execute(source, tmp_path / "o.ipynb", progress=False)
    assert done.failed and done.error == "Cell 2 raised ValueError: no <b>luck</b>"
    text = body(to_html(done.notebook, tmp_path / "o.html", "T").read_text())
    assert "before" in text and "latecomer" not in text
    assert text.index("This report is incomplete") < text.index("before")
    assert "ValueError</strong>: no &lt;b&gt;luck&lt;/b&gt;" in text and "<b>luck" not in text
    assert "Code (did not run)" in text and "An Exception was encountered" not in text


def test_a_dead_kernel_still_gives_a_page(tmp_path: Path) -> None:
    source = notebook(
        tmp_path / "n.ipynb",
        new_code_cell("print('alive')"),
        new_code_cell("import os; os._exit(9)"),
    )
    done = execute(source, tmp_path / "o.ipynb", progress=False)
    assert done.failed and "kernel died" in done.error
    text = to_html(done.notebook, tmp_path / "o.html", "T", failure=done.error).read_text()
    assert "alive" in text and "kernel died" in text


ODD = (
    "{}", "{size}", "{0}", "a {b", "}{", "{{x}}", "%s %(n)s", "it's", 'the "best"', "$HOME #1?&;",
    "tünnel\\x",
)  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    source = notebook(
        folder / f"{name}.ipynb",
        new_code_cell("size = 1; output = ''", metadata={"tags": ["parameters"]}),
        new_code_cell("import pathlib; pathlib.Path(output, 'made').write_text(str(size))"),
    )
    target = folder / "out" / f"{name}.ipynb"
    parameters = {"size": 7, "output": str(folder)}
    done = execute(source, target, parameters, progress=False, cwd=folder)
    assert done.error == "" and done.notebook == target
    files = {str(path.relative_to(folder)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {f"{name}.ipynb", f"out/{name}.ipynb", "made"}
    assert (folder / "made").read_text() == "7"
    text = to_html(target, folder / "page.html", "T").read_text("utf-8")
    assert str(tmp_path) not in text


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch) -> Path:
    """A folder whose kernels Jupyter finds: `kernels/<name>/kernel.json`."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    return tmp_path / "jupyter" / "kernels"


def kernel(kernels: Path, name: str, *command: str) -> str:
    (kernels / name).mkdir(parents=True)
    told = {"argv": list(command), "display_name": name, "language": "python"}
    (kernels / name / "kernel.json").write_text(json.dumps(told))
    return name


KERNELS = {
    "absent": (None, "no Jupyter kernel 'absent'.*install ipykernel"),
    "uninstalled": (["/nowhere/python", "{connection_file}"], "not start .*/nowhere.*ipykernel"),
    "stillborn": ([sys.executable, "-c", "raise SystemExit(3)"], "not start .*died.*ipykernel"),
    "mute": (
        [sys.executable, "-c", "import time; time.sleep(3600)"],
        r"not start \(.* 1 seconds\): close other programs, .*STUDY_KERNEL_SECONDS",
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_cannot_be_had_is_an_error_with_a_remedy(
    name: str, kernels: Path, tmp_path: Path, monkeypatch
) -> None:
    command, told = KERNELS[name]
    if command:
        kernel(kernels, name, *command)
    if name == "mute":
        monkeypatch.setenv("STUDY_KERNEL_SECONDS", "1")
    source = notebook(tmp_path / "n.ipynb", new_code_cell("print('late' + 'comer')"))
    done = execute(source, tmp_path / "o.ipynb", progress=False, kernel=name)
    assert done.failed and re.search(told, done.error), done.error
    text = to_html(done.notebook, tmp_path / "o.html", "T", failure=done.error).read_text()
    assert "This report is incomplete" in text and "latecomer" not in text


LATE = """
import time
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

class Late(IPythonKernel):
    def _publish_status(self, status, channel, parent=None):
        asked = (parent or self.get_parent(channel)).get("header", {}).get("msg_type")
        if (status, asked) == ("idle", "execute_request"):
            time.sleep(5)
        super()._publish_status(status, channel, parent)

IPKernelApp.launch_instance(kernel_class=Late)
"""


def test_a_slow_kernel_is_waited_for(kernels: Path, tmp_path: Path) -> None:
    """It says that a cell is done a second after nbclient would have given it up."""
    slow = kernel(kernels, "slow", sys.executable, "-c", LATE, "-f", "{connection_file}")
    source = notebook(tmp_path / "n.ipynb", new_code_cell("print('alive')"))
    assert execute(source, tmp_path / "o.ipynb", progress=False, kernel=slow).error == ""
    assert "alive" in (tmp_path / "o.ipynb").read_text()


@pytest.mark.parametrize("told", ["0", "-3", "soon", "1.5"])
def test_patience_is_a_whole_number_of_seconds(told: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STUDY_KERNEL_SECONDS", told)
    source = notebook(tmp_path / "n.ipynb", new_code_cell("1"))
    with pytest.raises(UsageError, match=f"STUDY_KERNEL_SECONDS={told}"):
        execute(source, tmp_path / "o.ipynb", progress=False)


@pytest.mark.parametrize("where", ["while it runs", "at its end", "the folder"])
def test_a_full_disk_names_the_way_out(where: str, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the end of the disk."""
    cells = [new_markdown_cell("x" * 20_000)] * (where == "while it runs")
    source = notebook(tmp_path / "n.ipynb", *cells, new_code_cell("print('alive')"))
    target = tmp_path / "out" / "o.ipynb"
    if where == "the folder":
        (tmp_path / "out").write_text("a file stands where the folder should be")
        with pytest.raises(StoreError, match=r"cannot write .*o\.ipynb.*--output"):
            execute(source, target, progress=False)
        return
    call = functools.partial(execute, source, target, progress=False)
    if where == "at its end":
        done = call()
        call = functools.partial(to_html, done.notebook, tmp_path / "o.html", "T")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        with pytest.raises(StoreError, match=r"cannot write .*/o\.(ipynb|html).*--output"):
            call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no notebook at .*absent\.ipynb"):
        execute(tmp_path / "absent.ipynb", tmp_path / "o.ipynb")
    with pytest.raises(StudyError, match="run the report first"):
        to_html(tmp_path / "absent.ipynb", tmp_path / "o.html", "T")


def test_nothing_points_at_a_network(tmp_path: Path) -> None:
    text = page(tmp_path, new_markdown_cell("# A\n\n$x^2$ and `code`"), code("1 + 1"))
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", text)
    assert text.count("<script") == 1 and "<link" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_figures_are_files_beside_the_page_or_inside_it(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a b.svg").write_text('<svg xmlns="n"><title>#1 é</title></svg>')
    markup = '<picture><img alt="A &gt; B" src="figures/a%20b.svg"/></picture>'
    shown_alone = {"text/html": "<p>the same for a notebook</p>", PAGE_MARKUP: markup}
    text = page(tmp_path, code("draw()", shown(shown_alone)))
    assert markup in text and "the same for a notebook" not in text
    inside = page(tmp_path, code("draw()", shown(shown_alone)), self_contained=True)
    address = "data:image/svg+xml,%3Csvg%20xmlns=%22n%22%3E%3Ctitle%3E%231%20%C3%A9%3C/title%3E"
    assert f'<img alt="A &gt; B" src="{address}%3C/svg%3E"/>' in inside
    assert with_pictures(inside, tmp_path / "elsewhere") == inside
    with pytest.raises(StudyError, match=r"no picture at .*a b\.svg"):
        with_pictures(text, tmp_path / "elsewhere")


def test_progress_bars_and_stderr_do_not_reach_the_page(tmp_path: Path) -> None:
    widget = "application/vnd.jupyter.widget-view+json"
    text = page(
        tmp_path,
        code(
            "run()",
            stream("stderr", " 50%|#####     | 3/6"),
            stream("stdout", "10%\r50%\rall done\nkept\n"),
            shown({widget: {"model_id": "x"}, "text/plain": "HBox(children=...)"}),
        ),
    )
    assert "3/6" not in text and "50%" not in body(text) and "HBox" not in text
    assert "all done\nkept" in text


def test_data_reaches_the_page_escaped(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        code(
            f"x = '''{NASTY}'''",
            stream("stdout", NASTY),
            shown({"text/plain": NASTY}),
            shown({"text/markdown": NASTY, "text/plain": "plain instead"}),
            shown({"application/javascript": "alert(1)", "text/plain": "quiet"}),
            new_output("error", ename=NASTY, evalue=NASTY, traceback=[NASTY]),
        ),
    )
    assert text.count("<script") == 1 and "plain instead" in text and "quiet" in text
    assert "<title>A &lt;title&gt;</title>" in text


TABLE = '<table><tr><th scope="row">a</th></tr><tr><th scope="row">b</th></tr></table>'


def folded(cell: object, **more: str) -> object:
    cell.metadata |= {"tags": ["folded"], **more}
    return cell


def test_a_tagged_section_is_folded_up_to_the_next_with_its_count_in_the_title(
    tmp_path: Path,
) -> None:
    text = body(page(
        tmp_path,
        new_markdown_cell("# A"),
        folded(new_markdown_cell("## Appendix\n\nwhat it is")),
        code("1", shown({"text/html": TABLE})),
        new_markdown_cell("### Inside"),
        code("2", shown({"text/html": "<ul><li>c</li></ul><figure></figure>"})),
        new_markdown_cell("## After"),
        folded(code("3", shown({"text/html": TABLE})), summary="Examples"),
    ))  # fmt: skip
    start, after = text.index('<details class="appendix"><summary>'), text.index('<h2 id="after">')
    inside = text[start:after]
    assert '<h2 id="appendix">' in inside and "3 entries, 1 figure</span></summary>" in inside
    assert "what it is" in inside and ">Inside<" in inside
    assert inside.count("<details") == inside.count("</details>")
    assert "Examples" in text[after:] and "2 entries</span></summary>" in text[after:]
    assert text.count("<details") == text.count("</details>")


def test_what_failed_is_not_folded_away(tmp_path: Path) -> None:
    heading = folded(new_markdown_cell("## Plan"))
    assert '<details class="appendix">' in page(tmp_path, heading, code("1"))
    for told in (
        stream("stdout", "FAILED x"),
        new_output("error", ename="E", evalue="", traceback=[]),
    ):
        assert '<details class="appendix" open' in page(tmp_path, heading, code("1", told))


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_fold_hides_no_other_section(path: Path) -> None:
    inside = 0  # the level of the fold that a cell lies in
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "markdown":
            continue
        levels = [len(found) for found in re.findall(r"^(#+) ", cell.source, re.MULTILINE)]
        starts = bool(re.match(r"#+ ", cell.source))
        if starts and levels[0] <= (inside or 9):
            inside = levels[0] if "folded" in cell.metadata.get("tags", []) else 0
        if inside:
            assert not [level for level in levels[starts:] if level <= inside], cell.source


def test_every_table_has_a_caption_and_scopes(tmp_path: Path) -> None:
    text = body(page(tmp_path, new_markdown_cell("# A\n\n## Costs & more\n\n|a|b|\n|-|-|\n|1|2|")))
    assert text.count('aria-label="Costs &amp; more"') == 1
    assert '<table><caption class="quiet"><span>Costs &amp; more</span></caption>' in text
    assert text.count("<th") - text.count("<thead") == text.count('<th scope="col"') == 2


def test_tables_scroll_inside_a_region_that_takes_focus() -> None:
    bare = '<style scoped>x</style><table border="1" class="dataframe"><tr><td>1</td></tr></table>'
    wrapped = scroll_tables(bare)
    assert wrapped.startswith('<div class="scroll" role="region" tabindex="0" aria-label=')
    assert "border=" not in wrapped and "scoped" not in wrapped
    assert scroll_tables(wrapped) == wrapped


def test_pictures_have_words(tmp_path: Path) -> None:
    text = page(tmp_path, code("draw()", shown({"image/png": "iVBORw0KGgo=\n"})))
    assert 'alt="Picture made by step 3' in text and "base64,iVBORw0KGgo=" in text


def test_headings_get_one_h1_no_gaps_and_anchors(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        new_markdown_cell("# Title\n\nIntroduction."),
        new_markdown_cell("#### Deep\n\n## Same `name`"),
        new_markdown_cell("# Another\n\n## Same name\n\n### <i>Below</i> & more"),
    )
    found = re.findall(r'<h(\d) id="([^"]+)"', text)
    assert found == [
        ("1", "title"), ("2", "deep"), ("2", "same-name"), ("2", "another"),
        ("2", "same-name-2"), ("3", "below-more"),
    ]  # fmt: skip
    contents = text[text.index('<nav class="contents"') :]
    assert 'href="#same-name-2">Same name</a>' in contents and "Below &amp; more" in contents
    assert text.index("Introduction.") < text.index('<nav class="contents"')


def test_a_page_without_a_title_gets_one() -> None:
    text = finish('<body><main id="content">\n<p>x</p></main>', "A & B")
    assert '<h1 id="a-b">A &amp; B<' in text


def test_page_has_language_skip_link_and_way_back(tmp_path: Path) -> None:
    text = page(tmp_path, new_markdown_cell("# T"), back="../index.html", lang="en")
    assert '<html lang="en">' in text and 'href="#content"' in text
    assert 'href="../index.html"' in text


def test_the_parameters_shown_name_no_folder_of_the_machine(tmp_path: Path) -> None:
    source = f'output = "{tmp_path}/outputs"\ndata_dir = "/data"\nprofile = "laptop"'
    text = page(tmp_path, code(source, tags=("injected-parameters",)))
    assert str(tmp_path) not in text and '"/data' not in text
    assert "…/outputs" in text and "…/data" in text and "laptop" in text
