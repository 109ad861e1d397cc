"""MELO's vector database: clusters of keys with a radius, each key naming a LoRA block (melo 2.5).

Points and clusters live in packed tensors, so a search is one exact distance matrix and one
masked minimum; insertion walks the rows of a batch in order, as the method defines it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NONE = -1
KEY_NOISE = 1e-3  # relative distance of one prompt's keys in batches of different shape, with room
ConflictPolicy = Literal["as_released", "fixed"]


def exact_distances(queries: Tensor, points: Tensor) -> Tensor:
    """Euclidean distances [B, N] without the matrix-product expansion, whose rounding puts a
    vector of width 6,400 at 0.15 from itself."""
    return torch.cdist(queries.float(), points.float(), compute_mode="donot_use_mm_for_euclid_dist")


def first_minimum(values: Tensor, *, latest: bool = False) -> tuple[Tensor, Tensor]:
    """Row minima [B] and the first (or last) column that attains them [B], on every device."""
    lowest = values.min(dim=1).values
    columns = torch.arange(values.shape[1], device=values.device).expand_as(values)
    ties = values == lowest[:, None]
    if latest:
        return lowest, columns.masked_fill(~ties, -1).max(dim=1).values
    return lowest, columns.masked_fill(~ties, values.shape[1]).min(dim=1).values


@dataclass
class Counters:
    """What happened to the index so far."""

    conflicts: int = 0
    forgotten: int = 0


class VectorIndex:
    """Clusters (centre mu [d], radius rho, label code) over points (key [d], block).

    `as_released`: labels compared by their code, splits leave a dummy point where nothing is
    left, and ties go to the older entry, so that an edit cannot be overwritten. `fixed`: a prompt
    that is edited again with another answer replaces its old point, ties go to the newer entry,
    split radii meet exactly half-way, and an emptied cluster disappears. In both an expansion may
    undo a split: that is the method.
    """

    def __init__(self, width: int, radius: float, policy: ConflictPolicy = "as_released") -> None:
        self.radius0, self.policy = radius, policy
        self.keys = torch.empty(0, width)  # [P, d]
        self.blocks = torch.empty(0, dtype=torch.long)  # [P]
        self.owners = torch.empty(0, dtype=torch.long)  # [P] cluster of each point
        self.centres = torch.empty(0, width)  # [C, d]
        self.radii = torch.empty(0)  # [C]
        self.labels = torch.empty(0, dtype=torch.long)  # [C]
        self.counters = Counters()

    @property
    def n_clusters(self) -> int:
        """Clusters, those that serve only a dummy point included."""
        return len(self.labels)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to the nearest centre [B] and that cluster [B]."""
        latest = self.policy == "fixed"
        return first_minimum(exact_distances(queries, self.centres), latest=latest)

    def route(self, queries: Tensor) -> list[int]:
        """The block of each query [B, d], NONE outside every radius (melo 2.5, `route`)."""
        if self.n_clusters == 0:
            return [NONE] * len(queries)
        queries = queries.to(self.keys.device)
        distance, cluster = self.nearest(queries)
        to_points = exact_distances(queries, self.keys)
        foreign = self.owners[None, :] != cluster[:, None]
        _, point = first_minimum(
            to_points.masked_fill(foreign, torch.inf), latest=self.policy == "fixed"
        )
        block = self.blocks[point].masked_fill(distance > self.radii[cluster], NONE)
        return block.tolist()

    def insert(self, queries: Tensor, labels: Sequence[int], block: int) -> None:
        """File the keys [B, d] of one batch under `block` (melo 2.5, `insert`).

        The nearest clusters are found once, before any key of the batch goes in, so rows of one
        batch never see each other.
        """
        queries = queries.detach().float().to(self.keys.device)
        if self.n_clusters == 0:
            for query, label in zip(queries, labels, strict=True):
                self._new_cluster(query, label, block, self.radius0)
            return
        distances, clusters = self.nearest(queries)
        rows = zip(queries, labels, distances, clusters.tolist(), strict=True)
        for query, label, distance, cluster in rows:
            if distance > self.radii[cluster] + self.radius0:
                self._new_cluster(query, label, block, self.radius0)
            elif label == int(self.labels[cluster]):
                self._expand(cluster, query, block)
            elif self.policy == "fixed" and distance <= KEY_NOISE * query.norm():
                self._replace(cluster, query, label, block)
            else:
                self._split(cluster, query, label, block, distance)
        if self.policy == "fixed":
            self._drop_empty()

    def _add_point(self, key: Tensor, block: int, cluster: int) -> None:
        self.keys = torch.cat([self.keys, key[None]])
        self.blocks = torch.cat([self.blocks, self.blocks.new_tensor([block])])
        self.owners = torch.cat([self.owners, self.owners.new_tensor([cluster])])

    def _new_cluster(self, key: Tensor, label: int, block: int, radius: float | Tensor) -> None:
        self.centres = torch.cat([self.centres, key[None]])
        self.radii = torch.cat([self.radii, self.radii.new_tensor([float(radius)])])
        self.labels = torch.cat([self.labels, self.labels.new_tensor([int(label)])])
        self._add_point(key, block, self.n_clusters - 1)

    def _expand(self, cluster: int, key: Tensor, block: int) -> None:
        self._add_point(key, block, cluster)
        members = self.keys[self.owners == cluster]
        centre = members.mean(dim=0)
        radius = exact_distances(centre[None], members).max().clamp(min=self.radius0)
        self.centres[cluster] = centre
        self.radii[cluster] = radius

    def _replace(self, cluster: int, key: Tensor, label: int, block: int) -> None:
        """`fixed` only: an edited prompt gets another answer; its newer point takes over."""
        near = exact_distances(key[None], self.keys)[0] <= KEY_NOISE * key.norm()
        dropped = (self.owners == cluster) & near
        self.keys, self.blocks = self.keys[~dropped], self.blocks[~dropped]
        self.owners = self.owners[~dropped]
        self._add_point(key, block, cluster)
        self.labels[cluster] = label
        self.radii[cluster] = self.radii[cluster].clamp(min=self.radius0)
        self.counters.conflicts += 1

    def _split(self, cluster: int, key: Tensor, label: int, block: int, distance: Tensor) -> None:
        margin = 1e-5 if self.policy == "as_released" else 0.0
        self._new_cluster(key, label, block, distance / 2 + margin)
        self.radii[cluster] = distance / 2 - margin
        own = self.owners == cluster
        away = exact_distances(self.centres[cluster][None], self.keys)[0] > self.radii[cluster]
        dropped = own & away
        self.counters.forgotten += int(dropped.sum())
        self.counters.conflicts += 1
        self.keys, self.blocks = self.keys[~dropped], self.blocks[~dropped]
        self.owners = self.owners[~dropped]
        if self.policy == "as_released" and bool((own == dropped).all()):
            self._add_point(self.centres[cluster], NONE, cluster)

    def _drop_empty(self) -> None:
        alive = torch.unique(self.owners)
        if len(alive) == self.n_clusters:
            return
        renumber = torch.full((self.n_clusters,), NONE)
        renumber[alive] = torch.arange(len(alive))
        self.owners = renumber[self.owners]
        self.centres, self.radii = self.centres[alive], self.radii[alive]
        self.labels = self.labels[alive]

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as tensors."""
        counters = torch.tensor([self.counters.conflicts, self.counters.forgotten])
        names = ("keys", "blocks", "owners", "centres", "radii", "labels")
        return {name: getattr(self, name).contiguous() for name in names} | {"counters": counters}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name, tensor in state.items():
            if name != "counters":
                setattr(self, name, tensor.clone())
        self.counters = Counters(*state["counters"].tolist())
