"""GRACE: a codebook of key-value adaptors at one layer (Hartvigsen et al., NeurIPS 2023).

Key = the layer's *input* at the last prompt token; value = a vector that replaces the layer's
output where the key of a new input falls within a stored key's radius. Written from the study's
notes on the official code (melo 7). Edits are sequential; values of edits that retrieve different
entries are trained together, which is the same thing: the radii are settled before any value is
trained, values do not influence keys, and Adam works element by element.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, Encoded
from lib.backbones.passes.logits import target_logits
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import Edit
from lib.editors.adapters.vector_index import exact_distances, first_minimum
from lib.editors.base import UNEDITED, Editor, EditorConfig, EditReport
from lib.editors.parts.minimise import minimise
from lib.editors.parts.routing import PromptTracker
from lib.editors.parts.sites import Site, first_block, rows_at

Replacement = Literal["replace_prompt", "replace_last"]


@dataclass(frozen=True)
class GraceConfig(EditorConfig):
    """Defaults: the official ones (radius 1.0, 100 steps, lr 1.0, replace_prompt).

    The paper enlarges a same-label entry by its radius plus `radius`; the code, and so this
    editor, enlarges it to just reach the new key.
    """

    site: Site = Site("mlp_out", 4)
    radius: float = 1.0
    lr: float = 1.0
    steps: int = 100
    replacement: Replacement = "replace_prompt"


class Grace(Editor):
    """State: keys [E, d_in], values [E, d_out], radii [E], label means [E], versions [E]."""

    name = "GRACE"
    config: GraceConfig

    def __init__(self, backbone: Backbone, config: GraceConfig) -> None:
        super().__init__(backbone, config)
        self.path = config.site.path(backbone)
        self.layer = backbone.model.get_submodule(self.path)
        self.prefix = FrozenPrefix(backbone, first_block(backbone, [config.site]))
        self.tracker = PromptTracker(backbone)
        self._forced: tuple[Tensor, Tensor, Tensor] | None = None  # active, columns, values
        self._empty()
        self._handle = self.layer.register_forward_hook(self._replace)

    def _empty(self) -> None:
        weight = self.layer.weight
        widths = weight.shape if isinstance(self.layer, nn.Linear) else weight.shape[::-1]
        self.keys = torch.empty(0, widths[1])
        self.values = torch.empty(0, widths[0])
        self.radii = torch.empty(0)
        self.labels = torch.empty(0, dtype=torch.float64)
        self.versions = torch.empty(0, dtype=torch.long)
        self.conflicts = 0

    # -- what is applied ---------------------------------------------------------------------

    def _replace(self, _module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if not self.tracker.is_prefill:  # later steps read the replaced states from the cache
            return None
        if self._forced is None:
            if len(self.keys) == 0:
                return None
            columns = self.tracker.last_columns(inputs[0])
            entries = self._entries(rows_at(inputs[0], columns))
            active, values = entries >= 0, self.values[entries.clamp(min=0)]
        else:
            active, columns, values = self._forced
        if not bool(active.any()):
            return None
        position = torch.arange(output.shape[1], device=output.device)[None, :]
        before = self.config.replacement == "replace_prompt"
        at = position < columns[:, None] if before else position == columns[:, None]
        at = at & active[:, None].to(output.device)
        return torch.where(at[:, :, None], values[:, None, :].to(output), output)

    def _entries(self, keys: Tensor) -> Tensor:
        """The entry of each key [B], -1 outside every radius."""
        distance, entry = first_minimum(exact_distances(keys.cpu(), self.keys))
        return entry.masked_fill(distance > self.radii[entry], -1)

    @property
    def watch(self) -> tuple[str, ...]:
        """The layer itself: its input is the key."""
        return (self.path,)

    def keys_from(self, state: PrefixState, batch: Encoded) -> Tensor:
        """The layer's input at the last prompt token [B, d_in]."""
        return rows_at(state.watched_inputs[self.path], batch.last_prompt)

    def routes_of(self, keys: Tensor) -> list[str]:
        """ "entry 3.2" (entry 3, trained twice), or UNEDITED."""
        if len(self.keys) == 0:
            return [UNEDITED] * len(keys)
        entries = self._entries(keys).tolist()
        return [UNEDITED if e < 0 else f"entry {e}.{int(self.versions[e])}" for e in entries]

    @contextlib.contextmanager
    def routed(self, batch: Encoded, routes: Sequence[str]) -> Iterator[None]:
        """See `Editor.routed`."""
        entries = [
            -1 if route == UNEDITED else int(route.split()[1].split(".")[0]) for route in routes
        ]
        chosen = torch.tensor(entries)
        values = torch.zeros(len(entries), self.values.shape[1])
        if len(self.values):
            values = self.values[chosen.clamp(min=0)]
        with self._forcing(chosen >= 0, batch.last_prompt, values):
            yield

    @contextlib.contextmanager
    def _forcing(self, active: Tensor, columns: Tensor, values: Tensor) -> Iterator[None]:
        before, self._forced = self._forced, (active, columns, values)
        try:
            yield
        finally:
            self._forced = before

    # -- editing -----------------------------------------------------------------------------

    def _edit(self, batch: Sequence[Edit]) -> EditReport:
        encoded = self.encoded(batch)
        state = self.prefix.record(encoded, watch=self.watch, edited=self.watch)
        keys = self.keys_from(state, encoded).cpu()
        chosen = []
        for key, mean in zip(keys, self._label_means(encoded), strict=True):
            self._file(key, mean)
            chosen.append(int(self._entries(key[None])[0]))
        losses, seconds = self._train(encoded, state, chosen)
        return EditReport(seconds, losses[0], losses[-1], self.counts())

    def _label_means(self, encoded: Encoded) -> list[float]:
        """What tells labels apart: the mean of a row's label ids, and of the -100 at the prompt of
        a causal row, as in the official code."""
        labels = encoded.labels.reshape(len(encoded), -1)
        causal = self.backbone.family.kind == "causal"
        counted = encoded.attention_mask if causal else labels != IGNORED
        return ((labels * counted).sum(dim=1).double() / counted.sum(dim=1)).tolist()

    def _file(self, key: Tensor, label: float) -> None:
        """Iteration 0 of one edit: widen a same-label entry, or make one and split the radius."""
        radius = self.config.radius
        if len(self.keys):
            distance, nearest = (
                item[0] for item in first_minimum(exact_distances(key[None], self.keys))
            )
            if distance <= self.radii[nearest] + radius:
                if float(self.labels[nearest]) == label:
                    self.radii[nearest] = torch.maximum(self.radii[nearest], distance)
                    return
                self.radii[nearest] = distance / 2 - 1e-5
                radius = float(distance / 2)
                self.conflicts += 1
        number = len(self.keys)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
        value = torch.rand(1, self.values.shape[1], generator=generator)
        self.keys = torch.cat([self.keys, key[None]])
        self.values = torch.cat([self.values, value])
        self.radii = torch.cat([self.radii, torch.tensor([radius])])
        self.labels = torch.cat([self.labels, torch.tensor([label], dtype=torch.float64)])
        self.versions = torch.cat([self.versions, torch.zeros(1, dtype=torch.long)])

    def _train(
        self, encoded: Encoded, state: PrefixState, chosen: list[int]
    ) -> tuple[list[float], float]:
        """Train the retrieved values; rows that share an entry go one after the other."""
        first, last, seconds = [], [], 0.0
        pending = list(range(len(chosen)))
        while pending:
            wave: dict[int, int] = {}  # entry (or a name of its own for a row without) -> row
            for row in pending:
                wave.setdefault(chosen[row] if chosen[row] >= 0 else -1 - row, row)
            rows = sorted(wave.values())
            index = torch.tensor(rows, device=encoded.input_ids.device)
            part, start = encoded.select(index), state.select(index)
            entries = [chosen[row] for row in rows]
            begun, ended, spent = self._train_rows(part, start, entries)
            first += begun
            last += ended
            seconds += spent
            pending = [row for row in pending if row not in rows]
        return [sum(first) / len(first), sum(last) / len(last)], seconds

    def _train_rows(
        self, part: Encoded, state: PrefixState, entries: list[int]
    ) -> tuple[list[float], list[float], float]:
        device = self.backbone.device
        active = torch.tensor(entries) >= 0
        slots = torch.tensor(entries).clamp(min=0)
        values = nn.Parameter(self.values[slots].to(device))
        # At the last block's own columns nothing may be left out.
        below = self.config.site.block < self.backbone.n_blocks(self.config.site.stack) - 1
        history: list[Tensor] = []

        def loss() -> Tensor:
            logits, labels, owner = target_logits(self.backbone, part, labels_only=below)
            each = functional.cross_entropy(logits.float(), labels, reduction="none")
            total = torch.zeros(len(part), device=device).index_add(0, owner, each)
            mean = total / torch.bincount(owner, minlength=len(part))
            history.append(mean.detach())
            return mean.sum() + 0 * values.sum()  # rows without an entry still give a graph

        with self._forcing(active, part.last_prompt, values), self.prefix.replay(state):
            _, seconds = minimise([values], loss, steps=self.config.steps, lr=self.config.lr)
        trained = values.detach().cpu()
        for row, entry in enumerate(entries):
            if entry >= 0:
                self.values[entry] = trained[row]
                self.versions[entry] += 1
        return history[0].tolist(), history[-1].tolist(), seconds

    # -- state -------------------------------------------------------------------------------

    def _rollback(self) -> None:
        self._empty()

    def _remove(self) -> None:
        self._handle.remove()
        self.tracker.remove()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The codebook."""
        names = ("keys", "values", "radii", "labels", "versions")
        return {"codebook": {name: getattr(self, name) for name in names}}

    def extra(self) -> dict[str, Any]:
        """The number of conflicts so far."""
        return {"conflicts": self.conflicts}

    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """See `Editor.restore`."""
        for name, tensor in tensors["codebook"].items():
            setattr(self, name, tensor.clone())
        self.conflicts = extra["conflicts"]

    def counts(self) -> dict[str, float]:
        """Entries (as `clusters`), conflicts, value parameters, stored key floats."""
        return {
            "clusters": len(self.keys),
            "conflicts": self.conflicts,
            "parameters": self.values.numel(),
            "stored_floats": self.keys.numel(),
        }
