"""What every editor is: takes a backbone, accepts batches of edits, leaves an ordinary model."""

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded, encode
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import Edit, Stream
from lib.editors.parts.stand_in import StandIn
from lib.errors import EditorError
from lib.storage import atomic
from lib.storage.checked import FORBID

KeysOf = Callable[[str], Tensor]
"""The keys [n, d] of all rows of a subset of the stream, in its order."""

UNEDITED = "base"
"""The route of a row to which nothing is applied: the backbone's own output."""


@dataclass(frozen=True)
class EditReport:
    """What one call of `edit` did: seconds of optimisation, loss at its first and last step, and
    named counts (clusters, conflicts, parameters, …)."""

    seconds: float
    loss_first: float
    loss_last: float
    counts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EditorConfig:
    """Common to all configurations. `max_length` cuts prompts and answers (None: never).
    `full_width` pads a classifier's rows to `max_length`, as GRACE's and MELO's official code does
    (melo 2.4): it decides what is found in the last column."""

    __pydantic_config__ = FORBID

    max_length: int | None = None
    seed: int = 0
    full_width: bool = False


class Editor(ABC):
    """A method. `model` is always a normal, callable, `generate()`-able model.

    Subclasses declare which kinds of backbone they support and implement `_edit`, `rollback`,
    `close`, `tensors` and `restore` (their whole state); if rows are treated differently also
    `watch`, `keys_from`, `routes_of` and `routed`.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]] = frozenset({"causal", "seq2seq", "classifier"})
    needs: ClassVar[tuple[str, ...]] = ()  # resources that `build` passes to the constructor
    config: EditorConfig
    prefix: FrozenPrefix

    def __init__(self, backbone: Backbone, config: EditorConfig) -> None:
        if backbone.family.kind not in self.kinds:
            raise EditorError(
                f"{self.name} does not support {backbone.family.kind} backbones such as "
                f"{backbone.name}; it supports {', '.join(sorted(self.kinds))}"
            )
        if config.full_width and (backbone.family.kind != "classifier" or not config.max_length):
            raise EditorError("full_width is for classifiers, and needs a max_length to pad to")
        self.backbone = backbone
        self.config = config
        self.n_edits = 0
        self.n_batches = 0

    @property
    def model(self) -> PreTrainedModel:
        """The backbone's model with whatever this editor has put into it."""
        return self.backbone.model

    def fit(self, stream: Stream) -> None:
        """Meta-training or statistics before the first edit; most editors need none."""

    def edit(self, batch: Sequence[Edit]) -> EditReport:
        """Apply one batch of edits; may be called again and again."""
        if not batch:
            raise EditorError("an empty batch of edits cannot be applied")
        report = self._edit(batch)
        self.n_edits += len(batch)
        self.n_batches += 1
        return report

    @abstractmethod
    def _edit(self, batch: Sequence[Edit]) -> EditReport: ...

    def encoded(self, batch: Sequence[Edit]) -> Encoded:
        """The prompts of some edits with their targets as labels, in order."""
        prompts, targets = [edit.prompt for edit in batch], [edit.target for edit in batch]
        length, full_width = self.config.max_length, self.config.full_width
        return encode(self.backbone, prompts, targets, max_length=length, full_width=full_width)

    @abstractmethod
    def rollback(self) -> None:
        """Make the model the backbone again, bit for bit, and forget every edit."""

    @abstractmethod
    def close(self) -> None:
        """Roll back and take every hook and adapter out of the model."""

    @property
    def watch(self) -> tuple[str, ...]:
        """Paths of the modules that routing reads; empty for editors that treat rows alike."""
        return ()

    def keys_from(self, state: PrefixState, batch: Encoded) -> Tensor:
        """What routing looks at, one row each [B, d], from a recorded pass that watched `watch`.

        Keys are read below every edited layer: constant over a run, so computed once.
        """
        return torch.empty(len(batch), 0)

    def keys_of(self, batch: Encoded) -> Tensor:
        """The keys of a batch [B, d], by a pass of their own."""
        return self.keys_from(self.prefix.record(batch, watch=self.watch), batch)

    @property
    def keys_see_target(self) -> bool:
        """Whether a causal row that carries its target has another key than its prompt alone."""
        return False

    @property
    def scope_sees_target(self) -> bool:
        """Whether the editor's decision in one whole pass depends on the answer's tokens, so that
        teacher forcing as released needs one pass over prompt and answer (causal backbones)."""
        return False

    def routes_of(self, keys: Tensor) -> list[str]:
        """Names what is applied to each row; equal names mean equal weights. Rows with the route
        `UNEDITED` get the backbone's own output."""
        version = f"{self.name} after {self.n_batches}" if self.n_batches else UNEDITED
        return [version] * len(keys)

    def route(self, batch: Encoded) -> list[str]:
        """The routes of a batch as the index stands now."""
        return self.routes_of(self.keys_of(batch))

    def weights_of(self, route: str) -> str | None:
        """Content identity of what a route applies, if other runs that apply the same may share
        its outputs; None where a route means something else in every run."""
        return UNEDITED if route == UNEDITED else None

    def stand_in(self, route: str) -> StandIn | None:
        """Who answers a row of this route in the model's place, if another model does. Only for
        editors whose keys do not see the target."""
        return None

    @contextlib.contextmanager
    def routed(self, batch: Encoded, routes: Sequence[str]) -> Iterator[None]:
        """Passes inside the context apply the given routes instead of finding their own."""
        yield

    def observe(self, stream: Stream, keys: KeysOf | None = None) -> Iterator[dict[str, Any]]:
        """Flat rows (JSON values) that the editor reports about itself after the last batch of a
        stream, for the table of observations; most editors have none. `keys` gives the keys that
        are known already, by subset."""
        yield from ()

    @abstractmethod
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What the edits changed, grouped by the file that holds it."""

    @abstractmethod
    def restore(self, tensors: dict[str, dict[str, Tensor]], extra: dict[str, Any]) -> None:
        """Take over the state that `tensors` and `extra` described."""

    def extra(self) -> dict[str, Any]:
        """The part of the state that is no tensor (JSON)."""
        return {}

    def save(self, path: Path) -> None:
        """Write the edits (not the backbone) as safetensors and JSON into the folder `path`."""
        described = {
            "editor": self.name,
            "backbone": self.backbone.content,
            "backbone_name": self.backbone.name,
            "config": asdict(self.config),
            "n_edits": self.n_edits,
            "n_batches": self.n_batches,
            "extra": self.extra(),
        }
        with atomic.folder(path) as scratch:
            for group, tensors in self.tensors().items():
                plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
                save_file(plain, scratch / f"{group}.safetensors")
            self._save_more(scratch)
            (scratch / "editor.json").write_text(json.dumps(described, indent=1), "utf-8")

    def _save_more(self, folder: Path) -> None:
        """Files beside the tensors, for editors that follow another library's format."""

    def load(self, path: Path) -> None:
        """Take over edits saved by an editor of the same name, configuration and backbone."""
        try:
            described = json.loads((path / "editor.json").read_text("utf-8"))
        except FileNotFoundError as error:
            raise EditorError(f"{path} holds no saved editor (editor.json is missing)") from error
        for what, saved, own in (
            ("editor", described["editor"], self.name),
            ("backbone", described["backbone"], self.backbone.content),
            ("configuration", described["config"], json.loads(json.dumps(asdict(self.config)))),
        ):
            if saved != own:
                raise EditorError(
                    f"{path} was saved by another {what} ({saved}); build the editor with the same "
                    f"{what} as when it was saved (this one: {own})"
                )
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
        self.rollback()
        self.restore(tensors, described["extra"])
        self.n_edits, self.n_batches = described["n_edits"], described["n_batches"]

    def counts(self) -> dict[str, float]:
        """Sizes and events so far, e.g. trainable parameters in use, stored key floats."""
        return {}
