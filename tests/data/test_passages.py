"""Passages with sentences to correct: published forms, the embedded substitute, the stream."""

import json
import math
import os
from itertools import pairwise
from pathlib import Path

import pytest

from lib.backbones import knowledge
from lib.backbones.sources import loading
from lib.data.datasets import load
from lib.data.embedded import bigbench, passages
from lib.data.embedded.known import Likelihoods
from lib.data.published.hallucination import OPENING, continuation, sentences
from lib.data.streams import stream_of
from lib.errors import RecordError, UsageError
from lib.runs.resources import Resources

PASSAGE = {
    "concept": "mara tolvane",
    "gpt3_sentences": ["Mara Tolvane is a potter.", "She was born in 1951.", "She lives in Onn."],
    "annotation": ["major_inaccurate", "accurate", "minor_inaccurate"],
    "wiki_bio_text": "Mara Tolvane (b. 1951) is a sculptor. She studied with J. Ozols.",
}
READY = {
    "kind": "edit", "passage": 3, "sentence": 1, "concept": "mara tolvane",
    "prompt": "This is a Wikipedia passage about mara tolvane. Mara Tolvane is a potter.",
    "target_new": "Tolvane studied in Riga.",
}  # fmt: skip
TEXT = {"text": " ".join(f"word{i}" for i in range(30)) + "\n\nThe end."}
SHORT = {"text": "Too short to be cut."}


def put(folder: Path, name: str, *rows: dict) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, rows)), "utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He met Dr. Orr in St. Onn. She left.", ["He met Dr. Orr in St. Onn.", "She left."]),
        ("It rose to 3.5 m. 12 people saw it.", ["It rose to 3.5 m.", "12 people saw it."]),
        ('"Is it?" Mara asked. "Yes!"', ['"Is it?"', "Mara asked.", '"Yes!"']),
        ("Onn (a town. Small) lies low.", ["Onn (a town. Small) lies low."]),
        ("M. A. Orr, b. Onn (ca. 1900), sang.", ["M. A. Orr, b. Onn (ca. 1900), sang."]),
        ("  ", []),
    ],
)
def test_sentences_end_where_they_should(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_passages_are_edited_where_gpt3_was_wrong(tmp_path: Path) -> None:
    nameless = {k: v for k, v in PASSAGE.items() if k != "concept"} | {"wiki_bio_text": None}
    put(tmp_path, "hallucination/wikibio_gpt3_238.jsonl", PASSAGE, nameless)
    put(tmp_path, "text/openwebtext_10k.jsonl", TEXT, SHORT)
    found = load("hallucination", data_dir=tmp_path)
    first, last = found.edits
    head = "This is a Wikipedia passage about mara tolvane. "
    assert (first.prompt, first.target) == (head, "Mara Tolvane (b. 1951) is a sculptor.")
    assert last.prompt == head + "Mara Tolvane is a potter. She was born in 1951."
    assert last.target == "She studied with J. Ozols."  # the article is shorter: its last sentence
    assert (
        {edit.subject for edit in found.edits}
        == {edit.relation for edit in found.edits}
        == {"mara tolvane"}
    )
    assert [(p.target, p.kind) for p in found.near] == [("She was born in 1951.", "near")] * 2
    assert found.near[1].prompt == head + "Mara Tolvane is a potter."  # the name GPT-3 began with
    (text,) = found.upstream
    assert len(text.prompt.split()) == OPENING and f"{text.prompt} {text.target}" == TEXT["text"]
    assert "2 of 4 corrections have no article" in found.substitution
    assert "NLTK" in found.substitution


def test_the_ready_made_stream_comes_first_and_skips_missing_targets(tmp_path: Path) -> None:
    fine = READY | {"kind": "accurate", "sentence": 2}
    put(
        tmp_path, "hallucination/grace_stream_1908.jsonl", READY, READY | {"target_new": None}, fine
    )
    put(tmp_path, "hallucination/wikibio_gpt3_238.jsonl", PASSAGE)
    put(tmp_path, "hallucination/openwebtext_val_4007.jsonl", TEXT)
    found = load("hallucination", data_dir=tmp_path)
    (edit,), (near,) = found.edits, found.near
    assert (edit.identity, near.identity) == ("wikibio:3:1", "wikibio:3:2")
    assert edit.target == near.target == READY["target_new"]
    assert "1 of 2 corrections" in found.substitution and "openwebtext-10k" in found.substitution
    other = load("hallucination", data_dir=tmp_path, variant="passages")
    assert other.name == "WikiBio (wikibio_gpt3_238)" and len(other.edits) == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (READY | {"kind": "odd"}, "neither 'edit' nor 'accurate'"),
        (READY | {"prompt": ""}, "'prompt' is empty"),
    ],
)
def test_a_bad_row_is_named_or_left_out(tmp_path: Path, row: dict, reason: str) -> None:
    put(tmp_path, "hallucination/grace_stream_1908.jsonl", READY, row)
    put(tmp_path, "text/openwebtext_10k.jsonl", TEXT)
    with pytest.raises(RecordError, match=f"line 2.*{reason}"):
        load("hallucination", data_dir=tmp_path)
    found = load("hallucination", data_dir=tmp_path, strict=False)
    assert len(found.edits) == 1 and found.skipped[0].line == 2


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    put(tmp_path, "hallucination/grace_stream_1908.jsonl", READY)
    with pytest.raises(RecordError, match=r"openwebtext_10k\.jsonl.*should leave alone"):
        load("hallucination", data_dir=tmp_path)
    with pytest.raises(UsageError, match="stream, passages"):
        load("hallucination", data_dir=tmp_path, variant="other")
    uneven = PASSAGE | {"annotation": ["accurate"]}
    put(tmp_path, "hallucination/wikibio_gpt3_238.jsonl", uneven)
    with pytest.raises(RecordError, match="3 sentences but 1 annotations"):
        load("hallucination", data_dir=tmp_path, variant="passages")


def test_the_hub_gives_passages_and_web_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from lib.data.published import hub

    given = {"potsawee/wiki_bio_gpt3_hallucination": [PASSAGE], "stas/openwebtext-10k": [TEXT]}
    monkeypatch.setattr(hub, "_rows", lambda source: given[source.repository])
    found = load("hallucination", source="hub")
    assert (len(found.edits), len(found.near), len(found.upstream)) == (2, 1, 1)
    assert found.sources == ("potsawee/wiki_bio_gpt3_hallucination (evaluation)",)


@pytest.fixture
def articles(monkeypatch: pytest.MonkeyPatch):
    """Forty invented articles and some news behind `bigbench.rows`."""
    sentence = "The {n} keeper of the harbour at Onn {i} counts {j} boats."
    rows = {
        kind: tuple(
            {
                "title": f"{kind}_{i}_%28island%29",
                "text": " ".join(sentence.format(n=kind, i=i, j=j) for j in range(8)) + " Short.",
            }
            for i in range(20)
        )
        for kind in ("new_wiki", "squad")
    }
    news = " ".join(f"news{i}" for i in range(60))
    rows["nyt"] = ({"title": "one", "text": news}, {"title": "two", "text": "Too short."})
    monkeypatch.setattr(bigbench, "rows", rows.__getitem__)
    passages.candidates.cache_clear()
    yield
    passages.candidates.cache_clear()


def test_the_substitute_keeps_edited_and_accurate_articles_apart(articles) -> None:
    found = load("hallucination")
    edited = {edit.subject for edit in found.edits}
    accurate = {probe.prompt.split(". ")[0] for probe in found.near}
    assert edited and accurate and not any(title in text for title in edited for text in accurate)
    edit = found.edits[0]
    assert edit.prompt.startswith(f"This is a passage about {edit.subject}. The ")
    assert edit.prompt.endswith("boats.") and edit.target.endswith("boats.")
    assert "_" not in edit.subject and edit.subject.endswith("(island)")
    # The sentences of a paragraph follow each other.
    runs = [(e, later) for e, later in pairwise(found.edits) if e.subject == later.subject]
    assert len(runs) > len(found.edits) / 2
    assert all(later.prompt.endswith(edit.target) for edit, later in runs)
    assert not any("Short." in text for e in found.edits for text in (e.prompt, e.target))
    (news,) = found.upstream
    assert len(f"{news.prompt} {news.target}".split()) == passages.TEXT_WORDS
    other = load("hallucination").edits
    assert other == found.edits


def test_what_the_backbone_finds_unlikely_is_edited(articles) -> None:
    asked = passages.candidates()[:60]
    nll = {e.identity: math.log(5 + 40 * (i % 2) + i / 100) for i, e in enumerate(asked)}
    known = Likelihoods(nll)
    found = load("hallucination", known=known)
    assert found.edits and all(known.perplexity(e) > passages.SURPRISING for e in found.edits)
    order = [nll[probe.identity] for probe in found.near]
    assert order == sorted(order) and order[0] < math.log(passages.SURPRISING)
    assert {row.identity for row in (*found.edits, *found.near)} <= set(nll)
    assert len(load("hallucination", known=known, limit=2).edits) == 2
    with pytest.raises(RecordError, match="raise `known`"):
        load("hallucination", known=Likelihoods({}))


def test_likelihoods_are_read_once_and_survive_a_torn_file(
    articles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path))
    backbone, asked = loading.load("tiny-llama"), passages.candidates()
    first = knowledge.likelihoods(backbone, asked, cap=11)
    assert len(first.answers) == 11 and all(nll > 0 for nll in first.answers.values())
    (path,) = (tmp_path / "likelihood").glob("*.jsonl")
    path.write_text(path.read_text("utf-8")[:-9], "utf-8")  # a process died while it wrote
    read, sizes = knowledge._read, []
    monkeypatch.setattr(knowledge, "_read", lambda b, e: sizes.append(len(e)) or read(b, e))
    again = knowledge.likelihoods(backbone, asked, cap=11)
    assert sizes == [1] and again.answers == pytest.approx(first.answers, abs=1e-5)
    assert knowledge.likelihoods(backbone, asked, cap=11) == again and len(sizes) == 1


def test_a_stream_of_passages_keeps_the_order_of_the_data() -> None:
    spec = {"stream": {"kind": "passages", "n_edits": 8, "batch_size": 4, "n_near": 3,
                       "n_upstream": 2, "seed": 5}}  # fmt: skip
    dataset = load("invented_passages")
    stream = stream_of(spec, dataset)
    assert [e.identity for e in stream.edits] == [e.identity for e in dataset.edits[:8]]
    assert stream.near == dataset.near[:3] and stream.upstream[0] == dataset.upstream[0]
    assert len(stream.upstream) == 2
    assert not stream.holdout and not stream.owners and not stream.edits[0].rephrases
    spec["stream"]["n_edits"] = 25
    with pytest.raises(RecordError, match="gives only 24 sentences"):
        stream_of(spec, dataset)


def test_a_text_is_cut_between_words_and_keeps_its_lines() -> None:
    text = "  " + " ".join("abcdefghijkl") + "\n\nm n  o"
    probe = continuation("x", text, 14)
    assert (probe.prompt, probe.target) == ("a b c d e f g h i j k l", "m n")
    assert continuation("x", "a b c") is None


PUBLISHED = Path(
    os.environ.get("STUDY_PUBLISHED_DATA", Path(__file__).parents[3] / "shared" / "data")
)


@pytest.mark.skipif(
    not (PUBLISHED / "hallucination").is_dir(), reason="no published data on this machine"
)
def test_both_published_forms_give_the_same_prompts_and_nearly_the_same_targets() -> None:
    ready = load("hallucination", data_dir=PUBLISHED)
    built = load("hallucination", data_dir=PUBLISHED, variant="passages")
    assert len(ready.near) == 516 and len(ready.upstream) == 1000
    assert "of 1392 corrections" in ready.substitution and "of 1392" in built.substitution
    assert [(p.prompt, p.target) for p in ready.near] == [(p.prompt, p.target) for p in built.near]
    known = {edit.identity: edit for edit in ready.edits}
    assert all(known[edit.identity].prompt == edit.prompt for edit in built.edits)
    same = sum(known[edit.identity].target == edit.target for edit in built.edits)
    assert same > 0.88 * len(built.edits)  # NLTK also splits behind "ca." and the like
    assert all(edit.subject for edit in ready.edits)


def test_the_smoke_setting_trains_on_other_passages_than_it_edits() -> None:
    from lib.runs import plan

    runs = plan.runs("melo", "smoke", seeds=1, device="cpu")
    run = next(run for run in runs if run.setting == "hallucination" and run.editor == "MEND")
    made = Resources().materials(run.spec)
    stream, facts = made.stream, made.learned
    edited = {edit.subject for edit in stream.edits}
    taught = {fact.subject for fact in (*facts.train, *facts.valid)}
    assert len(facts.train) == 8 and not edited & taught
