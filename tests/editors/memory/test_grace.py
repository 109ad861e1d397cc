"""GRACE: the codebook and its values against a transcription of the official rule."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lib.backbones.encoding import encode
from lib.backbones.passes.hooks import capture
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors.memory.grace import Grace
from tests.conftest import edits, make

EXACT = 1e-5
"""The codebook is kept in float32."""


class Reference:
    """The official rule, one edit after the other, rows unpadded, in float64."""

    def __init__(self, editor: Grace) -> None:
        self.config, self.path = editor.config, editor.path
        self.backbone = loading.load(editor.backbone.name, dtype=torch.float64)
        self.layer = self.backbone.model.get_submodule(self.path)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.radii: list[float] = []
        self.labels: list[Tensor] = []

    def edit(self, edit: Edit, initial: Tensor) -> None:
        """File the key of one edit, then train the value that it retrieves."""
        row = encode(self.backbone, [edit.prompt], [edit.target])
        causal = self.backbone.family.kind == "causal"
        place = int((row.labels == -100).sum()) - 1 if causal else -1
        with capture(self.layer) as seen, torch.no_grad():
            self.backbone.model(input_ids=row.input_ids, labels=row.labels)
        key = seen.input[0, place]
        nearest, distance = self._nearest(key)
        if nearest is None or distance > self.radii[nearest] + self.config.radius:
            self._new(key, initial, self.config.radius, row.labels)
        elif row.labels.double().mean() == self.labels[nearest].double().mean():
            self.radii[nearest] = max(self.radii[nearest], distance)
        else:
            self.radii[nearest] = distance / 2 - 1e-5
            self._new(key, initial, distance / 2, row.labels)
        nearest, distance = self._nearest(key)
        if distance <= self.radii[nearest]:
            self.values[nearest] = self._train(row, place, self.values[nearest])

    def _nearest(self, key: Tensor) -> tuple[int | None, float]:
        distances = [float((key - other).norm()) for other in self.keys]
        if not distances:
            return None, float("inf")
        return distances.index(min(distances)), min(distances)

    def _new(self, key: Tensor, value: Tensor, radius: float, label: Tensor) -> None:
        self.keys.append(key)
        self.values.append(value.double())
        self.radii.append(radius)
        self.labels.append(label)

    def _train(self, row: object, place: int, value: Tensor) -> Tensor:
        value = value.clone().requires_grad_()
        optimiser = torch.optim.Adam([value], lr=self.config.lr)

        def replace(_module: object, _inputs: object, output: Tensor) -> Tensor:
            index = torch.arange(output.shape[1])[None, :, None]
            at = place % output.shape[1]
            before = self.config.replacement == "replace_prompt"
            return torch.where(index < at if before else index == at, value, output)

        handle = self.layer.register_forward_hook(replace)
        for _ in range(self.config.steps):
            loss = self.backbone.model(input_ids=row.input_ids, labels=row.labels).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        handle.remove()
        return value.detach()


def same_answers() -> Sequence[Edit]:
    """Edits, some with the answer of another; prompts of one and of several lengths."""
    first, second, *others = edits(5)
    longer = Edit("longer", f"Tell me: {first.prompt}", first.target, first.subject)
    again = Edit("again", second.prompt, second.target, second.subject)
    return (first, second, longer, again, *others)


@pytest.mark.parametrize("replacement", ["replace_last", "replace_prompt"])
@pytest.mark.parametrize("radius", [0.05, 1.0])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_a_sequence_equals_the_official_rule(name: str, radius: float, replacement: str) -> None:
    backbone = loading.load(name, dtype=torch.float64)
    editor = make("grace", backbone, radius=radius, replacement=replacement, steps=3)
    reference = Reference(editor)
    for edit in same_answers():
        count = len(editor.keys)
        generator = torch.Generator().manual_seed(editor.config.seed * 1_000_003 + count)
        initial = torch.rand(1, editor.values.shape[1], generator=generator)[0]
        editor.edit([edit])
        reference.edit(edit, initial)
        assert len(editor.keys) == len(reference.keys)
        for ours, theirs in (
            (editor.keys, torch.stack(reference.keys)),
            (editor.values, torch.stack(reference.values)),
            (editor.radii, torch.tensor(reference.radii)),
        ):
            assert torch.allclose(ours.double(), theirs.double(), rtol=EXACT, atol=EXACT)
    assert editor.conflicts or radius < 1


def test_a_longer_prompt_makes_another_label_of_a_causal_answer_alone() -> None:
    short, _, longer, *_ = same_answers()
    for name, alike in (("tiny-llama", False), ("tiny-t5", True)):
        backbone = loading.load(name)
        editor = make("grace", backbone)
        one, other = editor._label_means(editor.encoded([short, longer]))
        assert (one == other) is alike
        expected = encode(backbone, [short.prompt], [short.target]).labels.double().mean()
        assert one == pytest.approx(float(expected), rel=1e-12)
