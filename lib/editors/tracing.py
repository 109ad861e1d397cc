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

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED
from lib.backbones.passes.logits import FactRows, edit_loss, label_logits
from lib.backbones.passes.prefix import FrozenPrefix, PrefixState
from lib.editors.sites import Site

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
