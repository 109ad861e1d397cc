"""MALMEN's page on an invented study: rows by m, tables, times, claims, and what is missing."""

from pathlib import Path

import pandas as pd
import pytest

from lib.report import page
from lib.report.claims import comparisons
from lib.report.claims.verdict import FAILS, HOLDS, INCONCLUSIVE, NOT_TESTABLE
from lib.runs.settings import profile_of
from papers import common
from papers.malmen import report, tables, times
from papers.malmen.scores import by_m, observed, unedited
from papers.malmen.scores import planned as sizes_of
from tests.papers.malmen.invented_malmen import FIRST, OWN, SIZES, SUM, USUAL, InventedStudy, N
from tests.papers.page_checks import (
    check_claims_and_deviations,
    check_findings_of_nothing,
    check_summary,
)
from tests.runs.test_plan import planned

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "malmen.ipynb"
SETTINGS = ("zsre", "fever")


@pytest.fixture
def study(tmp_path: Path) -> InventedStudy:
    return InventedStudy(tmp_path)


def test_a_run_of_two_tables_counts_once(study: InventedStudy) -> None:
    rows = by_m(study, "zsre")
    own = rows[(rows["editor"] == OWN) & (rows["moment"] == "own") & (rows["subset"] == "edits")]
    assert own.groupby("m").size().to_dict() == dict.fromkeys(SIZES, N)
    # Editors that the sweep leaves out keep their rows of the main table.
    assert set(rows.loc[rows["editor"] == SUM, "m"]) == {USUAL}
    assert set(rows["sweep"]) == {"m"}


def test_observations_keep_the_m_they_are_about(study: InventedStudy) -> None:
    seen = observed(study, "fever", "module")
    assert set(seen.loc[seen["editor"] == OWN, "m"]) == set(SIZES)
    assert observed(study, "fever", "nothing").empty
    assert "valid_ES" not in seen


def test_the_unedited_model_is_scored_once(study: InventedStudy) -> None:
    before = unedited(by_m(study, "zsre"))
    assert before.groupby("subset").size().to_dict() == dict.fromkeys(comparisons.NAMES, N)
    cells = [c for c in report.scores_table(study, "zsre").cells if c.editor == "unedited model"]
    assert [cell.metric for cell in cells] == ["ES", "GS", "LS"]
    assert cells[2].reproduced == pytest.approx(0.35, abs=0.03) and cells[2].n == N


def test_the_scores_have_a_row_for_every_editor_and_m(study: InventedStudy) -> None:
    table = report.scores_table(study, "zsre")
    rows = list(dict.fromkeys(cell.editor for cell in table.cells))
    assert len(rows) == 1 + 4 * len(SIZES) and rows[1] == "MALMEN, m=4"
    shown = table.to_html()
    assert shown.count("not available") == 1  # a note with the reason
    assert "no result table or figure of the paper could be seen" in shown
    kept = pd.read_csv(study.folder / "tables" / "malmen-scores-zsre.csv")
    assert kept["reported"].isna().all() and (kept["n"] == N).all()
    at = {(c.editor, c.metric): c.reproduced for c in table.cells}
    assert at["MEND, m=16", "GS"] < at["MEND, m=4", "GS"] - 0.2
    assert at["MALMEN, m=16", "GS"] == at["MALMEN, m=4", "GS"]


def test_all_editors_meet_at_the_largest_m_of_memit(study: InventedStudy) -> None:
    rows = {cell.editor for cell in report.largest_table(study, "zsre").cells}
    assert rows == {"unedited model", *(f"{e}, m=16" for e in (OWN, "MEND", "MEMIT", "FT"))}
    assert report.largest_table(study, "fever") is None


def test_decoded_answers_are_for_models_that_write(study: InventedStudy) -> None:
    text, classes = (report.decoded_table(study, name) for name in SETTINGS)
    assert "edits: decoded" in {cell.metric for cell in text.cells}
    assert {cell.metric for cell in classes.cells} == {
        "unrelated: gold class (LS)", "unrelated: same class as before",
    }  # fmt: skip
    assert all(cell.n == N for cell in (*text.cells, *classes.cells))


def test_a_failed_run_says_why_in_its_cells(tmp_path: Path) -> None:
    table = report.scores_table(InventedStudy(tmp_path, lost=("MEND",)), "zsre")
    errors = {c.editor: c.error for c in table.cells if c.editor.startswith("MEND")}
    assert errors["MEND, m=8"] == errors["MEND, m=4"] == "EditorError: <b>out of room</b>"
    assert "&lt;b&gt;out of room" in table.to_html() and "<b>out" not in table.to_html()


def test_ablations_are_differences_to_malmen_and_the_rest_is_named(study: InventedStudy) -> None:
    rows = tables.ablation_rows(study, "fever")
    table = tables.ablations(rows).set_index("instead")
    assert len(table) == 5 and {"ES", "GS", "LS", "n"} == set(table)
    assert table.loc["(a) a plain sum, not a solve", "GS"].startswith("−0.")
    assert table.loc["(b) λ fixed at 1", "ES"].startswith("+0.00")
    assert table.loc["(b) no λ: pseudo-inverse", "ES"].startswith("−0.4")
    assert "four residual blocks" in tables.left_out(rows)
    assert "first matrix" not in tables.left_out(rows)
    alone = tables.ablation_rows(study, "zsre")
    assert tables.ablations(alone)["instead"].tolist() == ["(a) a plain sum, not a solve"]


def test_training_is_counted_once_and_said_to_be_cached(study: InventedStudy) -> None:
    spent = times.times(study, "zsre").set_index(["editor", "m"])
    assert spent.loc[(OWN, 16), "train"] == 20 and spent.loc[("MEMIT", 16), "train"] == 0.2
    assert spent.loc[("MEMIT", 8), "edit"] == 4 and spent.loc[("MEMIT", 8), "edit_all"] == 16
    assert not spent.loc[(OWN, USUAL), "cached"] and spent.loc[(OWN, 4), "cached"]
    said = times.time_notes(times.times(study, "zsre"))
    assert "MALMEN (20.0 s)" in said and "key statistics" in said
    assert times.time_notes(times.times(study, "fever").query("editor == 'FT'")) == ""


def test_the_two_reported_times_stand_beside_ours_and_the_estimate(study: InventedStudy) -> None:
    known = common.reported("malmen")
    assert sorted(known["value"]) == [12.25, 33.75] and known["source"].str.len().all()
    shown = times.total_times(study).replace("\u00a0", " ")
    for text in ("12.25 h", "33.75 h", "0.36", "16,384 facts", known["source"].iloc[0]):
        assert text in shown
    # Ours at the largest common m: 20 s + 0.16 s against 0.2 s + 8 s.
    assert "20.2 s" in shown and "8.2 s" in shown and "2.46" in shown
    # The plan: 3600 s and 3.6 s a fact; MEMIT 7.2 s a fact.
    assert "2 h" in shown and "3 h" in shown and "not measured" in shown


def test_data_and_training_are_counted(study: InventedStudy) -> None:
    shown = tables.counts(study, "fever").to_string()
    assert "accuracy 0.800" in shown and "commonest class 0.520" in shown and "64" in shown
    taught = tables.training_examples(study, "fever")
    assert taught["prompt"].tolist() == ["Where is Ash?", "Ash is in?", "<i>who</i>"]
    assert taught["answer"].tolist() == ["Oslo", "Oslo", "Bern"]
    frame = tables.examples(study, "zsre", each=2)
    assert frame["fact"].tolist() == [1, 1, 1, 2, 2, 2]
    learned = tables.learned(study, "zsre").set_index(["editor", "trained for m"])
    assert learned.loc[(OWN, USUAL), "validation GS"] == "0.00 → 0.60"
    assert "from the cache" in learned.loc[(OWN, 4), "seconds"]
    assert tables.residuals(study, "zsre").shape[0] == len(SIZES)


def test_the_claims_are_judged_where_their_editors_run(study: InventedStudy) -> None:
    found = {name: report.judged(study, name).tidy.set_index("key") for name in SETTINGS}
    assert {"better-memit", "behind-locality", "less-time"}.isdisjoint(found["fever"].index)
    text = found["zsre"]
    assert all("could not run" not in evidence for evidence in text["evidence"])
    assert text.loc["better-gs", "verdict"] == HOLDS and text.loc["gap-grows", "verdict"] == HOLDS
    assert text.loc["better-memit", "verdict"] == HOLDS
    assert text.loc["flat-memory", "verdict"] == HOLDS
    # 20 s of training against 8 s of searching: the claim is about far more facts.
    assert text.loc["less-time", "verdict"] == NOT_TESTABLE
    assert "from about 40 facts" in text.loc["less-time", "evidence"]
    assert text.loc["more-facts", "verdict"] == NOT_TESTABLE  # 4 to 16 is no factor of 100
    assert text.loc["behind-locality", "verdict"] in (INCONCLUSIVE, FAILS)


@pytest.mark.parametrize("missing", [{"empty": True}, {"lost": (OWN,)}])
def test_what_did_not_run_takes_nothing_down(tmp_path: Path, missing: dict) -> None:
    study = InventedStudy(tmp_path, **missing)
    verdicts = {}
    for setting in SETTINGS:
        assert report.scores_table(study, setting).to_html()
        assert report.decoded_table(study, setting).to_html()
        tables.examples(study, setting)
        tables.counts(study, setting)
        tables.training_examples(study, setting)
        tables.learned(study, setting)
        tables.residuals(study, setting)
        tables.ablations(tables.ablation_rows(study, setting))
        times.time_notes(times.times(study, setting))
        verdicts[setting] = report.judged(study, setting)
        assert verdicts[setting].counts[NOT_TESTABLE] == len(verdicts[setting].rows)
        assert "could not run" not in " ".join(f.evidence for _, f in verdicts[setting].rows)
    assert "12.25" in times.total_times(study)
    summary = report.summary(study, verdicts, {})
    assert summary.claims
    check_findings_of_nothing(summary)


def test_the_front_page_gets_the_claims_and_no_order(study: InventedStudy) -> None:
    verdicts = {name: report.judged(study, name) for name in SETTINGS}
    summary = report.summary(study, verdicts, {"zsre": ["A tiny model."]})
    assert summary.orderings == ()  # no reported scores could be seen
    assert {one.setting for one in summary.scales} == {f"{name}, a tiny model" for name in SETTINGS}
    check_summary(summary, verdicts, {f"{name}, a tiny model" for name in SETTINGS})
    assert summary.order == 2
    assert report.summary(InventedStudy(study.folder, lost=("FT",)), verdicts, {}).errors


def test_every_claim_can_be_followed_to_its_section() -> None:
    document = InventedStudy(Path()).document
    check_claims_and_deviations(document, NOTEBOOK)
    letters = {entry["key"] for entry in document["tables"]["ablations"]}
    assert letters == set("abcdefg")


def test_the_smoke_profile_has_the_sizes_and_editors_of_the_page(study: InventedStudy) -> None:
    document = profile_of("malmen", "smoke")[0]
    for name in ("zsre", "fever"):
        setting = document["settings"][name]
        assert len(setting["sweeps"]["m"]["values"]) >= 3
        assert setting["sweeps"]["m"].get("protocol", {}).get("observe")
    assert SUM in document["settings"]["zsre"]["editors"]
    assert FIRST in document["settings"]["fever"]["editors"]
    assert list(sizes_of(study, "zsre")) == list(SIZES)


def test_a_sweep_may_be_observed(monkeypatch) -> None:
    axis = {"editors": ["FT"], "parameter": "stream.batch_size", "values": [4]}
    for wanted in ({}, {"protocol": {"observe": True}}):
        swept = planned(monkeypatch, sweeps={"m": axis | wanted})[-1]
        assert swept.spec["protocol"]["observe"] is bool(wanted)
        assert swept.spec["protocol"]["checkpoint_every"] == 0


def test_what_a_profile_leaves_out_has_one_row(study: InventedStudy) -> None:
    paper = {"editors": {"A": {}, "B": {}}, "sweeps": {"m": {}}}
    here = {"editors": {"A": {}, "C": {}}, "sweeps": {}, "title": "here"}
    fake = type("Fake", (), {
        "document": {"settings": {"x": here}}, "original": {"settings": {"x": paper}},
        "departures": lambda self, name: [
            ("editors.A.config.steps", 1, 2), ("editors.B.config.steps", 1, "–"),
            ("editors.B.kind", "b", "–"), ("editors.C.kind", "–", "c"),
            ("sweeps.m.values", [1], "–"),
        ],
    })()  # fmt: skip
    shown = page.departures(fake, "x", together=True).data
    assert shown.count("<tr>") == 1 + 4 and shown.count("left out") == 2 and "added" in shown
