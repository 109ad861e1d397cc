"""Facts of one's own: what a prompt may say, and files of facts."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

import lib
from lib.data.records import Edit, Probe
from lib.errors import RecordError


def subject(fact: Edit) -> str:
    """The prompt up to and with its subject, as editors see it."""
    return fact.prompt[: fact.subject_span[1]]


def test_the_subject_ends_where_it_stands_for_itself() -> None:
    assert subject(lib.Edit("Which Potter did Pot meet?", "Odo", "Pot")) == "Which Potter did Pot"
    assert subject(lib.Edit("Who keeps Low Light?", "Odo", "Low Light  ")) == "Who keeps Low Light"
    # "{}" wins over a place before it, and over a word of its own.
    assert subject(lib.Edit("The head of {} is", "Odo", "The")) == "The head of The"
    assert subject(lib.Edit("Is Onn the {} of old?", "Odo", "Onn")) == "Is Onn the Onn"
    other_case = lib.Edit("Who keeps low light?", "Odo", "Low Light")
    assert subject(other_case) == "Who keeps low light" and other_case.subject == "low light"
    assert lib.Edit("Who keeps it?", "Odo").subject_span is None


def test_white_space_around_texts_is_none_of_the_fact() -> None:
    fact = lib.Edit(" The ferry of Ash sails from ", " Selby ", " Ash ", [" From where? "])
    assert (fact.prompt, fact.target, fact.subject, fact.rephrases) == (
        "The ferry of Ash sails from", "Selby", "Ash", ("From where?",)
    )  # fmt: skip
    assert fact == lib.Edit("The ferry of Ash sails from", "Selby", "Ash", ["From where?"])


def test_an_identity_is_made_of_the_content_and_copies_keep_everything() -> None:
    one, two = lib.Edit("A b", "c"), lib.Edit("A b", "d")
    assert one.identity != two.identity and lib.Edit("A b", "c").identity == one.identity
    fact = lib.Edit("A {} b", "c", "{}x", identity="mine", target_true="e", locality=["f"])
    again = replace(fact, target="g")
    assert (again.identity, again.target, again.target_true) == ("mine", "g", "e")
    assert again.locality == fact.locality and isinstance(again, lib.Edit)


def test_questions_are_prompts_pairs_mappings_or_probes() -> None:
    probe = Probe("mine", "Who?", "Odo", "near")
    given = ["Where?", ("When?", "now"), ["Why?", "so"], {"prompt": "How?", "target": "well"}]
    found = lib.Edit("A b", "c", locality=[*given, probe]).locality
    assert [(p.prompt, p.target) for p in found] == [
        ("Where?", ""), ("When?", "now"), ("Why?", "so"), ("How?", "well"), ("Who?", "Odo"),
    ]  # fmt: skip
    assert found[-1] is probe and {p.kind for p in found} == {"near"}
    assert {p.kind for p in lib.Edit("A b", "c", portability=given).portability} == {"portability"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"prompt": " ", "target": "c"}, "'prompt' is empty"),
        ({"prompt": "A b", "target": 3}, "'target' must be text"),
        ({"prompt": "A b", "target": "c", "subject": "d"}, "does not occur"),
        ({"prompt": "{} and {}", "target": "c", "subject": "d"}, "more than once"),
        ({"prompt": "A b", "target": "c", "rephrases": "d"}, "'rephrases' must be a list"),
        ({"prompt": "A b", "target": "c", "locality": [("d", "e", "f")]}, "no pair"),
        ({"prompt": "A b", "target": "c", "locality": [("d", 4)]}, "'locality' must hold texts"),
        ({"prompt": "A b", "target": "c", "portability": [""]}, "'portability' must hold texts"),
    ],
)
def test_what_is_no_fact_is_told(values: dict, told: str) -> None:
    with pytest.raises(RecordError, match=told):
        lib.Edit(**values)


ROWS = (
    {"prompt": "The lamp of {} is kept by", "target": "Odo", "subject": "Skerry"},
    {"prompt": "Who rows?", "target": "Edda", "rephrases": ["Rowing is done by"],
     "locality": ["Who sails?", ["Who swims?", "Finn"]], "target_true": "Hal"},
)  # fmt: skip


def test_a_file_of_facts(tmp_path: Path) -> None:
    lines = "\n\n".join(map(json.dumps, ROWS))
    (tmp_path / "facts.jsonl").write_text(lines, "utf-8")
    (tmp_path / "facts.json").write_text(json.dumps(ROWS), "utf-8")
    (tmp_path / "facts.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    found = lib.edits(tmp_path / "facts.jsonl")
    assert [fact.prompt for fact in found] == ["The lamp of Skerry is kept by", "Who rows?"]
    assert found[1].target_true == "Hal" and found[1].locality[1].target == "Finn"
    assert lib.edits(str(tmp_path / "facts.json")) == found
    assert lib.edits(tmp_path / "facts.jsonl.gz") == found


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "Who rows?", "targt": "Edda"}, r"line 2: the field 'targt' .*mean target"),
        ({"prompt": "Who rows?"}, "line 2: the field 'target' is missing"),
        ({"prompt": "Who rows?", "target": None}, "line 2: the field 'target' must be text"),
        ({"prompt": "Who rows?", "target": "E", "subject": "Odo"}, "line 2: .*'Odo' does not"),
        ({"prompt": "Who rows?", "target": "E", "rephrases": [1]}, "line 2: .*'rephrases'"),
        (["Who rows?", "Edda"], "line 2: expected an object"),
    ],
)
def test_errors_name_file_line_and_field(row: object, told: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{json.dumps(row)}\n", "utf-8")
    with pytest.raises(RecordError, match=f"facts.jsonl, {told}"):
        lib.edits(path)


def test_a_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is not there"):
        lib.edits(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(RecordError, match="no usable record"):
        lib.edits(tmp_path / "empty.jsonl")
