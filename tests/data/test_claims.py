"""Claims: the published FEVER files in all their forms, and the embedded substitute."""

import json
from collections import Counter
from pathlib import Path

import pytest

from lib.data import datasets
from lib.data.embedded import claims
from lib.data.embedded.triples import Fact, FactStore
from lib.data.order import is_probe
from lib.data.published import fever
from lib.errors import RecordError, UsageError

JOINED = {
    "id": 7,
    "claim": "Lake Onn lies in Norland.",
    "label": "SUPPORTS",
    "rephrases": ["Norland holds Lake Onn.", " "],
    "eren_edit_label": None,
}
KILT = {
    "id": "8",
    "input": "Odo Brask never sculpted.",
    "prediction": "REFUTES",
    "alternatives": ["SUPPORTS"],
    "filtered_rephrases": ["Odo Brask did not sculpt."],
    "output": [{"answer": "REFUTES", "provenance": []}],
}
MALMEN = {
    "prompt": "The Selk is a river.",
    "equiv_prompt": ["The Selk is a stream."],
    "alt": "REFUTES",
    "unrel_prompt": "Tin is a metal.",
    "unrel_ans": "SUPPORTS",
}
PLAIN = [
    {"id": 1, "claim": "Ice floats.", "label": "SUPPORTS", "evidence": []},
    {"id": 2, "claim": "Ice sings.", "label": "NOT ENOUGH INFO", "evidence": []},
    {"id": 3, "claim": "Ice burns.", "label": "REFUTES", "evidence": []},
    {"id": 4, "claim": "Ice burns.", "label": "REFUTES", "evidence": []},
    {"id": 5, "claim": "Ice is old.", "label": "REFUTES", "evidence": []},
    {"id": 6, "claim": "Ice is old.", "label": "SUPPORTS", "evidence": []},
    {"id": 7, "claim": "Lake Onn lies in Norland.", "label": "SUPPORTS", "evidence": []},
]


def write(folder: Path, name: str, rows: list[dict]) -> Path:
    folder = folder / "fever"
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row) for row in rows]
    text = "[" + ",".join(lines) + "]" if name.endswith(".json") else "\n".join(lines)
    (folder / name).write_text(text, "utf-8")
    return folder.parent


def test_claims_with_rephrases_are_edited_away_from_their_label(tmp_path: Path) -> None:
    bare = JOINED | {"claim": "Onn is wet.", "rephrases": []}
    root = write(tmp_path, "dev_rephrases_2048.jsonl", [JOINED, bare])
    write(root, "paper_dev_9999.jsonl", PLAIN)
    found = datasets.load("fever", data_dir=root)
    (edit,) = found.edits
    assert (edit.prompt, edit.target, edit.target_true) == (JOINED["claim"], "0", "1")
    assert edit.rephrases == ("Norland holds Lake Onn.",)
    assert found.sources == ("dev_rephrases_2048.jsonl", "paper_dev_9999.jsonl")
    assert "stand in" in found.substitution
    # once each, without the unverifiable, the contradicting and the edited
    assert {p.prompt: p.target for p in found.upstream} == {"Ice floats.": "1", "Ice burns.": "0"}
    assert {p.kind for p in found.upstream} == {"upstream"}
    assert datasets.load("fever", data_dir=root, variant="train").edits == found.edits


def test_the_annotated_form_names_its_own_alternative(tmp_path: Path) -> None:
    other = KILT | {"input": "Odo sang.", "output": [{"answer": "SUPPORTS"}], "alternatives": []}
    root = write(tmp_path, "fever-dev-kilt.jsonl", [KILT, other])
    write(root, "fever-train-kilt.jsonl", [KILT | {"input": "Odo Brask sang."}])
    found = datasets.load("fever", data_dir=root)
    assert [(e.target, e.target_true) for e in found.edits] == [("1", "0"), ("0", "1")]
    assert found.edits[0].rephrases == ("Odo Brask did not sculpt.",)
    assert {p.prompt: p.target for p in found.upstream} == {KILT["input"]: "0", "Odo sang.": "1"}
    (edit,) = datasets.load("fever", data_dir=root, variant="train").edits
    assert edit.prompt == "Odo Brask sang." and found.substitution == ""


def test_malmens_form_brings_its_unrelated_claim(tmp_path: Path) -> None:
    root = write(tmp_path, "fever_dev.json", [MALMEN])
    found = datasets.load("fever", data_dir=root)
    (edit,) = found.edits
    assert (edit.prompt, edit.target, edit.target_true) == (MALMEN["prompt"], "0", "")
    (probe,) = edit.locality
    assert (probe.prompt, probe.target, probe.kind) == ("Tin is a metal.", "1", "upstream")
    assert [p.prompt for p in found.upstream] == ["Tin is a metal."]
    write(root, "paper_dev.jsonl", [{"claim": "Tin is a metal.", "label": "SUPPORTS"}, PLAIN[0]])
    assert [p.prompt for p in datasets.load("fever", data_dir=root).upstream] == ["Ice floats."]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (JOINED | {"label": "MAYBE"}, "'MAYBE' is none of REFUTES, SUPPORTS"),
        (JOINED | {"claim": " "}, "'claim' is empty"),
        (JOINED | {"rephrases": [1]}, "'rephrases' is not a list of texts"),
        (KILT | {"output": []}, "'output' is not a list with an answer"),
        (KILT | {"alternatives": ["NOT ENOUGH INFO"]}, "none of"),
        ({key: MALMEN[key] for key in ("prompt", "equiv_prompt", "alt")}, "'unrel_prompt'"),
        ({"text": "Ice floats."}, "neither 'claim', 'input'"),
    ],
)
def test_malformed_records_are_named_or_left_out(row: dict, named: str, tmp_path: Path) -> None:
    root = write(tmp_path, "dev_rephrases_2048.jsonl", [JOINED, row])
    with pytest.raises(RecordError, match=rf"line 2: .*{named}"):
        datasets.load("fever", data_dir=root)
    found = datasets.load("fever", data_dir=root, strict=False)
    assert len(found.edits) == 1
    assert [(bad.file, bad.line) for bad in found.skipped] == [("dev_rephrases_2048.jsonl", 2)]


def test_malformed_claims_are_named_too(tmp_path: Path) -> None:
    root = write(tmp_path, "dev_rephrases_2048.jsonl", [JOINED])
    write(root, "paper_dev.jsonl", [*PLAIN, {"claim": "Ice?", "label": "PERHAPS"}])
    with pytest.raises(RecordError, match=r"paper_dev\.jsonl, line 8"):
        datasets.load("fever", data_dir=root)
    found = datasets.load("fever", data_dir=root, strict=False)
    assert [bad.file for bad in found.skipped] == ["paper_dev.jsonl"]


def test_missing_files_and_variants_are_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "fever").mkdir()
    with pytest.raises(RecordError, match=r"fever-dev\.jsonl.*KnowledgeEditor"):
        datasets.load("fever", data_dir=tmp_path)
    with pytest.raises(UsageError, match="known: dev, train"):
        datasets.load("fever", data_dir=tmp_path, variant="test")
    with pytest.raises(RecordError, match="no folder fever/"):
        datasets.load("fever", data_dir=tmp_path / "fever")
    with pytest.raises(RecordError, match="--data-dir"):
        datasets.load("fever", source="hub")


# -- the embedded substitute -----------------------------------------------------------------


@pytest.fixture
def facts(monkeypatch) -> list[Fact]:
    """Two relations: one with many objects, and one where an object has three quarters."""
    countries = [Fact("country", f"Lake {i}", (f"Land{i % 5}",), "s") for i in range(200)]
    tongues = [
        Fact("native_language", f"Ilse {i}", ("Brask" if i % 4 else f"Fenn{i % 3}",), "s")
        for i in range(120)
    ]
    made = [*countries, *tongues]
    monkeypatch.setattr(claims, "store", lambda: FactStore(tuple(made), ("a package",)))
    monkeypatch.setattr(claims, "single_facts", lambda: made)
    rows = [{"claim": c["claim"], "label": "true"} for c in PLAIN[:3]]
    monkeypatch.setattr(claims.bigbench, "rows", lambda name: rows)
    return made


def test_no_word_gives_a_claim_away(facts: list[Fact]) -> None:
    found = datasets.load("fever")
    for name in ("country", "native_language"):
        words = {"0": Counter(), "1": Counter()}
        for edit in found.edits:
            if edit.relation == name:
                words[edit.target_true][edit.prompt.split()[-1]] += 1
        assert words["0"] == words["1"] and sum(words["0"].values()) > 15
    truth = {fact.subject: fact.object for fact in facts}
    for edit in found.edits:
        stated = edit.prompt.split()[-1].rstrip(".")
        assert edit.target_true == str(int(truth[edit.subject] == stated))
        assert edit.target == fever.OTHER[edit.target_true]


def test_claims_have_three_wordings_and_subjects_of_their_own(facts: list[Fact]) -> None:
    found = datasets.load("fever")
    for edit in found.edits:
        wordings = {edit.prompt, *edit.rephrases}
        assert len(wordings) == 3 and all(edit.subject in text for text in wordings)
        assert len({text.split()[-1] for text in wordings}) == 1
    subjects = [edit.subject for edit in found.edits]
    assert len(set(subjects)) == len(subjects)
    assert [edit.relation for edit in found.edits[:4]] == ["country", "native_language"] * 2
    taught = {probe.identity.split(":")[2] for probe in found.taught}
    assert taught and taught.isdisjoint(subjects)
    assert all(is_probe(f, 0, claims.TAUGHT) for f in facts if f.subject in taught)
    assert Counter(probe.target for probe in found.taught)["1"] * 2 == len(found.taught)
    assert {probe.prompt for probe in found.upstream} == {c["claim"] for c in PLAIN[:3]}


def test_the_order_is_fixed_and_a_limit_takes_its_beginning(facts: list[Fact]) -> None:
    whole, again = datasets.load("fever"), datasets.load("fever")
    assert whole.content == again.content
    assert datasets.load("fever", limit=9).edits == whole.edits[:9]
    assert datasets.load("fever", seed=1).edits != whole.edits
    assert datasets.load("fever", limit=9).content != whole.content


def test_without_the_large_archive_the_claims_are_all_of_one_kind(facts, monkeypatch) -> None:
    small = FactStore(tuple(facts), ("a package",), missing="no network")
    monkeypatch.setattr(claims, "store", lambda: small)
    found = datasets.load("fever")
    assert found.upstream == found.taught
    assert "no network" in found.substitution


def test_the_invented_claims_are_half_true() -> None:
    found = datasets.load("invented_claims")
    assert Counter(edit.target_true for edit in found.edits) == {"0": 30, "1": 30}
    assert Counter(probe.target for probe in found.upstream) == {"0": 60, "1": 60}
    assert len({probe.prompt for probe in found.upstream}) == 120
