"""Training a hyper-network: one pass of meta-steps over the training facts, or its cached outcome.

The outer loop of malmen 2.4: Adam on the whole network, gradients clipped together. A killed
training goes on from its last checkpoint and ends in the same network; a finished one is reused by
every run that asks for the same backbone, facts, configuration and number of edits at once.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from lib.backbones.passes.fact_passes import Pair, edit_pairs, rephrase_pairs, unrelated_pairs
from lib.backbones.passes.logits import hits, label_logits
from lib.data.records import Edit
from lib.editors.hypernet.editor import HyperEditor
from lib.editors.hypernet.network import HyperNetworks, TrainedNetwork, TrainingLog
from lib.errors import EditorError
from lib.storage import fingerprints
from lib.storage.atomic import CHECKPOINT_SECONDS
from lib.storage.cache import keep, whole


@torch.no_grad()
def validate(editor: HyperEditor, m: int, *, edited: bool = True) -> dict[str, float]:
    """Edit success, generality and locality (teacher-forced, against gold answers; malmen 5) on the
    validation facts, m at a time, each chunk on the unedited backbone.

    Too few facts for one chunk are edited together; `edited=False` scores the backbone itself. The
    running statistics stay as they are: the official code lets validation rows into them. Empty
    without validation facts.
    """
    facts = editor.training.valid
    if not facts:
        return {}
    size = min(m, len(facts))
    scores: dict[str, list[float]] = {"valid_ES": [], "valid_GS": [], "valid_LS": []}
    for start in range(0, len(facts) - size + 1, size):
        chunk = facts[start : start + size]
        editor.weights.write(editor.shifts_of(chunk) if edited else {})
        try:
            parts = (edit_pairs(chunk), rephrase_pairs(chunk), unrelated_pairs(chunk))
            for pairs, found in zip(parts, scores.values(), strict=True):
                found += teacher_forced(editor, pairs)
        finally:
            editor.weights.restore()
    return {name: sum(found) / len(found) for name, found in scores.items()}


def teacher_forced(editor: HyperEditor, pairs: Sequence[Pair]) -> list[float]:
    """Share of answer tokens that are the argmax, row by row, under the weights in force."""
    found = []
    for batch in editor.passes.mini_batches(pairs, editor.config.batch_rows):
        with editor.prefix.replay(batch.state):
            logits, _ = label_logits(editor.backbone, batch.rows, labels_only=True)
        found += hits(logits, batch.rows)
    return found


def trained_network(editor: HyperEditor, m: int) -> TrainedNetwork:
    """The network of an editor for m edits at once, trained now or before.

    Raises EditorError if the editor has no training facts. Without a cache folder nothing is kept.
    """
    if editor.training is None or not editor.training.train:
        raise EditorError(
            f"{editor.name} learns from facts before it edits; pass training= "
            "(lib.data.training), or give the setting a `training` entry"
        )
    m, cache = min(m, len(editor.training.train)), editor.networks_cache
    if cache is None:
        return TrainedNetwork(*_train(editor, m, None), cached=False)
    identity, fresh = network_identity(editor, m), []
    partial = cache.place("networks", identity).with_suffix(".partial")

    def make(scratch: Path) -> None:
        fresh.append(_train(editor, m, partial))
        _write(scratch, *fresh[0])

    folder = cache.folder("networks", identity, make)
    if fresh:
        shutil.rmtree(partial, ignore_errors=True)
        return TrainedNetwork(*fresh[0], cached=False)
    network = editor.new_network()
    network.load_state_dict(load_file(folder / "network.safetensors"))
    return TrainedNetwork(network.requires_grad_(False), _record(folder), cached=True)


def network_identity(editor: HyperEditor, m: int) -> dict[str, Any]:
    """Everything that decides a trained network."""
    config = asdict(editor.config)
    for name in ("train_m", "loss_after"):  # m stands beside it; the other decides nothing
        del config[name]
    return {
        "editor": editor.name,
        "m": m,
        "config": config,
        "backbone": editor.backbone.arithmetic,
        "facts": editor.training.content,
        "code": fingerprints.code(type(editor).__module__, apart=fingerprints.TOLD),
    }


def meta_batches(facts: Sequence[Edit], m: int, epochs: int, seed: int) -> Iterator[list[Edit]]:
    """The facts of every meta-step: each epoch in a new order, m at a time, the rest left out;
    each fact with one of its rephrases, drawn anew per epoch (malmen 2.4, 4). The order depends on
    the seed, the draws on the epoch alone."""
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        order, drawn = (
            torch.randperm(len(facts), generator=generator).tolist(),
            _drawn(facts, epoch),
        )
        for start in range(0, len(order) - m + 1, m):
            yield [drawn[index] for index in order[start : start + m]]


def _drawn(facts: Sequence[Edit], epoch: int) -> list[Edit]:
    places = torch.rand(len(facts), generator=torch.Generator().manual_seed(epoch)).tolist()
    return [
        replace(fact, rephrases=(fact.rephrases[int(place * len(fact.rephrases))],))
        for fact, place in zip(facts, places, strict=True)
    ]


def _train(editor: HyperEditor, m: int, partial: Path | None) -> tuple[HyperNetworks, TrainingLog]:
    config, facts = editor.config, editor.training.train
    network = editor.new_network()
    editor.use_network(network)
    optimiser = torch.optim.Adam(network.parameters(), lr=config.meta_lr)
    record = TrainingLog(m, facts=len(facts) // m * m * config.epochs)
    if partial is not None:
        record = _resume(partial, network, optimiser) or record
    per_epoch = len(facts) // m
    total = per_epoch * config.epochs
    bar = tqdm(
        total=total, initial=record.steps, desc=f"training {editor.name}, {m} edits at once",
        unit="step", file=sys.stderr, mininterval=1, leave=False,
    )  # fmt: skip
    began = saved = time.monotonic() - record.seconds
    _fill(editor, 0)
    if not record.steps:
        record.curve.append({"step": 0, **validate(editor, m, edited=False)})
    for number, batch in enumerate(meta_batches(facts, m, config.epochs, config.seed)):
        if number % per_epoch == 0:
            _fill(editor, number // per_epoch)  # also before a resumed step: the same calls
        if number < record.steps:
            continue
        losses = editor.meta_step(batch, optimiser, number % per_epoch, per_epoch)
        record.steps = number + 1
        last = record.steps == total
        due = config.validate_every and record.steps % config.validate_every == 0
        record.curve.append(
            {"step": record.steps, **asdict(losses)} | (validate(editor, m) if last or due else {})
        )
        _check(record, editor)
        bar.update()
        record.seconds = time.monotonic() - began
        within = editor.in_sequence and record.steps % per_epoch  # more is carried than is kept
        late = time.monotonic() - saved > CHECKPOINT_SECONDS
        if partial is not None and late and not within and not last:
            keep(partial, lambda scratch: _write(scratch, network, record, optimiser))
            saved = time.monotonic()
    bar.close()
    network.zero_grad(set_to_none=True)
    return network.requires_grad_(False), record


def _fill(editor: HyperEditor, epoch: int) -> None:
    """Run the frozen blocks on an epoch's rows and those of validation, and the unedited model on
    what it alone decides: once for every training on these facts."""
    facts, valid = editor.training.train, editor.training.valid
    for some in (_drawn(facts, epoch), valid):
        editor.passes.fill([*edit_pairs(some), *rephrase_pairs(some), *unrelated_pairs(some)])
    editor.known.fill([*edit_pairs(facts), *edit_pairs(valid)], unrelated_pairs(facts))


def _check(record: TrainingLog, editor: HyperEditor) -> None:
    latest = record.curve[-1]
    if not math.isfinite(latest["generality"] + latest["locality"]):
        raise EditorError(
            f"the meta-training of {editor.name} diverged at step {record.steps} (loss "
            f"{latest['generality']}, {latest['locality']}); lower meta_lr or eta"
        )


def _write(
    folder: Path,
    network: HyperNetworks,
    record: TrainingLog,
    optimiser: torch.optim.Adam | None = None,
) -> None:
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / "network.safetensors")
    if optimiser is not None:
        save_file(_moments(optimiser), folder / "adam.safetensors")
    (folder / "record.json").write_text(json.dumps(asdict(record)), "utf-8")


def _moments(optimiser: torch.optim.Adam) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": value.contiguous()
        for number, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def _resume(
    folder: Path, network: HyperNetworks, optimiser: torch.optim.Adam
) -> TrainingLog | None:
    if not whole(folder):
        return None
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(folder / "adam.safetensors").items():
        number, which = name.split(".")
        state.setdefault(int(number), {})[which] = value
    network.load_state_dict(load_file(folder / "network.safetensors"))
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    return _record(folder)


def _record(folder: Path) -> TrainingLog:
    return TrainingLog(**json.loads((folder / "record.json").read_text("utf-8")))
