"""The side-by-side page on an invented study: tables with links, advice, figures, record pages."""

import html
import re
from pathlib import Path

import pandas as pd
import pytest

from lib.editors.registry import REGISTRY
from lib.report.figures import files
from lib.report.pages import record_pages
from lib.report.tables import Cell, build_table
from lib.runs.settings import PROFILES, papers, profile_of
from papers import common
from papers.side_by_side import advice, figures, report, tables
from papers.side_by_side.advice import Answers
from papers.side_by_side.figures import apart, front
from papers.side_by_side.scores import with_scores
from tests.papers.page_checks import markdown_of
from tests.papers.side_by_side.invented_side_by_side import (
    FACTS,
    FEWER,
    FIRST,
    NASTY,
    InventedStudy,
    N,
)

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "side_by_side.ipynb"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> InventedStudy:
    return InventedStudy(tmp_path_factory.mktemp("study"))


def cells(table, editor: str) -> dict[tuple[str, str], Cell]:
    return {(c.setting, c.metric): c for c in table.cells if c.editor == editor}


def test_every_size_has_a_table_of_the_editors_that_made_so_many_edits(study) -> None:
    assert report.shown_sizes(study, FACTS) == [N, FEWER, FIRST]
    assert report.ranked_sizes(study, FACTS) == [N, FEWER]
    table = tables.overview(study, FACTS, N)
    rows = list(dict.fromkeys(cell.editor for cell in table.cells))
    assert rows == ["unedited model", "FT", "GRACE", "SERAC", "MEND"]
    assert any(note.startswith("ROME made the first 20 edits only") for note in table.notes)
    then = cells(tables.overview(study, FACTS, FEWER), "ROME")
    assert then["Reliability", "decoded"].n == FEWER == then["Reliability", "decoded"].n_edits
    own = cells(table, "SERAC")
    assert own["Reliability", "decoded"].reproduced == pytest.approx(0.9)
    assert own["Reliability", "teacher-forced"].reproduced == pytest.approx(0.95)
    score = own["Editing score", "of three"]
    assert score.reproduced == pytest.approx(3 / (1 / 0.9 + 1 / 0.8 + 1 / 0.9))
    assert score.ci_low < score.reproduced < score.ci_high and score.n == N
    shown = table.to_html()
    assert "Reported number" not in shown and ">reproduced<" not in shown
    assert (study.folder / "tables" / f"side_by_side-overview-{FACTS}-{N}.csv").is_file()


def test_every_number_leads_to_its_records_in_one_click(study) -> None:
    report.write_records(study, FACTS)
    for edits in report.shown_sizes(study, FACTS):
        shown = tables.overview(study, FACTS, edits).to_html()
        links = [html.unescape(link) for link in re.findall(r'<a href="([^"]+)"', shown)]
        assert len(links) == shown.count("<strong>") > 30
        for link in links:
            file, _, anchor = link.partition("#")
            page = (study.folder / file).read_text("utf-8")
            assert page.count(f'id="{anchor}"') == 1, link
    more = tables.difference_table(study, FACTS, N).to_html()
    assert (
        'href="side_by_side-records/ft.html#near-30"' in more and "*: significant among all" in more
    )


def test_a_link_that_is_not_relative_is_not_made() -> None:
    shared = {"item": "t", "setting": "s", "backbone": "", "dataset": "", "metric": "m", "n": 1}
    for address in ("javascript:alert(1)", "//elsewhere", "/etc/x", "https://elsewhere"):
        table = build_table([Cell(**shared, editor="A", reproduced=1.0, link=address)], own=True)
        assert "href" not in table.to_html()
    good = build_table([Cell(**shared, editor="A", reproduced=1.0, link='a/b.html#"x')], own=True)
    assert 'href="a/b.html#&#34;x"' in good.to_html()


def test_record_pages_are_static_escaped_and_say_right_or_wrong(study) -> None:
    report.write_records(study, FACTS)
    page = (study.folder / "side_by_side-records" / "ft.html").read_text("utf-8")
    assert "default-src 'none'" in page and page.count("<script") == 1 and "<b>Ash" not in page
    assert 'href="../side_by_side.html"' in page and NASTY in html.unescape(page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {"edits-before", "edits-own", "edits-10", "near-30", "general-20"} <= set(ids)
    section = page[page.index('id="edits"') : page.index('id="holdout"')]
    rows = section.split("<tr>")[2:]
    assert len(rows) == N
    # Before, own, 10, 20, 30: FT answers its first edits after its own batch and after ten; of
    # these it keeps four, of all edits three in ten.
    assert all(row.count("<td") == 7 for row in rows)
    assert sorted(row.count("✓✓") for row in rows[:FIRST]) == [2] * 6 + [4] * 4
    assert sum(row.rstrip().split("<td")[-1].count("✓✓") for row in rows) == 9
    near = page[page.index('id="near"') : page.index('id="upstream"')]
    assert "==" in near and "≠≠" in near and "✓" not in near


def test_long_prompts_and_long_sections_are_cut_and_the_page_stays_small(tmp_path: Path) -> None:
    rows = with_scores(InventedStudy(tmp_path).records())
    rows = rows[rows["editor"] == "GRACE"]
    many = pd.concat(
        [rows.assign(record=rows["record"] + f"-{i}", prompt=rows["prompt"] + 40 * f" {i} more")
         for i in range(8)]
    )  # fmt: skip
    path = record_pages.write(tmp_path / "r" / "a.html", "A", many, back="../x.html")
    page = path.read_text("utf-8")
    assert "Shown are 120 of 240 records" in page and path.stat().st_size < 300_000
    texts = [
        html.unescape(t)
        for t in re.findall(r"<tr><th scope=row>\d*<td(?: class=b)?>([^<]*)<td>", page)
    ]
    assert max(map(len, texts)) == 200 and any(text.endswith("…") for text in texts)
    general = page[page.index('id="general"') :]
    assert (
        max(
            len(html.unescape(t))
            for t in re.findall(r"<th scope=row>\d*<td(?: class=b)?>([^<]*)<td>", general)
        )
        == 80
    )
    nothing = record_pages.write(tmp_path / "n.html", "N", rows.iloc[:0], back="x.html")
    assert "Nothing was scored." in nothing.read_text("utf-8")


def test_the_answer_is_made_from_the_numbers(study) -> None:
    answers = Answers.of(study, FACTS)
    said = html.unescape(advice.verdict(answers))
    assert said.startswith(
        "<p>After 30 edits (30 facts) SERAC has the highest editing score, 0.86 ["
    )
    assert "no other is shown to be at most 0.05 worse" in said
    assert "After 10 edits" in said
    assert "FT from 1.00 to 0.30 over 30 edits, p ≤ 1e-4 (floor), Holm < 0.001" in said
    assert "Not compared, as they make fewer edits here: ROME (20)." in said
    assert "30 facts in one order, 4 editors at 30 edits" in said
    more = advice.advice_text(answers)
    assert "--only side_by_side --profile gpu" in more and "For 100 and 1,000 edits" in more
    table = advice.advice_table(answers)
    best = table[(table["edits"] == "30")]
    assert best.iloc[0]["minus the best"] == "the best" and len(best) == 1
    far = table[table["edits"] == "1,000"].iloc[0]
    assert far["editing score"] == "not measured here"
    assert "These have already lost edits significantly by their last edit here: FT (p" in more
    assert far["time in all"].startswith("about 8 min 40 s (constant")


def test_an_editor_that_lost_edits_is_named_where_quality_was_not_measured(tmp_path: Path) -> None:
    study = InventedStudy(tmp_path, lost=("SERAC", "GRACE", "MEND", "ROME"))
    answers = Answers.of(study, FACTS)
    table = advice.advice_table(answers)
    far = table[table["edits"] == "1,000"].iloc[0]
    assert far["editor"] == "FT"
    assert far["editing score"] == "not measured here; has lost edits already, p ≤ 1e-4 (floor)"
    assert "no other editor was scored" in advice.verdict(answers)


def test_the_ranking_has_a_single_round_column_and_marks_whose_it_is(study) -> None:
    table = report.ranking_table(study, FACTS, N).set_index("editor")
    assert table.loc["MEND", "kind"] == "single round" and table.loc["SERAC", "kind"] == "memory"
    assert table.loc["FT", "right after own batch"].startswith("1.00 [")
    assert table.loc["FT", "reliability now"] == "0.30"
    assert table.loc["SERAC", "against the best (margin 0.05)"] == "the best"


def test_costs_stand_beside_what_was_run(study) -> None:
    table = tables.cost_table(study, FACTS)
    serac = {cell.metric: cell for cell in table.cells if cell.editor == "SERAC"}
    assert serac["before the first edit, s"].reproduced == 20
    assert serac["per edit, ms"].reproduced == pytest.approx(500)
    assert serac["% longer"].reproduced == pytest.approx(50)
    assert serac["saved edits, MiB"].reproduced == 1 and serac["per edit, ms"].n == N // 5
    points = report.speed_and_quality(study, FACTS, N)
    assert set(front(points, "seconds")["editor"]) == {"SERAC"}


def test_seeds_are_compared_or_their_absence_is_said(study, tmp_path: Path) -> None:
    assert "one order seed" in report.seeds_text(study, FACTS)
    several = InventedStudy(tmp_path, seeds=2)
    assert "standard deviation" in report.seeds_text(several, FACTS)
    report.write_records(several, FACTS)
    assert (several.folder / "side_by_side-records" / "ft-seed-1.html").is_file()


def test_a_failed_editor_keeps_its_row_and_no_run_leaves_sentences(tmp_path: Path) -> None:
    failed = InventedStudy(tmp_path, lost=("GRACE",))
    table = tables.overview(failed, FACTS, N)
    assert "&lt;b&gt;out of room" in table.to_html() and "<b>out" not in table.to_html()
    assert cells(tables.cost_table(failed, FACTS), "GRACE")["Time", "per edit, ms"].error
    empty = InventedStudy(tmp_path, empty=True)
    assert report.shown_sizes(empty, FACTS) == []
    assert "No run" in advice.verdict(Answers.of(empty, FACTS))
    assert advice.advice_table(Answers.of(empty, FACTS)).empty
    assert advice.advice_text(Answers.of(empty, FACTS)) == ""
    assert "No run" in report.write_records(empty, FACTS)


@pytest.mark.parametrize("nothing", [False, True])
def test_every_figure_is_drawn_or_says_why_not(tmp_path: Path, nothing: bool) -> None:
    study, families = InventedStudy(tmp_path, empty=nothing), report.FAMILY_NAMES
    plots = [
        report.retention(study, FACTS),
        figures.first_edits(report.first_edits(study, FACTS), "decoded", families),
        figures.rank_intervals(report.ranked(study, FACTS, N)),
        figures.speed_and_quality(report.speed_and_quality(study, FACTS, N)),
    ]
    for plot in plots:
        words = " ".join(t.get_text() for panel in plot.figure.axes for t in panel.texts)
        ticks = " ".join(
            t.get_text() for panel in plot.figure.axes for t in panel.get_yticklabels()
        )
        assert nothing or "SERAC" in words + ticks
        assert bool(words.strip()) and plot.caption
    if not nothing:
        assert "unedited model" in plots[0].finding and "unedited model" in plots[1].finding
        files.save(plots[-1], tmp_path, "plot", "Score against cost.")


def test_the_stairs_are_what_no_other_beats() -> None:
    rows = pd.DataFrame({
        "editor": list("abcde"), "cost": [1, 2, 3, 1, 4], "score": [0.5, 0.4, 0.9, 0.3, 0.9],
    })  # fmt: skip
    assert front(rows, "cost")["editor"].tolist() == ["a", "c"]


def test_names_stand_at_their_points_and_cover_no_other() -> None:
    points = pd.DataFrame({
        "editor": ["MELO", "GRACE", "LoRA"], "score": [0.5, 0.5, 0.52], "low": 0.4, "high": 0.6,
        "seconds": [1.0, 1.02, 1.01], "slowdown": 1.0, "bytes": 2.0**20,
    })  # fmt: skip
    plot = figures.speed_and_quality(points)
    panel = plot.figure.axes[0]
    boxes = [text.get_window_extent() for text in panel.texts]
    assert len(boxes) == 3 and not any(
        a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]
    )
    assert "Not beaten in score and seconds per edit: MELO, LoRA." in plot.finding


def test_labels_are_moved_apart_and_no_further() -> None:
    assert apart([0.1, 0.9], 0.2) == [0.1, 0.9]
    assert apart([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    found = apart([0.9, 0.1, 0.15, 0.88], 0.1)
    assert found == pytest.approx([0.94, 0.075, 0.175, 0.84])


def test_the_front_page_gets_the_best_and_the_findings(study) -> None:
    found = report.summary(study, {}, {FACTS: ["A tiny model."]})
    assert [one.editor for one in found.best] == ["SERAC", "MEND", "GRACE"]
    assert found.best[0].measure == "editing score after 30 edits"
    assert [one.key for one in found.findings][-1] == "forcing-flatters"
    assert papers().index("side_by_side") + 1 == found.order and found.status == "done"


def test_findings_and_cells_lead_to_sections_that_exist(study) -> None:
    lines = markdown_of(NOTEBOOK).splitlines()
    headings = {line.lstrip("# ") for line in lines if line.startswith("#")}
    assert all(one["shown"] in headings for one in study.document["findings"])
    assert common.examples(study, FACTS)["prompt"].str.startswith("Is <b>").all()


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_plans_checkpoints_and_families(profile: str) -> None:
    setting = profile_of("side_by_side", profile)[0]["settings"]["facts"]
    assert {entry["kind"] for entry in setting["editors"].values()} <= set(REGISTRY)
    batch, edits = setting["stream"]["batch_size"], setting["stream"]["n_edits"]
    checked = {batch * number for number in setting["protocol"]["checkpoints"]} | {edits}
    for editor in setting["editors"].values():
        assert editor.get("stream", {}).get("first", edits) in checked
    assert len(setting["editors"]) == 21
