"""The rows of ELDER's page: what counts as right, who edited how many facts, and the tests of its
claims that are new."""

import pandas as pd
import pytest

from lib.report.claims.comparisons import ahead_at_equal_edits, better_at_largest, better_variant
from lib.report.claims.verdict import FAILS, HOLDS, INCONCLUSIVE, NOT_TESTABLE, Material
from lib.report.tables import UNEDITED_MODEL, measure, unedited
from papers.elder.scores import (
    Line,
    at_edits,
    by_edits,
    lines,
    scored,
    told_as,
    with_scores,
)
from tests.papers.elder.invented_elder import EVERY, FEWER, InventedStudy, N, records

METRIC = "right_answers"


@pytest.fixture
def study(tmp_path) -> InventedStudy:
    return InventedStudy(tmp_path)


def material(*sweeps: str, setting: str = "counterfact", **rows: pd.DataFrame) -> Material:
    parts = [with_scores(records(setting, sweep)) for sweep in ("", *sweeps)]
    return Material(pd.concat(parts, ignore_index=True), **rows)


def test_an_answer_is_right_if_every_token_is() -> None:
    given = pd.DataFrame(
        {
            "record": ["a", "b", "c", "general/sums/3"],
            "subset": ["edits", "edits", "edits", "general"],
            "answer_accuracy": [1.0, 0.75, None, 1.0],
            "answer_agreement": [0.5, 1.0, None, 1.0],
        }
    )
    rows = with_scores(given)
    assert rows[METRIC].tolist()[:2] == [1, 0] and rows["same_answers"].tolist()[:2] == [0, 1]
    assert rows[METRIC].isna().tolist() == [False, False, True, False]
    assert rows["task"].tolist() == ["", "", "", "sums"]
    empty = with_scores(pd.DataFrame(columns=["run", "setting"]))
    assert {METRIC, "moment", "n_edits", "task"} <= set(empty) and empty.empty


def test_the_unedited_model_is_scored_once_and_on_all_prompts(study: InventedStudy) -> None:
    before = unedited(scored(study, "zsre"))
    assert before["run"].nunique() == 1 and "ROME" not in before["run"].iloc[0]
    assert (before["subset"] == "edits").sum() == N
    assert len(Line(UNEDITED_MODEL, UNEDITED_MODEL, 0).of(scored(study, "zsre"))) == len(before)


def test_lines_follow_the_papers_order(study: InventedStudy) -> None:
    found = {line.label: line for line in lines(study, "zsre")}
    assert list(found)[:4] == ["unedited model", "FT-L", "LoRA", "ROME, 8 edits"]
    assert study.edits("zsre", "WilKE") == FEWER and study.edits("zsre") == N
    assert not found["WilKE, 8 edits"].comparable and found["ELDER"].comparable
    assert found["ELDER, after 8 edits"].reported == ""
    rows = found["ELDER, after 8 edits"].of(scored(study, "zsre"))
    assert set(rows["n_edits"]) == {FEWER} and set(rows["moment"]) == {"checkpoint"}


def test_a_corrected_method_and_the_unedited_model_stand_beside_the_papers_rows() -> None:
    names = (UNEDITED_MODEL, "MELO intended", "MELO", "ELDER refreshed")
    assert [told_as(name) for name in names] == ["Base", "MELO", "MELO", "ELDER refreshed"]


def test_scores_at_a_number_of_edits_are_a_checkpoint_or_the_end() -> None:
    rows = with_scores(records("zsre"))
    assert set(at_edits(rows, "ELDER", EVERY)["moment"]) == {"checkpoint"}
    assert set(at_edits(rows, "ELDER", N)["moment"]) == {"end"}
    assert at_edits(rows, "ELDER", N - 1).empty
    assert (by_edits(rows)["edit_index"] < by_edits(rows)["n_edits"]).all()


def test_percent_cells_compare_shares_with_reported_percent() -> None:
    rows = with_scores(records("zsre")).query("editor == 'ELDER' and moment == 'end'")
    common = {"item": "x", "metric": "x", "editor": "ELDER", "subset": "edits"}
    share = measure(rows, METRIC, reported=0.9, n_reported=1000, **common)
    cell = measure(rows, METRIC, reported=90.0, n_reported=1000, percent=True, **common)
    assert cell.reproduced == pytest.approx(100 * share.reproduced) and cell.reported == 90
    assert cell.ci_low == pytest.approx(100 * share.ci_low) and cell.verdict == share.verdict
    low = measure(rows, METRIC, reported=20.0, n_reported=1000, percent=True, **common)
    assert low.verdict == "above"


def test_rivals_are_met_at_their_own_number_of_edits() -> None:
    """ELDER is made bad at its end and stays good at its checkpoint: only ROME meets the latter."""
    rows = with_scores(records("counterfact"))
    late = (rows["editor"] == "ELDER") & (rows["moment"] == "end")
    rows.loc[late, METRIC] = 0.0
    early = (rows["editor"] == "ELDER") & (rows["moment"] == "checkpoint")
    rows.loc[early, METRIC] = 1.0
    told = Material(rows)
    # FEWER facts are fewer than can be judged: the difference is in the evidence.
    found = ahead_at_equal_edits("ELDER", ["ROME"], METRIC)(told)
    assert "after 8 edits: +0.375" in found.evidence and found.word == INCONCLUSIVE
    assert ahead_at_equal_edits("ELDER", ["GRACE"], METRIC)(told).word == FAILS
    both = ahead_at_equal_edits("ELDER", ["GRACE", "Absent"], METRIC, missing="Left: X.")(told)
    assert "against Absent: no common prompts" in both.evidence and "after 0" not in both.evidence
    assert both.evidence.endswith("Left: X.")


def halved(told: Material) -> Material:
    """The same rows with half the score, so that there is room above it."""
    return Material(told.records.assign(**{METRIC: told.records[METRIC] / 2}))


def test_ahead_strictly_needs_a_gain() -> None:
    told = material()
    for rows, strictly, verdict in (
        (halved(told), False, HOLDS), (halved(told), True, FAILS),
        (told, True, NOT_TESTABLE),  # so near the top nobody can gain the margin
    ):  # fmt: skip
        test = ahead_at_equal_edits("ELDER", ["ELDER refreshed"], METRIC, strictly=strictly,
                                    margin=0.2)  # fmt: skip
        assert test(rows).word == verdict
    assert ahead_at_equal_edits("ELDER", ["FT-L"], METRIC, strictly=True)(told).word == HOLDS


def test_variants_of_a_sweep_are_compared_by_name_and_by_size() -> None:
    told = material("auxiliary", "experts")
    found = better_variant("ELDER", "auxiliary", "guided", ["none", "balancing"], METRIC)(told)
    assert found.word == HOLDS and "Holm over 2" in found.evidence
    assert better_variant("ELDER", "auxiliary", "none", ["guided"], METRIC)(told).word == FAILS
    layers = material("layers", setting="zsre")
    assert better_at_largest("ELDER", "layers", METRIC)(layers).word == HOLDS
    same = better_at_largest("ELDER", "experts", METRIC, margin=0.2)(halved(told))
    assert same.word == FAILS and "16 against 4: +0.000" in same.evidence
    alone = better_at_largest("ELDER", "layers", METRIC)(told)
    assert alone.word == NOT_TESTABLE and "(none)" in alone.evidence
