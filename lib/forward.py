"""Forward passes that compute logits only where a label is."""

import torch
from torch import Tensor
from torch.nn import functional

from lib.backbones import Backbone
from lib.encoding import IGNORED, Encoded


def target_logits(backbone: Backbone, batch: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher-forced logits at the label positions.

    Returns logits [N, V], labels [N] and the batch row of each [N], N = number of labels. The
    output matrix is applied to those N positions only: equal to the full pass, and it is a fifth
    of a small model's work.
    """
    kind, model = backbone.family.kind, backbone.model
    if kind == "classifier":
        logits = model(**batch.inputs()).logits
        return logits, batch.labels, torch.arange(len(batch), device=logits.device)
    if kind == "seq2seq":
        logits = model(**batch.inputs(), labels=batch.labels).logits
        rows, columns = (batch.labels != IGNORED).nonzero(as_tuple=True)
        return logits[rows, columns], batch.labels[rows, columns], rows
    hidden = model.base_model(
        **batch.inputs(), position_ids=batch.positions(), use_cache=False
    ).last_hidden_state
    rows, columns = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    logits = model.get_output_embeddings()(hidden[rows, columns])
    return logits, batch.labels[rows, columns + 1], rows


def batch_loss(backbone: Backbone, batch: Encoded) -> Tensor:
    """Mean cross-entropy over all labels of the batch (token-weighted, as Hugging Face's own)."""
    logits, labels, _ = target_logits(backbone, batch)
    return functional.cross_entropy(logits.float(), labels)
