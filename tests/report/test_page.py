"""What notebooks show besides their tables: where things come from, how lines compare, style."""

import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from IPython.display import HTML

from lib.metrics import scores
from lib.report import page, reported
from lib.runs.settings import ROOT
from papers import common


def test_a_cell_names_what_makes_its_outputs() -> None:
    names = {"common": common, "page": page, "reported": reported, "scores": scores, "n": 3}
    names["load"] = reported.load_reported
    code = (
        "x = n\npage.show(study, common.examples)\ncommon.substituted(load(x))\nabsent.f(scores.f1)"
    )
    assert page.makers(code, names) == [common.examples, common.substituted, reported.load_reported]
    assert page.makers("%matplotlib inline", names) == []


def test_a_link_leads_to_the_line_that_begins_a_function() -> None:
    path, line, name = page.place(common.one_edit)
    assert (ROOT / path).read_text("utf-8").splitlines()[line - 1] == f"def {name}(study: Study, " \
        "setting: str, editor: str, **changes: Any) -> HTML:"  # fmt: skip
    link = page._link(path, line, name, ROOT / "notebooks")
    assert 'href="../papers/common.py"' in link and f"line {line}" in link


def test_lines_that_compute_something_else_are_told() -> None:
    theirs = torch.tensor([1.0, 200.0], dtype=torch.float64)
    said = page.check(theirs + 1e-4, theirs, scores.f1_ids).data
    assert "<code>f1_ids</code> (lib/metrics/scores.py, line" in said and "1.0e-04" in said
    with pytest.raises(AssertionError, match=r"0\.5 away from f1_ids"):
        page.check(theirs + 0.5, theirs, scores.f1_ids)
    with pytest.raises(AssertionError):
        page.check(theirs[:1], theirs[0], scores.f1_ids)


def test_every_setting_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(page, "display", shown.append)
    study = SimpleNamespace(settings=["a", "b", "c"], title=lambda name: f"<{name}>")
    made = {"a": pd.DataFrame({"x": ["<1>"]}), "b": None, "c": "<p>text</p>"}
    page.show(study, lambda _, name: made[name], titled=True)
    assert [type(one) for one in shown] == [HTML] * 4
    assert [one.data for one in shown[::2]] == ["<h3>&lt;a&gt;</h3>", "<h3>&lt;c&gt;</h3>"]
    assert "&lt;1&gt;" in shown[1].data and shown[3].data == made["c"]
    page.show(study, lambda _, name: name, ["c"])
    assert [one.data for one in shown[4:]] == ["c"]


def test_a_notebook_has_the_pages_style_in_its_own_colours() -> None:
    style = page.notebook_style()
    assert "table.results" in style and ".badge.holds" in style and ":root" not in style
    assert not re.search(r"@media print|prefers-color-scheme", style)
    assert style.count("{") == style.count("}")
    declared = set(
        re.findall(r"--([\w-]+):", page.ASSETS.joinpath("report.css").read_text("utf-8"))
    )
    assert set(page.THEME) <= declared


def test_a_report_says_first_what_it_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(page, "display", lambda made, **_: shown.append(made))
    place = "cf-single.editors.COMEBA-HK.changes.alpha"
    opened = page.begin("comeba_hk", "smoke", str(tmp_path), overrides={place: 1.5})
    assert opened.folder.parent == tmp_path and opened.profile == "smoke"
    style, told = shown
    assert style[page.PAGE_MARKUP] == "" and style["text/html"].startswith("<style>")
    assert "cf-single › editors › COMEBA-HK › config › alpha: 1.5 instead of 2.2" in told.data
    page.begin("comeba_hk", "smoke", str(tmp_path))
    assert len(shown) == 3
