"""Model folders, hub repositories, tuned copies: safetensors in, safetensors out, no pickle.

Every cached folder carries content.json with the sha256 of its weights and tokenizer; a folder
that no longer agrees with it is never used.
"""

import contextlib
import copy
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2LMHeadModel,
    GPTJForCausalLM,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from lib.backbones.backbone import MODEL_TYPES, Backbone, cast, prepare
from lib.errors import BackboneError
from lib.storage import archives, atomic
from lib.storage.atomic import digest

CLASSES = {
    "gpt2": GPT2LMHeadModel,
    "gptj": GPTJForCausalLM,
    "llama": LlamaForCausalLM,
    "t5": T5ForConditionalGeneration,
    "bert": BertForSequenceClassification,
    "distilbert": DistilBertForSequenceClassification,
}
ENCODERS = {"bert": BertModel, "distilbert": DistilBertModel}  # without a head
HEADS = ("classifier.", "pre_classifier.")
# Every name under which the architectures keep a dropout rate.
DROPOUTS = (
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "attention_probs_dropout_prob",
    "hidden_dropout_prob", "classifier_dropout", "dropout", "dropout_rate", "seq_classif_dropout",
)  # fmt: skip
# What reading a foreign checkpoint may raise: files missing or damaged, shapes that do not fit.
READING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)
CONVERSION = 1  # raise it whenever lib/backbones/sources/conversions.py writes different files


@dataclass(frozen=True)
class Loaded:
    """A model as read, its tokenizer, where it came from, and whether weights had to be drawn."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    provenance: str
    new_head: bool = False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' bars and load reports inside the context; what matters is checked."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def read_folder(folder: Path, dtype: torch.dtype, num_labels: int | None = None) -> Loaded:
    """The model in a local folder (config.json, *.safetensors, tokenizer); never the network."""
    try:
        return _read(str(folder), dtype, num_labels, f"local folder {folder.name}", {})
    except READING_ERRORS as error:
        raise BackboneError(
            f"{folder} cannot be loaded: {first_line(error)}. It needs config.json, "
            "safetensors weights of that architecture and a tokenizer."
        ) from error


def read_hub(
    repository: str,
    revision: str,
    dtype: torch.dtype,
    num_labels: int | None = None,
    tokenizer: str | None = None,
) -> Loaded:
    """A hub repository's model with its tokenizer, or that of the repository `tokenizer`; one of
    READING_ERRORS if it cannot be had as safetensors."""
    offline = "1" in (os.environ.get("STUDY_OFFLINE"), os.environ.get("HF_HUB_OFFLINE"))
    place = {"revision": revision, "local_files_only": offline}
    provenance = f"model hub, {repository}@{revision}"
    return _read(repository, dtype, num_labels, provenance, place, tokenizer)


def _read(
    source: str,
    dtype: torch.dtype,
    num_labels: int | None,
    provenance: str,
    place: dict,
    tokenizer_source: str | None = None,
) -> Loaded:
    place = {"local_files_only": True} | place
    config = AutoConfig.from_pretrained(source, **place)
    if config.model_type not in CLASSES:
        raise ValueError(
            f"the architecture {config.model_type!r} is not one of {', '.join(MODEL_TYPES)}"
        )
    _without_dropout(config)
    kind = CLASSES[config.model_type]
    if config.model_type in ENCODERS and num_labels is not None:
        if num_labels == 0:
            kind = ENCODERS[config.model_type]
        else:
            config.num_labels = num_labels
    model, report = kind.from_pretrained(
        source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **place
    )
    for tensor in (*model.parameters(), *model.buffers()):
        # As read, weights are windows into the mapped file: they change or crash with it, and
        # where they begin (an odd offset after its header) moves results by 1e-6.
        tensor.data = tensor.data.clone()
    missing = sorted(report["missing_keys"])
    strange = [key for key in missing if not key.startswith(HEADS)]
    if strange:
        # transformers would go on with random values in their place.
        raise ValueError(f"the checkpoint lacks {len(strange)} tensors, first {strange[0]}")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source or source, **place)
    return Loaded(model, tokenizer, provenance, bool(missing))


def _without_dropout(config: PreTrainedConfig) -> None:
    """Rates of zero, so that train() and eval() compute the same."""
    rates = config.to_dict()
    for name in DROPOUTS:
        if rates.get(name) is not None:
            setattr(config, name, 0.0)


def converted(
    name: str, asset: str, convert: Callable[[Path, Path], None]
) -> tuple[Path, dict[str, str]]:
    """The cached folder that `convert(archive, folder)` made of an archive, and its hashes.

    Converted once; a folder whose files no longer have their recorded sha256 is made again.
    """
    version = archives.ASSETS[asset].version
    folder = archives.cache_dir() / "backbones" / f"{name}-{version}-c{CONVERSION}"
    with locked(folder):
        record = verified(folder)
        if record is None:
            archive = archives.fetch(asset)
            with atomic.folder(folder) as scratch:
                convert(archive, scratch)
                record = seal(scratch)
    return folder, record


def locked(folder: Path) -> FileLock:
    """The lock that keeps two processes from making the same cached folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.parent / f".{folder.name}.lock")


def seal(folder: Path) -> dict[str, str]:
    """Write content.json: sha256 of weights and tokenizer, and their joint identity, `content`."""
    for child in folder.iterdir():
        child.chmod(0o644)
    record = _hashes(folder)
    (folder / "content.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def verified(folder: Path) -> dict[str, str] | None:
    """The record that `seal` wrote, or None if the folder is absent or no longer agrees."""
    try:
        record = json.loads((folder / "content.json").read_text())
        return record if record == _hashes(folder) else None
    except (OSError, ValueError):
        return None


def _hashes(folder: Path) -> dict[str, str]:
    weights = digest(folder / "model.safetensors")
    tokenizer = digest(folder / "tokenizer.json")
    content = hashlib.sha256(f"{weights} {tokenizer}".encode()).hexdigest()
    return {"weights": weights, "tokenizer": tokenizer, "content": content}


def state_content(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 identity of weights in memory (as loaded, so dtype counts) and vocabulary."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its final stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


TuningLog = dict[str, object]


def tuned(
    backbone: Backbone, identity: object, train: Callable[[PreTrainedModel], TuningLog]
) -> tuple[Backbone, TuningLog]:
    """A new backbone with the weights that `train` makes of a float32 copy, and the record that
    it gives; the given backbone is untouched.

    `identity` is everything beside the weights that determines the outcome, as plain values. Kept
    under STUDY_CACHE/tuned; a second call only reads, a damaged copy is made again.
    """
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:40]
    folder = archives.cache_dir() / "tuned" / key
    with locked(folder):
        content = verified(folder)
        if content is None:
            model, began = cast(copy.deepcopy(backbone.model), torch.float32), time.monotonic()
            record = train(model) | {
                "base": backbone.content,
                "seconds": round(time.monotonic() - began, 2),
                "device": str(backbone.device),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "machine": platform.machine(),
            }
            with quiet(), atomic.folder(folder) as scratch:
                model.save_pretrained(scratch, max_shard_size="1TB")
                backbone.tokenizer.save_pretrained(scratch)
                (scratch / "tuning.json").write_text(json.dumps(record, indent=1) + "\n")
                content = seal(scratch)
            del model
    # Fresh or cached, the weights are read back: both ways give the same backbone.
    with quiet():
        model = read_folder(folder, backbone.dtype).model
    model = prepare(cast(model, backbone.dtype), backbone.tokenizer, backbone.device)
    record = json.loads((folder / "tuning.json").read_text())
    return replace(backbone, model=model, content=content["content"]), record
