"""COMEBA-HK's page on an invented study: scores, tables, claims, and what is missing is said."""

from pathlib import Path

import pandas as pd
import pytest

from lib.report import page
from lib.report.claims.verdict import NOT_TESTABLE
from lib.storage.documents import Sourced
from papers import common
from papers.comeba_hk import report, scores, tables
from papers.comeba_hk.scores import with_scores
from tests.papers.comeba_hk.invented_comeba import SETTINGS, InventedStudy, records
from tests.papers.page_checks import (
    check_claims_and_deviations,
    check_findings_of_nothing,
    check_summary,
    markdown_of,
)

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "comeba_hk.ipynb"


@pytest.fixture
def study(tmp_path: Path) -> InventedStudy:
    return InventedStudy(tmp_path)


def scored(locality: str = "near") -> pd.DataFrame:
    return with_scores(records("cf-single"), locality)


def test_an_average_row_is_one_edit_with_its_rephrases_and_probes() -> None:
    rows = scored()
    mine = rows[(rows["editor"] == "MEMIT") & (rows["edit_index"] == 5) & (rows["moment"] == "own")]
    parts = [
        mine[mine["subset"] == "edits"]["answer_accuracy"].mean(),
        mine[mine["subset"] == "holdout"]["answer_accuracy"].mean(),
        mine[mine["subset"] == "near"]["answer_agreement"].mean(),
    ]
    (average,) = mine[mine["subset"] == "average"]["score"]
    assert average == pytest.approx(sum(parts) / 3)
    assert len(rows[(rows["subset"] == "average") & (rows["moment"] == "own")]) == 7 * 24


def test_locality_is_read_where_the_form_says() -> None:
    for locality in ("near", "upstream"):
        rows = scored(locality)
        mine, theirs = (
            rows[rows["subset"] == name]["score"].tolist() for name in ("locality", locality)
        )
        assert mine == theirs and len(mine)


def test_an_edit_without_probes_has_no_average() -> None:
    rows = records("cf-single")
    lacking = rows[~((rows["subset"] == "near") & (rows["edit_index"] == 0))]
    averages = with_scores(lacking, "near").query("subset == 'average'")
    assert set(averages["edit_index"]) == set(range(1, 24))
    assert with_scores(rows[rows["subset"] != "near"], "near").query("subset == 'average'").empty


def test_rows_of_one_edit_are_one_unit_and_stay_apart() -> None:
    rows = scored()
    own = rows[(rows["editor"] == "MEMIT") & (rows["moment"] == "own")]
    near = own[own["subset"] == "near"]
    assert near["unit"].nunique() == 24 and near["record"].nunique() == 48
    assert set(near["unit"]) == set(own[own["subset"] == "edits"]["unit"])


def test_no_rows_have_all_columns() -> None:
    empty = with_scores(pd.DataFrame(columns=["run", "setting", "editor"]), "near")
    assert {"score", "subset", "moment", "n_edits"} <= set(empty) and empty.empty


def test_the_main_table_says_that_nothing_was_reported(study: InventedStudy) -> None:
    for setting in SETTINGS:
        table = report.main_table(study, setting)
        shown = table.to_html()
        assert 'class="reported"' not in shown
        assert "not available" in shown and "no result table of the paper could be seen" in shown
        assert "see the MALMEN report" in shown and "cells not run in this profile" in shown
        assert "CoachHooK" in shown
        assert {cell.metric for cell in table.cells} == {
            "Reliability", "Generality", "Locality", "Average",
        }  # fmt: skip
        kept = pd.read_csv(study.folder / "tables" / f"comeba_hk-main-{setting}.csv")
        assert kept["reported"].isna().all()
        assert (kept[kept["editor"] == "COMEBA-HK"]["n"] > 0).all()


def test_single_rounds_are_read_at_their_own_moment(study: InventedStudy) -> None:
    before, *_, cell = (
        c for c in report.main_table(study, "cf-single").cells
        if c.metric == "Reliability" and c.editor in ("unedited model", "COMEBA-HK")
    )  # fmt: skip
    rows = scores.scored(study, "cf-single")
    own = rows.query("editor == 'COMEBA-HK' and subset == 'edits' and moment == 'own'")
    assert cell.reproduced == pytest.approx(own["score"].mean()) and cell.n == 24
    first = rows.query("subset == 'edits' and moment == 'before'").drop_duplicates("edit_index")
    assert before.reproduced == pytest.approx(first["score"].mean()) and before.n == 24


def test_counterfact_scores_are_those_of_the_competing_answers(study: InventedStudy) -> None:
    cells = report.counterfact_table(study, "cf-consecutive").cells
    mine = [cell for cell in cells if cell.editor == "COMEBA-HK"]
    assert [cell.metric for cell in mine] == ["Efficacy", "Paraphrase", "Neighbourhood"]
    assert all(cell.n for cell in mine)


def test_a_failed_run_says_why_in_its_cells(tmp_path: Path) -> None:
    table = report.main_table(InventedStudy(tmp_path, lost=("MEMIT",)), "cf-single")
    assert all(
        cell.error == "EditorError: <b>out of room</b>"
        for cell in table.cells
        if cell.editor == "MEMIT"
    )
    assert "&lt;b&gt;out of room" in table.to_html() and "<b>out" not in table.to_html()


@pytest.mark.parametrize("missing", [{"empty": True}, {"lost": ("COMEBA-HK",), "varied": False}])
def test_what_did_not_run_takes_nothing_down(tmp_path: Path, missing: dict) -> None:
    study = InventedStudy(tmp_path, **missing)
    for setting in SETTINGS:
        assert report.main_table(study, setting).to_html()
        assert report.decoded_table(study, setting).to_html()
        common.examples(study, setting)
        tables.costs_of(study, setting)
        tables.scope_shares(study, setting)
    tables.hook_effect(study)
    tables.answer_effect(study)
    tables.preparation(study)
    report.draw_sweeps(study, ("alpha", "statistics"))
    for form in scores.forms(study):
        found = report.judged(study, form)
        assert all("could not run" not in finding.evidence for _, finding in found.rows)
        assert found.counts[NOT_TESTABLE] == len(found.rows)
    verdicts = {form.key: report.judged(study, form) for form in scores.forms(study)[:1]}
    summary = report.summary(study, verdicts, {})
    assert summary.claims
    if study.empty:
        check_findings_of_nothing(summary)


def test_the_abstract_is_judged_once_per_form(study: InventedStudy) -> None:
    forms = scores.forms(study)
    assert [form.key for form in forms] == ["cf", "zsre"]
    found = {form.key: report.judged(study, form).tidy.set_index("key") for form in forms}
    assert "stable-instances" in found["cf"].index and "stable-instances" not in found["zsre"].index
    for frame in found.values():
        assert frame.loc["single-best", "verdict"] == "holds"
        assert "MEND, which stands on the MALMEN report" in frame.loc["single-best", "evidence"]
        assert frame.loc["constant-memory", "verdict"] == "holds"


def test_differences_name_both_editors(study: InventedStudy) -> None:
    frame = tables.hook_effect(study)
    assert set(frame["minus"]) == {"COMEBA-HK without hooks"}
    assert frame["Locality"].str.contains("n = ").all()
    effect = tables.answer_effect(study)
    assert len(effect) == 8 and effect["difference"].str.startswith("+").all()


def test_a_setting_of_no_form_is_an_error(study: InventedStudy) -> None:
    with pytest.raises(ValueError, match="belongs to no form"):
        report.main_table(study, "elsewhere")


def test_the_front_page_gets_the_claims_of_every_form(study: InventedStudy) -> None:
    verdicts = {form.key: report.judged(study, form) for form in scores.forms(study)}
    summary = report.summary(study, verdicts, {"cf-single": ["A tiny model."]})
    assert summary.report == "comeba_hk.html" and summary.status == "done"
    titles = {form.title for form in scores.forms(study)}
    found = {f"{name}, a tiny model" for name in SETTINGS}
    check_summary(summary, verdicts, titles)
    assert {one.setting for one in summary.findings} == found
    assert summary.orderings == ()  # no reported scores could be seen
    lost = report.summary(InventedStudy(study.folder, lost=("FT (EasyEdit)",)), verdicts, {})
    assert lost.status == "partial" and lost.errors


def test_departures_of_equal_value_share_a_row(study: InventedStudy) -> None:
    study.departures = lambda setting: [
        ("editors.A.config.steps", 20, 8), ("editors.B.config.steps", 20, 8),
        ("editors.C.config.steps", 20, 9), ("stream.n_edits", 10, 2),
    ]  # fmt: skip
    shown = page.departures(study, "cf-single", together=True).data
    assert "A, B › config › steps" in shown and "C › config › steps" in shown
    assert '<th scope="row">stream › n_edits</th>' in shown and shown.count("<tr>") == 4
    assert "editors › A › config › steps" in page.departures(study, "cf-single").data


def test_equal_values_from_one_source_share_a_row(study: InventedStudy) -> None:
    places = [f"{s}.editors.{e}.config" for s, e in (("cf-single", "A"), ("cf-single", "B"),
                                                     ("zsre-single", "A"))]  # fmt: skip
    study.sourced = [
        *(Sourced(f"settings.{place}.steps", 20, "code") for place in places),
        Sourced("settings.cf-single.editors.C.config.steps", 9, "code"),
        Sourced("settings.cf-single.stream.n_edits", 10, "paper"),
        Sourced("title", "x", "nowhere"),
    ]
    shown = page.sources(study, together=True).data
    assert '<th scope="row">cf-single, zsre-single</th>' in shown
    assert "<td>A, B › config › steps</td>" in shown and "<td>stream › n_edits</td>" in shown
    assert shown.count("<tr>") == 4
    assert page.sources(study).data.count("<tr>") == 6


def test_the_one_reported_number_is_the_readmes() -> None:
    known = common.reported("comeba_hk")
    assert len(known) == 1 and known["value"].item() == 20 and known["unit"].item() == "hours"


def test_every_claim_can_be_followed_to_its_section() -> None:
    document = InventedStudy(Path()).document
    check_claims_and_deviations(document, NOTEBOOK)
    assert {c["protocol"] for c in document["claims"]} <= {"single", "consecutive"}
    text = markdown_of(NOTEBOOK)
    assert "COMEBA-HK" in text and "CoachHooK" in text
