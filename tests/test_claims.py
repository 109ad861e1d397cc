"""Claims get the verdict that their numbers allow, and no more."""

import pandas as pd
import pytest
from invented import records, steps

from lib.claims import (
    FAILS,
    HOLDS,
    UNKNOWN,
    Claim,
    Finding,
    Material,
    at_least,
    fewest,
    flat_retention,
    judge,
    no_worse_than_before,
)
from lib.costs import costs_by_editor

MATERIAL = Material(records(n=96), steps(n=96))
EMPTY = Material(MATERIAL.records.iloc[:0], MATERIAL.steps.iloc[:0])


def test_better_on_the_same_prompts_holds_and_its_reverse_fails() -> None:
    found = at_least("MELO", ["LoRA"], "f1_ids")(MATERIAL)
    assert found.verdict == HOLDS and "n = 96" in found.evidence and "p < 0.001" in found.evidence
    assert at_least("LoRA", ["MELO"], "f1_ids")(MATERIAL).verdict == FAILS


def test_one_rival_that_cannot_be_judged_leaves_the_claim_open() -> None:
    found = at_least("MELO", ["LoRA", "Absent"], "f1_ids")(MATERIAL)
    assert found.verdict == UNKNOWN and "no common prompts" in found.evidence


def test_too_few_prompts_cannot_tell() -> None:
    small = Material(records(("MELO", "GRACE"), n=8))
    assert at_least("MELO", ["GRACE"], "f1_ids", "holdout")(small).verdict == UNKNOWN


def test_lower_is_better_turns_the_test_round() -> None:
    assert at_least("MELO", ["LoRA"], "nll", better="lower")(MATERIAL).verdict == HOLDS
    assert at_least("LoRA", ["MELO"], "nll", better="lower")(MATERIAL).verdict == FAILS


def test_locality_against_the_unedited_backbone() -> None:
    assert no_worse_than_before("LoRA", "f1_ids")(MATERIAL).verdict == FAILS
    found = no_worse_than_before("MELO", "f1_ids", margin=0.2)(MATERIAL)
    assert found.verdict == HOLDS


def test_unedited_scores_of_another_run_will_do() -> None:
    rows = MATERIAL.records
    rows = rows[~((rows["editor"] == "MELO") & (rows["moment"] == "before"))]
    assert "n = 96" in no_worse_than_before("MELO", "f1_ids")(Material(rows)).evidence


def test_retention() -> None:
    assert flat_retention("LoRA", "f1_ids")(MATERIAL).verdict == FAILS
    found = flat_retention("MELO", "f1_ids", margin=0.2)(MATERIAL)
    assert found.verdict == HOLDS and "n = 32" in found.evidence  # the oldest third of 96


def test_fewest_compares_counts_and_seconds() -> None:
    assert fewest("GRACE", ["MELO", "LoRA"])(MATERIAL).verdict == HOLDS
    assert fewest("MELO", ["GRACE", "LoRA"])(MATERIAL).verdict == FAILS
    # Stored keys count if asked for: 300 + 16 * 96 numbers for MELO.
    found = fewest("GRACE", ["MELO"], ["parameters", "stored_floats"])(MATERIAL)
    assert found.verdict == HOLDS and "1,836" in found.evidence
    seconds = fewest("MELO", ["GRACE"], ["seconds_per_edit"])(MATERIAL)
    assert seconds.verdict == UNKNOWN
    assert fewest("MELO", ["Absent"])(MATERIAL).verdict == UNKNOWN
    with pytest.raises(ValueError, match="no cost joules"):
        fewest("MELO", [], ["joules"])


def test_costs_are_per_edit_and_per_run() -> None:
    costs = costs_by_editor(MATERIAL.records, MATERIAL.steps)
    assert costs["seconds_per_edit"].between(0.9 / 8, 1.1 / 8).all()
    assert set(costs["editor"]) == {"MELO", "GRACE", "LoRA"}
    assert costs.loc[costs["editor"] == "MELO", "stored_floats"].unique() == [16 * 96]
    assert costs_by_editor(EMPTY.records, EMPTY.steps).empty


@pytest.mark.parametrize(
    "test",
    [
        at_least("MELO", ["LoRA"], "f1_ids"),
        no_worse_than_before("MELO", "f1_ids"),
        flat_retention("MELO", "f1_ids"),
        fewest("MELO", ["LoRA"]),
    ],
)
@pytest.mark.parametrize("material", [EMPTY, Material(pd.DataFrame())])
def test_without_runs_nothing_can_be_told(test, material: Material) -> None:
    judged = judge([Claim("k", "s", "t", test)], material)
    assert judged.counts == {HOLDS: 0, FAILS: 0, UNKNOWN: 1}


def test_a_broken_test_does_not_take_the_report_down() -> None:
    claim = Claim("k", "s", "t", at_least("MELO", ["LoRA"], "no_such_score"))
    found = judge([claim], MATERIAL).tidy.iloc[0]
    assert found["verdict"] == UNKNOWN and "no_such_score" in found["evidence"]


def test_claims_come_from_plain_specs() -> None:
    spec = {"key": "k", "sentence": "MELO is best.", "source": "Table 2", "test": "at_least",
            "editor": "MELO", "others": ["LoRA"], "metric": "f1_ids"}  # fmt: skip
    assert Claim.from_spec(spec).test(MATERIAL).verdict == HOLDS
    with pytest.raises(ValueError, match="no test 'guess'"):
        Claim.from_spec(spec | {"test": "guess"})


def test_display_has_words_and_escapes() -> None:
    claim = Claim("k", "<b>best</b>", "<i>", lambda m: Finding(FAILS, "<script>"))
    shown = judge([claim], EMPTY).to_html()
    assert "<b>" not in shown and "<i>" not in shown and "<script>" not in shown
    assert "✗</span> fails" in shown
    with pytest.raises(ValueError, match="perhaps"):
        Finding("perhaps", "")
