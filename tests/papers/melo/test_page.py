"""MELO's page on an invented study: three column groups, generality twice, where numbers come from,
reported curves in panels of their own, costs, claims by group."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import save_file

from lib.report.claims.verdict import FAILS, NOT_TESTABLE
from lib.runs.settings import PROFILES, profile_of
from papers import common
from papers.melo import costs, curves, generality, report, scores, tables
from tests.papers.melo.invented_melo import BATCH, GROUPS, InventedStudy, N, index
from tests.papers.page_checks import (
    check_claims_and_deviations,
    check_findings_of_nothing,
    check_summary,
)

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "melo.ipynb"


@pytest.fixture
def study(tmp_path: Path) -> InventedStudy:
    return InventedStudy(tmp_path)


def cells(table, editor: str) -> dict[str, object]:
    return {cell.metric: cell for cell in table.cells if cell.editor == editor}


def test_each_group_of_table_2_stands_beside_its_reported_numbers(study: InventedStudy) -> None:
    reported = {
        "zsre-t5": {"Locality (F1)": 0.72, "ES (F1)": 0.98, "Generality as released (F1)": 0.97},
        "scotus": {"Locality (Acc)": 0.96, "ES (Acc)": 0.92},
        "hallucination": {"Locality (PPL)": 17.45, "ES (PPL)": 1.04, "ARR (PPL)": 2.66},
    }
    for setting, numbers in reported.items():
        own = cells(tables.table2(study, setting), "MELO")
        assert {name: own[name].reported for name in numbers} == numbers
        assert all(cell.n for cell in own.values())
    assert cells(tables.table2(study, "zsre-t5"), "MELO")["ES (F1)"].reproduced == 0.5


@pytest.mark.parametrize("setting", ["scotus", "zsre-t5"])
def test_the_official_average_weighs_a_short_batch_as_a_full_one(
    study: InventedStudy, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """All rows but the last make one batch. Of F1, a row without overlap zeroes its batch, and a
    row that stands alone has none."""
    rows = scores.scored(study, setting)
    alone = rows["record"].str.endswith(f"#{N - 1}").astype(int)
    monkeypatch.setattr(scores, "scored", lambda *_: rows.assign(batch=alone))
    found = scores.official_averages(study, setting).loc["FT"]
    assert found["mean of rows", "edits"] == pytest.approx(15 / N)
    first = 15 / (N - 1) if setting == "scotus" else 0.0
    assert found["official mean", "edits"] == pytest.approx(first / 2)  # the last row is wrong
    perfect = scores.official_averages(study, setting).loc["GRACE"]
    assert perfect["official mean", "edits"] == (1.0 if setting == "scotus" else 0.5)


def test_a_method_that_was_not_run_keeps_its_reported_numbers_and_a_reason(
    study: InventedStudy,
) -> None:
    mend = cells(tables.table2(study, "hallucination"), "MEND")["ES (PPL)"]
    assert mend.reported == 1754.9
    assert (mend.n, mend.error) == (0, "not run in this profile")
    assert "ROME" not in {cell.editor for cell in tables.table2(study, "zsre-t5").cells}


def test_a_failed_run_shows_its_error(tmp_path: Path) -> None:
    lost = InventedStudy(tmp_path, lost=("GRACE",))
    cell = cells(tables.table2(lost, "zsre-t5"), "GRACE")["ES (F1)"]
    assert "out of room" in cell.error
    assert cell.reported == 0.96
    assert "out of room" in costs.shown(costs.efficiency(lost)).to_string()


def test_perplexity_is_averaged_over_batches_and_over_sentences(study: InventedStudy) -> None:
    released = cells(tables.table2(study, "hallucination"), "LoRA")["ES (PPL)"]
    assert released.n == N // BATCH
    rows = cells(tables.perplexity_table(study, "hallucination"), "LoRA")["ES, mean over sentences"]
    assert rows.n == N
    assert rows.reproduced == pytest.approx((math.exp(0.1) + math.exp(4)) / 2)
    # e of a batch's mean loss lies below the mean of its rows' perplexities
    assert released.reproduced < rows.reproduced


def test_decided_on_the_prompt_alone_the_released_key_serves_no_edit(study: InventedStudy) -> None:
    table = tables.perplexity_table(study, "hallucination")
    own, intended = cells(table, "MELO"), cells(table, "MELO intended")
    alone, given = "ES, decided on the prompt alone", "ES, mean over sentences"
    assert own[alone].reproduced == pytest.approx(math.exp(4))
    assert own[given].reproduced < 30
    assert intended[alone].reproduced == intended[given].reproduced
    served = "edits served when decoding"
    decoded = tables.decoded_table(study, "hallucination")
    assert cells(decoded, "MELO")[served].reproduced == 0
    assert cells(decoded, "MELO intended")[served].reproduced == 1


def test_every_row_of_table_2_is_traced_to_the_table_with_its_numbers(study: InventedStudy) -> None:
    found = tables.origins(study).set_index("row of Table 2")
    assert found.loc["SERAC", "SCOTUS"] == "identical to GRACE's Defer (2 numbers)"
    assert found.loc["CMR", "zsRE"] == "identical to GRACE's FT (2 numbers); Generality new"
    assert found.loc["ROME", "Hallucination"] == "identical to GRACE's ROME (3 numbers)"
    assert found.loc["ROME", "zsRE"] == "–"
    assert set(found.loc["LoRA"]) == set(found.loc["MELO"]) == {"new"}


def test_a_changed_number_is_no_longer_traced(study: InventedStudy, monkeypatch) -> None:
    known = common.reported("melo")
    mine = (
        (known["item"] == "Table 2") & (known["method"] == "CMR") & (known["metric"] == "ES (Acc)")
    )
    changed = known.assign(value=known["value"].mask(mine, 0.53))
    monkeypatch.setattr(common, "reported", lambda paper: changed)
    assert tables.origins(study).set_index("row of Table 2").loc["CMR", "SCOTUS"] == "new"


def test_the_overview_has_the_shape_of_the_papers_table(study: InventedStudy) -> None:
    found = tables.overview(study).set_index("method")
    assert found.shape[1] == 8
    assert found.loc["Defer (SERAC)", "SC ES"].startswith("0.41\u00a0→\u00a0")
    assert found.loc["ROME", "zsRE ES"] == "–"
    assert found.loc["MELO intended", "Hal ARR"].startswith("–\u00a0→\u00a0")


def test_generality_is_scored_on_the_edits_and_on_held_out_rephrases(study: InventedStudy) -> None:
    found = generality.generality(study, "zsre-t5").set_index("editor")
    own = found.loc["MELO"]
    assert own["reported"] == 0.97
    assert own["as released"] == 0.5
    assert own["held out"] == 0
    assert own["high"] < 0
    assert own["facts"] == N / 2
    assert "−" in generality.shown(found.reset_index())["held out − as released"].iloc[0]
    told = generality.conclusion(study)
    assert "place 5 of 6" in told
    assert "best Defer" in told
    assert "The paper's 0.97 can only be set beside the first number" in told


def test_sweeps_stand_left_and_digitised_curves_right(study: InventedStudy) -> None:
    plot = curves.sweep_curves(study, "zsre-t5", "radius")
    sides = plot.data.groupby("side")["method"].unique()
    assert set(sides["here"]) == {"radius 50", "radius 75"}
    assert set(sides["reported"]) == {"radius 50", "radius 75", "radius 100"}
    told = plot.data.query("side == 'reported' and quantity == 'edits' and method == 'radius 75'")
    assert told.set_index("n_edits")["mean"][5000] == 0.98
    early = plot.data.query("side == 'here' and n_edits == 12").set_index(["quantity", "method"])
    # ES of the edits applied so far; the official "holdout" counts those to come as well
    assert (
        early.loc[("released_holdout", "radius 75"), "mean"]
        < (early.loc[("edits", "radius 75"), "mean"])
    )


def test_the_index_is_drawn_by_radius_with_the_papers_answers(study: InventedStudy) -> None:
    plot = curves.index_curves(study, "zsre-t5")
    told = plot.data.query("side == 'reported' and quantity == 'clusters' and n_edits == 5000")
    assert told.set_index("method")["mean"].to_dict() == {
        "radius 50": 3603, "radius 75": 2141, "radius 100": 1547,
    }  # fmt: skip
    heights = {line.get_ydata()[0] for panel in plot.figure.axes[:2] for line in panel.lines}
    assert {7.0, 907.0} <= heights


def test_the_keys_are_drawn_on_the_papers_components_too(study: InventedStudy, tmp_path) -> None:
    keys, owners = index()
    save_file({"keys": keys, "owners": owners}, tmp_path / "index.safetensors")
    study.runs = [
        SimpleNamespace(setting=name, editor="MELO", sweep="", seed=0)
        for name in ("zsre-t5", "hallucination")
    ]
    study.finished = lambda run: SimpleNamespace(editor=tmp_path)
    both = curves.key_maps(study, "zsre-t5")
    assert sorted(both.data["components"].unique()) == ["(1, 2)", "(1, 5)"]
    assert "20 keys of width 8 in 2 clusters, 2 of them with more than 3" in both.caption
    assert curves.key_maps(study, "hallucination").data["components"].unique().tolist() == [
        "(1, 2)"
    ]
    assert curves.key_maps(study, "scotus") is None


def test_costs_count_what_is_kept_beside_the_parameters(study: InventedStudy) -> None:
    found = costs.efficiency(study).set_index(["setting", "editor"])
    own = found.loc[("zsre-t5, a tiny model", "MELO")]
    assert own["seconds_per_edit"] == pytest.approx(1.25 / BATCH)
    assert own["parameters"] == 100 * N / BATCH
    assert own["stored_bytes"] == 4 * 64 * N / BATCH
    assert own["peak_gib"] == 2.0
    assert "not available" in costs.REPORTED


def test_claims_are_judged_by_each_groups_own_score(study: InventedStudy) -> None:
    found = report.verdicts(study)
    assert list(found) == [
        "MELO: zsre-t5, a tiny model", "MELO: hallucination, a tiny model",
        "MELO intended: hallucination, a tiny model", "MELO: scotus, a tiny model",
    ]  # fmt: skip
    verdicts = {title: dict(zip(j.tidy["key"], j.tidy["verdict"], strict=True))
                for title, j in found.items()}  # fmt: skip
    questions, texts, _, documents = verdicts.values()
    rival = report.judged(study, "hallucination", "LoRA").tidy.set_index("key")["verdict"]
    assert questions["best-es"] == FAILS  # GRACE and Defer are better
    assert questions["best-generality"] == FAILS
    assert "best-generality" not in texts
    assert "best-generality" not in documents
    assert rival["accurate"] == rival["locality"] == FAILS  # where a loss rises, lower is better
    assert "near" not in texts
    assert {row["one-card"] for row in verdicts.values()} == {NOT_TESTABLE}
    evidence = found["MELO: hallucination, a tiny model"].tidy.set_index("key")["evidence"]
    assert "lower is better" in evidence["best-es"]
    assert "gpt2-xl" in evidence["one-card"]
    assert "the plan reckons with 16 GiB there, within 24" in evidence["one-card"]


def test_without_runs_everything_says_so(tmp_path: Path) -> None:
    empty = InventedStudy(tmp_path, empty=True)
    for setting in GROUPS:
        assert all(cell.n == 0 for cell in tables.table2(empty, setting).cells)
        assert all(cell.n == 0 for cell in tables.decoded_table(empty, setting).cells)
    assert generality.generality(empty, "zsre-t5").empty
    assert "No run" in generality.conclusion(empty)
    assert all(scores.official_averages(empty, name).empty for name in ("zsre-t5", "scotus"))
    curves.sweep_curves(empty, "zsre-t5", "radius")
    curves.sweep_ends(empty, "zsre-t5", "radius")
    curves.index_curves(empty, "zsre-t5")
    costs.shown(costs.efficiency(empty))
    judged = report.verdicts(empty)
    assert {v for j in judged.values() for v in j.tidy["verdict"]} == {NOT_TESTABLE}
    check_findings_of_nothing(report.summary(empty, judged, {}))


def test_the_front_page_is_told_every_verdict(study: InventedStudy) -> None:
    judged = report.verdicts(study)
    told = report.summary(study, judged, {"zsre-t5": ["A tiny model."]})
    check_summary(told, judged, set(judged))
    assert {one.item for one in told.orderings} == {"Table 2"}
    assert {"ES (F1)", "Locality (F1)", "ES (Acc)"} <= {one.metric for one in told.orderings}


def test_claims_lead_to_sections_and_deviations_are_complete() -> None:
    check_claims_and_deviations(profile_of("melo", "paper")[0] | _yaml(), NOTEBOOK)


def _yaml() -> dict:
    from lib.runs.settings import read_paper

    return read_paper("melo")


def test_editors_of_every_profile_have_a_row_in_table_2() -> None:
    rows = set(_yaml()["tables"]["table2"]["rows"])
    for profile in PROFILES:
        for name, setting in profile_of("melo", profile)[0]["settings"].items():
            assert set(setting["editors"]) <= rows, (profile, name)


def test_rows_of_the_records_are_whole(study: InventedStudy) -> None:
    rows = scores.scored(study, "zsre-t5")
    again = rows[rows["subset"] == "released_holdout"]
    assert set(again["prompt"]) == set(rows[rows["subset"] == "edits"]["prompt"])
    assert not again["f1_released"].isna().any()
    assert scores.scored(study, "scotus")["f1_released"].isna().all()
