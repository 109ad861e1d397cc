"""WilKE against separate ROME editors, one for each candidate block (elder 7)."""

from pathlib import Path

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.editors.base import Editor
from lib.editors.locate.editor import LocateEditor
from lib.editors.locate.rome import WilkeConfig
from lib.errors import EditorError
from lib.storage.cache import Cache
from tests.editors.locate.locate_cases import (
    CORPUS,
    FIRST,
    SECOND,
    as_edits,
    editor_of,
    gap,
    oracle_of,
    weight_of,
)
from tests.editors.locate.reference_updates import moments

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")

BLOCKS = (1, 2, 4)


def wilke(backbone: Backbone, folder: Path | None = None, **changes: object) -> Editor:
    editor = editor_of("wilke", backbone, blocks=BLOCKS, value_clamp=4.0, **changes)
    editor.values_cache = Cache(folder) if folder else None
    return editor


def rome(backbone: Backbone, block: int, folder: Path | None = None) -> Editor:
    editor = editor_of("rome", backbone, blocks=(block,), moment_adjustment=True)
    editor.values_cache = Cache(folder) if folder else None
    return editor


def rome_everywhere(state: dict[str, torch.Tensor], edit: object) -> dict[int, torch.Tensor]:
    """The weight that ROME gives each candidate block of a model in a given state."""
    weights = {}
    for block in BLOCKS:
        backbone = loading.load("tiny-llama")
        backbone.model.load_state_dict(state)
        editor = rome(backbone, block)
        editor.edit([edit])
        weights[block] = weight_of(editor, block).clone()
    return weights


def test_every_edit_is_romes_at_the_block_that_changes_least() -> None:
    """Least against the block's own weight, of which one is large here."""
    backbone = loading.load("tiny-llama")
    backbone.module("mlp_out", BLOCKS[1]).weight.data *= 4
    editor, blocks, absolute = wilke(backbone), [], []
    for edit in as_edits(FIRST[:2]):
        state = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
        before = {block: weight_of(editor, block).clone() for block in BLOCKS}
        after = rome_everywhere(state, edit)
        sizes = {b: float((after[b] - before[b]).norm()) for b in BLOCKS}
        shares = {b: sizes[b] / float(before[b].norm()) for b in BLOCKS}
        blocks.append(min(shares, key=shares.get))
        absolute.append(min(sizes, key=sizes.get))
        report = editor.edit([edit])
        for block in BLOCKS:
            expected = after[block] if block == blocks[-1] else before[block]
            assert torch.equal(weight_of(editor, block), expected)
        times = {f"block {block}": blocks.count(block) for block in set(blocks)}
        assert {k: v for k, v in report.counts.items() if k.startswith("block")} == times
    assert len(set(blocks)) > 1 and absolute != blocks  # or the choice would not be seen
    changed = {backbone.path("mlp_out", block) for block in blocks}
    assert set(editor.tensors()["weights"]) == changed


def test_the_second_moment_turns_the_key() -> None:
    """Rows of ROME's change point along C^-1 k*, with C from a pass of its own in float64."""
    backbone = loading.load("tiny-llama")
    editor, reference = rome(backbone, 2), oracle_of(rome(backbone, 2))
    start = weight_of(editor, 2).clone()
    rows = [reference.row(context, FIRST[0]) for context in reference.contexts]
    key = reference.at_subject(rows, 2, "mlp_out", "input").mean(dim=0)
    expected = torch.linalg.solve(moments(backbone, CORPUS.texts, (2,))[2], key)
    editor.edit(as_edits(FIRST[:1]))
    turned = torch.linalg.svd(weight_of(editor, 2) - start).Vh[0]
    cosine = (turned @ expected) / expected.norm()
    assert abs(cosine) > 1 - 1e-6
    assert abs(turned @ key) / key.norm() < 0.99


def test_an_error_inside_a_batch_changes_nothing(monkeypatch) -> None:
    editor = wilke(loading.load("tiny-llama"))
    editor.edit(as_edits(FIRST[:1]))
    weights = {block: weight_of(editor, block).clone() for block in BLOCKS}
    known, choose, calls = dict(editor.counts()), type(editor).choose, []

    def fail(self, updates):
        calls.append(updates)
        if len(calls) == 3:  # two of three updates are written by then
            raise RuntimeError("out of memory")
        return choose(self, updates)

    monkeypatch.setattr(type(editor), "choose", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        editor.edit(as_edits(SECOND[:3]))
    assert all(torch.equal(weight_of(editor, block), weights[block]) for block in BLOCKS)
    assert editor.counts() == known


def test_a_run_resumed_between_edits_equals_the_unbroken_one(tmp_path) -> None:
    unbroken = wilke(loading.load("tiny-llama"))
    unbroken.edit(as_edits(FIRST[:1]))
    unbroken.save(tmp_path / "one")
    unbroken.edit(as_edits(SECOND[:1]))
    resumed = wilke(loading.load("tiny-llama"))
    resumed.load(tmp_path / "one")
    resumed.edit(as_edits(SECOND[:1]))
    pairs = ((weight_of(e, block) for block in BLOCKS) for e in (unbroken, resumed))
    assert all(torch.equal(one, other) for one, other in zip(*pairs, strict=True))
    assert resumed.counts() == unbroken.counts()
    resumed.rollback()
    fresh = wilke(loading.load("tiny-llama"))
    assert all(gap(weight_of(resumed, b), weight_of(fresh, b)) == 0 for b in BLOCKS)


def test_values_are_shared_with_rome_by_block_and_never_behind_an_edit(
    tmp_path, monkeypatch
) -> None:
    blocks, search = [], LocateEditor._search

    def counted(editor, requests, part, block):
        blocks.append(block)
        return search(editor, requests, part, block)

    monkeypatch.setattr(LocateEditor, "_search", counted)
    for edit in as_edits(FIRST[:2]):
        rome(loading.load("tiny-llama"), BLOCKS[1], tmp_path).edit([edit])
    editor = wilke(loading.load("tiny-llama"), tmp_path)
    editor.edit(as_edits(FIRST[:2]))
    assert blocks == [BLOCKS[1], BLOCKS[1], BLOCKS[0], BLOCKS[2], *BLOCKS]
    plain = wilke(loading.load("tiny-llama"))
    plain.edit(as_edits(FIRST[:2]))
    assert all(torch.equal(weight_of(plain, b), weight_of(editor, b)) for b in BLOCKS)


def test_too_little_text_for_the_moment_says_what_to_do() -> None:
    editor = wilke(loading.load("tiny-gpt2"), statistics_documents=1)
    with pytest.raises(EditorError, match="statistics_tokens"):
        editor.edit(as_edits(FIRST[:1]))


def test_defaults_are_the_published_ones() -> None:
    config = WilkeConfig()
    assert config.blocks == tuple(range(24)) and config.moment_adjustment
    assert (config.value_clamp, config.value_steps, config.value_lr) == (4.0, 20, 0.5)
