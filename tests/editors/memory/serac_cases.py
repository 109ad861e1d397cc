"""Invented facts and SERAC editors on tiny models, for its tests."""

from pathlib import Path

import torch
from torch import Tensor

from lib.backbones.encoding import encode_prompts
from lib.backbones.sources import loading
from lib.data.records import Edit, Probe
from lib.data.training import TrainingFacts
from lib.editors import build
from lib.editors.memory.serac import Serac
from lib.editors.memory.serac_networks import SeracConfig, SeracNetworks, edit_text
from lib.storage.cache import Cache
from tests.conftest import configuration, edits

KEEPERS = (
    ("Gull Rock", "Ada"), ("Sand Holm", "Bram"), ("Mew Stone", "Cora"), ("Black Ness", "Dov"),
    ("Skerry", "Edda"), ("Fair Head", "Finn"), ("Low Light", "Gro"), ("East Pier", "Hal"),
    ("Tern Isle", "Ivo"), ("Long Spit", "Jorun"), ("Crow Cliff", "Kai"), ("Old Mole", "Lene"),
)  # fmt: skip
FACTS = tuple(
    Edit(
        identity=f"lamp:{name}",
        prompt=f"Who keeps the lamp of {name}?",
        target=keeper,
        subject=name,
        rephrases=(f"The lamp of {name} is kept by whom?",),
        locality=(Probe(f"sea:{name}", f"how cold is the sea at {name}?", "very", "upstream"),),
    )
    for name, keeper in KEEPERS
)
TRAINING = TrainingFacts("invented", FACTS[:8], FACTS[8:])
PROMPTS = [edit.prompt for edit in edits()] + ["who wrote the first letter?", "Name: Ash."]


def serac(name: str = "tiny-llama", cache: Path | None = None, **changes: object) -> Serac:
    """A quick SERAC, not trained yet."""
    backbone = loading.load(name)
    config = configuration("serac", backbone, **changes)
    return build(
        "serac", backbone, config, training=TRAINING, networks_cache=Cache(cache) if cache else None
    )


def edited() -> Serac:
    """After four edits, with PROMPTS on either side of the scope."""
    editor = serac(classifier="tiny-distilbert", classifier_lr=3e-4, classifier_iterations=64)
    editor.edit(edits(2))
    editor.edit(edits(4)[2:])
    return editor


SETTINGS = SeracConfig(classifier="tiny-bert", counterfactual="tiny-llama", scale=0.2, cedit=0.3)


def untrained() -> SeracNetworks:
    """Networks for tiny-llama, as they are loaded."""
    return SeracNetworks(loading.load("tiny-llama"), SETTINGS)


def routes(editor: Serac) -> list[str]:
    """The routes of PROMPTS."""
    return editor.route(encode_prompts(editor.backbone, PROMPTS))


def counterfactual_logits(editor: Serac, edit: int, text: str) -> Tensor:
    """The counterfactual model's logits [T, V] over prefix, edit, newline and text."""
    h = editor.networks.counterfactual
    whole = f"{h.prefix}{edit_text(edits()[edit])}\n{text}"
    with torch.no_grad():
        return h.model(torch.tensor([h.tokenizer(whole)["input_ids"]])).logits[0]
