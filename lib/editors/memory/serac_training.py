"""Training SERAC's networks, once and before any edit, or reading what was trained before.

A finished training is reused by every run that asks for the same networks, facts, configuration
and precision.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import IGNORED, pad
from lib.backbones.passes.logits import FactRows, edit_loss, fact_rows, hits, label_logits
from lib.data.records import Edit
from lib.data.training import TrainingFacts
from lib.editors.adapters.vector_index import NONE
from lib.editors.memory.serac_networks import (
    SeracConfig,
    SeracNetworks,
    edit_text,
    exponents,
    matches,
)
from lib.editors.parts.minimise import adam
from lib.editors.parts.stand_in import StandIn, tell
from lib.errors import EditorError
from lib.storage import fingerprints
from lib.storage.cache import Cache
from lib.storage.fingerprints import content_hash

CLOSEST = 1e-6  # -log s is not taken below: log(1 - s) would be infinite


def scope_loss(exponent: Tensor, inside: Tensor, cedit: float) -> Tensor:
    """Binary cross-entropy of s = exp(-exponent) [B, E] against `inside` [B, E] (bool).

    The mean over pairs in scope is weighted by `cedit`, that over pairs out of scope by 1: our
    reading of EasyEdit's weights of edit and locality loss (its cloc is 1).
    """
    reached = exponent[inside].mean()  # -log s
    left_alone = -torch.log(-torch.expm1(-exponent[~inside].clamp(min=CLOSEST))).mean()
    return cedit * reached + left_alone


def classifier_loss(networks: SeracNetworks, facts: Sequence[Edit], config: SeracConfig) -> Tensor:
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
    networks: SeracNetworks, facts: Sequence[Edit], config: SeracConfig
) -> Tensor:
    """Mean cross-entropy of the answers' tokens behind edit text and first rephrase."""
    return config.cedit * edit_loss(*_answered(networks, facts, config)[1:])


def _answered(
    networks: SeracNetworks, facts: Sequence[Edit], config: SeracConfig
) -> tuple[FactRows, Tensor, Tensor]:
    """Rows of edit text, first rephrase and answer; logits [N, V] and labels [N] of the answers."""
    h = networks.counterfactual
    prompts, answers = [fact.rephrases[0] for fact in facts], [fact.target for fact in facts]
    stand_ins = [networks.stand_in(edit_text(fact)) for fact in facts]
    rows = told_rows(stand_ins, fact_rows(h, prompts, answers, config.max_length))
    return rows, *label_logits(h, rows, labels_only=True)


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
    networks: SeracNetworks, facts: Sequence[Edit], config: SeracConfig
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


@dataclass
class TrainingLog:
    """What is known about a training beside its networks: facts, seconds, loss of each step by
    network, and scores on the validation facts before and after."""

    facts: int
    seconds: float = 0.0
    classifier: list[float] = field(default_factory=list)
    counterfactual: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedNetworks:
    """TrainedNetworks networks, their content identity and record, and whether they were read."""

    networks: SeracNetworks
    key: str
    record: TrainingLog
    cached: bool

    def rows(self) -> Iterator[dict[str, Any]]:
        """Flat rows for the observations: the training as a whole, then its losses."""
        record = self.record
        yield {
            "kind": "training",
            "seconds": record.seconds,
            "facts": record.facts,
            "cached": self.cached,
            "parameters": self.networks.size(),
            **{f"{name}_before": value for name, value in record.before.items()},
            **record.after,
        }
        for network in ("classifier", "counterfactual"):
            for step, loss in enumerate(getattr(record, network), start=1):
                yield {"kind": "curve", "network": network, "step": step, "loss": loss}


def trained_networks(
    backbone: Backbone,
    config: SeracConfig,
    training: TrainingFacts | None,
    cache: Cache | None,
) -> TrainedNetworks:
    """The networks of a configuration, trained now or before; without a cache nothing is kept.

    Raises EditorError without training facts.
    """
    if training is None or not training.train:
        raise EditorError(
            "SERAC learns from facts before it edits; pass training= (lib.data.training), or give "
            "the setting a `training` entry"
        )
    networks = SeracNetworks(backbone, config)
    key = networks_key(networks, config, training)
    if cache is None:
        return TrainedNetworks(networks, key, train(networks, config, training), cached=False)
    fresh: list[TrainingLog] = []

    def make(scratch: Path) -> None:
        fresh.append(train(networks, config, training))
        weights = {name: w.detach().contiguous() for name, w in networks.weights().items()}
        save_file(weights, scratch / "networks.safetensors")
        (scratch / "record.json").write_text(json.dumps(asdict(fresh[0])), "utf-8")

    folder = cache.folder("networks", key, make)
    if fresh:
        return TrainedNetworks(networks, key, fresh[0], cached=False)
    networks.take(load_file(folder / "networks.safetensors"))
    record = TrainingLog(**json.loads((folder / "record.json").read_text("utf-8")))
    return TrainedNetworks(networks, key, record, cached=True)


def networks_key(networks: SeracNetworks, config: SeracConfig, training: TrainingFacts) -> str:
    """The content identity of trained networks. The base model decides nothing but their
    precision."""
    identity = {
        "networks": [networks.classifier.arithmetic, networks.counterfactual.arithmetic],
        "config": asdict(config),
        "facts": training.content,
        "code": fingerprints.code("lib.editors.memory.serac_training", apart=fingerprints.TOLD),
    }
    return content_hash(identity)[:32]


def train(networks: SeracNetworks, config: SeracConfig, training: TrainingFacts) -> TrainingLog:
    """Train both networks in place, one after the other: they share no weight."""
    began, facts = time.monotonic(), training.train
    before = validate(networks, training.valid, config)
    asked = config.classifier_iterations
    asked = config.iterations if asked is None else asked
    classifier = descend(
        [*networks.of_classifier.values(), networks.log_scale],
        lambda batch: classifier_loss(networks, batch, config),
        fact_batches(facts, config.classifier_rows, asked, config.seed),
        config.classifier_lr,
    )
    counterfactual = descend(
        list(networks.of_counterfactual.values()),
        lambda batch: counterfactual_loss(networks, batch, config),
        fact_batches(facts, config.batch_rows, config.iterations, config.seed),
        config.lr,
    )
    after = validate(networks, training.valid, config)
    seconds = time.monotonic() - began
    return TrainingLog(len(facts), seconds, classifier, counterfactual, before, after)


def fact_batches(
    facts: Sequence[Edit], rows: int, iterations: int, seed: int
) -> Iterator[list[Edit]]:
    """About `iterations` facts, `rows` at a time: each epoch in a new order, its rest left out.

    Each fact brings one wording, its own prompt or one of its rephrases, drawn anew (our choice),
    as its only rephrase.
    """
    generator, rows = torch.Generator().manual_seed(seed), min(rows, len(facts))
    left = math.ceil(iterations / rows)
    while left:
        order = torch.randperm(len(facts), generator=generator).tolist()
        places = torch.rand(len(facts), generator=generator).tolist()
        for start in range(0, len(facts) - rows + 1, rows)[:left]:
            chosen = order[start : start + rows]
            yield [_worded(facts[index], places[index]) for index in chosen]
            left -= 1


def _worded(fact: Edit, place: float) -> Edit:
    wordings = (fact.prompt, *fact.rephrases)
    return replace(fact, rephrases=(wordings[int(place * len(wordings))],))


def descend(
    weights: Sequence[nn.Parameter],
    loss_of: Callable[[list[Edit]], Tensor],
    batches: Iterator[list[Edit]],
    lr: float,
) -> list[float]:
    """One step of Adam for each batch; gives the losses. The weights are frozen again after it."""
    optimiser, losses = adam(weights, lr=lr), []
    for weight in weights:
        weight.requires_grad_(True)
    with torch.enable_grad():
        for batch in tqdm(batches, "training SERAC", leave=False, file=sys.stderr, mininterval=1):
            loss = loss_of(batch)
            loss.backward()
            losses.append(loss.detach())
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    for weight in weights:
        weight.requires_grad_(False)
    found = torch.stack(losses).tolist() if losses else []
    if not all(map(math.isfinite, found)):
        raise EditorError("the training of SERAC diverged; lower lr or classifier_lr")
    return found
