"""What a hyper-network needs of a pass over facts: captured, stored until the solve, counted.

One forward and backward pass with every weight frozen gives, for each edited linear layer, its
inputs ("keys") and the gradients of the edit loss at its outputs, token by token (malmen 2.6).
"""

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED
from lib.backbones.passes.kept import Kept
from lib.backbones.passes.logits import FactRows, columns_of, edit_loss, label_logits, precise
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.editors.parts.sites import Site

Tokens = Literal["answer", "all"]


@dataclass(frozen=True)
class Traced:
    """The loss of one pass, and keys [n, d] with output gradients [n, d'] of each edited layer by
    module path, in the backbone's precision."""

    loss: float
    rows: dict[str, tuple[Tensor, Tensor]]


def cached(backbone: Backbone, rows: FactRows, stack: str, tokens: Tokens) -> Tensor:
    """Which positions of a layer's input are kept (malmen 2.6): a mask [B, T].

    Causal "answer": those that predict an answer token; "all": every attended one. Seq2seq, both:
    attended tokens in the encoder, answer positions in the decoder. Classifier "answer": the first
    token.
    """
    attended = rows.encoded.attention_mask.bool()
    kind = backbone.family.kind
    if kind == "seq2seq":
        return rows.labels != IGNORED if stack == "decoder" else attended
    if tokens == "all":
        return attended
    if kind == "causal":
        return rows.labels != IGNORED
    first = torch.zeros_like(attended)
    first[:, 0] = True
    return first


def trace(
    backbone: Backbone,
    rows: FactRows,
    sites: Sequence[Site],
    tokens: Tokens = "answer",
    prefix: FrozenPrefix | None = None,
    state: PrefixState | None = None,
    *,
    summed: bool = False,
) -> Traced:
    """Keys and output gradients of the edit loss at the edited layers, in the order of `sites`.

    Weights stay frozen and no weight gradient is computed: the graph begins at the output of the
    first edited layer. `state` replays the blocks below it. `summed`: gradients of the sum over
    label positions, not of their mean.
    """
    keys: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    with contextlib.ExitStack() as context:
        for site in sites:
            mask = cached(backbone, rows, site.stack, tokens)
            context.enter_context(_watched(backbone, site, mask, keys, gradients))
        if prefix is not None:
            context.enter_context(prefix.replay(state))
        context.enter_context(torch.enable_grad())
        # Rows of other tokens than the answer are wanted from the last block as well.
        logits, labels = label_logits(backbone, rows, labels_only=tokens == "answer")
        loss = edit_loss(logits, labels)
        (loss * len(labels) if summed else loss).backward()
    paths = [site.path(backbone) for site in sites]
    return Traced(loss.item(), {path: (keys[path], gradients[path]) for path in paths})


@contextlib.contextmanager
def _watched(
    backbone: Backbone,
    site: Site,
    mask: Tensor,
    keys: dict[str, Tensor],
    gradients: dict[str, Tensor],
) -> Iterator[None]:
    path = site.path(backbone)
    narrow = mask[:, :1]
    if backbone.family.kind == "causal":
        narrow = mask.gather(1, columns_of(mask))

    def hook(_module: nn.Module, inputs: tuple, output: Any) -> None:
        whole = inputs[0].shape[1] == mask.shape[1]  # else the last block's, at the labels alone
        at = mask if whole else narrow
        keys[path] = inputs[0].detach()[at]
        if not output.requires_grad:
            output.requires_grad_()
        output.register_hook(lambda gradient: gradients.update({path: gradient[at]}))

    handle = backbone.model.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class RowStore:
    """Rows by module path, in the precision they came in, on the host whatever the device.

    They stay in memory as far as `memory` gives bytes; what comes after goes to safetensors files
    in a temporary folder below `folder` (None: the system's), which goes with `close` or with the
    object.
    """

    def __init__(self, memory: Kept, folder: Path | None = None) -> None:
        self._memory, self._below = memory, folder
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
        size = keys.nbytes + gradients.nbytes
        self.bytes += size
        self._counts[path] += len(keys)
        if self._memory.take(size):
            self.held += size
            self._parts[path].append((keys, gradients))
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="rows-", dir=self._below)
        file = Path(self._folder.name) / f"{len(list(Path(self._folder.name).iterdir()))}"
        save_file({"keys": keys.contiguous(), "gradients": gradients.contiguous()}, file)
        self._parts[path].append(file)

    def chunks(self, path: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys [b, d] and gradients [b, d'] of one module in order, `size` rows at a time, on the
        device they came from, as float32 or better. What lies in files is read as it is needed."""
        held: list[tuple[Tensor, Tensor]] = []
        free = size
        for part in self._parts[path]:
            keys, gradients = self._read(part)
            while len(keys):
                held.append((keys[:free], gradients[:free]))
                free -= len(held[-1][0])
                keys, gradients = keys[len(held[-1][0]) :], gradients[len(held[-1][0]) :]
                if not free:
                    yield self._joined(held)
                    held, free = [], size
        if held:
            yield self._joined(held)

    def _joined(self, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        keys, gradients = (torch.cat(side).to(self._device) for side in zip(*parts, strict=True))
        return precise(keys), precise(gradients)

    def _read(self, part: tuple[Tensor, Tensor] | Path) -> tuple[Tensor, Tensor]:
        if isinstance(part, tuple):
            return part
        stored = load_file(part)
        return stored["keys"], stored["gradients"]

    def close(self) -> None:
        """Forget the rows and remove the files."""
        self._parts.clear()
        self._memory.give(self.held)
        self.held = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class GraphMemory:
    """Bytes of distinct storages that autograd saves inside `of` contexts, one graph per context.

    A joint computation keeps all graphs until its one backward pass: `joint`, their sum. A
    decoupled one keeps one at a time: `decoupled`, the largest. `rows` is the row store, which
    both need. Tensors in `resident` (weights) are there anyway and do not count.
    """

    def __init__(self, resident: Iterable[Tensor] = ()) -> None:
        self._resident: set[int] = set()
        self.exclude(resident)
        self._graphs: dict[str, list[int]] = defaultdict(list)
        self._counting = True
        self.rows = 0

    @classmethod
    def off(cls) -> "GraphMemory":
        """One that counts nothing and costs nothing."""
        memory = cls()
        memory._counting = False
        return memory

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors as resident from here on."""
        self._resident |= {tensor.untyped_storage().data_ptr() for tensor in tensors}

    @contextlib.contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Count the graph that is built inside the context."""
        if not self._counting:
            yield
            return
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._resident:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        self._graphs[what].append(sum(seen.values()))

    @property
    def joint(self) -> int:
        """Bytes if every graph is kept."""
        return sum(sum(sizes) for sizes in self._graphs.values())

    @property
    def decoupled(self) -> int:
        """Bytes of the largest single graph."""
        return max((max(sizes) for sizes in self._graphs.values()), default=0)

    def sizes(self) -> dict[str, int]:
        """`joint_bytes`, `decoupled_bytes` and `row_store_bytes`."""
        return {
            "joint_bytes": self.joint,
            "decoupled_bytes": self.decoupled,
            "row_store_bytes": self.rows,
        }
