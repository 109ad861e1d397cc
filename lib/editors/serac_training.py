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
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from lib.backbones.backbone import Backbone
from lib.data.records import Edit, content_hash
from lib.data.training import TrainingFacts
from lib.editors.serac_losses import classifier_loss, counterfactual_loss, validate
from lib.editors.serac_networks import SeracNetworks
from lib.errors import EditorError
from lib.storage import atomic, fingerprints

if TYPE_CHECKING:
    from lib.editors.serac import SeracConfig

_UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError)


@dataclass
class Record:
    """What is known about a training beside its networks: facts, seconds, loss of each step by
    network, and scores on the validation facts before and after."""

    facts: int
    seconds: float = 0.0
    classifier: list[float] = field(default_factory=list)
    counterfactual: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """Trained networks, their content identity and record, and whether they were read."""

    networks: SeracNetworks
    key: str
    record: Record
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
    config: "SeracConfig",
    training: TrainingFacts | None,
    cache: Path | None,
) -> Trained:
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
        return Trained(networks, key, train(networks, config, training), cached=False)
    folder = cache / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        record = _read(folder, networks)
        if record is not None:
            return Trained(networks, key, record, cached=True)
        record = train(networks, config, training)
        with atomic.folder(folder) as scratch:
            weights = {name: w.detach().contiguous() for name, w in networks.weights().items()}
            save_file(weights, scratch / "networks.safetensors")
            (scratch / "record.json").write_text(json.dumps(asdict(record)), "utf-8")
    return Trained(networks, key, record, cached=False)


def networks_key(networks: SeracNetworks, config: "SeracConfig", training: TrainingFacts) -> str:
    """The content identity of trained networks. The base model decides nothing but their
    precision."""
    identity = {
        "networks": [networks.classifier.content, networks.counterfactual.content],
        "config": asdict(config),
        "precision": str(networks.counterfactual.dtype),
        "device": str(networks.counterfactual.device),
        "facts": training.content,
        "code": fingerprints.code("lib.editors.serac_training"),
        "versions": fingerprints.versions(),
    }
    return content_hash(identity)[:32]


def _read(folder: Path, networks: SeracNetworks) -> Record | None:
    try:
        record = Record(**json.loads((folder / "record.json").read_text("utf-8")))
        networks.take(load_file(folder / "networks.safetensors"))
    except _UNREADABLE:
        return None  # absent or damaged: train them again
    return record


def train(networks: SeracNetworks, config: "SeracConfig", training: TrainingFacts) -> Record:
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
    return Record(len(facts), seconds, classifier, counterfactual, before, after)


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
    """One step of Adam for each batch; gives the losses. The weights are frozen again after it.

    Adam works on float32 copies: a step of 1e-5 would be lost in a bfloat16 weight.
    """
    masters = [nn.Parameter(weight.detach().float().clone()) for weight in weights]
    optimiser, losses = torch.optim.Adam(masters, lr=lr), []
    for weight in weights:
        weight.requires_grad_(True)
    with torch.enable_grad():
        for batch in tqdm(batches, "training SERAC", leave=False, file=sys.stderr, mininterval=1):
            loss = loss_of(batch)
            loss.backward()
            losses.append(loss.detach())
            for master, weight in zip(masters, weights, strict=True):
                master.grad = None if weight.grad is None else weight.grad.float()
                weight.grad = None
            optimiser.step()
            for master, weight in zip(masters, weights, strict=True):
                weight.data.copy_(master.data)
    for weight in weights:
        weight.requires_grad_(False)
    found = torch.stack(losses).tolist() if losses else []
    if not all(map(math.isfinite, found)):
        raise EditorError("the training of SERAC diverged; lower lr or classifier_lr")
    return found
