"""The shifts and meta-gradients of MALMEN and MEND against end-to-end autograd: parity checks 4, 8,
14 and 16 of the study's notes, on facts that fill several mini-batches and layers of two shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.editors.hypernet.malmen import Malmen
from lib.editors.hypernet.ridge import rank_one_shifts, wanted_outputs
from tests.editors.hypernet.malmen_cases import (
    FAMILIES,
    editor_of,
    facts_for,
    gap,
    gradients,
    networks,
    oracle_of,
    paths,
    stored,
)
from tests.editors.hypernet.reference_hypernetwork import ridge_shift, summed_shift, wanted

METHODS = pytest.mark.parametrize("kind", ["malmen", "mend"])
PRECISE = {"tiny-gptj": 1e-6}  # its attention works in float32 whatever the weights are


def compare(editor: Malmen, theirs: list[dict[str, Tensor]], limit: float, unused=()) -> None:
    """Every parameter's gradient against the reference's, and none of them zero by accident."""
    for mine, other in zip(gradients(editor), theirs, strict=True):
        for name, expected in other.items():
            if name in unused:
                assert all(g is None or g.eq(0).all() for g in (mine[name], expected)), name
            else:
                assert expected.abs().max() > 1e-6, f"{name} is not tested"
                assert gap(mine[name], expected) < limit, name


def precise(name: str) -> Backbone:
    return loading.load(name, dtype=torch.float64)


@METHODS
@pytest.mark.parametrize("name", FAMILIES)
def test_04_a_whole_meta_step_equals_autograd_in_float64(name: str, kind: str) -> None:
    """5 facts in mini-batches of 2: sums of losses, statistics, solve, edited model and all."""
    backbone = precise(name)
    editor, facts = editor_of(kind, backbone), facts_for(backbone)
    reference = oracle_of(editor)
    losses = editor.meta_gradients(facts)
    compare(
        editor,
        reference.gradients(facts),
        PRECISE.get(name, 1e-8),
        unused=("alpha",) if kind == "mend" else (),
    )
    generality, locality = (float(loss.detach()) for loss in losses_after(editor, facts))
    assert losses.generality * 3 == pytest.approx(generality, rel=1e-6)
    assert losses.locality * 3 == pytest.approx(locality, rel=1e-6)


def losses_after(editor: Malmen, facts) -> tuple[Tensor, Tensor]:
    """L_gen and L_loc of a meta-step that the editor has already taken."""
    reference = oracle_of(editor)
    weights = {path: reference.original[path] + S for path, S in reference.shifts(facts).items()}
    return reference.losses(facts, weights)


@pytest.mark.parametrize("name", FAMILIES)
def test_04_and_within_1e4_in_float32(name: str) -> None:
    backbone = loading.load(name)
    editor, facts = editor_of("malmen", backbone), facts_for(backbone)
    reference = oracle_of(editor)
    editor.meta_gradients(facts)
    theirs = reference.gradients(facts)
    compare(editor, [{k: g for k, g in one.items() if k != "alpha"} for one in theirs], 1e-4)
    compare(editor, [{"alpha": one["alpha"]} for one in theirs], 1e-3)  # <X, S> cancels


OPTIONS: list[dict[str, Any]] = [
    {"ridge": "fixed"},
    {"ridge": "none"},
    {"tokens": "all"},
    {"standardise": "corrected"},
    {"standardise": "off"},
    {"loc_coef": 30.0},
    {"n_blocks": 1},
    {"batch_rows": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, *o.items())))
def test_04_every_option_equals_the_reference(options: dict[str, Any]) -> None:
    backbone = precise("tiny-llama")
    editor, facts = editor_of("malmen", backbone, **options), facts_for(backbone)
    unused = ("alpha",) if "ridge" in options else ()
    for net in networks(editor):
        net.alpha.data.mul_(0 if unused else 1)  # where it is not learned it stays at its start
    reference = oracle_of(editor)
    editor.meta_gradients(facts)
    compare(editor, reference.gradients(facts), 1e-8, unused)


def test_a_second_meta_step_starts_from_clean_gradients_and_kept_statistics() -> None:
    backbone = precise("tiny-gpt2")
    editor = editor_of("malmen", backbone)
    reference = oracle_of(editor)
    for facts in (facts_for(backbone, 4), facts_for(backbone, 3, start=4)):
        editor.meta_gradients(facts)
        theirs = reference.gradients(facts)
    compare(editor, theirs, 1e-8)
    for net, other in zip(networks(editor), reference.distinct, strict=True):
        assert gap(net.standardiser.mean, other.standardiser.mean) < 1e-12
        assert gap(net.standardiser.std, other.standardiser.std) < 1e-12


@METHODS
@pytest.mark.parametrize("name", FAMILIES)
def test_the_shifts_of_a_batch_equal_the_reference(name: str, kind: str) -> None:
    """Editing leaves the statistics alone, and works at any number of facts."""
    backbone = loading.load(name)
    editor = editor_of(kind, backbone, batch_rows=3)
    reference = oracle_of(editor)
    for facts in (facts_for(backbone), facts_for(backbone, 1, start=3)):
        ours, theirs = editor.shifts_of(facts), reference.shifts(facts)
        for path in paths(editor):
            assert ours[path].shape == reference.original[path].shape
            assert theirs[path].norm() > 1e-2 * reference.original[path].norm()
            assert gap(ours[path], theirs[path]) < 1e-4


# -- 8: row order and chunks -----------------------------------------------------------------------


@METHODS
def test_08_the_order_of_token_rows_does_not_matter(kind: str) -> None:
    backbone = loading.load("tiny-llama")
    editor = editor_of(kind, backbone)
    path = paths(editor)[1]
    generator = torch.Generator().manual_seed(5)
    d, width = 64, 32
    K, G, gamma = (torch.randn(s, generator=generator) for s in ((40, d), (40, width), (d, width)))
    found = []
    for order in (torch.arange(40), torch.randperm(40, generator=generator)):
        rows = stored(path, K[order], G[order])
        editor.network.zero_grad()
        with torch.no_grad():
            S, solve = editor.shift(path, rows)
        for proxy in editor.proxies(path, rows, gamma, solve):
            proxy().backward()
        net, _ = editor.network.of(path)
        found.append([S, *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    assert len(found[0]) > 6
    for one, other in zip(*found, strict=True):
        assert gap(one, other.double()) < 1e-5  # 1e-6 but for the solve's condition


@METHODS
def test_08_the_editors_own_mini_batch_changes_nothing_but_rounding(kind: str) -> None:
    backbone = precise("tiny-gpt2")
    facts = facts_for(backbone)
    found = []
    for size in (1, 7, 1024):
        editor = editor_of(kind, backbone, editor_rows=size)
        editor.meta_gradients(facts)
        found.append(editor)
    for editor in found[:2]:
        compare(editor, gradients(found[2]), 1e-10, ("alpha",) if kind == "mend" else ())


# -- 14: sums over mini-batches --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-t5", "tiny-bert"])
def test_14_the_same_mini_batches_twice_double_gamma(name: str, monkeypatch) -> None:
    backbone = precise(name)
    editor = editor_of("malmen", backbone, batch_rows=1)
    facts = facts_for(backbone, 3)
    fixed = editor.shifts_of(facts)
    gammas: list[Tensor] = []
    monkeypatch.setattr(editor, "shift", lambda path, store: (fixed[path], None))
    monkeypatch.setattr(editor, "proxies", lambda path, store, gamma, _: gammas.append(gamma) or ())
    editor.meta_gradients(facts)
    editor.meta_gradients((*facts, *facts))
    layers = len(paths(editor))
    for once, twice in zip(gammas[:layers], gammas[layers:], strict=True):
        assert once.norm() > 0
        assert gap(twice, 2 * once) < PRECISE.get(name, 1e-12)


# -- 16: MEND --------------------------------------------------------------------------------------


def test_16_mend_is_the_sum_of_rank_one_shifts_and_malmen_wants_what_each_would_do() -> None:
    generator = torch.Generator().manual_seed(2)
    K, K_, G_ = (
        torch.randn(11, width, generator=generator, dtype=torch.float64) for width in (6, 6, 4)
    )
    eta = torch.tensor(0.3, dtype=torch.float64)
    assert gap(rank_one_shifts(eta, K_, G_), summed_shift(eta, K_, G_)) < 1e-12
    D = wanted_outputs(eta, K, K_, G_)
    assert gap(D, wanted(eta, K, K_, G_)) < 1e-12
    for j in range(11):
        own = rank_one_shifts(eta, K_[j : j + 1], G_[j : j + 1])
        assert gap(D[j], K[j] @ own) < 1e-12


def test_16_with_one_token_the_two_differ_by_the_ridge_alone() -> None:
    backbone = precise("tiny-llama")
    malmen, mend = (editor_of(kind, backbone) for kind in ("malmen", "mend"))
    mend.use_network(malmen.network)
    generator = torch.Generator().manual_seed(3)
    k, g = (torch.randn(1, width, generator=generator, dtype=torch.float64) for width in (64, 32))
    path = paths(malmen)[1]
    net, number = malmen.network.of(path)
    with torch.no_grad():
        (solved, _), (summed, _) = (e.shift(path, stored(path, k, g)) for e in (malmen, mend))
        ridge = net.alpha[number].exp()
        expected = k @ summed * (k @ k.T) / (k @ k.T + ridge)
        assert gap(k @ solved, expected) < 1e-12
        assert gap(solved, ridge_shift(k, k @ summed, ridge)) < 1e-12
