"""What every editor is: takes a backbone, accepts batches of edits, leaves an ordinary model."""

import contextlib
import copy
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded, check_length, encode, encode_prompts
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import Edit, Stream
from lib.editors.parts.routing import PromptTracker
from lib.editors.parts.stand_in import StandIn
from lib.errors import EditorError
from lib.storage import atomic
from lib.storage.checked import FORBID

KeysOf = Callable[[str], Tensor]
"""The keys [n, d] of all rows of a subset of the stream, in its order."""

# What `Editor.save` says of an editor beside its tensors.
STATE = {
    "editor", "backbone", "dtype", "prefix", "config", "n_edits", "n_batches", "extra", "files",
}  # fmt: skip
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


class _AtWork:
    """Names the editor of a model on the model itself, which keeps it from being collected while
    its edits are in force. A copy of the model, pickled or deep, has no editor."""

    NAME = "_editor_at_work"

    def __init__(self, editor: "Editor | None" = None) -> None:
        self.editor = editor

    def __reduce__(self) -> tuple[type, tuple]:
        return _AtWork, ()


def editor_of(backbone: Backbone) -> "Editor | None":
    """The editor that is at work on a backbone, None for a backbone as it was loaded: for one that
    is to be closed and that no variable names any more."""
    held = backbone.model.__dict__.get(_AtWork.NAME)
    return None if held is None else held.editor


class Editor(ABC):
    """A method. `model` is always a normal, callable, `generate()`-able model.

    One editor at a time: from its first edit (or loaded edits) to `rollback` or `close` an editor
    is at work on its backbone, one that puts adapters into it from its construction to `close`.
    Meanwhile no other can be built on it, fitted or edit: EditorError names the one that is.

    `generate` gives the same text with every kind of key-value cache and with none; where an
    editor cannot keep its decision (a cache that is filled already, SERAC's beams) it is an
    EditorError. `model.save_pretrained` keeps edits that are plain weights (`in_weights`), and is
    an EditorError for all others while they are in force: `save` keeps those. The model must stay
    in the precision and on the device of its backbone.

    A prompt that is edited again with another answer is what the method makes of it. Trained and
    solved weights move on to the newer one; an index may keep the older (SERAC) or neither (GRACE
    and MELO as released, whose radii shrink to nothing). `edit` warns where the newer answer does
    not reach its own prompt, and where one batch holds two answers to the same prompt.

    Subclasses declare which kinds of backbone they support and implement `_edit`, `_rollback`,
    `tensors` and `restore` (their whole state); `_remove` if they put hooks or adapters into the
    model; if rows are treated differently also `watch`, `keys_from`, `routes_of` and `routed`, and
    `tracker` if a row's treatment is decided at its prompt.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]] = frozenset({"causal", "seq2seq", "classifier"})
    needs: ClassVar[tuple[str, ...]] = ()  # resources that `build` passes to the constructor
    backbone_fields: ClassVar[tuple[str, ...]] = ()  # of the configuration: further backbones
    in_weights: ClassVar[bool] = False  # whether edits are values of the model's own weights
    adapts: ClassVar[bool] = False  # whether modules of the model are others until `close`
    beams: ClassVar[bool] = True  # whether `generate` may search with beams
    tracker: PromptTracker | None = None
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
        self.closed = False
        self._answers: dict[str, str] = {}  # of the prompts that this object edited
        self._check_free()

    @property
    def model(self) -> PreTrainedModel:
        """The backbone's model with whatever this editor has put into it."""
        return self.backbone.model

    # -- one editor at a time --------------------------------------------------------------------

    @property
    def _holds(self) -> bool:
        return editor_of(self.backbone) is self

    def _has_edits(self) -> bool:
        return self.n_batches > 0

    def _check_free(self) -> None:
        if self.closed:
            raise EditorError(f"this {self.name} editor was closed; build a new one")
        other = editor_of(self.backbone)
        if other is not None and other is not self:
            raise EditorError(
                f"{other.name} is at work on {self.backbone.name} ({other.n_edits} edits); close() "
                f"it before {self.name} begins. If no variable names it any more (a notebook cell "
                "run twice): lib.editors.base.editor_of(backbone).close()"
            )

    def _check_ready(self) -> None:
        self._check_free()
        own, now = self.backbone, next(self.model.parameters())
        index = own.device.index in (None, now.device.index)
        if now.dtype != own.dtype or now.device.type != own.device.type or not index:
            raise EditorError(
                f"{own.name} was loaded in {own.dtype} on {own.device}, but its model is now in "
                f"{now.dtype} on {now.device}; move it back, or load the backbone as you want it"
            )

    def _take(self) -> None:
        """Be the editor at work on the backbone, which must be free."""
        setattr(self.model, _AtWork.NAME, _AtWork(self))
        if self.tracker is not None and self.model.can_generate():
            self.model.generate = self._generate
        if not self.in_weights:
            self.model.save_pretrained = self._save_pretrained

    def _free(self) -> None:
        for name in (_AtWork.NAME, "generate", "save_pretrained"):
            self.model.__dict__.pop(name, None)

    def _generate(self, inputs: Tensor | None = None, *others: Any, **options: Any) -> Any:
        """The model's own `generate`; the editor knows where the prompts end."""
        settings = options.get("generation_config") or (others and others[0])
        beams = options.get("num_beams") or getattr(settings, "num_beams", None)
        if not self.beams and (beams or self.model.generation_config.num_beams or 1) > 1:
            raise EditorError(f"{self.name} does not go with beam search; generate with one beam")
        given = (inputs, options.get("input_ids"), options.get("inputs_embeds"))
        width = next((some.shape[1] for some in given if some is not None), 1)
        with self.tracker.generation(width):
            return type(self.model).generate(self.model, inputs, *others, **options)

    def _save_pretrained(self, *_where: Any, **_options: Any) -> None:
        raise EditorError(
            f"{self.name}'s edits are not weights of {self.backbone.name}, and save_pretrained "
            "would not keep them: save them with the editor's own save(folder), and load(folder) "
            "them into an editor of the same configuration on the same backbone"
        )

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """The model is the backbone inside the context, bit for bit, and edited again after it;
        takes as much memory as the edits."""
        self._check_ready()
        put_back, numbers = Editor._undoing(self), (self.n_edits, self.n_batches)
        answers, self._answers = self._answers, {}
        self.rollback()
        try:
            yield
        finally:
            self._take()
            self.n_edits, self.n_batches = numbers
            self._answers = answers
            put_back()
            if not (self._has_edits() or self.adapts):
                self._free()

    @contextlib.contextmanager
    def _whole(self, undo: Callable[[], None]) -> Iterator[None]:
        """What happens inside happens wholly, or is undone."""
        self._take()
        numbers = self.n_edits, self.n_batches
        try:
            yield
        except BaseException:
            self.n_edits, self.n_batches = numbers
            undo()
            raise
        finally:
            if not (self._has_edits() or self.adapts):
                self._free()

    def _undoing(self) -> Callable[[], None]:
        """What puts the present state back, should an edit fail half-way."""
        copies = {
            group: {name: tensor.detach().clone() for name, tensor in tensors.items()}
            for group, tensors in self.tensors().items()
        }
        extra = copy.deepcopy(self.extra())

        def undo() -> None:
            self._rollback()
            self.restore(copies, extra)

        return undo

    # -- editing ---------------------------------------------------------------------------------

    def fit(self, stream: Stream) -> None:
        """Meta-training or statistics before the first edit; most editors need none."""
        self._check_ready()
        self._fit(stream)

    def _fit(self, stream: Stream) -> None:
        """See `fit`."""

    def edit(self, batch: Sequence[Edit]) -> EditReport:
        """Apply one batch of edits; may be called again and again. An error, or an interruption,
        leaves model and editor as they were before the call; so do edits that
        are no finite numbers. RecordError for a record that is longer than the model can read."""
        if not batch:
            raise EditorError("an empty batch of edits cannot be applied")
        self._check_ready()
        length, front = self.config.max_length, self.tokens_before()
        for edit in batch:
            check_length(self.backbone, edit, max_length=length, before=front)
        answers = {edit.prompt: edit.target for edit in batch}
        again = [p for p, answer in answers.items() if self._answers.get(p, answer) != answer]
        before = self._routes_alone(again)
        with self._whole(self._undoing()), torch.enable_grad():
            report = self._edit(batch)
            self._check_finite(report)
            self.n_edits += len(batch)
            self.n_batches += 1
        self._answers |= answers
        two = [edit.prompt for edit in batch if answers[edit.prompt] != edit.target]
        if two:
            self._warn(f"the batch holds two answers to {two[0]!r}, and none is sure")
        for prompt, old, new in zip(again, before, self._routes_alone(again), strict=True):
            if new == UNEDITED:
                self._warn(f"{prompt!r} has two answers now and gets neither")
            elif new == old:
                self._warn(f"an earlier edit still answers {prompt!r}")
        return report

    def _check_finite(self, report: EditReport) -> None:
        """EditorError if the first loss, or anything that the edits changed, is no finite number;
        a later loss that is none leaves none in what it changed."""
        found = {"the loss": torch.tensor(report.loss_first)}
        for tensors in self.tensors().values():
            found |= tensors
        for name, tensor in found.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise EditorError(
                    f"{self.name}: {name} is not finite after {self.n_edits} earlier edits; lower "
                    "the learning rate, or load the backbone in float32"
                )

    def tokens_before(self) -> int:
        """Most tokens that the editor puts in front of a prompt when it edits."""
        return 0

    def _routes_alone(self, prompts: Sequence[str]) -> list[str]:
        length, full_width = self.config.max_length, self.config.full_width
        batches = (
            encode_prompts(self.backbone, [prompt], max_length=length, full_width=full_width)
            for prompt in prompts
        )
        return [self.route(batch)[0] for batch in batches]

    def _warn(self, what: str) -> None:
        warnings.warn(f"{self.name}: {what}; roll back and edit each prompt once", stacklevel=3)

    @abstractmethod
    def _edit(self, batch: Sequence[Edit]) -> EditReport: ...

    def encoded(self, batch: Sequence[Edit]) -> Encoded:
        """The prompts of some edits with their targets as labels, in order."""
        prompts, targets = [edit.prompt for edit in batch], [edit.target for edit in batch]
        length, full_width = self.config.max_length, self.config.full_width
        return encode(self.backbone, prompts, targets, max_length=length, full_width=full_width)

    def rollback(self) -> None:
        """Make the model the backbone again, bit for bit, and forget every edit. Another editor can
        take over then, unless this one has adapters in the model."""
        if self.closed or editor_of(self.backbone) not in (self, None):
            return  # there is nothing to roll back, and the weights are another editor's
        self._rollback()
        self.n_edits = self.n_batches = 0
        self._answers = {}
        if not self.adapts:
            self._free()

    @abstractmethod
    def _rollback(self) -> None: ...

    def close(self) -> None:
        """Roll back and take every hook and adapter out of the model; the end of this editor."""
        if self.closed:
            return
        self.rollback()
        self._remove()
        if self._holds:
            self._free()
        self.closed = True

    def _remove(self) -> None:
        """Take hooks and adapters out of the model."""

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
        """Take over the state that `tensors` and `extra` described; `n_edits` and `n_batches` are
        that state's already, the model is the backbone."""

    def extra(self) -> dict[str, Any]:
        """The part of the state that is no tensor (JSON)."""
        return {}

    def save(self, path: Path, beside: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write the edits (not the backbone) as safetensors and JSON into the folder `path`, and
        the texts `beside` as files of these names. An editor saved there before is replaced; a
        folder that holds anything else is an EditorError.
        """
        self._check_free()
        if path.exists() and not (path / "editor.json").exists() and not _is_empty(path):
            raise EditorError(
                f"{path} exists and holds no saved editor; save into a folder of its own"
            )
        described = {
            "editor": self.name,
            "backbone": self.backbone.content,
            "backbone_name": self.backbone.name,
            "dtype": str(self.backbone.dtype),
            "prefix": self.backbone.prefix,
            "config": asdict(self.config),
            "n_edits": self.n_edits,
            "n_batches": self.n_batches,
            "extra": self.extra(),
        }
        groups = self.tensors()
        with atomic.folder(path) as scratch:
            for group, tensors in groups.items():
                plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
                save_file(plain, scratch / f"{group}.safetensors")
            written = (scratch / f"{group}.safetensors" for group in groups)
            described["files"] = {file.name: atomic.digest(file) for file in written}
            self._save_more(scratch)
            for name, text in beside.items():
                (scratch / name).write_text(text, "utf-8")
            (scratch / "editor.json").write_text(json.dumps(described, indent=1), "utf-8")

    def _save_more(self, folder: Path) -> None:
        """Files beside the tensors, for editors that follow another library's format."""

    def load(self, path: Path) -> None:
        """Take over edits saved by an editor of the same name, configuration and backbone, in the
        place of this one's own. EditorError, and nothing changed, for those of any other."""
        self._check_ready()
        try:
            described = json.loads((path / "editor.json").read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise EditorError(
                f"{path} holds no saved editor (editor.json is missing); give a folder that "
                "save() wrote"
            ) from error
        except (OSError, ValueError) as error:
            raise EditorError(f"{path / 'editor.json'} is damaged; save the edits again") from error
        if not isinstance(described, dict) or not described.keys() >= STATE:
            raise EditorError(
                f"{path / 'editor.json'} is damaged, or of another version of this library; save "
                "the edits again"
            )
        for what, saved, own in (
            ("editor", described["editor"], self.name),
            ("precision", described["dtype"], str(self.backbone.dtype)),
            ("prefix of prompts", described["prefix"], self.backbone.prefix),
            ("backbone", described["backbone"], self.backbone.content),
            ("configuration", described["config"], json.loads(json.dumps(asdict(self.config)))),
        ):
            if saved != own:
                raise EditorError(
                    f"{path} was saved by another {what} ({saved}); build the editor with the same "
                    f"{what} as when it was saved (this one: {own})"
                )
        files = described["files"]
        missing = [name for name in files if not (path / name).is_file()]
        if missing:
            raise EditorError(
                f"{path} is incomplete: {', '.join(missing)} is missing; save the edits again"
            )
        tensors = {Path(name).stem: _read(path / name, kept) for name, kept in files.items()}
        with self._whole(Editor._undoing(self)):
            self._rollback()
            self.n_edits, self.n_batches = described["n_edits"], described["n_batches"]
            self.restore(tensors, described["extra"])

    def counts(self) -> dict[str, float]:
        """Sizes and events so far, e.g. trainable parameters in use, stored key floats."""
        return {}


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _read(file: Path, kept: str) -> dict[str, Tensor]:
    """The tensors of a file; EditorError if it is not the one of this sha256."""
    try:
        if atomic.digest(file) != kept:
            raise EditorError(f"{file} is damaged (its sha256 is another); save the edits again")
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise EditorError(f"{file} is damaged ({error}); save the edits again") from error
