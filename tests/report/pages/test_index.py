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
    overall,
    read_summaries,
    tally,
    write_summary,
)
from lib.report.tables import Cell

NASTY = '<script>alert("x")</script>'
HOLDS, FAILS, OPEN = "holds", "fails", "cannot be told here"


def told(key: str, verdict: str, setting: str = "T5", **more: str) -> Told:
    sentence, evidence = f"Sentence {key}.", f"Evidence of {key} on {setting}."
    return Told(key, sentence, "Table 2", setting, verdict, evidence, **more)


CLAIMS = (
    told("best", HOLDS, editor="MELO", section="Table 2: what it says"),
    told("best", HOLDS, "SmolLM2", editor="MELO intended"),
    told("local", HOLDS), told("local", FAILS, "SmolLM2"),
    told("fast", OPEN), told("fast", HOLDS, "SmolLM2"),
    told("small", FAILS), told("small", OPEN, "SmolLM2"),
    told("alone", OPEN),
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
    runtime_seconds=425.0,
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


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([HOLDS, HOLDS], HOLDS), ([HOLDS, OPEN], OPEN), ([OPEN], OPEN), ([], OPEN),
        ([FAILS, OPEN], FAILS), ([FAILS, HOLDS, OPEN], "differs by setting"),
    ],
)  # fmt: skip
def test_a_sentence_holds_only_where_every_setting_says_so(verdicts: list[str], said: str) -> None:
    assert overall(verdicts) == said


def test_every_sentence_counts_once() -> None:
    assert tally(CLAIMS) == {HOLDS: 1, FAILS: 1, "differs by setting": 1, OPEN: 2}
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
    assert "<b>1</b> of 6 tested" in text and "<b>1</b> of 1 tested" in text
    assert "<b>2</b> in all" in text and "7 min 5 s" in text and "laptop" in text


def test_the_abstract_is_counted() -> None:
    said = abstract([SUMMARY, replace(OTHER, status="partial")], ["laptop"])
    told_of_claims = (
        "Of 6 claims of 2 papers, 1 holds, 2 fail, 1 holds in one setting and fails in another, "
        "2 cannot be told here."
    )
    assert told_of_claims in said
    assert "Of 1 finding of our own" in said and "1 holds, 0 fail." in said
    assert "2 reports, run on a small machine, in the profile laptop." in said
    assert "Incomplete, and counted as far as told: Elder." in said
    assert "claim" not in abstract([]) and "Incomplete" not in abstract([SUMMARY])


def test_a_claim_has_one_row_with_the_verdict_of_every_setting(tmp_path: Path) -> None:
    text = page(tmp_path, SUMMARY)
    assert text.count("Sentence best.") == 1 and text.count("<details>") == 5 + 1
    both, split = row(text, "Sentence best."), row(text, "Sentence local.")
    assert "✓</span> holds A, B" in both and "fails" not in both
    assert "✓</span> holds A" in split and "✗</span> fails B" in split
    assert "<b>A</b> T5" in text and "<b>B</b> SmolLM2" in text
    # Unfolded: why, on whom, and where the numbers are.
    assert "Evidence of best on T5." in both and "Evidence of best on SmolLM2." in both
    assert "B: SmolLM2, judged on MELO intended" in both
    assert 'href="melo.html#table-2-what-it-says"' in both


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
    with pytest.raises(StoreError, match=r"of schema 1, .* --only melo"):
        write_index(tmp_path)


def test_an_unknown_verdict_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown verdict 'maybe'"):
        told("k", "maybe")


def test_durations_are_for_readers() -> None:
    assert [duration(s) for s in (0.4, 59, 60, 3725)] == ["0 s", "59 s", "1 min 0 s", "1 h 2 min"]
