"""Rows prepared on a lower frozen prefix: equal to the last bit, and the lower blocks rest."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.passes import decoding
from lib.backbones.passes.decoding import PromptBatch
from lib.backbones.passes.hooks import map_tensors
from lib.backbones.passes.kept import Kept
from lib.backbones.passes.prefix import FrozenPrefix
from lib.backbones.sources import loading
from lib.errors import BackboneError
from lib.evaluation import evaluator
from tests.conftest import CAUSAL, edits

PROMPTS = tuple(edit.prompt for edit in edits(3))
TARGETS = tuple(edit.target for edit in edits(3))
CLASSES = ("0", "1", "0")


def rows_at(
    backbone: Backbone, first: int, watch: tuple[str, ...] = (), below: int = 0
) -> decoding.PromptBatch:
    """Rows with a prefix of `first` blocks, from scratch or on top of one of `below` blocks."""
    targets = CLASSES if backbone.family.kind == "classifier" else TARGETS
    lower = (FrozenPrefix(backbone, below), rows_at(backbone, below)) if below else None
    return decoding.prepare(
        backbone, FrozenPrefix(backbone, first), PROMPTS, targets, watch=watch, below=lower
    )


def tensors(value: object) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(value, lambda tensor: found.append(tensor) or tensor)
    return found


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-gptj", "tiny-t5", "tiny-bert"])
def test_a_prefix_may_stand_on_a_lower_one(name: str) -> None:
    backbone = loading.load(name)
    first = backbone.n_blocks("encoder" if backbone.family.kind == "seq2seq" else None) - 1
    watch = (backbone.path("mlp_out", first - 1, stack="encoder"),)
    whole, stacked = rows_at(backbone, first, watch), rows_at(backbone, first, watch, below=1)
    for one, other in (
        (whole.state.output, stacked.state.output),
        (list(whole.state.watched.values()), list(stacked.state.watched.values())),
        (list(whole.state.watched_inputs.values()), list(stacked.state.watched_inputs.values())),
    ):
        assert tensors(one), "nothing was compared"
        assert all(map(torch.equal, tensors(one), tensors(other)))
    if backbone.family.kind == "causal":
        for index in range(first):
            layers = [made.cache.layers[index] for made in (whole, stacked)]
            assert torch.equal(layers[0].keys, layers[1].keys)
            assert torch.equal(layers[0].values, layers[1].values)
        fed = [tensors(made.fed.output) for made in (whole, stacked)]
        assert fed[0]
        assert all(map(torch.equal, *fed))


def counted(module: nn.Module) -> list[nn.Module]:
    """A list that grows with every call of the module."""
    calls: list[nn.Module] = []
    module.register_forward_hook(lambda *arguments: calls.append(arguments[0]))
    return calls


def test_the_lower_blocks_are_not_run_again() -> None:
    backbone = loading.load("tiny-llama")
    passes = counted(backbone.module("mlp", 0))
    rows_at(backbone, 4, below=2)
    assert len(passes) == 2  # of the lower prefix: prompts, then targets


@pytest.mark.parametrize("name", CAUSAL)
def test_the_frozen_blocks_read_a_target_once(name: str) -> None:
    """Scores equal those of passes through all blocks, bit for bit."""
    backbone, others = loading.load(name), (TARGETS[1], "", TARGETS[0])
    prefix = FrozenPrefix(backbone, 2)
    batch = decoding.prepare(backbone, prefix, PROMPTS, TARGETS, others=others)
    whole = replace(batch, fed=None, fed_others=None)
    kept, plain = (decoding.Continuation(backbone, prefix, rows) for rows in (batch, whole))
    frozen, edited = (counted(backbone.module("attention", index)) for index in (1, 2))
    found = [kept.score(), kept.score(others=True), kept.score()]
    assert (len(frozen), len(edited)) == (0, 3)
    assert found == [plain.score(), plain.score(others=True), plain.score()]
    assert (len(frozen), len(edited)) == (3, 6)
    assert kept.greedy(5) == plain.greedy(5)
    assert batch.bytes > whole.bytes


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("below", [None, 1])
def test_rows_that_are_only_scored_keep_no_keys_and_values(name: str, below: int | None) -> None:
    backbone, others = loading.load(name), (TARGETS[1], "", TARGETS[0])

    def prepared(first: int, decodes: bool, lower: tuple | None = None) -> PromptBatch:
        return decoding.prepare(
            backbone, FrozenPrefix(backbone, first), PROMPTS, TARGETS,
            others=others, decodes=decodes, below=lower,
        )  # fmt: skip

    start = None if below is None else (FrozenPrefix(backbone, below), prepared(below, False))
    decoded, scored = prepared(2, True), prepared(2, False, start)
    assert scored.cache is None
    assert scored.bytes < decoded.bytes
    one, other = (
        decoding.Continuation(backbone, FrozenPrefix(backbone, 2), rows)
        for rows in (decoded, scored)
    )
    assert one.score() == other.score()
    assert one.score(others=True) == other.score(others=True)
    with pytest.raises(BackboneError, match="decodes=True"):
        other.greedy(2)
    above = prepared(3, True, (FrozenPrefix(backbone, 2), scored))  # what is missing is made
    whole = decoding.Continuation(backbone, FrozenPrefix(backbone, 3), above)
    assert whole.greedy(5) == one.greedy(5)


class Stub:
    """What `ReadyRows` reads of an editor."""

    def __init__(self, backbone: Backbone, first: int, watch: tuple[str, ...] = ()) -> None:
        self.backbone, self.watch = backbone, watch
        self.prefix = FrozenPrefix(backbone, first)
        self.config = type("Config", (), {"max_length": None, "full_width": False})


def test_editors_that_share_a_backbone_share_its_lower_blocks() -> None:
    backbone, kept = loading.load("tiny-llama"), Kept()
    rows = (PROMPTS, TARGETS, ("", "", ""))
    seen = counted(backbone.module("mlp", 0))
    evaluator.ReadyRows(Stub(backbone, 2), kept, whole=False, decodes=True).of(rows)
    made = evaluator.ReadyRows(Stub(backbone, 4), kept, whole=False, decodes=True).of(rows)
    assert len(seen) == 2  # prompts, then targets
    # A module of the lower blocks that was not watched then has to be run again.
    low = (backbone.path("mlp_out", 1),)
    watched = evaluator.ReadyRows(Stub(backbone, 4, low), kept, whole=False, decodes=True).of(rows)
    assert len(seen) == 4
    assert torch.equal(made.state.output, rows_at(backbone, 4).state.output)
    assert set(watched.state.watched) == set(low)
