"""Which editor is meant, and its settings for a model that the study may never have seen.

Settings are looked up by (editor, architecture, depth, width): those of the model itself where the
study has them, else of the nearest model that does the same kind of work. Their places move to the
same relative depth, so no block number of one model is used on another.
"""

import importlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.backbones.text_states import key_width
from lib.editors import class_of, settings_of
from lib.editors.parts.sites import Site
from lib.editors.registry import REGISTRY
from lib.editors.settings.places import LAYERS
from lib.errors import EditorError
from lib.storage.checked import nearest


class Shape(NamedTuple):
    """Of a model: architecture (`Family.name`), what it does, blocks of a stack, width."""

    family: str
    kind: str
    depth: int
    width: int


# The models that settings are written for (lib/editors/settings).
SHAPES = {
    "gpt2": Shape("gpt2", "causal", 12, 768),
    "gpt2-xl": Shape("gpt2", "causal", 48, 1600),
    "gpt-j-6b": Shape("gptj", "causal", 28, 4096),
    "llama-2-7b": Shape("llama", "causal", 32, 4096),
    "smollm2-135m": Shape("llama", "causal", 30, 576),
    "t5-small-ssm-nq": Shape("t5", "seq2seq", 8, 512),
    "t5-large-ssm-nq": Shape("t5", "seq2seq", 24, 1024),
    "t5-xl-ssm-nq": Shape("t5", "seq2seq", 24, 2048),
    "flan-t5-small": Shape("t5", "seq2seq", 8, 512),
    "bert-base": Shape("bert", "classifier", 12, 768),
    "scotus-bert": Shape("bert", "classifier", 12, 768),
    "minilm-l6": Shape("bert", "classifier", 6, 384),
    "tiny-gpt2": Shape("gpt2", "causal", 6, 32),
    "tiny-gptj": Shape("gptj", "causal", 6, 32),
    "tiny-llama": Shape("llama", "causal", 6, 32),
    "tiny-t5": Shape("t5", "seq2seq", 4, 32),
    "tiny-bert": Shape("bert", "classifier", 6, 32),
}
TINY = 64  # up to this width a model is one for tests
PLACES = ("site", "sites", "router", "sensor", "blocks")
TOKENS_PER_DIMENSION = 20  # of the keys, in key statistics: as the study's laptop runs have it
# What learns before it edits: sizes of the study's laptop runs, on 128 training facts.
LEARNING = {
    "malmen": {"rank": 256, "meta_lr": 1e-4, "train_m": 16},
    "mend": {"rank": 256, "meta_lr": 3e-5, "train_m": 16},
    "rledit": {
        "rank": 256, "n_blocks": 2, "meta_lr": 3e-5, "train_m": 10, "step": "edit", "back_depth": 3,
    },
    "serac": {
        "trained_blocks": 6, "iterations": 110, "batch_rows": 10, "lr": 5e-4,
        "classifier_blocks": 3, "classifier_iterations": 96, "classifier_rows": 16,
        "classifier_lr": 2e-4, "scale": 0.1, "cedit": 1.0,
    },
    "t_patcher": {"steps": 100, "memory_tokens": 3000, "memory_length": 128},
}  # fmt: skip
# Models whose settings were chosen for such sizes.
SMALL = ("smollm2-135m", "minilm-l6", "flan-t5-small")


@dataclass(frozen=True)
class Choice:
    """The settings of an editor for a model, as `lib.editors.build` takes them, and a sentence that
    says where they come from."""

    kind: str
    config: dict[str, Any]
    origin: str


def kind_of(editor: str) -> str:
    """The registered name of an editor that is called as pages or code call it: "FT-L", "ft_l"."""
    kind = re.sub(r"[^a-z0-9]+", "_", editor.strip().lower())
    if kind not in REGISTRY:
        raise EditorError(f"there is no editor {editor!r}; {nearest(kind, REGISTRY)}")
    return kind


def shape_of(backbone: Backbone) -> Shape:
    """The shape of a loaded model."""
    width = backbone.module("embedding").weight.shape[1]
    return Shape(backbone.family.name, backbone.family.kind, backbone.n_blocks(), width)


def choose(editor: str, backbone: Backbone, changes: dict[str, Any]) -> Choice:
    """The settings of an editor on a model, `changes` laid over what is found.

    EditorError for an editor that is none, that does not support the kind of model, or for which
    no settings of that kind exist and `changes` do not say the places.
    """
    kind, shape = kind_of(editor), shape_of(backbone)
    cls = class_of(kind)
    if shape.kind not in cls.kinds:
        raise EditorError(
            f"{cls.name} does not support {shape.kind} models such as {backbone.name}; it supports "
            f"{', '.join(sorted(cls.kinds))}"
        )
    source, found = _nearest(kind, backbone, shape)
    if shape.kind != "classifier":
        found.pop("max_length", None)  # of a dataset's questions; facts of one's own are not cut
    same = False
    told = [f"{cls.name}'s settings are its defaults, as its authors give them"]
    if source:
        told = [f"{cls.name}'s settings are those of {source}"]
        same = SHAPES[source] == shape
        moved = found if same else _moved(found, SHAPES[source], backbone)
        if moved != found:
            depths = f"{SHAPES[source].depth} blocks there, {shape.depth} here"
            told.append(f"its layers moved to the same relative depth ({depths})")
        found = moved
    sized = _sized(kind, found, backbone)
    if sized != found:
        told.append("with the sizes of the study's laptop runs for what is learned or read before")
    config = {**sized, **changes}
    missing = [name for name in _places(kind) if name not in config]
    if missing and not (kind == "lora" and ("sites" in config or "parts" in config)):
        raise EditorError(
            f"{cls.name} has no settings for {shape.kind} models like {backbone.name}: say where "
            f"to edit, {', '.join(f'{name}=...' for name in missing)}"
        )
    second = config.get("counterfactual")
    if second == backbone.name and second.endswith(loading.IN_MEMORY):
        raise EditorError(
            "SERAC trains a second copy of the model to answer, and a model in memory cannot be "
            "loaded twice: save it (save_pretrained) and lib.load its folder"
        )
    if changes:
        told.append(f"but for {', '.join(sorted(changes))}, as given")
    if not (source == backbone.name and same):
        told.append(f"not tuned for {backbone.name}")
    return Choice(kind, config, "; ".join(told) + ".")


def _places(kind: str) -> list[str]:
    """The fields of an editor's configuration that name layers, and need a value."""
    module, _, configuration, _ = REGISTRY[kind]
    known = fields(getattr(importlib.import_module(module), configuration))
    return [field.name for field in known if field.name in PLACES]


def _nearest(kind: str, backbone: Backbone, shape: Shape) -> tuple[str, dict[str, Any]]:
    """The model whose settings are taken, with them; "" and none where there are none."""
    ranked = []
    for name, other in SHAPES.items():
        found = _stated(kind, name)
        if not found or other.kind != shape.kind:
            continue
        if name == backbone.name and other == shape:
            return name, found
        if other.width <= TINY < shape.width:
            continue
        apart = abs(math.log(other.width / shape.width)) + abs(math.log(other.depth / shape.depth))
        unlike = name not in SMALL if kind in LEARNING else False
        if shape.width <= TINY:
            unlike = other.width > TINY
        ranked.append(((unlike, other.family != shape.family, apart), name, found))
    if not ranked:
        return "", {}
    _, name, found = min(ranked, key=lambda one: one[0])
    return name, found


def _stated(kind: str, name: str) -> dict[str, Any]:
    """The study's settings; a LoRA without layers of its own has MELO's, as in MELO's table."""
    found = settings_of(kind, name)
    if kind == "lora" and found and not {"sites", "parts"} & found.keys():
        melo = settings_of("melo", name)
        found = {**found, "sites": melo["sites"]} if melo else {}
    return found


def _moved(config: dict[str, Any], source: Shape, backbone: Backbone) -> dict[str, Any]:
    """The settings with every place at the same relative depth of the model, each once."""
    found = dict(config)
    depth = backbone.n_blocks()

    def moved(block: int) -> int:
        return min(depth - 1, int((block + 0.5) * depth / source.depth))

    if "blocks" in found:
        found["blocks"] = sorted({moved(block) for block in found["blocks"]})
    for name in {*LAYERS} & found.keys():
        several = LAYERS[name]
        layers = [_layer(layer) for layer in (found[name] if several else [found[name]])]
        layers = [layer | {"block": moved(layer["block"])} for layer in layers]
        layers = [layer | {"part": part} for layer in layers for part in _parts(layer, backbone)]
        layers = [layer for at, layer in enumerate(layers) if layer not in layers[:at]]
        found[name] = layers if several else layers[0]
    below = next((name for name in ("router", "sensor") if name in found), None)
    if below and found.get("sites"):
        # What an index reads lies below every adapted layer.
        stack = found[below].get("stack")
        above = [layer for layer in found["sites"] if layer.get("stack") == stack]
        for layer in above:
            layer["block"] = max(layer["block"], 1)
        lowest = min(layer["block"] for layer in above)
        found[below]["block"] = min(found[below]["block"], lowest - 1)
        sites = found["sites"]
        found["sites"] = [layer for at, layer in enumerate(sites) if layer not in sites[:at]]
    if "parts" in found:
        known = (_parts({"part": part}, backbone) for part in found["parts"])
        found["parts"] = list(dict.fromkeys(part for parts in known for part in parts))
    if found.get("n_layers"):
        some = found.get("blocks", found.get("sites", ()))
        found["n_layers"] = min(found["n_layers"], len(some))
    return found


def _layer(layer: Any) -> dict[str, Any]:
    return {"part": layer.part, "block": layer.block} if isinstance(layer, Site) else dict(layer)


def _parts(layer: dict[str, Any], backbone: Backbone) -> Iterator[str]:
    """What the model has in place of a part: queries, keys and values are one matrix or three."""
    part, known = layer["part"], backbone.family.parts(layer.get("stack"))
    if part in known:
        yield part
    elif part == "attn_qkv" and "attn_query" in known:
        yield from ("attn_query", "attn_value")
    elif part in ("attn_query", "attn_value") and "attn_qkv" in known:
        yield "attn_qkv"
    else:
        yield "mlp_out"


def _sized(kind: str, config: dict[str, Any], backbone: Backbone) -> dict[str, Any]:
    """The settings with what is learned or read before any edit in the sizes of a laptop."""
    found, shape = dict(config), shape_of(backbone)
    if "statistics_tokens" in config and shape.width > TINY:
        width = max(key_width(backbone, block) for block in config["blocks"])
        enough = max(1000, TOKENS_PER_DIMENSION * width // 1000 * 1000)
        if config["statistics_tokens"] > enough:
            found["statistics_tokens"] = enough
            found["statistics_length"] = min(config.get("statistics_length") or 128, 128)
            found["statistics_documents"] = 0
    if kind in LEARNING and shape.width > TINY:
        found |= LEARNING[kind]
    if kind == "serac":
        found["classifier"] = "tiny-bert" if shape.width <= TINY else "minilm-l6"
        found["counterfactual"] = backbone.name
        found["trained_blocks"] = min(found.get("trained_blocks", 0), shape.depth)
    return found
