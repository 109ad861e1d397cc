"""Any model that the library can edit, from wherever it is."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.backbones.backbone import Backbone
from lib.backbones.sources import loading
from lib.errors import BackboneError

Model: TypeAlias = (
    str | os.PathLike[str] | Backbone | tuple[PreTrainedModel, PreTrainedTokenizerBase]
)
"""A name of the catalogue, a local folder, a repository of the model hub ("owner/name" or
"owner/name@revision"), a model with its tokenizer, or what `load` gave."""

FILES = "safetensors weights, config.json and tokenizer"


def load(
    model: Model,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    prefix: str | None = None,
) -> Backbone:
    """The model, ready to be edited: `backbone.model` is its transformers model, in eval mode,
    without dropout and gradients, decoding greedily unless told otherwise.

    `dtype`: "float32" (default) or another floating-point type. A model that is given in memory
    keeps its own and its device, and is changed itself. `prefix` starts every prompt, for models
    that were trained with a mark before each document which their tokenizer does not set.
    BackboneError says what is missing: an unknown name, an architecture without a map, no network.
    """
    if isinstance(model, Backbone):
        return model if prefix is None else replace(model, prefix=prefix)
    if isinstance(model, PreTrainedModel):
        raise BackboneError("give the model with its tokenizer: lib.load((model, tokenizer))")
    if isinstance(model, Sequence) and not isinstance(model, str):
        found = _adopted(model, dtype)
    else:
        found = loading.load(name_of(model), dtype=_dtype(dtype), device=device)
    return found if prefix is None else replace(found, prefix=prefix)


def name_of(model: str | os.PathLike[str]) -> str:
    """How the library's loader calls a model: a name of the catalogue, "dir:..." or "hub:...".
    A name of the catalogue wins over a folder of that name."""
    name = os.fspath(model)
    if name in loading.names() or name.startswith(("dir:", "hub:")):
        return name
    if Path(name).expanduser().is_dir():
        return f"dir:{Path(name).expanduser().resolve()}"
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return f"hub:{name}"
    raise BackboneError(
        f"no model is called {name!r}, and there is no such folder. Give a folder with "
        f"{FILES}, a hub repository (owner/name), a model with its tokenizer, or one of "
        f"{', '.join(n for n in loading.names() if not n.startswith('tiny-'))}"
    )


def _adopted(pair: Sequence[object], dtype: str | torch.dtype | None) -> Backbone:
    if len(pair) != 2 or not isinstance(pair[0], PreTrainedModel):
        raise BackboneError("give a pair: lib.load((model, tokenizer)), both of transformers")
    found = loading.adopt(*pair)
    if dtype is not None and _dtype(dtype) != found.dtype:
        raise BackboneError(
            f"the given model is in {found.dtype}, not in {_dtype(dtype)}; convert it before, or "
            "leave dtype out"
        )
    return found


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """The type of the weights; BackboneError for what is none."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype or torch.float32
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise BackboneError(f"dtype {dtype!r}: give float32, bfloat16, float16 or float64")
    return found
