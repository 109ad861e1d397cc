"""Where the subject ends, in which contexts, and passes over these strings (ref 2.4, 2.7, 11)."""

import contextlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded, batch_rows, encode_prompts, prompt_ids
from lib.backbones.passes.hooks import capture, first_tensor, stop_before
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.data.records import Edit
from lib.errors import EditorError


@dataclass(frozen=True)
class Request:
    """One fact: the prompt around its subject, and the answer it should get.

    The place of the subject is the edit's `subject_span`. (The official code replaces all
    occurrences and then fails where there are two.) Texts are joined, never formatted: braces are
    ordinary.
    """

    before: str
    subject: str
    after: str
    target: str

    @property
    def prompt(self) -> str:
        """The whole prompt."""
        return self.before + self.subject + self.after

    @classmethod
    def of(cls, edit: Edit, editor: str) -> "Request":
        """The request of an edit; an edit without a subject is an error."""
        if (place := edit.subject_span) is None:
            raise EditorError(
                f"{editor} edits at the subject's last token, and edit {edit.identity} names no "
                "subject in its prompt; leave it out or use records with subjects"
            )
        begin, end = place
        return cls(edit.prompt[:begin], edit.prompt[begin:end], edit.prompt[end:], edit.target)


class RightPadded(Encoded):
    """Rows padded on the right whose pads go on counting positions, as the official code feeds
    them: what a pad computes enters its scope statistics (ref 2.3)."""

    def positions(self) -> Tensor:
        """Position ids [B, T]: the column."""
        batch, width = self.input_ids.shape
        return torch.arange(width, device=self.input_ids.device).expand(batch, width)


@dataclass(frozen=True)
class Rows:
    """Strings about requests, tokenised: `subject` [R] is the column of the subject's last token,
    `lengths` [R] the number of real tokens, `owner` [R] the request that a row belongs to."""

    batch: RightPadded
    subject: Tensor
    lengths: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return len(self.batch)

    def select(self, rows: Tensor) -> "Rows":
        """Some of the rows, as wide as all."""
        of_each = (tensor[rows] for tensor in (self.subject, self.lengths, self.owner))
        return Rows(self.batch.select(rows), *of_each)


def head_length(backbone: Backbone) -> int:
    """Tokens of the document prefix in front of every prompt."""
    return len(prompt_ids(backbone, "")) if backbone.prefix else 0


def subject_column(backbone: Backbone, before: str, subject: str) -> int:
    """Index of the subject's last token: tokens of everything up to its end, minus one."""
    return len(prompt_ids(backbone, before + subject)) - 1


def encode_rows(
    backbone: Backbone,
    strings: Sequence[tuple[str, str, str]],
    owner: Sequence[int],
    continuation: Sequence[Sequence[int]] | None = None,
) -> Rows:
    """(before, subject, after) strings as rows; `continuation` are ids that follow each string."""
    ids = [
        prompt_ids(backbone, "".join(parts)) + list(continuation[number] if continuation else ())
        for number, parts in enumerate(strings)
    ]
    columns = [subject_column(backbone, before, subject) for before, subject, _ in strings]
    for (_, subject, _), column, row in zip(strings, columns, ids, strict=True):
        if not 0 <= column < len(row):
            raise EditorError(f"the subject {subject!r} has no token of its own in its prompt")
    batch = batch_rows(backbone, ids, [len(row) for row in ids], "right")
    device = batch.input_ids.device
    return Rows(
        RightPadded(batch.input_ids, batch.attention_mask, batch.last_prompt, batch.last_token),
        torch.tensor(columns, device=device),
        batch.last_token + 1,
        torch.tensor(list(owner), device=device),
    )


def contextual(request: Request, contexts: Sequence[str]) -> list[tuple[str, str, str]]:
    """The request's prompt behind each context text ("" is the prompt alone)."""
    return [(context + request.before, request.subject, request.after) for context in contexts]


def at_subject(hidden: Tensor, rows: Rows) -> Tensor:
    """hidden [R, T, d] at each row's subject column -> [R, d], detached."""
    return hidden[torch.arange(len(rows), device=hidden.device), rows.subject].detach().clone()


SEEDS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5


def sample_contexts(
    backbone: Backbone, groups: Sequence[tuple[int, int]], seed: int
) -> tuple[str, ...]:
    """The texts of each group (tokens, how many), the seed word counted, each ending in ". ".

    Top-5 sampling from the unedited backbone, one per seed word in turn. The official code draws
    them without a seed; here they depend on the backbone and `seed` alone. Must be called before
    anything in the model is edited.
    """
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return tuple(
            text for length, count in groups if count for text in _sampled(backbone, length, count)
        )


def _sampled(backbone: Backbone, length: int, count: int) -> Iterator[str]:
    words = [SEEDS[number % len(SEEDS)] for number in range(count)]
    batch = encode_prompts(backbone, words)
    head = head_length(backbone)
    first = batch.attention_mask.argmax(dim=1)  # rows are padded on the left
    new = max(1, head + length - int(batch.attention_mask.sum(dim=1).min()))
    ids = backbone.model.generate(
        **batch.inputs(),
        do_sample=True,
        top_k=TOP_K,
        min_new_tokens=new,
        max_new_tokens=new,
        pad_token_id=backbone.pad_id,
    )
    rows = [row[start : start + head + length] for row, start in zip(ids, first, strict=True)]
    texts = backbone.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return (f"{clean(text)}. " for text in texts)


def clean(text: str) -> str:
    """NFKD, blank lines and braces out: what the official code does to its contexts."""
    text = unicodedata.normalize("NFKD", text).replace("\n\n", " ")
    return text.replace("{", " ").replace("}", " ")


CHUNK = 128  # strings in one pass, as in the official code: pads count in its scope statistics

Counting = Callable[[Rows, Tensor], contextlib.AbstractContextManager[None]]
"""Says which columns count in the scope statistics of a pass over some rows: (rows, widths [R])."""


class SubjectPasses:
    """Strings (before, subject, after) whose states at the subject's last token are read.

    `settle(block)` declares everything below `block` final; `read` then starts there.
    """

    def __init__(
        self, backbone: Backbone, strings: Sequence[tuple[str, str, str]], counting: Counting
    ) -> None:
        self.backbone, self.counting = backbone, counting
        self.chunks = [
            encode_rows(backbone, strings[at : at + CHUNK], range(len(strings[at : at + CHUNK])))
            for at in range(0, len(strings), CHUNK)
        ]
        self.below = FrozenPrefix(backbone, 0)
        self.states: list[PrefixState | None] = [None] * len(self.chunks)

    def _counted(self, rows: Rows) -> contextlib.AbstractContextManager[None]:
        return self.counting(rows, torch.full_like(rows.lengths, rows.batch.input_ids.shape[1]))

    def settle(self, block: int) -> None:
        """Run the blocks between the last settled one and `block`, under the weights in force."""
        if block <= self.below.first:
            return
        above = FrozenPrefix(self.backbone, block)
        for number, rows in enumerate(self.chunks):
            with self._counted(rows), self.below.replay(self.states[number]):
                state = above.record(rows.batch)
            self.states[number] = state
        self.below = above

    @torch.no_grad()
    def read(self, part: str, block: int, *, of_input: bool = False) -> Tensor:
        """Output (or input) of a part of `block` at the subject's last token [B, w], float64."""
        found = []
        for rows, state in zip(self.chunks, self.states, strict=True):
            with contextlib.ExitStack() as context:
                context.enter_context(self._counted(rows))
                context.enter_context(self.below.replay(state))
                seen = context.enter_context(capture(self.backbone.module(part, block)))
                if block + 1 < self.backbone.n_blocks():
                    context.enter_context(stop_before(self.backbone.module("block", block + 1)))
                self.backbone.model.base_model(
                    **rows.batch.inputs(), position_ids=rows.batch.positions(), use_cache=False
                )
            taken = seen.input if of_input else first_tensor(seen.output)
            found.append(at_subject(taken, rows).double())
        return torch.cat(found)
