"""Findings of our own get the verdict that their rows allow, and no more."""

from pathlib import Path

import pandas as pd
import pytest

from lib.report.claims.claims import TESTS
from lib.report.claims.comparisons import (
    ahead_on_subset,
    codes_move,
    hidden_by_forcing,
    left_to_backbone,
    mean_within,
    reads_higher,
    sum_overshoots,
)
from lib.report.claims.verdict import FAILS, HOLDS, UNKNOWN, Material
from papers import common
from tests.papers.elder.invented_elder import InventedStudy

N = 40


def rows(n: int = N, subset: str = "edits", moment: str = "end", **columns: object) -> pd.DataFrame:
    """Scored prompts about n facts, each asked once; a column may be a list."""
    common_parts = {"editor": "A", "setting": "s", "seed": 0, "sweep": ""}
    return pd.DataFrame({"record": [f"fact{i}#0" for i in range(n)], "prompt": range(n)}).assign(
        subset=subset, moment=moment, **common_parts, **columns
    )


def judged(test, *frames: pd.DataFrame, **more: pd.DataFrame):
    return test(Material(pd.concat(frames, ignore_index=True) if frames else rows(), **more))


def share(right: int, n: int = N) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def test_a_mean_is_judged_by_its_interval() -> None:
    high, low = rows(f1=share(36)), rows(f1=share(4))
    at_least, at_most = (
        mean_within("A", "f1", "edits", **{side: 0.5}) for side in ("at_least", "at_most")
    )
    assert judged(at_least, high).verdict == HOLDS and judged(at_least, low).verdict == FAILS
    assert judged(at_most, low).verdict == HOLDS and judged(at_most, high).verdict == FAILS
    middle = judged(at_least, rows(f1=share(20)))
    assert (
        middle.verdict == UNKNOWN and "0.500 [" in middle.evidence and "n = 40" in middle.evidence
    )
    few = judged(at_least, rows(8, f1=share(8, 8)))
    assert few.verdict == UNKNOWN and "Only 8 independent facts" in few.evidence
    assert judged(at_least, high.assign(moment="own")).verdict == UNKNOWN


@pytest.mark.parametrize("bounds", [{}, {"at_least": 0.1, "at_most": 0.2}])
def test_a_bound_is_one(bounds: dict) -> None:
    for make in (lambda: mean_within("A", "f1", "edits", **bounds),
                 lambda: left_to_backbone("A", **bounds)):  # fmt: skip
        with pytest.raises(ValueError, match="at_least or at_most"):
            make()


def test_routes_tell_what_is_left_to_the_backbone() -> None:
    test = left_to_backbone("A", at_least=0.9)
    away = rows(route="base")
    assert judged(test, away).verdict == HOLDS
    assert judged(test, rows(route=["base"] * 10 + ["block 1"] * 30)).verdict == FAILS
    assert judged(test, away, rows(subset="near", route="block 0")).verdict == HOLDS


def test_two_readings_of_the_same_rows() -> None:
    test = reads_higher("A", "fed", "alone")
    assert judged(test, rows(fed=share(40), alone=share(20))).verdict == HOLDS
    assert judged(test, rows(fed=share(20), alone=share(40))).verdict == FAILS
    equal = rows(fed=share(20), alone=share(20))
    assert judged(test, equal).verdict == UNKNOWN
    loose = reads_higher("A", "alone", "fed", strictly=False, margin=0.15)
    assert judged(loose, equal).verdict == HOLDS
    assert judged(loose, rows(fed=share(40), alone=share(20))).verdict == FAILS
    assert "No run scored alone" in judged(test, rows(fed=share(40))).evidence


def test_one_witness_is_enough_and_none_proves_nothing() -> None:
    test = hidden_by_forcing("A")
    seen = judged(test, rows(answer_accuracy=1.0, prompt_accuracy=share(39)))
    assert seen.verdict == HOLDS and "1 of 40 edits" in seen.evidence
    assert judged(test, rows(answer_accuracy=1.0, prompt_accuracy=1.0)).verdict == UNKNOWN
    # An edit that is wrong either way is no witness.
    assert judged(test, rows(answer_accuracy=0.5, prompt_accuracy=0.0)).verdict == UNKNOWN


def test_subsets_meet_fact_by_fact() -> None:
    test = ahead_on_subset("A", "f1", "edits", "holdout")
    edits, twice = rows(f1=share(38)), rows(subset="holdout", f1=share(10))
    again = twice.assign(record=twice["record"] + "1", prompt=twice["prompt"] + N)
    found = judged(test, edits, twice, again)
    assert found.verdict == HOLDS and "n = 40" in found.evidence
    assert judged(test, rows(f1=share(10)), rows(subset="holdout", f1=share(38))).verdict == FAILS
    others = twice.assign(record="other" + twice["record"])
    assert "no common prompts" in judged(test, edits, others).evidence


def test_codes_move_and_sums_overshoot_as_observed() -> None:
    seen = rows(own_stored=[0.0] * 4 + [6.0] * 36)
    found = judged(codes_move("A", at_least=0.5), observations=seen)
    assert found.verdict == HOLDS and "5.4 digits on average" in found.evidence
    still = codes_move("A", at_least=0.5)
    assert judged(still, observations=seen.assign(own_stored=0.0)).verdict == FAILS
    assert judged(still, observations=seen.assign(sweep="layers")).verdict == UNKNOWN
    assert judged(still).verdict == UNKNOWN

    layers = pd.DataFrame({
        "run": ["a", "a", "b", "b"], "editor": "A", "kind": "module", "m": [4, 4, 8, 8],
        "path": ["x", "y"] * 2, "summed_residual": [0.5, 0.9, 1.5, 3.0], "residual": 0.1,
    })  # fmt: skip
    test = sum_overshoots("A")
    found = judged(test, observations=layers)
    assert found.verdict == HOLDS and "m = 8, 2 layers" in found.evidence
    assert judged(test, observations=layers[layers["m"] == 4]).verdict == FAILS
    assert judged(test, observations=layers.assign(residual=1.2)).verdict == FAILS
    assert judged(test, observations=layers.assign(editor="B")).verdict == UNKNOWN
    assert judged(test).verdict == UNKNOWN


def test_findings_are_judged_where_their_editors_are_planned(tmp_path: Path) -> None:
    study = InventedStudy(tmp_path)
    found = common.findings(study)
    assert set(found.by_setting) == {"counterfact", "zsre"}
    kept = pd.read_csv(tmp_path / "tables" / "elder-findings.csv")
    assert kept["verdict"].tolist() == found.tidy["verdict"].tolist() and len(kept) == 6
    assert "<h3>Findings: zsre, a tiny model</h3>" in found._repr_html_()

    document = study.document
    spec = {"key": "k", "sentence": "s", "source": "o", "test": "defers", "editor": "ELDER",
            "subsets": ["upstream"], "at_most": 0.1}  # fmt: skip

    class Fewer(InventedStudy):
        @property
        def document(self):
            return document | {
                "findings": [
                    spec | {"settings": ["zsre", "elsewhere"]},
                    spec | {"key": "l", "needs": ["Nobody"]},
                    spec | {"key": "m", "editor": "Nobody"},
                ]
            }

    fewer = common.findings(Fewer(tmp_path))
    assert fewer.tidy[["setting", "key"]].values.tolist() == [["zsre", "k"]]
    nothing = common.findings(Fewer(tmp_path, empty=True)).tidy
    assert nothing["evidence"].tolist() == ["No run of this setting is finished."]


def test_every_test_of_a_finding_is_known_by_name() -> None:
    for test in (ahead_on_subset, codes_move, hidden_by_forcing, left_to_backbone, mean_within,
                 reads_higher, sum_overshoots):  # fmt: skip
        assert TESTS[test.__name__] is test
