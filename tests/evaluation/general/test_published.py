"""General ability: published tasks by lm-eval on edited models, and what is planned of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids, encode_prompts
from lib.backbones.sources import loading
from lib.errors import RecordError, UsageError
from lib.evaluation.evaluator import Protocol
from lib.evaluation.general import ability, own_tasks
from lib.evaluation.general.ability import PUBLISHED, GeneralTasks, readable
from lib.runs.execute import execute
from lib.runs.progress import LineProgress
from lib.runs.resources import Resources
from lib.runs.store import Store
from tests.conftest import edits, generate, make, prompt_logits
from tests.runs.test_execute import smoke_runs
from tests.runs.test_plan import planned

LM_EVAL = pytest.mark.skipif(
    not ability.installed(),
    reason="the optional extra lm-eval is not installed (.[general])",
)
DIALOGUE = {"id": "v_1", "article": "m : is it far ? f : yes .", "answers": "C"}
OPTIONS = ["m : no .", "m : so .", "m : a long way , then .", "m : oh ."]
TAGGED = [
    {"tokens": ["Ada", "Lund", "saw", "Onn", "and", "Bram"], "ner_tags": [1, 2, 0, 5, 0, 1]},
    {"tokens": ["Rain"], "ner_tags": [0]},
]
RECORDS = {
    "rte/validation.jsonl": [
        {"sentence1": "Ice floats.", "sentence2": "Ice sinks.", "label": 1, "idx": 0},
        {"sentence1": "Ice floats.", "sentence2": "It floats.", "label": 0, "idx": 1},
    ],
    "mutual/validation.jsonl": [DIALOGUE | {"options": OPTIONS}],
    "boolq/val.jsonl": [{"question": "does ice float", "passage": "Ice floats.", "label": True}],
    "nq_open/NQ-open.dev.jsonl": [{"question": "where is Onn", "answer": ["Norland"]}],
    "samsum/test.json": [{"id": "1", "dialogue": "A: Hi\r\nB: Hi", "summary": "Hi."}],
    "conll03/test.jsonl": TAGGED,
    "sst2/validation.jsonl": [
        {"sentence": 'a "warm" film ', "label": 1, "idx": 0},
        {"sentence": "dull ", "label": 0, "idx": 1},
    ],
    "gsm8k/test.jsonl": [{"question": "How many?", "answer": "So 1,006.\n#### 1,006"}],
    "gsm8k/train.jsonl": [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(9)],
}


def write(folder: Path, name: str, rows: list[dict]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in rows]
    array = path.suffix == ".json"
    path.write_text("[" + ",\n".join(lines) + "]" if array else "\n".join(lines), "utf-8")


@pytest.fixture
def published(tmp_path: Path, monkeypatch) -> Path:
    """A data folder with a few invented records of every task."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, rows in RECORDS.items():
        write(tmp_path / "general", name, rows)
    return tmp_path


# -- plans -----------------------------------------------------------------------------------


def test_published_tasks_are_planned_where_their_data_are(tmp_path: Path, monkeypatch) -> None:
    names = ["gsm8k", "rte"]
    assert readable(names, tmp_path, "files") == []
    (tmp_path / "general").mkdir()
    assert readable(names, tmp_path, "files") == names
    for there in (False, True):
        monkeypatch.setattr(ability, "installed", lambda there=there: there)
        assert readable(names, None, "hub") == (names if there else [])
        assert readable(names, None, "embedded") == []
    with pytest.raises(UsageError, match="no general task 'gsm8'"):
        readable(["gsm8"], tmp_path, "files")


def test_a_plan_knows_the_files_and_the_code_of_its_tasks(published: Path, monkeypatch) -> None:
    (published / "counterfact").mkdir()
    asked = {"rounds": "consecutive", "lm_eval": ["rte", "sst2"]}
    plain = planned(monkeypatch, published)[0]
    assert "general" not in plain.spec
    first, *swept = planned(monkeypatch, published, protocol=asked)
    assert first.spec["protocol"]["lm_eval"] == ["rte", "sst2"]
    others = [run.spec["protocol"] for run in swept if run.identity != first.identity]
    assert others and not any(protocol.get("lm_eval") for protocol in others)
    write(published / "general", "rte/validation.jsonl", RECORDS["rte/validation.jsonl"][:1])
    again = planned(monkeypatch, published, protocol=asked)[0]
    assert again.spec["general"]["files"] != first.spec["general"]["files"]
    monkeypatch.setattr(own_tasks, "FOLDER", published)  # other task files
    changed = planned(monkeypatch, published, protocol=asked)[0]
    assert changed.spec["general"]["tasks"] != again.spec["general"]["tasks"]
    without = planned(monkeypatch, None, protocol=asked)[0]
    assert without.spec["protocol"]["lm_eval"] == [] and "general" not in without.spec


def general(editor, data_dir: Path | None, *names: str, batch: int = 2) -> GeneralTasks:
    protocol = Protocol(lm_eval=names, evaluation_batch=batch)
    return GeneralTasks(editor, protocol, data_dir, {}, Path("unused"))


def test_a_missing_harness_names_the_remedy(monkeypatch) -> None:
    monkeypatch.setattr(ability, "installed", lambda: False)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[general\]'"):
        general(make("ft", loading.load("tiny-gpt2")), None, "rte").rows("end")


def test_other_backbones_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(ability, "installed", lambda: True)
    with pytest.raises(UsageError, match="seq2seq"):
        general(make("ft", loading.load("tiny-t5")), None, "rte").rows("end")


# -- our tasks -------------------------------------------------------------------------------


def test_entities_keep_their_last_word_and_neighbours_stay_apart() -> None:
    words = ["Ada", "Lund", "Bram", "of", "Calder", "Bank"]
    new = [1, 2, 1, 0, 3, 4]  # B-PER I-PER B-PER O B-ORG I-ORG
    old = [2, 2, 1, 0, 4, 4]  # the same as IOB1
    expected = [("Ada Lund", "person"), ("Bram", "person"), ("Calder Bank", "organization")]
    assert own_tasks.entities(words, new) == own_tasks.entities(words, old) == expected
    assert own_tasks.entities(["A", "B"], [2, 6]) == [("A", "person"), ("B", "location")]


def test_every_type_of_a_sentence_is_one_question() -> None:
    pytest.importorskip("datasets")
    rows = list(own_tasks.entity_questions(TAGGED))
    assert [(row["kind"], row["entities"]) for row in rows] == [
        ("person", ["Ada Lund", "Bram"]),
        ("location", ["Onn"]),
    ]
    found = own_tasks.entity_recall(rows[0], [" Ada Lund and others"])
    assert found == {"entity_recall": 0.5}


def test_rouge_of_a_hand_computed_pair() -> None:
    pytest.importorskip("rouge_score", reason="the optional extra lm-eval brings rouge_score")
    row = {"summary": "the cat mat"}
    # Unigrams 3 of 4 and 3; bigrams 1 of 3 and 2; longest common subsequence "the cat mat" 3.
    found = own_tasks.rouge(row, ["The cat sat mat"])["rouge"]
    assert found == pytest.approx((2 * 3 / 7 + 2 * 1 / 5 + 2 * 3 / 7) / 3)
    turned = own_tasks.rouge(row, ["mat the cat"])["rouge"]
    assert turned == pytest.approx((1.0 + 2 * 1 / 4 + 2 * 2 / 6) / 3)
    assert own_tasks.rouge(row, [""]) == {"rouge": 0.0}


# -- the harness -----------------------------------------------------------------------------


@LM_EVAL
def test_every_task_reads_files_of_its_own(published: Path) -> None:
    from lib.evaluation.general import harness

    made = {}
    for name, about in PUBLISHED.items():
        made[name] = task = harness._task(name, about.changes, published / "general")
        task.build_all_requests(limit=1)
        assert about.metric.split(",")[0] in task.aggregation()
    asked = {name: task.instances[0].args[0] for name, task in made.items()}
    assert asked["rte"].startswith("Ice floats.\nQuestion: Ice sinks. True or False?")
    assert asked["gsm8k"].count("Question:") == 6 and "####" in asked["gsm8k"]
    assert asked["mutual"] == "m: is it far? f: yes."
    assert [i.args[1] for i in made["mutual"].instances][2] == " m: a long way, then."
    assert asked["conll03"].endswith("Entities of type person in the sentence:")
    assert asked["samsum"].endswith("\nTL;DR:") and '"warm"' in asked["sst2"]
    assert asked["boolq"].endswith("Question: does ice float?\nAnswer:")
    assert asked["nq_open"].endswith("Q: where is Onn?\nA:")


@LM_EVAL
def test_a_data_set_that_cannot_be_read_names_the_remedy(published: Path) -> None:
    editor = make("ft", loading.load("tiny-gpt2"))
    with pytest.raises(RecordError, match=r"rte cannot be read from the model hub .*general/rte"):
        general(editor, None, "rte").rows("end")  # the tests are offline
    (published / "general/rte/validation.jsonl").rename(published / "general/rte/test.jsonl")
    with pytest.raises(RecordError, match=r"rte cannot be read from .*general/rte .*KeyError"):
        general(editor, published, "rte").rows("end")


@LM_EVAL
def test_the_likeliest_candidate_is_the_answer(published: Path, monkeypatch) -> None:
    """The harness's own MuTual scorer would pick the second candidate whatever the model says."""
    from lib.evaluation.general import harness

    def favour(self, requests, **_) -> list[tuple[float, bool]]:
        likely = {" m: a long way, then.", " yes"}
        return [(-1.0 if answer in likely else -9.0, False) for (_, answer), *_ in requests]

    monkeypatch.setattr(harness.EditedModel, "_loglikelihood_tokens", favour)
    editor = make("ft", loading.load("tiny-gpt2"))
    for row in general(editor, published, "mutual", "boolq").rows("end"):
        assert row["value"] == 1.0 and row["metric"] == "acc" and row["n"] == 1


QUESTIONS = [
    "Which harbour is the ferry of Ash based in?",
    "A longer prompt about the winter sky above the islands in the far north, so?",
    "Why?",
]
CHOICES = [" Nettle Quay", " north of the islands", " no"]


def asked(editor, batch_size: int) -> tuple[list[str], list[tuple[float, bool]]]:
    """What the harness's model writes behind QUESTIONS, and how it scores CHOICES there."""
    from lm_eval.api.instance import Instance

    from lib.evaluation.general.harness import EditedModel

    model = EditedModel(editor, batch_size)
    greedy = {"until": ["\n\n\n"], "max_gen_toks": 5, "do_sample": False}
    some = {
        kind: [
            Instance(kind, {}, (question, extra), number)
            for number, (question, extra) in enumerate(zip(QUESTIONS, extras, strict=True))
        ]
        for kind, extras in (("generate_until", [greedy] * 3), ("loglikelihood", CHOICES))
    }
    return tuple(getattr(model, kind)(rows) for kind, rows in some.items())


@LM_EVAL
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_the_harness_asks_as_the_model_and_the_harness_do(name: str) -> None:
    from lm_eval.models.huggingface import HFLM

    from lib.evaluation.general.harness import EditedModel

    editor = make("ft", loading.load(name))
    texts, scores = asked(editor, 3)
    assert texts == [generate(editor.backbone, [question], 5)[0] for question in QUESTIONS]
    model = EditedModel(editor, 1)  # nothing is filled up: the harness's own passes are right
    requests = [
        ((question, choice), *model._encode_pair(question, choice))
        for question, choice in zip(QUESTIONS, CHOICES, strict=True)
    ]
    own = HFLM._loglikelihood_tokens(model, requests, disable_tqdm=True)
    assert [score for score, _ in scores] == pytest.approx([score for score, _ in own], abs=1e-4)
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in own]


def forced(backbone: Backbone, prompt: str, answer: str) -> float:
    """Log-likelihood of an answer that `generate` is made to write."""
    batch, ids = encode_prompts(backbone, [prompt]), answer_ids(backbone, answer)
    start = batch.input_ids.shape[1]
    made = backbone.model.generate(
        **batch.inputs(),
        max_new_tokens=len(ids),
        do_sample=False,
        prefix_allowed_tokens_fn=lambda _, so_far: [ids[len(so_far) - start]],
        output_logits=True,
        return_dict_in_generate=True,
    )
    steps = zip(made.logits, ids, strict=True)
    return sum(float(logits[0].log_softmax(dim=-1)[token]) for logits, token in steps)


@LM_EVAL
@pytest.mark.parametrize("kind", ["melo", "grace", "elder", "comeba_hk", "serac"])
def test_left_padded_batches_are_routed_like_single_prompts(kind: str) -> None:
    backbone = loading.load("tiny-llama")
    editor = make(kind, backbone)
    texts_before, scores_before = asked(editor, 3)
    batch = edits(6)
    assert (batch[5].prompt, f" {batch[5].target}") == (QUESTIONS[0], CHOICES[0])
    for start in (0, 2, 4):
        editor.edit(batch[start : start + 2])
    logits = prompt_logits(backbone, QUESTIONS[:1])
    texts, scores = asked(editor, 3)
    assert texts == asked(editor, 1)[0]
    pairs = zip(QUESTIONS, CHOICES, strict=True)
    expected = [forced(backbone, question, choice) for question, choice in pairs]
    assert [score for score, _ in scores] == pytest.approx(expected, abs=1e-3)
    assert texts[0] != texts_before[0]  # the edited prompt is answered by the edited model
    assert abs(scores[0][0] - scores_before[0][0]) > 2e-3
    assert (prompt_logits(backbone, QUESTIONS[:1]) == logits).all()
    assert backbone.tokenizer.padding_side == "right"


@LM_EVAL
def test_a_run_observes_its_tasks_before_and_at_the_end(published, tmp_path, monkeypatch) -> None:
    from lib.evaluation.general import harness

    plain = smoke_runs("zsre-causal")
    names = ["sst2", "mutual", "conll03", "samsum", "nq_open", "boolq"]
    protocol = plain["FT"].spec["protocol"] | {"lm_eval": names, "lm_eval_limit": 2}
    store, resources = Store(tmp_path / "out"), Resources(data_dir=published, source="embedded")
    calls, run = [], harness.run
    monkeypatch.setattr(harness, "run", lambda *a: calls.append(1) or run(*a))
    for editor in ("FT", "GRACE"):
        chosen = replace(plain[editor], spec=plain[editor].spec | {"protocol": protocol})
        assert execute(chosen, store, resources, LineProgress())
        found = store.finished(chosen).observations
        found = found[found["kind"] == "lm_eval"]
        assert list(found["moment"]) == ["before"] * 6 + ["end"] * 6
        assert list(found["task"]) == names * 2
        metrics = ["acc", "acc", "entity_recall", "rouge", "exact_match,remove_whitespace", "acc"]
        assert list(found["metric"]) == metrics * 2
        assert list(found["n"]) == [2, 1, 2, 1, 1, 1] * 2 and found["value"].between(0, 1).all()
        assert found["stderr"].isna().tolist() == [False, True, False, True, True, True] * 2
        assert set(found["harness"]) == {ability.identity(None)["lm_eval"]}
        assert list(found["task_version"]) == ["1.0", "2.0", "1.0", "1.0", "4.0", "2.0"] * 2
    assert len(calls) == 3  # the unedited backbone was scored once
