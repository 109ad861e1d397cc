"""What there is to choose from: the editors, and the models that have a name here."""

import pandas as pd

from lib.api.choices import SHAPES
from lib.backbones.backbone import BERT, DISTILBERT, GPT2, GPT_NEOX, GPTJ, LLAMA, QWEN2, T5_GATED
from lib.backbones.sources.catalogue import ENTRIES, Hub, Package
from lib.editors import REGISTRY, class_of, settings_of

ARCHITECTURES = (GPT2, GPTJ, GPT_NEOX, LLAMA, QWEN2, T5_GATED, BERT, DISTILBERT)
# Of what an editor takes beside its configuration (`Editor.needs`), that which takes time.
FIRST = {"corpus": "reads text", "training": "trains on facts"}


def list_editors() -> pd.DataFrame:
    """A row for each editor: its `name`, as `lib.edit` takes it and as pages write it (`editor`);
    what an edit leaves behind (`family`); which architectures it supports; what it does `first`,
    once for a model; whether edits are values of the model's own weights, which
    `Edited.save_pretrained` can write; and the models of `list_models` that have settings."""
    rows = []
    for kind, (*_, family) in REGISTRY.items():
        cls = class_of(kind)
        supported = [one.name for one in ARCHITECTURES if one.kind in cls.kinds]
        rows.append(
            {
                "name": kind,
                "editor": cls.name,
                "family": family,
                "architectures": ", ".join(supported),
                "first": ", ".join(said for need, said in FIRST.items() if need in cls.needs),
                "in_weights": cls.in_weights,
                "settings": ", ".join(name for name in ENTRIES if settings_of(kind, name)),
            }
        )
    return pd.DataFrame(rows)


def list_models() -> pd.DataFrame:
    """A row for each model that `lib.load` knows by name: its architecture, what it does, its
    blocks and width where settings are written for it, and where its weights come from. Any other
    model of `ARCHITECTURES` is loaded from a folder, the model hub, or memory."""
    rows = []
    for name, entry in ENTRIES.items():
        shape, source = SHAPES.get(name), entry.sources[0]
        weights = "a package, fetched once" if isinstance(source, Package) else "random"
        if isinstance(source, Hub):
            weights = f"{source.repository} on the model hub"
        rows.append(
            {
                "name": name,
                "architecture": shape.family if shape else "",
                "kind": shape.kind if shape else "",
                "blocks": shape.depth if shape else pd.NA,
                "width": shape.width if shape else pd.NA,
                "weights": weights,
            }
        )
    return pd.DataFrame(rows).astype({"blocks": "Int64", "width": "Int64"})
