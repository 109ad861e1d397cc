"""Figures draw what is there, say what is not and what they show, and can stand on any page."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import unquote

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from lib.editors import REGISTRY
from lib.metrics.costs import costs_by_editor
from lib.report.figures import parts, rows, style
from lib.report.figures.curves import score_curves
from lib.report.figures.files import save
from lib.report.figures.style import looks
from lib.report.pages.notebook import PAGE_MARKUP
from lib.runs.settings import PROFILES, papers, profile_of
from papers.melo.figures import counts_over_edits, key_maps
from tests.report.invented import records, steps

RECORDS, STEPS = records(), steps()
KEYS = np.random.default_rng(0).normal(size=(30, 12))
REPORTED = pd.DataFrame({"method": ["R=50", "R=50"], "n_edits": [10, 40], "value": [0.9, 0.8]})
SVG = "{http://www.w3.org/2000/svg}"


def words(plot: style.Plot) -> str:
    return " ".join(text.get_text() for panel in plot.figure.axes for text in panel.texts)


def lines(plot: style.Plot) -> int:
    return sum(len(panel.lines) for panel in plot.figure.axes)


def curves(rows: pd.DataFrame, **options: object) -> style.Plot:
    return score_curves(rows, "f1_ids", **options)


def swept(scored: pd.DataFrame) -> style.Plot:
    """Radius 2 against the main runs, whose radius is 1."""
    other = scored.assign(
        value="2", **{name: scored[name] + "*" for name in ("run",) if len(scored)}
    )
    both = pd.concat([scored.assign(value="1"), other], ignore_index=True)
    found = rows.against_default(
        both, "f1_ids", {"edits": "Edits", "upstream": "Upstream"}, set(scored.get("run", ())),
        lambda editor, value: f"{editor}, radius {value}",
    )  # fmt: skip
    return rows.differences(found, titles={"edits": "Edits", "upstream": "Upstream"}, xlabel="x")


PLOTS = {
    "curves": lambda r, s: curves(r),
    "retention": lambda r, s: rows.then_and_now(rows.kept_edits(r, "f1_ids")),
    "index": lambda r, s: counts_over_edits(s, by="run", distinct_answers={"here": 20}),
    "sweep": lambda r, s: swept(r),
    "keys": lambda r, s: key_maps({"MELO": (KEYS[: len(r)], [0] * min(len(r), 30))}),
    "costs": lambda r, s: rows.cost_rows(costs_by_editor(r, s)),
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


def test_curves_have_a_line_per_editor_and_the_unedited_level() -> None:
    plot = curves(RECORDS, titles=("edits",))
    labels = plot.figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["MELO", "GRACE", "LoRA", parts.UNEDITED]
    before = RECORDS[(RECORDS["moment"] == "before") & (RECORDS["subset"] == "edits")]
    assert plot.figure.axes[0].lines[-1].get_ydata()[0] == before["f1_ids"].mean()
    assert {"edits"} == set(plot.data["subset"])
    assert "invented" in plot.caption and "1 seed" in plot.caption and "n = " in plot.caption
    assert plot.caption.endswith("Bands: 95 % interval.")
    ends = plot.data[plot.data["n_edits"] == 48].set_index("editor")["mean"]
    told = f"at 48: highest MELO {ends['MELO']:.2f}, lowest LoRA {ends['LoRA']:.2f}, unedited"
    assert told in plot.finding


def test_captions_name_no_interval_that_is_not_drawn() -> None:
    alone = curves(RECORDS[RECORDS["moment"] == "end"], titles=("edits",))
    assert alone.caption.endswith("Whiskers: 95 % interval.")  # one point per line
    plot = counts_over_edits(STEPS[STEPS["run"] == "MELO-0"], by="run")
    assert plot.caption == "Read after each batch; 1 run."


def test_the_finding_is_read_where_most_lines_are() -> None:
    data = pd.DataFrame(
        [("a", 1, 0.5), ("a", 2, 0.6), ("b", 1, 0.9)], columns=["editor", "n_edits", "mean"]
    )
    panel = parts.Panel("Score", data, levels={"chance": 0.25})
    assert parts.ends([panel], "editor", "n_edits") == (
        "Score, at 1: highest b 0.90, lowest a 0.50, chance 0.25."
    )
    one = parts.Panel("Score", data[data["editor"] == "a"])
    assert parts.ends([one], "editor", "n_edits") == "Score, at 2: a from 0.50 to 0.60."


def test_last_checkpoint_and_end_are_counted_once() -> None:
    plot = curves(RECORDS, titles=("edits",))
    last = plot.data[(plot.data["editor"] == "MELO") & (plot.data["n_edits"] == 48)]
    assert last["n"].tolist() == [48]


def test_chance_is_the_commonest_answer_where_answers_are_few() -> None:
    before = pd.DataFrame({
        "moment": "before", "subset": "near", "target": ["0", "1", "1", "1"],
        "prediction": ["0", "0", "0", "1"], "exact_match": [1, 0, 0, 1], "agreement": 1.0,
    })  # fmt: skip
    assert parts.levels(before, "exact_match", "near") == {parts.UNEDITED: 0.5, parts.CHANCE: 0.75}
    # Agreement is with what the unedited model said, whatever is right.
    assert parts.levels(before, "agreement", "near")[parts.CHANCE] == 0.75
    assert parts.levels(before.assign(prediction="0"), "agreement", "near") == {parts.UNEDITED: 1.0}
    many = pd.concat([before.assign(target=str(i)) for i in range(11)])
    assert set(parts.levels(many, "exact_match", "near")) == {parts.UNEDITED}
    assert parts.levels(RECORDS, "f1_ids", "near") == {}


def test_retention_sets_the_same_edits_then_beside_now() -> None:
    fewer = RECORDS[~((RECORDS["moment"] == "end") & (RECORDS["edit_index"] >= 24))]
    kept = rows.kept_edits(fewer, "f1_ids").set_index("editor")
    assert (kept["n"] == 24).all()
    own = fewer[(fewer["moment"] == "own") & (fewer["edit_index"] < 24)]
    assert kept["own"]["LoRA"] == own[own["editor"] == "LoRA"]["f1_ids"].mean()
    plot = rows.then_and_now(kept.reset_index(), levels={parts.UNEDITED: 0.1})
    assert plot.finding.startswith("Largest change: LoRA, from ")
    assert plot.finding.endswith("unedited model 0.10.")


def test_reported_curves_have_panels_of_their_own() -> None:
    told = {"clusters": REPORTED.rename(columns={"method": "run"})}
    answers = {"here": 20.0, "reported": 907.0}
    plot = counts_over_edits(
        STEPS[STEPS["run"] == "MELO-0"], by="run", reported=told, distinct_answers=answers
    )
    here, reported, _, silent = plot.figure.axes[:4]
    assert here.get_title("left") == "Clusters: here"
    assert reported.get_title("left") == "Clusters: reported"
    assert 907.0 in reported.lines[-1].get_ydata()
    assert 20.0 in here.lines[-1].get_ydata()
    assert "no curve" in " ".join(text.get_text() for text in silent.texts)
    assert set(plot.data["side"]) == {"here", "reported"}
    assert plot.data.query("side == 'reported'")["mean"].tolist() == [0.9, 0.8]


def test_a_sweep_is_differences_from_the_default() -> None:
    worse = RECORDS.assign(
        run=RECORDS["run"] + "*", value="2", f1_ids=RECORDS["f1_ids"].where(
            RECORDS["subset"] != "edits", 0.0)
    )  # fmt: skip
    both = pd.concat([RECORDS.assign(value="1"), worse], ignore_index=True)
    titles = {"edits": "Edits", "upstream": "Upstream"}
    found = rows.against_default(
        both, "f1_ids", titles, RECORDS["run"].unique(), lambda editor, value: f"{editor} {value}"
    )
    assert set(found["variant"]) == {"MELO 2", "GRACE 2", "LoRA 2"}
    ends = RECORDS[(RECORDS["moment"] == "end") & (RECORDS["subset"] == "edits")]
    mine = found.set_index(["variant", "subset"])["mean"]
    assert mine["MELO 2", "edits"] == -ends[ends["editor"] == "MELO"]["f1_ids"].mean()
    assert mine["MELO 2", "upstream"] == 0
    plot = rows.differences(found, titles=titles, xlabel="minus the usual")
    assert "Edits: MELO 2 −" in plot.finding
    assert "Upstream: every interval contains 0." in plot.finding
    assert plot.figure.axes[0].get_yticklabels()[0].get_text() == "MELO 2"
    assert plot.figure.axes[1].get_yticklabels()[0].get_text() == ""


def test_key_maps_show_indexes_with_clusters_and_grey_the_rest() -> None:
    clusters = np.repeat(np.arange(7), [6, 5, 4, 4, 4, 4, 3])
    alone = (KEYS, np.arange(30))
    plot = key_maps({"MELO": (KEYS, clusters), "x": alone}, pairs=((1, 2), (1, 5), (1, 13)))
    drawn, fifth, beyond = plot.figure.axes[:3]
    labels = drawn.get_legend_handles_labels()[1]
    assert len(labels) == 7
    assert "smaller clusters" in labels
    assert "component 5" in fifth.get_ylabel()
    assert "too few for component 13" in " ".join(text.get_text() for text in beyond.texts)
    assert "30 keys of width 12 in 7 clusters, 6 of them with more than 3" in plot.caption
    assert set(plot.data["index"]) == {"MELO"} and len(plot.data) == 2 * 30
    assert "no index holds a cluster of more than 3" in words(key_maps({"x": alone}))


def test_costs_far_apart_use_a_logarithmic_axis() -> None:
    costs = pd.DataFrame({"run": list("ab"), "editor": list("ab"), "parameters": [10, 10**6]})
    plot = rows.cost_rows(costs, {"parameters": "Parameters"})
    assert plot.figure.axes[0].get_xscale() == "log"
    assert plot.finding == "Parameters: highest b 1,000,000, lowest a 10.00."


def _contrast(one: tuple, two: tuple) -> float:
    """WCAG's ratio of two colours."""

    def luminance(colour: tuple) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _dark(colour: tuple) -> tuple:
    """What the page's filter makes of it: invert(.92) hue-rotate(180deg), Filter Effects 1."""
    inverted = 0.92 + (0.08 - 0.92) * np.array(colour)
    grey = np.array([0.213, 0.715, 0.072])
    return tuple(np.clip(2 * grey @ inverted - inverted, 0, 1))


def test_marks_can_be_seen_on_white_and_on_the_dark_page() -> None:
    css = (Path(rows.__file__).parents[1] / "templates" / "report.css").read_text("utf-8")
    assert "filter: invert(.92) hue-rotate(180deg)" in css
    for name in {*style.COLOURS, style.REPORTED, style.MUTED, style.INK}:
        colour = to_rgb(name)
        assert _contrast(colour, (1, 1, 1)) >= 3, name
        assert _contrast(_dark(colour), _dark((1, 1, 1))) >= 3, name


def test_every_editor_has_one_look_that_no_other_has() -> None:
    known = style.KNOWN
    for one, two in itertools.combinations(known, 2):
        a, b = known[one], known[two]
        assert (a.marker, a.hollow, a.colour) != (b.marker, b.hollow, b.colour), (one, two)
    planned = {
        name
        for paper, profile in itertools.product(papers(), PROFILES)
        for setting in profile_of(paper, profile)[0]["settings"].values()
        for name, entry in setting["editors"].items() if entry
    }  # fmt: skip
    assert planned <= set(known) and len(planned) > len(REGISTRY)
    assert looks(["x", "MELO"])["MELO"] == looks(["MELO", "y"])["MELO"] == known["MELO"]


def test_series_differ_in_grey() -> None:
    """By marker and line, without colour; on a page's usual editors and on any other names."""
    page = ["MELO", "MELO intended", "GRACE", "LoRA", "FT", "Defer", "MEND"]
    for names in (page, ["radius 30", "radius 75", "MELO", "radius 150"]):
        found = [(one.marker, one.hollow, str(one.line)) for one in looks(names).values()]
        assert len(set(found)) == len(names)


def test_saving_writes_picture_numbers_and_description(tmp_path: Path) -> None:
    plot = curves(RECORDS)
    saved = save(plot, tmp_path / "figures", "fig1", 'A < B & "C"', caption="<b>")
    svg = saved.svg.read_text()
    root = ElementTree.fromstring(svg)
    assert root.find(f"{SVG}title").text == f'A < B & "C". {plot.finding}'
    assert "metadata" not in svg and "'DejaVu Sans',Verdana,sans-serif" in svg
    assert saved.png.read_bytes()[:4] == b"\x89PNG" and len(pd.read_csv(saved.csv))
    assert "<text" in svg and "edits applied" in svg  # text stays text
    shown = saved.markup
    assert 'href="figures/fig1.csv"' in shown and "<figcaption>&lt;b&gt; n = " in shown
    assert shown.count("<img") == 1 and "<source" not in shown
    size = re.search(r'<img src="figures/fig1.svg" alt="A &lt; B [^"]*" width="(\d+)"', shown)
    assert int(size[1]) == round(2 * style.PANEL * 96)  # two panels, each a phone's width


def test_an_svg_holds_no_more_than_it_must(tmp_path: Path) -> None:
    svg = save(curves(RECORDS), tmp_path, "f", "a").svg.read_text()
    places = [text for part in ElementTree.fromstring(svg).iter() for key, text in part.items()
              if key in ("d", "x", "y", "transform")]  # fmt: skip
    assert places and not re.search(r"\.\d\d", " ".join(places))
    assert not re.search(r">\s+<", svg) and "<g id" not in svg and "<!--" not in svg
    used = set(re.findall(r'href="#(\w+)"', svg)) | set(re.findall(r"url\(#(\w+)\)", svg))
    assert used == set(re.findall(r' id="(\w+)"', svg))  # what is referred to is there


def test_saved_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    one = save(curves(RECORDS), tmp_path / "1", "f", "a")
    two = save(curves(RECORDS), tmp_path / "2", "f", "a")
    again = curves(RECORDS)
    save(again, tmp_path / "3", "f", "a")
    three = save(again, tmp_path / "4", "f", "a")  # saving leaves the drawing as it was
    assert one.svg.read_bytes() == two.svg.read_bytes() == three.svg.read_bytes()
    assert one.png.read_bytes() == two.png.read_bytes()


def test_a_notebook_anywhere_shows_once_what_the_page_links_to(tmp_path: Path) -> None:
    saved = save(curves(RECORDS), tmp_path / "figures", "f", "Lines.")
    bundle = saved._repr_mimebundle_()
    assert bundle[PAGE_MARKUP] == saved.markup
    shown = re.findall(r'src="data:image/svg\+xml,([^"\s]+)"', bundle["text/html"])
    assert [unquote(text) for text in shown] == [saved.svg.read_text("utf-8")]


def test_a_foreign_figure_can_be_saved_too(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    saved = save(figure, tmp_path, "own", "A line.", data=pd.DataFrame({"y": [1, 2]}))
    assert saved.csv is not None and save(figure, tmp_path, "x", "A line.").csv is None


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
