"""What ELDER's deferral rule can be expected to do, without a language model (elder 2.8).

Two expectations stand beside what is measured: codes drawn at random, which can be counted, and
routers alone, which are trained on the guided loss over invented queries. L layers, N experts, k
of them chosen; a code [L, N] has k ones per layer, two codes differ in 0, 2, ..., 2 k L digits.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.editors.adapters import elder_routing
from lib.editors.adapters.elder import ALLOCATION, ROUTERS

UNRELATED = 200
LIKENESS = 0.9


def code_counts(layers: int, experts: int, k: int) -> list[int]:
    """How many codes differ from any given code in 0, 2, 4, ... digits; they sum to C(N, k)^L."""
    one = [math.comb(k, k - moved) * math.comb(experts - k, moved) for moved in range(k + 1)]
    counts = [1]
    for _ in range(layers):
        longer = [0] * (len(counts) + k)
        for i, before in enumerate(counts):
            for j, here in enumerate(one):
                longer[i + j] += before * here
        counts = longer
    return counts


def random_deferred(layers: int, experts: int, k: int, epsilon: float, stored: int) -> float:
    """The chance that a random code is at least epsilon digits from all of `stored` different
    random codes, so that it is deferred. Raises ValueError if there are not so many codes."""
    counts = code_counts(layers, experts, k)
    total = sum(counts)
    if stored > total:
        raise ValueError(f"there are {total} codes of this shape, not {stored}")
    far = sum(count for half, count in enumerate(counts) if 2 * half >= epsilon)
    return math.prod(max(far - drawn, 0) / (total - drawn) for drawn in range(stored))


def random_nearest(layers: int, experts: int, k: int, stored: int) -> pd.DataFrame:
    """The distribution of that code's distance to the nearest of them: distance, share."""
    if not stored:
        return pd.DataFrame(columns=["distance", "share"])
    distances = np.arange(0, 2 * k * layers + 1, 2)
    beyond = [random_deferred(layers, experts, k, d, stored) for d in [*distances, np.inf]]
    return pd.DataFrame({"distance": distances, "share": -np.diff(beyond)})


@dataclass(frozen=True)
class Routers:
    """A run of routers alone: what decides about its codes. `width` is that of the queries, `alike`
    the cosine of any two of them, `likeness` how much of its own part a rephrase's query shares
    with its edit's."""

    layers: int
    experts: int
    k: int
    edits: int
    batch: int
    steps: int
    lr: float
    width: int
    alike: float = 0.0
    unrelated: int = UNRELATED
    likeness: float = LIKENESS
    seed: int = 0


@functools.cache
def simulate(run: Routers) -> pd.DataFrame:
    """Trains routers on the guided loss alone, batch after batch, as ELDER does, and gives rows
    like those that a run observes: subset (edits, holdout, upstream), stored, refreshed,
    own_stored, own_refreshed.

    Queries are normal with unit variance, every edit has a label of its own. Under Adam the weight
    of the loss does not matter, since nothing else moves the routers.
    """
    generator = torch.Generator().manual_seed(run.seed)
    common, own, noise, others = (
        torch.randn(count, run.width, generator=generator)
        for count in (1, run.edits, run.edits, run.unrelated)
    )
    again = run.likeness * own + math.sqrt(1 - run.likeness**2) * noise
    queries, rephrased, unrelated = (
        math.sqrt(run.alike) * common + math.sqrt(1 - run.alike) * part
        for part in (own, again, others)
    )
    allocation = elder_routing.Allocation(run.layers, run.experts, run.k, run.seed + ALLOCATION)
    wanted = torch.stack([allocation.of(f"label {i}") for i in range(run.edits)])
    drawn = elder_routing.initial_routers(run.layers, run.experts, run.width, run.seed + ROUTERS)
    routers = [part.requires_grad_() for part in drawn]
    stored = torch.cat(
        [
            _edited(routers, *batch, run)
            for batch in zip(queries.split(run.batch), wanted.split(run.batch), strict=True)
        ]
    )
    with torch.no_grad():
        now = [
            elder_routing.route(q, *routers, run.k).chosen for q in (queries, rephrased, unrelated)
        ]
    parts = zip(("edits", "holdout", "upstream"), now, strict=True)
    return pd.concat(
        [_rows(name, found, stored, now[0]) for name, found in parts], ignore_index=True
    )


def _edited(routers: list[Tensor], queries: Tensor, wanted: Tensor, run: Routers) -> Tensor:
    """One batch of edits: the codes [B, L, N] at the last pass, one step before the end."""
    optimiser = torch.optim.Adam(routers, lr=run.lr, fused=True)
    for _ in range(run.steps):
        routing = elder_routing.route(queries, *routers, run.k)
        optimiser.zero_grad()
        elder_routing.guided_loss(routing.log_scores, wanted).backward()
        optimiser.step()
    return routing.chosen


def _rows(subset: str, found: Tensor, stored: Tensor, now: Tensor) -> pd.DataFrame:
    rows = {"subset": subset}
    for name, memory in (("stored", stored), ("refreshed", now)):
        distances = elder_routing.hamming(found, memory)
        rows[name] = distances.amin(dim=1).numpy()
        own = distances.diagonal().numpy() if subset != "upstream" else np.nan
        rows[f"own_{name}"] = own
    return pd.DataFrame(rows)
