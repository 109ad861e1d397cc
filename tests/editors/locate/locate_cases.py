"""What the tests of the locate-and-edit family share: facts, contexts, an editor and its oracle."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lib.backbones.backbone import Backbone
from lib.backbones.sources.tiny import TEXT
from lib.data.corpus import Corpus
from lib.data.records import Edit
from lib.editors import build
from lib.editors.base import Editor
from tests.editors.locate.reference_locate import Request, Settings
from tests.editors.locate.reference_updates import Reference

LAYERS = (1, 2)
CORPUS = Corpus("tiny", TEXT)
CONTEXTS = (
    "The old town. ",
    "Therefore we went. ",
    "Because of the. ",
    "I am the one who is. ",
    "You. ",
)
FIRST = (
    Request("The ferry of Quill Island is based in", "Quill Island", "Port Amsel"),
    Request("Which harbour is the ferry of Brink Sound based in?", "Brink Sound", "Calder"),
    Request("Ash lies near the river and its town is", "Ash", "Selby"),
)
SECOND = (
    Request("In winter the keeper of Quill Island waits in", "Quill Island", "Nettle Quay"),
    Request("Dove Point trades with", "Dove Point", "Wick"),
    Request("The bells of Old Heron Reach were made in", "Old Heron Reach", "Tavik"),
    Request("{Marl Bay} is older than", "Marl Bay", "the {court}"),
)
# lambda is small so that the edits are large: ||dW|| is about half of ||W||. The initial alpha is
# high enough to be lowered by the batches.
QUICK: dict[str, Any] = {
    "blocks": LAYERS,
    "value_steps": 5,
    "value_lr": 0.3,
    "moment_weight": 10.0,
    "statistics_tokens": 1,
}
COMEBA: dict[str, Any] = QUICK | {"alpha": 3.0}


def without_prefix(backbone: Backbone) -> Backbone:
    """The same backbone, fed without its document prefix."""
    return replace(backbone, prefix="")


def as_edits(requests: Sequence[Request]) -> list[Edit]:
    """Requests as records."""
    return [
        Edit(f"{number}:{r.prompt}>{r.target}", r.prompt, r.target, r.subject)
        for number, r in enumerate(requests)
    ]


def editor_of(kind: str, backbone: Backbone, *, tolerance: float = 0.0, **changes: Any) -> Editor:
    """An editor with the quick configuration and fixed contexts; hook layers with `tolerance`."""
    base = COMEBA if kind == "comeba_hk" else QUICK
    if kind == "rome":
        base = base | {"blocks": LAYERS[:1], "value_clamp": 4.0}
    editor = build(kind, backbone, base | changes, corpus=CORPUS)
    editor.contexts = CONTEXTS
    for hook in getattr(editor, "hooks", {}).values():
        hook.tolerance = tolerance
    return editor


def edited(
    backbone: Backbone, rounds: Sequence[Sequence[Request]] = (FIRST,), **changes: Any
) -> Editor:
    """COMEBA-HK after some rounds."""
    editor = editor_of("comeba_hk", backbone, **changes)
    for requests in rounds:
        editor.edit(as_edits(requests))
    return editor


def oracle_of(editor: Editor) -> Reference:
    """The slow reference with the editor's own settings, statistics and contexts.

    Build it before anything is edited.
    """
    config = editor.config
    settings = Settings(
        layers=editor.blocks,
        lam=config.moment_weight,
        alpha=getattr(config, "alpha", 0.0),
        steps=config.value_steps,
        lr=config.value_lr,
        weight_decay=config.value_weight_decay,
        clamp=config.value_clamp,
        kl=config.kl_factor,
        pad_in_stats=getattr(config, "pad_in_stats", True),
    )
    behind = [f"{context}{{}}" for context in CONTEXTS]
    rome = editor.name == "ROME"  # one flat list; no statistics
    groups = [["{}", *behind]] if rome else [["{}"], behind]
    return Reference(editor.backbone, settings, groups, {} if rome else editor.moments())


def weight_of(editor: Editor, layer: int) -> Tensor:
    """The weight that an editor applies at a layer, as float64 [d, f]."""
    module = editor.backbone.module("mlp_out", layer)
    hooks = getattr(editor, "hooks", None)
    weight = (hooks[layer].weight if hooks else module.weight).detach().double()
    return weight if isinstance(module, nn.Linear) else weight.T


def gap(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||."""
    return float((ours.double() - theirs).norm() / theirs.norm())


def logits_of(backbone: Backbone, text: str, tail: Sequence[int] = ()) -> Tensor:
    """Logits [T, V] of one string by an ordinary call of the model."""
    ids = backbone.tokenizer(backbone.prefix + text)["input_ids"] + list(tail)
    with torch.no_grad():
        return backbone.model(input_ids=torch.tensor([ids])).logits[0]
