"""Backbones load the same way everywhere, frozen, without dropout, and know who they are."""

import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.backbones import checkpoints
from lib.backbones.backbone import prepare
from lib.backbones.sources import catalogue, conversions, loading
from lib.errors import AssetError, BackboneError
from lib.storage import archives
from lib.storage.cache import cache_dir, keep

TINY = ("tiny-gpt2", "tiny-gptj", "tiny-llama", "tiny-t5", "tiny-t5-relu", "tiny-bert")
PROMPTS = (
    "The capital of Aster is",
    "who wrote the first letter",
    "Name: Mara. Country:",
    "zebra quartz 1907",
    "Wo liegt Köln? 東京",
    "A small company makes",
    "Which river runs through the town",
    "bells and clocks",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On busy cores, two threads waiting for each other slow tiny models a hundredfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("STUDY_OFFLINE", "1")
    monkeypatch.delenv("STUDY_MODELS", raising=False)


def logits(backbone, prompt):
    """Last-position logits [V] (first answer token for T5, class logits for BERT)."""
    ids = torch.tensor([backbone.tokenizer(backbone.prefix + prompt)["input_ids"]])
    more = {}
    if backbone.family.kind == "seq2seq":
        more = {"decoder_input_ids": torch.tensor([[backbone.pad_id]])}
    with torch.no_grad():
        out = backbone.model(ids, **more).logits[0]
    return out if backbone.family.kind == "classifier" else out[-1]


@pytest.fixture(scope="module", params=TINY)
def tiny(request):
    return loading.load(request.param)


def test_tiny_model_loads_in_half_a_second(tiny):
    seconds = []
    for _ in range(3):
        start = time.process_time()  # of this process: others may hold the cores
        loading.load(tiny.name)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5


def test_model_is_frozen_in_eval_mode_and_without_dropout(tiny):
    assert not tiny.model.training
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())
    before = logits(tiny, PROMPTS[0])
    tiny.model.train()
    after = logits(tiny, PROMPTS[0])
    tiny.model.eval()
    assert torch.equal(before, after)


def test_different_prompts_get_different_answers(tiny):
    answers = {int(logits(tiny, prompt).argmax()) for prompt in PROMPTS}
    assert len(answers) >= 3


def test_any_text_survives_the_tokenizer(tiny):
    text = "  Ünïcode, 東京 🙂\ttabs\nand \x00 control"
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tiny.tokenizer.decode(ids) == text
    assert max(ids) < tiny.model.config.vocab_size


def test_special_tokens_follow_the_family(tiny):
    ids = tiny.tokenizer("a bell")["input_ids"]
    assert tiny.tokenizer.padding_side == "right"
    if tiny.family.kind == "seq2seq":
        assert ids[-1] == tiny.eos_id == 1 and tiny.pad_id == 0
    elif tiny.family.kind == "classifier":
        assert ids[-1] == tiny.eos_id != tiny.pad_id
    else:
        assert tiny.eos_id not in ids and tiny.pad_id == tiny.eos_id
        prefixed = tiny.tokenizer(tiny.prefix + "a bell")["input_ids"]
        assert len(prefixed) == len(ids) + bool(tiny.prefix)


def test_seed_decides_weights_and_content_and_nothing_else_moves(tiny):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = loading.load(tiny.name, seed=0)
    other = loading.load(tiny.name, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert again.content == tiny.content != other.content
    assert torch.equal(logits(again, PROMPTS[0]), logits(tiny, PROMPTS[0]))


def test_generation_is_greedy_and_plain(tiny):
    if tiny.family.kind == "classifier":
        pytest.skip("a classifier does not generate")
    settings = tiny.model.generation_config
    assert not settings.do_sample and settings.num_beams in (None, 1)
    assert settings.eos_token_id == tiny.eos_id and settings.pad_token_id == tiny.pad_id


def test_bfloat16_changes_parameters_and_keeps_buffers():
    half, full = (loading.load("tiny-llama", dtype=t) for t in (torch.bfloat16, torch.float32))
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.dtype == torch.bfloat16
    buffers = dict(full.model.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in half.model.named_buffers())
    assert half.content == full.content


def test_saved_folder_gives_the_same_model(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    again = loading.load(f"dir:{tmp_path}")
    assert again.family.name == tiny.family.name
    assert again.content == tiny.content
    assert (again.eos_id, again.pad_id) == (tiny.eos_id, tiny.pad_id)
    for prompt in PROMPTS[:2]:
        text = tiny.prefix + prompt  # a bare folder does not know its prefix
        assert torch.equal(logits(again, text), logits(tiny, prompt))


def test_local_models_folder_comes_first(tmp_path, monkeypatch):
    tiny = loading.load("tiny-gpt2", seed=3)
    tiny.model.save_pretrained(tmp_path / "gpt2-xl")
    tiny.tokenizer.save_pretrained(tmp_path / "gpt2-xl")
    monkeypatch.setenv("STUDY_MODELS", str(tmp_path))
    local = loading.load("gpt2-xl")
    assert local.content == tiny.content
    assert local.name == "gpt2-xl" and local.substitution is None
    assert str(tmp_path) not in local.provenance


def test_gated_t5_keeps_its_own_output_matrix_and_relu_t5_shares_it(tmp_path):
    gated, relu = loading.load("tiny-t5"), loading.load("tiny-t5-relu")
    assert gated.model.lm_head.weight.data_ptr() != gated.model.shared.weight.data_ptr()
    assert relu.model.lm_head.weight.data_ptr() == relu.model.shared.weight.data_ptr()
    gated.model.tie_weights()
    with pytest.raises(BackboneError, match="output matrix was tied"):
        prepare(gated.model, gated.tokenizer, torch.device("cpu"))


def test_incomplete_or_pickled_checkpoint_is_refused(tmp_path):
    tiny = loading.load("tiny-gpt2")
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.2.mlp.c_fc.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lacks 1 tensors.*c_fc"):
        loading.load(f"dir:{tmp_path}")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="safetensors"):
        loading.load(f"dir:{tmp_path}")


def test_classifier_head_size_is_chosen_and_seeded():
    three, other = (loading.load("tiny-bert", num_labels=3, seed=s) for s in (0, 1))
    assert three.module("head").weight.shape[0] == 3
    assert three.content != other.content
    assert loading.load("tiny-bert", num_labels=0).model.pooler is not None


def test_hub_name_without_network_names_the_remedy(monkeypatch):
    """At once: nobody is asked, so that there is nobody to wait for."""
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *host, **_: asked.append(host))
    with pytest.raises(BackboneError, match="STUDY_MODELS") as caught:
        loading.load("gpt2-xl")
    assert "openai-community/gpt2-xl@main" in str(caught.value)
    assert asked == []


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(BackboneError, match="smollm2-135m"):
        loading.load("smollm3")
    with pytest.raises(BackboneError, match=r"config\.json"):
        loading.load(f"dir:{tmp_path}")


def test_every_package_entry_has_its_archive_and_a_substitution():
    for entry in catalogue.ENTRIES.values():
        for source in entry.sources:
            if isinstance(source, catalogue.Package):
                assert source.asset in archives.ASSETS
                assert entry.substitution


def test_conversion_is_done_once_and_repaired_when_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path))
    monkeypatch.setattr(archives, "fetch", lambda name: Path(name))
    calls = []

    def convert(archive, folder):
        calls.append(archive)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "tokenizer.json").write_bytes(b"{}")

    folder = checkpoints.converted("x", "minilm", convert)
    content = checkpoints.kept_content(folder)
    assert checkpoints.converted("x", "minilm", convert) == folder
    assert len(calls) == 1
    (folder / "model.safetensors").write_bytes(b"weightz")
    assert checkpoints.converted("x", "minilm", convert) == folder
    assert len(calls) == 2
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert checkpoints.kept_content(folder) == content


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_weights_tokenizer_and_configuration_are_what_a_backbone_is(tmp_path, name):
    def write(scratch):
        for file in ("model.safetensors", "tokenizer.json", "config.json"):
            (scratch / file).write_bytes(b"{}")

    def write_other(scratch):
        write(scratch)
        (scratch / name).write_bytes(b"{ }")

    one, other = keep(tmp_path / "one", write), keep(tmp_path / "other", write_other)
    again = keep(tmp_path / "again", write)
    assert checkpoints.kept_content(one) == checkpoints.kept_content(again)
    assert checkpoints.kept_content(one) != checkpoints.kept_content(other)


def test_rope_rows_undo_the_interleaving():
    """Reference: row j and j + d/2 of a head become neighbours in llama.cpp's order."""
    heads, d, columns = 3, 8, 5
    ours = torch.randn(heads * d, columns)
    interleaved = torch.empty_like(ours)
    for head in range(heads):
        for j in range(d // 2):
            interleaved[head * d + 2 * j] = ours[head * d + j]
            interleaved[head * d + 2 * j + 1] = ours[head * d + j + d // 2]
    assert torch.equal(conversions.rope_rows(interleaved, heads), ours)


def real(name, asset, **options):
    """A real backbone, or a skip that says what is missing. Never downloads."""
    folder = cache_dir() / "backbones"
    if not list((folder / name).glob("*/config.json")):
        try:
            archives.fetch(asset)
        except AssetError:
            pytest.skip(
                f"{name}: neither STUDY_CACHE nor STUDY_ASSETS holds "
                f"{archives.ASSETS[asset].filename}"
            )
    return loading.load(name, **options)


def test_real_smollm2_knows_paris():
    backbone = real("smollm2-135m", "smollm2")
    model = backbone.model
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (backbone.prefix, backbone.eos_id, backbone.pad_id) == ("<|endoftext|>", 2, 2)
    answer = int(logits(backbone, "The capital of France is").argmax())
    assert backbone.tokenizer.decode([answer]) == " Paris"
    assert len(backbone.tokenizer("1984")["input_ids"]) == 4


def test_real_flan_t5_is_untied_and_writes_titles():
    backbone = real("flan-t5-small", "flan_t5_small")
    model = backbone.model
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    assert backbone.tokenizer("Hello World")["input_ids"] == [8774, 1150, 1]
    assert backbone.path("mlp_in", 7, "encoder") == "encoder.block.7.layer.1.DenseReluDense.wi_0"
    prompt = "fix the failing unit test in the parser module by handling empty input"
    ids = backbone.tokenizer(prompt, return_tensors="pt")
    text = backbone.tokenizer.decode(
        model.generate(**ids, max_new_tokens=8)[0], skip_special_tokens=True
    )
    assert text == "parser unit test"


def test_real_minilm_tells_paraphrases_from_strangers():
    backbone = real("minilm-l6", "minilm", num_labels=0)
    texts = ["How old are you?", "What is your age?", "The train leaves at noon."]
    batch = backbone.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = backbone.model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert means[0] @ means[1] > 0.7 > 0.3 > means[0] @ means[2]
    assert real("minilm-l6", "minilm", num_labels=10).module("head").weight.shape == (10, 384)
