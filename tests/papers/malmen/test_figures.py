"""Figures over m, of a hyper-network's training, of the solve; the drawings agree with the code."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lib.editors.hypernet.ridge import Ridge, rank_one_shifts, wanted_outputs
from lib.report.claims import comparisons
from lib.report.figures import files, style
from lib.report.figures.rows import differences
from lib.runs.settings import ROOT
from papers.malmen import figures, scores, tables, times
from papers.malmen.figures import ROWS
from tests.papers.malmen.invented_malmen import OWN, SIZES, SUM, InventedStudy

DRAWINGS = ROOT / "papers/malmen/drawings"
STUDY = InventedStudy(Path())
RECORDS = scores.by_m(STUDY, "zsre")
OWN_ROWS, BEFORE = RECORDS[RECORDS["moment"] == "own"], scores.unedited(RECORDS)
SEEN = {kind: scores.observed(STUDY, "zsre", kind) for kind in ("curve", "module", "memory")}
TIMES = times.times(STUDY, "zsre")
PARTS = {"train": "training", "edit_all": "editing", "evaluate": "scoring"}
PLOTS = {
    "scores": lambda r, s, t: figures.scores_by_m(r, BEFORE.head(len(r)), comparisons.METRIC),
    "gaps": lambda r, s, t: figures.gaps_by_m(r, comparisons.METRIC, OWN, ["MEND", SUM]),
    "memory": lambda r, s, t: figures.memory_by_m(s["memory"], (OWN, "MEND")),
    "curves": lambda r, s, t: figures.learning_curves(s["curve"], [OWN, "MEND"]),
    "residuals": lambda r, s, t: figures.residuals_by_m(s["module"], OWN, SUM),
    "times": lambda r, s, t: figures.time_parts(t, PARTS),
}
NOTHING = (OWN_ROWS.iloc[:0], {kind: rows.iloc[:0] for kind, rows in SEEN.items()}, TIMES.iloc[:0])
BARE = (pd.DataFrame(), dict.fromkeys(SEEN, pd.DataFrame()), pd.DataFrame())
FEW = (
    OWN_ROWS[OWN_ROWS["editor"] == OWN].groupby("subset").head(1),
    {kind: rows[rows["editor"] == OWN].head(1) for kind, rows in SEEN.items()},
    TIMES.head(1),
)


def words(plot: style.Plot) -> str:
    return " ".join(text.get_text() for panel in plot.figure.axes for text in panel.texts)


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("rows", [NOTHING, BARE], ids=["empty", "without columns"])
def test_no_rows_become_a_sentence(name: str, rows: tuple) -> None:
    plot = PLOTS[name](*rows)
    assert "Empty" in words(plot) and len(plot.data.dropna(how="all")) == 0


@pytest.mark.parametrize("name", PLOTS)
def test_few_rows_and_all_rows_can_be_drawn(name: str, tmp_path: Path) -> None:
    PLOTS[name](*FEW).figure.draw_without_rendering()
    saved = files.save(PLOTS[name](OWN_ROWS, SEEN, TIMES), tmp_path, name, "All.")
    assert len(pd.read_csv(saved.csv)) > 3


def test_scores_have_a_line_per_editor_and_the_unedited_level() -> None:
    plot = PLOTS["scores"](OWN_ROWS, SEEN, TIMES)
    panel = plot.figure.axes[2]
    assert panel.get_title(loc="left") == "LS: locality" and panel.get_xscale() == "log"
    labels = panel.get_legend_handles_labels()[1]
    assert set(labels) == {OWN, "MEND", "MEMIT", "FT", SUM, "unedited model"}
    level = plot.data[plot.data["editor"] == "unedited model"].set_index("subset")["mean"]
    assert level["edits"] == 0 and level["upstream"] == pytest.approx(0.35, abs=0.03)


def test_gaps_are_paired_and_above_zero_where_malmen_leads() -> None:
    data = (
        PLOTS["gaps"](OWN_ROWS, SEEN, TIMES).data.set_index(["subset", "other", "m"]).sort_index()
    )
    gaps = data.loc["holdout", "minus MEND"]["mean"]
    assert gaps.index.tolist() == list(SIZES) and gaps.is_monotonic_increasing
    assert data.loc[("holdout", f"minus {SUM}", 8), "low"] > 0


def test_memory_grows_in_the_joint_computation_only() -> None:
    data = PLOTS["memory"](OWN_ROWS, SEEN, TIMES).data
    mine = data[data["editor"] == OWN].set_index(["quantity", "m"])["mean"]
    assert mine["joint_bytes", 16] == 4 * mine["joint_bytes", 4]
    assert mine["decoupled_bytes", 16] == mine["decoupled_bytes", 4]


def test_curves_show_the_unedited_level_and_one_line_per_editor() -> None:
    plot = PLOTS["curves"](OWN_ROWS, SEEN, TIMES)
    titles = [panel.get_title(loc="left") for panel in plot.figure.axes[:5]]
    assert titles == list(figures.CURVES.values())
    assert plot.figure.axes[3].get_legend_handles_labels()[1] == [OWN, "MEND", "unedited model"]


def test_residuals_tell_the_solve_from_both_sums() -> None:
    data = PLOTS["residuals"](OWN_ROWS, SEEN, TIMES).data
    means = data.groupby(["shift", "m"])["residual"].mean()
    assert (means[ROWS["solved"]] < means[ROWS["summed"]]).all()
    assert set(data["layer"]) == {"3 mlp.down_proj", "4 mlp.down_proj"}
    assert means[ROWS["trained"]].index.tolist() == [8]
    assert figures._short("encoder.block.22.layer.1.wi_0") == "encoder 22 layer.1.wi_0"


def test_differences_have_a_dot_per_variant_and_score(tmp_path: Path) -> None:
    rows = tables.ablation_rows(InventedStudy(tmp_path), "fever")
    plot = differences(rows[rows["n"] > 0], titles=comparisons.NAMES, xlabel="difference")
    labels = [text.get_text() for text in plot.figure.axes[0].get_yticklabels()]
    assert labels[0] == "(a) a plain sum, not a solve" and len(labels) == 5
    empty = differences(rows.iloc[:0], titles=comparisons.NAMES, xlabel="x")
    assert "Empty" in words(empty)


def test_stacked_bars_end_at_the_sum_of_their_parts() -> None:
    plot = PLOTS["times"](OWN_ROWS, SEEN, TIMES[TIMES["m"] == 8])
    mine = plot.data.set_index("editor").loc["MEMIT"]
    assert mine["edit_all"] == 16 and f"{mine.sum():,.3g} s" in words(plot)


def test_the_drawing_of_two_facts_is_the_method() -> None:
    """Its numbers are those of the editor's own functions, with pseudo keys equal to keys."""
    drawn = pd.read_csv(DRAWINGS / "two-facts.csv").set_index(["panel", "shift"])["change"]
    turn = np.deg2rad(25)
    two = np.array([[1.0, 0.0], [np.cos(turn), np.sin(turn)]])
    for panel, wishes in (("(b)", (1.0, 1.0)), ("(c)", (1.0, -1.0))):
        summed, solved = both_shifts(two, wishes)
        assert np.allclose(drawn[panel, "plain sum (MEND)"], summed)
        assert np.allclose(drawn[panel, "least squares (MALMEN)"], solved)
        assert np.allclose(drawn[panel, "wanted"], wishes) and np.allclose(solved, wishes)
        printed = [f"{value:+.2f}".replace("-", "−") for value in summed]
        texts = (DRAWINGS / "two-facts.svg").read_text("utf-8")
        assert all(f">{value}</text>" in texts for value in printed)
    for place, n in enumerate((1, 2, 4, 8, 16, 32, 64)):
        keys = np.hstack([np.full((n, 1), 0.5**0.5), np.eye(n) * 0.5**0.5])
        summed, solved = both_shifts(keys, (1.0,) * n)
        assert np.allclose(drawn["(d)", "plain sum (MEND)"].iloc[place], summed)
        assert np.allclose(drawn["(d)", "least squares (MALMEN)"].iloc[place], solved)


def both_shifts(rows: np.ndarray, wishes: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What each row's output changes by if the shifts are summed, and if they are solved for."""
    keys = torch.from_numpy(rows)
    eta, pseudo = torch.tensor(-1.0), keys / (keys**2).sum(dim=1, keepdim=True)
    gradients = torch.tensor(wishes, dtype=torch.float64)[:, None]
    wanted = wanted_outputs(eta, keys, pseudo, gradients)
    summed = keys @ rank_one_shifts(eta, pseudo, gradients)
    solved = keys @ Ridge([(keys, wanted)], tuple(keys.shape), 1e-9).shift
    return summed[:, 0].numpy(), solved[:, 0].numpy()


def test_the_stages_are_the_papers_seven() -> None:
    text = (DRAWINGS / "stages.svg").read_text("utf-8")
    assert [int(stage) for stage in re.findall(r">(\d)  ", text)] == [1, 2, 3, 4, 5, 6, 7]
