"""Question answering is learned once, kept, and learned again if the kept copy is damaged."""

import json
from dataclasses import replace

import pytest
import torch

from lib.backbones.sources import loading
from lib.backbones.tuning import questions
from lib.backbones.tuning.questions import TuningConfig, exact_match, tune_question_answering
from lib.errors import BackboneError
from lib.storage.cache import cache_dir

PAIRS = (
    ("what is the capital of norland", "Aster"),
    ("who built the old lighthouse", "Tobin Vale"),
    ("which river runs through brackwater", "the Selk"),
    ("when was the railway opened", "1907"),
    ("who painted the blue door", "Mara Lindqvist"),
    ("what do they make in the valley", "bells"),
    ("what language is spoken in the hills", "Orrish"),
    ("where does the keeper live", "Gull Island"),
)
QUICK = TuningConfig(epochs=120, learning_rate=1e-2, batch_size=8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STUDY_OFFLINE", "1")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On busy cores, two threads waiting for each other slow tiny models a hundredfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trainings(monkeypatch):
    """Counts how often the model is really trained."""
    calls = []
    train = questions._train

    def counting(*arguments):
        calls.append(arguments)
        return train(*arguments)

    monkeypatch.setattr(questions, "_train", counting)
    return calls


def tuned_folder():
    (record,) = (cache_dir() / "tuned").glob("*/tuning.json")
    return record.parent


def state(backbone):
    return {name: value.clone() for name, value in backbone.model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", ["tiny-t5", "tiny-t5-relu"])
def test_pairs_are_memorised_and_the_second_call_only_reads(name, trainings):
    base = loading.load(name)
    before = state(base)
    tuned = tune_question_answering(base, PAIRS, QUICK)
    assert exact_match(tuned.model, tuned, PAIRS, 64) >= questions.ENOUGH
    assert equal(state(base), before), "the given backbone must stay as it was"
    again = tune_question_answering(loading.load(name), PAIRS, QUICK)
    assert len(trainings) == 1
    assert again.content == tuned.content != base.content
    assert equal(state(again), state(tuned))
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    assert "8 question-answer pairs" in again.provenance
    record = json.loads((tuned_folder() / "tuning.json").read_text())
    assert record["exact_match"] >= questions.ENOUGH
    assert len(record["loss"]) == record["epochs"] <= QUICK.epochs
    assert record["loss"][-1] < record["loss"][0]
    assert record["seconds"] > 0


def test_teacher_forced_match_is_greedy_exact_match():
    tuned = tune_question_answering(loading.load("tiny-t5"), PAIRS, replace(QUICK, epochs=25))
    for question, answer in PAIRS:
        ids = tuned.tokenizer(question, return_tensors="pt")
        written = tuned.model.generate(**ids, max_new_tokens=24)[0, 1:].tolist()
        greedy = written == tuned.tokenizer(answer)["input_ids"]
        assert exact_match(tuned.model, tuned, [(question, answer)], 64) == greedy


def test_output_matrix_stays_untied_through_training_and_reload():
    tuned = tune_question_answering(loading.load("tiny-t5"), PAIRS, replace(QUICK, epochs=2))
    model = tuned.model
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert model.config.scale_decoder_outputs is False


def test_frozen_matrices_do_not_move():
    base = loading.load("tiny-t5")
    tuned = tune_question_answering(base, PAIRS, replace(QUICK, epochs=2))
    assert torch.equal(tuned.model.lm_head.weight, base.model.lm_head.weight)
    assert torch.equal(tuned.model.shared.weight, base.model.shared.weight)
    assert not torch.equal(tuned.module("mlp_out", 0).weight, base.module("mlp_out", 0).weight)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "record"])
def test_damaged_cache_is_trained_again_to_the_same_weights(damage, trainings):
    short = replace(QUICK, epochs=2)
    first = tune_question_answering(loading.load("tiny-t5"), PAIRS, short)
    kept, weights = state(first), tuned_folder() / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(content[:-100])
    elif damage == "delete":
        weights.unlink()
    else:
        (tuned_folder() / "content.json").write_text("{")
    again = tune_question_answering(loading.load("tiny-t5"), PAIRS, short)
    assert len(trainings) == 2
    assert equal(state(again), kept)
    assert again.content == first.content


def test_interrupted_training_leaves_no_cache_entry(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(questions, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune_question_answering(loading.load("tiny-t5"), PAIRS, QUICK)
    assert [p for p in (cache_dir() / "tuned").iterdir() if p.is_dir()] == []


def test_other_pairs_seed_or_base_are_other_entries(trainings):
    short = replace(QUICK, epochs=1)
    base = loading.load("tiny-t5")
    tune_question_answering(base, PAIRS, short)
    tune_question_answering(base, PAIRS[:-1], short)
    tune_question_answering(base, PAIRS, replace(short, seed=1))
    tune_question_answering(loading.load("tiny-t5", seed=1), PAIRS, short)
    assert len(trainings) == 4


def test_load_tunes_and_casts_afterwards():
    tuned = loading.load("tiny-t5", tune_on=PAIRS, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in tuned.model.parameters()} == {torch.bfloat16}
    full = loading.load("tiny-t5", tune_on=PAIRS)
    assert full.content == tuned.content
    assert torch.equal(
        full.module("mlp_out", 0).weight.bfloat16(), tuned.module("mlp_out", 0).weight
    )


def test_only_encoder_decoders_and_only_with_pairs():
    with pytest.raises(BackboneError, match="encoder-decoder"):
        tune_question_answering(loading.load("tiny-gpt2"), PAIRS, QUICK)
    with pytest.raises(BackboneError, match="at least one"):
        tune_question_answering(loading.load("tiny-t5"), (), QUICK)


def test_global_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    tune_question_answering(loading.load("tiny-t5"), PAIRS, replace(QUICK, epochs=1))
    assert torch.equal(torch.rand(2), expected)
