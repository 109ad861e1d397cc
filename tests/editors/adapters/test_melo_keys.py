"""MELO: keys and routes. Checks are numbered as in the study's notes, section 11."""

import warnings

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, encode, encode_prompts
from lib.backbones.passes.hooks import capture
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors.parts.sites import key_columns
from lib.errors import EditorError
from tests.conftest import edits, generate, make

PROMPTS = [edit.prompt for edit in edits(4)]


@pytest.fixture
def t5() -> Backbone:
    return loading.load("tiny-t5")


def test_10_the_last_token_key_ignores_padding_and_the_released_one_does_not(t5: Backbone) -> None:
    short, long = (
        "Where is Ash?",
        "Where is Ash, and why does nobody there ever speak of the ferry?",
    )
    for position, moved in (
        ("last_token", False),
        ("last_prompt_token", False),
        ("last_column", True),
    ):
        editor = make("melo", t5, key_position=position)
        alone = editor.keys_of(encode_prompts(t5, [short]))[0]
        padded = editor.keys_of(encode_prompts(t5, [short, long]))[0]
        gap = (alone - padded).abs().max().item()
        assert gap > 1e-2 if moved else gap < 1e-5
        editor.close()


def test_10_the_causal_released_key_sees_the_target() -> None:
    backbone = loading.load("tiny-llama")
    prompt, one, other = ["The ferry of Ash sails from"], ["Wick"], ["Nettle Quay"]
    for position, sees in (
        ("last_column", True),
        ("last_token", True),
        ("last_prompt_token", False),
    ):
        editor = make("melo", backbone, key_position=position)
        first = editor.keys_of(encode(backbone, prompt, one))
        second = editor.keys_of(encode(backbone, prompt, other))
        assert editor.keys_see_target is sees
        assert ((first - second).abs().max() > 1e-3) == sees
        editor.close()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_pads_are_positions_for_the_causal_released_key_alone(name: str, side: str) -> None:
    """As in the official code, whose calls pass no position ids."""
    backbone = loading.load(name, dtype=torch.float64)
    prompts = ["Where is Ash?", "Where is Ash, and why does nobody there speak of the ferry?"]
    batch = encode(backbone, prompts, ["Selby", "Wick"], side=side)
    mask, rows = batch.attention_mask, torch.arange(2)
    own_positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    found = {}
    for position in ("last_column", "last_prompt_token"):
        editor = make("melo", backbone, key_position=position)
        found[position] = editor.keys_of(batch)
        path = editor.router_path
        editor.close()
    plain = []
    for more in ({}, {"position_ids": own_positions}):
        with capture(backbone.model.get_submodule(path)) as seen, torch.no_grad():
            backbone.model(input_ids=batch.input_ids, attention_mask=mask, **more)
        plain.append(seen.output)
    prompt = (batch.labels != IGNORED).float().argmax(dim=1) - 1
    by_column, by_token = plain[0][:, -1], plain[1][rows, prompt]
    assert torch.allclose(found["last_column"], by_column, rtol=0, atol=1e-12)
    assert torch.allclose(found["last_prompt_token"], by_token, rtol=0, atol=1e-12)
    if side == "right" or name == "tiny-gpt2":  # left of a rotary row, pads only shift it
        assert (by_column - plain[1][:, -1])[0].abs().max() > 1e-3


def test_an_edit_can_be_overwritten_only_when_the_conflict_policy_is_fixed(
    generator: Backbone,
) -> None:
    old, *others = edits(5)
    new = Edit(old.identity, old.prompt, "Wick", old.subject)
    encoded = encode_prompts(generator, [old.prompt])
    for policy, served in (("as_released", "base"), ("fixed", "block 1")):
        editor = make("melo", generator, conflict_policy=policy, radius=0.02)
        editor.edit([old])
        assert editor.route(encoded) == ["block 0"]
        # as released the keys must be equal to the bit, so the batch has the same shape; when
        # fixed, another batch with other padding must not matter
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "MELO: .* gets neither", UserWarning)
            editor.edit([new] if policy == "as_released" else [new, *others])
        assert editor.route(encoded) == [served]
        editor.close()


def test_a_router_above_the_sites_is_refused(t5: Backbone) -> None:
    with pytest.raises(EditorError, match="must lie below"):
        make("melo", t5, router={"part": "mlp_out", "block": 3})


def test_key_columns() -> None:
    backbone = loading.load("tiny-llama")
    batch = encode(backbone, ["Ash", "The ferry of Ash"], ["Wick", "Port Ost"])
    assert key_columns(batch, "last_column").tolist() == [batch.input_ids.shape[1] - 1] * 2
    prompt = batch.labels.ne(IGNORED).float().argmax(dim=1) - 1
    assert key_columns(batch, "last_prompt_token").tolist() == prompt.tolist()
    assert key_columns(batch, "last_token").tolist() == (batch.attention_mask.sum(1) - 1).tolist()
    assert key_columns(batch, "first_target_token").tolist() == (prompt + 1).tolist()
    alone = encode_prompts(backbone, ["Ash", "The ferry of Ash"])
    assert torch.equal(key_columns(alone, "first_target_token"), alone.last_prompt)


def test_per_step_routing_asks_again_at_every_token() -> None:
    backbone = loading.load("tiny-llama")
    calls = []
    for per_step in (False, True):
        editor = make("melo", backbone, route_per_step=per_step, key_position="last_column")
        editor.edit(edits(2))
        seen = []
        editor._router.on_keys = lambda keys, seen=seen: seen.append(len(keys))
        backbone.model.generation_config.eos_token_id = None
        generate(backbone, PROMPTS[:2], tokens=5)
        calls.append(len(seen))
        editor.close()
    assert calls == [1, 5]
