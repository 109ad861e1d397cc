"""Figures draw what is there, say what is not, and can stand together on one page."""

import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import unquote

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from lib.metrics.costs import costs_by_editor
from lib.report.figures import curves as figures
from lib.report.figures import style
from lib.report.figures.files import save
from lib.report.figures.style import looks
from lib.report.pages.notebook import PAGE_MARKUP
from papers.melo.figures import counts_over_edits, key_maps, scores_over_edits
from tests.report.invented import records, steps

RECORDS, STEPS = records(), steps()
SWEPT = pd.concat([RECORDS.assign(radius=r) for r in (1.0, 5.0)])
KEYS = np.random.default_rng(0).normal(size=(30, 12))
REPORTED = pd.DataFrame({"method": ["R=50", "R=50"], "n_edits": [10, 40], "value": [0.9, 0.8]})


def words(plot: style.Plot) -> str:
    return " ".join(text.get_text() for panel in plot.figure.axes for text in panel.texts)


def lines(plot: style.Plot) -> int:
    return sum(len(panel.lines) for panel in plot.figure.axes)


def curves(rows: pd.DataFrame, **options: object) -> style.Plot:
    return figures.score_curves(rows, "f1_ids", **options)


PLOTS = {
    "curves": lambda r, s: curves(r, steps=s),
    "retention": lambda r, s: figures.retention(r, "f1_ids"),
    "index": lambda r, s: counts_over_edits(s, by="run", distinct_answers={"here": 20}),
    "edits": lambda r, s: scores_over_edits(r, s, "f1_ids", by="editor"),
    "sweep": lambda r, s: figures.sweep(r.assign(radius=1.0), "radius", "f1_ids"),
    "keys": lambda r, s: key_maps({"MELO": (KEYS[: len(r)], list(range(len(r)))[:30])}),
    "costs": lambda r, s: figures.cost_bars(costs_by_editor(r, s)),
}


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("empty", [(RECORDS.iloc[:0], STEPS.iloc[:0]), (pd.DataFrame(),) * 2])
def test_no_rows_become_a_sentence(name: str, empty: tuple, tmp_path: Path) -> None:
    plot = PLOTS[name](*empty)
    assert words(plot).strip() and lines(plot) == 0
    save(plot, tmp_path, name, "Nothing to see.")


@pytest.mark.parametrize("name", PLOTS)
def test_one_row_is_enough(name: str, tmp_path: Path) -> None:
    row = RECORDS[(RECORDS["moment"] == "end") & (RECORDS["subset"] == "edits")].iloc[:1]
    save(PLOTS[name](row, STEPS[STEPS["run"] == "MELO-0"].iloc[:1]), tmp_path, name, "One.")


@pytest.mark.parametrize("name", PLOTS)
def test_nan_scores_are_left_out(name: str, tmp_path: Path) -> None:
    r, s = RECORDS.copy(), STEPS.copy()
    r.loc[r["editor"] == "LoRA", "f1_ids"] = math.nan
    s.loc[:5, ["clusters", "seconds_edit", "parameters"]] = math.nan
    save(PLOTS[name](r, s), tmp_path, name, "Some missing.")


def test_curves_have_a_line_per_editor_and_the_papers_behind() -> None:
    plot = curves(RECORDS, subsets=("edits",), reported={"edits": REPORTED})
    labels = plot.figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["reported (digitised): R=50", "MELO", "GRACE", "LoRA"]
    assert {"edits"} == set(plot.data["subset"])
    assert "tiny-t5" in plot.caption and "1 seed" in plot.caption and "n = " in plot.caption


def test_last_checkpoint_and_end_are_counted_once() -> None:
    plot = curves(RECORDS, subsets=("edits",))
    last = plot.data[(plot.data["editor"] == "MELO") & (plot.data["n_edits"] == 48)]
    assert last["n"].tolist() == [48]


def test_retention_sets_own_moment_beside_the_end() -> None:
    plot = figures.retention(RECORDS, "f1_ids", bins=4)
    assert set(plot.data["moment"]) == {"own", "end"}
    assert sorted(plot.data["position"].unique()) == [6.5, 18.5, 30.5, 42.5]


def test_reported_curves_have_panels_of_their_own() -> None:
    told = {"clusters": REPORTED.rename(columns={"method": "run"})}
    answers = {"here": 20.0, "reported": 907.0}
    plot = counts_over_edits(
        STEPS[STEPS["run"] == "MELO-0"], by="run", reported=told, distinct_answers=answers
    )
    here, reported, _, silent = plot.figure.axes[:4]
    assert here.get_title("left") == "Clusters: here"
    assert reported.get_title("left") == "reported (digitised)"
    assert 907.0 in reported.lines[-1].get_ydata()
    assert 20.0 in here.lines[-1].get_ydata()
    assert "no curve" in " ".join(text.get_text() for text in silent.texts)
    assert set(plot.data["side"]) == {"here", "reported"}
    assert plot.data.query("side == 'reported'")["mean"].tolist() == [0.9, 0.8]


def test_sweeps_take_numbers_and_names() -> None:
    numbers = figures.sweep(SWEPT, "radius", "f1_ids", log_x=True)
    names = figures.sweep(
        SWEPT.assign(block=SWEPT["radius"].map({1.0: "low", 5.0: "high"})), "block", "f1_ids",
        reported={"edits": pd.DataFrame({"block": ["low", "absent"], "value": [0.9, 0.1]})},
    )  # fmt: skip
    assert sorted(numbers.data["radius"].unique()) == [1.0, 5.0]
    ticks = [t.get_text() for t in names.figure.axes[0].get_xticklabels()]
    assert sorted(ticks) == ["high", "low"]


def test_key_maps_mark_large_clusters_and_grey_the_rest() -> None:
    clusters = np.repeat(np.arange(7), [6, 5, 4, 4, 4, 4, 3])
    plot = key_maps({"MELO": (KEYS, clusters)}, pairs=((1, 2), (1, 5), (1, 13)))
    drawn, fifth, beyond = plot.figure.axes[:3]
    labels = drawn.get_legend_handles_labels()[1]
    assert len(labels) == 7
    assert "smaller clusters" in labels
    assert "component 5" in fifth.get_ylabel()
    assert "too few for component 13" in " ".join(text.get_text() for text in beyond.texts)
    assert "30 keys of width 12 in 7 clusters, 6 of them with more than 3" in plot.caption
    assert len(plot.data) == 2 * 30


def test_costs_far_apart_use_a_logarithmic_axis() -> None:
    costs = pd.DataFrame({"run": list("ab"), "editor": list("ab"), "parameters": [10, 10**6]})
    plot = figures.cost_bars(costs, columns=("parameters",))
    assert plot.figure.axes[0].get_xscale() == "log"


def test_series_differ_in_more_than_colour() -> None:
    found = looks(["MELO", "mine", "GRACE", "other"])
    for trait in ("colour", "marker", "line", "hatch"):
        assert len({str(getattr(look, trait)) for look in found.values()}) == 4
    assert found["MELO"] == looks(["MELO"])["MELO"]


def test_saving_writes_picture_numbers_and_description(tmp_path: Path) -> None:
    saved = save(curves(RECORDS), tmp_path / "figures", "fig1", 'A < B & "C"', caption="<b>")
    svg, narrow = saved.svg.read_text(), (tmp_path / "figures/fig1-narrow.svg").read_text()
    for text in (svg, narrow):
        root = ElementTree.fromstring(text)
        assert root.find("{http://www.w3.org/2000/svg}title").text == 'A < B & "C"'
        assert "metadata" not in text and "font-family: 'DejaVu Sans', Verdana, sans-serif" in text
    assert saved.png.read_bytes()[:4] == b"\x89PNG" and len(pd.read_csv(saved.csv))
    assert "<text" in svg and "edits applied" in svg  # text stays text
    shown = saved.markup
    assert 'href="figures/fig1.csv"' in shown and "<figcaption>&lt;b&gt; n = " in shown
    picture = re.search(
        r'<source media="\(max-width: 40rem\)" srcset="figures/fig1-narrow.svg" '
        r'width="403" height="(\d+)"><img src="figures/fig1.svg" '
        r'alt="A &lt; B &amp; &quot;C&quot;" width="787" height="(\d+)" ',
        shown,
    )
    assert int(picture[1]) > int(picture[2])


def test_saved_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    one = save(curves(RECORDS), tmp_path / "1", "f", "a")
    two = save(curves(RECORDS), tmp_path / "2", "f", "a")
    again = curves(RECORDS)
    save(again, tmp_path / "3", "f", "a")
    three = save(again, tmp_path / "4", "f", "a")  # saving leaves the drawing as it was
    assert one.svg.read_bytes() == two.svg.read_bytes() == three.svg.read_bytes()
    assert one.png.read_bytes() == two.png.read_bytes()


def test_a_notebook_anywhere_shows_what_the_page_links_to(tmp_path: Path) -> None:
    saved = save(curves(RECORDS), tmp_path / "figures", "f", "Lines.")
    bundle = saved._repr_mimebundle_()
    assert bundle[PAGE_MARKUP] == saved.markup
    shown = re.findall(r'(?:src|srcset)="data:image/svg\+xml,([^"\s]+)"', bundle["text/html"])
    files = ("f-narrow.svg", "f.svg")
    assert [unquote(text) for text in shown] == [
        (tmp_path / "figures" / name).read_text("utf-8") for name in files
    ]


def test_a_foreign_figure_can_be_saved_too(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    saved = save(figure, tmp_path, "own", "A line.", data=pd.DataFrame({"y": [1, 2]}))
    assert saved.csv is not None and save(figure, tmp_path, "x", "A line.").csv is None
    assert "<source" not in saved.markup  # nothing is known of how to make it narrow


def test_figures_need_words_and_plain_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text alternative"):
        save(curves(RECORDS), tmp_path, "f", " ")
    with pytest.raises(ValueError, match="figure name"):
        save(curves(RECORDS), tmp_path, "../f", "a")


def test_style_ends_with_its_block() -> None:
    before = dict(mpl.rcParams)
    with style.use_style():
        assert mpl.rcParams["svg.fonttype"] == "none"
    assert dict(mpl.rcParams) == before
