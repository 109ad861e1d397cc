"""ELDER on a model: parity checks 9 to 13, 16, 19 and 20 of the study's notes (section 11),
numbered as there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded, batch_rows, encode_prompts, prompt_ids
from lib.backbones.sources import loading
from lib.editors import build
from lib.editors.adapters import elder_routing
from lib.editors.adapters.elder import Elder
from lib.editors.base import UNEDITED
from tests.conftest import prompt_logits
from tests.editors.adapters.elder_cases import (
    BATCHES,
    EDITS,
    FAMILIES,
    OTHERS,
    PROMPTS,
    editor_of,
    pool_of,
    reference_of,
    rows_of,
    served,
)

EVERY = pytest.mark.parametrize("name", FAMILIES)
QUICK: dict[str, Any] = {"steps": 4, "epsilon": 2}


def edited(name: str, **changes: Any) -> Elder:
    """An editor after three batches that has some prompts in scope and some not."""
    editor = editor_of(loading.load(name), **QUICK | changes)
    for batch in BATCHES:
        editor.edit(batch)
    return editor


def all_logits(backbone: Backbone, batch: Encoded) -> list[Tensor]:
    """Logits of an ordinary forward call at each row's real positions."""
    with torch.no_grad():
        logits = backbone.model(**batch.inputs(), position_ids=batch.positions()).logits
    return [row[mask.bool()] for row, mask in zip(logits, batch.attention_mask, strict=True)]


# -- 9, 10, 11: one route per sequence, from the prompt --------------------------------------------


@EVERY
def test_09_the_route_is_the_prompts_whatever_is_answered(name: str) -> None:
    editor = editor_of(loading.load(name))
    prompts = [edit.prompt for edit in EDITS]
    alone = editor.routing(editor.keys_of(encode_prompts(editor.backbone, prompts)))
    for answers in (EDITS, EDITS[::-1]):
        batch = [replace(e, target=a.target) for e, a in zip(EDITS, answers, strict=True)]
        routing = editor.routing(editor.keys_of(rows_of(editor.backbone, batch).encoded))
        assert torch.equal(routing.chosen, alone.chosen)
        assert (routing.weights - alone.weights).abs().max() < 1e-6


@EVERY
def test_10_padding_and_company_change_nothing(name: str) -> None:
    """Ordinary forward calls, which find their own routes."""
    editor = edited(name)
    backbone = editor.backbone
    scope = served(editor, PROMPTS)
    assert True in scope and False in scope
    right, left = (encode_prompts(backbone, PROMPTS, side=side) for side in ("right", "left"))
    chosen = [editor.routing(editor.keys_of(batch)).chosen for batch in (right, left)]
    assert torch.equal(*chosen)
    expected = all_logits(backbone, right)
    for place, (prompt, padded) in enumerate(zip(PROMPTS, all_logits(backbone, left), strict=True)):
        alone = encode_prompts(backbone, [prompt])
        assert torch.equal(editor.routing(editor.keys_of(alone)).chosen[0], chosen[0][place])
        assert (padded - expected[place]).abs().max() < 1e-4
        assert (all_logits(backbone, alone)[0] - expected[place]).abs().max() < 1e-4


def greedy_ids(backbone: Backbone, prompts: list[str], tokens: int) -> list[list[int]]:
    batch = encode_prompts(backbone, prompts)
    backbone.model.generation_config.eos_token_id = None
    settings = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": backbone.pad_id}
    return backbone.model.generate(**batch.inputs(), **settings)[
        :, batch.input_ids.shape[1] :
    ].tolist()


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_11_teacher_forced_exact_match_is_that_of_greedy_decoding(name: str) -> None:
    """64 prompts, every other with a wrong last token; routes of the prompts hold throughout."""
    editor = edited(name)
    backbone = editor.backbone
    starts = (*PROMPTS[:12], "Name:", "In", "The keeper of", "Where is")
    prompts = [f"{start} {more}" for start in starts for more in ("Ash", "the north", "1907", "I")]
    heads = [prompt_ids(backbone, prompt) for prompt in prompts]
    written = greedy_ids(backbone, prompts, 3)
    wrong = {i: (written[i][-1] + 7) % len(backbone.tokenizer) for i in range(1, 64, 2)}
    tails = [[*ids[:-1], wrong.get(i, ids[-1])] for i, ids in enumerate(written)]
    rows = [head + tail[:-1] for head, tail in zip(heads, tails, strict=True)]
    whole = batch_rows(backbone, rows, [len(head) for head in heads], "right")
    routes = editor.route(encode_prompts(backbone, prompts))
    with editor.routed(whole, routes):
        forced = [logits[-3:].argmax(dim=-1).tolist() for logits in all_logits(backbone, whole)]
    assert [one == tail for one, tail in zip(forced, tails, strict=True)] == [True, False] * 32
    scope = [route != UNEDITED for route in routes]
    assert [route != UNEDITED for route in editor.route(whole)] == scope
    assert True in scope and False in scope


def test_11_decoding_holds_the_prompts_route_unless_asked_not_to() -> None:
    """As the reference, which decides once; routing each new token gives other texts."""
    locked, per_step = (edited("tiny-gpt2", route_per_step=each) for each in (False, True))
    reference = reference_of(locked)
    reference.memory = locked.released_codes.int().tolist()
    reference.queries = [torch.zeros(0)] * len(reference.memory)
    expected = [reference.greedy(prompt, 5) for prompt in PROMPTS[:6]]
    assert greedy_ids(locked.backbone, list(PROMPTS[:6]), 5) == expected
    others = [greedy_ids(e.backbone, list(PROMPTS), 5) for e in (locked, per_step)]
    assert others[0] != others[1]
    assert [ids[0] for ids in others[0]] == [ids[0] for ids in others[1]]  # the prefill is the same


# -- 12, 13: what is trained -----------------------------------------------------------------------


@EVERY
def test_12_base_and_queries_stay_as_they_are(name: str) -> None:
    backbone = loading.load(name)
    base = {key: (tensor, tensor.clone()) for key, tensor in backbone.model.state_dict().items()}
    editor = editor_of(backbone, steps=2)
    prompts = encode_prompts(backbone, [edit.prompt for edit in OTHERS])
    queries, before = editor.keys_of(prompts), pool_of(editor).tensors()
    for start in range(0, 20, 4):
        editor.edit(OTHERS[start : start + 4])
    assert all(torch.equal(now, then) for now, then in base.values())
    assert torch.equal(editor.keys_of(prompts), queries)
    after = pool_of(editor).tensors()
    changed = [not torch.equal(now, then) for now, then in zip(after, before, strict=True)]
    assert any(changed[:-6]) and all(changed[-6:])  # an expert that nobody took stays; no router
    assert len(editor.released_codes) == 20


def test_12_experts_stay_in_float32_above_a_bfloat16_base() -> None:
    """A step of 1e-4 would vanish in bfloat16; what goes on is in the base's precision."""
    backbone = loading.load("tiny-llama", dtype=torch.bfloat16)
    editor = editor_of(backbone, lr=1e-4, steps=1, epsilon=99)
    before = prompt_logits(backbone, list(PROMPTS))
    for batch in BATCHES[:2]:
        then = [p.clone() for p in (*editor.lora.parameters(), *editor.routers)]
        editor.edit(batch)
        now = [*editor.lora.parameters(), *editor.routers]
        assert all(p.dtype == torch.float32 for p in now)
        moves = [float((a - b).abs().max().detach()) for a, b in zip(now, then, strict=True)]
        assert max(moves) == pytest.approx(1e-4, rel=0.01)
    assert prompt_logits(backbone, list(PROMPTS)).dtype == torch.bfloat16
    assert editor.keys_of(encode_prompts(backbone, PROMPTS)).dtype == torch.float32
    editor.close()
    assert torch.equal(prompt_logits(backbone, list(PROMPTS)), before)


def trainable(L: int, N: int, r: int, d_in: int, d_out: int) -> int:
    """Experts and routers (2.1)."""
    return L * (N * r * (d_in + d_out) + N * (d_in + 1))


def on_meta(name: str, model: nn.Module, part: str, block: int) -> Elder:
    """A published model without memory for its weights, with the paper's layers and defaults."""
    backbone = replace(loading.load(name), model=model.eval().requires_grad_(False))
    sites = [{"part": part, "block": b} for b in range(block + 1, block + 7)]
    return build("elder", backbone, {"sites": sites, "sensor": {"part": part, "block": block}})


def test_13_parameter_counts_of_the_paper() -> None:
    with torch.device("meta"):
        xl = GPT2LMHeadModel(GPT2Config(n_embd=1600, n_layer=48, n_head=25))
        llama = LlamaForCausalLM(LlamaConfig())
    for editor, expected, shape in (
        (on_meta("tiny-gpt2", xl, "mlp_in", 35), 1_574_424, (1600, 6400)),
        (on_meta("tiny-llama", llama, "mlp_out", 20), 3_164_184, (11008, 4096)),
    ):
        assert editor.counts()["parameters"] == expected == trainable(6, 4, 8, *shape)
    tiny = editor_of(loading.load("tiny-llama"), n_experts=3, k=1, rank=5)
    tensors = pool_of(tiny).tensors()
    assert tiny.counts()["parameters"] == sum(t.numel() for t in tensors)
    assert tiny.counts()["parameters"] == trainable(3, 3, 5, 64, 32)
    tiny.edit(EDITS)
    assert tiny.counts()["parameters"] == trainable(3, 3, 5, 64, 32)  # however many edits


# -- 16: when codes are stored ---------------------------------------------------------------------


@pytest.mark.parametrize("refresh", [False, True])
def test_16_codes_are_stored_before_the_last_update(refresh: bool) -> None:
    """Those of a replay that stops a step earlier; refreshed ones follow every later batch."""
    settings = {"lr": 0.3, "epsilon": 2, "refresh_codes": refresh}
    editor, earlier = (editor_of(loading.load("tiny-gpt2"), steps=n, **settings) for n in (5, 4))
    for one in (editor, earlier):
        one.edit(OTHERS[:12])
    queries = editor.keys_of(encode_prompts(editor.backbone, [e.prompt for e in OTHERS[:12]]))
    before, now = (one.routing(queries).chosen for one in (earlier, editor))
    assert not torch.equal(before, now)
    assert torch.equal(editor.released_codes, before)
    assert torch.equal(editor.stored_codes, now if refresh else before)
    editor.edit(OTHERS[12:])
    assert torch.equal(editor.released_codes[:12], before)  # never refreshed as released
    own = elder_routing.hamming(editor.routing(queries).chosen, editor.stored_codes[:12]).diagonal()
    assert own.eq(0).all() if refresh else own.ne(0).any()
    distances = editor.distances(editor.routing(queries))
    assert distances.eq(0).all() if refresh else True


# -- 19, 20: saving, and company -------------------------------------------------------------------


@pytest.mark.parametrize("refresh", [False, True])
def test_19_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(
    refresh: bool, tmp_path: Path
) -> None:
    first, *_, last = BATCHES
    editor, other = (editor_of(loading.load("tiny-llama"), **QUICK, refresh_codes=refresh)
                     for _ in range(2))  # fmt: skip
    editor.edit(first)
    editor.edit(EDITS[2:4])
    editor.save(tmp_path / "saved")
    other.load(tmp_path / "saved")
    for _ in range(2):
        ours, theirs = (prompt_logits(e.backbone, list(PROMPTS)) for e in (editor, other))
        assert torch.equal(ours, theirs)
        assert served(editor, PROMPTS) == served(other, PROMPTS)
        reports = [e.edit(last) for e in (editor, other)]
        assert reports[0].loss_last == reports[1].loss_last
        pools = [pool_of(e).tensors() for e in (editor, other)]
        assert all(torch.equal(a, b) for a, b in zip(*pools, strict=True))
        assert torch.equal(editor.stored_codes, other.stored_codes)
        assert editor.allocation.labels == other.allocation.labels


def test_20_two_editors_in_one_process_know_nothing_of_each_other() -> None:
    """Batch by batch and pass by pass in turn, as each would be alone."""

    def start(seed: int) -> Elder:
        return editor_of(loading.load(("tiny-gpt2", "tiny-llama")[seed]), **QUICK, seed=seed)

    def step(editor: Elder, batch: Any) -> Tensor:
        editor.edit(batch)
        return prompt_logits(editor.backbone, list(PROMPTS))

    alone = []
    for seed in (0, 1):
        editor = start(seed)
        alone.append([step(editor, batch) for batch in BATCHES])
    together = [start(0), start(1)]
    for place, batch in enumerate(BATCHES):
        for seed, editor in enumerate(together):
            assert torch.equal(step(editor, batch), alone[seed][place])
        assert len(together[0].stored_codes) == len(together[1].stored_codes)
