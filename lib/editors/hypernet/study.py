"""What an editor with a hyper-network reports about itself, as flat rows for the observations."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lib.backbones.passes.fact_passes import edit_pairs
from lib.data.records import Edit
from lib.editors.hypernet.capture import GraphMemory
from lib.editors.hypernet.editor import HyperEditor
from lib.editors.hypernet.network import TrainedNetwork
from lib.editors.hypernet.ridge import Ridge, rank_one_shifts, wanted_outputs


def training_rows(trained: TrainedNetwork | None) -> Iterator[dict[str, Any]]:
    """The training's size and seconds, and one row per meta-step."""
    if trained is None:
        return
    record = trained.record
    yield {
        "kind": "training",
        "m": record.m,
        "seconds": record.seconds,
        "steps": record.steps,
        "facts": record.facts,
        "cached": trained.cached,
        "parameters": trained.network.size(),
    }
    for entry in record.curve:
        yield {"kind": "curve", "m": record.m, "facts": entry["step"] * record.m, **entry}


def memory_rows(editor: HyperEditor, m: int) -> Iterator[dict[str, Any]]:
    """What a meta-step of m facts keeps for its backward passes, jointly and decoupled, and the
    row store, in bytes. The step is made on a copy of the network; nothing without m facts."""
    facts = editor.training.train[:m] if editor.training else ()
    if len(facts) < m:
        return
    network = editor.network
    memory = GraphMemory([*editor.backbone.model.parameters(), *network.parameters()])
    trial = copy.deepcopy(network).requires_grad_(True)
    memory.exclude(trial.parameters())
    editor.use_network(trial)
    try:
        with editor.unedited():
            editor.meta_gradients(facts, memory)
    finally:
        editor.use_network(network)
    yield {"kind": "memory", "m": m, **memory.sizes()}


@torch.no_grad()
def module_rows(editor: HyperEditor, batch: Sequence[Edit]) -> Iterator[dict[str, Any]]:
    """For each edited layer: does one shift give every row of the batch what it wants?

    `residual` is |K S - D| / |D| for the editor's own shift; `summed_residual` for the plain sum
    of the rank-one shifts (MEND's) on the same rows, `solved_residual` for the ridge solution;
    norms beside them. All on the unedited backbone.
    """
    with editor.unedited():
        store, _ = editor.cache(
            editor.passes.mini_batches(edit_pairs(batch), editor.config.batch_rows)
        )
    for path in editor.paths:
        net, module = editor.network.of(path)
        keys, gradients = store.of(path)
        pseudo = net(keys, gradients, module)
        wanted = wanted_outputs(net.eta[module], keys, *pseudo)
        own, _ = editor.shift(path, keys, gradients)
        summed = rank_one_shifts(net.eta[module], *pseudo)
        solved = Ridge(keys, net.alpha[module].exp().item()).shift(wanted)
        scale = wanted.norm().clamp(min=torch.finfo(wanted.dtype).tiny)
        yield {
            "kind": "module",
            "path": path,
            "m": len(batch),
            "rows": len(keys),
            "eta": net.eta[module].item(),
            "ridge": net.alpha[module].exp().item(),
            "wanted_norm": wanted.norm().item(),
            "residual": ((keys @ own - wanted).norm() / scale).item(),
            "shift_norm": own.norm().item(),
            "summed_residual": ((keys @ summed - wanted).norm() / scale).item(),
            "summed_norm": summed.norm().item(),
            "solved_residual": ((keys @ solved - wanted).norm() / scale).item(),
            "solved_norm": solved.norm().item(),
        }
    store.close()
