"""Where the subject ends: what locate-and-edit methods know about an edit (ref 2.4, 2.7)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import Encoded, batch_rows, prompt_ids
from lib.data.records import Edit
from lib.errors import EditorError


@dataclass(frozen=True)
class Request:
    """One fact: the prompt around its subject, and the answer it should get.

    The place of the subject is its first occurrence. (The official code replaces all of them and
    then fails where there are two.) Texts are joined, never formatted: braces are ordinary.
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
        if not edit.subject:
            raise EditorError(
                f"{editor} edits at the subject's last token, and edit {edit.identity} names no "
                "subject in its prompt; leave it out or use records with subjects"
            )
        before, _, after = edit.prompt.partition(edit.subject)
        return cls(before, edit.subject, after, edit.target)


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
