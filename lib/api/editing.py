"""`edit` and what it gives: a model with facts edited, to ask, to score, to keep, to take back."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from lib.api import facts as own
from lib.api.choices import Choice, choose
from lib.api.facts import checked_facts
from lib.api.models import Model, load
from lib.api.scores import score
from lib.api.supplies import Lessons, Text, announce, needs_lessons, stream_of, supplies
from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded, encode_prompts
from lib.backbones.sources import loading
from lib.data.records import Edit, Probe
from lib.editors import build
from lib.editors.base import Editor
from lib.errors import EditorError, RecordError

BATCH = 10  # facts edited together, as on the side-by-side page
DESCRIBED = "edits.json"
KEYS = {
    "model", "prefix", "dtype", "kind", "config", "origin", "text", "lessons", "facts",
    "begun_with",
}  # fmt: skip


class Edited:
    """A model while facts are edited in it: a context that gives the model back, bit for bit.

    `model` is the transformers model with the edits in force, for everything that transformers
    does with one. `origin` says where the editor's settings come from.
    """

    def __init__(
        self,
        editor: Editor,
        choice: Choice,
        begun_with: Sequence[Edit],
        *,
        facts: Sequence[Edit] = (),
        text: Text | None = None,
        lessons: Lessons | None = None,
    ) -> None:
        self.editor, self.facts = editor, tuple(facts)
        self.backbone: Backbone = editor.backbone
        self.origin, self.config = choice.origin, dict(choice.config)
        self._kind, self._text, self._lessons = choice.kind, text, lessons
        self._begun_with, self._fitted = tuple(begun_with), False

    @property
    def model(self) -> PreTrainedModel:
        """The edited model."""
        return self.editor.model

    def __repr__(self) -> str:
        state = "closed" if self.editor.closed else f"{self.editor.n_edits} edits"
        return f"<{self.editor.name} on {self.backbone.name}: {state}>"

    @overload
    def generate(self, prompts: str, max_new_tokens: int = ..., **options: Any) -> str: ...
    @overload
    def generate(
        self, prompts: Sequence[str], max_new_tokens: int = ..., **options: Any
    ) -> list[str]: ...
    def generate(
        self, prompts: str | Sequence[str], max_new_tokens: int = 20, **options: Any
    ) -> str | list[str]:
        """What the edited model writes after a prompt, or after each of several, without the
        prompt; a classifier's class numbers.

        Greedy unless `options` (those of transformers' `generate`) say otherwise; `seed` makes
        sampling repeatable. The text is the same for a prompt alone and in a batch, with every kind
        of cache and with none; a way that an editor does not support is an EditorError.
        """
        self._check_open()
        alone = isinstance(prompts, str)
        asked = [prompts] if alone else list(prompts)
        batch = encode_prompts(
            self.backbone, asked, max_length=self.editor.config.max_length,
            full_width=self.editor.config.full_width,
        )  # fmt: skip
        seed = options.pop("seed", None)
        if self.backbone.family.kind == "classifier":
            with torch.no_grad():
                classes = self.model(**batch.inputs()).logits.argmax(dim=-1)
            texts = [str(number) for number in classes.tolist()]
        else:
            texts = self._texts(batch, max_new_tokens, seed, options)
        return texts[0] if alone else texts

    def _texts(
        self, batch: Encoded, tokens: int, seed: int | None, options: dict[str, Any]
    ) -> list[str]:
        """Decoded continuations, one for each row and returned sequence."""
        given = batch.inputs() | {"max_new_tokens": tokens, "pad_token_id": self.backbone.pad_id}
        devices = [self.backbone.device] if self.backbone.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            ids = self.model.generate(**given | options)
        ids = getattr(ids, "sequences", ids)
        start = 1 if self.backbone.family.kind == "seq2seq" else batch.input_ids.shape[1]
        found = self.backbone.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
        return [text.strip() for text in found]

    def score(self, facts: Edit | Iterable[Edit] | None = None) -> pd.DataFrame:
        """A row for each prompt of the facts (default: the edited ones), their rephrases, locality
        and portability prompts, before and after the edits.

        `before`, `after`: what is decoded; `right_…`: whether it begins with the target;
        `forced_…`: whether every token of the target is the first choice when the target is fed
        in, which overstates edits; `probability_…`: of the target, fed in, as a geometric mean over
        its tokens; `unchanged`: whether the same is decoded. NaN where a prompt has no target.
        """
        self._check_open()
        return score(self.editor, self.facts if facts is None else checked_facts(facts))

    def edit(self, facts: Edit | Iterable[Edit], batch_size: int = BATCH) -> Self:
        """Edit further facts, on top of those that are in force."""
        self._check_open()
        if batch_size < 1:
            raise EditorError(f"batch_size {batch_size}: at least one fact is edited at a time")
        more = checked_facts(facts)
        stream = stream_of(more, batch_size)
        if not self._fitted:
            if self.editor.n_edits and needs_lessons(self._kind) and self.editor.training is None:
                raise EditorError(
                    f"{self.editor.name}'s opened edits came without the network that made them; "
                    "edit all facts anew with lib.edit, or open them with lessons=..."
                )
            announce(self.editor, self._kind, batch_size)
            self.editor.fit(stream)
            self._fitted = True
        batches = list(stream.batches())
        for batch in tqdm(
            batches, self.editor.name, unit="batch", leave=False, disable=len(batches) == 1
        ):
            self.editor.edit(batch)
            self.facts += tuple(batch)
        return self

    def save(self, folder: str | Path) -> Path:
        """Keep the edits, not the model, in a folder of their own; `lib.open` reads them."""
        self._check_open()
        folder = Path(folder).expanduser()
        described = {
            "model": self.backbone.name,
            "prefix": self.backbone.prefix,
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "kind": self._kind,
            "config": self.config,
            "origin": self.origin,
            "text": self._text if isinstance(self._text, str) else None,
            "lessons": self._lessons if isinstance(self._lessons, str) else None,
            "facts": [asdict(fact) for fact in self.facts],
            "begun_with": [asdict(fact) for fact in self._begun_with],
        }
        self.editor.save(folder, {DESCRIBED: json.dumps(described, indent=1, ensure_ascii=False)})
        return folder

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a stock checkpoint of the edited model, with its tokenizer: for editors whose edits
        are values of the model's own weights. EditorError for all others says what to do instead.

        As the model was prepared: without dropout, decoding greedily.
        """
        self._check_open()
        folder = Path(folder).expanduser()
        if self._kind == "lora":
            raise EditorError(
                "LoRA's edits are an adapter beside the weights: save(folder) writes it in PEFT's "
                "format. PeftModel.from_pretrained(model, folder) loads it into the stock model, "
                "and merge_and_unload() there makes a checkpoint"
            )
        if not self.editor.in_weights:
            raise EditorError(
                f"{self.editor.name} decides at each prompt what applies, which no stock "
                "checkpoint can do. Keep the edits with save(folder) and use them with "
                "lib.open(folder); or edit with a method that changes weights, such as MEMIT, ROME "
                "or FT-L, and save that"
            )
        self.model.save_pretrained(folder)
        self.backbone.tokenizer.save_pretrained(folder)
        return folder

    def rollback(self) -> None:
        """Take all edits back; more can follow."""
        self.editor.rollback()
        self.facts = ()

    def close(self) -> None:
        """Take all edits back, and the editor out of the model, which is then as it was loaded."""
        self.editor.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.editor.closed:
            raise EditorError(
                f"these edits of {self.editor.name} were taken back (the with block ended, or "
                "close() was called); edit again"
            )


def edit(
    model: Model,
    editor: str,
    facts: Edit | Iterable[Edit],
    *,
    batch_size: int = BATCH,
    text: Text | None = None,
    lessons: Lessons | None = None,
    **settings: Any,
) -> Edited:
    """Edit facts in a model: `with lib.edit(model, "MEMIT", facts) as edited: ...`.

    `editor`: a name of `lib.editors.registry.REGISTRY`, as code or pages write it ("ft_l", "FT-L").
    Facts are edited `batch_size` at a time. `settings` are laid over those found for the model
    (`origin` of the result says which). `text` for key statistics and `lessons` for what is trained
    before the first edit are the embedded ones unless given; both are announced with their time.

    One editor works on a model at a time: EditorError while another one's edits are in force.
    """
    backbone, chosen = load(model), checked_facts(facts)
    choice = choose(editor, backbone, settings)
    made = _built(choice, backbone, chosen, text, lessons)
    try:
        edited = Edited(made, choice, chosen, text=text, lessons=lessons)
        return edited.edit(chosen, batch_size)
    except BaseException:
        made.close()
        raise


def open(
    folder: str | Path,
    model: Model | None = None,
    *,
    text: Text | None = None,
    lessons: Lessons | None = None,
    device: str | torch.device = "cpu",
) -> Edited:
    """The edits that `Edited.save` kept, in force on the model that they were made on.

    `model` is loaded by the name that was saved unless it is given: it must be, for a model that
    was given in memory. `text` and `lessons` must be given again where they were one's own.
    EditorError for a folder that is damaged, and for a model of other weights or precision; nothing
    is changed then.
    """
    folder = Path(folder).expanduser()
    described = _described(folder)
    if model is None:
        if described["model"].endswith(loading.IN_MEMORY):
            raise EditorError(
                f"{folder}: these edits were made on a model in memory, {described['model']}; give "
                "it: lib.open(folder, (model, tokenizer))"
            )
        model = load(
            described["model"], dtype=described["dtype"], device=device, prefix=described["prefix"]
        )
    backbone = load(model)
    try:
        facts, begun_with = (
            [_fact(values) for values in described[name]] for name in ("facts", "begun_with")
        )
    except (TypeError, AttributeError, RecordError) as error:
        raise EditorError(f"{folder / DESCRIBED} is damaged ({error})") from error
    choice = Choice(described["kind"], described["config"], described["origin"])
    text = described["text"] if text is None else text
    answers = choice.kind == "serac"  # by networks that its edits need
    if lessons is None and answers:
        lessons = described["lessons"]
    learns = lessons is not None or answers
    made = _built(choice, backbone, begun_with, text, lessons, learns=learns)
    try:
        if learns or not needs_lessons(choice.kind):
            announce(made, choice.kind, BATCH)
        made.load(folder)
    except BaseException:
        made.close()
        raise
    return Edited(made, choice, begun_with, facts=facts, text=text, lessons=lessons)


def _fact(values: dict[str, Any]) -> Edit:
    probes = {
        name: tuple(Probe(**probe) for probe in values[name])
        for name in ("locality", "portability")
    }
    return own.Edit(**values | probes | {"rephrases": tuple(values["rephrases"])})


def _described(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIBED
    try:
        found = json.loads(path.read_text("utf-8"))
        missing = KEYS - {*found}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EditorError(
            f"{folder} holds no saved edits ({DESCRIBED} is missing); give a folder that "
            "Edited.save wrote"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise EditorError(f"{path} is damaged; save the edits again") from error
    if missing:
        raise EditorError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    return found


def _built(
    choice: Choice,
    backbone: Backbone,
    facts: Sequence[Edit],
    text: Text | None,
    lessons: Lessons | None,
    *,
    learns: bool = True,
) -> Editor:
    stream = stream_of(facts, len(facts))
    given = supplies(choice.kind, backbone, stream, text, lessons, learns=learns)
    return build(choice.kind, backbone, choice.config, **given)
