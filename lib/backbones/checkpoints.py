"""Model folders, hub repositories, tuned copies: safetensors in, safetensors out, no pickle."""

import contextlib
import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
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
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    T5ForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from lib.backbones.backbone import MODEL_TYPES, Backbone, cast, prepare
from lib.errors import BackboneError
from lib.storage import archives, fingerprints, hub
from lib.storage.cache import Cache, hashes
from lib.storage.fingerprints import content_hash

CLASSES = {
    "gpt2": GPT2LMHeadModel,
    "gptj": GPTJForCausalLM,
    "llama": LlamaForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "gpt_neox": GPTNeoXForCausalLM,
    "t5": T5ForConditionalGeneration,
    "bert": BertForSequenceClassification,
    "distilbert": DistilBertForSequenceClassification,
}
ENCODERS = {"bert": BertModel, "distilbert": DistilBertModel}  # without a head
HEADS = ("classifier.", "pre_classifier.")
# Every name under which the architectures keep a dropout rate.
DROPOUTS = (
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "attention_probs_dropout_prob",
    "hidden_dropout", "hidden_dropout_prob", "classifier_dropout", "dropout", "dropout_rate",
    "seq_classif_dropout",
)  # fmt: skip
# What reading a foreign checkpoint may raise: files missing or damaged, shapes that do not fit.
READING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)


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
    """A hub repository's model with its tokenizer, or that of the repository `tokenizer`, from the
    revision that holds safetensors (`hub.with_weights`); one of READING_ERRORS if it cannot be had.
    """
    # transformers would send the repository's name and the user's token to a conversion service.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        read_from, held = hub.with_weights(repository, revision)
        commit, kept = held.commit, None
    except hub.UnreachableError:
        kept = hub.kept_weights(repository, revision)
        if kept is None:
            raise
        read_from, commit = kept
    place = {"revision": read_from, "local_files_only": kept is not None}
    provenance = f"model hub, {repository}@{commit}"
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
    if tokenizer_source:  # of another repository, whose revisions are its own
        place |= {"revision": "main"}
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source or source, **place)
    return Loaded(model, tokenizer, provenance, bool(missing))


def _without_dropout(config: PreTrainedConfig) -> None:
    """Rates of zero, so that train() and eval() compute the same."""
    rates = config.to_dict()
    for name in DROPOUTS:
        if rates.get(name) is not None:
            setattr(config, name, 0.0)


def converted(name: str, asset: str, convert: Callable[[Path, Path], None]) -> Path:
    """The cached folder that `convert(archive, folder)` made of an archive."""
    identity = [archives.ASSETS[asset].sha256, fingerprints.own(convert.__module__)]
    return Cache.user().folder(
        f"backbones/{name}", identity, lambda scratch: convert(archives.fetch(asset), scratch)
    )


# Of a configuration: where it came from and who wrote it, which decide nothing.
_WRITTEN = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def kept_content(folder: Path) -> str:
    """The joint sha256 identity of weights, tokenizer and configuration in a cached folder."""
    found = hashes(folder)
    names = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json")
    return content_hash([found.get(name) for name in names])


def state_content(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 identity of weights in memory (as loaded, so dtype counts), tokenizer and
    configuration."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())  # vocabulary, merges, normaliser ...
    state = ("padding", "truncation")  # of the last call
    tokens = {name: value for name, value in rules.items() if name not in state}
    config = {k: value for k, value in model.config.to_dict().items() if k not in _WRITTEN}
    return content_hash([digest.hexdigest(), tokens, config])


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its final stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


TuningLog = dict[str, object]


def where_tuned(log: TuningLog) -> str:
    """On what weights were tuned, which decides their last digits."""
    return (
        f"on {log['machine']}, {log['threads']} thread{'s' * (log['threads'] != 1)}: another "
        "processor rounds otherwise and tunes to somewhat other weights"
    )


def tuned(
    backbone: Backbone, identity: object, train: Callable[[PreTrainedModel], TuningLog]
) -> tuple[Backbone, TuningLog]:
    """A new backbone with the weights that `train` makes of a float32 copy, and the record that
    it gives; the given backbone is untouched.

    `identity` is everything beside the backbone that determines the outcome, as plain values. Kept
    under STUDY_CACHE/tuned; a second call only reads.
    """

    def make(scratch: Path) -> None:
        model, began = cast(copy.deepcopy(backbone.model), torch.float32), time.monotonic()
        record = train(model) | {
            "base": backbone.content,
            "seconds": round(time.monotonic() - began, 2),
            "device": str(backbone.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "machine": fingerprints.processor(),
        }
        with quiet():
            model.save_pretrained(scratch, max_shard_size="1TB")
            backbone.tokenizer.save_pretrained(scratch)
        (scratch / "tuning.json").write_text(json.dumps(record, indent=1) + "\n")

    folder = Cache.user().folder("tuned", [backbone.arithmetic, identity], make)
    # Fresh or cached, the weights are read back: both ways give the same backbone.
    with quiet():
        model = read_folder(folder, backbone.dtype).model
    model = prepare(cast(model, backbone.dtype), backbone.tokenizer, backbone.device)
    record = json.loads((folder / "tuning.json").read_text())
    return replace(backbone, model=model, content=kept_content(folder)), record
