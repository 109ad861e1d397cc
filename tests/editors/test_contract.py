"""What holds for every editor on every architecture: written once, run over all of them."""

from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode_prompts
from lib.backbones.sources import loading
from lib.editors import build, class_of
from lib.editors.base import UNEDITED, Editor
from lib.editors.registry import REGISTRY
from lib.errors import EditorError
from tests.conftest import (
    CAUSAL,
    EDITORS,
    SEQ2SEQ,
    configuration,
    edits,
    generate,
    hooked,
    make,
    prompt_logits,
)
from tests.processes import PATIENCE, start

PROMPTS = [edit.prompt for edit in edits()] + ["who wrote the first letter?", "Name: Ash."]


@pytest.fixture(params=EDITORS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def supported(request: pytest.FixtureRequest) -> None:
    """Pairs of editor and architecture that do not go together: that they are refused is a test
    of its own below."""
    if "kind" not in request.fixturenames:
        return
    kind = request.getfixturevalue("kind")
    for name in {"generator", "classifier"} & set(request.fixturenames):
        backbone = request.getfixturevalue(name)
        if backbone.family.kind not in class_of(kind).kinds:
            pytest.skip(f"{kind} does not edit {backbone.family.kind} backbones")


@pytest.fixture(
    scope="module",
    params=[
        (kind, name)
        for stack, names in (("causal", CAUSAL), ("seq2seq", SEQ2SEQ))
        for name in names
        for kind in EDITORS
        if stack in class_of(kind).kinds
    ],
    ids="-".join,
)
def edited(request: pytest.FixtureRequest) -> Iterator[Editor]:
    """An editor after three edits, for tests that leave it as it is."""
    kind, name = request.param
    editor = make(kind, loading.load(name))
    editor.edit(edits(3))
    yield editor
    editor.close()


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5", "tiny-bert"])
def test_an_unsupported_backbone_is_refused(kind: str, name: str) -> None:
    backbone = loading.load(name)
    if backbone.family.kind in class_of(kind).kinds:
        make(kind, backbone).close()
        return
    with pytest.raises(EditorError, match="does not support"):
        make(kind, backbone)


def test_zero_edits_leave_logits_bit_identical(kind: str, generator: Backbone) -> None:
    before = prompt_logits(generator, PROMPTS)
    make(kind, generator)
    assert torch.equal(prompt_logits(generator, PROMPTS), before)


def test_zero_edits_leave_a_classifier_bit_identical(kind: str, classifier: Backbone) -> None:
    before = prompt_logits(classifier, PROMPTS)
    editor = make(kind, classifier)
    assert torch.equal(prompt_logits(classifier, PROMPTS), before)
    editor.edit(edits(2, classes=True))
    assert not torch.equal(prompt_logits(classifier, PROMPTS[:2]), before[:2])
    editor.close()
    assert torch.equal(prompt_logits(classifier, PROMPTS), before)


def test_edits_change_the_edited_prompts(kind: str, generator: Backbone) -> None:
    prompts = [edit.prompt for edit in edits(2)]
    before = prompt_logits(generator, prompts)
    editor = make(kind, generator)
    report = editor.edit(edits(2))
    assert report.loss_last < report.loss_first
    assert (prompt_logits(generator, prompts) - before).abs().amax(dim=1).min() > 1e-3


def test_rollback_and_close_are_exact(kind: str, generator: Backbone) -> None:
    """And an edit after a rollback equals a first edit."""
    names, hooks = [name for name, _ in generator.model.named_modules()], hooked(generator)
    weights = {k: v.clone() for k, v in generator.model.state_dict().items()}
    before = prompt_logits(generator, PROMPTS)
    editor = make(kind, generator)
    editor.edit(edits(3))
    first = prompt_logits(generator, PROMPTS)
    editor.rollback()
    assert torch.equal(prompt_logits(generator, PROMPTS), before)
    assert editor.n_edits == 0
    editor.edit(edits(3))
    assert torch.equal(prompt_logits(generator, PROMPTS), first)
    editor.close()
    assert [name for name, _ in generator.model.named_modules()] == names
    after = generator.model.state_dict()
    assert set(after) == set(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert torch.equal(prompt_logits(generator, PROMPTS), before)
    assert hooked(generator) == hooks


def load_and_answer(
    connection: Connection, name: str, folder: Path, configurations: dict[str, dict]
) -> None:
    """In another process: the logits of every saved editor. Arrays, as torch shares its tensors'
    memory and this process ends at once."""
    logits = {}
    for kind, configured in configurations.items():
        backbone = loading.load(name)
        make(kind, backbone, **configured).load(folder / kind)
        logits[kind] = prompt_logits(backbone, PROMPTS).numpy()
    connection.send(logits)


@pytest.mark.parametrize("name", [*CAUSAL, *SEQ2SEQ])
def test_saved_edits_load_in_another_process(name: str, tmp_path) -> None:
    """All editors of an architecture at once."""
    kind_of = loading.load(name).family.kind
    kinds = [kind for kind in EDITORS if kind_of in class_of(kind).kinds]
    expected, configurations = {}, {}
    for kind in kinds:
        backbone = loading.load(name)
        editor = make(kind, backbone)
        editor.edit(edits(2))
        editor.edit(edits(4)[2:])
        editor.save(tmp_path / kind)
        expected[kind] = prompt_logits(backbone, PROMPTS).numpy()
        configurations[kind] = configuration(kind, backbone)
    process, connection = start(load_and_answer, name, tmp_path, configurations)
    found = connection.recv()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert [kind for kind in kinds if not np.array_equal(found[kind], expected[kind])] == []


def test_saved_state_holds_what_the_edits_changed_and_its_configuration(
    kind: str, generator: Backbone, tmp_path
) -> None:
    editor = make(kind, generator)
    editor.edit(edits(2))
    editor.save(tmp_path / "saved")
    stored = sum(file.stat().st_size for file in (tmp_path / "saved").iterdir())
    backbone = sum(p.numel() * 4 for p in loading.load(generator.name).model.parameters())
    sizes = {
        name: sum(t.numel() * t.element_size() for t in group.values())
        for name, group in editor.tensors().items()
    }
    changed = sum(sizes.values())
    # Second moments of keys are f x f per edited layer: much of a tiny model, little of a real one.
    assert changed - sizes.get("moments", 0) < backbone / 4
    assert stored < changed + 10_000  # safetensors headers and two JSON files
    editor.close()
    other = make(kind, generator, seed=1)
    with pytest.raises(EditorError, match="configuration"):
        other.load(tmp_path / "saved")
    with pytest.raises(EditorError, match=r"editor\.json"):
        other.load(tmp_path / "nothing")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_one_equals_a_batch_of_many(edited: Editor, side: str) -> None:
    backbone = edited.backbone
    if backbone.family.kind == "seq2seq" and side == "left":
        pytest.skip("T5's relative positions make left padding another input; not supported")
    together = prompt_logits(backbone, PROMPTS, side)
    apart = torch.cat([prompt_logits(backbone, [prompt], side) for prompt in PROMPTS])
    # float32 rounding differs with the shape of the batch; an effect of padding is 100x larger
    assert torch.allclose(together, apart, atol=2e-4, rtol=1e-4)


def test_generate_gives_the_same_text_in_a_batch(edited: Editor) -> None:
    backbone = edited.backbone
    assert generate(backbone, PROMPTS) == [generate(backbone, [p])[0] for p in PROMPTS]


def test_lifted_edits_leave_the_backbone_and_come_back(edited: Editor) -> None:
    backbone = edited.backbone
    unedited, found = prompt_logits(loading.load(backbone.name), PROMPTS), []
    now, numbers = prompt_logits(backbone, PROMPTS), (edited.n_edits, edited.n_batches)
    for error in (None, KeyError):
        try:
            with edited.lifted():
                found.append(prompt_logits(backbone, PROMPTS))
                if error:
                    raise error
        except KeyError:
            pass
        assert torch.equal(found[-1], unedited)
        assert torch.equal(prompt_logits(backbone, PROMPTS), now)
        assert (edited.n_edits, edited.n_batches) == numbers


def test_forced_routes_equal_free_routing(edited: Editor) -> None:
    backbone = edited.backbone
    free = prompt_logits(backbone, PROMPTS)
    batch = encode_prompts(backbone, PROMPTS, side="right")
    routes = edited.route(batch)
    assert set(routes[:3]) != {UNEDITED}
    with edited.routed(batch, routes):
        forced = prompt_logits(backbone, PROMPTS)
    assert torch.equal(forced, free)


def test_unknown_settings_and_editors_are_named(kind: str, generator: Backbone) -> None:
    with pytest.raises(EditorError, match="colour: no such key; there are"):
        make(kind, generator, colour="blue")
    with pytest.raises(EditorError, match=", ".join(REGISTRY)):
        build("mello", generator, {})


def test_an_empty_batch_is_refused(kind: str, generator: Backbone) -> None:
    with pytest.raises(EditorError, match="empty batch"):
        make(kind, generator).edit([])
