"""WISE: its rules one by one, and sequences of edits against a slow transcription of the released
ones (notes on WISE, 2 and 8), in float64."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import answer_ids, encode_prompts, prompt_ids
from lib.backbones.passes.hooks import capture
from lib.backbones.sources import loading
from lib.data.records import Edit, Probe
from lib.editors.base import UNEDITED
from lib.editors.memory.wise import (
    UNSEEN,
    Wise,
    WiseConfig,
    activations,
    edit_term,
    margin_loss,
    stepped,
    ties,
    violation,
    winner,
)
from lib.errors import EditorError
from tests.conftest import edits, make, prompt_logits

EXACT = 1e-10
PHI = {"tiny-llama": functional.silu, "tiny-gpt2": lambda x: functional.gelu(x, approximate="tanh")}
PROMPTS = [edit.prompt for edit in edits()] + ["who wrote the first letter?", "Name: Ash."]


class Reference:
    """The released rules, one unpadded row after the other, with the editor's contexts and masks.

    Weights are [out, in]; `memories` holds (weight, a).
    """

    def __init__(self, editor: Wise) -> None:
        self.editor, self.config = editor, editor.config
        self.backbone = loading.load(editor.backbone.name, dtype=torch.float64)
        self.layer = self.backbone.model.get_submodule(editor.path)
        self.phi = PHI[editor.backbone.name]
        self.turned = not isinstance(self.layer, nn.Linear)
        self.main = self.plain(self.layer.weight.detach())
        self.side, self.low = self.main.clone(), UNSEEN
        self.memories: list[tuple[Tensor, float]] = []
        self.count = 0

    def plain(self, weight: Tensor) -> Tensor:
        return weight.T if self.turned else weight

    def output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        bias = 0.0 if self.layer.bias is None else self.layer.bias.detach()
        return inputs @ weight.T + bias

    def distance(self, ids: list[int], weight: Tensor) -> Tensor:
        with capture(self.layer) as seen, torch.no_grad():
            self.backbone.model(input_ids=torch.tensor([ids]))
        inputs = seen.input[0].clone()
        each = [
            (self.phi(self.output(x, self.main)) - self.phi(self.output(x, weight))).norm()
            for x in inputs
        ]
        return sum(each) / len(each)

    def answer_loss(self, head: list[int], tail: list[int], weight: Tensor) -> Tensor:
        handle = self.layer.register_forward_hook(
            lambda _module, inputs, _output: self.output(inputs[0], weight)
        )
        logits = self.backbone.model(input_ids=torch.tensor([head + tail])).logits[0]
        handle.remove()
        log_p = logits.log_softmax(dim=-1)
        total = sum(-log_p[len(head) + at - 1, token] for at, token in enumerate(tail))
        return total / (len(tail) + 1)

    def edit(self, edit: Edit, probe: Probe) -> None:
        config, backbone = self.config, self.backbone
        tail = answer_ids(backbone, edit.target)
        heads = [prompt_ids(backbone, c + edit.prompt) for c in ("", *self.editor.contexts)]
        other = prompt_ids(backbone, probe.prompt) + answer_ids(backbone, probe.target)
        mask = self.plain(self.editor._mask(self.count // config.shard_edits))
        side = self.side.clone().requires_grad_()
        optimiser = torch.optim.SGD([side], lr=config.lr, weight_decay=config.weight_decay)
        losses: list[float] = []
        for step in range(config.steps):
            # At the first step the norm of nothing has no gradient of its own.
            inside = [self.distance(head + tail, side) for head in heads]
            outside = self.distance(other, side)
            loss = sum(self.answer_loss(head, tail, side) for head in heads) / len(heads)
            for terms in (
                [config.gamma + outside - found for found in inside],
                [outside - config.alpha],
                [config.beta - found for found in inside],
            ):
                positive = [term for term in terms if term > 0]
                loss = loss + (sum(positive) / len(positive) if positive else 0.0)
            losses.append(loss.item())
            done = len(losses) > 2 and abs(losses[-2] - losses[-3]) <= 1e-4 and losses[-2] <= 0.02
            if done or step == config.steps - 1:
                self.low = min(self.low, (sum(inside) / len(inside)).item())
            if done:
                break
            optimiser.zero_grad()
            loss.backward()
            side.grad *= mask
            before = side.detach().clone()
            optimiser.step()
            with torch.no_grad():
                if config.masked_decay:
                    side[~mask] = before[~mask]
                limit = config.norm_constraint
                side.copy_(torch.max(torch.min(side, self.main + limit), self.main - limit))
        self.side = side.detach()
        self.losses = losses
        self.count += 1
        if self.count % config.shard_edits == 0:
            self.memories.append((self.side, self.low))
            self.side = self.main.clone()
            if config.memory == "retrieve":
                self.low = UNSEEN
        if self.count % config.merge_edits == 0:
            self.merge()

    def merge(self) -> None:
        count = self.config.merge_edits // self.config.shard_edits
        weights = [1.0] * count
        if self.config.memory == "merge" and len(self.memories) > count:
            weights = [0.6] + [0.4 / count] * count
        taken = self.memories[-len(weights) :]
        merged = merge_entry_by_entry(
            self.main, [weight for weight, _ in taken], weights, self.config.density
        )
        del self.memories[-len(weights) :]
        self.memories.append((merged, min(low for _, low in taken)))


def merge_entry_by_entry(
    main: Tensor, sides: Sequence[Tensor], weights: Sequence[float], density: float
) -> Tensor:
    """TIES (notes, 2.6), one entry after the other."""
    changes = []
    for side in sides:
        change = (side - main).flatten()
        order = change.abs().sort(descending=True).indices[: int(density * change.numel())]
        kept = set(order.tolist())
        changes.append([float(x) if at in kept else 0.0 for at, x in enumerate(change)])
    merged = main.flatten().clone()
    for at in range(len(merged)):
        entries = [(w * change[at], w) for w, change in zip(weights, changes, strict=True)]
        positive = sum(entry for entry, _ in entries) >= 0
        agreeing = [(entry, w) for entry, w in entries if (entry > 0 if positive else entry < 0)]
        if agreeing:
            merged[at] += sum(entry for entry, _ in agreeing) / sum(w for _, w in agreeing)
    return merged.view_as(main)


def wise(name: str = "tiny-llama", dtype: torch.dtype = torch.float64, **changes: object) -> Wise:
    return make("wise", loading.load(name, dtype=dtype), **changes)


SHARDS = {"shard_edits": 2, "merge_edits": 4, "steps": 5}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tiny-llama", {}),
        ("tiny-llama", {"masked_decay": False, "weight_decay": 1e-2}),
        ("tiny-gpt2", {"weight_decay": 1e-2}),
        ("tiny-llama", {"memory": "merge", "shard_edits": 1, "merge_edits": 2}),
        ("tiny-llama", {"norm_constraint": 1e-3}),
    ],
)
def test_a_sequence_equals_the_released_rules(name: str, changes: dict) -> None:
    editor = wise(name, **SHARDS | changes)
    longest = Probe("sea", "how cold is the sea " + "in the old harbour " * 8, "very", "upstream")
    editor.unrelated[1] = longest
    editor.prepare()
    reference = Reference(editor)
    for number, edit in enumerate(edits(5)):
        report = editor.edit([edit])
        reference.edit(edit, editor.unrelated[number])
        assert report.loss_first == pytest.approx(reference.losses[0], rel=1e-9)
        assert report.loss_last == pytest.approx(reference.losses[-1], rel=1e-9)
        assert editor.low == pytest.approx(reference.low, rel=1e-9)
        assert (reference.plain(editor.side) - reference.side).abs().max() < EXACT
        assert len(editor.memories) == len(reference.memories)
        for ours, (weight, low) in zip(editor.memories, reference.memories, strict=True):
            assert (reference.plain(ours.weight) - weight).abs().max() < EXACT
            assert ours.low == pytest.approx(low, rel=1e-9)
        for prompt, route in zip(PROMPTS, editor.route(rows(editor.backbone)), strict=True):
            assert route == expected_route(editor, reference, prompt)
    assert all((memory.weight != editor.main).any() for memory in editor.memories)


def rows(backbone: Backbone, prompts: Sequence[str] = PROMPTS) -> object:
    return encode_prompts(backbone, prompts)


def expected_route(editor: Wise, reference: Reference, prompt: str) -> str:
    """2.7, with the memories' own thresholds or, merged, the common one."""
    ids = prompt_ids(reference.backbone, prompt)
    ratio, merged = editor.config.act_ratio, editor.config.memory == "merge"
    best = float(reference.distance(ids, reference.side))
    found = f"side {editor.n_edits}" if best >= ratio * reference.low else UNEDITED
    for ours, (weight, low) in zip(editor.memories, reference.memories, strict=True):
        activation = float(reference.distance(ids, weight))
        if activation > best and activation > ratio * (reference.low if merged else low):
            best, found = activation, f"memory {ours.edits}"
    return found


def test_five_edits_in_shards_of_two_leave_one_memory_and_one_edit(tmp_path) -> None:
    """And a run that was saved between them goes on as the unbroken one, mask included."""
    unbroken = wise(dtype=torch.float32, **SHARDS)
    unbroken.edit(edits(3))
    unbroken.save(tmp_path / "three")
    unbroken.edit(edits(5)[3:])
    assert [memory.edits for memory in unbroken.memories] == [4]
    changed = (unbroken.side != unbroken.main).float().mean()
    assert 0 < changed <= 1.2 * unbroken.config.mask_ratio
    resumed = wise(dtype=torch.float32, **SHARDS)
    resumed.load(tmp_path / "three")
    assert [memory.edits for memory in resumed.memories] == [2]
    resumed.edit(edits(5)[3:])
    assert resumed.extra() == unbroken.extra()
    for name, tensor in unbroken.tensors()["memories"].items():
        assert torch.equal(resumed.tensors()["memories"][name], tensor), name
    assert torch.equal(
        prompt_logits(resumed.backbone, PROMPTS), prompt_logits(unbroken.backbone, PROMPTS)
    )


def test_edits_of_a_batch_are_trained_one_after_the_other() -> None:
    together, apart = wise(**SHARDS), wise(**SHARDS)
    together.edit(edits(5))
    for edit in edits(5):
        apart.edit([edit])
    assert together.extra() == apart.extra()
    for name, tensor in apart.tensors()["memories"].items():
        assert torch.equal(together.tensors()["memories"][name], tensor)


def test_a_new_shard_is_the_main_memory_and_has_another_mask() -> None:
    editor = wise(**SHARDS)
    editor.edit(edits(2))
    assert torch.equal(editor.side, editor.main) and editor.low == UNSEEN
    masks = [editor._mask(shard) for shard in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert editor.config.mask_ratio == pytest.approx(float(masks[0].double().mean()), abs=0.03)


def test_routes_are_of_each_row_alone() -> None:
    """Neither other rows, nor their order, nor pads decide what is applied to a row."""
    editor = wise("tiny-gpt2", act_ratio=1.2)
    editor.edit(edits(2))
    together = editor.route(rows(editor.backbone))
    assert len(set(together)) == 2
    assert editor.route(rows(editor.backbone, PROMPTS[::-1])) == together[::-1]
    alone = [editor.route(rows(editor.backbone, [prompt]))[0] for prompt in PROMPTS]
    assert alone == together


def test_rows_that_no_memory_answers_are_the_backbones_bit_for_bit() -> None:
    backbone = loading.load("tiny-llama", dtype=torch.float32)
    before = prompt_logits(backbone, PROMPTS)
    editor = make("wise", backbone, act_ratio=1e6)
    editor.edit(edits(2))
    assert set(editor.route(rows(backbone))) == {UNEDITED}
    assert torch.equal(prompt_logits(backbone, PROMPTS), before)


def test_released_rows_are_routed_with_their_answers() -> None:
    editor = wise(sees_target=True)
    assert editor.keys_see_target and not wise().keys_see_target


def test_pads_lower_the_activations_where_they_count() -> None:
    lows = []
    for counts in (False, True):
        editor = wise(pads_in_distance=counts, contexts=[[3, 1], [40, 1]])
        editor.edit(edits(1))
        lows.append(editor.low)
    assert lows[1] != pytest.approx(lows[0], rel=1e-3)


def test_what_is_missing_is_named() -> None:
    backbone = loading.load("tiny-llama")
    with pytest.raises(EditorError, match="merge_edits \\(5\\) must be a multiple of shard_edits"):
        make("wise", backbone, shard_edits=2, merge_edits=5)
    none = Wise(backbone, WiseConfig(site=wise().config.site, contexts=()))
    with pytest.raises(EditorError, match="pass training="):
        none.edit(edits(1))


# -- the rules -----------------------------------------------------------------------------------


def test_a_fresh_memory_has_no_activation_and_no_gradient() -> None:
    inputs = torch.randn(2, 3, 5, dtype=torch.float64)
    weight = torch.randn(4, 5, dtype=torch.float64)
    side = weight.clone().requires_grad_()
    found = activations(inputs @ weight.T, inputs @ side.T, torch.ones(2, 3), functional.silu)
    (gradient,) = torch.autograd.grad(found.sum(), side)
    assert torch.equal(found.detach(), torch.zeros(2, dtype=torch.float64))
    assert torch.equal(gradient, torch.zeros_like(side))


def test_margins_count_only_the_rows_that_violate_them() -> None:
    assert violation(torch.tensor([-1.0, 3.0, 5.0])) == 4 and violation(torch.tensor([-1.0])) == 0
    inside, outside = torch.tensor([2.0, 30.0]), torch.tensor([6.0])
    # gamma + 6 - 2 of the first row, 6 - alpha, beta - 2 of the first row
    assert margin_loss(inside, outside, 5.0, 20.0, 10.0) == 14 + 1 + 18


def test_the_edit_loss_counts_one_position_too_many() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 6.0, 0.0, 3.0])  # two rows, three answer tokens
    assert edit_term(losses, 3) * 4 / 3 == losses.mean()
    assert edit_term(torch.cat([losses, losses]), 3) == edit_term(losses, 3)


def test_shards_that_do_not_meet_are_added_and_equal_weights_cancel() -> None:
    main = torch.randn(6, 8, dtype=torch.float64)
    where = torch.rand(6, 8) < 0.5
    changes = [torch.randn(6, 8, dtype=torch.float64) * part for part in (where, ~where)]
    sides = [main + change for change in changes]
    merged = ties(main, sides, [1.0, 1.0], 1.0)
    assert torch.allclose(merged, main + changes[0] + changes[1], rtol=0, atol=1e-14)
    for weight in (0.5, 7.0):
        assert torch.allclose(ties(main, sides, [weight] * 2, 1.0), merged, rtol=0, atol=1e-14)


def test_where_shards_disagree_the_heavier_sign_wins_and_a_tie_is_positive() -> None:
    main = torch.zeros(1, 3)
    sides = [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[-1.0, -4.0, 1.0]])]
    assert ties(main, sides, [1.0, 1.0], 1.0).tolist() == [[1.0, -4.0, 2.0]]
    assert ties(main, sides, [0.9, 0.1], 1.0)[0, 1] == pytest.approx(2.0)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [0.6, 0.2, 0.2], [0.6, *[0.1] * 4]])
def test_a_merge_equals_the_rule_entry_by_entry(weights: list[float]) -> None:
    main = torch.randn(7, 9, dtype=torch.float64)
    sides = [main + torch.randn(7, 9, dtype=torch.float64) for _ in weights]
    found = ties(main, sides, weights, 0.53)
    assert (found - merge_entry_by_entry(main, sides, weights, 0.53)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ([30.0, 0.0, 0.0], 0),
        ([10.0, 25.0, 28.0], 2),
        ([10.0, 25.0, 12.0], 1),
        ([19.0, 25.0, 0.0], 1),
        ([10.0, 15.0, 15.0], None),
        # The running memory is below its own gate of 20, and hides one that is above its 15.
        ([19.0, 0.0, 18.0], None),
    ],
)
def test_the_largest_activation_above_its_own_gate_answers(found: list, chosen: int | None) -> None:
    assert winner(found, [20.0, 20.0, 15.0]) == chosen


# -- the released decay --------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
def test_released_weight_decay_reaches_through_the_masks(masked: bool) -> None:
    """Everything outside a shard's mask shrinks with every step, though no edit is there."""
    editor = wise(masked_decay=masked, steps=6, weight_decay=1e-3, lr=0.1)
    editor.edit(edits(3))
    outside = ~editor._mask(0)
    updates = 3 * 6  # no edit stops early
    left = editor.side[outside] / editor.main[outside]
    expected = 1.0 if masked else (1 - 1e-3 * 0.1) ** updates
    assert torch.allclose(left, torch.full_like(left, expected), rtol=1e-12, atol=0)


def test_half_precision_swallows_the_released_decay() -> None:
    """Precision changes the method: below its spacing, a step of the decay is nothing."""
    config = replace(WiseConfig(), masked_decay=False)
    nothing, mask = torch.zeros(64, 64), torch.zeros(64, 64)
    for dtype, stays in ((torch.float32, False), (torch.bfloat16, True), (torch.float16, True)):
        main = torch.randn(64, 64).to(dtype)
        moved = stepped(main, nothing.to(dtype), mask.to(dtype), main, config)
        assert torch.equal(moved, main) is stays


def test_released_decay_spends_the_merge_on_entries_that_no_edit_trained() -> None:
    """500 edits of 30 steps shrink W by 14 %; then a merge takes that over in entries that neither
    shard trained, and weakens changes that one of them did. Without it: none, and whole."""
    generator = torch.Generator().manual_seed(0)
    main = torch.randn(300, 300, generator=generator, dtype=torch.float64)
    masks = [torch.rand(300, 300, generator=generator) < 0.2 for _ in range(2)]
    trained = [torch.randn(300, 300, generator=generator, dtype=torch.float64) for _ in range(2)]
    gone = 1 - (1 - WiseConfig.weight_decay) ** (500 * 30)
    assert gone == pytest.approx(0.139, abs=1e-3)
    untouched, own = ~(masks[0] | masks[1]), masks[0] & ~masks[1]
    for decay in (0.0, gone):
        sides = [
            torch.where(mask, main + change, (1 - decay) * main)
            for mask, change in zip(masks, trained, strict=True)
        ]
        change = ties(main, sides, [1.0, 1.0], WiseConfig.density) - main
        taken_over = (change[untouched] != 0).double().mean()
        kept = (change[own] * trained[0][own]).sum() / trained[0][own].square().sum()
        if decay:
            assert taken_over > 0.4 and kept < 0.95
        else:
            assert taken_over == 0 and kept == pytest.approx(1.0)
