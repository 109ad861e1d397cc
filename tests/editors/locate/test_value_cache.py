"""Values found on the unedited backbone are kept by content; nothing else may come from there."""

from pathlib import Path

import pytest
import torch

from lib.backbones.sources import loading
from lib.editors.base import Editor
from lib.editors.locate.editor import LocateEditor
from lib.storage.cache import Cache
from tests.editors.locate.locate_cases import FIRST, SECOND, as_edits, editor_of

pytest_plugins = ("tests.editors.locate.locate_fixtures",)
pytestmark = pytest.mark.usefixtures("statistics_cache")


def caching(kind: str, folder: Path, **changes: object) -> Editor:
    editor = editor_of(kind, loading.load("tiny-gpt2"), **changes)
    editor.values_cache = Cache(folder)
    return editor


def weights(editor: Editor) -> list[torch.Tensor]:
    group = editor.tensors()["hooks" if editor.name == "COMEBA-HK" else "weights"]
    return [tensor.clone() for tensor in group.values()]


@pytest.fixture
def searched(monkeypatch) -> list[int]:
    """Number of requests of every search that really ran."""
    counts, search = [], LocateEditor._search

    def counted(editor, requests, *where):
        counts.append(len(requests))
        return search(editor, requests, *where)

    monkeypatch.setattr(LocateEditor, "_search", counted)
    return counts


@pytest.mark.parametrize("kind", ["comeba_hk", "memit"])
def test_a_second_editor_finds_the_values_of_the_first(kind: str, tmp_path, searched) -> None:
    first = caching(kind, tmp_path)
    report = first.edit(as_edits(FIRST))
    second = caching(kind, tmp_path, moment_weight=7.0)  # what is solved later does not matter
    again = second.edit(as_edits(FIRST))
    assert searched == [len(FIRST)]
    assert again.loss_last == report.loss_last and again.seconds > 0
    third = caching(kind, tmp_path)
    third.edit(as_edits(FIRST))
    pairs = zip(weights(first), weights(third), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("kind", ["comeba_hk", "memit", "rome"])
def test_values_of_an_edited_model_are_never_taken_from_the_cache(
    kind: str, tmp_path, searched
) -> None:
    caching(kind, tmp_path).edit(as_edits(SECOND))  # these are in the cache, for the backbone
    searched.clear()
    plain = editor_of(kind, loading.load("tiny-gpt2"))
    editor = caching(kind, tmp_path)
    for batch in (FIRST, SECOND):
        plain.edit(as_edits(batch))
        editor.edit(as_edits(batch))
    assert sum(searched) == 2 * (len(FIRST) + len(SECOND))
    pairs = zip(weights(plain), weights(editor), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_values_hang_on_what_was_searched_beside_them(tmp_path, searched) -> None:
    """Whoever came first, and whatever a killed run left: last digits differ between batches."""
    caching("memit", tmp_path).edit(as_edits(FIRST))
    plain, editor = editor_of("memit", loading.load("tiny-gpt2")), caching("memit", tmp_path)
    for one in (plain, editor):
        one.edit(as_edits(FIRST[:-1]))
    assert searched == [len(FIRST)] + [len(FIRST) - 1] * 2
    pairs = zip(weights(plain), weights(editor), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    "changes", [{"value_steps": 4}, {"value_clamp": 0.5}, {"kl_factor": 0.0}, {"blocks": (1,)}]
)
def test_another_search_is_another_entry(changes: dict, tmp_path, searched) -> None:
    caching("memit", tmp_path).edit(as_edits(FIRST))
    caching("memit", tmp_path, **changes).edit(as_edits(FIRST))
    assert searched == [len(FIRST)] * 2
