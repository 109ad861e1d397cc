"""MarianMT is read, taught, edited and scored like any other encoder-decoder."""

import json
from pathlib import Path

import pytest
import torch
from conftest import edits, generate, make, prompt_logits
from safetensors.torch import load_file

from lib import assets, backbones, checkpoints, marian
from lib.backbones import Backbone
from lib.decoding import Continuation, prepare
from lib.editors.prefix import FrozenPrefix
from lib.encoding import encode_prompts, target_ids
from lib.tuning import TuningConfig, exact_match, tune_question_answering
from lib.two_sided_tokenizer import TwoSidedTokenizer, unigram_side

PROMPTS = [edit.prompt for edit in edits()] + ["who wrote the first letter?", "Name: Ash."]
TARGETS = [edit.target for edit in edits()]
KINDS = ("melo", "grace", "lora", "ft", "defer")


@pytest.fixture
def tiny() -> Backbone:
    return backbones.load("tiny-marian")


def test_sides_split_differently_and_number_alike(tiny: Backbone, tmp_path: Path) -> None:
    text = "The river and the harbour, Ünïcode 東京"
    source, target = (
        tiny.tokenizer(**{side: text})["input_ids"] for side in ("text", "text_target")
    )
    assert len(source) < len(target) == len(text.encode()) + 1
    assert source[-1] == target[-1] == tiny.eos_id == 0
    assert tiny.tokenizer(text)["input_ids"] == source  # back to the source side
    for ids in (source, target):
        assert tiny.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert target_ids(tiny, text) == target
    assert target_ids(tiny, text, max_length=5) == [*target[:4], 0]
    tiny.tokenizer.save_pretrained(tmp_path)
    again = TwoSidedTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == source and again(text_target=text)["input_ids"] == target
    assert len(again) == len(tiny.tokenizer) == tiny.model.config.vocab_size


def test_unigram_prefers_its_own_pieces_and_keeps_those_of_the_other_side() -> None:
    pieces = ("</s>", "<unk>", "▁sea", "▁s", "ea", "▁mer", "▁", "é", "s", "e", "a", "m", "r", "té")
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    own = {"▁s": -1.0, "ea": -1.0, "▁": -2.0, **dict.fromkeys("seamr", -5.0)}
    side = unigram_side(vocabulary, own, charsmap(), end="</s>")
    assert side.encode("  sea   s ").tokens == ["▁s", "ea", "▁s", "</s>"]
    assert side.encode("mer").tokens == ["▁", "m", "e", "r", "</s>"]
    assert side.encode("sé").tokens == ["▁s", "é", "</s>"]  # covered by nothing of its own
    assert side.encode("日本").ids == [6, 1, 0]
    assert side.decode([5, 2, 7]) == "mer seaé"


def charsmap() -> bytes:
    """SentencePiece's table of replaced letters, with no letter in it: the size of a trie in bytes,
    and a trie of 256 empty units."""
    return (1024).to_bytes(4, "little") + bytes(1024)


def test_folder_gives_the_same_model_with_all_its_parts(tiny: Backbone, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    again = backbones.load(f"dir:{tmp_path}")
    assert torch.equal(again.model.final_logits_bias, tiny.model.final_logits_bias)
    assert torch.equal(prompt_logits(again, PROMPTS), prompt_logits(tiny, PROMPTS))
    stacks = (again.model.model.encoder, again.model.model.decoder)
    shared = {
        again.model.lm_head.weight.data_ptr(),
        *(s.embed_tokens.weight.data_ptr() for s in stacks),
    }
    assert shared == {again.model.model.shared.weight.data_ptr()}
    assert stacks[0].embed_positions.weight.abs().amax() <= 1
    assert not torch.equal(*stacks[0].embed_positions.weight[:2])


def test_published_tensors_are_stored_once_and_padding_is_never_written(tiny: Backbone) -> None:
    state = tiny.model.state_dict()
    kept = marian.weights(state, tiny.model.config)
    assert {name for name in state if name not in kept} == {
        "lm_head.weight",
        *(
            f"model.{s}.embed_{p}.weight"
            for s in ("encoder", "decoder")
            for p in ("tokens", "positions")
        ),
    }
    assert tiny.model.config.forced_eos_token_id is None
    assert kept["final_logits_bias"].equal(tiny.model.final_logits_bias)
    plain = marian.without_padding(torch.zeros(1, 326), tiny.pad_id)
    assert plain.nonzero().tolist() == [[0, tiny.pad_id]]
    assert prompt_logits(tiny, PROMPTS)[:, tiny.pad_id].amax() < -9000
    assert prompt_logits(tiny, PROMPTS).isfinite().all()


def test_train_and_eval_compute_the_same(tiny: Backbone, tmp_path: Path) -> None:
    before = prompt_logits(tiny, PROMPTS)
    for rate in ("dropout", "activation_dropout", "attention_dropout", "encoder_layerdrop"):
        setattr(tiny.model.config, rate, 0.5)
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    again = backbones.load(f"dir:{tmp_path}")
    again.model.train()
    assert torch.equal(prompt_logits(again, PROMPTS), before)


@pytest.mark.parametrize("first", [0, 2])
def test_prefix_decoding_and_scores_equal_full_passes(tiny: Backbone, first: int) -> None:
    prefix = FrozenPrefix(tiny, first)
    onward = Continuation(tiny, prefix, prepare(tiny, prefix, PROMPTS[:6], TARGETS))
    texts = tiny.tokenizer.batch_decode(onward.greedy(6), skip_special_tokens=True)
    assert texts == generate(tiny, PROMPTS[:6], tokens=6)
    batch = encode_prompts(tiny, PROMPTS)
    with torch.no_grad():
        whole = tiny.model.get_encoder()(**batch.inputs()).last_hidden_state
        with prefix.replay(prefix.record(batch)):
            assert torch.equal(tiny.model.get_encoder()(**batch.inputs()).last_hidden_state, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_editors_keep_their_contract(kind: str, tiny: Backbone, tmp_path: Path) -> None:
    before = prompt_logits(tiny, PROMPTS)
    editor = make(kind, tiny)
    assert torch.equal(prompt_logits(tiny, PROMPTS), before)
    report = editor.edit(edits(3))
    assert report.loss_last < report.loss_first
    after = prompt_logits(tiny, PROMPTS)
    assert (after - before)[:3].abs().amax(dim=1).min() > 1e-3
    apart = torch.cat([prompt_logits(tiny, [prompt]) for prompt in PROMPTS])
    # float32 rounding differs with the shape of the batch; an effect of padding is 100x larger
    assert torch.allclose(apart, after, atol=2e-4, rtol=1e-4)
    editor.save(tmp_path / "saved")
    editor.close()
    assert torch.equal(prompt_logits(tiny, PROMPTS), before)
    again = make(kind, tiny)
    again.load(tmp_path / "saved")
    assert torch.equal(prompt_logits(tiny, PROMPTS), after)


def test_questions_are_learned_and_kept(tiny: Backbone, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path))
    pairs = [
        ("who built the old lighthouse", "Tobin"),
        ("what do they make in the valley", "bells"),
    ]
    config = TuningConfig(epochs=120, learning_rate=3e-3, freeze_embeddings=True)
    tuned = tune_question_answering(tiny, pairs, config)
    assert exact_match(tuned.model, tuned, pairs, 64) == 1.0
    assert generate(tuned, [question for question, _ in pairs], tokens=8) == ["Tobin", "bells"]
    assert torch.equal(tuned.module("embedding").weight, tiny.module("embedding").weight)
    assert not torch.equal(tuned.module("mlp_out", 0).weight, tiny.module("mlp_out", 0).weight)
    (record,) = tmp_path.glob("tuned/*/content.json")
    # The tables of positions are in no file: what they learned would be lost.
    stacks = (tiny.model.get_encoder(), tiny.model.get_decoder())
    fixed = [tiny.module("embedding").weight, *(stack.embed_positions.weight for stack in stacks)]
    everything = sum(parameter.numel() for parameter in tiny.model.parameters())
    trained = json.loads((record.parent / "tuning.json").read_text())["trained_parameters"]
    assert trained == everything - sum(weight.numel() for weight in fixed)
    target = record.parent / "target_tokenizer.json"
    assert json.loads(record.read_text())["target_tokenizer"] == assets.file_sha256(target)


def test_damaged_target_side_is_noticed(tiny: Backbone, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    checkpoints.seal(tmp_path)
    assert checkpoints.verified(tmp_path)
    (tmp_path / "target_tokenizer.json").write_text(tiny.tokenizer.backend_tokenizer.to_str())
    assert checkpoints.verified(tmp_path) is None


def test_real_opus_mt_translates() -> None:
    """Skipped unless the converted model or its archives are there; never downloads."""
    folder = assets.cache_dir() / "backbones"
    if not list(folder.glob("opus-mt-en-fr-*")) and None in map(assets.available, marian.ASSETS):
        pytest.skip("neither STUDY_CACHE nor STUDY_ASSETS holds opus-mt-en-fr")
    backbone = backbones.load("opus-mt-en-fr")
    assert sum(parameter.numel() for parameter in backbone.model.parameters()) == 75_133_952
    assert (backbone.eos_id, backbone.pad_id) == (0, 59513)
    assert generate(backbone, ["The house is small."], tokens=12) == ["La maison est petite."]
    file = next(folder.glob("opus-mt-en-fr-*/model.safetensors"))
    assert load_file(file)["final_logits_bias"].shape == (1, 59514)
