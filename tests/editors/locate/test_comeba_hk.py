"""COMEBA-HK against the slow reference, and the parity checks of section 12 that concern its hook
layers and its rounds; numbers as in the study's notes. The others are in the files beside it."""

import math

import pytest
import torch
from transformers import DynamicCache

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode_prompts
from lib.backbones.sources import loading
from lib.editors.locate.scope import Mode, z_scores
from lib.editors.locate.subjects import encode_rows
from tests.editors.locate.locate_cases import (
    FIRST,
    LAYERS,
    SECOND,
    as_edits,
    edited,
    editor_of,
    logits_of,
    oracle_of,
    weight_of,
    without_prefix,
)

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")

PROMPTS = [request.prompt for request in (*FIRST, *SECOND)]


# -- 1: zero edits, no threshold, every token ------------------------------------------------------


def test_01_hooks_with_the_base_weight_change_nothing(causal: Backbone) -> None:
    before = [logits_of(causal, prompt) for prompt in PROMPTS]
    editor = editor_of("comeba_hk", causal)
    for mode in (Mode.VALIDATED, Mode.TEMPORARY, Mode.RECORDING):
        editor._set(mode)
        after = [logits_of(causal, prompt) for prompt in PROMPTS]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_01_an_infinite_alpha_is_the_base_and_minus_infinity_the_edited_model(
    causal: Backbone,
) -> None:
    backbone = without_prefix(causal)
    before = [logits_of(backbone, prompt) for prompt in PROMPTS]
    editor = edited(backbone)
    outputs = {}
    for alpha in (math.inf, -math.inf):
        for hook in editor.hooks.values():
            hook.alpha = alpha
        outputs[alpha] = [logits_of(backbone, prompt) for prompt in PROMPTS]
    weights = {layer: editor.hooks[layer].weight for layer in LAYERS}
    editor.close()
    for layer in LAYERS:
        backbone.module("mlp_out", layer).weight.data.copy_(weights[layer])
    replaced = [logits_of(backbone, prompt) for prompt in PROMPTS]
    assert all(torch.equal(a, b) for a, b in zip(outputs[math.inf], before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(outputs[-math.inf], replaced, strict=True))
    assert not torch.equal(replaced[0], before[0])


def test_01_after_an_edit_every_mode_leaves_the_document_prefix_to_the_base_weight() -> None:
    """This study's adaptation of 2.3: the prefix is the attention sink; it is never swapped."""
    backbone = loading.load("tiny-llama")
    editor = edited(backbone)
    for hook in editor.hooks.values():
        hook.alpha = -math.inf
    head = len(backbone.tokenizer(backbone.prefix)["input_ids"])
    row = encode_prompts(backbone, PROMPTS[:1])
    for mode in (Mode.VALIDATED, Mode.TEMPORARY):
        streams = []
        for chosen in (Mode.OFF, mode):
            editor._set(chosen)
            with torch.no_grad():
                out = backbone.model(**row.inputs(), output_hidden_states=True)
            streams.append(out.hidden_states[-1][0])
        assert torch.equal(streams[1][:head], streams[0][:head]), mode
        assert not torch.equal(streams[1][head:], streams[0][head:]), mode


# -- 5: the bound ----------------------------------------------------------------------------------


def test_05_z_is_bounded_and_the_bound_is_reached() -> None:
    generator = torch.Generator().manual_seed(3)
    for n in range(2, 12):
        base = torch.zeros(50, n + 2, 8)
        hook = torch.randn(base.shape, generator=generator) ** 3
        counted = torch.zeros(50, n + 2, dtype=torch.bool)
        counted[:, 1 : n + 1] = True
        z = z_scores(base, hook, counted)
        assert z[counted].max() <= (n - 1) / math.sqrt(n) + 1e-5
        assert z[~counted].isnan().all()
        spike = torch.zeros(1, n + 2, 8)
        spike[0, 2] = 1.0
        highest = z_scores(base[:1], spike, counted[:1])[0, 2].item()
        assert highest == pytest.approx((n - 1) / math.sqrt(n), rel=1e-5)


def test_05_six_tokens_never_reach_the_default_threshold(causal: Backbone) -> None:
    editor = editor_of("comeba_hk", causal, alpha=2.2, tolerance=1e-4)
    ids = encode_prompts(causal, ["xqzjkvwp" * 3]).input_ids[:, : editor.head + 6]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        before = causal.model(input_ids=ids).logits
        for hook in editor.hooks.values():
            noise = torch.randn(hook.weight.shape, generator=generator)
            hook.set_weight(hook.weight + 3 * noise)
        editor._set(Mode.VALIDATED)
        assert torch.equal(causal.model(input_ids=ids).logits, before)
        for hook in editor.hooks.values():
            hook.alpha = 2.0
        assert ids.shape[1] == editor.head + 6


# -- 6: single tokens and decoding -----------------------------------------------------------------


def test_06_a_single_token_gets_the_base_output(causal: Backbone) -> None:
    ids = encode_prompts(causal, ["A"]).input_ids
    editor = edited(causal)
    for hook in editor.hooks.values():
        hook.alpha = -math.inf
    assert ids.shape[1] == editor.head + 1
    with torch.no_grad():
        hooked = causal.model(input_ids=ids).logits
        editor.rollback()
        assert torch.equal(causal.model(input_ids=ids).logits, hooked)


def test_06_generation_is_hooked_in_its_prefill_alone(causal: Backbone) -> None:
    editor = edited(causal, (FIRST, SECOND))
    causal.model.generation_config.eos_token_id = None
    for prompt in PROMPTS[:3]:
        batch = encode_prompts(causal, [prompt])
        theirs = causal.model.generate(**batch.inputs(), max_new_tokens=8, do_sample=False)
        cache, fed, ours = DynamicCache(), batch.input_ids, []
        with torch.no_grad():
            for _ in range(8):
                logits = causal.model(input_ids=fed, past_key_values=cache).logits
                editor._set(Mode.OFF)  # every step but the first
                fed = logits[:, -1:].argmax(dim=-1)
                ours.append(fed)
        editor._set(Mode.VALIDATED)
        assert torch.equal(torch.cat(ours, dim=1), theirs[:, batch.input_ids.shape[1] :])


def test_06_tokens_that_follow_a_cache_get_the_base_output(causal: Backbone) -> None:
    """Also several at once, which would have a z score among themselves."""
    editor = edited(causal, (FIRST, SECOND))
    for hook in editor.hooks.values():
        hook.alpha = 0.0
    ids = encode_prompts(causal, [PROMPTS[1]]).input_ids
    logits = []
    for mode in (Mode.VALIDATED, Mode.OFF):
        cache = DynamicCache()
        editor._set(Mode.VALIDATED)
        with torch.no_grad():
            causal.model(input_ids=ids[:, :-8], past_key_values=cache)
            editor._set(mode)
            logits.append(causal.model(input_ids=ids[:, -8:], past_key_values=cache).logits)
    assert torch.equal(*logits)


# -- 7: padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad_in_stats", [False, True])
def test_07_ordinary_calls_never_count_pads(causal: Backbone, pad_in_stats: bool) -> None:
    """Batch composition does not matter outside of editing, as in the official evaluation, which
    feeds one sequence at a time."""
    editor = edited(causal, (FIRST, SECOND), pad_in_stats=pad_in_stats, tolerance=1e-4)
    batch = encode_prompts(causal, PROMPTS, side="right")
    with torch.no_grad():
        padded = causal.model(**batch.inputs()).logits
        alone = [logits_of(causal, prompt) for prompt in PROMPTS]
        rows = encode_rows(causal, [("", prompt, "") for prompt in PROMPTS], range(len(PROMPTS)))
        width = torch.full_like(rows.lengths, rows.batch.input_ids.shape[1])
        with editor.counting(rows, width):
            counted = causal.model(**batch.inputs()).logits
    difference = {"ordinary": 0.0, "while editing": 0.0}
    for row, logits in enumerate(alone):
        for name, other in (("ordinary", padded), ("while editing", counted)):
            here = (other[row, : len(logits)] - logits).abs().max().item()
            difference[name] = max(difference[name], here)
    assert difference["ordinary"] <= 1e-5 * 10  # logits of up to 10
    assert (difference["while editing"] > 1e-3) == pad_in_stats


# -- 8: alpha --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad_in_stats", [False, True])
def test_08_alpha_falls_and_admits_every_prompt_of_its_batch(
    causal: Backbone, pad_in_stats
) -> None:
    editor = editor_of("comeba_hk", causal, pad_in_stats=pad_in_stats)
    reference = oracle_of(editor)
    bound = dict.fromkeys(LAYERS, 3.0)
    for requests in (FIRST, SECOND, FIRST[:1]):
        editor.edit(as_edits(requests))
        reference.W = {layer: weight_of(editor, layer) for layer in LAYERS}
        lowest = reference.lowest(requests)
        for layer in LAYERS:
            alpha = editor.hooks[layer].alpha
            assert alpha == pytest.approx(min(bound[layer], lowest[layer]), abs=2e-5)
            bound[layer] = alpha
    assert len(set(bound.values())) == len(LAYERS)
    assert max(bound.values()) < 3.0


def test_08_each_layer_has_its_own_alpha(causal: Backbone) -> None:
    editor = edited(causal)
    low, high = (editor.hooks[layer] for layer in LAYERS)
    kept = high.alpha
    low.alpha = -math.inf
    assert high.alpha == kept


def test_08_a_prompt_without_a_score_does_not_forget_the_old_alpha(causal: Backbone) -> None:
    """One token has no z. The official minimum then loses the bound (notes, section 3): NaN for
    that round, the next round's own minimum after it. Here such a prompt says nothing."""
    editor = edited(causal)
    before = {layer: editor.hooks[layer].alpha for layer in LAYERS}
    single = [FIRST[0]._replace(prompt="A", subject="A")]
    editor.edit(as_edits(single))
    assert {layer: editor.hooks[layer].alpha for layer in LAYERS} == before
    assert all(torch.isfinite(weight_of(editor, layer)).all() for layer in LAYERS)
    editor.edit(as_edits(SECOND))
    assert all(editor.hooks[layer].alpha <= before[layer] for layer in LAYERS)
