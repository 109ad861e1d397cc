"""Numbers of other authors beside ours: the file, its table, and who is ahead of whom."""

from pathlib import Path

import pandas as pd
import pytest

from lib.errors import RecordError
from papers.malmen import others
from tests.papers.malmen.invented_malmen import InventedStudy


@pytest.fixture
def study(tmp_path: Path) -> InventedStudy:
    return InventedStudy(tmp_path)


def test_the_file_holds_four_methods_on_three_models_each_with_its_source() -> None:
    known = others.load_others()
    assert len(known) == 96 and known["source"].str.contains("MeG").all()
    assert known.groupby(["dataset", "model", "n_edits"])["method"].nunique().eq(4).all()
    one = known[(known["model"] == "GPT-J") & (known["n_edits"] == 1024)]
    one = one[(one["dataset"] == "zsRE") & (one["method"] == "MEMIT")]
    assert one[["reliability_TF", "generality_TF", "locality_TF"]].squeeze().tolist() == [
        98.51, 87.35, 83.80,
    ]  # fmt: skip


def test_another_layout_is_named(tmp_path: Path) -> None:
    path = tmp_path / "others.csv"
    path.write_text("model,method\nGPT-J,FT\n")
    with pytest.raises(RecordError, match=r"others\.csv: expected the columns dataset"):
        others.load_others(path)


def test_the_table_has_a_row_for_every_run_and_a_column_for_every_method(study) -> None:
    table = others.others_table(study)
    assert len(table) == 24 and list(table)[3:] == ["FT", "MEMIT", "PMET", "MALMEN"]
    row = table[(table["model"] == "GPT-J") & (table["facts at once, m"] == 1024)]
    assert row.loc[row["dataset"] == "zsRE", "MEMIT"].tolist() == ["98.5 / 87.3 / 83.8"]
    assert (study.folder / "tables" / "malmen-others.csv").exists()


def test_orderings_of_others_stand_beside_ours(study) -> None:
    """Counted by hand from the file; ours are invented: MALMEN's GS is far ahead of MEMIT's."""
    found = others.orderings(study, "zsre").set_index(["methods", "score"])
    assert set(found.index.get_level_values(0)) == {
        "MALMEN − FT", "MALMEN − MEMIT", "FT − MEMIT",
    }  # fmt: skip
    ahead = found["others: ahead"]
    assert ahead["MALMEN − MEMIT", "ES"] == "12 of 12"
    assert ahead["FT − MEMIT", "same as before"] == "0 of 12"
    assert found["same order"]["MALMEN − MEMIT", "GS"] == "yes"
    assert (found["m here"] == 16).all()
    shown = others.agreement(found.reset_index())
    told = found["same order"].isin(["yes", "no"]).sum()
    assert f"of the {told} orderings" in shown and f"{9 - told} are inconclusive" in shown


def test_a_dataset_that_others_lack_has_no_orderings(study) -> None:
    assert others.orderings(study, "fever").empty
    assert others.agreement(pd.DataFrame()) == ""


def test_runs_that_failed_have_no_orderings(tmp_path: Path) -> None:
    lost = others.orderings(InventedStudy(tmp_path, lost=("MEMIT",)), "zsre")
    assert set(lost["methods"]) == {"MALMEN − FT"}
    assert others.orderings(InventedStudy(tmp_path, empty=True), "zsre").empty


@pytest.mark.parametrize(
    ("lead", "low", "high", "same"),
    [
        (3, 0.1, 0.2, "yes"), (-3, -0.2, -0.1, "yes"), (3, -0.2, -0.1, "no"),
        (3, -0.1, 0.2, "inconclusive"), (0, 0.1, 0.2, "inconclusive"),
    ],
)  # fmt: skip
def test_an_order_is_the_same_where_both_are_clear(lead, low, high, same) -> None:
    assert others._same(lead, low, high) == same
