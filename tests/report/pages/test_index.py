"""The front page: claims with their verdicts, findings, substitutions, and counts that add up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lib.errors import StoreError
from lib.report.pages.index import abstract, duration, write_index
from lib.report.summaries import (
    SCHEMA,
    Headline,
    PaperSummary,
    Told,
    beside,
    read_summaries,
    tally,
    write_summary,
)
from lib.report.tables import Cell

NASTY = '<script>alert("x")</script>'
HOLDS, FAILS, OPEN = "holds", "fails", "inconclusive"
DIFFERS, AWAY = "differs between settings", "not testable in this profile"


def told(key: str, verdict: str, setting: str = "T5", **more: object) -> Told:
    sentence, evidence = f"Sentence {key}.", f"Evidence of {key} on {setting}."
    return Told(key, sentence, "Table 2", setting, verdict, evidence, **more)


CLAIMS = (
    told("best", HOLDS, editor="MELO", section="Table 2: what it says"),
    told("best", HOLDS, "SmolLM2", editor="MELO intended"),
    told("local", HOLDS), told("local", FAILS, "SmolLM2"),
    told("fast", OPEN), told("fast", HOLDS, "SmolLM2"),
    told("small", FAILS), told("small", OPEN, "SmolLM2"),
    told("alone", OPEN),
    told("constant", HOLDS, marks=["by construction"]), told("empty", HOLDS, marks=("vacuous",)),
    told("large", AWAY),
)  # fmt: skip
SUMMARY = PaperSummary(
    key="melo",
    title="MELO",
    venue="AAAI 2024",
    report="melo.html",
    headline=(Headline("ES", 0.98, 0.97, 0.93, 0.99, 96, "consistent"), Headline("Loc", 0.7)),
    claims=CLAIMS,
    findings=(told("key", HOLDS),),
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
    """The list item of a sentence (its first, where there are several)."""
    start = text.index(sentence)
    return text[text.rindex("<li>", 0, start) : text.index("</details>", start)]


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
    cell = Cell("t", "T5", "", "", "MELO", "ES", error="failed")
    write_summary(tmp_path, PaperSummary("k", "K", headline=(Headline.of(cell),)))
    written = (tmp_path / "k.summary.json").read_text("utf-8")
    stored = json.loads(written, parse_constant=pytest.fail)
    assert stored["headline"][0]["reproduced"] is None
    assert stored["headline"][0]["label"] == "MELO, ES, T5"
    assert "no result" in write_index(tmp_path).read_text()


def test_index_tells_at_a_glance(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY, OTHER)
    assert '<a href="melo.html">MELO</a>' in text
    assert "<b>2</b> of 2 complete" in text and "<b>1</b> of 1 comparable ones agree" in text
    # Two papers may use one key: their claims stay two.
    assert "<b>2</b> of 8 tested" in text and "<b>1</b> of 1 tested" in text
    assert "<b>2</b> in all" in text and "7 min 5 s" in text and "laptop" in text


def test_the_abstract_is_counted() -> None:
    said = abstract([SUMMARY, replace(OTHER, status="partial")], ["laptop"])
    told_of_claims = (
        "Of 9 claims of 2 papers, 2 hold, 2 fail, 1 differs between settings, 1 is inconclusive, "
        "1 holds by construction, 1 is vacuous, 1 is not testable in this profile."
    )
    assert told_of_claims in said
    assert "Of 1 finding of our own" in said and "1 holds, 0 fail." in said
    assert "2 reports, run on a small machine, in the profile laptop." in said
    assert "Incomplete, and counted as far as told: Elder." in said
    assert "claim" not in abstract([]) and "Incomplete" not in abstract([SUMMARY])


def test_a_claim_has_one_row_with_its_verdict_over_the_settings(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY)
    assert text.count("Sentence best.") == 1 and text.count("<details>") == 8 + 1
    both, split = row(text, "Sentence best."), row(text, "Sentence local.")
    assert "✓</span> holds</span>" in both and "fails" not in both
    assert "≠</span> differs between settings</span>" in split
    assert "✓</span> holds</span> A: T5" in split and "✗</span> fails</span> B: SmolLM2" in split
    # Undecided settings take nothing away, and how many decide is told.
    assert "✓</span> holds in 1 of 2 settings</span>" in row(text, "Sentence fast.")
    assert "✗</span> fails in 1 of 2 settings</span>" in row(text, "Sentence small.")
    assert "=</span> holds, by construction</span>" in row(text, "Sentence constant.")
    assert "∅</span> holds, vacuous</span>" in row(text, "Sentence empty.")
    assert "–</span> not testable in this profile</span>" in row(text, "Sentence large.")
    assert "<b>A</b> T5" in text and "<b>B</b> SmolLM2" in text
    # Unfolded: why, on whom, and where the numbers are.
    assert "Evidence of best on T5." in both and "Evidence of best on SmolLM2." in both
    assert "B: SmolLM2, judged on MELO intended" in both
    assert 'href="melo.html#table-2-what-it-says"' in both


def test_the_setting_with_the_most_facts_comes_first(tmp_path: Path) -> None:
    paper = replace(
        SUMMARY, claims=(told("k", OPEN, facts=10), told("k", HOLDS, "SmolLM2", facts=90))
    )
    shown = row(page(tmp_path, paper), "Sentence k.")
    assert shown.index("SmolLM2") < shown.index("A: T5")


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
    assert "laptop" in row(text, "Sentence key.") and "laptop" not in row(text, "Sentence best.")
    # A shorter profile says nothing, nor does a summary that cannot be read.
    assert beside(there, "laptop", "melo") == {} and "fast" in beside(here, "smoke", "melo")
    (there / "melo.summary.json").write_text("{")
    assert "laptop" not in row(page(here, own), "Sentence fast.")


def test_one_setting_needs_no_letter(tmp_path: Path) -> None:
    text = page(tmp_path, OTHER)
    assert "✗</span> fails</span>" in text and "places" not in text.split("</style>")[1]


def test_links_lead_to_pages_that_exist(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY, linked=False)
    assert "melo.html" not in text and "Table 2: what it says" not in text


def test_findings_stand_apart_from_claims(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY, OTHER)
    own = text[text.index('id="findings"') : text.index('id="substitutions"')]
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
             "headline": [{"label": NASTY}], "claims": [nasty], "findings": [nasty],
             "made": {"machines": [NASTY]}}  # fmt: skip
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
    with pytest.raises(StoreError, match=r"of schema 2, .* --only melo"):
        write_index(tmp_path)


def test_an_unknown_verdict_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown verdict 'maybe'"):
        told("k", "maybe")
    with pytest.raises(ValueError, match=r"unknown mark among \('obvious'"):
        told("k", HOLDS, marks=("obvious",))


def test_durations_are_for_readers() -> None:
    assert [duration(s) for s in (0.4, 59, 60, 3725)] == ["0 s", "59 s", "1 min 0 s", "1 h 2 min"]
