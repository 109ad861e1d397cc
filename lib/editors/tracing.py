"""How the language model reads facts, and the rows of its pass that a hyper-network needs.

One forward and backward pass with every weight frozen gives, for each edited linear layer, its
inputs ("keys") and the gradients of the edit loss at its outputs, token by token (malmen 2.6).
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.backbones import Backbone
from lib.editors.prefix import FrozenPrefix, PrefixState
from lib.editors.sites import Site
from lib.encoding import IGNORED, Encoded, answer_ids, batch_rows, encode, pad, prompt_ids
from lib.errors import RecordError

Tokens = Literal["answer", "all"]


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


@dataclass(frozen=True)
class Traced:
    """The loss of one pass, and keys [n, d] with output gradients [n, d'] of each edited layer by
    module path, in the backbone's precision."""

    loss: float
    rows: dict[str, tuple[Tensor, Tensor]]


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


def label_logits(backbone: Backbone, rows: FactRows) -> tuple[Tensor, Tensor]:
    """Logits [N, V] at the N label positions and the labels [N]. The output matrix of a causal
    model is applied to these positions only."""
    model, inputs = backbone.model, rows.encoded.inputs()
    if backbone.family.kind == "classifier":
        return model(**inputs).logits, rows.labels
    at = rows.labels != IGNORED
    if backbone.family.kind == "seq2seq":
        decoder_ids = model.prepare_decoder_input_ids_from_labels(rows.labels)
        return model(**inputs, decoder_input_ids=decoder_ids).logits[at], rows.labels[at]
    positions = rows.encoded.positions()
    hidden = model.base_model(**inputs, position_ids=positions, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden[at]), rows.labels[at]


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
) -> Traced:
    """Keys and output gradients of the edit loss at the edited layers, in the order of `sites`.

    Weights stay frozen and no weight gradient is computed: the graph begins at the output of the
    first edited layer. `state` replays the blocks below it.
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
        loss = edit_loss(*label_logits(backbone, rows))
        loss.backward()
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

    def hook(_module: nn.Module, inputs: tuple, output: Any) -> None:
        keys[path] = inputs[0].detach()[mask]
        if not output.requires_grad:
            output.requires_grad_()
        output.register_hook(lambda gradient: gradients.update({path: gradient[mask]}))

    handle = backbone.model.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
