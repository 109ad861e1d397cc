"""The front page: claims with their verdicts, findings, substitutions, and counts that add up."""

import html
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lib.errors import StoreError
from lib.report.orderings import Ordered
from lib.report.pages.index import abstract, citation, duration, write_index
from lib.report.summaries import (
    SCHEMA,
    Best,
    PaperSummary,
    Scale,
    Told,
    beside,
    read_summaries,
    tally,
    write_summary,
)

NASTY = '<script>alert("x")</script>'
HOLDS, FAILS, OPEN = "holds", "fails", "inconclusive"
DIFFERS, AWAY = "differs between settings", "not testable in this profile"


def told(key: str, verdict: str, setting: str = "T5", **more: object) -> Told:
    sentence, evidence = f"Sentence {key}.", f"Evidence of {key} on {setting}."
    return Told(key, sentence, "Table 2", setting, verdict, evidence, **more)


CLAIMS = (
    told("best", HOLDS, editor="MELO", section="Table 2: what it says", facts=80,
         compared="MELO against FT", effect=0.2, low=-0.004, high=0.3, wanted="≥ −0.05"),
    told("best", HOLDS, "SmolLM2", editor="MELO intended"),
    told("local", HOLDS), told("local", FAILS, "SmolLM2"),
    told("fast", OPEN), told("fast", HOLDS, "SmolLM2"),
    told("small", FAILS, because=("key", "open")), told("small", OPEN, "SmolLM2"),
    told("alone", OPEN),
    told("constant", HOLDS, marks=["by construction"]), told("empty", HOLDS, marks=("vacuous",)),
    told("large", AWAY),
)  # fmt: skip
SUMMARY = PaperSummary(
    key="melo",
    title="MELO",
    venue="AAAI 2024",
    report="melo.html",
    scales=(
        Scale("T5", "tiny-t5", 80, 8, 1, ("MELO", "FT")),
        Scale("SmolLM2", "smollm2", 1200, 10, 3, ("MELO", "LoRA"), 0.0312),
    ),
    orderings=(
        Ordered(4, 6, 5, 3, 2, 0.66, 0.33, 1.0, 80, "Table 2", "T5", "ES"),
        Ordered(3, 3, 1, 0, 0, item="Table 2", setting="T5", metric="Loc"),
    ),
    best=(Best("MELO", "score", 0.9, 0.8, 0.95, 80),),
    claims=CLAIMS,
    findings=(told("key", HOLDS), told("open", OPEN)),
    substitutions=("A small model.", "Other facts."),
    runs={"ft-1": 400.0, "ft-2": 25.0},
    profile="laptop",
    order=1,
    made={"machines": ["a small machine"], "commits": ["abc"], "dates": ["2000-01-01"]},
)
OTHER = PaperSummary(
    "elder", "ELDER", short="Elder", report="elder.html", claims=(told("best", FAILS),),
    substitutions=("A small model.",), order=2, profile="laptop",
)  # fmt: skip


def page(tmp_path: Path, *papers: PaperSummary, linked: bool = True) -> str:
    for paper in papers if linked else ():
        (tmp_path / paper.report).write_text("x")
    return write_index(tmp_path, papers).read_text("utf-8")


def row(text: str, sentence: str) -> str:
    """The row of a sentence (its first, where there are several)."""
    start = text.index(sentence)
    return text[text.rindex("<tr", 0, start) : text.index("</tr>", start)]


def test_every_sentence_counts_once() -> None:
    assert tally(CLAIMS) == {
        HOLDS: 2, FAILS: 1, DIFFERS: 1, OPEN: 1, "by construction": 1, "vacuous": 1, AWAY: 1,
    }  # fmt: skip
    assert sum(tally(()).values()) == 0


def test_summaries_survive_the_disk(tmp_path: Path) -> None:
    write_summary(tmp_path, SUMMARY)
    write_summary(tmp_path, PaperSummary("b", "B", status="failed", order=0))
    assert [p.key for p in read_summaries(tmp_path)] == ["b", "melo"]
    assert read_summaries(tmp_path)[1] == SUMMARY


def test_missing_numbers_are_null_not_nan(tmp_path: Path) -> None:
    write_summary(tmp_path, SUMMARY)
    written = (tmp_path / "melo.summary.json").read_text("utf-8")
    stored = json.loads(written, parse_constant=pytest.fail)
    assert stored["orderings"][1]["tau"] is None and stored["claims"][2]["effect"] is None


def test_the_box_tells_the_scale(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY, OTHER)
    assert '<a href="melo.html">MELO</a>' in text and "<b>2</b> of 2 complete" in text
    # Two papers may use one key: their claims stay two.
    assert "<b>2</b> of 8 tested" in text and "<b>1</b> of 2 tested" in text
    assert "<b>6</b> of 9" in text and "7 min 5 s" in text and "laptop" in text
    assert "tiny-t5 and smollm2" in text and "<b>1,200</b> <span>in batches of 8 to 10" in text
    assert "<b>1 to 3</b> <span>edit success ± 0.03 (SD) at most" in text
    assert "Best score: MELO 0.90 [0.80, 0.95]." in text


def test_the_abstract_is_counted_and_true_of_every_paper() -> None:
    said = dict(abstract([SUMMARY, replace(OTHER, status="partial")], ["laptop"]))
    assert said["What was run."] == (
        "3 editors and variants made up to 1,200 edits on tiny-t5 and smollm2, in 2 runs in the "
        "profile laptop. Models, data, precision or sizes are not the papers' (2 substitutions): "
        "claims, differences and the order of methods are compared, levels are not. "
        "Incomplete, and counted as far as told: Elder."
    )
    assert said["What agrees."] == (
        "Of 9 claims of 2 papers, 2 hold, 2 fail, 1 differs between settings, 1 is inconclusive, "
        "1 holds by construction, 1 is vacuous, 1 is not testable in this profile. "
        "In the tables of MELO, 6 of 9 pairs of methods (2 of the 3 that are clear here) have the "
        "reported order. For Elder there are no reported scores of several methods to order."
    )
    # Of the findings that should say why, the one that holds does.
    assert said["What fails, and why."] == (
        "Of the claims, these fail in at least one setting: 2 of MELO's 8 (sentence key) and 1 of "
        "Elder's 1."
    )
    assert abstract([]) == []


def test_a_sentence_tells_what_decides_in_its_largest_setting(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY)
    both = text[text.index('<tr id="melo-best">') :]
    both = both[: both.index("</tr>")]
    assert "<b>+0.20</b> " in both and "[+0.00, +0.30]" in both and "≥ −0.05" in both
    assert ">80</td>" in both and '<a href="melo.html#table-2-what-it-says"' in both
    assert ">Table 2</a>" in both and "holds: SmolLM2, judged on MELO intended" in both
    assert "Decided by: MELO against FT, +0.20 [+0.00, +0.30]; wanted: ≥ −0.05." in both
    # What has no number shows none, and a claim that fails says why.
    assert "nan" not in text.split("</style>")[1].lower()
    assert "Why, as our runs show it: Sentence key." in row(text, "Sentence small.")
    assert "Why, as" not in row(text, "Sentence best.")


def test_the_order_of_the_methods_is_told_by_column(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY)
    own = text[text.index('id="orderings"') :]
    assert "5 of 6</td><td>2 of 3</td><td>+0.66 [+0.33, +1.00]</td>" in own
    assert "1 of 3</td><td>0 of 0</td><td></td>" in own


def test_the_study_can_be_cited(tmp_path: Path) -> None:
    told = citation()
    assert "@software{" in told["bibtex"] and "version = {" in told["bibtex"]
    assert told["bibtex"] in html.unescape(page(tmp_path, SUMMARY))
    assert citation(tmp_path / "CITATION.cff") == {}  # a wheel has none
    (tmp_path / "c.cff").write_text(
        "title: T\nversion: 1\nlicense: MIT\nrepository-code: https://example.invalid/x\n"
        "authors:\n  - {family-names: Doe, given-names: Jo}\n"
    )
    told = citation(tmp_path / "c.cff")
    assert "author = {{Doe, Jo}}" in told["bibtex"] and told["url"] == "https://example.invalid/x"


def test_a_claim_has_one_row_with_its_verdict_over_the_settings(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY)
    assert text.count("Sentence best.") == 1 and text.count('<th scope="row"><details>') == 8 + 2
    both, split = row(text, "Sentence best."), row(text, "Sentence local.")
    assert "✓</span> holds</span>" in both and "fails" not in both
    assert "≠</span> differs between settings</span>" in split
    assert "✓</span> holds</span> T5" in split and "✗</span> fails</span> SmolLM2" in split
    # Undecided settings take nothing away, and how many decide is told.
    assert "✓</span> holds in 1 of 2 settings</span>" in row(text, "Sentence fast.")
    assert "✗</span> fails in 1 of 2 settings</span>" in row(text, "Sentence small.")
    assert "=</span> holds, by construction</span>" in row(text, "Sentence constant.")
    assert "∅</span> holds, vacuous</span>" in row(text, "Sentence empty.")
    assert "–</span> not testable in this profile</span>" in row(text, "Sentence large.")
    # Unfolded: why, on whom, and where the numbers are.
    assert "Evidence of best on T5." in both and "Evidence of best on SmolLM2." in both
    assert "SmolLM2, judged on MELO intended" in both
    assert 'href="melo.html#table-2-what-it-says"' in both


def test_the_setting_with_the_most_facts_comes_first(tmp_path: Path) -> None:
    paper = replace(
        SUMMARY, claims=(told("k", OPEN, facts=10), told("k", HOLDS, "SmolLM2", facts=90))
    )
    shown = row(page(tmp_path, paper), "Sentence k.")
    assert shown.index("</span> SmolLM2</dt>") < shown.index("</span> T5</dt>")


def test_a_longer_profile_beside_is_told_with_a_link(tmp_path: Path) -> None:
    here, there = tmp_path / "smoke", tmp_path / "laptop"
    for folder in (here, there):
        folder.mkdir()
    own = replace(SUMMARY, profile="smoke")
    longer = (told("fast", FAILS, "SmolLM2", facts=500), told("fast", OPEN), told("key", HOLDS))
    write_summary(there, replace(SUMMARY, claims=longer[:2], findings=longer[2:]))
    assert "laptop</a>" not in page(here, own)  # a page that is not there is not linked to
    (there / "melo.html").write_text("x")
    text = page(here, own)
    said = row(text, "Sentence fast.")
    assert '<a href="../laptop/melo.html">laptop</a>' in said
    assert "fails</span> in 1 of 2 settings (500 facts)" in said
    assert "laptop" in row(text, "Sentence key.</span>")
    assert "laptop" not in row(text, "Sentence best.")
    # A shorter profile says nothing, nor does a summary that cannot be read.
    assert beside(there, "laptop", "melo") == {} and "fast" in beside(here, "smoke", "melo")
    (there / "melo.summary.json").write_text("{")
    assert "laptop" not in row(page(here, own), "Sentence fast.")


def test_links_lead_to_pages_that_exist(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY, linked=False)
    assert "melo.html" not in text and "Table 2: what it says" not in text


def test_findings_stand_apart_from_claims(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY, OTHER)
    own = text[text.index('id="findings"') : text.index('id="orderings"')]
    assert "Sentence key." in own and "Sentence best." not in own and "Elder" not in own


def test_a_substitution_is_told_once_with_its_pages(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY, OTHER)
    assert text.count("A small model.") == 1
    listed = text[text.index('id="substitutions"') :]
    shared = listed[listed.index("A small model.") : listed.index("Other facts.")]
    assert 'href="melo.html#substitutions">MELO' in shared and ">Elder</a>" in shared
    assert "Elder" not in listed[listed.index("Other facts.") :]


def test_index_shows_failures_and_escapes(tmp_path: Path) -> None:
    nasty = {"key": NASTY, "sentence": NASTY, "source": NASTY, "setting": NASTY, "verdict": HOLDS,
             "evidence": NASTY, "editor": NASTY, "section": NASTY}  # fmt: skip
    paper = {"key": "k\"<", "title": NASTY, "venue": NASTY, "summary": NASTY, "status": "failed",
             "report": "javascript:alert(1)", "errors": [NASTY], "substitutions": [NASTY],
             "best": [{"editor": NASTY, "measure": NASTY, "score": None}],
             "claims": [nasty], "findings": [nasty], "made": {"machines": [NASTY]}}  # fmt: skip
    text = write_index(tmp_path, [paper], note=NASTY).read_text()
    assert "<script" not in text and "javascript:" not in text and "✗ failed" in text


def test_an_index_without_reports_says_so(tmp_path: Path) -> None:
    assert "No report has been written" in write_index(tmp_path).read_text()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"key": "a"}', '{"schema": 9, "key": "a", "title": "b"}',
     '{"key": "a", "title": "b", "colour": "red"}',
     '{"key": "a", "title": "b", "claims": {"x": 1}}',
     '{"key": "a", "title": "b", "claims": [{"key": "k"}]}'],
)  # fmt: skip
def test_a_broken_summary_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.summary.json").write_text(content)
    with pytest.raises(StoreError, match=r"a\.summary\.json"):
        read_summaries(tmp_path)


def test_an_older_summary_names_the_remedy(tmp_path: Path) -> None:
    old = {"schema": SCHEMA - 1, "key": "melo", "title": "MELO", "claims": {HOLDS: 3}}
    (tmp_path / "melo.summary.json").write_text(json.dumps(old))
    with pytest.raises(StoreError, match=r"of schema 3, .* --only melo"):
        write_index(tmp_path)


def test_an_unknown_verdict_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown verdict 'maybe'"):
        told("k", "maybe")
    with pytest.raises(ValueError, match=r"unknown mark among \('obvious'"):
        told("k", HOLDS, marks=("obvious",))


def test_durations_are_for_readers() -> None:
    assert [duration(s) for s in (0.4, 59, 60, 3725)] == ["0 s", "59 s", "1 min 0 s", "1 h 2 min"]
