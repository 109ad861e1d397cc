"""MELO's vector index against the script of its parity check and a slow reference in float64."""

import math
import random

import pytest
import torch

from lib.editors.adapters.vector_index import NONE, VectorIndex, exact_distances


def points(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def route(index: VectorIndex, *rows: tuple[float, float]) -> list[int]:
    return index.route(points(*rows))


def test_the_database_script_of_the_parity_check() -> None:
    index = VectorIndex(2, 1.0)
    index.insert(points((0, 0), (10, 0)), [5, 7], 0)
    index.insert(points((1.5, 0), (10, 1.2)), [5, 9], 1)
    assert torch.allclose(index.centres, points((0.75, 0), (10, 0), (10, 1.2)))
    assert index.radii.tolist() == pytest.approx([1, 0.59999, 0.60001], abs=1e-6)
    assert (index.counters.conflicts, index.counters.forgotten) == (1, 0)
    asked = [(0.2, 0), (1.4, 0), (3, 0), (10, 0.59), (10, 0.61), (10, 1.9)]
    assert route(index, *asked) == [0, 1, NONE, 0, 1, NONE]

    index.insert(points((0.75, 0.4)), [6], 2)
    assert index.radii.tolist()[0] == pytest.approx(0.19999, abs=1e-6)
    assert index.radii.tolist()[3] == pytest.approx(0.20001, abs=1e-6)
    assert (index.counters.conflicts, index.counters.forgotten) == (2, 2)
    assert route(index, (0.75, 0.05), (0.75, 0.3), (0, 0)) == [NONE, 2, NONE]

    index.insert(points((1, 0)), [5], 3)
    assert torch.allclose(index.centres[0], torch.tensor([0.875, 0.0]))
    assert index.radii.tolist()[0] == pytest.approx(1.0, abs=1e-6)
    assert route(index, (1, 0), (0.8, 0)) == [3, NONE]


def test_a_duplicate_with_another_label_loses_both_edits_as_released() -> None:
    index = VectorIndex(2, 1.0)
    index.insert(points((3, 4)), [5], 0)
    index.insert(points((3, 4)), [6], 1)
    assert route(index, (3, 4)) == [NONE]
    assert index.radii.tolist() == pytest.approx([-1e-5, 1e-5], abs=1e-9)
    assert index.counters.forgotten == 1


def test_the_fixed_policy_serves_the_second_edit() -> None:
    index = VectorIndex(2, 1.0, "fixed")
    index.insert(points((3, 4)), [5], 0)
    index.insert(points((3, 4)), [6], 1)
    assert route(index, (3, 4)) == [1]
    index.insert(points((3, 4)), [6], 2)  # the same answer, edited again: the newer block
    assert route(index, (3, 4)) == [2]


def test_a_key_is_at_distance_zero_from_itself_among_many_wide_ones() -> None:
    keys = torch.randn(40, 6400, generator=torch.Generator().manual_seed(0)) * 5
    assert exact_distances(keys, keys).diagonal().eq(0).all()
    index = VectorIndex(6400, 0.1)
    index.insert(keys, list(range(40)), 0)
    assert index.nearest(keys)[0].eq(0).all()
    assert index.route(keys) == [0] * 40


def test_rows_of_one_batch_never_see_each_other() -> None:
    index = VectorIndex(2, 1.0)
    index.insert(points((0, 0), (0.1, 0), (0.2, 0)), [5, 5, 5], 0)
    assert index.n_clusters == 3


def test_the_boundary_of_a_radius_is_inside() -> None:
    index = VectorIndex(2, 1.0)
    index.insert(points((0, 0)), [5], 0)
    assert route(index, (1, 0), (1.0001, 0)) == [0, NONE]


class Reference:
    """The released index as plain lists and loops in float64 (melo 2.5)."""

    def __init__(self, radius: float) -> None:
        self.r0, self.rows, self.conflicts, self.forgotten = radius, [], 0, 0

    def nearest(self, q: list[float]) -> tuple[float, int]:
        found = [math.dist(q, row["mu"]) for row in self.rows]
        best = min(found)
        return best, found.index(best)

    def route(self, q: list[float]) -> int:
        if not self.rows:
            return NONE
        d, c = self.nearest(q)
        if d > self.rows[c]["rho"]:
            return NONE
        apart = [math.dist(q, key) for key, _ in self.rows[c]["points"]]
        return self.rows[c]["points"][apart.index(min(apart))][1]

    def insert(self, queries: list[list[float]], labels: list[int], block: int) -> None:
        near = [self.nearest(q) for q in queries] if self.rows else None
        for i, (q, label) in enumerate(zip(queries, labels, strict=True)):
            fresh = {"mu": q, "rho": self.r0, "label": label, "points": [(q, block)]}
            if near is None:
                self.rows.append(fresh)
                continue
            d, c = near[i]
            row = self.rows[c]
            if d > row["rho"] + self.r0:
                self.rows.append(fresh)
            elif label == row["label"]:
                row["points"].append((q, block))
                keys = [key for key, _ in row["points"]]
                row["mu"] = [sum(axis) / len(keys) for axis in zip(*keys, strict=True)]
                row["rho"] = max(max(math.dist(key, row["mu"]) for key in keys), self.r0)
            else:
                self.rows.append(fresh)
                row["rho"], fresh["rho"] = d / 2 - 1e-5, d / 2 + 1e-5
                kept = [p for p in row["points"] if math.dist(p[0], row["mu"]) <= row["rho"]]
                self.forgotten += len(row["points"]) - len(kept)
                row["points"] = kept or [(row["mu"], NONE)]
                self.conflicts += 1


@pytest.mark.parametrize("seed", range(8))
def test_the_packed_index_equals_the_loop_reference(seed: int) -> None:
    rng = random.Random(seed)
    index, reference = VectorIndex(3, 0.8), Reference(0.8)
    for block in range(12):
        # Eighths keep float32 and float64 on the same side of every comparison but exact ties,
        # which the jitter breaks.
        queries = [[rng.randint(0, 24) / 8 + rng.random() / 64 for _ in range(3)] for _ in range(6)]
        queries = [[float(torch.tensor(x)) for x in q] for q in queries]
        labels = [rng.randint(0, 4) for _ in queries]
        index.insert(torch.tensor(queries), labels, block)
        reference.insert(queries, labels, block)
        probes = [[rng.uniform(0, 3.2) for _ in range(3)] for _ in range(50)] + queries
        assert index.route(torch.tensor(probes)) == [reference.route(q) for q in probes]
    assert index.n_clusters == len(reference.rows)
    assert index.counters.conflicts == reference.conflicts > 0
    assert index.counters.forgotten == reference.forgotten
    assert index.radii.tolist() == pytest.approx([row["rho"] for row in reference.rows], abs=1e-5)
