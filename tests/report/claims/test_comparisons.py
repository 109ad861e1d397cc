"""Claims get the verdict that their numbers allow, and no more."""

import pandas as pd
import pytest

from lib.metrics.costs import costs_by_editor, inference
from lib.report.claims.claims import Beside, Claim, Judgement, Verdicts, judge
from lib.report.claims.comparisons import (
    ahead_at_equal_edits,
    at_least,
    better_than,
    flat_retention,
    no_worse_than_before,
    stable_over,
    stable_over_steps,
)
from lib.report.claims.costs import constant_size, faster_as_published, fewest, overhead_below
from lib.report.claims.verdict import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    NOT_TESTABLE,
    TESTS,
    Evidence,
    Material,
    Verdict,
    claim_test,
)
from tests.report.invented import records, steps

MATERIAL = Material(records(n=96), steps(n=96))
EMPTY = Material(MATERIAL.records.iloc[:0], MATERIAL.steps.iloc[:0])


def test_better_on_the_same_prompts_holds_and_its_reverse_fails() -> None:
    found = at_least("MELO", ["LoRA"], "f1_ids")(MATERIAL)
    assert found.word == HOLDS and "n = 96" in found.evidence and "p ≤ 1e-4" in found.evidence
    assert at_least("LoRA", ["MELO"], "f1_ids")(MATERIAL).word == FAILS


def test_one_rival_that_cannot_be_judged_leaves_the_claim_open() -> None:
    found = at_least("MELO", ["LoRA", "Absent"], "f1_ids")(MATERIAL)
    assert found.word == NOT_TESTABLE and "no common prompts" in found.evidence


def test_too_few_prompts_cannot_tell() -> None:
    small = Material(records(("MELO", "GRACE"), n=8))
    assert at_least("MELO", ["GRACE"], "f1_ids", "holdout")(small).word == INCONCLUSIVE


def test_lower_is_better_turns_the_test_round() -> None:
    assert at_least("MELO", ["LoRA"], "nll", better="lower")(MATERIAL).word == HOLDS
    assert at_least("LoRA", ["MELO"], "nll", better="lower")(MATERIAL).word == FAILS


def test_locality_against_the_unedited_backbone() -> None:
    assert no_worse_than_before("LoRA", "f1_ids")(MATERIAL).word == FAILS
    found = no_worse_than_before("MELO", "f1_ids", margin=0.2)(MATERIAL)
    assert found.word == HOLDS


def test_unedited_scores_of_another_run_will_do() -> None:
    rows = MATERIAL.records
    rows = rows[~((rows["editor"] == "MELO") & (rows["moment"] == "before"))]
    assert "n = 96" in no_worse_than_before("MELO", "f1_ids")(Material(rows)).evidence


def test_retention() -> None:
    assert flat_retention("LoRA", "f1_ids")(MATERIAL).word == FAILS
    found = flat_retention("MELO", "f1_ids", margin=0.2)(MATERIAL)
    assert found.word == HOLDS and "n = 48" in found.evidence  # the older half of 96


def test_fewest_compares_counts_and_seconds() -> None:
    assert fewest("GRACE", ["MELO", "LoRA"])(MATERIAL).word == HOLDS
    assert fewest("MELO", ["GRACE", "LoRA"])(MATERIAL).word == FAILS
    # Stored keys count if asked for: 300 + 16 * 96 numbers for MELO.
    found = fewest("GRACE", ["MELO"], ["parameters", "stored_floats"])(MATERIAL)
    assert found.word == HOLDS and "1,836" in found.evidence
    seconds = fewest("MELO", ["GRACE"], ["seconds_per_edit"])(MATERIAL)
    assert seconds.word == INCONCLUSIVE
    assert fewest("MELO", ["Absent"])(MATERIAL).word == NOT_TESTABLE
    with pytest.raises(ValueError, match="no cost joules"):
        fewest("MELO", [], ["joules"])


def test_costs_are_per_edit_and_per_run() -> None:
    costs = costs_by_editor(MATERIAL.records, MATERIAL.steps)
    assert costs["seconds_per_edit"].between(0.9 / 8, 1.1 / 8).all()
    assert set(costs["editor"]) == {"MELO", "GRACE", "LoRA"}
    assert costs.loc[costs["editor"] == "MELO", "stored_floats"].unique() == [16 * 96]
    assert costs_by_editor(EMPTY.records, EMPTY.steps).empty


def test_rounds_that_start_afresh_are_costed_by_their_own_size() -> None:
    sizes = (8, 8, 4)
    steps = pd.DataFrame({
        "run": "MELO-0", "batch": range(3), "n_edits": sizes, "parameters": 1, "stored_floats": 1,
        "seconds_edit": [2.0 * n for n in sizes],
    })  # fmt: skip
    assert costs_by_editor(MATERIAL.records, steps)["seconds_per_edit"].tolist() == [2.0] * 3


def test_timed_passes_are_read_off_the_manifests() -> None:
    done = {"inference": {"base_seconds": 0.1, "edited_seconds": 0.11, "repeats": 3},
            "peak_memory_bytes": 2**30}  # fmt: skip
    rows = inference(MATERIAL.records, {"MELO-0": done, "LoRA-0": {"peak_memory_bytes": 0}})
    assert rows["editor"].tolist() == ["MELO", "LoRA"]
    assert rows["overhead"].iloc[0] == pytest.approx(0.1) and rows["peak_gib"].iloc[0] == 1
    assert rows["overhead"].isna().iloc[1]
    assert inference(EMPTY.records, {}).empty


@pytest.mark.parametrize(
    "test",
    [
        at_least("MELO", ["LoRA"], "f1_ids"),
        no_worse_than_before("MELO", "f1_ids"),
        flat_retention("MELO", "f1_ids"),
        fewest("MELO", ["LoRA"]),
        better_than("MELO", ["LoRA"], "f1_ids"),
        stable_over_steps("MELO", "f1_ids"),
        stable_over("MELO", "batch", "f1_ids"),
        constant_size("MELO"),
        overhead_below("MELO", 0.2),
    ],
)
@pytest.mark.parametrize("material", [EMPTY, Material(pd.DataFrame())])
def test_without_runs_nothing_can_be_told(test, material: Material) -> None:
    judged = judge([Claim("k", "s", "t", test)], material)
    assert judged.counts[NOT_TESTABLE] == sum(judged.counts.values()) == 1


def test_a_broken_test_does_not_take_the_report_down() -> None:
    claim = Claim("k", "s", "t", at_least("MELO", ["LoRA"], "no_such_score"))
    found = judge([claim], MATERIAL).tidy.iloc[0]
    assert found["verdict"] == INCONCLUSIVE and "no_such_score" in found["evidence"]


def test_claims_come_from_plain_specs() -> None:
    spec = {"key": "k", "sentence": "MELO is best.", "source": "Table 2", "test": "at_least",
            "editor": "MELO", "others": ["LoRA"], "metric": "f1_ids"}  # fmt: skip
    assert Claim.from_spec(spec).test(MATERIAL).word == HOLDS
    with pytest.raises(ValueError, match="no test 'atleast'; did you mean at_least"):
        Claim.from_spec(spec | {"test": "atleast"})
    with pytest.raises(ValueError, match="there are at_least, better_than"):
        Claim.from_spec(spec | {"test": "?"})


def test_better_needs_a_difference_and_not_only_the_absence_of_one() -> None:
    assert better_than("MELO", ["LoRA"], "f1_ids")(MATERIAL).word == HOLDS
    assert better_than("LoRA", ["MELO"], "f1_ids")(MATERIAL).word == FAILS
    twin = MATERIAL.records[MATERIAL.records["editor"] == "LoRA"].assign(editor="Twin", run="t")
    both = Material(pd.concat([MATERIAL.records, twin]))
    # A twin's scores agree on 96 prompts: at least as good for sure, better by no more than this.
    assert at_least("Twin", ["LoRA"], "f1_ids", margin=0.2)(both).word == HOLDS
    assert better_than("Twin", ["LoRA"], "f1_ids")(both).word == FAILS
    assert better_than("Twin", ["LoRA"], "f1_ids", margin=0.01)(both).word == INCONCLUSIVE


def test_a_rival_that_was_not_run_is_named_or_leaves_the_claim_open() -> None:
    found = better_than("MELO", ["LoRA"], "f1_ids", missing="Not compared with MEND.")(MATERIAL)
    assert found.word == HOLDS and found.evidence.endswith("Not compared with MEND.")
    assert better_than("MELO", ["LoRA", "MEND"], "f1_ids")(MATERIAL).word == NOT_TESTABLE


def test_stable_over_steps_compares_the_end_with_the_own_moment_of_each_edit() -> None:
    found = stable_over_steps("MELO", "f1_ids", margin=0.15)(MATERIAL)
    assert found.word == HOLDS
    assert "the end against their own moment" in found.evidence and "n = 96" in found.evidence
    # All that is lost is lost before the first checkpoint: late checkpoints agree with the end.
    forgetting = MATERIAL.records.copy()
    late = forgetting["moment"].isin(["checkpoint", "end"]) & (forgetting["edit_index"] < 40)
    forgetting.loc[late, "f1_ids"] = 0.0
    assert stable_over_steps("MELO", "f1_ids")(Material(forgetting)).word == FAILS


def test_without_scores_at_the_own_moment_the_first_checkpoint_after_it_stands_in() -> None:
    rows = MATERIAL.records[MATERIAL.records["moment"] != "own"]
    found = stable_over_steps("MELO", "f1_ids", margin=0.2)(Material(rows))
    # Checkpoints at 48 and 96 edits: as many rows as were edited by the first.
    assert "first checkpoint" in found.evidence and "n = 48" in found.evidence
    ends = MATERIAL.records[MATERIAL.records["moment"] == "end"]
    found = stable_over_steps("MELO", "f1_ids")(Material(ends))
    assert found.word == NOT_TESTABLE and "before the last step" in found.evidence


def swept(worse: float) -> Material:
    """MELO's rows at two values of a sweep; the larger one loses `worse` of the score."""
    rows = MATERIAL.records[MATERIAL.records["editor"] == "MELO"]
    parts = [
        rows.assign(sweep="batch", value="10", run="a"),
        rows.assign(sweep="batch", value="9", run="b", f1_ids=rows["f1_ids"] + worse),
        rows.assign(sweep="", value=""),
    ]
    return Material(pd.concat(parts))


def test_stable_over_a_sweep_compares_with_its_smallest_value() -> None:
    test = stable_over("MELO", "batch", "f1_ids")
    found = test(swept(0.0))
    assert found.word == HOLDS and "10 against 9" in found.evidence  # numbers, not text
    assert test(swept(0.3)).word == FAILS
    alone = swept(0.0).records
    found = test(Material(alone[alone["value"] != "9"]))
    assert found.word == NOT_TESTABLE and "Too few values" in found.evidence
    assert stable_over("MELO", "alpha", "f1_ids")(swept(0.0)).word == NOT_TESTABLE


def test_sweeps_stay_out_of_the_main_comparisons() -> None:
    rows = MATERIAL.records
    noise = rows[rows["editor"] == "MELO"].assign(sweep="batch", value="1", run="s", f1_ids=0.0)
    both = Material(pd.concat([rows.assign(sweep="", value=""), noise]))
    assert at_least("MELO", ["LoRA"], "f1_ids")(both).word == HOLDS


def test_constant_size_counts_after_every_batch() -> None:
    rows = MATERIAL.steps.assign(editor=MATERIAL.steps["run"].str.split("-").str[0], setting="tiny")
    material = Material(MATERIAL.records, rows)
    assert constant_size("LoRA")(material).word == HOLDS
    found = constant_size("MELO")(material)
    assert found.word == FAILS and "428" in found.evidence and "1,836" in found.evidence
    assert constant_size("MELO", ["parameters"])(material).word == HOLDS
    assert constant_size("LoRA", setting="elsewhere")(material).word == NOT_TESTABLE
    first = rows.groupby("run").head(1)
    assert constant_size("LoRA")(Material(MATERIAL.records, first)).word == NOT_TESTABLE
    uncounted = rows.assign(stored_floats=float("nan"))
    assert constant_size("LoRA")(Material(MATERIAL.records, uncounted)).word == NOT_TESTABLE


def timed(**overheads: float) -> Material:
    rows = [
        {"run": name, "setting": "tiny", "editor": name, "base_seconds": 0.1, "repeats": 5.0,
         "edited_seconds": 0.1 * (1 + overhead), "overhead": overhead}
        for name, overhead in overheads.items()
    ]  # fmt: skip
    return Material(MATERIAL.records, inference=pd.DataFrame(rows))


def test_overhead_must_clear_the_bound_by_more_than_the_noise() -> None:
    test = overhead_below("MELO", 0.15, unchanged=["FT"])
    found = test(timed(MELO=0.08, FT=-0.02))
    assert found.word == HOLDS and "+8.0 %" in found.evidence and "2.0 %" in found.evidence
    assert test(timed(MELO=0.3, FT=0.02)).word == FAILS
    assert test(timed(MELO=0.08, FT=0.2)).word == INCONCLUSIVE
    assert test(timed(FT=0.01)).word == NOT_TESTABLE
    # No edit makes a pass faster: a pass of -12 % was timed with noise of that size.
    assert test(timed(MELO=-0.12)).word == HOLDS and test(timed(MELO=-0.9)).word == INCONCLUSIVE
    untimed = timed(MELO=0.08).inference.assign(overhead=float("nan"))
    assert test(Material(MATERIAL.records, inference=untimed)).word == NOT_TESTABLE
    assert overhead_below("MELO", 0.15)(timed(MELO=0.08)).word == HOLDS


def test_every_test_can_be_named_in_a_paper() -> None:
    assert all(test.__doc__ and name == test.__name__ for name, test in TESTS.items())
    assert TESTS["at_least"] is at_least and TESTS["fewest"] is fewest


def test_a_name_is_given_once() -> None:
    def at_least() -> None: ...

    with pytest.raises(ValueError, match="a test 'at_least' already"):
        claim_test(at_least)


def test_a_claim_links_to_the_section_that_shows_it() -> None:
    claim = Claim("k", "s", "t", fewest("MELO", ["LoRA"]), "E1: single-round <editing>")
    shown = judge([claim], EMPTY).to_html()
    assert '<a href="#e1-single-round-editing">E1: single-round &lt;editing&gt;</a>' in shown
    assert "<a " not in judge([Claim("k", "s", "t", claim.test)], EMPTY).to_html()


def test_display_has_words_and_escapes() -> None:
    claim = Claim("k", "<b>best</b>", "<i>", lambda m: Verdict(FAILS, "<script>"))
    shown = judge([claim], EMPTY).to_html()
    assert "<b>" not in shown and "<i>" not in shown and "<script>" not in shown
    assert "✗</span> fails" in shown
    with pytest.raises(ValueError, match="perhaps"):
        Verdict("perhaps", "")


def test_speed_is_compared_at_each_ones_published_steps() -> None:
    """Both take about 1/8 of a second an edit: at eight times the steps MELO is far slower."""
    steps = {"MELO": (10, 80), "GRACE": (10, 10)}
    found = faster_as_published("MELO", "GRACE", steps)(MATERIAL)
    assert found.word == FAILS and "at 80 steps (measured" in found.evidence
    assert "12.9 ms per step and edit" in found.evidence
    assert faster_as_published("GRACE", "MELO", steps)(MATERIAL).word == HOLDS
    same = faster_as_published("MELO", "GRACE", {"MELO": (10, 50), "GRACE": (10, 50)})
    assert same(MATERIAL).word == INCONCLUSIVE
    assert faster_as_published("MELO", "Nobody", steps | {"Nobody": (1, 1)})(MATERIAL).word == (
        NOT_TESTABLE
    )


def test_a_training_that_belongs_to_the_method_counts_in_its_seconds() -> None:
    timed = pd.DataFrame({"run": ["GRACE-0"], "editor": "GRACE", "fit_seconds": 96.0})
    material = Material(MATERIAL.records, MATERIAL.steps, timed)
    costs = ["seconds_per_edit"]
    assert fewest("MELO", ["GRACE"], costs)(material).word == INCONCLUSIVE
    trained = fewest("MELO", ["GRACE"], costs, prepared=["GRACE"])
    found = trained(material)  # a second an edit more
    assert found.word == HOLDS and "With the preparation before the first edit: GRACE" in (
        found.evidence
    )
    # A network from the cache: what its training took when it was done.
    seen = pd.DataFrame({"run": ["GRACE-0"], "kind": "training", "seconds": 960.0})
    cached = Material(MATERIAL.records, MATERIAL.steps, timed.assign(fit_seconds=0.1), seen)
    assert "GRACE 10.1" in trained(cached).evidence
    assert trained(MATERIAL).word == NOT_TESTABLE  # nothing says what its preparation took


def test_a_page_tells_a_claim_once_with_all_its_settings() -> None:
    claim = Claim("k", "It holds.", "t", fewest("MELO", ["LoRA"]), "Table 1", "MELO")
    small = Judgement(((claim, Verdict(INCONCLUSIVE, "Little.")),))
    row = Evidence("a", "not worse", 0.0, -0.01, 0.01, 90, 80, 0.05, 1.0)
    large = Judgement(((claim, Verdict.of([row], "Much.")),))
    beside = {"k": (Beside("overnight", FAILS, (1, 2), 500, "../overnight/melo.html"),)}
    shown = Verdicts({"a": small, "b": large}, {"a": "Small", "b": "Large"}, beside).to_html()
    assert shown.count("It holds.") == 1 and "in 1 of 2 settings" in shown
    assert shown.index("Large") < shown.index("Small")  # the most independent facts first
    assert '<a href="../overnight/melo.html">overnight</a>' in shown and "(500 facts)" in shown
    assert "No setting" in Verdicts({})._repr_html_()
    assert Verdicts({"a": small, "b": large}).numbers["says"].tolist()[1:] == [HOLDS]


def test_editors_that_make_fewer_edits_are_met_after_as_many() -> None:
    """The rival is better at the checkpoint and worse at its end, which comes later."""
    rows = [
        {"editor": editor, "setting": "a", "seed": 0, "subset": "edits", "moment": moment,
         "n_edits": n, "record": f"fact-{k}", "prompt": f"p{k}", "edit_index": k,
         "exact_match": score(k)}
        for editor, moment, n, score in (
            ("Ours", "end", 20, lambda k: float(k % 2)),
            ("Theirs", "checkpoint", 20, lambda k: 1.0),
            ("Theirs", "end", 40, lambda k: 0.0),
        )
        for k in range(n if moment == "end" and editor == "Theirs" else 20)
    ]  # fmt: skip
    told = Material(pd.DataFrame(rows))
    for test in (
        better_than("Ours", ["Theirs"], "exact_match"),
        ahead_at_equal_edits("Ours", ["Theirs"], "exact_match", strictly=True),
    ):
        found = test(told)
        assert found.word == FAILS and "after 20 edits: −0.500" in found.evidence
    turned = ahead_at_equal_edits("Theirs", ["Ours"], "exact_match", strictly=True)(told)
    assert turned.word == HOLDS and "after 20 edits: +0.500" in turned.evidence
