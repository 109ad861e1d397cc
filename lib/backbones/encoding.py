"""Prompts and targets as tensors, one convention per backbone kind.

* causal: prefix + prompt + " target" + end; labels only on the target and its end;
* seq2seq: question and answer apart, each with its end, cut at `max_length` tokens;
* classifier: the text; the target is the class number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.data.records import Edit, Probe
from lib.errors import RecordError

IGNORED = -100
SPARE = 8  # marks that a tokenizer may add to a prompt and an answer


@dataclass(frozen=True)
class Encoded:
    """A padded batch. Shapes: `input_ids`, `attention_mask` [B, T] (the mask of tokens that go on
    from a cache covers what came before them as well); `labels` [B, T] for causal
    models, [B, T_target] for seq2seq, [B] for classifiers, None for prompts alone.

    `last_prompt` [B] is the column of each row's last prompt token, `last_token` [B] that of its
    last real token (they differ where a causal row carries its target). `pads_count`: whether pads
    take positions, as in a call that passes no position ids.
    """

    input_ids: Tensor
    attention_mask: Tensor
    last_prompt: Tensor
    last_token: Tensor
    labels: Tensor | None = None
    pads_count: bool = False

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def inputs(self) -> dict[str, Tensor]:
        """What the model's forward takes, without labels."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def positions(self) -> Tensor:
        """Position ids [B, T] that ignore padding on either side, unless `pads_count`."""
        counted = torch.ones_like(self.attention_mask) if self.pads_count else self.attention_mask
        return (counted.cumsum(dim=1) - 1).clamp(min=0)[:, -self.input_ids.shape[1] :]

    def onward(self, tokens: Tensor, real: Tensor) -> "Encoded":
        """More tokens [B, T'] behind these rows, which a cache then holds; `real`: which count."""
        mask = torch.cat([self.attention_mask, real.long()], dim=1)
        return replace(self, input_ids=tokens, attention_mask=mask, labels=None)

    def to(self, device: torch.device | str) -> "Encoded":
        """The same batch on another device."""
        return self._each(lambda value: value.to(device))

    def select(self, rows: Tensor) -> "Encoded":
        """Some rows of the batch, as wide as it is."""
        return self._each(lambda value: value.index_select(0, rows.to(value.device)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Encoded":
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **{name: change(value) for name, value in tensors.items()})


def pad(rows: Sequence[Sequence[int]], value: int, side: str = "right", width: int = 0) -> Tensor:
    """A rectangle [B, T] from ragged rows, filled with `value` on the given side; at least `width`
    columns."""
    width = max(width, *(len(row) for row in rows))
    filled = [
        [*row, *[value] * (width - len(row))]
        if side == "right"
        else [*[value] * (width - len(row)), *row]
        for row in rows
    ]
    return torch.tensor(filled, dtype=torch.long)


def prompt_ids(backbone: Backbone, prompt: str, max_length: int | None = None) -> list[int]:
    """Token ids of one prompt as the backbone reads it (document prefix, template, end mark)."""
    return _ids(backbone, backbone.prefix + prompt, max_length)


def _ids(backbone: Backbone, text: str, max_length: int | None) -> list[int]:
    cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
    return backbone.tokenizer(text, **cut)["input_ids"]


def target_ids(backbone: Backbone, target: str, max_length: int | None = None) -> list[int]:
    """Token ids of one target, its end mark included.

    Causal targets start with the space that separates them from the prompt; one of more than
    `max_length` tokens is cut and then has no end mark.
    """
    if backbone.family.kind == "seq2seq":
        return _ids(backbone, target, max_length)
    ids = backbone.tokenizer(" " + target.strip(), add_special_tokens=False)["input_ids"]
    cut = max_length is not None and len(ids) > max_length
    return ids[:max_length] if cut else [*ids, backbone.eos_id]


def answer_ids(backbone: Backbone, target: str, max_length: int | None = None) -> list[int]:
    """Token ids of one target without its end mark."""
    ids = target_ids(backbone, target, max_length)
    return ids[:-1] if ids and ids[-1] == backbone.eos_id else ids


def check_length(
    backbone: Backbone,
    record: Edit | Probe,
    *,
    max_length: int | None = None,
    written: int = 0,
    before: int = 0,
) -> None:
    """RecordError if the model cannot read a record's prompt, its own prefix included, and its
    answer, cut at `max_length`, or as many `written` tokens instead; `before`: tokens in front."""
    longest = backbone.longest
    # A token takes a character at least; this spares nearly all records the tokenizer.
    most = len(f"{backbone.prefix}{record.prompt}{record.target}".encode()) + SPARE
    if longest is None or before + written + most <= longest:
        return
    length = before + len(prompt_ids(backbone, record.prompt, max_length))
    if backbone.family.kind == "causal":
        length += max(len(target_ids(backbone, record.target, max_length)), written)
    if length > longest:
        raise RecordError(
            f"{record.identity}: prompt and answer take {length} tokens, and {backbone.name} reads "
            f"{longest} at once. Shorten the record, give the editor a max_length, or pass "
            "--skip-bad to leave such records out (they are counted in the report)."
        )


def batch_rows(
    backbone: Backbone, rows: list[list[int]], prompt_lengths: list[int], side: str, width: int = 0
) -> Encoded:
    """Ragged token ids as a padded batch of at least `width` columns; `prompt_lengths` counts each
    row's prompt tokens. RecordError if a prompt has none, or a row more than the model can read:
    on a GPU such a row would end the process's context."""
    if not all(prompt_lengths):
        raise RecordError(
            f"an empty prompt has no token on {backbone.name}, which begins no document with a "
            "mark of its own; take the first words of the text as its prompt"
        )
    input_ids = pad(rows, backbone.pad_id, side, width)
    width = input_ids.shape[1]
    if backbone.longest is not None and width > backbone.longest:
        begin = backbone.tokenizer.decode(max(rows, key=len)[:20])
        raise RecordError(
            f"a text of {width} tokens is longer than {backbone.name} can read "
            f"({backbone.longest}): {begin!r} ... Shorten the record, or give the editor a "
            "max_length."
        )
    mask = pad([[1] * len(row) for row in rows], 0, side, width)
    lengths = torch.tensor([len(row) for row in rows])
    start = torch.zeros_like(lengths) if side == "right" else width - lengths
    last_prompt = start + torch.tensor(prompt_lengths) - 1
    return Encoded(input_ids, mask, last_prompt, start + lengths - 1).to(backbone.device)


def encode_prompts(
    backbone: Backbone,
    prompts: Sequence[str],
    *,
    max_length: int | None = None,
    side: str | None = None,
    full_width: bool = False,
) -> Encoded:
    """Prompts alone, for decoding and routing. Causal rows are padded on the left by default, so
    that the next token follows the last column; all others on the right. `full_width`: every row
    to `max_length`, however short the rows are.
    """
    side = side or ("left" if backbone.family.kind == "causal" else "right")
    rows = [prompt_ids(backbone, prompt, max_length) for prompt in prompts]
    width = max_length if full_width and max_length else 0
    return batch_rows(backbone, rows, [len(row) for row in rows], side, width)


def encode(
    backbone: Backbone,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    max_length: int | None = None,
    side: str = "right",
    full_width: bool = False,
) -> Encoded:
    """Prompts with their targets as training labels (ignored positions are -100); `full_width` as
    in `encode_prompts`, for classifiers."""
    kind = backbone.family.kind
    if kind == "causal":
        heads = [prompt_ids(backbone, prompt, max_length) for prompt in prompts]
        tails = [target_ids(backbone, target, max_length) for target in targets]
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        batch = batch_rows(backbone, rows, [len(head) for head in heads], side)
        labels = pad(
            [[IGNORED] * len(head) + tail for head, tail in zip(heads, tails, strict=True)],
            IGNORED,
            side,
        )
    else:
        batch = encode_prompts(backbone, prompts, max_length=max_length, full_width=full_width)
        if kind == "seq2seq":
            labels = pad([target_ids(backbone, text, max_length) for text in targets], IGNORED)
        else:
            labels = torch.tensor([class_number(backbone, text) for text in targets])
    return replace(batch, labels=labels.to(backbone.device))


def class_number(backbone: Backbone, target: str) -> int:
    """A classifier's target as the number it names; RecordError if there is no such class."""
    count = backbone.model.config.num_labels
    if not target.strip().isdigit() or int(target) >= count:
        raise RecordError(
            f"the target {target!r} is no class of {backbone.name}; "
            f"a classifier's target is a number from 0 to {count - 1}"
        )
    return int(target)


def label_codes(labels: Tensor) -> Tensor:
    """The official code's label identity: the sum of label ids, ignored positions as 0. [B]

    Collision-prone and blind to order on purpose: MELO's index compares labels by it (melo 2.5).
    """
    if labels.ndim == 1:
        return labels.clone()
    return labels.masked_fill(labels == IGNORED, 0).sum(dim=1)
