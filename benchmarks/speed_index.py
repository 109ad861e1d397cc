"""MELO's index: packed search against a loop over clusters and then over the points of one."""

import torch
from speed_timing import Line, compare, exactly, timed
from torch import Tensor

from lib.editors.adapters.vector_index import NONE, VectorIndex

WIDTH = 512
PER_CLUSTER = 4
RADIUS = 8.0

Cluster = tuple[Tensor, float, list[tuple[Tensor, int]]]
"""Centre, radius, and the points with the block that each one names."""


def invented_index(n_keys: int) -> VectorIndex:
    """An index of `n_keys` keys, four to a cluster; the last key of every eighth cluster repeats
    its first one under another block, so that ties have to be broken."""
    generator = torch.Generator().manual_seed(n_keys)
    n_clusters = n_keys // PER_CLUSTER
    middles = torch.randn(n_clusters, 1, WIDTH, generator=generator)
    spread = 0.2 * torch.randn(n_clusters, PER_CLUSTER, WIDTH, generator=generator)
    keys = middles + spread
    keys[::8, -1] = keys[::8, 0]
    centres = keys.mean(dim=1)
    reach = (keys - centres[:, None]).norm(dim=-1).amax(dim=1)
    index = VectorIndex(WIDTH, RADIUS)
    index.restore(
        {
            "keys": keys.reshape(n_keys, WIDTH),
            "blocks": torch.arange(n_keys),
            "owners": torch.arange(n_clusters).repeat_interleave(PER_CLUSTER),
            "centres": centres,
            "radii": reach.clamp(min=RADIUS),
            "labels": torch.arange(n_clusters),
            "counters": torch.zeros(2, dtype=torch.long),
        }
    )
    return index


def invented_queries(index: VectorIndex, count: int) -> Tensor:
    """Stored keys, shifted keys, and vectors far from every key, in turn [count, WIDTH]."""
    generator = torch.Generator().manual_seed(1)
    picked = torch.randint(len(index.keys), (count,), generator=generator)
    shift = torch.randn(count, WIDTH, generator=generator)
    scale = torch.tensor([0.0, 0.1, 5.0]).repeat(count // 3 + 1)[:count]
    queries = index.keys[picked] + scale[:, None] * shift
    queries[0] = index.keys[0]  # a key that two points share
    return queries


def as_lists(index: VectorIndex) -> list[Cluster]:
    """The same clusters as plain objects, each with its own points."""
    clusters: list[Cluster] = []
    for number in range(index.n_clusters):
        own = (index.owners == number).nonzero()[:, 0].tolist()
        points = [(index.keys[point], int(index.blocks[point])) for point in own]
        clusters.append((index.centres[number], float(index.radii[number]), points))
    return clusters


def _nearest(query: Tensor, vectors: list[Tensor]) -> tuple[float, int]:
    """The smallest distance and the first place that has it."""
    best, place = float("inf"), -1
    for number, vector in enumerate(vectors):
        distance = torch.dist(query, vector).item()
        if distance < best:
            best, place = distance, number
    return best, place


def loop_route(clusters: list[Cluster], queries: Tensor) -> list[int]:
    """The block of each query: the nearest cluster, its radius, its nearest point."""
    routes = []
    for query in queries:
        distance, number = _nearest(query, [centre for centre, _, _ in clusters])
        _, radius, points = clusters[number]
        if distance > radius:
            routes.append(NONE)
        else:
            _, point = _nearest(query, [key for key, _ in points])
            routes.append(points[point][1])
    return routes


def index_lines(n_queries: int, repeats: int) -> list[Line]:
    """One line per number of keys."""
    lines = []
    for n_keys in (100, 1000, 5000):
        index = invented_index(n_keys)
        clusters, queries = as_lists(index), invented_queries(index, n_queries)
        routes = index.route(queries)
        if NONE not in routes or len(set(routes)) < 3:
            raise RuntimeError("the queries should hit several blocks and miss some")
        lines.append(
            compare(
                f"index search, {n_keys:,} keys",
                timed(lambda clusters=clusters, queries=queries: loop_route(clusters, queries)),
                timed(lambda index=index, queries=queries: index.route(queries)),
                exactly,
                repeats,
            )
        )
    return lines
