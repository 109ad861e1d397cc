"""ELDER's deferral rule on an invented study: rates, thresholds and the sentences made of them."""

from pathlib import Path

import pytest

from papers.elder import deferral, words
from tests.papers.elder.invented_elder import InventedStudy


@pytest.fixture
def study(tmp_path: Path) -> InventedStudy:
    return InventedStudy(tmp_path)


def test_the_deferral_text_says_what_the_rows_show(study: InventedStudy) -> None:
    text = words.deferral_text(study, "counterfact")
    assert "L = 6 layers, N = 4 experts, k = 2, epsilon = 12" in text
    assert "left 23 different codes of the 46,656" in text
    assert "0 of 24 (edits)" in text and "0 of 24 (unrelated questions)" in text
    assert "deferred no unrelated prompt" in text
    assert "differs from the one" in text and "in 4.0 of 24 digits on average, at most in 4" in text
    # 18 of 24 unrelated questions pass, 6 of them with another answer; 12 general ones, 6 changed.
    assert "Of the 30 unrelated prompts that it let pass, 60.0 % kept" in text
    again = text.split("recomputed by the final routers")[1]
    assert "24 of 24 (unrelated questions)" in again and "deferred 100.0 %" in again
    assert "also deferred" not in text


def test_measured_rates_stand_beside_the_expected_ones(study: InventedStudy) -> None:
    frame = deferral.rates_table(study, "counterfact")
    assert frame.groupby(["N", "codes", "epsilon"]).size().to_dict() == {
        (4, "refreshed", 4): 4, (4, "stored", 12): 4,
        (8, "refreshed", 8): 4, (8, "stored", 12): 4,  # from "ELDER refreshed"
        (16, "refreshed", 10): 4, (16, "stored", 12): 4,
    }  # fmt: skip
    first, chance = frame.iloc[0], frame.iloc[1]
    assert first["unrelated questions"].startswith("0.00") and "(n=24)" in first["edits"]
    assert chance["shares of"] == "expected: random codes"
    assert chance["unrelated questions"] == "0.00" and chance["edits"] == "–"
    many = frame[(frame["N"] == 16) & (frame["codes"] == "stored")]
    assert many.iloc[0]["unrelated questions"].startswith("1.00")


def test_distances_hold_each_run_once(study: InventedStudy) -> None:
    rows = deferral.distances(study, "counterfact")
    assert rows.groupby("run").size().nunique() == 1 and rows["run"].nunique() == 4
    data = deferral.thresholds(rows)
    at = data.set_index(["experts", "codes", "subset", "epsilon"])["mean"]
    assert at[4, "stored", "upstream", 8] == 1 and at[4, "stored", "upstream", 10] == 0
    assert at[4, "refreshed", "edits", 2] == 0 and at[4, "stored", "edits", 4] == 1
    assert (at[:, :, :, 0] == 1).all()
    assert set(data["rule"]) == {12}


def test_answers_are_split_by_what_the_rule_did(study: InventedStudy) -> None:
    frame = deferral.kept_answers(study, "zsre").set_index(["editor", "prompts"])
    row = frame.loc[("ELDER", "unrelated questions")]
    assert row["deferred"] == "0.25" and row["same answer, deferred"].startswith("1.00")
    assert row["same answer, let pass"].startswith("0.67")  # 12 odd ones of 18
    assert frame.loc[("ELDER", "same relation"), "same answer, deferred"] == "none"


def test_the_sentences_follow_the_rates(study: InventedStudy, monkeypatch) -> None:
    """The same run with other observations says something else."""
    real = study.observations

    def changed(subset: str, every: int):
        def observations(setting: str, sweep: str = ""):
            rows = real(setting, sweep)
            mine = (rows["subset"] == subset) & (rows["edit_index"] % every == 0)
            return rows.assign(deferred=rows["deferred"].where(~mine, True))

        return observations

    monkeypatch.setattr(study, "observations", changed("upstream", 4))
    some = words.deferral_text(study, "zsre").split("recomputed")[0]
    assert "6 of 24 (unrelated questions)" in some and "deferred 25.0 % of the unrelated" in some
    assert "the others went through" in some and "no unrelated prompt" not in some
    monkeypatch.setattr(study, "observations", changed("edits", 2))
    some = words.deferral_text(study, "zsre").split("recomputed")[0]
    assert "also deferred 50.0 % of the edits" in some and "no unrelated prompt" in some
