"""Figures of consecutive editing and of the scope study."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.report.figures import files, style
from papers.comeba_hk import figures
from papers.comeba_hk.figures import PRINTED, TRUE, both_readings
from papers.comeba_hk.scores import with_scores
from tests.papers.comeba_hk.invented_comeba import observations, records, steps

SCORED = with_scores(records("cf-consecutive"), "near")
STEPS, SEEN = steps("cf-consecutive"), observations("cf-consecutive")
PLOTS = {
    "steps": lambda r, s, o: figures.by_step(r, "score"),
    "thresholds": lambda r, s, o: figures.thresholds(s, initial=2.2),
    "size": lambda r, s, o: figures.state_size(s),
    "distributions": lambda r, s, o: figures.z_distributions(o),
    "bound": lambda r, s, o: figures.z_bound(o, initial=2.2),
}


def words(plot: style.Plot) -> str:
    return " ".join(text.get_text() for panel in plot.figure.axes for text in panel.texts)


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("columns", [True, False])
def test_no_rows_become_a_sentence(name: str, columns: bool, tmp_path: Path) -> None:
    frames = [frame.iloc[:0] if columns else pd.DataFrame() for frame in (SCORED, STEPS, SEEN)]
    plot = PLOTS[name](*frames)
    assert words(plot).strip()
    files.save(plot, tmp_path, name, "Nothing to see.")


@pytest.mark.parametrize("name", PLOTS)
def test_few_rows_are_enough(name: str, tmp_path: Path) -> None:
    few = SCORED[(SCORED["moment"] == "end") & (SCORED["edit_index"] == 0)].groupby("run").head(1)
    run = SEEN[SEEN["run"] == SEEN["run"].iloc[0]]
    seen = run[run["record"] == run["record"].iloc[0]]
    files.save(PLOTS[name](few, STEPS.iloc[:1], seen), tmp_path, name, "A few.")


@pytest.mark.parametrize("name", PLOTS)
def test_all_rows_can_be_drawn(name: str, tmp_path: Path) -> None:
    saved = files.save(PLOTS[name](SCORED, STEPS, SEEN), tmp_path, name, "All.")
    assert len(pd.read_csv(saved.csv))


def test_the_two_readings_differ_where_the_official_loop_aliases() -> None:
    rows = pd.DataFrame([
        {"run": "r", "editor": "e", "moment": moment, "n_edits": n, "edit_index": i,
         "subset": "edits", "record": f"f{i}", "prompt": "p", "score": score}
        for moment, n, scores in (("own", 2, (1, 1, 1, 1)), ("checkpoint", 2, (1, 1, 0, 0)),
                                  ("end", 4, (0, 1, 1, 1)))
        for i, score in enumerate(scores)
    ])  # fmt: skip
    found = both_readings(rows)
    mean = found.groupby(["reading", "n_edits"])["score"].mean()
    # After two edits both stood; the final model has lost one of them.
    assert mean[TRUE].to_dict() == {2: 1.0, 4: 0.75}
    assert mean[PRINTED].to_dict() == {2: 0.5, 4: 0.75}
    # Edits that were not applied yet count in neither.
    assert (found["edit_index"] < found["n_edits"]).all()


def test_rows_without_an_owner_are_in_no_reading() -> None:
    rows = SCORED.assign(edit_index=-1)
    assert both_readings(rows).empty


def test_steps_have_a_panel_per_subset_and_reading() -> None:
    plot = figures.by_step(SCORED, "score")
    titles = [panel.get_title(loc="left") for panel in plot.figure.axes]
    assert titles[:2] == [f"Reliability: {TRUE}", f"Reliability: {PRINTED}"]
    assert set(plot.data["n_edits"]) == {12, 24}
    alone = figures.by_step(SCORED, "score", subsets=("average",), printed=False)
    assert [panel.get_title(loc="left") for panel in alone.figure.axes] == ["Average"]
    assert set(alone.data["reading"]) == {TRUE}


def test_thresholds_have_a_line_per_layer_of_the_editors_that_have_them() -> None:
    plot = figures.thresholds(STEPS, initial=2.2)
    assert set(plot.data["editor"]) == {"COMEBA-HK", "COMEBA-HK intended"}
    assert "2 runs" in plot.caption
    labels = plot.figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["layer 2", "layer 3", "initial alpha"]


def test_size_is_flat_for_matrices_and_rises_for_a_list() -> None:
    data = figures.state_size(STEPS).data
    kept = data[data["quantity"] == "stored_floats"].set_index("editor")["mean"]
    assert kept["COMEBA-HK"].nunique() == 1 and kept["GRACE"].is_monotonic_increasing


def test_no_sample_exceeds_the_bound_and_one_outlier_meets_it() -> None:
    for n in (2, 6, 7, 30):
        m = np.zeros(n)
        m[0] = 1.0
        assert (m[0] - m.mean()) / m.std(ddof=1) == pytest.approx(figures.bound(n))
    # The initial threshold 2.2: six tokens cannot reach it, seven can (ref 2.3).
    assert figures.bound(6) < 2.2 < figures.bound(7)


def test_shares_of_prompts() -> None:
    rows = pd.DataFrame([
        {"run": "r", "editor": "COMEBA-HK", "subset": "edits", "record": name, "edit_index": i,
         "layer": 3, "tokens": n, "alpha": 2.2, "z": z, "swapped": z is not None and z >= 2.2,
         "is_subject": subject}
        for i, (name, n, tokens) in enumerate([
            ("short", 6, [(2.0, True), (0.1, False)]), ("hit", 9, [(2.5, True), (0.0, False)]),
            ("beside", 9, [(0.0, True), (2.4, False)]), ("one", 1, [(None, True)]),
        ])
        for z, subject in tokens
    ])  # fmt: skip
    prompts = figures.per_prompt(rows).set_index("record")
    assert prompts["unreachable"].to_dict() == {"short": 1, "hit": 0, "beside": 0, "one": 1}
    assert prompts["subject_swapped"].to_dict() == {"short": 0, "hit": 1, "beside": 0, "one": 0}
    assert prompts["other_swapped"].to_dict() == {"short": 0, "hit": 0, "beside": 1, "one": 0}
    assert math.isnan(prompts.loc["one", "z"])
    table = figures.shares(rows).iloc[0]
    assert table["n"] == 4 and table["can never reach alpha"].startswith("0.50 [")
    near = figures.shares(rows.assign(is_subject=False, subset="near")).iloc[0]
    assert near["subject's last token swapped"] == "holds no subject"
