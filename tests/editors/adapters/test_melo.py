"""MELO: blocks and their training. Checks are numbered as in the study's notes, section 11."""

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode, encode_prompts
from lib.backbones.passes.logits import batch_loss
from lib.backbones.sources import loading
from lib.data import streams
from lib.data.records import Dataset
from lib.errors import EditorError
from lib.runs.settings import profile_of
from lib.storage.cache import Cache
from tests.conftest import configuration, edits, generate, make, prompt_logits, stream

PROMPTS = [edit.prompt for edit in edits(4)]


@pytest.fixture
def t5() -> Backbone:
    return loading.load("tiny-t5")


def test_02_rows_without_a_block_are_bit_identical_in_a_mixed_batch(generator: Backbone) -> None:
    before = prompt_logits(generator, PROMPTS[:3])
    editor = make("melo", generator)
    for batch in stream().batches():
        editor.edit(batch)
    encoded = encode_prompts(generator, PROMPTS[:3], side="right")
    with editor.routed(encoded, ["block 0", "base", "block 2"]):
        mixed = prompt_logits(generator, PROMPTS[:3])
    assert torch.equal(mixed[1], before[1])
    assert not torch.equal(mixed[0], before[0])
    assert not torch.equal(mixed[2], before[2])


def test_03_the_first_loss_is_the_unedited_loss(generator: Backbone) -> None:
    encoded = encode(generator, PROMPTS, [edit.target for edit in edits(4)])
    with torch.no_grad():
        labels = encoded.labels
        theirs = generator.model(**encoded.inputs(), labels=labels).loss.item()
        ours = batch_loss(generator, encoded).item()
    report = make("melo", generator).edit(edits(4))
    # Position ids only differ from Hugging Face's defaults at padding, which carries no label.
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert report.loss_first == pytest.approx(theirs, rel=1e-6)


def test_04_other_blocks_stay_bit_identical(generator: Backbone) -> None:
    editor = make("melo", generator)
    editor.edit(edits(2))
    before = {block: editor.lora.read(block) for block in range(4)}
    editor.edit(edits(4)[2:])
    for block in (0, 2, 3):
        after = editor.lora.read(block)
        assert all(torch.equal(after[name], before[block][name]) for name in after)
    assert all(v.eq(0).all() for k, v in editor.lora.read(2).items() if k.endswith(".B"))
    assert any(v.ne(0).any() for k, v in editor.lora.read(1).items() if k.endswith(".B"))


def test_one_block_alone_has_the_gradients_that_it_has_under_a_gate(generator: Backbone) -> None:
    editor, block = make("melo", generator), 2
    lora, encoded = editor.lora, editor.encoded(edits(4))
    lora.write(block, {name: torch.randn_like(w) / 8 for name, w in lora.read(block).items()})
    start = lora.read(block)
    with editor._router.off():
        whole = lora.train_parameters()
        with lora.gated(lora.one_block_gate([block] * len(encoded), editor.scale)):
            plain = batch_loss(generator, encoded)
            plain.backward()
        part = slice(block * lora.rank_per_block, (block + 1) * lora.rank_per_block)
        theirs = [p.grad[part] if n % 2 == 0 else p.grad[:, part] for n, p in enumerate(whole)]
        lora.freeze()
        with lora.one_block(block) as own:
            gate = torch.full((1, lora.rank_per_block), editor.scale)
            with lora.gated(gate):
                alone = batch_loss(generator, encoded)
                alone.backward()
            for mine, grad in zip(own, theirs, strict=True):
                assert torch.allclose(mine.grad, grad, rtol=1e-4, atol=1e-5 * float(grad.norm()))
                mine.data += 1
    assert alone.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, weight in lora.read(block).items():
        assert torch.equal(weight, start[name] + 1)
    with pytest.raises(RuntimeError, match="stop"), lora.one_block(block) as own:
        own[0].data += 1
        raise RuntimeError("stop")
    assert all(torch.equal(w, start[name] + 1) for name, w in lora.read(block).items())
    assert not any(parameter.requires_grad for parameter in lora.parameters())


def test_05_initialisation_reads_its_fan_in_from_the_rank(t5: Backbone) -> None:
    editor = make("melo", t5, n_blocks=20, rank_per_block=2)
    rank = 40
    drawn = torch.cat(
        [v.flatten() for k, v in editor.lora.read(slice(0, 20)).items() if "A" in k[-1]]
    )
    assert drawn.abs().max() <= 1 / math.sqrt(rank)
    assert drawn.abs().max() > 0.95 / math.sqrt(rank)
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(3 * rank), rel=0.05)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-t5"])
def test_06_the_update_is_the_capacity_times_b_a(name: str) -> None:
    backbone = loading.load(name)
    outputs = {}
    for capacity in (4, 8):
        editor = make("melo", backbone, n_blocks=capacity)
        generator = torch.Generator().manual_seed(1)
        block = {
            k: torch.randn(v.shape, generator=generator) for k, v in editor.lora.read(1).items()
        }
        editor.lora.write(1, block)
        site, layer = next(iter(editor.lora.layers.items()))
        x = torch.randn(1, 5, block[f"{site}.A"].shape[1], generator=generator)
        with editor.lora.gated(editor.lora.one_block_gate([1], editor.scale)), torch.no_grad():
            change = layer(x) - layer.base_layer(x)
        a, b = block[f"{site}.A"].double(), block[f"{site}.B"].double()
        expected = capacity * x.double() @ a.T @ b.T
        # relative to the largest entry: small ones are float32 differences of large ones
        assert (change.double() - expected).abs().max() <= 1e-5 * expected.abs().max()
        outputs[capacity] = change
        editor.close()
    gap = (outputs[8] - 2 * outputs[4]).abs().max()
    assert gap <= 1e-5 * outputs[8].abs().max()


def test_11_the_released_t5_small_has_four_sites_and_t5_large_eight() -> None:
    settings = profile_of("melo", "paper")[0]["settings"]
    small = settings["zsre-t5"]["editors"]["MELO"]["config"]["sites"]
    large = settings["zsre-t5-large"]["editors"]["MELO"]["config"]["sites"]
    assert (len(small), len(large)) == (4, 8)
    assert {site["part"] for site in small} == {"mlp_out"}


def test_11_the_paper_settings_install_on_models_of_that_depth(t5: Backbone) -> None:
    """A T5 v1.1 with the paper's 8 + 8 blocks and small widths: four `wo`, although the official
    configuration also names `wi`, which this architecture does not have."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(t5.tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=8,
        num_decoder_layers=8, num_heads=2, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    deep = replace(t5, model=T5ForConditionalGeneration(config).eval().requires_grad_(False))
    chosen = profile_of("melo", "paper")[0]["settings"]["zsre-t5"]["editors"]["MELO"]
    from lib.editors import build

    editor = build("melo", deep, chosen["config"])
    installed = [name for name, _ in deep.model.named_modules() if name.endswith("lora_A")]
    assert len(installed) == len(editor.lora.layers) == 4
    assert all(".wo." in name for name in installed)
    assert not any(name.endswith(".wi") for name, _ in deep.model.named_modules())
    assert editor.router_path == "encoder.block.4.layer.1.DenseReluDense.wo"


def test_11_a_site_that_names_nothing_is_an_error(t5: Backbone) -> None:
    with pytest.raises(Exception, match="block"):
        make("melo", t5, sites=[{"part": "mlp_out", "block": 9, "stack": "encoder"}])


def test_12_the_learning_rate_halves_on_schedule(t5: Backbone, monkeypatch) -> None:
    seen = []
    step = torch.optim.Adam.step

    def spy(self, *arguments, **keywords):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    make("melo", t5, lr=0.02, steps=12, halve_every=5).edit(edits(2))
    assert seen == [0.02] * 5 + [0.01] * 5 + [0.005] * 2


def test_13_a_full_database_refuses_before_it_changes_anything(t5: Backbone) -> None:
    editor = make("melo", t5, n_blocks=2)
    editor.edit(edits(2))
    editor.edit(edits(4)[2:])
    before, points = editor.lora.read(slice(0, 2)), len(editor.index.keys)
    with pytest.raises(EditorError, match="2 blocks"):
        editor.edit(edits(6)[4:])
    assert len(editor.index.keys) == points
    after = editor.lora.read(slice(0, 2))
    assert all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("name", ["tiny-t5", "tiny-llama"])
def test_18_equals_one_peft_adapter_per_block(name: str) -> None:
    backbone = loading.load(name)
    editor = make("melo", backbone, n_blocks=3, rank_per_block=2)
    for batch in stream().batches():
        editor.edit(batch)
    blocks = [editor.lora.read(block) for block in range(3)]
    routes = ["block 0", "base", "block 2", "block 1"]
    encoded = encode_prompts(backbone, PROMPTS, side="right")
    with editor.routed(encoded, routes):
        ours = prompt_logits(backbone, PROMPTS)
        texts = generate(backbone, PROMPTS)
    paths = list(editor.lora.layers)
    editor.close()
    # r = p and alpha = R give PEFT's scaling R / p = N_b.
    config = LoraConfig(r=2, lora_alpha=6, target_modules=paths, lora_dropout=0.0)
    peft = PeftModel(backbone.model, config, adapter_name="block 0")
    for block in (1, 2):
        peft.add_adapter(f"block {block}", config)
    for block, tensors in enumerate(blocks):
        for path in paths:
            layer = backbone.model.get_submodule(path)
            layer.lora_A[f"block {block}"].weight.data = tensors[f"{path}.A"]
            layer.lora_B[f"block {block}"].weight.data = tensors[f"{path}.B"]
    peft.eval()
    names = [route.replace("base", "__base__") for route in routes]
    with torch.no_grad():
        if backbone.family.kind == "seq2seq":
            start = torch.zeros(4, 1, dtype=torch.long)
            out = peft(**encoded.inputs(), decoder_input_ids=start, adapter_names=names)
            theirs = out.logits[:, 0]
            ids = peft.generate(
                **encoded.inputs(), adapter_names=names, max_new_tokens=6, do_sample=False
            )
            assert backbone.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True) == texts
        else:
            theirs = peft(**encoded.inputs(), adapter_names=names).logits
            theirs = theirs[torch.arange(4), encoded.last_token]
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_19_the_frozen_prefix_gives_the_same_losses(generator: Backbone, monkeypatch) -> None:
    import contextlib

    from lib.backbones.passes.prefix import FrozenPrefix

    with_prefix = make("melo", generator, seed=3)
    fast = with_prefix.edit(edits(3))
    fast_block = with_prefix.lora.read(0)
    with_prefix.close()
    monkeypatch.setattr(FrozenPrefix, "replay", lambda self, state: contextlib.nullcontext())
    slow_editor = make("melo", generator, seed=3)
    slow = slow_editor.edit(edits(3))
    assert fast.loss_first == pytest.approx(slow.loss_first, abs=1e-6)
    assert fast.loss_last == pytest.approx(slow.loss_last, abs=1e-6)
    for name, tensor in slow_editor.lora.read(0).items():
        assert torch.allclose(fast_block[name], tensor, atol=1e-6)


@pytest.mark.parametrize("name", ["tiny-t5", "tiny-llama", "tiny-bert"])
def test_keys_and_the_frozen_prefix_come_from_one_pass(name: str) -> None:
    backbone = loading.load(name)
    editor = make("melo", backbone, key_position="last_prompt_token", steps=2)
    first = backbone.module("attention", 0, stack="encoder")
    passes: list[int] = []
    first.register_forward_hook(lambda *_: passes.append(1))
    batch = edits(3) if name != "tiny-bert" else [replace(e, target="1") for e in edits(3)]
    editor.edit(batch)
    assert len(passes) == 1
    assert torch.equal(editor.index.keys, editor.keys_of(editor.encoded(batch)))


def test_20_the_same_seed_gives_the_same_run(generator: Backbone) -> None:
    seen = []
    for _ in range(2):
        editor = make("melo", generator)
        reports = [editor.edit(batch) for batch in stream().batches()]
        routes = editor.route(encode_prompts(generator, PROMPTS))
        losses = [(r.loss_first, r.loss_last) for r in reports]
        seen.append((losses, routes, editor.index.keys.tolist(), editor.lora.read(0)))
        editor.close()
    assert seen[0][:3] == seen[1][:3]
    assert all(torch.equal(seen[0][3][name], tensor) for name, tensor in seen[1][3].items())
    records = tuple(replace(edit, rephrases=(*edit.rephrases, "again?")) for edit in edits(6))
    orders = [
        streams.balanced_stream(Dataset("d", records), n_edits=9, batch_size=3, seed=s).content
        for s in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_a_cached_block_equals_a_trained_one(t5: Backbone, tmp_path) -> None:
    from lib.editors import build

    first = build("melo", t5, configuration("melo", t5), blocks_cache=Cache(tmp_path))
    trained = first.edit(edits(2))
    block = first.lora.read(0)
    first.close()
    # Another radius and key position: the block does not depend on the index.
    other = configuration("melo", t5, radius=9.0, key_position="last_column")
    second = build("melo", t5, other, blocks_cache=Cache(tmp_path))
    reused = second.edit(edits(2))
    assert reused.seconds == trained.seconds
    assert reused.loss_last == trained.loss_last
    assert all(torch.equal(second.lora.read(0)[name], block[name]) for name in block)
    second.close()
    third = build("melo", t5, configuration("melo", t5, lr=0.01), blocks_cache=Cache(tmp_path))
    assert third.edit(edits(2)).loss_last != trained.loss_last
