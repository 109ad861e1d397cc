"""UltraEdit: the parity checks of the study's notes (section 9 there) that need no training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors.hypernet.network import Standardiser
from lib.editors.hypernet.ridge import wanted_outputs
from lib.editors.hypernet.ultraedit import UltraEdit, UltraEditConfig, wanted_by_rows
from lib.editors.parts.sites import Site
from lib.errors import EditorError
from tests.conftest import prompt_logits
from tests.editors.hypernet.malmen_cases import FAMILIES, editor_of, facts_for, gap, same, sites
from tests.editors.hypernet.reference_sequence import Lifelong
from tests.editors.hypernet.test_gradients import PRECISE

QUICK: dict[str, Any] = {"eta": 1e-3, "batch_rows": 2, "editor_rows": 7}


def editor_on(backbone: Backbone, **changes: Any) -> UltraEdit:
    chosen = tuple(Site(**site) for site in changes.pop("sites", sites(backbone)))
    return UltraEdit(backbone, UltraEditConfig(sites=chosen, **QUICK | changes))


def oracle_of(editor: UltraEdit) -> Lifelong:
    config = editor.config
    return Lifelong(
        editor.backbone, editor.paths, eta=config.eta, ridge=config.ridge,
        batch_rows=config.batch_rows, tokens=config.tokens, mode=config.standardise,
    )  # fmt: skip


def turns(backbone: Backbone) -> list[tuple[Edit, ...]]:
    """Four batches of several mini-batches each, the last one short."""
    facts = facts_for(backbone, 9)
    return [facts[:3], facts[3:5], facts[5:8], facts[8:]]


def shifts(editor: UltraEdit) -> dict[str, Tensor]:
    return {path: shift.clone() for path, shift in editor.tensors()["shifts"].items()}


def test_defaults_are_the_official_ones() -> None:
    config = UltraEditConfig()
    assert (config.eta, config.ridge, config.batch_rows) == (1e-6, 1.0, 10)
    assert (config.tokens, config.standardise, config.normalise) == (
        "answer", "released", "lifelong",
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["released", "corrected"])
@pytest.mark.parametrize("name", FAMILIES)
def test_01_every_turn_equals_the_reference_in_float64(name: str, mode: str) -> None:
    """On the model that the turns before have moved, with the statistics of all rows so far; layers
    of two shapes, primal and dual."""
    backbone = loading.load(name, dtype=torch.float64)
    editor = editor_on(backbone, standardise=mode)
    reference, total = oracle_of(editor), {}
    for facts in turns(backbone):
        editor.edit(facts)
        for path, S in reference.edit(facts).items():
            total[path] = total.get(path, 0) + S
        for path, ours in shifts(editor).items():
            assert total[path].norm() > 1e-3 * reference.original[path].norm()
            assert gap(ours, total[path]) < PRECISE.get(name, 1e-10), path


@pytest.mark.parametrize("options", [{"tokens": "all"}, {"ridge": 10.0}, {"batch_rows": 5}])
def test_01_every_option_equals_the_reference(options: dict[str, Any]) -> None:
    backbone = loading.load("tiny-llama", dtype=torch.float64)
    editor = editor_on(backbone, **options)
    reference = oracle_of(editor)
    theirs = [reference.edit(facts) for facts in turns(backbone)]
    for facts in turns(backbone):
        editor.edit(facts)
    for path, ours in shifts(editor).items():
        assert gap(ours, sum(one[path] for one in theirs)) < 1e-10


def test_02_untrained_rledit_with_its_keys_standardised_too_is_ultraedit() -> None:
    """The finding: UltraEdit is RLEdit before any training, but for k^.k^ in place of k.k^ (the
    ridge of an untrained network is 1). Exactly, over turns that move model and statistics."""
    backbone = loading.load("tiny-llama", dtype=torch.float64)
    untrained = editor_of("rledit", backbone, random=False)
    untrained.use_network(untrained.new_network().double())
    for net in untrained.network.nets.values():
        net.eta.data.fill_(QUICK["eta"])
    released = untrained.wanted
    keys_alone: list[float] = []

    def standardised_keys(path: str, keys: Tensor, gradients: Tensor) -> Tensor:
        net, module = untrained.network.of(path)
        pseudo_keys, pseudo_gradients = net(keys, gradients, module)
        found = wanted_outputs(net.eta[module], pseudo_keys, pseudo_keys, pseudo_gradients)
        keys_alone.append(gap(found, released(path, keys, gradients)))
        return found

    untrained.wanted = standardised_keys
    found = []
    for editor in (untrained, editor_on(backbone)):
        for facts in turns(backbone):
            editor.edit(facts)
        found.append(shifts(editor))
        editor.close()
    for path, ours in found[1].items():
        assert gap(ours, found[0][path]) < 1e-12
    assert min(keys_alone) > 0.01  # and the one difference is one


def test_03_corrected_statistics_do_not_see_how_rows_are_cut() -> None:
    """Released ones do: each block counts its own variance once more."""
    rows = torch.randn(24, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    found = {}
    for mode in ("corrected", "released"):
        for size in (24, 8, 4):
            statistics = Standardiser(5, mode).double()
            for block in rows.split(size):
                statistics.update(block)
            assert gap(statistics.mean, rows.mean(dim=0)) < 1e-12
            found[mode, size] = statistics.m2
    exact = (rows - rows.mean(dim=0)).square().sum(dim=0)
    for size in (24, 8, 4):
        assert gap(found["corrected", size], exact) < 1e-12
        extra = sum(block.var(dim=0) for block in rows.split(size))
        assert gap(found["released", size], exact + extra) < 1e-12


def test_04_the_editors_own_chunks_change_nothing_but_rounding() -> None:
    backbone = loading.load("tiny-gpt2", dtype=torch.float64)
    found = []
    for size in (1, 7, 128):
        editor = editor_on(backbone, editor_rows=size)
        for facts in turns(backbone):
            editor.edit(facts)
        found.append(shifts(editor))
        editor.close()
    for other in found[1:]:
        assert all(gap(other[path], S) < 1e-12 for path, S in found[0].items())


def test_05_going_on_after_save_and_load_is_going_on(tmp_path: Path) -> None:
    """Shifts and statistics, bit for bit; a rollback forgets both."""
    first, second, third, _ = turns(loading.load("tiny-llama"))
    unbroken = editor_on(loading.load("tiny-llama"))
    for facts in (first, second, third):
        unbroken.edit(facts)
    half = editor_on(loading.load("tiny-llama"))
    half.edit(first)
    alone = half.tensors()
    half.edit(second)
    half.save(tmp_path / "half")
    resumed = editor_on(loading.load("tiny-llama"))
    resumed.load(tmp_path / "half")
    resumed.edit(third)
    for group, tensors in unbroken.tensors().items():
        assert same(tensors, resumed.tensors()[group])
    half.rollback()
    assert half.tensors() == {}
    half.edit(first)
    for group, tensors in alone.items():
        assert same(tensors, half.tensors()[group])


def test_06_no_step_is_no_edit_and_a_small_one_goes_down() -> None:
    backbone = loading.load("tiny-llama")
    facts = facts_for(backbone, 4)
    prompts = [fact.prompt for fact in facts]
    before = prompt_logits(backbone, prompts)
    with_none = editor_on(backbone, eta=0.0)
    with_none.edit(facts)
    assert torch.equal(prompt_logits(backbone, prompts), before)
    with_none.close()
    report = editor_on(backbone, eta=1e-6, loss_after=True).edit(facts)
    assert report.loss_last < report.loss_first


def test_12_layers_of_one_shape_share_statistics_and_gate_and_up_their_keys() -> None:
    backbone = loading.load("tiny-llama")
    both = [{"part": part, "block": 2} for part in ("mlp_gate", "mlp_in", "mlp_out")]
    editor = editor_on(backbone, sites=both)
    gate, up, down = editor.paths
    assert editor.standardiser(gate) is editor.standardiser(up)
    assert editor.standardiser(gate) is not editor.standardiser(down)
    store, _ = editor.cache(editor.edit_batches(facts_for(backbone, 4)), learn=True)
    (of_gate, _), (of_up, _) = (next(editor.chunks(store, path)) for path in (gate, up))
    assert torch.equal(of_gate, of_up)
    editor.predict(store)
    assert editor.standardiser(gate).count == 2 * store.rows(gate)


def test_statistics_of_a_batch_alone_forget_the_batches_before() -> None:
    """What "lifelong" adds, on the weights that the first batch left to both."""
    backbone = loading.load("tiny-llama", dtype=torch.float64)
    first, second, *_ = turns(backbone)
    found = {}
    for normalise in ("lifelong", "batch"):
        editor = editor_on(backbone, normalise=normalise)
        rows = []
        for facts in (first, second):
            before = shifts(editor) if rows else {}
            rows.append(editor.edit(facts).counts["rows"])
        counts = [v for name, v in editor.tensors()["statistics"].items() if "count" in name]
        assert float(sum(counts)) == (sum(rows) if normalise == "lifelong" else rows[1])
        found[normalise] = before, shifts(editor)
        editor.close()
    (before, after), (same_before, anew) = found.values()
    assert all(torch.equal(before[path], same_before[path]) for path in before)
    assert all(gap(after[path], anew[path]) > 1e-3 for path in after)


def test_a_first_batch_of_one_row_is_refused_and_leaves_nothing() -> None:
    backbone = loading.load("tiny-bert")
    editor = editor_on(backbone)
    facts = facts_for(backbone, 3)
    with pytest.raises(EditorError, match="edit two facts or more at once first"):
        editor.edit(facts[:1])
    assert editor.tensors() == {} and editor.n_edits == 0
    editor.edit(facts[:2])
    editor.edit(facts[2:])
    assert editor.n_edits == 3


def test_rows_ask_for_their_own_gradient_downhill() -> None:
    """d_j of hand-made rows under statistics of mean 0 and deviation 1."""
    standardiser = Standardiser(3)
    standardiser.std.fill_(1.0)
    keys, gradients = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[0.5], [-1.0]])
    expected = torch.tensor([[-0.1 * 5 * 0.5], [0.1 * 9 * 1.0]])
    assert torch.allclose(wanted_by_rows(0.1, keys, gradients, standardiser), expected)


def test_it_says_how_far_each_layer_has_moved() -> None:
    backbone = loading.load("tiny-llama")
    weights = dict(backbone.model.named_parameters())
    editor = editor_on(backbone)
    before = {path: weights[f"{path}.weight"].detach().clone() for path in editor.paths}
    editor.edit(facts_for(backbone, 4))
    rows = {row["path"]: row for row in editor.observe(None)}
    assert set(rows) == set(editor.paths)
    for path, row in rows.items():
        moved = weights[f"{path}.weight"].detach() - before[path]
        assert row["shift_norm"] == pytest.approx(moved.norm().item(), rel=1e-4)
        assert row["weight_norm"] == pytest.approx(before[path].norm().item(), rel=1e-6)
