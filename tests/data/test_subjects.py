"""Where a subject stands: as a word, as spelled, at the place that its record names."""

from dataclasses import replace
from pathlib import Path

import pytest

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import prompt_ids
from lib.backbones.sources import loading
from lib.data.datasets import load
from lib.data.published import reading
from lib.data.records import Dataset, Edit, find_subject
from lib.data.streams import balanced_stream, record_stream
from lib.editors.locate.subjects import Request, subject_column
from lib.errors import RecordError
from lib.storage.fingerprints import content_hash
from tests.data.published.test_readers import KNOWEDIT, RAW, ROME, TRIMMED, put

# A prompt and a subject; what stands before the place that is meant.
PLACES = [
    ("Does Onnmar lie north of Onn?", "Onn", "Does Onnmar lie north of "),
    ("Is Stonn or Onn older?", "Onn", "Is Stonn or "),
    ("Where is onn, where Onn?", "Onn", "Where is onn, where "),
    ("Is the Sonntag paper from ONN?", "Onn", "Is the Sonntag paper from "),
    ("Is Onnmar Onnish?", "Onn", "Is "),
    ("A a and a a b?", "a b", "A a and a "),
    ("Where is Lake Onn ?", "  Lake Onn \t", "Where is "),
    ("İİ towers over mount tarn, says İnci", "Mount Tarn", "İİ towers over "),
    ("Is İzmar near Tarn?", "tarn", "Is İzmar near "),
    ("STRASSE or straße in Tarn?", "Straße", "STRASSE or "),
    ("Who sang C++ (live)?", "C++ (live)", "Who sang "),
    ("Do !!! play in Onn?", "!!!", "Do "),
    ("東京都はどこ", "東京", ""),
]


@pytest.mark.parametrize(("prompt", "subject", "before"), PLACES)
def test_a_subject_is_found_as_a_word_and_without_shift(prompt: str, subject: str, before: str):
    begin, end = find_subject(prompt, subject)
    assert prompt[:begin] == before
    assert prompt[begin:end].casefold() == subject.strip().casefold()
    found = Edit("r", prompt, "Wick", reading.subject_in(prompt, subject))
    request = Request.of(found, "MEMIT")
    assert (request.before, request.prompt) == (before, prompt)


@pytest.mark.parametrize("subject", ["Onn", "İ", "", "  "])
def test_a_subject_that_is_not_there_has_no_place(subject: str):
    assert find_subject("Who keeps Mew Stone?", subject) is None
    with pytest.raises(RecordError, match="does not occur"):
        reading.subject_in("Who keeps Mew Stone?", subject)
    if subject:
        with pytest.raises(RecordError, match="does not occur"):
            Edit("r", "Who keeps  Mew Stone?", "Wick", subject.replace("İ", "i̇"))


@pytest.mark.parametrize(
    ("template", "place"), [("{} of The lies at", 0), ("The city of {} is", 12)]
)
@pytest.mark.parametrize("spaces", ["", " "])
def test_the_place_in_romes_form_wins(tmp_path: Path, template: str, place: int, spaces: str):
    rewrite = ROME["requested_rewrite"] | {"prompt": template, "subject": f"{spaces}The{spaces}"}
    put(tmp_path, "counterfact/counterfact.json", ROME | {"requested_rewrite": rewrite})
    (edit,) = load("counterfact", data_dir=tmp_path).edits
    begin = place + len(spaces)
    assert (edit.subject, edit.subject_span) == ("The", (begin, begin + 3))
    assert edit.prompt == template.replace("{}", f"{spaces}The{spaces}")  # as the file has it


def test_every_wording_keeps_the_place_and_no_other_text_takes_it():
    prompt = "The harbour of The"
    record = Edit("r", prompt, "Wick", "The", ("The answer?", "Where?"), subject_at=15)
    data = Dataset("invented", (record,))
    for template in ("The question: {} lies at", "{}", "On the map, {}?"):
        options = {"n_edits": 1, "batch_size": 1, "seed": 0, "n_upstream": 0, "template": template}
        for made in (record_stream(data, **options), balanced_stream(data, **options)):
            (edit,) = made.edits
            head = template.index("{}")
            assert edit.prompt == template.format(prompt)
            assert edit.subject_span == (head + 15, head + 18)
    # A rephrase has a place of its own.
    (held_out,) = record_stream(data, **options).holdout
    assert held_out.prompt == template.format("The answer?") and held_out.subject_at is None


def test_a_subject_of_the_templates_words_stays_in_the_prompt():
    record = Edit("r", "Who wrote Question?", "Odo", "Question", ("Q?",))
    made = record_stream(
        Dataset("invented", (record,)), n_edits=1, batch_size=1, seed=0, n_upstream=0,
        template="Question: {}\nAnswer:",
    )  # fmt: skip
    assert Request.of(made.edits[0], "MEMIT").before == "Question: Who wrote "


def test_a_place_is_kept_only_where_the_text_does_not_say_it():
    edit = Edit("r", "Is Onn the Onn of old?", "Wick", "Onn")
    assert replace(edit, subject_at=3) == edit
    assert content_hash([replace(edit, subject_at=3)]) == content_hash([edit])
    other = replace(edit, subject_at=11)
    assert other != edit and content_hash([other]) != content_hash([edit])
    for wrong in (2, 12, 99):
        with pytest.raises(RecordError, match=f"does not stand at index {wrong}"):
            replace(edit, subject_at=wrong)
    with pytest.raises(RecordError, match="does not stand"):
        replace(edit, subject="", subject_at=3)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("train_10000.jsonl", TRIMMED | {"subject": " Mount Tarn\n"}),
        ("knowedit_1304_rephrase10.jsonl", KNOWEDIT | {"subject": "Lake Onn "}),
        ("zsre_train.jsonl", RAW | {"meta": {"sub_surface": ["Quill Island "]}}),
    ],
)
def test_white_space_around_a_subject_is_no_part_of_it(tmp_path: Path, name: str, row: dict):
    put(tmp_path, f"zsre/{name}", row)
    (edit,) = load("zsre", data_dir=tmp_path).edits
    assert edit.subject and edit.subject == edit.subject.strip()


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return loading.load("tiny-gpt2")


@pytest.mark.parametrize(
    "edit",
    [
        Edit("a", "Who keeps Mew Stone today?", "Odo", "Mew Stone "),
        Edit("b", "Does Onnmar lie north of Onn now?", "Odo", "Onn"),
        Edit("c", "Is Onn the Onn of old?", "Odo", "Onn", subject_at=11),
    ],
)
def test_the_subjects_last_token_ends_where_the_subject_ends(backbone: Backbone, edit: Edit):
    request = Request.of(edit, "MEMIT")
    column = subject_column(backbone, request.before, request.subject)
    read = backbone.tokenizer.decode(prompt_ids(backbone, edit.prompt)[: column + 1])
    assert read == edit.prompt[: edit.subject_span[1]]
