"""Weights plus shifts, exchanged whole: the backbone's own tensors are never written to.

Adding a shift and subtracting it again loses bits, most of them in bfloat16 (malmen 2.10, 5).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.passes.logits import precise


def oriented(module: nn.Module, update: Tensor) -> Tensor:
    """An update [d, f] in the layout of the module's weight: Linear keeps [d, f], Conv1D [f, d]."""
    return update if isinstance(module, nn.Linear) else update.T


class EditedWeights:
    """The weights of some linear layers of a backbone, by module path.

    Shifts are input-major [d, d'], keys from the left, whatever the layer's own layout.
    """

    def __init__(self, backbone: Backbone, paths: Sequence[str]) -> None:
        self.modules = {path: backbone.model.get_submodule(path) for path in paths}
        self._originals = {path: module.weight.data for path, module in self.modules.items()}
        self._edited: dict[str, Tensor] = {}

    def shape(self, path: str) -> tuple[int, int]:
        """(d, d'): input and output width of a layer."""
        module = self.modules[path]
        rows, columns = module.weight.shape
        return (columns, rows) if isinstance(module, torch.nn.Linear) else (rows, columns)

    def write(self, shifts: Mapping[str, Tensor]) -> None:
        """Put original + shift in force for the given layers; the sum is rounded once, to the
        backbone's precision."""
        for path, shift in shifts.items():
            original = self._originals[path]
            added = oriented(self.modules[path], shift.T)
            total = original.to(torch.promote_types(original.dtype, added.dtype)) + added
            self._edited[path] = total.to(original.dtype)
        self._put(self._edited)

    def restore(self) -> None:
        """Put the backbone's own tensors back."""
        self._put(self._originals)
        self._edited = {}

    @contextlib.contextmanager
    def originals(self) -> Iterator[None]:
        """Passes inside the context meet the backbone's own weights."""
        self._put(self._originals)
        try:
            yield
        finally:
            self._put(self._edited)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for path, tensor in tensors.items():
            weight = self.modules[path].weight
            weight.data = tensor.to(weight)  # the tensor itself, unless the model was moved

    @contextlib.contextmanager
    def collecting(self) -> Iterator[dict[str, Tensor]]:
        """Gives Gamma, the gradient at each weight [d, d'] (input-major, float32 or better): every
        call of `collect` inside the context adds what the latest backward passes left."""
        gammas: dict[str, Tensor] = {}
        for module in self.modules.values():
            module.weight.requires_grad_(True)
        try:
            yield gammas
        finally:
            for module in self.modules.values():
                module.weight.requires_grad_(False)
                module.weight.grad = None

    def collect(self, gammas: dict[str, Tensor]) -> None:
        """Move the gradients of the latest backward pass into `gammas`."""
        for path, module in self.modules.items():
            gradient = module.weight.grad
            if gradient is None:
                continue
            gradient = oriented(module, gradient).T
            known = gammas.get(path)
            gammas[path] = precise(gradient).clone() if known is None else known + precise(gradient)
            module.weight.grad = None
