"""What is kept of the unedited model gives the rows, losses and networks of passes made anew."""

import math

import pytest
import torch

from lib.backbones.passes.fact_passes import (
    FactPasses,
    edit_pairs,
    passes_of_batch,
    unrelated_pairs,
)
from lib.backbones.passes.kept import Kept
from lib.backbones.passes.logits import label_logits, logits_of
from lib.backbones.passes.prefix import FrozenPrefix
from lib.backbones.sources import loading
from lib.editors.hypernet import editor as hyper_editor
from lib.editors.hypernet import unedited
from lib.editors.hypernet.unedited import UneditedFacts
from tests.editors.hypernet.malmen_cases import (
    FAMILIES,
    editor_of,
    everything,
    facts_for,
    gap,
    gradients,
    learner,
    paths,
    same,
    trained,
    training,
)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_kept_rows_and_states_equal_those_of_a_pass(name: str, tokens: str) -> None:
    """Mini-batches of three facts, kept from passes over all of them: only the mean differs."""
    backbone = loading.load(name, dtype=torch.float64)
    editor, facts = editor_of("malmen", backbone, tokens=tokens, batch_rows=3), facts_for(backbone)
    anew, losses = editor.cache(editor._batches(edit_pairs(facts)), unedited=True)
    assert len(losses) == 2
    editor.known.fill(edit_pairs(facts), unrelated_pairs(facts))
    kept, losses = editor.cache(editor._batches(edit_pairs(facts)), unedited=True)
    assert losses == []
    for path in paths(editor):
        for ours, theirs in zip(everything(kept, path), everything(anew, path), strict=True):
            assert theirs.norm() > 0
            assert gap(ours, theirs) < 1e-6  # GPT-J's attention works in float32
    for batch in editor._batches(unrelated_pairs(facts)):
        with torch.no_grad():
            logits, _ = label_logits(backbone, batch.rows)
        found = logits_of(backbone, editor.known.states(batch.pairs))
        assert found.shape == logits.shape
        assert gap(found, logits) < 1e-6


@pytest.mark.parametrize(("name", "kind"), [("tiny-gpt2", "malmen"), ("tiny-bert", "mend")])
def test_meta_gradients_on_what_is_kept_are_those_of_passes_made_anew(name: str, kind: str) -> None:
    backbone = loading.load(name, dtype=torch.float64)
    facts, found = facts_for(backbone), []
    for keeps in (False, True):
        editor = editor_of(kind, backbone)
        if keeps:
            editor.known.fill(edit_pairs(facts), unrelated_pairs(facts))
        losses = editor.meta_gradients(facts)
        found.append((losses, gradients(editor)))
    (losses, anew), (kept_losses, kept) = found
    assert kept_losses.locality == pytest.approx(losses.locality, rel=1e-9)
    for ours, theirs in zip(kept, anew, strict=True):
        for key in theirs.keys() - ({"alpha"} if kind == "mend" else set()):
            assert theirs[key].norm() > 0
            assert gap(ours[key], theirs[key]) < 1e-9


def test_another_m_and_seed_trace_nothing_again_and_get_what_they_would_alone(monkeypatch) -> None:
    backbone, kept = loading.load("tiny-gpt2"), Kept()
    passes = []
    for module in (unedited, hyper_editor):
        plain = module.trace
        monkeypatch.setattr(
            module, "trace", lambda *a, plain=plain, **k: passes.append(1) or plain(*a, **k)
        )
    trained(learner("malmen", backbone, kept=kept))
    assert len(passes) == 1  # seven facts in one pass
    together = trained(learner("malmen", backbone, kept=kept, seed=3, rank=5), m=4)
    assert len(passes) == 1
    assert same(together, trained(learner("malmen", backbone, seed=3, rank=5), m=4))


def test_facts_that_need_too_much_are_traced_as_they_come(monkeypatch) -> None:
    backbone = loading.load("tiny-gpt2")
    monkeypatch.setattr(unedited, "BUDGET", 100)
    editor = learner("malmen", backbone)
    network = trained(editor)
    facts = training(backbone).train
    assert editor.known.rows(edit_pairs(facts)[:1]) is None
    assert editor.known.states(unrelated_pairs(facts)[:1]) is None
    monkeypatch.setattr(UneditedFacts, "fill", lambda self, edits, unrelated: None)
    assert same(trained(learner("malmen", backbone)), network)


def test_a_batch_that_another_editor_edited_runs_its_frozen_blocks_once(monkeypatch) -> None:
    backbone, kept = loading.load("tiny-gpt2"), Kept()
    batch = facts_for(backbone, 4)
    recorded = []
    plain = FrozenPrefix.record
    monkeypatch.setattr(
        FrozenPrefix, "record", lambda self, *a, **k: recorded.append(1) or plain(self, *a, **k)
    )
    shifts = []
    for memory in (kept, kept, Kept(), Kept(limit=1)):
        editor = editor_of("malmen", backbone, resources={"kept": memory}, loss_after=True)
        report = editor.edit(batch)
        assert report.loss_last != report.loss_first
        shifts.append(editor.tensors()["shifts"])
        editor.close()
        assert len(recorded) == (1, 1, 2, 3)[len(shifts) - 1]
    assert all(same(each, shifts[0]) for each in shifts[1:])


def test_the_loss_after_an_edit_is_read_where_it_is_asked_for() -> None:
    backbone = loading.load("tiny-gpt2")
    editor = editor_of("malmen", backbone)
    report = editor.edit(facts_for(backbone, 2))
    assert math.isfinite(report.loss_first) and math.isnan(report.loss_last)


def test_a_batch_without_room_leaves_no_trace() -> None:
    backbone, full = loading.load("tiny-gpt2"), Kept(limit=1)
    prefix = FrozenPrefix(backbone, 2)
    pairs = edit_pairs(facts_for(backbone, 2))
    passes = passes_of_batch(prefix, pairs, None, full)
    assert passes.kept and not full.held and not full.facts
    assert isinstance(passes, FactPasses)
