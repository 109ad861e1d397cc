"""Tables print reported beside reproduced, escape everything and hide no failure."""

import html
import itertools
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from scipy import stats

from lib.errors import RecordError
from lib.report import tables
from lib.report.orderings import orderings
from lib.report.page import data_counts
from lib.report.reported import REPORTED_COLUMNS, load_reported, reported_value
from lib.report.tables import (
    NOT_RUN,
    TIDY_COLUMNS,
    UNEDITED_MODEL,
    Cell,
    Regenerated,
    build_table,
    measure,
    unedited,
)
from tests.report.invented import records

PAPERS = Path(__file__).parents[2] / "papers"
REPORTED = PAPERS / "melo" / "reported.csv"


def cell(**changes: object) -> Cell:
    values = {"item": "Table 2", "setting": "T5", "backbone": "tiny", "dataset": "invented",
              "editor": "MELO", "metric": "ES"}  # fmt: skip
    return Cell(**values | changes)


def test_a_measured_cell_carries_number_interval_n_and_verdict() -> None:
    found = measure(
        records(seeds=2), "f1_ids", item="Table 2", metric="ES (F1)", editor="MELO",
        subset="edits", reported=0.98, n_reported=1000,
    )  # fmt: skip
    assert found.ci_low < found.reproduced < found.ci_high
    assert (found.n, found.seeds, found.n_edits) == (96, 2, 48)
    assert found.verdict == "consistent"
    assert (found.setting, found.backbone, found.dataset) == ("tiny", "tiny-t5", "invented")


def test_a_level_is_held_against_the_reported_one_only_where_nothing_was_substituted() -> None:
    options = {"item": "t", "metric": "m", "editor": "MELO", "subset": "edits", "reported": 0.5,
               "n_reported": 1000}  # fmt: skip
    assert measure(records(), "f1_ids", **options).verdict == "above"
    found = measure(records(), "f1_ids", substitutions=["A small model."], **options)
    assert found.verdict == "not comparable" and found.reported == 0.5
    shown = build_table([found]).to_html()
    assert "not comparable" not in shown and "above" not in shown


def test_the_order_of_the_methods_stands_below_the_table() -> None:
    told = {"MELO": 0.9, "GRACE": 0.5, "LoRA": 0.7}
    cells = [
        measure(records(), "f1_ids", item="Table 2", metric="ES", editor=editor, subset="edits",
                reported=value, n_reported=100)
        for editor, value in told.items()
    ]  # fmt: skip
    found = orderings(cells)[0]
    ours = {cell.editor: cell.reproduced for cell in cells}
    pairs = list(itertools.combinations(told, 2))
    agree = sum((told[a] > told[b]) == (ours[a] > ours[b]) for a, b in pairs)
    assert (found.methods, found.pairs, found.agree) == (3, 3, agree)
    tau = stats.kendalltau(list(told.values()), [ours[name] for name in told]).statistic
    assert found.tau == pytest.approx(tau)
    shown = html.unescape(build_table(cells).to_html())
    assert f"as reported against here: ES: {found}." in shown
    # Two methods are one pair, and one that made fewer edits is not compared.
    fewer = [*cells[:2], replace(cells[2], n_edits=1)]
    assert orderings(cells[:2]) == orderings(fewer) == []
    assert "Order of the methods" not in build_table(fewer).to_html()


def test_two_phrasings_of_a_fact_widen_the_interval() -> None:
    rows = records()
    options = {"item": "t", "metric": "m", "editor": "MELO", "subset": "holdout"}
    by_fact = measure(rows, "f1_ids", **options)
    by_row = measure(rows.assign(unit=rows["record"]), "f1_ids", **options)
    assert by_fact.n == by_row.n == by_row.facts == 48 and by_fact.facts == 24
    assert (by_fact.ci_low, by_fact.ci_high) != (by_row.ci_low, by_row.ci_high)


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    rows = records()
    found = measure(rows, "nll", item="t", metric="PPL", editor="MELO", subset="edits",
                    exponentiate=True, reported=1.2, n_reported=100)  # fmt: skip
    chosen = rows[(rows["editor"] == "MELO") & (rows["subset"] == "edits")]
    mean = chosen[chosen["moment"] == "end"]["nll"].mean()
    assert found.reproduced == pytest.approx(math.exp(mean))


@pytest.mark.parametrize("frame", [pd.DataFrame(), records().iloc[:0], records()])
def test_a_cell_without_rows_says_so(frame: pd.DataFrame) -> None:
    found = measure(frame, "f1_ids", item="t", metric="m", editor="Nobody", setting="tiny")
    assert math.isnan(found.reproduced) and "Nobody" in found.error


def test_tidy_table_has_one_row_per_cell(tmp_path: Path) -> None:
    cells = [cell(reported=0.9, reproduced=0.8, n=3, substitutions=("a", "b")), cell(editor="FT")]
    build_table(cells, csv_path=tmp_path / "t.csv")
    frame = pd.read_csv(tmp_path / "t.csv")
    assert tuple(frame.columns) == TIDY_COLUMNS and len(frame) == 2
    assert frame["substitutions"][0] == "a; b"


def test_page_shows_reported_verdict_word_symbol_and_n() -> None:
    shown = build_table(
        [cell(reported=0.98, reproduced=0.97, ci_low=0.93, ci_high=0.99, n=96,
              verdict="consistent")]
    ).to_html()  # fmt: skip
    assert '<td class="reported">0.98</td>' in shown
    assert "<strong>0.97</strong>" in shown and "[0.93, 0.99] (n=96)" in shown
    assert '<span aria-hidden="true">=</span> consistent' in shown


def test_rows_of_fewer_facts_and_what_is_resampled_stand_below_the_table() -> None:
    told = {"reproduced": 0.5, "ci_low": 0.3, "ci_high": 0.7}
    cells = [
        cell(metric="ES", n=40, facts=10, unit="fact", **told),
        cell(metric="Locality", n=80, facts=80, unit="fact", **told),
        cell(metric="Failed", error="EditorError: out of room"),
    ]
    shown = build_table(cells).to_html()
    assert "[0.30, 0.70] (40/10)" in shown and "[0.30, 0.70] (n=80)" in shown
    assert "(40/10): n = 40 scored rows of 10 independent facts." in shown
    assert "95 % intervals; what is resampled: facts.</span>" in shown
    batches = [*cells, cell(editor="FT", metric="ES", n=40, facts=40, unit="batch", **told)]
    assert (
        "what is resampled: batches of edits (ES), facts (Locality).</span>"
        in build_table(batches).to_html()
    )
    few = [cell(setting=s, metric=m, n=9, facts=9, unit="fact (3 batches)" if m == "ES" else "fact",
                **told) for s in ("T5", "BERT") for m in ("ES", "Locality")]  # fmt: skip
    few.append(cell(setting="GPT", metric="PPL", n=9, facts=9, unit="fact", **told))
    assert (
        "facts, there being fewer than 10 batches of edits (ES), facts (Locality, GPT).</span>"
        in build_table(few).to_html()
    )


def test_the_unedited_model_is_what_was_scored_before_any_edit() -> None:
    rows = records(seeds=2)
    rows = rows[rows["moment"] != "before"]
    before = rows[(rows["moment"] == "end") & (rows["subset"] == "edits")].assign(
        moment="before", n_edits=0, f1_ids=0.25
    )
    some = before[before["editor"] == "MELO"].iloc[:3]
    every = before[before["editor"] == "GRACE"]
    both = pd.concat([rows, some, every], ignore_index=True)
    assert set(unedited(both)["run"]) == set(every["run"])  # once per order seed, the most rows
    found = measure(both, "f1_ids", item="t", metric="m", editor=UNEDITED_MODEL, subset="edits")
    assert (found.editor, found.n, found.reproduced, found.n_edits) == (
        UNEDITED_MODEL, every["f1_ids"].count(), 0.25, 0,
    )  # fmt: skip
    assert found.ci_low < 0.25 < found.ci_high
    absent = measure(rows, "f1_ids", item="t", metric="m", editor=UNEDITED_MODEL, subset="edits")
    assert absent.error and not absent.n


def test_a_count_that_a_whole_column_shares_stands_in_its_heading() -> None:
    told = {"reproduced": 0.5, "ci_low": 0.3, "ci_high": 0.7, "facts": 10}
    counts = (("FT", "ES", 40), ("MELO", "ES", 40), ("FT", "PPL", 40), ("MELO", "PPL", 20))
    cells = [cell(editor=editor, metric=metric, n=n, **told) for editor, metric, n in counts]
    shown = build_table(cells).to_html()
    assert ">ES (40/10)</th>" in shown and ">PPL</th>" in shown
    assert shown.count("[0.30, 0.70]</span>") == 2 and "[0.30, 0.70] (20/10)" in shown


def test_what_a_profile_does_not_run_is_one_line_and_what_failed_is_a_row() -> None:
    cells = [
        cell(editor="MELO", reproduced=0.5, n=3, reported=0.6),
        *(cell(editor=e, metric=m, error=NOT_RUN) for e in ("A", "B") for m in ("ES", "Locality")),
        cell(editor="C", error="EditorError: out of room"),
    ]
    table = build_table(cells)
    shown = table.to_html()
    assert shown.count('scope="row"') == 2 and "EditorError: out of room" in shown
    assert f"4 cells {NOT_RUN} (numbers in the CSV): A, B." in shown
    assert len(table.tidy) == len(cells)


def test_a_table_names_its_csv_and_the_command_that_makes_it(tmp_path: Path, monkeypatch) -> None:
    made = Regenerated("demo", "one", lambda study, setting: None, None, None)
    monkeypatch.setitem(tables.NAMED, ("demo", "one"), made)
    place = tmp_path / "smoke" / "tables"
    shown = build_table([cell()], csv_path=place / "demo-one-T5.csv").to_html()
    assert '<a href="tables/demo-one-T5.csv">CSV</a>' in shown
    assert "./run_all.sh --only demo --profile smoke --table one-T5<" in shown
    laptop = tmp_path / "laptop" / "tables" / "demo-one-T5.csv"
    assert "--only demo --table one-T5<" in build_table([cell()], csv_path=laptop).to_html()
    other = build_table([cell()], csv_path=place / "demo-other.csv").to_html()
    assert "demo-other.csv" in other and "run_all" not in other
    frame = pd.DataFrame({"a": [1.5, None]})
    frame.attrs["csv"] = str(place / "demo-one.csv")
    assert "--table one<" in tables.plain(frame) and '<th scope="row">1.5</th>' in tables.plain(
        frame
    )


def test_missing_reported_and_failed_runs_are_words() -> None:
    shown = build_table([cell(error="EditorError: out of room")]).to_html()
    assert "not available" in shown and "EditorError: out of room" in shown


def test_every_string_is_escaped() -> None:
    nasty = '<script>alert("x")</script>'
    names = ("item", "setting", "backbone", "dataset", "editor", "metric")
    shown = build_table(
        [cell(**dict.fromkeys(names, nasty), error=nasty, substitutions=(nasty,))],
        caption=nasty, row_heading=nasty, notes=[nasty],
    ).to_html()  # fmt: skip
    assert "<script" not in shown and "&lt;script" in shown


def test_columns_of_one_setting_stay_together() -> None:
    cells = [cell(setting=s, metric=m) for m in ("ES", "Locality") for s in ("T5", "BERT")]
    shown = build_table(cells).to_html()
    assert shown.count('class="setting"') == 2 and shown.count('colspan="2"') == 2
    single = build_table(
        [cell(), cell(metric="Locality")], caption="After the last edit."
    ).to_html()
    assert "setting" not in single and "After the last edit: T5." in single


def test_a_column_without_reported_numbers_has_no_place_for_them() -> None:
    cells = [
        cell(editor=e, metric=m, setting=s, reproduced=0.5, n=3)
        for e in ("FT", "MEMIT")
        for s in ("CF", "zsRE")
        for m in ("ES", "Locality")
    ]
    shown = build_table(cells, unreported="no table could be seen.").to_html()
    assert 'class="reported"' not in shown and shown.count("no table could be seen.") == 1
    for row in shown.split('<th scope="row">')[1:]:
        assert row.count("<td") == 4
    mixed = [cell(setting="CF", reproduced=0.5, n=3, reported=0.6), cell(setting="zsRE")]
    shown = build_table(mixed, unreported="no table could be seen.").to_html()
    assert shown.count('<td class="reported">') == 1
    assert '<th scope="col" rowspan="2" class="metric">ES</th>' in shown  # of the bare column


def test_an_empty_table_says_so_and_twins_are_an_error() -> None:
    assert "No cell was planned" in build_table([]).to_html()
    with pytest.raises(ValueError, match="two cells"):
        build_table([cell(), cell()])


@pytest.mark.parametrize("path", sorted(PAPERS.glob("*/reported.csv")), ids=lambda p: p.parent.name)
def test_every_reported_number_is_a_number_with_a_source(path: Path) -> None:
    frame = load_reported(path)
    assert tuple(frame.columns) == REPORTED_COLUMNS and len(frame)
    assert frame["value"].notna().all()
    assert frame["source"].str.strip().ne("").all()
    assert frame["better"].isin(["higher", "lower"]).all()


def test_melo_table_2_is_found() -> None:
    frame = load_reported(REPORTED)
    where = {"item": "Table 2", "model": "T5-Small", "dataset": "zsRE", "method": "MELO"}
    assert reported_value(frame, **where, metric="ES (F1)") == 0.98
    assert reported_value(frame, **where, metric="ES (F1)", n_edits=7) is None
    assert reported_value(frame, **where, metric="Nothing") is None
    with pytest.raises(ValueError, match="different reported numbers"):
        reported_value(frame, **where)


@pytest.mark.parametrize("path", sorted(PAPERS.glob("*/reported.csv")), ids=lambda p: p.parent.name)
def test_reported_rows_are_those_of_the_shared_file(path: Path) -> None:
    shared = Path(
        os.environ.get("STUDY_PUBLISHED_DATA", Path(__file__).parents[3] / "shared" / "data")
    ).parent
    original = shared / "papers" / path.name
    if not original.exists():
        pytest.skip(f"{original} is not here")
    pd.testing.assert_frame_equal(load_reported(path), load_reported(original))


def test_a_foreign_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RecordError, match="expected the columns"):
        load_reported(path)
    path.write_text(",".join(REPORTED_COLUMNS) + "\nT,t,m,d,e,,ES,high,F1,higher,s\n")
    with pytest.raises(RecordError, match="column value"):
        load_reported(path)


def test_the_page_says_what_was_left_out_of_the_data() -> None:
    data = {
        "name": "invented", "content": "d" * 64, "sources": ["a.jsonl"], "skipped": [{}, {}],
        "left_out": ["3 single texts of a.jsonl"], "counts": {"edits": 4},
    }  # fmt: skip
    model = {"provenance": "random", "content": "e" * 64}
    manifests = {"FT": {"dataset": data, "seed": 0, "backbone": model}}
    study = SimpleNamespace(document={"settings": {"one": {}}}, manifests=lambda setting: manifests)
    assert "2 skipped; 3 single texts of a.jsonl" in data_counts(study).data
    del data["left_out"]
    assert "<td>2 skipped</td>" in data_counts(study).data
