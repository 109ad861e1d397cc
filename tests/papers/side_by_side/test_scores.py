"""The side-by-side page's arithmetic on invented records: measures, units, pairs, costs, advice."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lib.report.claims.claims import Claim
from lib.report.claims.comparisons import (
    alike,
    at_least_in_parts,
    family_ahead,
    keeps,
    none_keeps,
    read_higher_by_all,
)
from lib.report.claims.verdict import FAILS, HOLDS, INCONCLUSIVE, NOT_TESTABLE, Material, Verdict
from papers.side_by_side import compare, costs, scores, successors
from papers.side_by_side.advice import asked_sizes
from papers.side_by_side.claims import unmoved
from tests.papers.side_by_side.invented_side_by_side import (
    FACTS,
    FEWER,
    FIRST,
    InventedStudy,
    N,
    records,
)

ROWS = scores.with_scores(records())
EDITORS = ["FT", "ROME", "GRACE", "SERAC", "MEND"]
PARTS = {"edits": "begins_with", "holdout": "begins_with", "near": "agreement"}


def test_a_row_is_right_by_the_prompt_alone_and_kept_if_nothing_changed() -> None:
    rows = pd.DataFrame(
        {
            "run": "r", "record": ["a", "a#1", "b"], "fact": ["f", "f", "q"],
            "edit_index": [0, 0, -1],
            "subset": ["edits", "holdout", "general"], "answer_accuracy": [1.0, 1.0, 0.5],
            "prompt_accuracy": [1.0, 0.5, np.nan], "begins_with": [1.0, 0.0, np.nan],
            "answer_agreement": [0.5, 1.0, np.nan], "agreement": [0.0, 1.0, np.nan],
        }
    )  # fmt: skip
    found = scores.with_scores(rows)
    assert found["right"].tolist() == [1, 0, 0] and found["tokens"].tolist() == [1, 1, 0.5]
    assert found["kept_forced"].tolist()[:2] == [0, 1] and math.isnan(found["kept_forced"][2])
    assert found["unit"].tolist() == ["f", "f", "q"]
    empty = scores.with_scores(pd.DataFrame(columns=["run", "editor"]))
    assert empty.empty and {"unit", "decoded", "seed"} <= set(empty)


def test_a_fact_owns_its_rephrase_and_its_questions_whatever_the_order() -> None:
    rows = scores.with_scores(records(seeds=2))
    for _, part in rows[rows["subset"] != "general"].groupby("unit"):
        numbers = part["record"].str.extract(r":(\d+)#")[0]
        assert numbers.nunique() == 1 and set(part["subset"]) == set(scores_subsets())
    both = rows[rows["subset"] == "edits"].groupby("seed")["unit"].unique()
    assert set(both[0]) == set(both[1])


def scores_subsets() -> tuple[str, ...]:
    return ("edits", "holdout", "near", "upstream", "portability")


def test_editors_meet_only_at_equal_numbers_of_edits() -> None:
    assert scores.sizes(ROWS) == [FIRST, FEWER, N]
    assert "ROME" not in scores.present(ROWS, N, EDITORS)
    assert scores.present(ROWS, FEWER, EDITORS) == EDITORS
    assert set(scores.at(ROWS, FEWER).query("editor == 'ROME'")["moment"]) == {"end"}
    assert set(compare.against_best(ROWS, EDITORS, N)["editor"]) == {"FT", "GRACE", "SERAC", "MEND"}


def test_a_sample_holds_the_units_that_all_editors_share() -> None:
    rows = scores.at(ROWS, FIRST)
    gone = (rows["editor"] == "FT") & (rows["unit"] == "fact 4") & (rows["subset"] == "holdout")
    found = scores.sample(rows[~gone], ["FT", "GRACE"])
    assert len(found.units) == FIRST - 1 and "fact 4" not in found.units
    assert found.sums.shape == (2, 3, 1, FIRST - 1)
    assert (found.counts[:, 2] == 2).all()  # near and unrelated together are locality
    mine = rows[(rows["editor"] == "GRACE") & (rows["unit"] != "fact 4")]
    means = [
        mine[mine["subset"].isin(part.subsets)][part.column].mean() for part in scores.SCORE
    ]  # fmt: skip
    assert found.scores[1] == pytest.approx(3 / sum(1 / mean for mean in means))


def test_differences_are_paired_and_adjusted_over_the_whole_table() -> None:
    frame = compare.compared(ROWS, EDITORS, N, ["SERAC", "FT"])
    assert set(frame["reference"]) == {"SERAC", "FT"} and "ROME" not in set(frame["editor"])
    row = frame[(frame["editor"] == "FT") & (frame["measure"] == "reliability")].iloc[0]
    assert row["mean"] == pytest.approx(0.3 - 0.9) and row["n"] == row["facts"] == N
    smallest = frame.sort_values("p").iloc[0]
    assert smallest["adjusted"] == pytest.approx(min(1, smallest["p"] * len(frame)))
    assert (frame["adjusted"] >= frame["p"]).all()


def row(editor: str, lower: float, adjusted: float) -> SimpleNamespace:
    return SimpleNamespace(editor=editor, lower=lower, adjusted=adjusted)


def test_equivalence_is_shown_and_not_assumed() -> None:
    word = compare._word
    assert word(row("A", math.nan, math.nan), "A") == compare.BEST
    assert word(row("B", -0.05, 0.9), "A") == compare.WITHIN
    assert word(row("B", -0.03, 0.001), "A") == compare.WITHIN  # worse, and by next to nothing
    assert word(row("B", -0.2, 0.9), "A") == compare.INCONCLUSIVE
    assert word(row("B", math.nan, 1.0), "A") == compare.INCONCLUSIVE
    assert word(row("B", -0.2, 0.01), "A") == compare.WORSE


def test_alternatives_lie_within_the_margin_by_their_interval() -> None:
    twin = ROWS[ROWS["editor"] == "SERAC"].assign(editor="twin", run="twin-0")
    few = compare.against_best(pd.concat([ROWS, twin]), ["SERAC", "twin", "FT"], FIRST)
    assert set(few["word"]) <= {compare.BEST, compare.INCONCLUSIVE, compare.WORSE}  # of ten facts
    frame = compare.against_best(pd.concat([ROWS, twin]), ["SERAC", "twin", "FT"], N)
    told = frame.set_index("editor")
    assert told.loc["FT", "word"] == compare.WORSE
    # Equal on 30 facts, which cannot show that no more than 0.05 is lost.
    same = told[told["word"] != compare.BEST].drop(index="FT").iloc[0]
    assert same["word"] == compare.INCONCLUSIVE and same["mean"] == 0 and same["lower"] < -0.05


def test_single_rounds_are_read_right_after_the_own_batch() -> None:
    found = compare.single_rounds(ROWS, ["FT", "MEND"], FIRST).set_index("editor")
    assert found.loc["FT", "own"] == 1 and found.loc["FT", "n"] == FIRST


def test_a_p_is_printed_alike_everywhere_and_says_when_it_could_not_be_smaller() -> None:
    assert compare.tested(0.012, 0.048) == "p = 0.012, Holm 0.048"
    assert compare.tested(0.012, 0.012) == "p = 0.012"
    assert compare.tested(1 / 10_001, 0.0168, True) == "p ≤ 1e-4 (floor), Holm 0.017"
    assert compare.marked(1 / 10_001, 0.0168, True) == "p ≤ 1e-4*"
    assert compare.marked(0.03, 0.6) == "p = 0.030"
    assert compare.tested(math.nan, math.nan) == "p undefined"


def test_lost_edits_are_the_end_against_the_own_batch() -> None:
    found = compare.lost(ROWS, EDITORS).set_index("editor")
    assert found.loc["FT", "own"] == 1 and found.loc["FT", "end"] == pytest.approx(0.3)
    assert found.loc["FT", "adjusted"] < 0.01 and found.loc["GRACE", "mean"] == 0
    assert found.loc["ROME", "edits"] == found.loc["ROME", "n"] == FEWER


def test_seeds_have_a_spread_and_one_seed_has_none() -> None:
    assert compare.over_seeds(ROWS, EDITORS, N)["sd"].isna().all()
    found = compare.over_seeds(scores.with_scores(records(seeds=3)), EDITORS, N)
    assert (found["seeds"] == 3).all() and (found["sd"] == 0).all()  # the same facts, reordered


def batches(seconds: list[float], numbers: list[float]) -> pd.DataFrame:
    made = [10 * (i + 1) for i in range(len(seconds))]
    rows = {"run": "r", "n_edits": made, "seconds_edit": [10 * s for s in seconds],
            "parameters": numbers, "stored_floats": 0}  # fmt: skip
    return costs.per_batch(pd.DataFrame(rows))


def test_only_a_significant_rise_of_seconds_is_projected() -> None:
    flat = batches([1.0, 1.1, 0.9, 1.0, 1.1], [5] * 5)
    assert costs.trend(flat) == (pytest.approx(1.02), 0.0)
    start, slope = costs.trend(batches([0.5 + 0.01 * (10 * i + 5) for i in range(6)], [5] * 6))
    assert start == pytest.approx(0.5) and slope == pytest.approx(0.01)
    assert costs.trend(batches([1.0, 2.0, 3.0], [5] * 3))[1] == 0  # too few batches


def test_time_and_storage_of_more_edits_are_sums_of_what_was_measured(tmp_path: Path) -> None:
    spent = costs.costs_of(InventedStudy(tmp_path), FACTS)
    serac, grace = spent["SERAC"], spent["GRACE"]
    assert spent["MEND"].fit == 60  # what its training took, though this run found the network
    assert serac.seconds(1000) == pytest.approx(20 + 500) and serac.growth == 0
    assert serac.overhead.mean == pytest.approx(0.5) and serac.saved == 2**20
    assert serac.bytes_at(10) == 2**20 + 4 * 400 and grace.networks == 0  # SERAC's own networks
    # GRACE: 0.1 + 0.1 n seconds at the end of a batch of five, read at its middle.
    assert grace.slope == pytest.approx(0.1) and grace.start == pytest.approx(0.1 + 0.25)
    assert grace.seconds(100) == pytest.approx(35 + 0.1 * 100**2 / 2)
    assert grace.bytes_at(N) == 6000 and grace.bytes_at(2 * N) == pytest.approx(12000)


def test_sizes_beyond_the_measured_ones_are_asked_for() -> None:
    assert asked_sizes([10, 30, 100]) == [(10, True), (30, True), (100, True), (1000, False)]
    assert [n for n, known in asked_sizes([2, 8]) if not known] == [10, 100, 1000]


def test_no_editor_keeps_everything_holds_fails_or_stays_open() -> None:
    material = Material(ROWS)
    assert none_keeps(PARTS, 0.85)(material).word == INCONCLUSIVE  # SERAC: 0.9, 0.8 and 0.9 of 30
    weak = Material(ROWS[ROWS["editor"].isin(["FT"])])
    assert none_keeps(PARTS, 0.8)(weak).word == HOLDS
    few = weak.records[weak.records["edit_index"] < 8]
    assert none_keeps(PARTS, 0.8)(Material(few)).word == INCONCLUSIVE
    found = none_keeps({"edits": "begins_with", "near": "agreement"}, 0.8)(
        Material(ROWS[ROWS["editor"].isin(["FT", "GRACE"])])
    )
    assert found.word == FAILS and "GRACE" in found.evidence
    assert none_keeps(PARTS, 0.8)(Material(ROWS[ROWS["editor"] == "none"])).word == NOT_TESTABLE


def test_families_are_compared_by_their_mean_editor_with_all_edits() -> None:
    test = family_ahead(["SERAC"], ["FT", "ROME"], {"near": "agreement", "upstream": "agreement"})
    found = test(Material(ROWS))
    assert found.word == HOLDS and "with all edits: ROME" in found.evidence
    assert family_ahead(["FT"], ["SERAC"], {"near": "agreement"})(Material(ROWS)).word == FAILS


def test_teacher_forcing_reads_higher_where_half_the_tokens_count() -> None:
    found = read_higher_by_all("answer_accuracy", "begins_with")(Material(ROWS))
    assert found.word == HOLDS and "of 4 single editors" in found.evidence
    found = read_higher_by_all("begins_with", "answer_accuracy")(Material(ROWS))
    assert found.word == FAILS


def test_an_editor_keeps_all_parts_or_not() -> None:
    assert keeps("SERAC", PARTS, 0.3)(Material(ROWS)).word == HOLDS
    found = keeps("FT", PARTS, 0.8)(Material(ROWS))
    assert found.word == FAILS and len(found.rows) == len(PARTS)
    assert keeps("none", PARTS, 0.8)(Material(ROWS)).word == NOT_TESTABLE


def test_as_good_in_every_part_and_alike_both_ways() -> None:
    wide = 0.3  # of 30 facts that never differ, so much could be hidden
    assert at_least_in_parts("SERAC", ["FT"], PARTS, margin=wide)(Material(ROWS)).word == HOLDS
    assert at_least_in_parts("FT", ["SERAC"], PARTS)(Material(ROWS)).word == FAILS
    swept = ROWS[ROWS["editor"] == "FT"].assign(sweep="training", value="none")
    both = Material(pd.concat([ROWS.assign(sweep="", value=""), swept]))
    side = {"editor": "FT", "sweep": "training", "value": "none"}
    assert alike([{"editor": "FT"}, side], PARTS, margin=wide)(both).word == HOLDS
    for pair in ([{"editor": "SERAC"}, side], [side, {"editor": "SERAC"}]):
        assert alike(pair, PARTS)(both).word == FAILS
    assert alike([{"editor": "FT"}, side | {"value": "all"}], PARTS)(both).word == NOT_TESTABLE


def test_a_training_leaves_parts_unmoved_or_not() -> None:
    """Of one sweep's value alone; any change at all is one."""
    named = {"kind": "learned", "editor": "RLEdit", "sweep": "training", "eta_start": 1e-3}
    rows = [
        named | {"value": value, "A_moved": moved, "eta": eta}
        for value, moved, eta in (
            ("sequence", 0.0, 1.1e-3), ("sequence", 0.0, 9e-4), ("edit", 1e-9, 2e-3),
        )
    ]  # fmt: skip
    seen = Material(ROWS, observations=pd.DataFrame(rows))

    def judged(value: str, material: Material) -> Verdict:
        return unmoved("RLEdit", "training", value, ["A_moved"], "eta")(material)

    found = judged("sequence", seen)
    assert found.word == HOLDS and "eta from 0.001 to between 0.0009 and 0.0011" in found.evidence
    assert judged("edit", seen).word == FAILS
    assert judged("none", seen).word == judged("edit", Material(ROWS)).word == NOT_TESTABLE


def test_successors_meet_the_best_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sign of the difference; one that was not scored is not told."""
    monkeypatch.setattr(successors, "AFTER", {"SERAC": ("FT", "MEND"), "Absent": ("FT",)})
    found = successors.against_before(ROWS, N).set_index("editor")
    assert list(found.index) == ["SERAC"]
    row = found.loc["SERAC"]
    best = compare.best_of(ROWS, ["FT", "MEND"], N)
    scored = {one.editor: one.score for one in compare.standings(ROWS, ["SERAC", best], N)}
    assert row["before"] == best and row["mean"] == pytest.approx(scored["SERAC"] - scored[best])
    told = list(successors.told(ROWS, [FIRST, N], {}))
    assert len(told) == 2 and told[0].startswith(f"What came after, at {N:,} edits: SERAC is ")
    monkeypatch.setattr(successors, "AFTER", {best: ("SERAC",)})
    other = successors.against_before(ROWS, N).iloc[0]
    assert other["mean"] == pytest.approx(-row["mean"])
    assert {row["word"], other["word"]} in ({"ahead of", "behind"}, {"not told apart from"})
    monkeypatch.setattr(successors, "AFTER", {"Absent": ("FT",)})
    assert list(successors.told(ROWS, [N], {})) == []


def test_the_findings_of_the_yaml_are_tests_on_columns_that_exist(tmp_path: Path) -> None:
    stated = InventedStudy(tmp_path).document["findings"]
    claims = [Claim.from_spec({k: v for k, v in one.items() if k != "needs"}) for one in stated]
    assert len({claim.key for claim in claims}) == len(claims) >= 4
    for one, claim in zip(stated, claims, strict=True):
        asked = {side["editor"] for side in one.get("sides", ())} | {one.get("editor", "FT")}
        expected = (HOLDS, FAILS, INCONCLUSIVE) if asked <= {*EDITORS} else (NOT_TESTABLE,)
        assert claim.test(Material(ROWS)).word in expected, claim.key
