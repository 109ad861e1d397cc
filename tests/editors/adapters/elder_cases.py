"""What the tests of ELDER share: edits, small and random editors, the oracle."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lib.backbones.backbone import Backbone
from lib.backbones.encoding import encode_prompts
from lib.backbones.passes.logits import FactRows, fact_rows
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors.adapters.elder import Elder
from lib.editors.base import UNEDITED
from tests.conftest import edits, make
from tests.editors.adapters.reference_elder import Code, Pair, Pool, Reference, Settings

PARTS = {"tiny-gpt2": "mlp_in", "tiny-llama": "mlp_out", "tiny-gptj": "mlp_in"}
"""The paper edits the first linear layer of GPT-2's blocks and the last of Llama's."""
FAMILIES = tuple(PARTS)

EDITS = tuple(
    replace(edit, target="Port Amsel " if index == 3 else edit.target)
    for index, edit in enumerate(edits(5))
)
"""Answers of one to several tokens; the fourth is the first again, up to white space."""
BATCHES = (EDITS[:2], EDITS[2:4], EDITS[4:])
UNRELATED = ("Name: Tobin Vale.", "who wrote the first letter", "In 1907 the", "Ash")
PROMPTS = (*(e.prompt for e in EDITS), *(e.rephrases[0] for e in EDITS), *UNRELATED)
OTHERS = tuple(
    Edit(f"lamp:{i}", f"Lamp {i} of the island was lit by", f"keeper {i}", f"Lamp {i}")
    for i in range(20)
)


def where(name: str, first: int = 3) -> dict[str, Any]:
    """Targets from block `first` upwards, the sensor right below, all of the family's part."""
    part = PARTS[name]
    blocks = range(first, 6)
    return {
        "sites": [{"part": part, "block": block} for block in blocks],
        "sensor": {"part": part, "block": first - 1},
    }


def editor_of(
    backbone: Backbone, *, first: int = 3, random: int | None = None, **changes: Any
) -> Elder:
    """A small editor; with `random`, a seed, its experts and routers are far from their start."""
    editor = make("elder", backbone, **where(backbone.name, first) | changes)
    if random is not None:
        randomise(editor, random)
    return editor


@torch.no_grad()
def randomise(editor: Elder, seed: int, size: float = 0.3) -> None:
    """Random A, B, W and b: zeros would hide errors, and small routers are nearly uniform."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.dtype)

    for expert in range(editor.config.n_experts):
        read = editor.lora.read(expert)
        editor.lora.write(expert, {name: size * noise(value) for name, value in read.items()})
    editor.router_weight.copy_(noise(editor.router_weight))
    editor.router_bias.copy_(noise(editor.router_bias))


def pool_of(editor: Elder) -> Pool:
    """The reference's copy of the editor's parameters: A and B in the row-vector convention."""
    experts = [editor.lora.read(expert) for expert in range(editor.config.n_experts)]

    def layers(letter: str) -> list[list[Tensor]]:
        return [
            [expert[f"{path}.{letter}"].T.double().clone() for expert in experts]
            for path in editor.lora.layers
        ]

    routers = (editor.router_weight, editor.router_bias)
    W, b = ([layer.clone() for layer in part.detach().double()] for part in routers)
    return Pool(layers("A"), layers("B"), W, b)


def reference_of(editor: Elder) -> Reference:
    """The oracle with the editor's settings, allocation and parameters as they stand; no memory."""
    config, backbone = editor.config, editor.backbone
    settings = Settings(
        sensor=config.sensor.path(backbone),
        targets=tuple(editor.lora.layers),
        n=config.n_experts,
        k=config.k,
        rank=config.rank,
        alpha=config.alpha,
        epsilon=config.epsilon,
        lam=config.guide_weight,
        lr=config.lr,
        steps=config.steps,
        halve_every=config.halve_every,
        auxiliary=config.auxiliary,
        routing=config.training_routing,
        refresh=config.refresh_codes,
    )
    fresh = loading.load(backbone.name, dtype=backbone.dtype)
    return Reference(fresh, pool_of(editor), lambda answer: code_of(editor, answer), settings)


def code_of(editor: Elder, answer: str) -> Code:
    """The code that the editor allocated to an answer."""
    return editor.allocation.of(answer).int().tolist()


def pairs(batch: Sequence[Edit]) -> list[Pair]:
    """Prompts and answers of some edits."""
    return [(edit.prompt, edit.target) for edit in batch]


def rows_of(backbone: Backbone, batch: Sequence[Edit]) -> FactRows:
    """The rows that a batch of edits is trained on."""
    return fact_rows(backbone, [e.prompt for e in batch], [e.target for e in batch])


def allocated(editor: Elder, batch: Sequence[Edit]) -> Tensor:
    """The experts wanted for each edit [B, L, N]."""
    return torch.stack([editor.allocation.of(edit.target) for edit in batch])


def trained(editor: Elder) -> list[Tensor]:
    """Every trained parameter, ready for a backward pass."""
    routers = [editor.router_weight, editor.router_bias]
    return [*editor.lora.train_parameters(), *(r.requires_grad_() for r in routers)]


def served(editor: Elder, prompts: Sequence[str]) -> list[bool]:
    """Whether each prompt is in scope."""
    return [route != UNEDITED for route in editor.route(encode_prompts(editor.backbone, prompts))]


def gap(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||; the plain distance from zero."""
    return float(
        (ours.detach().double() - theirs.detach()).norm() / (theirs.detach().norm() or 1.0)
    )
