"""What an editor with a hyper-network reports about itself, as flat rows for the observations."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lib.data.records import Edit
from lib.editors.hypernet.capture import GraphMemory, RowStore
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
        store, _ = editor.cache(editor.edit_batches(batch))
    for path in editor.paths:
        yield {"kind": "module", "path": path, "m": len(batch)} | _fit(editor, path, store)
    store.close()


def _fit(editor: HyperEditor, path: str, store: RowStore) -> dict[str, float]:
    """The numbers of `module_rows` for one layer, chunk by chunk."""
    net, module = editor.network.of(path)
    eta, ridge = net.eta[module], net.alpha[module].exp().item()

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for keys, gradients in editor.chunks(store, path):
            yield keys, wanted_outputs(eta, keys, *net(keys, gradients, module))

    own, solve = editor.shift(path, store)
    summed = sum(
        rank_one_shifts(eta, *net(keys, gradients, module))
        for keys, gradients in editor.chunks(store, path)
    )
    size = store.rows(path), editor.weights.shape(path)[0]
    solved = own if isinstance(solve, Ridge) else Ridge(rows(), size, ridge).shift
    shifts = {"": own, "summed_": summed, "solved_": solved}
    missed, total = dict.fromkeys(shifts, 0.0), 0.0
    for keys, wanted in rows():
        total += wanted.square().sum().item()
        for name, shift in shifts.items():
            missed[name] += (keys @ shift - wanted).square().sum().item()
    scale = max(math.sqrt(total), torch.finfo(own.dtype).tiny)
    found = {"rows": size[0], "eta": eta.item(), "ridge": ridge, "wanted_norm": math.sqrt(total)}
    for name, shift in shifts.items():
        found[f"{name}residual"] = math.sqrt(missed[name]) / scale
        found[f"{name or 'shift_'}norm"] = shift.norm().item()
    return found
