"""Files as careless hands leave them: no value that is no text, and no loss without a word."""

import gzip
import json
from pathlib import Path

import pytest

from lib.data import corpus
from lib.data.datasets import load
from lib.data.published import reading
from lib.data.streams import balanced_stream
from lib.errors import RecordError
from tests.data.published.test_readers import EASYEDIT, KNOWEDIT, RAW, ROME, TRIMMED, put

FORMS = {
    "zsre/zsre_train.jsonl": RAW, "zsre/train_10000.jsonl": TRIMMED,
    "zsre/knowedit_1304_rephrase10.jsonl": KNOWEDIT, "zsre/zsre_mend_eval.json": TRIMMED,
    "counterfact/counterfact.json": ROME, "counterfact/edit_10000.jsonl": EASYEDIT,
}  # fmt: skip
NO_VALUES = ("NaN", "Infinity", "-Infinity", "1e999", '"\\ud83d"', '"\\udc00 inside"')


def places(value: object) -> list[tuple[object, ...]]:
    """The way to every text and number inside a record."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [(key, *rest) for key, inner in pairs for rest in places(inner)]
    return [()]


def with_value(row: object, place: tuple[object, ...], text: str) -> str:
    """The record as JSON with `text` as the value at that place."""
    copy = json.loads(json.dumps({"row": row}))
    *parents, last = ("row", *place)
    inner = copy
    for parent in parents:
        inner = inner[parent]
    inner[last] = "@here@"
    return json.dumps(copy["row"]).replace('"@here@"', text)


@pytest.mark.parametrize("value", NO_VALUES)
@pytest.mark.parametrize("name", FORMS)
def test_what_is_no_value_is_malformed_in_every_field(tmp_path: Path, name: str, value: str):
    row, (dataset, file) = FORMS[name], name.split("/")
    array = file.endswith(".json")
    for place in places(row):
        put(tmp_path, name, row, with_value(row, place, value), row)
        with pytest.raises(RecordError, match=rf"{file}, line {3 if array else 2}: broken JSON"):
            load(dataset, data_dir=tmp_path)
        found = load(dataset, data_dir=tmp_path, strict=False)
        assert [bad.line for bad in found.skipped] == [3 if array else 2]
        assert len(found.edits) == 2 and found.content.isalnum()


def test_a_key_that_stands_twice_is_malformed(tmp_path: Path):
    twice = json.dumps(TRIMMED)[:-1] + ', "alt": "Wick"}'
    for name, line in (("zsre/train_10000.jsonl", 2), ("zsre/zsre_mend_train.json", 3)):
        put(tmp_path, name, TRIMMED, twice)
        with pytest.raises(RecordError, match=rf"line {line}: .*the key 'alt' twice"):
            load("zsre", data_dir=tmp_path)
        assert len(load("zsre", data_dir=tmp_path, strict=False).edits) == 1
        (tmp_path / name).unlink()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[{0},\n{0}]\n[{0}]\n", 2), ("[{0}\n]\n\n{0}\n", 2), ("[{0}]]", 1), ("[{0}] x", 1),
        ("[\n{0}]\n,{0}", 2), ("[{0},\n{0}", 3), ("[{0},\n{{{0}]", 2), ("[{0},\n \n nul]", 3),
    ],
)  # fmt: skip
def test_what_stands_behind_an_array_or_breaks_it_is_never_dropped(
    tmp_path: Path, text: str, line: int, strict: bool
):
    put(tmp_path, "zsre/train_10000.jsonl", text.format(json.dumps(TRIMMED)))
    with pytest.raises(RecordError, match=rf"train_10000\.jsonl, line {line}: .*(follow)"):
        load("zsre", data_dir=tmp_path, strict=strict)


def test_white_space_behind_an_array_is_nothing(tmp_path: Path):
    put(tmp_path, "zsre/train_10000.jsonl", f" \n[{json.dumps(TRIMMED)}] \n\r\n\t")
    assert len(load("zsre", data_dir=tmp_path).edits) == 1


def test_undecodable_bytes_in_an_array_spoil_one_record(tmp_path: Path):
    path = put(tmp_path, "zsre/zsre_mend_train.json", TRIMMED, TRIMMED | {"alt": "M@laga"}, TRIMMED)
    path.write_bytes(path.read_bytes().replace(b"@", b"\xe1"))
    with pytest.raises(RecordError, match="line 3: broken JSON or encoding"):
        load("zsre", data_dir=tmp_path)
    assert len(load("zsre", data_dir=tmp_path, strict=False).edits) == 2


@pytest.mark.parametrize("name", ["zsre_mend_eval.json", "train_10000.jsonl"])
def test_records_without_a_new_answer_are_left_out_and_counted(tmp_path: Path, name: str):
    """A strict load goes on, with a count of their own beside that of texts without a word."""
    other = TRIMMED | {"src": "Who last climbed mount Tarn?"}
    wordless = TRIMMED | {"alt": "?"}
    put(tmp_path, f"zsre/{name}", TRIMMED, TRIMMED | {"alt": ""}, wordless, {**other, "alt": ""},
        other)  # fmt: skip
    found = load("zsre", data_dir=tmp_path)
    assert [edit.prompt for edit in found.edits] == [TRIMMED["src"], other["src"]]
    assert found.edits[1].identity.endswith(":4")  # identities count all records of the file
    assert not found.skipped
    assert found.left_out == (
        f"2 records of {name} without a new answer",
        f"1 records of {name} without a letter or a digit",
    )
    put(tmp_path, f"zsre/{name}", TRIMMED | {"alt": ""})
    with pytest.raises(RecordError, match="no usable record"):
        load("zsre", data_dir=tmp_path)


def test_pairs_of_columns_are_records_too(tmp_path: Path):
    put(tmp_path, "nq/nq_train.json").write_text(
        '{"questions": ["who?", "where?", "when?"], "answers": ["Odo", NaN, ["1904"]]}'
    )
    with pytest.raises(RecordError, match=r"nq_train\.json, question 2: .*NaN is no value"):
        load("nq", data_dir=tmp_path)
    found = load("nq", data_dir=tmp_path, strict=False)
    assert [probe.target for probe in found.upstream] == ["Odo", "1904"]
    assert [bad.line for bad in found.skipped] == [2]


# -- no word ---------------------------------------------------------------------------------

WORDLESS = (")", "/", " . ", "¿…?", "— “”", "+/", "♥", "\u200b")
ASKED = {"New Question": "?", "New Answer": "Wick"}
WORDS = ("東京", "Ωμ", "٣", "7", "(a)", "ß", "คำ")


@pytest.mark.parametrize("text", WORDLESS)
def test_texts_without_a_letter_or_a_digit_are_dropped_and_counted(tmp_path: Path, text: str):
    rephrases = [text, "Lake Onn lies where?", " ", text]
    put(tmp_path, "zsre/knowedit_1304_rephrase10.jsonl", KNOWEDIT | {"generate_prompt": rephrases})
    found = load("zsre", data_dir=tmp_path)
    assert found.edits[0].rephrases == (KNOWEDIT["rephrase_prompt"], "Lake Onn lies where?")
    assert found.left_out == (
        "3 single texts of knowedit_1304_rephrase10.jsonl without a letter or a digit",
    )
    for field in ("prompt", "target_new"):
        bare = KNOWEDIT | {field: text, "subject": text}
        put(tmp_path, "zsre/knowedit_1304_rephrase10.jsonl", KNOWEDIT, bare)
        found = load("zsre", data_dir=tmp_path)
        assert len(found.edits) == 1 and not found.skipped
        assert found.left_out[0].startswith("1 records of")


@pytest.mark.parametrize("text", WORDS)
def test_words_of_every_script_stay(tmp_path: Path, text: str):
    put(tmp_path, "zsre/train_10000.jsonl", TRIMMED | {"alt": text, "rephrase": text})
    found = load("zsre", data_dir=tmp_path)
    assert (found.edits[0].target, found.edits[0].rephrases) == (text, (text,))
    assert not found.left_out


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("counterfact/counterfact.json", ROME | {"neighborhood_prompts": ["?", "The Fenn Bell"]}),
        ("counterfact/edit_10000.jsonl", EASYEDIT | {"locality_prompt": "..."}),
        ("zsre/train_10000.jsonl", TRIMMED | {"loc": "?!"}),
        ("zsre/eval_1037.jsonl", TRIMMED | {"portability": ASKED}),
    ],
)  # fmt: skip
def test_probes_without_a_word_are_counted_too(tmp_path: Path, name: str, row: dict):
    put(tmp_path, name, row)
    found = load(name.split("/")[0], data_dir=tmp_path)
    assert len(found.edits) == 1 and found.left_out[0].startswith("1 single texts")
    probes = (*found.edits[0].locality, *found.edits[0].portability)
    assert all(any(map(str.isalnum, probe.prompt)) for probe in probes)


def test_a_prompt_with_two_answers_is_counted(tmp_path: Path):
    rows = [
        KNOWEDIT
        | {"prompt": f"Which land holds Lake Onn {i}?", "target_new": f"Land {i}"}
        | {"rephrase_prompt": "Which land is it?", "generate_prompt": [f"Land of {i}?"]}
        for i in range(3)
    ]
    put(tmp_path, "zsre/knowedit_1304_rephrase10.jsonl", *rows)
    data = load("zsre", data_dir=tmp_path)
    made = balanced_stream(data, n_edits=6, batch_size=2, seed=0, n_upstream=0)
    assert [edit.prompt for edit in made.edits].count("Which land is it?") == 3
    assert made.conflicting == 1
    assert balanced_stream(data, n_edits=1, batch_size=1, seed=0).conflicting == 0


def test_what_a_file_holds_beside_usable_records_is_said(tmp_path: Path):
    joined = {
        "id": 1,
        "claim": "Tin is a metal.",
        "label": "SUPPORTS",
        "rephrases": ["Tin: metal."],
    }
    bare = joined | {"claim": "Ice floats.", "rephrases": []}
    put(tmp_path, "fever/dev_rephrases_2048.jsonl", joined, bare)
    plain = [
        ("Snow is warm.", "REFUTES"), ("Rain?", "NOT ENOUGH INFO"), ("Ice floats.", "SUPPORTS"),
        ("Hail is soft.", "SUPPORTS"), ("Hail is soft.", "REFUTES"),
    ]  # fmt: skip
    put(tmp_path, "fever/paper_dev.jsonl", *({"claim": c, "label": k} for c, k in plain))
    found = load("fever", data_dir=tmp_path)
    assert [probe.prompt for probe in found.upstream] == ["Snow is warm."]
    assert found.left_out == (
        "1 records without a rephrase",
        "1 claims that cannot be verified of paper_dev.jsonl",
        "1 claims that an edited record holds of paper_dev.jsonl",
        "1 claims with both labels of paper_dev.jsonl",
    )


# -- which files -----------------------------------------------------------------------------

JUNK = (
    ".DS_Store", "._train_10000.jsonl", ".train_10000.jsonl.swp", "train_10000.jsonl~",
    "#train_10000.jsonl#", ".#train_10000.jsonl", "train_10000.jsonl.bak", "README.md", "Thumbs.db",
    "train_10000.jsonl.gz.part", "train_10000.jsonl.orig",
)  # fmt: skip


def test_what_file_managers_and_editors_leave_is_no_data_file(tmp_path: Path):
    assert reading.data_files(tmp_path / "absent") == []
    for name in ("b.jsonl.gz", "a.json", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "below").mkdir()
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "below" / "d.jsonl").write_bytes(b"")
    for name in JUNK:
        (tmp_path / name).write_bytes(b"\0")
    names = [path.name for path in reading.data_files(tmp_path)]
    assert names == ["a.json", "b.jsonl.gz", "c.txt"]
    assert [path.name for path in reading.data_files(tmp_path, (".txt",))] == ["c.txt"]


def test_readers_read_no_other_file(tmp_path: Path):
    put(tmp_path, "zsre/train_10000.jsonl", TRIMMED)
    before = load("zsre", data_dir=tmp_path).content
    for name in JUNK:
        (tmp_path / "zsre" / name).write_bytes(b"\0\xff")
    assert load("zsre", data_dir=tmp_path).content == before


# -- text for key statistics -----------------------------------------------------------------

DOCUMENT = '{"text": "The tide turns at Port Ost."}\n'


def texts(folder: Path, files: dict[str, bytes], strict: bool = True) -> corpus.Corpus:
    (folder / "wikipedia").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / "wikipedia" / name).write_bytes(content)
    return corpus.load("wikipedia", folder, strict=strict)


def test_text_files_are_read_as_all_published_files_are(tmp_path: Path):
    found = texts(
        tmp_path,
        {
            "a.jsonl": b"\xef\xbb\xbf" + DOCUMENT.encode() + b"\n  \n",
            "b.txt.gz": gzip.compress("\ufeffGulls nest.\r\n\r\nTerns\u2028fish.\n".encode()),
            **{name: b"\0\xff" for name in JUNK},
        },
    )
    assert set(found.texts) == {"The tide turns at Port Ost.", "Gulls nest.", "Terns\u2028fish."}
    assert not found.skipped


@pytest.mark.parametrize("line", ["null", "NaN", "7", '["x"]', '{"text": "x"}', '"\\ud800"'])
def test_a_document_that_is_no_text_is_named_or_left_out(tmp_path: Path, line: str):
    content = (DOCUMENT + f'{{"text": {line}}}\n' + DOCUMENT).encode()
    with pytest.raises(RecordError, match=r"wikipedia.a\.jsonl, line 2: .*--skip-bad"):
        texts(tmp_path, {"a.jsonl": content})
    found = texts(tmp_path, {}, strict=False)
    assert len(found.texts) == 2 and [bad.line for bad in found.skipped] == [2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"Gulls nest.\nM\xe1laga\n"),
        ("a.jsonl.gz", DOCUMENT.encode()),
        ("a.txt.gz", gzip.compress(DOCUMENT.encode() * 50)[:-9]),
        ("a.md", b"Gulls nest.\n"),
    ],
)
def test_text_that_cannot_be_read_names_its_file(tmp_path: Path, name: str, content: bytes):
    with pytest.raises(RecordError, match="wikipedia"):
        texts(tmp_path, {name: content})
