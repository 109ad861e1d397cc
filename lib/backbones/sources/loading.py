"""Names to backbones: a pretrained model, its tokenizer, and the facts that editors need.

    backbone = load("smollm2-135m")
    backbone.path("mlp_out", 4)             # "model.layers.4.mlp.down_proj"
    backbone.module("mlp_out", 4)           # that nn.Linear

A backbone comes from the folder STUDY_MODELS/<name> if there is one, else from the source of its
catalogue entry: a package archive, the model hub, or a random generator. Models that are in no
catalogue: "dir:/some/folder", "hub:owner/name", and those in memory (`adopt`).
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.backbones import checkpoints
from lib.backbones.backbone import Backbone, cast, family_of, prepare
from lib.backbones.checkpoints import Loaded
from lib.backbones.sources.catalogue import ENTRIES, Entry, Hub, Package
from lib.errors import BackboneError
from lib.storage import archives, hub
from lib.storage.fingerprints import content_hash

IN_MEMORY = " (in memory)"  # ends the name of a model that cannot be loaded by it


def names() -> tuple[str, ...]:
    """All registered backbone names."""
    return tuple(ENTRIES)


def has_head(name: str) -> bool:
    """Whether the classifier `name` brings the head it was published with."""
    return entry_of(name).num_labels is None


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    tune_on: Sequence[tuple[str, str]] | None = None,
    num_labels: int | None = None,
    seed: int = 0,
) -> Backbone:
    """The backbone `name` (one of `names()`, "dir:/some/folder", "hub:owner/name" or
    "hub:owner/name@revision"), ready for editing.

    `tune_on`: question-answer pairs on which a seq2seq backbone is fine-tuned first, in float32
    (cached). `num_labels`: classes of a classifier; None: the checkpoint's own or the entry's
    default, 0: the encoder without a head. `seed` draws new heads, random models and the tuning
    order; the global random state is left alone.
    Raises BackboneError (unknown name, wrong kind, unreachable hub) or AssetError (no archive).
    """
    entry = entry_of(name)
    first_dtype = dtype if tune_on is None else torch.float32
    labels = entry.num_labels if num_labels is None else num_labels
    with checkpoints.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded, content = _find(entry, first_dtype, labels, seed)
    backbone = _assemble(entry, loaded, content, first_dtype, torch.device(device))
    if tune_on is None:
        return backbone
    from lib.backbones.tuning.questions import TuningConfig, tune_question_answering

    tuned = tune_question_answering(backbone, tune_on, TuningConfig(seed=seed))
    return replace(tuned, model=cast(tuned.model, dtype), dtype=dtype)


def adopt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Backbone:
    """A model in memory as a backbone, in its own precision and on its device. It is changed as
    `prepare` says: eval mode, no gradients, no dropout, greedy decoding. BackboneError for an
    architecture without a map, for a mixture of precisions or devices."""
    family_of(model)  # before anything is changed
    found = {(parameter.dtype, parameter.device) for parameter in model.parameters()}
    if len(found) != 1:
        raise BackboneError(
            f"the given model lies on several devices or in several precisions ({len(found)} "
            "kinds of parameters); load it in one precision on one device"
        )
    ((dtype, device),) = found
    name = f"{Path(model.name_or_path or type(model).__name__).name}{IN_MEMORY}"
    loaded = Loaded(model, tokenizer, "a model in memory")
    return _assemble(Entry(name, sources=()), loaded, None, dtype, device)


def local(name: str) -> str:
    """Hash of names, sizes and times of the files in the local folder that the name stands for now
    ("dir:…", STUDY_MODELS); "" for what is pinned or on the hub."""
    folder = local_folder(name)
    if folder is None:
        return ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
    return content_hash([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def local_folder(name: str) -> Path | None:
    """The folder that the name stands for now ("dir:…", STUDY_MODELS); None for another source."""
    if name.startswith("dir:"):
        return Path(name.removeprefix("dir:")).expanduser()
    models = os.environ.get("STUDY_MODELS")
    folder = Path(models).expanduser() / name if models else None
    return folder if folder is not None and (folder / "config.json").is_file() else None


def _assemble(
    entry: Entry, loaded: Loaded, content: str | None, dtype: torch.dtype, device: torch.device
) -> Backbone:
    tokenizer = loaded.tokenizer
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise BackboneError(
            f"{entry.name}: {type(tokenizer).__name__} cannot say where words begin; save the "
            "tokenizer as a fast one (tokenizer.json)"
        )
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise BackboneError(
            f"{entry.name}: its tokenizer has no token that ends a text; set tokenizer.eos_token"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if content is None:
        content = checkpoints.state_content(loaded.model, tokenizer)
    end = tokenizer.eos_token_id
    return Backbone(
        name=entry.name,
        family=family_of(loaded.model),
        model=prepare(cast(loaded.model, dtype), tokenizer, device),
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        content=content,
        provenance=loaded.provenance,
        substitution=entry.substitution,
        prefix=entry.prefix,
        eos_id=tokenizer.sep_token_id if end is None else end,
        pad_id=tokenizer.pad_token_id,
    )


def entry_of(name: str) -> Entry:
    """The catalogue's entry of a name, or one made for a folder or a hub repository."""
    if name.startswith("dir:"):
        folder = Path(name.removeprefix("dir:")).expanduser()
        if not (folder / "config.json").is_file():
            raise BackboneError(f"{folder} holds no config.json: give the folder of a saved model.")
        return Entry(name, sources=())
    if name.startswith("hub:"):
        repository, _, revision = name.removeprefix("hub:").partition("@")
        return Entry(name, sources=(Hub(repository, revision or "main"),))
    if name not in ENTRIES:
        raise BackboneError(
            f"no backbone is called {name!r}; known: {', '.join(names())}, dir:…, hub:…"
        )
    return ENTRIES[name]


def _find(
    entry: Entry, dtype: torch.dtype, labels: int | None, seed: int
) -> tuple[Loaded, str | None]:
    """What the first working source holds, and its content hash if it is known without hashing."""
    folder = local_folder(entry.name)
    if folder is not None:
        return checkpoints.read_folder(folder, dtype, labels), None
    faults = []
    for source in entry.sources:
        if isinstance(source, Package):
            return _find_package(entry, source, dtype, labels)
        if isinstance(source, Hub):
            try:
                read = checkpoints.read_hub(
                    source.repository, source.revision, dtype, labels, source.tokenizer
                )
                return read, None
            except checkpoints.READING_ERRORS as error:
                faults.append(_fault(entry.name, source, error))
                continue
        model, tokenizer = source.build(seed, labels)
        return Loaded(model, tokenizer, f"random weights, seed {seed}; for tests only"), None
    if entry.name.startswith("hub:"):
        raise BackboneError(
            f"{entry.name} could not be loaded ({'; '.join(faults)}). Run with network, or give "
            "a folder with its safetensors, config.json and tokenizer."
        )
    raise BackboneError(
        f"{entry.name} could not be loaded from the model hub ({'; '.join(faults)}). Run with "
        f"network, or put its safetensors, config.json and tokenizer into a folder "
        f"{entry.name}/ and set STUDY_MODELS to the folder above it. The laptop profile needs "
        "no hub."
    )


def _fault(name: str, source: Hub, error: BaseException) -> str:
    """Why the repository could not be read, with the way out where there is one."""
    said = str(hub.explained(error, source.repository))
    if isinstance(error, hub.PickledError):
        said += f": {source.conversion(name)}"
    return f"{source.repository}@{source.revision}: {said}"


def _find_package(
    entry: Entry, source: Package, dtype: torch.dtype, labels: int | None
) -> tuple[Loaded, str | None]:
    folder = checkpoints.converted(entry.name, source.asset, source.convert)
    loaded = checkpoints.read_folder(folder, dtype, labels)
    asset = archives.ASSETS[source.asset]
    provenance = (
        f"{source.what}; from the package {asset.package} {asset.version} ({asset.licence}), "
        f"archive sha256 {asset.sha256[:16]}"
    )
    content = None if loaded.new_head else checkpoints.kept_content(folder)
    return replace(loaded, provenance=provenance), content
