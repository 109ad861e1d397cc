"""Published general tasks: their files, how answers are scored, and lm-eval on edited models."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import edits, generate, make, prompt_logits
from test_execute import smoke_runs
from test_plan import planned

from lib import backbones, general_ability, general_scores, harness
from lib.data import general_files
from lib.data.general_files import Question
from lib.errors import RecordError, UsageError
from lib.execute import Shared, execute
from lib.general_ability import TASKS, readable
from lib.progress import LineProgress
from lib.store import Store

RTE = ["index\tsentence1\tsentence2\tlabel", "0\tIce floats.\tIce sinks.\tnot_entailment"]
BOOLQ = {"question": "does ice float", "passage": "Ice floats.", "answer": True, "title": "Ice"}
MUTUAL = {"answers": "C", "options": ["f : no", "f : so", "f : yes", "f : oh"], "article": "m : ?"}
PASSAGES = [{"title": "Onn", "text": "Onn lies in Norland."}, {"title": "x", "text": "second"}]
NQ = {"question": "where is Onn?", "answer": ["Norland", "the North"], "ctxs": PASSAGES}
TOKENS = """-DOCSTART- -X- O O

Ada NNP B-NP I-PER
Lund NNP I-NP I-PER
saw VBD O O
Onn NNP O I-LOC
and CC O O
Bram NNP O I-PER

Rain NN O O

Calder NNP O B-ORG
Bank NNP O B-ORG
"""
LM_EVAL = pytest.mark.skipif(
    not harness.installed(), reason="the optional extra lm-eval is not installed (.[general])"
)


def write(folder: Path, name: str, content: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A data folder with one or two invented records of every task."""
    folder = tmp_path / "general"
    solved = "Ada has 2*3=<<2*3=6>>6.\nSo 1,006.\n#### 1,006"
    write(folder, "gsm8k/test.jsonl", {"question": "How many?", "answer": solved})
    write(folder, "rte/dev.tsv", "\n".join([*RTE, "1\tIce\xa0floats.\tIce.\tentailment", ""]))
    write(folder, "nq/nq.jsonl", NQ)
    write(folder, "boolq/dev.jsonl", BOOLQ)
    write(folder, "mutual/dev/dev_1.txt", MUTUAL)
    write(folder, "samsum/val.json", [{"id": "1", "dialogue": "A: Hi\r\nB: Hi", "summary": "Hi."}])
    write(folder, "conll03/eng.testb", TOKENS)
    write(folder, "sst2/dev.tsv", 'sentence\tlabel\na "warm" film \t1\ndull \t0\n')
    return tmp_path


# -- files -----------------------------------------------------------------------------------


def test_every_task_reads_its_published_form(published: Path) -> None:
    found = {name: general_ability.questions(name, published) for name in general_ability.PUBLISHED}
    assert {name: [q.gold for q in some] for name, some in found.items()} == {
        "gsm8k": [("1006",)],
        "rte": [("false",), ("true",)],
        "nq": [("Norland", "the North")],
        "boolq": [("yes",)],
        "mutual": [("C",)],
        "samsum": [("Hi.",)],
        "conll03": [("Ada Lund", "Bram"), ("Onn",), ("Calder", "Bank")],
        "sst2": [("positive",), ("negative",)],
    }
    prompts = {name: some[0].prompt for name, some in found.items()}
    assert "So 1,006." in prompts["gsm8k"] and "####" not in prompts["gsm8k"]
    assert "Onn lies in Norland." in prompts["nq"] and "second" not in prompts["nq"]
    assert prompts["nq"].endswith("where is Onn?")
    assert "\nC. f : yes\n" in prompts["mutual"] and prompts["mutual"].endswith("the answer is")
    assert prompts["samsum"].endswith("\nTL;DR:") and '"warm"' in prompts["sst2"]
    assert [q.group for q in found["conll03"]] == ["PER", "LOC", "ORG"]
    assert not any(q.prompt != q.prompt.rstrip() for some in found.values() for q in some)


def test_other_published_forms_are_read_too(published: Path) -> None:
    folder = published / "general"
    super_glue = {"premise": "Ice floats.", "hypothesis": "Ice sinks.", "label": 1}
    write(folder, "rte/train.jsonl", super_glue)  # the train split comes first
    write(folder, "nq/nq.jsonl", {"question": "q", "answers": ["a"], "passages": ["only text"]})
    assert [q.gold for q in general_ability.questions("rte", published)] == [("false",)]
    assert "only text" in general_ability.questions("nq", published)[0].prompt


def test_the_limit_takes_the_first_prompts(published: Path) -> None:
    whole = general_ability.questions("conll03", published)
    assert general_ability.questions("conll03", published, 2) == whole[:2]


@pytest.mark.parametrize(
    ("task", "name", "content", "said"),
    [
        ("gsm8k", "test.jsonl", {"question": "q", "answer": "no mark"}, r"line 1: .*####"),
        ("rte", "dev.tsv", "\n".join([*RTE, "1\tonly two"]), r"line 3: .*2 cells under 4"),
        ("rte", "dev.tsv", RTE[0] + "\n0\ta\tb\tmaybe", "line 2: the label 'maybe'"),
        ("nq", "nq.jsonl", {"question": "q", "answer": ["a"]}, "no list of passages"),
        ("boolq", "dev.jsonl", BOOLQ | {"answer": "yes"}, "not true or false"),
        ("mutual", "dev/dev_1.txt", MUTUAL | {"options": ["a"]}, r"dev_1\.txt: .*four options"),
        ("conll03", "eng.testb", "Ada I-PER\nLund\n", "line 2: a token without a tag"),
        ("sst2", "dev.tsv", "sentence\tlabel\nfine\t2\n", "line 2: the label"),
    ],
)
def test_a_malformed_record_is_named(published, task, name, content, said) -> None:
    write(published / "general" / task, name, content)
    with pytest.raises(RecordError, match=said):
        general_ability.questions(task, published)


def test_bad_records_may_be_left_out(published: Path) -> None:
    write(published / "general", "rte/dev.tsv", "\n".join([*RTE, "1\tonly two"]))
    assert len(general_ability.questions("rte", published, strict=False)) == 1


@pytest.mark.parametrize("task", general_ability.PUBLISHED)
def test_a_missing_file_says_where_it_comes_from(task: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"general.*Origin: "):
        general_ability.questions(task, tmp_path)
    with pytest.raises(UsageError, match="--data-dir"):
        general_ability.questions(task, None)


def test_entities_keep_their_last_word_and_neighbours_stay_apart() -> None:
    words = ["Ada", "Lund", "Bram", "of", "Calder", "Bank"]
    old = ["I-PER", "I-PER", "B-PER", "O", "I-ORG", "I-ORG"]
    new = ["B-PER", "I-PER", "B-PER", "O", "B-ORG", "I-ORG"]
    expected = [("Ada Lund", "PER"), ("Bram", "PER"), ("Calder Bank", "ORG")]
    assert general_files.spans(words, old) == general_files.spans(words, new) == expected
    assert general_files.spans(["A", "B"], ["I-PER", "I-LOC"]) == [("A", "PER"), ("B", "LOC")]


# -- scores ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "text", "gold", "value"),
    [
        ("gsm8k", " 1,006 cups", ["1006"], 1.0),
        ("gsm8k", " 16", ["1006"], 0.0),
        ("rte", " True", ["true"], 1.0),
        ("rte", " false", ["true"], 0.0),
        ("rte", " maybe", ["false"], 0.0),
        ("boolq", " Yes", ["yes"], 1.0),
        ("boolq", " yes,", ["yes"], 0.0),
        ("mutual", " C", ["C"], 1.0),
        ("mutual", " c", ["C"], 0.0),
        ("sst2", " Positive", ["positive"], 1.0),
        ("nq", " It is in the north, I think", ["Norland", "The North"], 1.0),
        ("nq", " northern", ["North"], 0.0),
        ("nq", " anything", ["The"], 0.0),
        ("conll03", " Ada Lund and others", ["Ada Lund", "Bram"], 0.5),
        ("recall", " Norland.", ["Norland"], 1.0),
        ("recall", " Norlands", ["Norland"], 0.0),
    ],
)
def test_answers_are_scored_as_described(task, text, gold, value) -> None:
    assert TASKS[task].score(text, gold) == value


def test_rouge_of_a_hand_computed_pair() -> None:
    cut = "x" * general_scores.CUT
    # Unigrams 3 of 4 and 3; bigrams 1 of 3 and 2; longest common subsequence "the cat" 2.
    found = general_scores.rouge(f"The cat sat mat{cut}", ["the cat mat"])
    assert found == pytest.approx((2 * 3 / 7 + 2 * 1 / 5 + 2 * 3 / 7) / 3)
    turned = general_scores.rouge(f"mat the cat{cut}", ["the cat mat"])
    assert turned == pytest.approx((1.0 + 2 * 1 / 4 + 2 * 2 / 6) / 3)
    assert general_scores.rouge("short", ["the cat"]) == 0.0


def test_recall_is_averaged_over_types_not_prompts() -> None:
    items = [("PER", 1.0, 1), ("PER", 0.0, 3), ("LOC", 0.5, 2)]
    assert general_scores.mean_recall(items) == pytest.approx((1 / 4 + 1 / 2) / 2)


# -- plans -----------------------------------------------------------------------------------


def test_published_tasks_are_planned_where_their_folder_is(published: Path) -> None:
    names = ["gsm8k", "recall"]
    assert readable(names, published) == names
    assert readable(names, None) == readable(names, published / "general") == ["recall"]
    with pytest.raises(UsageError, match="no general task 'gsm8'"):
        readable(["gsm8"], published)


def test_a_plan_knows_the_files_and_the_code_of_its_tasks(published: Path, monkeypatch) -> None:
    (published / "counterfact").mkdir()
    asked = {"rounds": "consecutive", "lm_eval": ["rte", "recall"]}
    plain = planned(monkeypatch, published)[0]
    assert "general_files" not in plain.spec
    first, *swept = planned(monkeypatch, published, protocol=asked)
    assert first.spec["protocol"]["lm_eval"] == ["rte", "recall"]
    others = [run.spec["protocol"] for run in swept if run.identity != first.identity]
    assert others and not any(protocol.get("lm_eval") for protocol in others)
    assert first.spec["code"] != plain.spec["code"]
    write(published / "general", "rte/dev.tsv", "\n".join(RTE))
    again = planned(monkeypatch, published, protocol=asked)[0]
    assert again.spec["general_files"] != first.spec["general_files"]
    without = planned(monkeypatch, None, protocol=asked)[0]
    assert without.spec["protocol"]["lm_eval"] == ["recall"]


# -- the harness -----------------------------------------------------------------------------


def test_a_missing_harness_names_the_remedy(monkeypatch) -> None:
    monkeypatch.setattr(harness, "installed", lambda: False)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[general\]'"):
        harness.run(make("ft", backbones.load("tiny-gpt2")), {}, 2)


QUESTIONS = [
    Question("Which harbour is the ferry of Ash based in?", ("x",)),
    Question(
        "A longer prompt about the winter sky above the islands in the far north, so?", ("x",)
    ),
    Question("Why?", ("x",)),
]


def answers(editor, batch_size: int, new_tokens: int = 5) -> list[str]:
    """What the harness hands to the score, in the order of QUESTIONS."""
    seen = {}
    items = [Question(q.prompt, (str(i),)) for i, q in enumerate(QUESTIONS)]

    def score(text: str, gold) -> float:
        seen[int(gold[0])] = text
        return 0.0

    scoring = harness.Scoring("", "any", new_tokens, score)
    (row,) = harness.run(editor, {"any": (scoring, items)}, batch_size)
    assert row["n"] == len(QUESTIONS)
    return [seen[i] for i in range(len(QUESTIONS))]


@LM_EVAL
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_the_harness_answers_as_generate_does(name: str) -> None:
    editor = make("ft", backbones.load(name))
    expected = [generate(editor.backbone, [q.prompt], 5)[0] for q in QUESTIONS]
    assert answers(editor, 3) == answers(editor, 1) == expected


@LM_EVAL
@pytest.mark.parametrize("kind", ["melo", "grace", "elder", "comeba_hk", "serac"])
def test_left_padded_batches_are_routed_like_single_prompts(kind: str) -> None:
    backbone = backbones.load("tiny-llama")
    editor = make(kind, backbone)
    before = answers(editor, 3)
    batch = edits(6)
    assert batch[5].prompt == QUESTIONS[0].prompt
    for start in (0, 2, 4):
        editor.edit(batch[start : start + 2])
    logits = prompt_logits(backbone, [QUESTIONS[0].prompt])
    together = answers(editor, 3)
    assert together == answers(editor, 1)
    assert together[0] != before[0]  # the edited prompt is answered by the edited model
    assert (prompt_logits(backbone, [QUESTIONS[0].prompt]) == logits).all()
    assert backbone.tokenizer.padding_side == "right"


@LM_EVAL
def test_a_run_observes_its_tasks_before_and_at_the_end(published, tmp_path, monkeypatch) -> None:
    plain = smoke_runs("zsre-causal")
    protocol = plain["FT"].spec["protocol"] | {"lm_eval": ["sst2", "conll03"], "lm_eval_limit": 2}
    store, shared = Store(tmp_path / "out"), Shared(data_dir=published, source="embedded")
    calls, run = [], general_ability.run
    monkeypatch.setattr(general_ability, "run", lambda *a: calls.append(1) or run(*a))
    for editor in ("FT", "GRACE"):
        chosen = replace(plain[editor], spec=plain[editor].spec | {"protocol": protocol})
        assert execute(chosen, store, shared, LineProgress())
        found = store.finished(chosen.identity).observations
        found = found[found["kind"] == "lm_eval"]
        assert list(found["moment"]) == ["before"] * 2 + ["end"] * 2
        assert list(found["task"]) == ["sst2", "conll03"] * 2
        assert list(found["metric"]) == ["2-way accuracy", "entity recall"] * 2
        assert set(found["n"]) == {2} and found["value"].between(0, 1).all()
        assert found["stderr"].isna().tolist() == [False, True] * 2
    assert len(calls) == 3  # the unedited backbone was scored once


def test_other_backbones_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(harness, "installed", lambda: True)
    with pytest.raises(UsageError, match="seq2seq"):
        harness.run(make("ft", backbones.load("tiny-t5")), {}, 2)
