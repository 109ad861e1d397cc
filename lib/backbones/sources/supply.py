"""Whether a backbone can be had, before any of its weights is fetched."""

import importlib.util
from dataclasses import dataclass

from lib.backbones.sources import loading
from lib.backbones.sources.catalogue import Hub, Package
from lib.storage import archives, hub

# Files that a tokenizer is made of; the last is read by sentencepiece alone.
PIECES = "spiece.model"
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", PIECES)


@dataclass(frozen=True)
class Supply:
    """Where a backbone comes from, how many bytes its weights have there (0: unknown) and how many
    are still to be fetched. `fault`: why it cannot be had ("": it can), with a remedy; `unknown`:
    nobody could be asked."""

    source: str
    size: int = 0
    to_fetch: int = 0
    fault: str = ""
    remedy: str = ""
    unknown: bool = False


def supply_of(name: str) -> Supply:
    """The supply of a backbone, as `loading.load` would find it. BackboneError for an unknown
    name."""
    folder = loading.local_folder(name)
    if folder is not None:
        sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
        fault = "" if sizes else f"{folder} holds no safetensors"
        return Supply(str(folder), sum(sizes), fault=fault)
    entry = loading.entry_of(name)
    source = entry.sources[0]
    if isinstance(source, Package):
        asset = archives.ASSETS[source.asset]
        missing = 0 if archives.at_hand(source.asset) else asset.size
        return Supply(f"package {asset.package} {asset.version}", asset.size, missing)
    if isinstance(source, Hub):
        return _of_hub(entry.name, source)
    return Supply("drawn at random")


def _of_hub(name: str, source: Hub) -> Supply:
    kept = hub.kept_weights(source.repository, source.revision)
    try:
        revision, held = hub.with_weights(source.repository, source.revision)
        if held.gated and not kept:
            hub.check_access(source.repository)
        words = hub.repository(source.tokenizer) if source.tokenizer else held
    except hub.UnreachableError as error:
        if kept:
            return Supply(f"HF_HOME, {source.repository}@{kept[1][:12]}")
        return Supply(source.repository, fault=error.fault.partition(" (")[0], unknown=True)
    except hub.PickledError as error:
        return Supply(source.repository, fault=error.fault, remedy=source.conversion(name))
    except hub.HubError as error:
        return Supply(source.repository, fault=error.fault, remedy=error.remedy)
    size = sum(held.files[file] for file in held.weights)
    where = f"{source.repository}@{revision if revision.startswith('refs/') else held.commit[:12]}"
    fault = _of_tokenizer(words)
    return Supply(where, size, 0 if kept else size, fault)


def _of_tokenizer(held: hub.Repository) -> str:
    """What is wrong with a repository's tokenizer; "" for nothing."""
    found = [file for file in TOKENIZERS if file in held.files]
    if not found:
        return f"{held.name} holds no tokenizer"
    if found == [PIECES] and importlib.util.find_spec("sentencepiece") is None:
        return "its tokenizer needs sentencepiece, which requirements.txt names"
    return ""
