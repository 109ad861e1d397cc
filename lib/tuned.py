"""Weights that were tuned here, kept under the hash of everything that determines them."""

import copy
import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from lib import checkpoints
from lib.backbones import Backbone, cast, prepare
from lib.storage import archives, atomic

Record = dict[str, object]


def tuned(
    backbone: Backbone, identity: object, train: Callable[[PreTrainedModel], Record]
) -> tuple[Backbone, Record]:
    """A new backbone with the weights that `train` makes of a float32 copy, and the record that
    it gives; the given backbone is untouched.

    `identity` is everything beside the weights that determines the outcome, as plain values. Kept
    under STUDY_CACHE/tuned; a second call only reads, a damaged copy is made again.
    """
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:40]
    folder = archives.cache_dir() / "tuned" / key
    with checkpoints.locked(folder):
        content = checkpoints.verified(folder)
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
            with checkpoints.quiet(), atomic.folder(folder) as scratch:
                model.save_pretrained(scratch, max_shard_size="1TB")
                backbone.tokenizer.save_pretrained(scratch)
                (scratch / "tuning.json").write_text(json.dumps(record, indent=1) + "\n")
                content = checkpoints.seal(scratch)
            del model
    # Fresh or cached, the weights are read back: both ways give the same backbone.
    with checkpoints.quiet():
        model = checkpoints.read_folder(folder, backbone.dtype).model
    model = prepare(cast(model, backbone.dtype), backbone.tokenizer, backbone.device)
    record = json.loads((folder / "tuning.json").read_text())
    return replace(backbone, model=model, content=content["content"]), record
