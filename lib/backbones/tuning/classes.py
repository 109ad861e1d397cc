"""Teaching a classifier its upstream task, once, before any edit: claims or documents with their
gold class.

The published classifiers are not to be had, so one is fine-tuned here. The paper's has one logit
and a Bernoulli likelihood, ours (`BertForSequenceClassification`) two logits and a softmax: the
same likelihood, its logit being the difference of the two.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import PreTrainedModel

from lib.backbones.backbone import Backbone
from lib.backbones.checkpoints import tuned, where_tuned
from lib.backbones.encoding import encode
from lib.backbones.tuning.predictions import predicted_classes
from lib.errors import BackboneError
from lib.storage import fingerprints

WARM_UP = 0.1  # share of the steps
CLIP = 1.0  # norm of the gradient
WINDOW = 16  # batches whose rows are sorted by length before they are cut
Claim = tuple[str, str]  # text, class number


@dataclass(frozen=True)
class ClassifierConfig:
    """How to tune. Defaults: our measurements on all-MiniLM-L6-v2 and FEVER claims; AdamW with a
    linear decay after a warm-up, no weight decay on vectors, as De Cao et al."""

    epochs: int = 1
    learning_rate: float = 1e-4
    batch_size: int = 32
    weight_decay: float = 0.01
    max_length: int = 64
    seed: int = 0

    @classmethod
    def of(cls, tune: Mapping[str, Any]) -> "ClassifierConfig":
        """What a setting's `tune` says of it beside the texts to learn."""
        names = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in tune.items() if name in names})


def tune_classifier(
    backbone: Backbone,
    claims: Sequence[Claim],
    held_out: Mapping[str, Sequence[Claim]],
    config: ClassifierConfig | None = None,
    kind: str = "claims",
) -> Backbone:
    """A new backbone that classifies `claims`, or texts of another `kind` ("documents"); the given
    one, in float32, is untouched.

    Cached under STUDY_CACHE/tuned with tuning.json: losses, seconds, and for each group of
    `held_out` its accuracy beside the share of its commonest class. Raises BackboneError for
    anything but a classifier, and for an empty list.
    """
    config = config or ClassifierConfig()
    if backbone.family.kind != "classifier":
        raise BackboneError(f"{backbone.name} is no classifier: it cannot be tuned on claims.")
    if not claims:
        raise BackboneError("tuning a classifier needs at least one claim.")
    groups = {name: list(group) for name, group in held_out.items()}
    code = [
        fingerprints.own(__name__),
        fingerprints.code("lib.backbones.tuning.predictions", apart=fingerprints.TOLD),
    ]
    identity = [code, list(claims), groups, asdict(config)]
    learned, record = tuned(
        backbone, identity, lambda model: _train(model, backbone, claims, groups, config)
    )
    scores = (
        f"{score['accuracy']:.3f} of {score['claims']} held-out {name} (commonest class "
        f"{score['majority']:.3f})"
        for name, score in record["held_out"].items()
    )
    told = (
        f"fine-tuned here on {len(claims)} {kind}, accuracy {', '.join(scores)} "
        f"({where_tuned(record)})"
    )
    return replace(learned, provenance=f"{backbone.provenance}; {told}")


def accuracy(backbone: Backbone, claims: Sequence[Claim], max_length: int | None) -> float:
    """Share of claims whose likeliest class is their own."""
    classes = predicted_classes(backbone, [text for text, _ in claims], max_length)
    hits = [str(label) == gold for label, (_, gold) in zip(classes, claims, strict=True)]
    return sum(hits) / len(hits)


def majority(claims: Sequence[Claim]) -> float:
    """Share of the commonest class."""
    classes = [label for _, label in claims]
    return max(map(classes.count, set(classes))) / len(classes)


def _train(
    model: PreTrainedModel,
    backbone: Backbone,
    claims: Sequence[Claim],
    held_out: Mapping[str, Sequence[Claim]],
    config: ClassifierConfig,
) -> dict[str, object]:
    """Tune `model` in place; gives the record for tuning.json."""
    pupil = replace(backbone, model=model)
    model.requires_grad_(True)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        fused=True,
    )
    steps = config.epochs * math.ceil(len(claims) / config.batch_size)
    warm = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    order, losses = torch.Generator().manual_seed(config.seed), []
    bar = tqdm(total=steps, desc=f"tuning {backbone.name}", file=sys.stderr, mininterval=1)
    for _ in range(config.epochs):
        for chosen in _batches([len(text) for text, _ in claims], config.batch_size, order):
            texts, labels = zip(*(claims[index] for index in chosen), strict=True)
            batch = encode(pupil, texts, labels, max_length=config.max_length)
            logits = model(**batch.inputs()).logits
            loss = functional.cross_entropy(logits.float(), batch.labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            bar.update()
    bar.close()
    model.requires_grad_(False)
    return {
        "config": asdict(config),
        "claims": len(claims),
        "steps": steps,
        "loss": losses,
        "held_out": {
            name: {
                "claims": len(group),
                "accuracy": accuracy(pupil, group, config.max_length),
                "majority": majority(group),
            }
            for name, group in held_out.items()
        },
    }


def _batches(lengths: Sequence[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Indices in random order, rows of like length together: half of the work is padding else."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    cut = []
    for start in range(0, len(order), WINDOW * size):
        window = sorted(order[start : start + WINDOW * size], key=lambda index: lengths[index])
        cut += [window[at : at + size] for at in range(0, len(window), size)]
    for number in torch.randperm(len(cut), generator=generator).tolist():
        yield cut[number]
