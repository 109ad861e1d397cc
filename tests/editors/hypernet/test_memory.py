"""Parity check 18 of the study's notes on MALMEN: what a meta-step holds at once does not grow with
the number of facts, but for their rows. Bytes are counted, not measured."""

import contextlib
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.backbones.sources import loading
from lib.editors.hypernet.capture import GraphMemory
from lib.editors.hypernet.malmen import Malmen
from lib.editors.hypernet.ridge import Ridge
from tests.editors.hypernet.malmen_cases import editor_of, everything, facts_for, oracle_of, paths

NAMES = ("tiny-gpt2", "tiny-t5", "tiny-bert")


class Saved:
    """Bytes that autograd holds for backward passes: now, and the most at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        class Held:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor = tensor

        def pack(tensor: Tensor) -> Held:
            held, size = Held(tensor), tensor.numel() * tensor.element_size()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(held, self._free, size)
            return held

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            yield

    def _free(self, size: int) -> None:
        self.now -= size


def most_saved(call, *arguments: object) -> int:
    counter = Saved()
    with counter.counting():
        result = call(*arguments)
    del result
    return counter.most


class Alive(TorchDispatchMode):
    """Bytes of all storages that operations have made and that still live: now, and the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self.seen:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self.seen[storage] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.now -= size


def most_allocated(call, *arguments: object) -> int:
    counter = Alive()
    with counter:
        call(*arguments)
    return counter.most


def row_bytes(editor: Malmen, facts) -> int:
    store, _ = editor.cache(editor._batches([(fact.prompt, fact.target) for fact in facts]))
    rows = [everything(store, path) for path in paths(editor)]
    store.close()
    return sum(4 * (keys.numel() + gradients.numel()) for keys, gradients in rows)


@pytest.mark.parametrize("kind", ["malmen", "mend"])
@pytest.mark.parametrize("name", NAMES)
def test_18_what_is_kept_for_backward_passes_does_not_grow_with_m(name: str, kind: str) -> None:
    backbone = loading.load(name)
    editor = editor_of(kind, backbone, batch_rows=2, editor_rows=4)
    (fact,) = facts_for(backbone, 1)
    few, many = (most_saved(editor.meta_gradients, (fact,) * m) for m in (4, 12))
    assert few == many > 0
    reference = oracle_of(editor)
    joint = [most_saved(reference.meta_losses, (fact,) * m) for m in (1, 4)]
    assert joint[1] > 3 * joint[0]  # what the count looks like when everything is kept


def test_18_the_network_keeps_one_of_its_own_mini_batches() -> None:
    """With a wide network its graph is the largest one; its size goes with `editor_rows`."""
    backbone = loading.load("tiny-bert")
    (fact,) = facts_for(backbone, 1)
    options = {"batch_rows": 1, "rank": 512}
    kept = [
        most_saved(
            editor_of("malmen", backbone, editor_rows=rows, **options).meta_gradients, (fact,) * 8
        )
        for rows in (1, 2, 4)
    ]
    assert kept[0] < kept[1] < kept[2]
    assert kept[2] - kept[1] == 2 * (kept[1] - kept[0])


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "malmen") for name in NAMES), ("tiny-bert", "mend"), ("tiny-gpt2", "mend")],
)
def test_18_allocations_grow_by_a_few_copies_of_the_rows(name: str, kind: str) -> None:
    """K and G in the store; K, D and what the solve needs again. Hidden states of whole prompts
    (the frozen prefix of mini-batches whose turn has not come) would be more than that."""
    backbone = loading.load(name)
    editor = editor_of(kind, backbone, tokens="answer", batch_rows=2, editor_rows=16)
    (fact,) = facts_for(backbone, 1)
    few, many = (fact,) * 4, (fact,) * 12
    editor.meta_gradients(few)
    growth = most_allocated(editor.meta_gradients, many)
    growth -= most_allocated(editor.meta_gradients, few)
    assert growth < 3 * (row_bytes(editor, many) - row_bytes(editor, few))


def test_18_the_editor_counts_the_same_itself() -> None:
    backbone = loading.load("tiny-gpt2")
    editor = editor_of("malmen", backbone, batch_rows=2, editor_rows=7)
    (fact,) = facts_for(backbone, 1)
    found = []
    for m in (4, 16):
        memory = GraphMemory(backbone.model.parameters())
        editor.meta_gradients((fact,) * m, memory)
        found.append(memory)
    assert found[0].decoupled == found[1].decoupled > 0
    assert found[1].joint > 3 * found[0].joint
    assert found[1].rows == 4 * found[0].rows > 0


def test_an_edit_holds_the_factor_of_one_layer_at_a_time(monkeypatch) -> None:
    backbone = loading.load("tiny-gpt2")
    editor, alive, most = editor_of("malmen", backbone), weakref.WeakSet(), []

    class Counted(Ridge):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr("lib.editors.hypernet.malmen.Ridge", Counted)
    editor.edit(facts_for(backbone, 3))
    assert most == [1] * len(paths(editor)) and not alive
