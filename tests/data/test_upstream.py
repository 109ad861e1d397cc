"""MELO: what is edited and held out. Checks are numbered as in the study's notes, section 11."""

from lib.data import streams
from lib.data.records import Dataset, Edit
from lib.runs.settings import read_paper
from papers.melo import scores


def test_16_the_intended_holdout_shares_no_prompt_with_the_edits() -> None:
    records = tuple(
        Edit(
            f"f{i}",
            f"Where is {i}?",
            f"answer {i}",
            "",
            tuple(f"Wording {j} of {i}?" for j in range(7)),
        )
        for i in range(12)
    )
    chosen = streams.balanced_stream(Dataset("d", records), n_edits=20, batch_size=5, seed=3)
    assert len(chosen.edits) == 20
    prompts = {edit.prompt for edit in chosen.edits}
    assert prompts.isdisjoint(edit.prompt for edit in chosen.holdout)
    # 7 rephrases: the question and 3 of them are edits, 4 are held out
    assert len(chosen.holdout) == 5 * 4
    assert {edit.target for edit in chosen.holdout} == {edit.target for edit in chosen.edits}


def test_16_a_rephrase_that_repeats_an_edit_is_not_held_out() -> None:
    records = tuple(
        Edit(f"f{i}", f"Where is {i}?", f"answer {i}", "", (f"Where is {i}?", "twice?", "twice?"))
        for i in range(6)
    )
    chosen = streams.balanced_stream(Dataset("d", records), n_edits=5, batch_size=5, seed=3)
    prompts = {edit.prompt for edit in chosen.edits}
    assert prompts.isdisjoint(edit.prompt for edit in chosen.holdout)


def test_16_the_released_holdout_is_the_edited_prompts(tmp_path) -> None:
    from lib.runs.execute import execute
    from lib.runs.progress import LineProgress
    from lib.runs.resources import Resources
    from lib.runs.study import Study

    study = Study.open("melo", "smoke", output=tmp_path)
    run = next(r for r in study.runs if (r.setting, r.editor) == ("zsre-t5", "MELO"))
    assert execute(run, study.store, Resources(), LineProgress())
    end = scores.scored(study, "zsre-t5").query("moment == 'end'")
    released = end[end["subset"] == "released_holdout"]
    assert set(released["prompt"]) == set(end[end["subset"] == "edits"]["prompt"])
    assert set(released["prompt"]).isdisjoint(end[end["subset"] == "holdout"]["prompt"])


def test_every_row_of_table_2_names_a_method_that_the_paper_reports() -> None:
    from papers import common

    known = set(common.reported("melo").query("item == 'Table 2'")["method"])
    rows = read_paper("melo")["tables"]["table2"]["rows"]
    assert {row["reported_as"] for row in rows.values() if "reported_as" in row} <= known


def test_16_an_answer_is_used_once() -> None:
    records = tuple(
        Edit(f"f{i}", f"Where is {i}?", "same" if i < 5 else f"answer {i}", "", ("a?", "b?"))
        for i in range(9)
    )
    chosen = streams.balanced_stream(Dataset("d", records), n_edits=8, batch_size=4, seed=0)
    facts = {edit.relation for edit in chosen.edits}
    assert len(facts & {f"f{i}" for i in range(5)}) <= 1
