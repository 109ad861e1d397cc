"""No edit is lost, half applied or saved as another one without a word, whatever the editor."""

import copy
import gc
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.editors import class_of
from lib.editors.base import Editor, editor_of
from lib.errors import EditorError
from tests.conftest import EDITORS, edits, hooked, make, prompt_logits, stream

PROMPTS = [edit.prompt for edit in edits(3)] + ["who wrote the first letter?"]
ADAPTING = [kind for kind in EDITORS if class_of(kind).adapts]
IN_WEIGHTS = [kind for kind in EDITORS if class_of(kind).in_weights]
BESIDE = [kind for kind in EDITORS if not class_of(kind).in_weights]


@pytest.fixture
def backbone() -> Backbone:
    return loading.load("tiny-llama")


@pytest.fixture(params=EDITORS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def editor(kind: str, backbone: Backbone) -> Editor:
    return make(kind, backbone)


def answers(backbone: Backbone) -> torch.Tensor:
    return prompt_logits(backbone, PROMPTS)


# -- one editor at a time ----------------------------------------------------------------------


def test_no_editor_of_any_kind_is_built_over_another(editor: Editor, backbone: Backbone) -> None:
    before = answers(backbone)
    editor.edit(edits(2))
    edited = answers(backbone)
    for second in EDITORS:
        with pytest.raises(EditorError, match=rf"^{editor.name} is at work.*close\(\)"):
            make(second, backbone)
    assert torch.equal(answers(backbone), edited)
    editor.close()
    assert torch.equal(answers(backbone), before)
    assert editor_of(backbone) is None


def test_editors_that_were_built_before_the_first_edit_wait(kind: str, backbone: Backbone) -> None:
    """Each kind beside its neighbour in the list; adapters are at work from the beginning."""
    other = EDITORS[EDITORS.index(kind) - 1]
    before = answers(backbone)
    waiting = make(other, backbone)
    if other in ADAPTING or "comeba_hk" in (kind, other):
        waiting.close()
        other = "ft"
        waiting = make(other, backbone)
    first = make(kind, backbone)
    first.edit(edits(2))
    edited = answers(backbone)
    for attempt in (
        lambda: waiting.edit(edits(3)[2:]),
        lambda: waiting.fit(stream()),
        lambda: waiting.load(Path("anywhere")),
    ):
        with pytest.raises(EditorError, match=f"{first.name} is at work"):
            attempt()
    waiting.rollback()  # of nothing
    assert torch.equal(answers(backbone), edited)
    first.rollback()
    if kind in ADAPTING:
        with pytest.raises(EditorError, match=f"{first.name} is at work"):
            waiting.edit(edits(2))
        first.close()
    waiting.edit(edits(3)[2:])
    first.close()
    waiting.close()
    assert torch.equal(answers(backbone), before)


@pytest.mark.parametrize("second", ADAPTING)
def test_adapters_are_at_work_before_they_edit(second: str, kind: str, backbone: Backbone) -> None:
    make(second, backbone)
    with pytest.raises(EditorError, match="is at work"):
        make(kind, backbone)
    editor_of(backbone).close()
    make(kind, backbone).close()


def test_an_editor_that_no_variable_names_can_still_be_closed(
    kind: str, backbone: Backbone
) -> None:
    before = answers(backbone)
    make(kind, backbone).edit(edits(2))
    edited = answers(backbone)
    gc.collect()
    assert torch.equal(answers(backbone), edited)
    editor_of(backbone).close()
    assert torch.equal(answers(backbone), before)
    make(kind, backbone).close()


def test_a_refused_configuration_leaves_the_backbone_free(backbone: Backbone) -> None:
    before = hooked(backbone)
    for kind, fault in (("rome", {"blocks": [1, 2]}), ("lora", {"sites": []})):
        with pytest.raises(EditorError):
            make(kind, backbone, **fault)
    grace = make("grace", backbone)
    with pytest.raises(EditorError, match="has a hook"):
        make("comeba_hk", backbone)
    grace.close()
    assert hooked(backbone) == before
    make("comeba_hk", backbone).close()


def test_a_closed_editor_is_closed(editor: Editor, tmp_path: Path) -> None:
    editor.edit(edits(1))
    editor.close()
    editor.close()
    editor.rollback()
    for attempt in (
        lambda: editor.edit(edits(1)),
        lambda: editor.fit(stream()),
        lambda: editor.save(tmp_path / "saved"),
        lambda: editor.load(tmp_path / "saved"),
    ):
        with pytest.raises(EditorError, match="was closed; build a new one"):
            attempt()


# -- wholly or not at all ----------------------------------------------------------------------


class Interrupted(BaseException):
    """Not an Exception, like the interruption of a notebook cell."""


class Passes:
    """Counts the passes through the blocks of a backbone, and interrupts one of them."""

    def __init__(self, backbone: Backbone) -> None:
        self.seen, self.interrupt = 0, -1
        blocks = [backbone.module("block", index) for index in range(backbone.n_blocks())]
        self.handles = [block.register_forward_pre_hook(self._count) for block in blocks]

    def _count(self, *_call: object) -> None:
        self.seen += 1
        if self.seen == self.interrupt:
            raise Interrupted

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("batches", [0, 1])
def test_an_interrupted_edit_leaves_all_as_it_was(
    kind: str, backbone: Backbone, batches: int
) -> None:
    editor, clean = make(kind, backbone), make(kind, loading.load("tiny-llama"))
    for one in (editor, clean):
        one.fit(stream())  # what is made once is not part of any edit
        if batches:
            one.edit(edits(2))
    before, extra = answers(backbone), copy.deepcopy(editor.extra())
    passes = Passes(clean.backbone)
    clean.edit(edits(4)[2:])
    number = passes.seen
    passes.remove()
    passes = Passes(backbone)
    passes.interrupt = number if batches else number // 2 + 1
    with pytest.raises(Interrupted):
        editor.edit(edits(4)[2:])
    passes.remove()
    assert torch.equal(answers(backbone), before)
    assert (editor.n_batches, editor.n_edits) == (batches, 2 * batches)
    assert editor.extra() == extra
    assert [n for n, p in backbone.model.named_parameters() if p.requires_grad] == []
    if batches == 0 and kind not in ADAPTING:
        assert editor_of(backbone) is None
    editor.edit(edits(4)[2:])
    assert torch.equal(answers(backbone), answers(clean.backbone))


def test_a_model_that_was_moved_is_refused(editor: Editor, backbone: Backbone) -> None:
    before = answers(backbone)
    editor.edit(edits(1))
    backbone.model.to(torch.float64)
    with pytest.raises(EditorError, match=r"loaded in torch\.float32.*now in torch\.float64"):
        editor.edit(edits(2)[1:])
    with pytest.raises(EditorError, match="move it back"):
        editor.fit(stream())
    backbone.model.to(torch.float32)
    editor.edit(edits(2)[1:])
    backbone.model.to(torch.float64)
    editor.close()
    assert {p.dtype for p in backbone.model.parameters()} == {torch.float64}
    backbone.model.to(torch.float32)
    assert torch.equal(answers(backbone), before)


def test_gradients_that_are_switched_off_do_not_matter(editor: Editor, backbone: Backbone) -> None:
    with torch.no_grad():
        assert editor.edit(edits(1)).loss_last < float("inf")


@pytest.fixture
def told() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield caught


def messages(told: list[warnings.WarningMessage], editor: Editor) -> list[str]:
    found = [str(one.message) for one in told]
    return [message for message in found if message.startswith(f"{editor.name}: ")]


def test_two_answers_to_one_prompt_are_told(editor: Editor, told: list) -> None:
    (edit,) = edits(1)
    other = replace(edit, target="Wick")
    editor.edit([edit, edit])
    editor.edit([edit])
    assert messages(told, editor) == []
    editor.rollback()
    editor.edit([edit, other])
    (message,) = messages(told, editor)
    assert "two answers" in message and edit.prompt in message


def test_a_newer_answer_that_is_not_given_is_told(
    kind: str, editor: Editor, backbone: Backbone, told: list
) -> None:
    """Weights move on; what an index does with two keys in one place is said."""
    (edit,) = edits(1)
    clean = answers(backbone)[0]
    editor.edit([edit])
    first = answers(backbone)[0]
    editor.edit([replace(edit, target="Wick")])
    given, said = answers(backbone)[0], messages(told, editor)
    if kind in ("melo", "grace"):
        assert "gets neither" in said[0] and torch.allclose(given, clean, atol=1e-5)
    elif kind == "serac":
        assert "earlier edit still answers" in said[0]
        assert torch.allclose(given, first, atol=1e-4)
    else:
        assert said == []


# -- saving ------------------------------------------------------------------------------------


def loaded(folder: Path, backbone: Backbone) -> Backbone:
    backbone.tokenizer.save_pretrained(folder)
    return replace(loading.load(f"dir:{folder}"), prefix=backbone.prefix)


@pytest.mark.parametrize("kind", IN_WEIGHTS)
def test_edited_weights_are_saved_with_the_model(
    kind: str, backbone: Backbone, tmp_path: Path
) -> None:
    editor = make(kind, backbone)
    editor.edit(edits(2))
    editor.model.save_pretrained(tmp_path)
    again = loaded(tmp_path, backbone)
    assert torch.equal(answers(again), answers(backbone))
    make(kind, again).close()


@pytest.mark.parametrize("kind", BESIDE)
def test_edits_beside_the_weights_are_not_saved_as_another_model(
    kind: str, backbone: Backbone, tmp_path: Path
) -> None:
    before = answers(backbone)
    editor = make(kind, backbone)
    editor.edit(edits(2))
    with pytest.raises(EditorError, match=r"save\(folder\)"):
        editor.model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    editor.close()
    editor.model.save_pretrained(tmp_path / "model")
    assert torch.equal(answers(loaded(tmp_path / "model", backbone)), before)


def test_a_copy_of_the_model_is_a_model_of_its_own(editor: Editor, backbone: Backbone) -> None:
    editor.edit(edits(2))
    edited = answers(backbone)
    twin = replace(backbone, model=copy.deepcopy(backbone.model))
    editor.close()
    assert torch.equal(answers(twin), edited)
    assert editor_of(twin) is None


def test_a_folder_of_something_else_is_not_overwritten(editor: Editor, tmp_path: Path) -> None:
    editor.edit(edits(1))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "first.txt").write_text("Dear Ash", "utf-8")
    for path in (tmp_path / "letters", tmp_path / "letters" / "first.txt"):
        with pytest.raises(EditorError, match="holds no saved editor"):
            editor.save(path)
        with pytest.raises(EditorError, match=r"editor\.json is missing"):
            editor.load(path)
    assert (tmp_path / "letters" / "first.txt").read_text("utf-8") == "Dear Ash"
    (tmp_path / "new").mkdir()
    for _ in range(2):
        editor.save(tmp_path / "new")


def test_saved_edits_that_cannot_be_read_change_nothing(
    editor: Editor, backbone: Backbone, tmp_path: Path
) -> None:
    editor.edit(edits(1))
    editor.save(tmp_path / "saved")
    editor.edit(edits(2)[1:])
    edited, numbers = answers(backbone), (editor.n_edits, editor.n_batches)
    described = (tmp_path / "saved" / "editor.json").read_text("utf-8")
    (tensors, *_) = sorted((tmp_path / "saved").glob("*.safetensors"))
    whole = tensors.read_bytes()

    def refuses(match: str) -> None:
        with pytest.raises(EditorError, match=match):
            editor.load(tmp_path / "saved")
        assert torch.equal(answers(backbone), edited)
        assert (editor.n_edits, editor.n_batches) == numbers

    tensors.write_bytes(whole[: len(whole) // 2])
    refuses("is damaged")
    tensors.unlink()
    refuses("is incomplete")
    tensors.write_bytes(whole)
    (tmp_path / "saved" / "editor.json").write_text(described[:40], "utf-8")
    refuses("is damaged")
    (tmp_path / "saved" / "editor.json").write_text(
        described.replace(backbone.content, "another"), "utf-8"
    )
    refuses("another backbone")
    (tmp_path / "saved" / "editor.json").write_text(described, "utf-8")
    editor.load(tmp_path / "saved")
    assert (editor.n_edits, editor.n_batches) == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_edits_that_are_no_numbers_are_not_kept(dtype: torch.dtype) -> None:
    backbone = loading.load("tiny-llama", dtype=dtype)
    before = copy.deepcopy(backbone.model.state_dict())
    editor = make("ft", backbone, lr=1e37)
    with pytest.raises(EditorError, match="not finite after 0 earlier edits; lower the learning"):
        editor.edit(edits(2))
    assert editor.n_edits == 0
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
