"""The wordings: complete, well-formed, and without a hint at the answer."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lib.data.embedded.relations import FORMS, MAIN, TABLES, read, relations, takes_article
from lib.errors import RecordError

RELATIONS = relations()
NAMES = sorted(RELATIONS)
WORDED = {
    "canonical": "The ferry of {s} is", "sentences": ["{s} has", "Look at {s}:"],
    "label": "Name: {s}. Ferry:", "questions": ["Which ferry has {s}?"],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_relation_has_all_forms_with_one_place_for_the_subject(name):
    relation = RELATIONS[name]
    statements = (relation.canonical, *relation.sentences, relation.label)
    assert relation.name == name and len(relation.sentences) == 2
    assert len(relation.questions) >= 9
    for wording in (*statements, *relation.questions):
        assert wording.count("{s}") == 1
        assert wording == wording.strip() and "  " not in wording
    everything = [*statements, *relation.questions]
    assert len({wording.casefold() for wording in everything}) == len(everything)
    assert all(question.endswith("?") for question in relation.questions)
    assert not any(statement.endswith(("?", ".")) for statement in statements)
    assert relation.label.endswith(":")
    assert relation.questions[0][0].isupper()


def test_main_and_table_relations_are_worded():
    assert len(MAIN) == 14 and set(MAIN) | set(TABLES) == set(RELATIONS)


def test_the_subject_stands_in_every_form_as_given():
    for relation in RELATIONS.values():
        for form in FORMS:
            assert "Ærø Sea" in relation.prompt(form, "Ærø Sea")
        assert relation.asked("haiku")[0] == relation.prompt("bare", "haiku")
    question = RELATIONS["capital"].prompt("question", "Norland")
    assert question.endswith("Question: What is the capital of Norland?\nAnswer:")


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("Kingdom of Norland", True),
        ("Amsel River", True),
        ("Netherlands", True),
        ("University of Amsel", True),
        ("Lake Onn", False),
        ("Norland", False),
        ("Sea", False),
    ],
)
def test_place_names_take_their_article(subject, expected):
    assert takes_article(subject) is expected


def test_the_article_is_capital_only_at_the_start_and_never_for_works():
    relation = RELATIONS["continent"]
    assert relation.prompt("canonical", "Amsel River").startswith("The Amsel River is")
    assert relation.prompt("bare", "Amsel River") == "On which continent is the Amsel River?"
    assert relation.prompt("label", "Amsel River").startswith("Name: Amsel River.")
    assert "the Amsel" not in RELATIONS["work_language"].prompt("bare", "Amsel River")


def put(folder: Path, **changes: Any) -> Path:
    """A file with one relation, worded as it should be but for `changes`; None leaves one out."""
    given = {key: value for key, value in (WORDED | changes).items() if value is not None}
    path = folder / "relations.yaml"
    path.write_text(yaml.safe_dump({"ferry": given}), "utf-8")
    return path


def test_a_relation_is_read_as_it_is_written(tmp_path):
    found = read(put(tmp_path))["ferry"]
    assert found.sentences == ("{s} has", "Look at {s}:") and found.places
    assert not read(put(tmp_path, places=False))["ferry"].places


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"label": None}, "must hold canonical, label, questions, sentences"),
        ({"place": True}, "must hold"),
        ({"sentences": ["{s} has"]}, "sentences must be a list of two"),
        ({"sentences": "{s} has"}, "sentences must be a list of two"),
        ({"questions": []}, "questions must be a list"),
        ({"places": "no"}, "places must be true or false, not 'no'"),
        ({"questions": ["Which ferry?"]}, "'Which ferry\\?' is no text with one {s}"),
        ({"label": 3}, "3 is no text"),
    ],
)
def test_a_relation_worded_otherwise_is_an_error_naming_it(tmp_path, changes, fault):
    with pytest.raises(RecordError, match=rf"relations\.yaml: ferry.*{fault}"):
        read(put(tmp_path, **changes))
