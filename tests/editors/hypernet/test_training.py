"""Meta-training: a whole run against the slow reference, parity check 15 of the study's notes, any
number of edits at once, order, and interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lib.backbones.passes.kept import Kept
from lib.backbones.sources import loading
from lib.editors.hypernet import training
from lib.editors.hypernet.malmen import MalmenConfig, MendConfig
from lib.errors import EditorError
from tests.editors.hypernet.malmen_cases import (
    before_each_step,
    curve_of,
    facts_for,
    gap,
    learner,
    networks,
    oracle_of,
    parameters,
    same,
    trained,
)

KINDS = ("malmen", "mend")
METHODS = pytest.mark.parametrize("kind", KINDS)


def test_defaults_are_the_official_ones() -> None:
    """Section 3 of the notes; MEND differs in the cached tokens alone."""
    official = {"rank": 1920, "n_blocks": 2, "eta": 1e-6, "meta_lr": 1e-5, "loc_coef": 1,
                "max_grad_norm": 1, "epochs": 1, "batch_rows": 32, "editor_rows": 1024,
                "standardise": "released", "zero_init": True}  # fmt: skip
    for config, tokens in ((MalmenConfig(), "answer"), (MendConfig(), "all")):
        assert {name: getattr(config, name) for name in official} == official
        assert config.tokens == tokens
    assert MalmenConfig().ridge == "learned"


@METHODS
@pytest.mark.parametrize(("name", "limit"), [("tiny-gpt2", 1e-6), ("tiny-t5", 1e-5)])
def test_a_whole_training_equals_the_reference(name: str, limit: float, kind: str) -> None:
    """Statistics, meta-gradients, joint clip and Adam, four times, from the official start.

    T5's norms take variances in float32 whatever the weights are, so the gradient of a sum (kept)
    has other last digits than that of a mean, and Adam amplifies them.
    """
    backbone = loading.load(name, dtype=torch.float64)
    editor = learner(kind, backbone, epochs=2, loc_coef=0.5)
    fresh, reference, sizes = editor.new_network, [], []
    editor.new_network = lambda: fresh().double()

    def follow(facts: Any) -> None:
        if not reference:
            reference.append(oracle_of(editor))
        sizes.append(len(facts))
        reference[0].step(facts)

    before_each_step(editor, follow)
    trained(editor, m=2)
    assert sizes == [2] * 4  # of five facts, the fifth is left out of each epoch
    for net, theirs in zip(networks(editor), reference[0].distinct, strict=True):
        for name, ours in parameters(net).items():
            assert gap(ours.detach(), theirs.parameters()[name].detach()) < limit, name
        assert all(block.up.ne(0).any() for block in net.blocks)


# -- 15: one clip for everything -------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1.0, 1e9])
def test_15_one_norm_over_every_parameter_of_every_network(limit: float) -> None:
    editor = learner("malmen", loading.load("tiny-t5"), max_grad_norm=limit)
    raw: list[Tensor] = []
    clipped: list[Tensor] = []

    def gradient() -> Tensor:
        parts = [p.grad for p in editor.network.parameters()]
        return torch.cat([part.flatten() for part in parts]).double()

    inner = editor.meta_gradients

    def recorded(*arguments: Any, **more: Any) -> Any:
        losses = inner(*arguments, **more)
        raw.append(gradient())
        return losses

    editor.meta_gradients = recorded
    hook = register_optimizer_step_pre_hook(lambda *_: clipped.append(gradient()))
    try:
        trained(editor)
    finally:
        hook.remove()
    assert len(raw) == len(clipped) == 2
    assert len(clipped[0]) == editor.network.size()
    for before, after in zip(raw, clipped, strict=True):
        assert before.norm() > 1.5
        assert float(after.norm()) == pytest.approx(min(limit, float(before.norm())), rel=1e-5)
        assert after.norm() <= limit + 1e-6
        assert torch.cosine_similarity(before, after, dim=0) > 1 - 1e-9


# -- any number of edits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "m", "steps"),
    [
        *((name, kind, 1, 5) for name in ("tiny-gpt2", "tiny-t5", "tiny-bert") for kind in KINDS),
        *(("tiny-llama", "malmen", m, 1) for m in (3, 5, 99)),
        ("tiny-gptj", "mend", 3, 1),
    ],
)
def test_any_number_of_edits_at_once_can_be_trained(
    name: str, kind: str, m: int, steps: int
) -> None:
    """Below the mini-batch, no multiple of it, more than there are facts (then: all of them)."""
    backbone = loading.load(name)
    editor = learner(kind, backbone, batch_rows=4)
    sizes: list[int] = []
    before_each_step(editor, lambda facts: sizes.append(len(facts)))
    start = editor.new_network().state_dict()
    end = trained(editor, m)
    assert sizes == [min(m, 5)] * steps
    assert all(value.isfinite().all() for value in end.values())
    assert not same(start, end)
    for count in (1, 3):
        editor.edit(facts_for(backbone, count))
        assert all(
            S.isfinite().all() for S in editor.shifts_of(facts_for(backbone, count)).values()
        )
        editor.rollback()


def test_the_configured_number_of_edits_goes_before_the_streams() -> None:
    editor = learner("malmen", loading.load("tiny-gpt2"), train_m=5)
    sizes: list[int] = []
    before_each_step(editor, lambda facts: sizes.append(len(facts)))
    trained(editor, m=2)
    assert sizes == [5]


def test_without_training_facts_it_says_so() -> None:
    editor = learner("malmen", loading.load("tiny-gpt2"), training=None)
    with pytest.raises(EditorError, match="training"):
        trained(editor)


def test_each_epoch_has_its_own_order_and_the_seed_decides() -> None:
    backbone = loading.load("tiny-gpt2")
    orders = {}
    for seed in (0, 0, 1):
        editor = learner("malmen", backbone, epochs=3, seed=seed)
        seen: list[str] = []
        before_each_step(editor, lambda facts, seen=seen: seen.extend(f.identity for f in facts))
        trained(editor, m=5)
        epochs = [tuple(seen[i : i + 5]) for i in (0, 5, 10)]
        assert all(set(epoch) == set(epochs[0]) and len(set(epoch)) == 5 for epoch in epochs)
        assert len(set(epochs)) > 1
        assert orders.setdefault(seed, epochs) == epochs
    assert orders[0] != orders[1]


def test_training_draws_nothing_from_the_global_generator_and_repeats_itself() -> None:
    backbone = loading.load("tiny-gpt2")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = trained(learner("malmen", backbone))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert same(trained(learner("malmen", backbone)), first)
    assert not same(trained(learner("malmen", backbone, seed=1)), first)


# -- interruption ----------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "kind", "died_before", "seconds"),
    [
        ("tiny-llama", "malmen", 3, 0.0),  # a checkpoint after every step
        ("tiny-llama", "mend", 4, 0.0),
        ("tiny-t5", "malmen", 3, 1e9),  # none before the end
        ("tiny-gpt2", "malmen", 0, 0.0),
    ],
)
def test_a_killed_training_goes_on_and_ends_in_the_same_network(
    name: str, kind: str, died_before: int, seconds: float, tmp_path: Path, monkeypatch
) -> None:
    """Two steps an epoch, three epochs, another rephrase in each; the curves agree as well."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    backbone = loading.load(name)
    editors = [
        learner(kind, backbone, tmp_path / folder, epochs=3, validate_every=2)
        for folder in ("unbroken", "broken", "broken")
    ]
    unbroken, broken, again = editors
    whole = trained(unbroken)
    steps: list[int] = []

    def die(facts: Any) -> None:
        if len(steps) == died_before:
            raise Killed
        steps.append(1)

    before_each_step(broken, die)
    with pytest.raises(Killed):
        trained(broken)
    more: list[int] = []
    before_each_step(again, lambda facts: more.append(1))
    assert same(trained(again), whole)
    assert len(more) == 6 - (0 if seconds else died_before)
    assert curve_of(again) == curve_of(unbroken) and len(curve_of(again)) >= 6


def test_an_editor_whose_training_was_interrupted_does_not_edit_with_half_a_network() -> None:
    backbone = loading.load("tiny-gpt2")
    whole = trained(learner("malmen", backbone))
    editor = learner("malmen", backbone)
    count: list[int] = []

    def die_once(facts: Any) -> None:
        count.append(1)
        if len(count) == 2:
            raise Killed

    before_each_step(editor, die_once)
    with pytest.raises(Killed):
        trained(editor)
    assert same(trained(editor), whole)


def test_a_network_does_not_depend_on_what_was_trained_before_it() -> None:
    """Other seeds take the facts in another order; prefixes kept from their trainings change no
    bit."""
    backbone = loading.load("tiny-llama")
    alone = trained(learner("malmen", backbone, seed=2))
    kept = Kept()
    after = [trained(learner("malmen", backbone, seed=seed, kept=kept)) for seed in (0, 1, 2)]
    assert kept.held > 0
    assert same(after[-1], alone)


def test_an_editor_that_is_fitted_for_another_m_gets_the_network_of_that_m() -> None:
    backbone = loading.load("tiny-gpt2")
    editor = learner("malmen", backbone)
    trained(editor, 2)
    again = trained(editor, 4)
    assert same(again, trained(learner("malmen", backbone), 4))
    assert editor.trained.record.m == 4
    assert same(trained(editor, 4), again)
