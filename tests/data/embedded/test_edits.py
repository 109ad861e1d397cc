"""Edits and probes of the embedded datasets, made of tiny invented archives."""

import subprocess
import sys

import pytest

from lib.data.datasets import load
from lib.data.embedded import facts
from lib.data.embedded.known import Answer, Knowledge
from lib.errors import RecordError
from tests.data.embedded.embedded_archives import forget

pytest_plugins = ("tests.data.embedded.embedded_fixtures",)


def test_qa_edits_have_questions_rephrases_and_unedited_near_probes(embedded_archives):
    found = load("zsre")
    assert found.name == "WikiTriple-QA" and "stand in for zsRE" in found.substitution
    assert len({edit.relation for edit in found.edits}) >= 8
    subjects = [edit.subject.casefold() for edit in found.edits]
    assert len(set(subjects)) == len(subjects)
    for edit in found.edits:
        assert edit.prompt.endswith("?") and len(edit.rephrases) >= 8
        assert edit.prompt not in edit.rephrases
        assert 1 <= len(edit.locality) <= 2 and {p.kind for p in edit.locality} == {"near"}
        for probe in edit.locality:
            assert probe.identity.startswith(f"near:{edit.relation}:")
            assert probe.identity.split(":", 2)[2].casefold() not in subjects
    assert all(edit.subject != "Two Lakes" for edit in found.edits)
    upstream = {probe.prompt: probe.target for probe in found.upstream}
    assert upstream["who doesn't like lake 3's water?"] == "Odo 3"
    assert len(upstream) == 11  # the five-word answer is left out


def test_the_first_edits_bring_new_answers_from_many_relations(embedded_archives):
    first = load("zsre", limit=30).edits
    assert len(first) == 30
    answers = [edit.target.casefold() for edit in first]
    assert len(set(answers)) == len(answers)
    assert len({edit.relation for edit in first}) >= 8
    assert load("zsre").edits[:30] == first  # a limit is a prefix


def test_same_seed_same_content_other_seed_other_order(embedded_archives):
    first = {name: load(name).content for name in ("zsre", "counterfact", "nq")}
    forget()
    assert {name: load(name).content for name in first} == first
    assert load("zsre", seed=1).content != first["zsre"]
    assert load("nq", seed=1).content != first["nq"]


def test_content_does_not_depend_on_hash_order(embedded_archives):
    """A process with another hash seed, reading the same compact cache, builds the same data."""
    code = (
        "from lib.data.datasets import load;"
        "print(load('zsre').content, load('counterfact').content)"
    )
    expected = f"{load('zsre').content} {load('counterfact').content}"
    # The compact folders carry the pinned versions in their names, so nothing is fetched again.
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={
                "PYTHONHASHSEED": hash_seed,
                "STUDY_CACHE": str(embedded_archives["cache"]),
                "STUDY_OFFLINE": "1",
                "PYTHONPATH": str(__import__("pathlib").Path(__file__).resolve().parents[3]),
                "PATH": "/usr/bin:/bin",
            },
        )
        assert done.stdout.strip() == expected


def _knowledge(known: bool, forms=("canonical", "question")) -> Knowledge:
    """A backbone that knows a fact exactly if its subject has even length (or the reverse)."""
    answers = {}
    for fact in facts.store().facts:
        hit = (len(fact.subject) % 2 == 0) is known
        answers[fact.identity] = {form: Answer(hit, hit, "x", hit) for form in forms}
    return Knowledge(answers, forms)


def test_known_facts_are_no_corrections_but_come_first_as_probes(embedded_archives):
    known = _knowledge(True)
    found = load("zsre", known=known)
    assert found.edits and all(len(edit.subject) % 2 == 1 for edit in found.edits)
    cities = [edit for edit in found.edits if edit.relation == "native_language"]
    assert cities
    for edit in cities:
        assert all(len(p.identity.split(":", 2)[2]) % 2 == 0 for p in edit.locality)
    with pytest.raises(RecordError, match="raise the cap"):
        load("zsre", known=Knowledge({}, ("canonical",)), limit=5)


def test_counterfact_edits_exchange_the_object_of_known_facts(embedded_archives):
    known = _knowledge(True)
    found = load("counterfact", known=known)
    assert found.name == "WikiTriple-CF" and "completes correctly" in found.substitution
    assert "not checked" in load("counterfact").substitution
    subjects = {edit.subject.casefold() for edit in found.edits}
    with_neighbours = 0
    objects = {}
    for fact in facts.store().facts:
        objects.setdefault(fact.relation, set()).update(fact.objects)
    for edit in found.edits:
        assert len(edit.subject) % 2 == 0
        assert edit.target != edit.target_true and edit.target in objects[edit.relation]
        assert edit.target[:3] != edit.target_true[:3]
        assert len(edit.rephrases) == 2 and not edit.prompt.endswith("?")
        neighbours = [p for p in edit.locality if p.kind == "neighbour"]
        distractors = [p for p in edit.locality if p.kind == "distractor"]
        assert len(neighbours) == len(distractors) <= 10
        with_neighbours += bool(neighbours)
        for plain, behind in zip(neighbours, distractors, strict=True):
            assert plain.target == edit.target_true
            assert behind.prompt == f"{edit.prompt} {edit.target}. {plain.prompt}"
            assert not any(f" {name} " in f" {plain.prompt.casefold()} " for name in subjects)
    assert with_neighbours > 10
    has = [bool(edit.locality) for edit in found.edits]
    assert has == sorted(has, reverse=True)


def test_candidates_start_with_the_facts_that_load_would_edit(embedded_archives):
    first = [fact.identity for fact in facts.candidates("zsre")[:20]]
    assert first == [edit.identity for edit in load("zsre", limit=20).edits]
    assert len(facts.candidates("counterfact")) > 100
