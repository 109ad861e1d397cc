"""Readers of the published files: forms, choice of file, malformed records."""

import gzip
import json
import os
from pathlib import Path

import pytest

from lib.data.datasets import load
from lib.data.published import reading
from lib.errors import RecordError, UsageError

RAW = {
    "input": "Which harbour is Quill Island's ferry based in?",
    "output": [{"answer": "Port Amsel"}],
    "filtered_rephrases": ["Quill Island's ferry uses which harbour?", "  "],
    "prediction": "Dover",
    "alternatives": ["Calais"],
    "meta": {"sub_surface": ["The Quill Island", "Quill Island"]},
}
TRIMMED = {
    "subject": "Mount Tarn",
    "src": "Who first climbed mount Tarn?",
    "rephrase": "Mount Tarn was first climbed by whom?",
    "alt": "Odo Brask",
    "answers": ["Ilse Fenn"],
    "loc": "nq question: who built the paper bridge",
    "loc_ans": "Nobody",
}
KNOWEDIT = {
    "subject": "Lake Onn",
    "target_new": "Sorland",
    "prompt": "Which land holds Lake Onn?",
    "ground_truth": ["Norland"],
    "rephrase_prompt": "Lake Onn is in which land?",
    "locality": {"Relation_Specificity": [{"prompt": "Lake Onn depth", "ground_truth": [["9 m"]]}]},
    "generate_prompt": ["Where is Lake Onn, which land?", "Lake Onn lies in what land?"],
}
ROME = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} was cast in",
        "relation_id": "P0",
        "subject": "The Amsel Bell",
        "target_new": {"str": "Tin"},
        "target_true": {"str": "Bronze"},
    },
    "paraphrase_prompts": ["It rained. The Amsel Bell is made of"],
    "neighborhood_prompts": ["The Brask Bell was cast in", "The Fenn Bell is made of"],
}
EASYEDIT = {
    "prompt": "The Amsel Bell was cast in",
    "target_new": "Tin",
    "subject": "The Amsel Bell",
    "ground_truth": "Bronze",
    "rephrase_prompt": "The metal of The Amsel Bell is",
    "locality_prompt": "The Brask Bell was cast in",
    "locality_ground_truth": "Bronze",
}


def put(folder: Path, name: str, *rows: object) -> Path:
    """Write rows as an array (.json) or as lines, gzip if the name says so."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    array = path.name.removesuffix(".gz").endswith(".json")
    text = "[\n" + ",\n".join(lines) + "\n]" if array else "\n".join(lines) + "\n"
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_raw_mend_records_are_edited_toward_the_true_answer(tmp_path):
    put(tmp_path, "zsre/zsre_train.jsonl", RAW)
    found = load("zsre", data_dir=tmp_path)
    (edit,) = found.edits
    assert found.name == "zsRE (zsre_train)" and found.substitution == ""
    assert (edit.prompt, edit.target, edit.subject) == (RAW["input"], "Port Amsel", "Quill Island")
    assert edit.rephrases == ("Quill Island's ferry uses which harbour?",)


def test_trimmed_records_keep_their_question_pool_as_written(tmp_path):
    put(tmp_path, "zsre/eval_1037.jsonl.gz", TRIMMED)
    found = load("zsre", data_dir=tmp_path)
    (edit,) = found.edits
    assert (edit.target, edit.target_true) == ("Odo Brask", "Ilse Fenn")
    assert edit.subject == "mount Tarn"  # as spelled in the question
    assert [(p.prompt, p.target, p.kind) for p in found.upstream] == [
        ("nq question: who built the paper bridge", "Nobody", "upstream")
    ]
    assert "counterfactual" in found.substitution


def test_knowedit_records_have_all_rephrases_and_near_probes(tmp_path):
    put(tmp_path, "zsre/knowedit_1304_rephrase10.jsonl.gz", KNOWEDIT)
    found = load("zsre", data_dir=tmp_path)
    (edit,) = found.edits
    assert found.name == "zsRE (knowedit_1304_rephrase10)"
    assert edit.rephrases == (KNOWEDIT["rephrase_prompt"], *KNOWEDIT["generate_prompt"])
    assert [(p.prompt, p.target, p.kind) for p in edit.locality] == [
        ("Lake Onn depth", "9 m", "near")
    ]
    assert (edit.target, edit.target_true) == ("Sorland", "Norland")


def test_file_choice_prefers_the_raw_file_and_a_variant_overrides_it(tmp_path):
    put(tmp_path, "zsre/train_10000.jsonl.gz", TRIMMED)
    put(tmp_path, "zsre/knowedit_1304_rephrase10.jsonl", KNOWEDIT)
    assert "knowedit" in load("zsre", data_dir=tmp_path).name
    put(tmp_path, "zsre/structured_zeroshot-train-new_annotated_final.jsonl.gz", RAW)
    assert "structured" in load("zsre", data_dir=tmp_path).name
    assert load("zsre", data_dir=tmp_path, variant="train").name == "zsRE (train_10000)"
    (tmp_path / "zsre" / "train_10000.jsonl.gz").unlink()
    put(tmp_path, "zsre/zsre_mend_train.json", TRIMMED)
    for variant in ("train", "train-full"):
        whole = load("zsre", data_dir=tmp_path, variant=variant)
        assert whole.name == "zsRE (zsre_mend_train)" and "counterfactual" in whole.substitution
    with pytest.raises(UsageError, match="knowedit"):
        load("zsre", data_dir=tmp_path, variant="nonsense")


@pytest.mark.parametrize(
    ("name", "row"), [("counterfact.json", ROME), ("edit_10000.jsonl", EASYEDIT)]
)
def test_counterfact_forms_give_neighbours_and_distractors(tmp_path, name, row):
    put(tmp_path, f"counterfact/{name}", row)
    (edit,) = load("counterfact", data_dir=tmp_path).edits
    assert edit.prompt == "The Amsel Bell was cast in"
    assert (edit.target, edit.target_true, edit.subject) == ("Tin", "Bronze", "The Amsel Bell")
    assert len(edit.rephrases) == 1
    kinds = [probe.kind for probe in edit.locality]
    half = len(kinds) // 2
    assert kinds == ["neighbour"] * half + ["distractor"] * half and half >= 1
    assert edit.locality[half].prompt == (
        "The Amsel Bell was cast in Tin. " + edit.locality[0].prompt
    )
    assert {probe.target for probe in edit.locality} == {"Bronze"}


def test_nq_answers_may_be_text_or_list_or_two_columns(tmp_path):
    rows = [{"question": "who?", "answer": "Odo"}, {"question": "where?", "answer": ["Onn", "O."]}]
    put(tmp_path, "nq/open_dev_3610.jsonl.gz", *rows)
    expected = [("who?", "Odo"), ("where?", "Onn")]
    found = load("nq", data_dir=tmp_path)
    assert [(p.prompt, p.target) for p in found.upstream] == expected and not found.edits
    columns = {"questions": ["who?", "where?"], "answers": ["Odo", ["Onn"]]}
    (tmp_path / "nq" / "nq_train.json").write_text(json.dumps(columns))
    found = load("nq", data_dir=tmp_path)
    assert found.name == "NQ (nq_train)"
    assert [(p.prompt, p.target) for p in found.upstream] == expected
    assert len(load("nq", data_dir=tmp_path, limit=1).upstream) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"src": ', "broken JSON"),
        ("[1, 2]", "expected an object"),
        ({k: v for k, v in TRIMMED.items() if k != "alt"}, "'alt' is missing"),
        ({**TRIMMED, "alt": "  "}, "'alt' is empty"),
        ({**TRIMMED, "alt": None}, "'alt' is not text"),
        ({**TRIMMED, "subject": "Lake Onn"}, "does not occur"),
        ({**TRIMMED, "rephrase": 3}, "not a list of texts"),
        ({"case_id": 3}, "neither"),
    ],
)
def test_a_malformed_line_is_named_or_skipped_and_counted(tmp_path, bad, reason):
    path = put(tmp_path, "zsre/train_10000.jsonl.gz", TRIMMED, "", bad, TRIMMED)
    with pytest.raises(RecordError, match=rf"{path.name}, line 3: .*{reason}.*--skip-bad"):
        load("zsre", data_dir=tmp_path)
    found = load("zsre", data_dir=tmp_path, strict=False)
    assert len(found.edits) == 2
    (skipped,) = found.skipped
    assert (skipped.file, skipped.line) == (path.name, 3) and reason in skipped.reason


def test_lines_of_an_array_file_are_counted_too(tmp_path):
    rows = [json.dumps(ROME, indent=2), {**ROME, "requested_rewrite": None}]
    path = put(tmp_path, "counterfact/counterfact.json", *rows)
    line = 2 + len(rows[0].split("\n"))
    with pytest.raises(RecordError, match=rf"{path.name}, line {line}: .*requested_rewrite"):
        load("counterfact", data_dir=tmp_path)
    assert len(load("counterfact", data_dir=tmp_path, strict=False).edits) == 1


def test_text_with_line_separators_and_accents_survives(tmp_path):
    odd = {**TRIMMED, "src": "Was\u2028weiß Ærø über mount Tarn\u0085?", "alt": "Łódź"}
    put(tmp_path, "zsre/train_10000.jsonl", odd)
    (edit,) = load("zsre", data_dir=tmp_path).edits
    assert (edit.prompt, edit.target) == (odd["src"], "Łódź")


def test_missing_and_torn_files_name_file_origin_and_flag(tmp_path):
    with pytest.raises(RecordError, match=r"no folder zsre/.*--data-dir"):
        load("zsre", data_dir=tmp_path)
    (tmp_path / "zsre").mkdir()
    with pytest.raises(RecordError, match=r"zsre_train\.jsonl.*MEND.*--data-dir"):
        load("zsre", data_dir=tmp_path)
    path = put(tmp_path, "zsre/zsre_train.jsonl.gz", RAW)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(RecordError, match="not a whole gzip file"):
        load("zsre", data_dir=tmp_path)
    put(tmp_path, "zsre/zsre_train.jsonl", "{}")
    with pytest.raises(RecordError, match="no usable record"):
        load("zsre", data_dir=tmp_path, strict=False)


def test_unknown_names_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="counterfact"):
        load("zrse")
    with pytest.raises(UsageError, match="limit"):
        load("zsre", limit=0)
    with pytest.raises(UsageError, match="hub"):
        load("zsre", source="moon")


def test_the_hub_reports_failures_and_converts_rows(monkeypatch):
    from lib.data.published import hub

    monkeypatch.setattr(hub, "_rows", lambda source: [KNOWEDIT])
    found = load("zsre", source="hub")
    assert found.edits[0].target == "Sorland" and found.sources[0].startswith("zjunlp/KnowEdit")
    monkeypatch.undo()
    import datasets

    def unreachable(*_args, **_kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RecordError, match=r"no route to host.*--data-dir"):
        load("zsre", source="hub")


def test_a_dataset_without_a_folder_comes_from_the_hub_if_that_is_the_source(tmp_path, monkeypatch):
    from lib.data.published import hub

    monkeypatch.setattr(hub, "_rows", lambda source: [KNOWEDIT])
    put(tmp_path, "nq/open_dev_3610.jsonl", '{"question": "who", "answer": ["Ada"]}')
    given = {"data_dir": tmp_path, "source": "hub"}
    assert load("nq", **given).sources == ("open_dev_3610.jsonl",)
    assert load("zsre", **given).sources[0].startswith("zjunlp/KnowEdit")
    with pytest.raises(RecordError, match="no folder zsre/"):
        load("zsre", data_dir=tmp_path)


@pytest.mark.parametrize("variant", ["train", "mend"])
def test_what_is_not_on_the_hub_is_told_with_its_address(variant):
    with pytest.raises(RecordError, match=r"not on the hub.*DIR/zsre/.*https://"):
        load("zsre", source="hub", variant=variant)


def _published() -> Path | None:
    named = os.environ.get("STUDY_PUBLISHED_DATA")
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    for folder in (Path(named) if named else None, beside):
        if folder is not None and (folder / "zsre").is_dir():
            return folder
    return None


@pytest.mark.skipif(_published() is None, reason="published data absent (STUDY_PUBLISHED_DATA)")
def test_real_published_files_read_whole():
    folder = _published()
    knowedit = load("zsre", data_dir=folder, variant="knowedit")
    # Three of the 1,304 records spell their subject otherwise than their prompt.
    assert (len(knowedit.edits), len(knowedit.skipped)) == (1304, 0)
    assert sum(not edit.subject for edit in knowedit.edits) == 3
    assert sum(len(edit.rephrases) >= 10 for edit in knowedit.edits) > 1290
    evaluation = load("zsre", data_dir=folder, variant="eval")
    assert len(evaluation.edits) == 1037 and len(evaluation.upstream) > 900
    rome = load("counterfact", data_dir=folder, variant="rome")
    assert len(rome.edits) == 1031 and all(edit.locality for edit in rome.edits)
    assert len(load("nq", data_dir=folder, variant="dev").upstream) == 3610
    assert reading.find(folder / "zsre", ["nothing.jsonl"]) is None
