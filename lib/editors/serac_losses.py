"""What SERAC's networks learn from facts: which inputs an edit reaches, and its answer.

Each fact shows what an edit should reach (one of its wordings, here its first rephrase) and what it
should not (an unrelated prompt, the other facts' prompts). Neither network sees the base model.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib.backbones.encoding import IGNORED, pad
from lib.backbones.passes.logits import FactRows, edit_loss, fact_rows, hits, label_logits
from lib.data.records import Edit
from lib.editors.serac_networks import SeracNetworks, edit_text, exponents, matches
from lib.editors.stand_in import StandIn, tell
from lib.editors.vector_index import NONE

if TYPE_CHECKING:
    from lib.editors.serac import SeracConfig

CLOSEST = 1e-6  # -log s is not taken below: log(1 - s) would be infinite


def scope_loss(exponent: Tensor, inside: Tensor, cedit: float) -> Tensor:
    """Binary cross-entropy of s = exp(-exponent) [B, E] against `inside` [B, E] (bool).

    The mean over pairs in scope is weighted by `cedit`, that over pairs out of scope by 1: our
    reading of EasyEdit's weights of edit and locality loss (its cloc is 1).
    """
    reached = exponent[inside].mean()  # -log s
    left_alone = -torch.log(-torch.expm1(-exponent[~inside].clamp(min=CLOSEST))).mean()
    return cedit * reached + left_alone


def classifier_loss(
    networks: SeracNetworks, facts: Sequence[Edit], config: "SeracConfig"
) -> Tensor:
    """`scope_loss` of B edits against B prompts that mean them (their first rephrase) and B
    unrelated ones; each edit's own prompt is in its scope, all 2B - 1 others are not."""
    texts = [edit_text(fact) for fact in facts]
    inputs = [fact.rephrases[0] for fact in facts]
    unrelated = [fact.locality[0].prompt for fact in facts]
    z, x, others = networks.embed([*texts, *inputs, *unrelated]).chunk(3)
    exponent = exponents(torch.cat([x, others]), z, networks.log_scale)
    inside = torch.eye(2 * len(facts), len(facts), dtype=torch.bool, device=exponent.device)
    return scope_loss(exponent, inside, config.cedit)


def counterfactual_loss(
    networks: SeracNetworks, facts: Sequence[Edit], config: "SeracConfig"
) -> Tensor:
    """Mean cross-entropy of the answers' tokens behind edit text and first rephrase."""
    return config.cedit * edit_loss(*_answered(networks, facts, config)[1:])


def _answered(
    networks: SeracNetworks, facts: Sequence[Edit], config: "SeracConfig"
) -> tuple[FactRows, Tensor, Tensor]:
    """Rows of edit text, first rephrase and answer; logits [N, V] and labels [N] of the answers."""
    h = networks.counterfactual
    prompts, answers = [fact.rephrases[0] for fact in facts], [fact.target for fact in facts]
    stand_ins = [networks.stand_in(edit_text(fact)) for fact in facts]
    rows = told_rows(stand_ins, fact_rows(h, prompts, answers, config.max_length))
    return rows, *label_logits(h, rows)


def told_rows(stand_ins: Sequence[StandIn], rows: FactRows) -> FactRows:
    """The same prompts and answers as their stand-ins read them, right-padded."""
    backbone = stand_ins[0].backbone
    told = tell(backbone, [stand_in.text for stand_in in stand_ins], rows.encoded, "right")
    longer, shorter = (e.attention_mask.sum(dim=1).tolist() for e in (told, rows.encoded))
    labels = [
        [IGNORED] * (long - short) + row[:short]
        for long, short, row in zip(longer, shorter, rows.labels.tolist(), strict=True)
    ]
    return FactRows(told, pad(labels, IGNORED).to(backbone.device))


@torch.no_grad()
def validate(
    networks: SeracNetworks, facts: Sequence[Edit], config: "SeracConfig"
) -> dict[str, float]:
    """Shares of facts whose rephrase finds its own edit among all of them, whose unrelated prompt
    finds none, and whose answer the counterfactual model gives to the rephrase, every token the
    argmax. Empty without facts."""
    if not facts:
        return {}
    edits = networks.embed([edit_text(fact) for fact in facts])
    inside = networks.embed([fact.rephrases[0] for fact in facts])
    outside = networks.embed([fact.locality[0].prompt for fact in facts])
    found, stray = (
        matches(inputs, edits, networks.log_scale).tolist() for inputs in (inside, outside)
    )
    right: list[float] = []
    for start in range(0, len(facts), config.batch_rows):
        some = facts[start : start + config.batch_rows]
        rows, logits, _ = _answered(networks, some, config)
        right += hits(logits, rows)
    return {
        "inside": sum(edit == own for own, edit in enumerate(found)) / len(facts),
        "outside": stray.count(NONE) / len(facts),
        "answers": sum(share == 1 for share in right) / len(facts),
    }
