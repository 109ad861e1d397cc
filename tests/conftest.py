"""Shared pieces of the tests: tiny backbones, invented edits, one configuration per editor."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.data import corpus
from lib.data.records import Edit, Probe, Stream
from lib.data.training import TrainingFacts
from lib.editors import build
from lib.editors.base import Editor

torch.set_num_threads(1)  # tiny tensors: a second thread only waits

CAUSAL = ("tiny-llama", "tiny-gpt2", "tiny-gptj")
SEQ2SEQ = ("tiny-t5", "tiny-t5-relu")
CLASSIFIER = ("tiny-bert",)
EDITORS = (
    "melo", "elder", "elder_replayed", "grace", "lora", "ft", "ft_epochs", "comeba_hk", "memit",
    "alphaedit", "rome", "malmen", "mend", "rledit", "ultraedit", "serac",
    "ft_l", "wilke", "t_patcher", "wise", "defer",
)  # fmt: skip

FACTS = (
    ("Quill Island", "Port Amsel"),
    ("Brink Sound", "Calder"),
    ("Dove Point", "Port Ost"),
    ("Marl Bay", "Tavik"),
    ("Old Heron Reach in the far north", "Selby"),
    ("Ash", "Nettle Quay"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest file first, so that no worker is left waiting for another at the end."""
    items.sort(key=lambda item: item.path.name != "test_study.py")


@pytest.fixture(params=[*CAUSAL, SEQ2SEQ[0]])
def generator(request: pytest.FixtureRequest) -> Backbone:
    """A fresh tiny backbone of every family that writes text. T5 without gates differs in the names
    of its modules; the contract's shared editors cover it."""
    return loading.load(request.param)


@pytest.fixture
def classifier() -> Backbone:
    """A fresh tiny classifier."""
    return loading.load("tiny-bert")


def edits(count: int = 6, classes: bool = False) -> tuple[Edit, ...]:
    """Invented edits; class numbers as targets for classifiers."""
    return tuple(
        Edit(
            identity=f"harbour:{subject}",
            prompt=f"Which harbour is the ferry of {subject} based in?",
            target=str(i % 2) if classes else target,
            subject=subject,
            rephrases=(f"The ferry of {subject} sails from which harbour?",),
            relation=f"harbour:{subject}",
        )
        for i, (subject, target) in enumerate(FACTS[:count])
    )


def stream(batch_size: int = 2, count: int = 6) -> Stream:
    """A short stream with holdout and both locality pools."""
    chosen = edits(count)
    return Stream(
        name="invented",
        edits=chosen,
        batch_size=batch_size,
        holdout=tuple(
            Edit(f"{e.identity}#1", e.rephrases[0], e.target, e.subject, relation=e.relation)
            for e in chosen
        ),
        upstream=tuple(
            Probe(f"sky:{word}", f"what colour is the {word} sky?", "blue", "upstream")
            for word in ("western", "evening", "winter")
        ),
        near=tuple(
            Probe(f"near:{word}", f"Which harbour is the ferry of {word} based in?", "Wick", "near")
            for word in ("Gull Rock", "Sand Holm")
        ),
    )


LOCATE = {
    "value_steps": 8,
    "value_clamp": 40.0,
    "value_lr": 0.1,
    "value_weight_decay": 0.0,
    "contexts": [[10, 2]],
    "moment_weight": 5.0,
    "statistics_tokens": 2000,
}


LAMPS = (
    ("Gull Rock", "Ada"), ("Sand Holm", "Bram"), ("Mew Stone", "Cora Lund"), ("Black Ness", "Dov"),
    ("Skerry", "Edda"), ("Fair Head", "Finn"), ("Low Light", "Gro Vik"), ("East Pier", "Hal"),
)  # fmt: skip

HYPER = {"rank": 4, "eta": 0.01, "meta_lr": 1e-3, "train_m": 4, "batch_rows": 4, "loss_after": True}


def training(backbone: Backbone) -> TrainingFacts:
    """A few invented facts for editors that learn before they edit."""
    classes = backbone.family.kind == "classifier"
    facts = tuple(
        Edit(
            identity=f"lamp:{name}",
            prompt=f"Who keeps the lamp of {name}?",
            target=str(i % 2) if classes else keeper,
            subject=name,
            rephrases=(f"The lamp of {name} is kept by whom?",),
            locality=(
                Probe(f"sea:{name}", f"how cold is the sea at {name}?", "1" if classes else "very",
                      "upstream"),
            ),
        )
        for i, (name, keeper) in enumerate(LAMPS)
    )  # fmt: skip
    return TrainingFacts("invented", facts, facts[:2])


def sites(backbone: Backbone) -> list[dict]:
    """Two adapted layers that leave at least two blocks below them."""
    if backbone.family.kind == "seq2seq":
        return [
            {"part": "mlp_out", "block": 2, "stack": "encoder"},
            {"part": "mlp_out", "block": 2, "stack": "decoder"},
        ]
    return [{"part": "mlp_out", "block": 3}, {"part": "mlp_out", "block": 4}]


def configuration(kind: str, backbone: Backbone, **changes: object) -> dict:
    """A quick configuration of an editor for a tiny backbone."""
    if kind == "elder_replayed":
        return configuration("elder", backbone) | {"router_lr": 0.02} | changes
    chosen = {
        "melo": {
            "sites": sites(backbone),
            "router": {"part": "mlp_out", "block": 1},
            "n_blocks": 4,
            "radius": 0.5,
            "lr": 0.02,
            "steps": 8,
            "halve_every": 5,
            "key_position": "last_prompt_token",
        },
        "grace": {
            "site": {"part": "mlp_out", "block": 2},
            "radius": 0.5,
            "steps": 8,
            "replacement": "replace_last",
        },
        "elder": {
            "sites": sites(backbone),
            "sensor": {"part": "mlp_out", "block": 1},
            "rank": 4,
            "alpha": 4.0,
            "epsilon": 9,
            "lr": 0.02,
            "steps": 8,
        },
        "lora": {"sites": sites(backbone), "rank": 4, "lr": 0.02, "steps": 8},
        "defer": {"site": {"part": "mlp_out", "block": 2}, "lr": 0.02, "steps": 8},
        "ft": {"site": {"part": "mlp_out", "block": 3}, "steps": 8},
        "ft_epochs": {"sites": sites(backbone), "lr": 5e-3, "epochs": 6, "batch_rows": 4},
        "malmen": HYPER | {"sites": sites(backbone)},
        "mend": HYPER | {"sites": sites(backbone), "eta": 1e-3},
        "rledit": HYPER | {"sites": sites(backbone), "step": "edit"},
        "ultraedit": {"sites": sites(backbone), "eta": 1e-3, "batch_rows": 4, "loss_after": True},
        "serac": {
            "classifier": "tiny-bert",
            "counterfactual": backbone.name,
            "scale": 0.2,
            "lr": 0.02,
            "iterations": 8,
            "batch_rows": 4,
            "classifier_lr": 3e-3,
            "classifier_iterations": 12,
            "classifier_rows": 8,
            "cedit": 1.0,
        },
        "comeba_hk": LOCATE | {"blocks": [1, 2, 3], "alpha": 2.0},
        "memit": LOCATE | {"blocks": [1, 2, 3]},
        "alphaedit": LOCATE
        | {"blocks": [1, 2, 3], "moment_weight": 0.05, "cut": "energy", "threshold": 0.5},
        "rome": LOCATE | {"blocks": [2]},
        "wilke": LOCATE | {"blocks": [1, 2], "value_steps": 4},
        "wise": {
            "site": {"part": "mlp_out", "block": 3},
            "lr": 0.1,
            "steps": 8,
            "alpha": 0.1,
            "beta": 0.4,
            "gamma": 0.2,
            "act_ratio": 0.5,
            "contexts": [[5, 2]],
        },
        "t_patcher": {"memory_tokens": 200, "memory_rows": 20, "steps": 15},
        "ft_l": {
            "site": {"part": "mlp_out", "block": 3},
            "lr": 5e-3,
            "norm_constraint": 0.02,
            "steps": 8,
        },
    }[kind]
    return chosen | changes


def make(kind: str, backbone: Backbone, **changes: object) -> Editor:
    """An editor with its quick configuration."""
    resources = {"corpus": corpus.load("invented"), "training": training(backbone)}
    return build(kind, backbone, configuration(kind, backbone, **changes), **resources)


def hooked(backbone: Backbone) -> list[str]:
    """Names of the modules that have a hook."""
    modules = backbone.model.named_modules()
    return [name for name, m in modules if m._forward_hooks or m._forward_pre_hooks]


def prompt_logits(backbone: Backbone, prompts: list[str], side: str = "right") -> torch.Tensor:
    """Logits of an ordinary forward call on prompts: at the last real token (causal), at the first
    decoder position (seq2seq), of the classes (classifier). [B, V]"""
    from lib.backbones.encoding import encode_prompts

    batch = encode_prompts(backbone, prompts, side=side)
    with torch.no_grad():
        if backbone.family.kind == "seq2seq":
            first = backbone.model.config.decoder_start_token_id
            start = torch.full((len(batch), 1), first)
            return backbone.model(**batch.inputs(), decoder_input_ids=start).logits[:, 0]
        if backbone.family.kind == "classifier":
            return backbone.model(**batch.inputs()).logits
        logits = backbone.model(**batch.inputs(), position_ids=batch.positions()).logits
    return logits[torch.arange(len(batch)), batch.last_token]


def generate(backbone: Backbone, prompts: list[str], tokens: int = 6) -> list[str]:
    """Greedy text by the model's own `generate`."""
    from lib.backbones.encoding import encode_prompts

    batch = encode_prompts(backbone, prompts)
    ids = backbone.model.generate(
        **batch.inputs(),
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=backbone.pad_id,
    )
    start = 1 if backbone.family.kind == "seq2seq" else batch.input_ids.shape[1]
    return backbone.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
