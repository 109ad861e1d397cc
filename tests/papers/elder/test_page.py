"""ELDER's page on an invented study: tables beside reported numbers, the deferral question, claims,
and what is missing is said."""

from pathlib import Path

import pandas as pd
import pytest

from lib.evaluation.evaluator import Protocol
from lib.report.claims.verdict import FAILS, HOLDS, NOT_TESTABLE
from lib.runs.settings import PROFILES, papers, profile_of
from papers import common
from papers.elder import deferral, figures, forgetting, report, retention, scores
from papers.elder import tables as elder_tables
from papers.elder import words as elder_words
from tests.papers.elder.invented_elder import FEWER, PLACES, InventedStudy, N
from tests.papers.page_checks import (
    check_claims_and_deviations,
    check_findings_of_nothing,
    check_summary,
)

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "elder.ipynb"


@pytest.fixture
def study(tmp_path: Path) -> InventedStudy:
    return InventedStudy(tmp_path)


def cells(table, editor: str) -> dict[str, object]:
    return {cell.metric: cell for cell in table.cells if cell.editor == editor}


def test_table_1_stands_beside_the_reported_numbers(study: InventedStudy) -> None:
    table = report.table1(study, "zsre")
    own = cells(table, "ELDER")
    assert own["Reliability"].reported == 97.47 and own["Generalization"].reported == 96.08
    assert own["Reliability"].reproduced == pytest.approx(100 * 23 / 24)
    assert own["Reliability"].n == N and own["Reliability"].ci_high <= 100
    assert own["Reliability"].verdict == "not comparable"  # a tiny model stands in
    assert cells(table, "unedited model")["Reliability"].reported == 0
    assert cells(table, "ELDER refreshed")["Reliability"].reported is None
    shown = table.to_html()
    assert "Reported after 1,000 edits, here after 24." in shown and "SERAC's" not in shown
    assert "100.00, is above" in report.table1(study, "counterfact").to_html()
    kept = pd.read_csv(study.folder / "tables" / "elder-table1-zsre.csv")
    assert kept["reported"].notna().sum() == 20


def test_fewer_edits_are_named_and_met_by_elder_after_as_many(study: InventedStudy) -> None:
    table = report.table1(study, "counterfact")
    rows = list(dict.fromkeys(cell.editor for cell in table.cells))
    assert rows[4:7] == ["WilKE, 8 edits", "ELDER, after 8 edits", "SERAC"]
    assert rows[3] == "ROME, 8 edits"
    assert rows[-3:] == ["ELDER", "ELDER refreshed", "ELDER replayed"]
    short = cells(table, "ROME, 8 edits")["Reliability"]
    assert short.n == FEWER and short.reported == 69.0 and short.verdict == "not comparable"
    then = cells(table, "ELDER, after 8 edits")["Reliability"]
    assert then.n == then.n_edits == FEWER and then.reported is None


def test_the_auxiliary_losses_are_those_of_table_4(study: InventedStudy) -> None:
    table = report.ablation_table(study, "counterfact")
    found = {cell.editor: cell for cell in table.cells if cell.metric == "Generalization"}
    reported = {name: cell.reported for name, cell in found.items()}
    assert reported.pop("unedited model") is None and found["unedited model"].reproduced == 0
    assert reported == {
        "ELDER, guided": 91.26, "ELDER, no auxiliary loss": 87.57, "ELDER, load balancing": 75.49,
    }  # fmt: skip
    assert found["ELDER, guided"].reproduced > found["ELDER, load balancing"].reproduced + 20
    assert len(report.ablation_table(study, "zsre").cells) == 2 + 2 * 3  # balancing is not planned
    digits = cells(table, "ELDER, no auxiliary loss")["digits from allocation"]
    assert digits.reproduced == 8 and digits.n == N / 4 and digits.reported is None


def test_our_extension_is_taken_apart_in_a_table_of_its_own(study: InventedStudy) -> None:
    table = report.ablation_table(study, "counterfact", "replay")
    rows = dict.fromkeys(cell.editor for cell in table.cells)
    assert list(rows) == [
        "unedited model",
        "as in Table 1",
        "replay alone, routers with the experts",
    ]
    found = {name: cells(table, name)["Reliability"] for name in rows}
    assert found["as in Table 1"].reproduced == 100 and found["as in Table 1"].reported is None
    assert found["replay alone, routers with the experts"].reproduced < 70
    assert "our extension" in table.to_html()
    assert report.ablation_table(study, "zsre", "replay") is None


def test_what_is_said_in_place_of_a_lost_edit_is_counted(study: InventedStudy) -> None:
    rows = forgetting.fates(study, "counterfact")
    assert set(rows["editor"]) == {"ELDER", "ELDER refreshed", "ELDER replayed"}
    own = rows[(rows["editor"] == "ELDER") & (rows["moment"] == "end")]
    assert own["said"].value_counts().to_dict() == {forgetting.RIGHT: 23, forgetting.NEAR: 1}
    text = forgetting.forgetting_text(study, "counterfact")
    assert "ELDER: 24 of 24 edits are right at their own moment, 23 of 24 after the last" in text
    assert "Of the 1 that are wrong then, 1 say a later edit&#39;s answer, 1 of these one" in text
    assert "codes are 8.0 of 24 digits from the allocation" in text and "9.0 after" in text
    table = forgetting.fates_table(study, "counterfact")
    assert len(table) == 6 and table[forgetting.RIGHT].sum() == 6 * N - 2


def test_retention_is_a_mean_over_tasks_beside_tables_2_and_7_to_10(study: InventedStudy) -> None:
    table = retention.retention_table(study)
    own = {c.setting: c for c in table.cells if c.editor == "ELDER" and c.metric == "mean of tasks"}
    assert [cell.reported for cell in own.values()] == [30.5, 30.1]
    # Half of the eight of "sentiment" and all four of "recall": a task counts as much as another.
    assert own["zsre, a tiny model"].reproduced == pytest.approx(75)
    rows = {cell.editor for cell in table.cells}
    assert "ROME" in rows and "ELDER, after 8 edits" not in rows
    assert any("ROME, 8 edits" in note for note in table.notes)
    tasks = retention.tasks_table(study, "zsre")
    serac = cells(tasks, "SERAC")
    assert serac["NQ: recall"].reported == 34.5 and serac["SST2: sentiment"].reported == 48.8
    assert serac["mean of tasks"].reported == 30.2 and serac["NQ: recall"].verdict[:3] == "not"
    shown = tasks.to_html()
    assert tasks.caption.startswith("Table 8") and "Without a counterpart here: GSM8K" in shown
    assert "by chance" in shown and "it is 30.24" in shown


def test_the_benchmarks_own_tasks_take_the_stand_ins_place(tmp_path: Path) -> None:
    study = InventedStudy(tmp_path, harness=True)
    table = retention.tasks_table(study, "counterfact")
    base, own = cells(table, "unedited model"), cells(table, "ELDER")
    assert base["RTE"].reproduced == 50 and own["RTE"].reproduced == 40
    assert base["RTE"].reported == 51.8 and base["RTE"].verdict == "not comparable"
    assert own["RTE"].ci_low == pytest.approx(40 - 9.8) and own["RTE"].n == 100
    assert pd.isna(own["CoNLL03"].ci_low)
    shown = table.to_html()
    assert "(0.4.13), so levels are not the paper" in shown
    assert "RTE acc (version 1.0, 0 examples)" in shown
    assert "Without a counterpart here: GSM8K, NQ, BoolQ, MuTual, SAMSum, SST2." in shown
    lost = retention.tasks_table(InventedStudy(tmp_path, lost=("GRACE",), harness=True), "zsre")
    assert cells(lost, "GRACE")["RTE"].error == "EditorError: <b>out of room</b>"


def test_time_and_parameters_beside_table_3(study: InventedStudy) -> None:
    table = elder_tables.efficiency_table(study, "zsre")
    seconds, millions = cells(table, "GRACE").values()
    assert seconds.reported == 13.56 and seconds.reproduced == pytest.approx(1.025)
    assert millions.reported == 6.4 and millions.reproduced == pytest.approx(0.0024)
    assert "swapped" in table.to_html()
    assert all(
        c.reported is None for c in elder_tables.efficiency_table(study, "counterfact").cells
    )


def test_inference_beside_table_6(study: InventedStudy) -> None:
    table = elder_tables.latency_table(study, "zsre")
    own, base = cells(table, "ELDER"), cells(table, "unedited model")
    assert base["milliseconds per prompt"].reported == pytest.approx(560)
    assert base["milliseconds per prompt"].reproduced == pytest.approx(10)
    assert own["milliseconds per prompt"].reported == pytest.approx(580)
    assert own["percent more than without edits"].reproduced == pytest.approx(2.5)


def test_the_notes_on_the_papers_tables_say_what_its_numbers_say() -> None:
    """The internal conflicts, recomputed from the CSV."""
    known = common.reported("elder")
    assert len(known) == 516 and known["source"].str.len().all()
    for item, name in (("Table 8", "ZsRE"), ("Table 10", "CounterFact"), ("Table 7", "ZsRE")):
        rows = known[(known["item"] == item) & ~known["dataset"].str.endswith("Avg.")]
        rows = rows.assign(task=rows["dataset"].str.removeprefix(f"{name} -> "))
        by_task = rows.set_index(["method", "task"])["value"].unstack()
        assert by_task.shape == (10, 8)
        if item != "Table 7":
            assert by_task.loc["GRACE"].equals(by_task.loc["Base"])
            assert by_task.loc["GRACE"].mean() == pytest.approx(30.24, abs=0.005)
        else:
            assert by_task.loc["LoRA"].mean() == pytest.approx(5.95, abs=0.05)
    swapped = known[(known["item"] == "Table 3") & (known["method"] == "ELDER")]
    printed = swapped[swapped["metric"] == "Learnable parameters"].set_index("model")["value"]
    for model, (width, out) in {"GPT2-XL": (1600, 6400), "LLaMA2-7B": (11008, 4096)}.items():
        formula = 6 * (4 * 8 * (width + out) + 4 * (width + 1)) / 1e6
        assert abs(printed[model] - formula) > 1.5
        other = next(name for name in printed.index if name != model)
        assert printed[other] == pytest.approx(formula, abs=0.05)


@pytest.mark.parametrize("nothing", [False, True])
def test_every_figure_is_drawn_or_says_why_not(tmp_path: Path, nothing: bool) -> None:
    study = InventedStudy(tmp_path, empty=nothing)
    rows, chance = deferral.published(study, "zsre")
    records, steps = elder_tables.number_rows(study, "zsre", ("ELDER", "GRACE"))
    points = {
        name: elder_tables.code_points(study, "zsre", name) for name in scores.ours(study, "zsre")
    }
    distances = deferral.distances(study, "zsre")
    plots = [
        figures.nearest_codes(rows, chance, deferral.PROMPTS, deferral.about(rows)),
        figures.deferred_by_threshold(deferral.thresholds(distances), deferral.PROMPTS),
        figures.code_map(points),
        figures.whose_answers(forgetting.fates(study, "zsre"), forgetting.SAID, forgetting.MOMENTS),
        figures.scores_and_size(records, steps, "right_answers"),
        figures.scores_and_size(
            *elder_tables.layer_rows(study, "zsre"), "right_answers", by="layers"
        ),
    ]
    words = " ".join(t.get_text() for p in plots for a in p.figure.axes for t in a.texts)
    assert (words.count("Empty:") >= 6) == nothing
    if not nothing:
        assert "1 run; 1 seed; invented." in plots[0].caption
        assert plots[3].data["edits"].sum() == 2 * 3 * N
        assert set(plots[5].data["layers"]) == {"L = 2", "L = 6"}
        assert len(points["ELDER"]) == 5 * 2 + 20


def test_figure_2_takes_the_longest_sequence_of_each_editor(study, monkeypatch) -> None:
    longer = study.document
    longer["settings"]["zsre"]["sweeps"]["edits"] = {"values": [N, 2 * N]}
    monkeypatch.setattr(InventedStudy, "document", longer)
    usual, short = elder_tables.number_rows(study, "zsre", ("ELDER", "GRACE"))
    assert set(usual["run"]) == set(short["run"]) == {"zsre-ELDER", "zsre-GRACE"}
    for name in ("records", "steps"):
        main = getattr(study, name)("zsre")
        again = main[main["editor"] == "ELDER"].assign(run="longer", sweep="edits", value="48")
        monkeypatch.setattr(
            study, name, lambda setting, sweep="", m=main, a=again: a if sweep == "edits" else m
        )
    for rows in elder_tables.number_rows(study, "zsre", ("ELDER", "GRACE")):
        assert set(rows["run"]) == {"longer", "zsre-GRACE"}


def test_the_claims_are_judged_at_equal_numbers_of_edits(study: InventedStudy) -> None:
    found = {name: report.judged(study, name).tidy.set_index("key") for name in PLACES}
    text = found["counterfact"]
    assert all("could not run" not in evidence for evidence in text["evidence"])
    assert "against ROME after 8 edits" in text.loc["best-reliability", "evidence"]
    assert text.loc["better-than-discrete", "verdict"] == HOLDS
    assert text.loc["deferral", "verdict"] == FAILS and text.loc["edits-pass", "verdict"] == HOLDS
    assert text.loc["unrelated-kept", "verdict"] == FAILS
    assert text.loc["guided", "verdict"] == text.loc["balancing", "verdict"] == HOLDS
    assert text.loc["constant-parameters", "verdict"] == text.loc["faster", "verdict"] == HOLDS
    assert text.loc["inference", "verdict"] == HOLDS
    assert "layers" not in text.index and found["zsre"].loc["layers", "verdict"] == HOLDS
    assert found["zsre"].loc["balancing", "verdict"] == NOT_TESTABLE
    assert "at 50 steps (measured" in text.loc["faster", "evidence"]


def test_what_a_setting_leaves_out_is_named(study: InventedStudy, monkeypatch) -> None:
    fewer = study.document
    for setting in fewer["settings"].values():
        del setting["sweeps"]["auxiliary"]
        for editor in ("MELO intended", "WilKE", "ELDER refreshed", "ELDER replayed"):
            del setting["editors"][editor]
    monkeypatch.setattr(InventedStudy, "document", fewer)
    table = report.table1(study, "zsre")
    left = cells(table, "WilKE")["Reliability"]
    assert left.reported == 53.32 and left.error == "not run in this profile"
    assert not cells(table, "ELDER refreshed") and scores.ours(study, "zsre") == ["ELDER"]
    assert report.ablation_table(study, "zsre") is None
    text = report.judged(study, "zsre").tidy.set_index("key")
    assert "guided" not in text.index
    assert text.loc["best-generalization", "evidence"].endswith(
        "Not run here: WilKE, MELO intended."
    )
    # Ahead of GRACE alone: without MELO it can fail and not hold.
    assert text.loc["better-than-discrete", "verdict"] == NOT_TESTABLE


@pytest.mark.parametrize(
    "missing", [{"empty": True}, {"lost": ("ELDER", "ELDER refreshed", "ELDER replayed")}]
)
def test_what_did_not_run_takes_nothing_down(tmp_path: Path, missing: dict) -> None:
    study, verdicts = InventedStudy(tmp_path, **missing), {}
    for setting in PLACES:
        for build in (
            report.table1, report.decoded_table, report.ablation_table,
            elder_tables.efficiency_table, elder_tables.latency_table,
        ):  # fmt: skip
            assert build(study, setting).to_html()
        assert "No run of ELDER was scored" in forgetting.forgetting_text(study, setting)
        assert forgetting.fates_table(study, setting).empty
        retention.tasks_table(study, setting)
        common.examples(study, setting)
        assert deferral.rates_table(study, setting).empty
        deferral.kept_answers(study, setting)
        assert "No run of ELDER" in elder_words.deferral_text(study, setting)
        verdicts[setting] = report.judged(study, setting)
        assert verdicts[setting].counts[NOT_TESTABLE] == len(verdicts[setting].rows)
        assert "could not run" not in " ".join(f.evidence for _, f in verdicts[setting].rows)
    assert (retention.retention_table(study) is None) == study.empty
    summary = report.summary(study, verdicts, {})
    assert summary.claims and summary.order == 3
    check_findings_of_nothing(summary)
    assert bool(summary.errors) == (not study.empty)


def test_a_failed_run_says_why_in_its_cells(tmp_path: Path) -> None:
    table = report.table1(InventedStudy(tmp_path, lost=("SERAC",)), "zsre")
    assert cells(table, "SERAC")["Reliability"].error == "EditorError: <b>out of room</b>"
    assert "&lt;b&gt;out of room" in table.to_html() and "<b>out" not in table.to_html()


def test_the_front_page_gets_the_claims_and_the_order_of_the_methods(study: InventedStudy) -> None:
    verdicts = {name: report.judged(study, name) for name in PLACES}
    summary = report.summary(study, verdicts, {"zsre": ["A tiny model."]})
    assert summary.status == "done" and {one.item for one in summary.orderings} >= {"Table 1"}
    first = summary.orderings[0]
    assert (first.setting, first.metric) == ("counterfact, a tiny model", "Reliability")
    # ROME and WilKE made fewer edits and stand aside.
    assert first.methods == 7 and first.pairs == 21 and first.units == N
    assert papers().index("elder") + 1 == summary.order
    check_summary(summary, verdicts, {f"{name}, a tiny model" for name in PLACES})


def test_every_claim_can_be_followed_to_its_section() -> None:
    check_claims_and_deviations(InventedStudy(Path()).document, NOTEBOOK)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_plans_what_the_page_shows(profile: str) -> None:
    settings = profile_of("elder", profile)[0]["settings"]
    enabled = {name: s for name, s in settings.items() if s.get("enabled", True)}
    tables = InventedStudy(Path()).document["tables"]
    for name, setting in enabled.items():
        assert {"ELDER", "GRACE"} <= set(setting["editors"]), name
        assert set(setting["editors"]) <= set(tables["main"]["order"])
        assert tables["tasks"]["items"][setting["reported"]["model"]]
        edits, protocol = setting["stream"]["n_edits"], Protocol(**setting["protocol"])
        for editor in setting["editors"].values():
            fewer = editor.get("stream", {}).get("first", edits)
            # ELDER has a checkpoint where the editor stops.
            assert fewer == edits or protocol.checks(fewer // setting["stream"]["batch_size"])
        swept = [row["sweep"] for name in report.STEMS for row in tables[name]["rows"]]
        assert set(setting["sweeps"]) <= {*swept, "experts", "layers", "edits"}
    run = {editor for setting in enabled.values() for editor in setting["editors"]}
    assert run == set(tables["main"]["order"])
    # On the laptop "ELDER refreshed" alone has another number of experts.
    assert profile == "laptop" or any("experts" in s["sweeps"] for s in enabled.values())
    assert any("layers" in s["sweeps"] for s in enabled.values())
