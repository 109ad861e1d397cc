"""Does the deferral rule defer? The distances on which ELDER decides, prompt by prompt.

For every prompt of a stream: how far its code is from the nearest stored one, with the codes as
they were stored (stale: routers went on changing) and as the routers give them now, and how far
from the entry of its own edit. A threshold epsilon defers a prompt whose distance is not below it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lib.backbones.encoding import encode_prompts
from lib.data.records import SUBSETS, Edit, Probe, Stream
from lib.editors.adapters import elder_routing
from lib.editors.base import KeysOf

BATCH, NEIGHBOURS = 32, 4


@torch.no_grad()
def distance_rows(
    editor: Any, stream: Stream, keys: KeysOf | None = None
) -> Iterator[dict[str, Any]]:
    """One row per prompt of kind "distance", then one of kind "codes".

    `stored` and `refreshed`: distance to the nearest code as stored and as recomputed; `own_…`:
    to the entry of the prompt's own edit, or to the code that its answer was allocated; None where
    it has none. `neighbours`, of an edit: the numbers of the edits with the nearest queries, as
    text, nearest first. No row before the first edit.
    `keys` gives the queries of a subset where they are known; they are computed otherwise.
    """
    released, config = editor.released_codes, editor.config
    if not len(released):
        return

    def queries_of(subset: str) -> Tensor:
        return keys(subset) if keys else _queries(editor, getattr(stream, subset))

    edited = queries_of("edits")[: len(released)]
    now, neighbours = editor.routing(edited).chosen, _neighbours(edited)
    allocated = editor.allocated(stream.edits[: len(released)])
    for subset in SUBSETS:
        items = list(getattr(stream, subset))
        if not items:
            continue
        found = now if subset == "edits" else editor.routing(queries_of(subset)).chosen
        stored, refreshed, allotted = (
            elder_routing.hamming(found, codes) for codes in (released, now, allocated)
        )
        in_force = elder_routing.nearest(found, editor.stored_codes)
        for place, item in enumerate(items[: len(found)]):
            owner = place if subset == "edits" else stream.owner(subset, place)
            own = subset in ("edits", "holdout") and 0 <= owner < len(released)
            yield {
                "kind": "distance",
                "subset": subset,
                "record": item.identity,
                "edit_index": owner,
                "stored": int(stored[place].min()),
                "refreshed": int(refreshed[place].min()),
                "own_stored": int(stored[place, owner]) if own else None,
                "own_refreshed": int(refreshed[place, owner]) if own else None,
                "own_allocation": int(allotted[place, owner]) if own else None,
                "neighbours": neighbours[place] if subset == "edits" else None,
                "code": elder_routing.written(found[place]),
                "deferred": not int(in_force[place]) < config.epsilon,
            }
    yield {
        "kind": "codes",
        "layers": released.shape[1],
        "experts": config.n_experts,
        "k": config.k,
        "epsilon": config.epsilon,
        "stored": len(released),
        "distinct": elder_routing.distinct(released),
        "distinct_refreshed": elder_routing.distinct(now),
        "refresh": config.refresh_codes,
    }


def _neighbours(queries: Tensor) -> list[str]:
    """Of each query [n, d], the rows of the nearest others."""
    apart = torch.cdist(queries.double(), queries.double()).fill_diagonal_(torch.inf)
    count = min(NEIGHBOURS, len(queries) - 1)
    nearest = apart.topk(count, largest=False).indices.tolist()
    return [" ".join(map(str, row)) for row in nearest]


def _queries(editor: Any, items: Sequence[Edit | Probe]) -> Tensor:
    """The queries [n, d] of some prompts."""
    found = []
    for start in range(0, len(items), BATCH):
        prompts = [item.prompt for item in items[start : start + BATCH]]
        batch = encode_prompts(editor.backbone, prompts, max_length=editor.config.max_length)
        found.append(editor.keys_of(batch))
    return torch.cat(found)
