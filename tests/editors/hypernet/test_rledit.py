"""RLEdit: its training sequence against end-to-end autograd, and the parity checks of the study's
notes (section 9 there); what the released steps of Adam reach, and what they do not."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors.hypernet import training as meta_training
from lib.editors.hypernet.rledit import RlEdit, RlEditConfig
from lib.editors.hypernet.training import network_identity
from tests.editors.hypernet.malmen_cases import (
    FAMILIES,
    before_each_step,
    editor_of,
    facts_for,
    gap,
    gradients,
    learner,
    networks,
    oracle_of,
    paths,
    same,
    trained,
    training,
)
from tests.editors.hypernet.reference_sequence import Turns
from tests.editors.hypernet.test_gradients import compare

FAST: dict[str, Any] = {"n_blocks": 2, "reg_coef": 0.05}


def random_editor(name: str, **changes: Any) -> RlEdit:
    return editor_of("rledit", loading.load(name, dtype=torch.float64), **FAST | changes)


def turns_of(editor: RlEdit) -> Turns:
    """The slow reference with the editor's settings, parameters and statistics."""
    config, plain = editor.config, oracle_of(editor)
    return Turns(
        editor.backbone, plain.distinct, plain.s, decay=config.time_decay, depth=config.back_depth,
        regularised=config.reg_coef if config.regulariser == "applied" else 0.0,
        original=config.reference == "original",
    )  # fmt: skip


def turns(backbone: Backbone) -> list[tuple[Edit, ...]]:
    facts = facts_for(backbone, 7)
    return [facts[:3], facts[3:5], facts[5:]]


def test_defaults_are_the_official_ones() -> None:
    official = {
        "rank": 1024, "n_blocks": 4, "eta": 1e-6, "meta_lr": 1e-5, "loc_coef": 0.6,
        "max_grad_norm": 1, "epochs": 1, "batch_rows": 4, "time_decay": 0.95, "back_depth": 10,
        "reg_coef": 1e-4, "standardise": "released", "tokens": "answer", "ridge": "learned",
        "step": "sequence", "regulariser": "released", "reference": "previous",
    }  # fmt: skip
    config = RlEditConfig()
    assert {name: getattr(config, name) for name in official} == official


# -- one sequence against autograd -----------------------------------------------------------------


def follow(editor: RlEdit, limit: float) -> None:
    """Three turns of the editor's gradients against the reference's, on the moved model."""
    reference = turns_of(editor)
    for facts in turns(editor.backbone):
        editor.network.zero_grad(set_to_none=True)
        editor.meta_gradients(facts)
        compare(editor, reference.gradients(facts), limit)


@pytest.mark.parametrize("name", FAMILIES)
def test_10_the_gradients_of_every_turn_equal_autograd_in_float64(name: str) -> None:
    """Three turns: rows and references on the model that the former ones moved, former batches
    looked back at, divergences taken while W_t is in force. Norms of Llama and T5 and GPT-J's
    attention work in float32 whatever the weights are, and turns add up their rounding."""
    exact = name in ("tiny-gpt2", "tiny-bert")
    follow(random_editor(name), 1e-8 if exact else 1e-5)


OPTIONS: list[dict[str, Any]] = [
    {"regulariser": "applied"},
    {"reference": "original"},
    {"back_depth": 1},
    {"back_depth": 2, "time_decay": 0.5},
    {"loc_coef": 30.0},
]


@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: "-".join(map(str, *o.items())) if len(o) == 1 else "two"
)
def test_10_every_option_equals_the_reference(options: dict[str, Any]) -> None:
    follow(random_editor("tiny-gpt2", **options), 1e-8)


def test_09_a_first_turn_held_to_the_original_is_malmens_meta_step() -> None:
    backbone = loading.load("tiny-gpt2", dtype=torch.float64)
    facts = facts_for(backbone, 5)
    editor = editor_of("rledit", backbone, reference="original", n_blocks=2)
    malmen = editor_of("malmen", backbone, n_blocks=2, loc_coef=editor.config.loc_coef)
    found = [one.meta_gradients(facts) for one in (editor, malmen)]
    assert found[0].generality == pytest.approx(found[1].generality, rel=1e-12)
    assert found[0].locality == pytest.approx(found[1].locality, rel=1e-12)
    compare(editor, gradients(malmen), 1e-12)


def test_the_model_of_a_sequence_is_in_force_in_its_turns_alone() -> None:
    editor = random_editor("tiny-llama")
    weights = {path: editor.weights.modules[path].weight for path in paths(editor)}
    before = {path: weight.clone() for path, weight in weights.items()}
    seen: list[dict[str, Tensor]] = []
    cache = editor.cache
    editor.cache = lambda *given, **named: (
        seen.append({path: weight.clone() for path, weight in weights.items()}),
        cache(*given, **named),
    )[1]
    for facts in turns(editor.backbone):
        editor.meta_gradients(facts)
        assert all(torch.equal(weights[path], before[path]) for path in weights)
    assert all(torch.equal(seen[0][path], before[path]) for path in weights)
    for early, late in itertools.pairwise(seen):
        assert all(not torch.equal(early[path], late[path]) for path in weights)


# -- steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "epochs", "expected"), [("edit", 2, 4), ("sequence", 2, 2)])
def test_11_adam_steps_once_a_sequence_or_once_a_turn(
    step: str, epochs: int, expected: int
) -> None:
    """Released: the accumulated gradient is clipped at every turn, g_t = clip(g_{t-1} + dL_t)."""
    editor = learner("rledit", loading.load("tiny-llama"), step=step, epochs=epochs, n_blocks=2)
    stepped: list[Tensor] = []
    raw: list[Tensor] = []

    def gradient() -> Tensor:
        return torch.cat([p.grad.flatten() for p in editor.network.parameters()]).double()

    inner = editor.meta_gradients

    def recorded(facts: Any) -> Any:
        kept = [p.grad for p in editor.network.parameters()]
        for parameter in editor.network.parameters():
            parameter.grad = None
        losses = inner(facts)
        raw.append(gradient())
        for parameter, grad in zip(editor.network.parameters(), kept, strict=True):
            parameter.grad = parameter.grad if grad is None else parameter.grad + grad
        return losses

    editor.meta_gradients = recorded
    hook = register_optimizer_step_pre_hook(lambda *_: stepped.append(gradient()))
    try:
        trained(editor, m=2)
    finally:
        hook.remove()
    assert len(raw) == 4 and len(stepped) == expected
    turns_each = len(raw) // expected
    for at, found in enumerate(stepped):
        total = torch.zeros_like(found)
        for grad in raw[at * turns_each : (at + 1) * turns_each]:
            total = total + grad
            total = total * min(1.0, 1.0 / float(total.norm()))
        assert gap(found, total) < 1e-5


def test_08_the_released_step_moves_step_sizes_and_leaves_a_standardiser() -> None:
    """The finding: one step of Adam in all, in which A and scale have no gradient at all, every eta
    moves by the whole learning rate, and the network's output by nearly nothing."""
    backbone, meta_lr = loading.load("tiny-llama"), 1e-5
    editor = learner("rledit", backbone, step="sequence", eta=1e-3, meta_lr=meta_lr)
    start = editor.new_network()
    trained(editor, m=2)
    for net, fresh in zip(networks(editor), start.nets.values(), strict=True):
        for block, other in zip(net.blocks, fresh.blocks, strict=True):
            assert torch.equal(block.down, other.down) and torch.equal(block.scale, other.scale)
            assert 0 < block.up.abs().max() <= 1.01 * meta_lr
        moved = (net.eta - fresh.eta).abs()
        assert torch.allclose(moved, torch.full_like(moved, meta_lr), rtol=1e-3)
        assert (net.alpha - fresh.alpha).abs().max() <= 1.01 * meta_lr
        d, width = net.widths
        rows = torch.randn(9, d + width, generator=torch.Generator().manual_seed(0))
        output = torch.cat(net(*rows.split((d, width), dim=1), 0), dim=1)
        assert gap(output, net.standardiser(rows)) < 1e-2
    learned = [row for row in editor.observe(None) if row["kind"] == "learned"]
    assert [row["path"] for row in learned] == paths(editor)
    for row in learned:
        assert row["A_moved"] == row["scale_moved"] == 0 < row["B_moved"]
        assert abs(row["eta"] - row["eta_start"]) == pytest.approx(meta_lr, rel=1e-3)


def test_08_a_released_step_can_turn_a_step_size_negative() -> None:
    """From 1e-6 by 1e-5, whatever the gradient's size: such a layer then edits uphill."""
    found = {}
    for loc_coef in (0.6, 1e9):  # what the gradient's sign is, decides alone
        editor = learner(
            "rledit", loading.load("tiny-llama"), eta=1e-6, meta_lr=1e-5, n_blocks=1,
            loc_coef=loc_coef,
        )  # fmt: skip
        trained(editor, m=2)
        found[loc_coef] = [eta for net in networks(editor) for eta in net.eta.tolist()]
    assert all(eta == pytest.approx(1.1e-5, rel=1e-2) for eta in found[0.6])
    assert min(found[1e9]) == pytest.approx(-9e-6, rel=1e-2)


def test_07_the_released_regulariser_has_no_gradient_the_applied_one_has() -> None:
    ends = {}
    for regulariser in ("released", "applied"):
        for weight in (1e-4, 1e6):
            changes = {"regulariser": regulariser, "reg_coef": weight, "n_blocks": 1}
            editor = learner("rledit", loading.load("tiny-llama"), step="edit", **changes)
            ends[regulariser, weight] = trained(editor, m=2)
    assert same(ends["released", 1e-4], ends["released", 1e6])
    assert not same(ends["applied", 1e-4], ends["applied", 1e6])


# -- statistics, saving, the cache -----------------------------------------------------------------


def test_05_statistics_go_on_from_the_training_and_a_rollback_ends_there(tmp_path: Path) -> None:
    first, second, third = turns(loading.load("tiny-llama"))
    cache = tmp_path / "cache"

    def editor() -> RlEdit:
        return learner("rledit", loading.load("tiny-llama"), cache, n_blocks=1, train_m=2)

    unbroken = editor()
    learned = trained(unbroken, m=2)
    for facts in (first, second, third):
        unbroken.edit(facts)
    assert same(unbroken.network.state_dict(), learned)  # the network itself stays
    statistics = unbroken.tensors()["statistics"]
    begun = {n.removeprefix("nets.").replace(".standardiser", ""): v for n, v in learned.items()}
    assert all(statistics[name] > begun[name] for name in statistics if name.endswith("count"))
    half = editor()
    half.edit(first)
    alone = {group: dict(tensors) for group, tensors in half.tensors().items()}
    half.edit(second)
    half.save(tmp_path / "half")
    resumed = editor()
    resumed.load(tmp_path / "half")
    resumed.edit(third)
    for group, tensors in unbroken.tensors().items():
        assert same(tensors, resumed.tensors()[group])
    half.rollback()
    assert half.tensors() == {}
    half.edit(first)
    for group, tensors in alone.items():
        assert same(tensors, half.tensors()[group])


class Killed(Exception):
    pass


@pytest.mark.parametrize("died_before", [1, 3])
def test_a_killed_sequence_is_begun_again_and_ends_in_the_same_network(
    died_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two turns an epoch, two epochs, a checkpoint whenever one may be: between sequences, as what
    one carries from turn to turn is not kept."""
    monkeypatch.setattr(meta_training, "CHECKPOINT_SECONDS", 0.0)
    options = {"epochs": 2, "n_blocks": 1, "step": "edit"}
    expected = trained(learner("rledit", loading.load("tiny-llama"), **options), m=2)
    steps: list[int] = []

    def die(_facts: Any) -> None:
        if len(steps) == died_before:
            raise Killed
        steps.append(len(steps))

    dying = learner("rledit", loading.load("tiny-llama"), tmp_path, **options)
    before_each_step(dying, die)
    with pytest.raises(Killed):
        trained(dying, m=2)
    again: list[Any] = []
    resumed = learner("rledit", loading.load("tiny-llama"), tmp_path, **options)
    before_each_step(resumed, again.append)
    assert same(trained(resumed, m=2), expected)
    assert len(again) == (4 if died_before == 1 else 2)


def test_a_kept_network_is_told_by_the_code_of_its_own_editor() -> None:
    backbone = loading.load("tiny-llama")
    told = {
        kind: network_identity(
            editor_of(kind, backbone, resources={"training": training(backbone)}), 2
        )
        for kind in ("malmen", "mend", "rledit")
    }
    assert told["malmen"]["code"] == told["mend"]["code"] != told["rledit"]["code"]
