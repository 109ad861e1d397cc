"""Keys and gradients of a batch of edits until the solve: in memory, past a budget on disk."""

import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.backbones.passes.logits import precise


class RowStore:
    """Rows by module path, in the precision they came in, on the host whatever the device.

    `budget` bytes stay in memory; what comes after goes to safetensors files in a temporary folder
    below `folder` (None: the system's), which goes with `close` or with the object.
    """

    def __init__(self, budget: float, folder: Path | None = None) -> None:
        self._budget, self._below = budget, folder
        self._parts: dict[str, list[tuple[Tensor, Tensor] | Path]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._folder: tempfile.TemporaryDirectory | None = None
        self._device: torch.device | None = None
        self.bytes = 0
        self.held = 0

    def rows(self, path: str) -> int:
        """Number of rows of one module."""
        return self._counts[path]

    def append(self, path: str, keys: Tensor, gradients: Tensor) -> None:
        """Add keys [n, d] and gradients [n, d'] of one module."""
        self._device = keys.device
        keys, gradients = keys.cpu(), gradients.cpu()
        size = sum(t.numel() * t.element_size() for t in (keys, gradients))
        self.bytes += size
        self._counts[path] += len(keys)
        if self.held + size <= self._budget:
            self.held += size
            self._parts[path].append((keys, gradients))
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="rows-", dir=self._below)
        file = Path(self._folder.name) / f"{len(list(Path(self._folder.name).iterdir()))}"
        save_file({"keys": keys.contiguous(), "gradients": gradients.contiguous()}, file)
        self._parts[path].append(file)

    def of(self, path: str) -> tuple[Tensor, Tensor]:
        """All keys [n, d] and gradients [n, d'] of one module, in order, on the device they came
        from, as float32 or better."""
        parts = [self._read(part) for part in self._parts[path]]
        pairs = zip(*parts, strict=True)
        keys, gradients = (torch.cat(tensors).to(self._device) for tensors in pairs)
        return precise(keys), precise(gradients)

    def _read(self, part: tuple[Tensor, Tensor] | Path) -> tuple[Tensor, Tensor]:
        if isinstance(part, tuple):
            return part
        stored = load_file(part)
        return stored["keys"], stored["gradients"]

    def close(self) -> None:
        """Forget the rows and remove the files."""
        self._parts.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
