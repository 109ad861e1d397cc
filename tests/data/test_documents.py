"""Documents to classify: published files, the embedded substitute, what a classifier is taught."""

from dataclasses import replace
from pathlib import Path

import pytest

from lib.data import datasets
from lib.data.embedded import bigbench, documents
from lib.data.published import hub
from lib.data.records import Dataset, Probe, Stream
from lib.data.streams import document_stream
from lib.data.training import document_facts, upstream_task
from lib.errors import AssetError, RecordError, UsageError
from tests.data.published.test_readers import _published, put

EARLY = {"text": "HARLOW v. UNITED TRAMWAYS. The brakes failed.", "label": 7}
LATE = {"text": "ONN v. HARBOUR BOARD. The fee was doubled.", "label": "3"}
SUMMARY = {
    "case_id": "1-1",
    "decision_date": "1990-05-02",
    "issue_area": 8,
    "facts": "A ferry ran aground.",
    "question": "Was the keeper liable?",
}


def decided(year: int, **changes: object) -> dict:
    return SUMMARY | {"decision_date": f"{year}-05-02", "facts": f"A case of {year}."} | changes


# -- published -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "json.gz"])
def test_the_two_splits_are_what_is_learned_and_what_is_edited(tmp_path: Path, ending: str):
    put(tmp_path, f"scotus/train.{ending}", EARLY, EARLY | {"label": 0})
    put(tmp_path, f"scotus/test.{ending}", LATE, EARLY | {"text": "Later still."})
    found = datasets.load("scotus", data_dir=tmp_path)
    assert [(edit.prompt, edit.target) for edit in found.edits] == [
        (LATE["text"], "3"), ("Later still.", "7"),
    ]  # fmt: skip
    assert [(p.target, p.kind) for p in found.upstream] == [("7", "upstream"), ("0", "upstream")]
    assert found.sources == (f"train.{ending}", f"test.{ending}") and found.substitution == ""
    assert found.classes == 8
    assert len(datasets.load("scotus", data_dir=tmp_path, limit=1).edits) == 1


def test_summaries_are_split_by_their_year_and_say_that_they_are_a_substitute(tmp_path: Path):
    years = (1982, 1983, 1990, 1991, 2009, 2010)
    put(tmp_path, "scotus/oyez_scdb_3096.jsonl.gz", *(decided(year) for year in years))
    found = datasets.load("scotus", data_dir=tmp_path)
    assert [probe.prompt[:15] for probe in found.upstream] == ["A case of 1982."]
    assert [edit.prompt for edit in found.edits] == [
        f"A case of {year}. Was the keeper liable?" for year in (1991, 2009)
    ]
    assert {edit.target for edit in found.edits} == {"7"}  # issue areas are counted from 1
    assert "stand in" in found.substitution
    put(tmp_path, "scotus/train.jsonl", EARLY)
    put(tmp_path, "scotus/test.jsonl", LATE)
    assert "grace-scotus" in datasets.load("scotus", data_dir=tmp_path).name
    assert datasets.load("scotus", data_dir=tmp_path, variant="oyez").content == found.content
    with pytest.raises(UsageError, match="grace, oyez"):
        datasets.load("scotus", data_dir=tmp_path, variant="lexglue")


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("test.jsonl", LATE | {"label": "torts"}, "no class number: 'torts'"),
        ("test.jsonl", {"label": 1}, "'text' is missing"),
        ("test.jsonl", "{", "broken JSON"),
        ("oyez_scdb.jsonl", decided(2000, issue_area=0), "counted from 1"),
        ("oyez_scdb.jsonl", decided(2000, decision_date="May"), "begins with no year"),
    ],
)
def test_a_malformed_record_is_named_with_file_and_line(tmp_path: Path, name, row, reason):
    good = {"test.jsonl": [LATE], "oyez_scdb.jsonl": [decided(1980), decided(2000)]}[name]
    put(tmp_path, "scotus/train.jsonl", EARLY)
    put(tmp_path, f"scotus/{name}", *good, row)
    with pytest.raises(RecordError, match=rf"{name}, line {len(good) + 1}: .*{reason}"):
        datasets.load("scotus", data_dir=tmp_path)
    found = datasets.load("scotus", data_dir=tmp_path, strict=False)
    assert len(found.edits) == 1
    assert [(bad.file, bad.line) for bad in found.skipped] == [(name, len(good) + 1)]


def test_what_is_missing_is_named_with_its_origin(tmp_path: Path):
    put(tmp_path, "scotus/train.jsonl", EARLY)
    with pytest.raises(RecordError, match=r"test\.jsonl.*tomh/grace-scotus"):
        datasets.load("scotus", data_dir=tmp_path)
    put(tmp_path, "scotus/oyez_scdb.jsonl", decided(2000))
    with pytest.raises(RecordError, match="no decision before 1983"):
        datasets.load("scotus", data_dir=tmp_path)


def test_both_splits_are_read_from_the_hub(monkeypatch):
    monkeypatch.setattr(hub, "_rows", lambda source: [{"train": EARLY, "test": LATE}[source.split]])
    found = datasets.load("scotus", source="hub")
    assert [len(found.edits), len(found.upstream)] == [1, 1]
    assert found.sources == ("tomh/grace-scotus (train)",)


@pytest.mark.skipif(_published() is None, reason="published data absent (STUDY_PUBLISHED_DATA)")
def test_the_real_summaries_read_whole():
    found = datasets.load("scotus", data_dir=_published())
    assert (len(found.upstream), len(found.edits), found.classes) == (723, 1321, 13)
    assert not found.skipped and "stand in" in found.substitution


# -- embedded --------------------------------------------------------------------------------


@pytest.fixture
def archive(monkeypatch) -> None:
    """Invented reviews of every domain in place of the archive's."""
    monkeypatch.setattr(bigbench, "rows", review_rows)


def review_rows(part: str) -> tuple[dict, ...]:
    domain = part.removeprefix("multiemo_")
    rows = [
        {"text": f"Review {n} of {domain}.", "label": documents.CLASSES[n % 4]} for n in range(30)
    ]
    return (*rows, {"text": " ", "label": "neutral"})


def test_hotels_are_learned_and_the_other_domains_are_edited(archive):
    found = datasets.load("scotus")
    assert len(found.upstream) == 30 and len(found.edits) == 90  # empty reviews are left out
    assert all("hotels" in probe.prompt for probe in found.upstream)
    assert {edit.prompt.split()[-1] for edit in found.edits} == {
        "medicine.", "products.", "reviews.",
    }  # fmt: skip
    assert all(int(edit.target) == int(edit.prompt.split()[1]) % 4 for edit in found.edits)
    assert found.classes == 4 and "stand in" in found.substitution
    again, other = documents.load(), documents.load(seed=1)
    assert again.content == found.content
    assert other.edits != found.edits and set(other.edits) == set(found.edits)


def test_an_unknown_sentiment_is_named(monkeypatch):
    monkeypatch.setattr(bigbench, "rows", lambda part: [{"text": "Fine.", "label": "odd"}])
    with pytest.raises(RecordError, match="row 0: unknown sentiment 'odd'"):
        datasets.load("scotus")


def test_a_compact_form_is_read_until_other_code_would_make_it(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path))
    made: list[str] = []

    def convert(archive: Path, target: Path) -> None:
        made.append(str(archive))
        for name in bigbench.MEMBERS:
            bigbench.write_rows(target / f"{name}.jsonl.gz", [{"part": name}])

    def absent(name: str) -> Path:
        raise AssetError(f"{name} cannot be had")

    monkeypatch.setattr(bigbench, "_convert", convert)
    monkeypatch.setattr(bigbench.archives, "discard", lambda name: None)
    monkeypatch.setattr(bigbench.archives, "fetch", Path)
    assert bigbench.rows("fever") == ({"part": "fever"},)
    monkeypatch.setattr(bigbench.archives, "fetch", absent)
    assert bigbench.rows("multiemo_hotels") == ({"part": "multiemo_hotels"},)
    assert len(made) == 1
    monkeypatch.setattr(bigbench.fingerprints, "own", lambda *modules: "other code")
    with pytest.raises(AssetError, match="cannot be had"):
        bigbench.rows("squad")


# -- what is taught, and in which order it is edited -----------------------------------------


def letters() -> Dataset:
    return datasets.load("invented_documents")


def test_learned_documents_are_upstream_and_those_held_out_are_near():
    source = letters()
    task = upstream_task(source, {"documents": 20, "held_out": 6, "epochs": 2})
    pairs = [(probe.prompt, probe.target) for probe in source.upstream]
    assert list(task.learned) == pairs[:20]
    assert list(task.held_out["documents"]) == pairs[20:26]
    assert task.held_out["edits"] == tuple((e.prompt, e.target) for e in source.edits[:6])
    apart = task.apart_from(source)
    assert apart.edits == source.edits
    assert apart.upstream == source.upstream[:20]
    assert [probe.prompt for probe in apart.near] == [text for text, _ in pairs[20:26]]
    assert {probe.kind for probe in apart.near} == {"near"}


@pytest.mark.parametrize("documents", [None, 1000])
def test_all_documents_but_the_held_out_ones_are_learned_at_most(documents: int | None):
    task = upstream_task(letters(), {"documents": documents, "held_out": 12})
    assert (len(task.learned), len(task.held_out["documents"])) == (48, 12)
    with pytest.raises(RecordError, match=r"60 held out leave none.*tune\.held_out"):
        upstream_task(letters(), {"documents": 5, "held_out": 60})


def chosen(**options: int) -> Stream:
    apart = upstream_task(letters(), {"documents": 40, "held_out": 10}).apart_from(letters())
    given = {"n_edits": 9, "batch_size": 4, "n_upstream": 5, "n_near": 3, "seed": 0} | options
    return document_stream(apart, **given)


def test_documents_are_edited_in_file_order_whatever_the_seed():
    made = chosen()
    assert made.edits == letters().edits[:9] and made.content == chosen(seed=3).content
    assert [len(batch) for batch in made.batches()] == [4, 4, 1]
    assert made.upstream == letters().upstream[:5] and not made.holdout and not made.owners
    assert [probe.prompt for probe in made.near] == [p.prompt for p in letters().upstream[40:43]]
    with pytest.raises(RecordError, match="only 60 documents"):
        chosen(n_edits=61)


# -- training of hyper-networks --------------------------------------------------------------


def test_documents_are_turned_to_train_on_and_share_nothing_with_the_edits():
    source = letters()
    first = Probe("same", source.edits[0].prompt, "0", "upstream")
    source = replace(source, upstream=(first, *source.upstream))
    test = replace(chosen(), upstream=source.upstream[1:5])
    facts = document_facts(source, test, n_train=20, n_valid=8)
    assert (len(facts.train), len(facts.valid)) == (20, 8)
    gold = {probe.prompt: probe.target for probe in source.upstream}
    every = (*facts.train, *facts.valid)
    assert all(fact.target != gold[fact.prompt] and int(fact.target) < 3 for fact in every)
    assert len({fact.target for fact in every if gold[fact.prompt] == "0"}) == 2  # drawn
    assert all(gold[fact.locality[0].prompt] == fact.locality[0].target for fact in every)
    used = [text for fact in every for text in (fact.prompt, fact.locality[0].prompt)]
    assert len(set(used)) == 56 and not set(used) & {edit.prompt for edit in test.edits}
    assert not set(used) & {probe.prompt for probe in test.upstream}  # 56 of 60 are not measured
    whole = document_facts(source, test, n_train=None, n_valid=8)
    assert len(whole.train) == 22  # those measured come last
    with pytest.raises(RecordError, match=r"gives 30 training documents for 8 \+ 23"):
        document_facts(source, test, n_train=23, n_valid=8)
