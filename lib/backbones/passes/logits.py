"""Logits where a label is, and the teacher-forced scores made of them.

Whole passes over prompt and answer stand here; `decoding` scores answers as continuations of a
pass over the prompts. The two agree for every editor that treats all tokens alike.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, Encoded, answer_ids, batch_rows, encode, pad, prompt_ids
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.errors import RecordError
from lib.metrics import scores


@contextlib.contextmanager
def head_at(model: PreTrainedModel, at: Tensor) -> Iterator[None]:
    """Passes inside the context apply the output matrix at the N places of `at` [B, T] alone: their
    logits are [N, V], of flat rows (a slice takes a processor a hundred times as long)."""
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _module, inputs: (inputs[0][at],))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def ends_at(backbone: Backbone, at: Tensor | None) -> Iterator[None]:
    """In passes inside the context the last block runs its MLP in `columns_of(at)` alone, and its
    output is right there alone: for passes of which only the places of `at` [B, T] are read, and
    nothing inside that MLP by its column. A classifier reads its first token, whatever `at` is; all
    of an encoder-decoder's last block is read.
    """
    family, last = backbone.family, backbone.n_blocks() - 1
    # All that the rest of a block of BERT reads is what its attention gives.
    part = "mlp" if "mlp" in family.parts() else "attention"
    module = None if family.kind == "seq2seq" else backbone.module(part, last)
    if module is None or "forward" in vars(module):  # what a frozen prefix replays is whole
        yield
        return
    whole, columns = module.forward, None if family.kind == "classifier" else columns_of(at)

    def mlp(hidden: Tensor) -> Tensor:
        own = hidden.new_zeros(len(hidden), 1, dtype=torch.long) if columns is None else columns
        rows = torch.arange(len(own), device=own.device)[:, None]
        some = whole(hidden[rows, own])
        return some.new_zeros(*hidden.shape[:2], some.shape[2]).index_put((rows, own), some)

    def attention(*arguments: Any, **keywords: Any) -> Any:
        output, *others = whole(*arguments, **keywords)
        return output[:, :1], *others

    module.forward = mlp if part == "mlp" else attention
    try:
        yield
    finally:
        del module.forward


def columns_of(at: Tensor) -> Tensor:
    """As many columns of each row [B, C], ascending, as hold all places of `at` [B, T]: rows with
    fewer places have others beside them."""
    most = int(at.sum(dim=1).max())
    first = at.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    return first.sort(dim=1).values


def answer_logits(model: PreTrainedModel, labels: Tensor, **inputs: Any) -> Tensor:
    """Logits [N, V] of an encoder-decoder at the N labels [B, T], row by row."""
    decoder_ids = model.prepare_decoder_input_ids_from_labels(labels)
    with head_at(model, labels != IGNORED):
        return model(**inputs, decoder_input_ids=decoder_ids, use_cache=False).logits


def target_logits(
    backbone: Backbone, batch: Encoded, *, labels_only: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher-forced logits at the label positions.

    Returns logits [N, V], labels [N] and the batch row of each [N], N = number of labels. The
    output matrix is applied to those N positions only: equal to the full pass, and it is a fifth
    of a small model's work. `labels_only`: so is the last block's MLP (see `ends_at`).
    """
    kind, model = backbone.family.kind, backbone.model
    if kind == "classifier":
        with ends_at(backbone, None) if labels_only else contextlib.nullcontext():
            logits = model(**batch.inputs()).logits
        return logits, batch.labels, torch.arange(len(batch), device=logits.device)
    if kind == "seq2seq":
        rows, columns = (batch.labels != IGNORED).nonzero(as_tuple=True)
        logits = answer_logits(model, batch.labels, **batch.inputs())
        return logits, batch.labels[rows, columns], rows
    at = functional.pad(batch.labels[:, 1:] != IGNORED, (0, 1))
    with ends_at(backbone, at) if labels_only else contextlib.nullcontext():
        hidden = model.base_model(
            **batch.inputs(), position_ids=batch.positions(), use_cache=False
        ).last_hidden_state
    rows, columns = at.nonzero(as_tuple=True)
    logits = model.get_output_embeddings()(hidden[rows, columns])
    return logits, batch.labels[rows, columns + 1], rows


def batch_loss(backbone: Backbone, batch: Encoded) -> Tensor:
    """Mean cross-entropy over all labels of the batch (token-weighted, as Hugging Face's own), by a
    pass of `labels_only`."""
    logits, labels, _ = target_logits(backbone, batch, labels_only=True)
    return functional.cross_entropy(logits.float(), labels)


@dataclass(frozen=True)
class TargetScores:
    """For each row, at each token of its target: the target's id, its negative log-likelihood
    (nats) and the id that is the argmax. Rows without a target hold empty tuples."""

    ids: list[tuple[int, ...]]
    token_nll: list[tuple[float, ...]]
    argmax: list[tuple[int, ...]]

    @property
    def nll(self) -> list[float]:
        """Mean negative log-likelihood per target token of each row (NaN without a target)."""
        return [scores.mean(row) for row in self.token_nll]

    @property
    def token_accuracy(self) -> list[float]:
        """Share of each row's target tokens that are the argmax (NaN without a target)."""
        pairs = zip(self.argmax, self.ids, strict=True)
        return [scores.answer_accuracy(argmax, ids) for argmax, ids in pairs]

    def without(self, end: int) -> "TargetScores":
        """The scores of the answers alone: a target's closing end mark is left out."""
        kept = [len(row) - (row[-1:] == (end,)) for row in self.ids]

        def cut(rows: Sequence[tuple]) -> list[tuple]:
            return [row[:count] for row, count in zip(rows, kept, strict=True)]

        return TargetScores(cut(self.ids), cut(self.token_nll), cut(self.argmax))


def scores_at(logits: Tensor, labels: Tensor, counts: Sequence[int]) -> TargetScores:
    """Scores of logits [N, V] that predict labels [N]; rows own `counts` of the N, in order."""
    nll = functional.cross_entropy(logits.float(), labels, reduction="none")
    parts = (values.split(list(counts)) for values in (labels, nll, logits.argmax(dim=-1)))
    return TargetScores(*([tuple(row.tolist()) for row in rows] for rows in parts))


@dataclass(frozen=True)
class WholeRows:
    """Prompts with answers, right-padded and without end mark, as one pass reads them. `rows` are
    the rows of the batch that they stand for, `state` the frozen prefix."""

    rows: tuple[int, ...]
    encoded: Encoded
    state: PrefixState


def prepare_whole(
    backbone: Backbone,
    prefix: FrozenPrefix,
    prompts: Sequence[str],
    answers: Sequence[str],
    max_length: int | None = None,
) -> WholeRows | None:
    """Encode the rows that have an answer and run the frozen prefix on them, once; None if no row
    has one. For causal backbones."""
    rows = [row for row, answer in enumerate(answers) if answer]
    if not rows:
        return None
    heads = [prompt_ids(backbone, prompts[row], max_length) for row in rows]
    tails = [answer_ids(backbone, answers[row], max_length) for row in rows]
    whole = [head + tail for head, tail in zip(heads, tails, strict=True)]
    labels = [[IGNORED] * len(head) + tail for head, tail in zip(heads, tails, strict=True)]
    encoded = batch_rows(backbone, whole, [len(head) for head in heads], "right")
    encoded = replace(encoded, labels=pad(labels, IGNORED).to(backbone.device))
    return WholeRows(tuple(rows), encoded, prefix.record(encoded))


@torch.no_grad()
def score_whole(backbone: Backbone, prefix: FrozenPrefix, whole: WholeRows) -> TargetScores:
    """Scores of the answers by one whole pass under the weights in force."""
    with prefix.replay(whole.state):
        logits, labels, _ = target_logits(backbone, whole.encoded)
    return scores_at(logits, labels, (whole.encoded.labels != IGNORED).sum(dim=1).tolist())


@dataclass(frozen=True)
class FactRows:
    """Prompts with their answers, B rows, laid out as the official code does (malmen 2.7).

    Causal: the prompt and the answer without its last token, right-padded [B, P + A - 1].
    Otherwise the prompt alone. `labels` hold the id that is predicted at each position, -100
    elsewhere: [B, P + A - 1] (causal) or [B, A] (seq2seq); class numbers [B] for a classifier.
    """

    encoded: Encoded
    labels: Tensor

    def __len__(self) -> int:
        return len(self.encoded)


def fact_rows(
    backbone: Backbone,
    prompts: Sequence[str],
    answers: Sequence[str],
    max_length: int | None = None,
) -> FactRows:
    """Encode prompts with their answers; answers carry no end mark (malmen 2.7).

    Raises RecordError for an answer that leaves no token.
    """
    if backbone.family.kind == "classifier":
        encoded = encode(backbone, prompts, answers, max_length=max_length)
        return FactRows(encoded, encoded.labels)
    heads = [prompt_ids(backbone, prompt, max_length) for prompt in prompts]
    tails = [answer_ids(backbone, answer, max_length) for answer in answers]
    for prompt, tail in zip(prompts, tails, strict=True):
        if not tail:
            raise RecordError(f"the answer to {prompt!r} has no token; drop this record")
    if backbone.family.kind == "seq2seq":
        rows, labels = heads, tails
    else:
        pairs = list(zip(heads, tails, strict=True))
        rows = [head + tail[:-1] for head, tail in pairs]
        labels = [[IGNORED] * (len(head) - 1) + tail for head, tail in pairs]
    encoded = batch_rows(backbone, rows, [len(head) for head in heads], "right")
    return FactRows(encoded, pad(labels, IGNORED).to(backbone.device))


def label_logits(
    backbone: Backbone, rows: FactRows, *, labels_only: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits [N, V] at the N label positions and the labels [N]. The output matrix of a causal
    model is applied to these positions only; `labels_only` as in `target_logits`."""
    states, labels = label_states(backbone, rows, labels_only=labels_only)
    return logits_of(backbone, states), labels


def logits_of(backbone: Backbone, states: Tensor) -> Tensor:
    """The logits [N, V] that `label_states` lead to."""
    causal = backbone.family.kind == "causal"
    return backbone.model.get_output_embeddings()(states) if causal else states


def label_states(
    backbone: Backbone, rows: FactRows, *, labels_only: bool = False
) -> tuple[Tensor, Tensor]:
    """What is behind the logits at the N label positions, and the labels [N]: the last hidden
    states [N, h] of a causal model, the logits themselves of any other. `labels_only` as in
    `target_logits`."""
    model, inputs, at = backbone.model, rows.encoded.inputs(), rows.labels != IGNORED
    if backbone.family.kind == "seq2seq":
        return answer_logits(model, rows.labels, **inputs), rows.labels[at]
    with ends_at(backbone, at) if labels_only else contextlib.nullcontext():
        if backbone.family.kind == "classifier":
            return model(**inputs).logits, rows.labels
        hidden = model.base_model(
            **inputs, position_ids=rows.encoded.positions(), use_cache=False
        ).last_hidden_state
    return hidden[at], rows.labels[at]


def edit_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over label positions, float32 or better. For two classes this is the
    binary cross-entropy of the difference of their logits."""
    return functional.cross_entropy(precise(logits), labels)


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || edited) [N, V]: summed over classes, mean over positions (malmen 2.8; the
    official code forgets the mean for classifiers)."""
    before, after = (functional.log_softmax(precise(x), dim=-1) for x in (reference, logits))
    return functional.kl_div(after, before, reduction="batchmean", log_target=True)


def precise(tensor: Tensor) -> Tensor:
    """float32, or float64 where it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def hits(logits: Tensor, rows: FactRows) -> list[float]:
    """Share of each row's answer tokens that are the argmax (a classifier's: 0 or 1)."""
    if rows.labels.ndim == 1:
        return (logits.argmax(dim=-1) == rows.labels).float().tolist()
    at = rows.labels != IGNORED
    right = torch.zeros(at.shape, device=logits.device)
    right[at] = (logits.argmax(dim=-1) == rows.labels[at]).float()
    return (right.sum(dim=1) / at.sum(dim=1)).tolist()
