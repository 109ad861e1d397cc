"""What ELDER's deferral rule can be expected to do: random codes counted, routers trained alone."""

import math
from dataclasses import replace

import pytest
import torch

from lib.editors.adapters import elder_routing
from papers.elder.deferral import Rule, by_chance, distances, simulations
from papers.elder.simulation import Routers, code_counts, random_deferred, random_nearest, simulate
from tests.papers.elder.invented_elder import InventedStudy

PUBLISHED = (6, 4, 2)
SMALL = Routers(3, 4, 2, edits=40, batch=4, steps=25, lr=3e-3, width=200, alike=0.5, unrelated=64)


def random_codes(count: int, layers: int, experts: int, k: int, seed: int) -> torch.Tensor:
    """Uniformly random codes [count, L, N], drawn here without the library."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(count, layers, experts, generator=generator).topk(k).indices
    return torch.zeros(count, layers, experts, dtype=torch.bool).scatter_(2, chosen, True)


@pytest.mark.parametrize("shape", [PUBLISHED, (3, 6, 2), (2, 5, 3)])
def test_distances_between_codes_are_counted(shape: tuple[int, int, int]) -> None:
    layers, experts, k = shape
    counts = code_counts(*shape)
    assert sum(counts) == math.comb(experts, k) ** layers and len(counts) == k * layers + 1
    found = elder_routing.hamming(
        random_codes(4000, *shape, seed=1), random_codes(1, *shape, seed=2)
    )
    for half, count in enumerate(counts):
        share = count / sum(counts)
        assert (found == 2 * half).float().mean() == pytest.approx(share, abs=0.03)


def test_one_stored_code_defers_64_percent_and_twenty_none() -> None:
    """Parity check 17 of the study's notes, exactly; and what the page says about it."""
    assert random_deferred(*PUBLISHED, 12, stored=1) == pytest.approx(0.6418, abs=5e-5)
    assert random_deferred(*PUBLISHED, 12, stored=20) < 0.001
    assert random_deferred(*PUBLISHED, 12, stored=1000) < 1e-9
    nearest = random_nearest(*PUBLISHED, 1000)
    assert (nearest["distance"] * nearest["share"]).sum() == pytest.approx(3.1, abs=0.05)
    one = random_nearest(*PUBLISHED, 1)
    assert (one["distance"] * one["share"]).sum() == pytest.approx(12)


@pytest.mark.parametrize("stored", [1, 5, 12])
def test_several_different_codes_defer_as_draws_do(stored: int) -> None:
    """A shape with 36 codes, of which a third is stored: drawing without return matters."""
    shape, draw = (2, 4, 2), torch.Generator().manual_seed(0)
    known = random_codes(4000, *shape, seed=3).unique(dim=0)
    assert len(known) == 36
    far = 0
    for _ in range(1500):
        order = torch.randperm(36, generator=draw)[:stored]
        query = known[torch.randint(36, (1,), generator=draw)]
        far += int(elder_routing.nearest(query, known[order]) >= 4)
    assert random_deferred(*shape, 4, stored) == pytest.approx(far / 1500, abs=0.04)


def test_borders_of_the_rule_and_of_the_memory() -> None:
    assert random_deferred(*PUBLISHED, 12, stored=0) == 1 and random_nearest(*PUBLISHED, 0).empty
    assert random_deferred(*PUBLISHED, 0, stored=50) == 1  # epsilon 0 defers everything
    assert random_deferred(*PUBLISHED, 26, stored=50) == 0
    assert random_deferred(2, 4, 2, 2, stored=36) == 0  # every code is stored
    with pytest.raises(ValueError, match="36 codes"):
        random_deferred(2, 4, 2, 2, stored=37)
    assert random_nearest(*PUBLISHED, 30)["share"].sum() == pytest.approx(1)


def test_routers_learn_what_is_stored_and_then_drift() -> None:
    rows = simulate(SMALL)
    edits = rows[rows["subset"] == "edits"]
    assert rows.groupby("subset").size().to_dict() == {"edits": 40, "holdout": 40, "upstream": 64}
    assert (edits["own_refreshed"] == 0).all() and (edits["refreshed"] == 0).all()
    last = edits.tail(SMALL.batch)  # nothing was learned after them but their own last step
    assert last["own_stored"].mean() <= 0.5 and edits.head(12)["own_stored"].mean() > 1
    assert rows.loc[rows["subset"] == "upstream", "own_stored"].isna().all()
    others = rows[rows["subset"] == "upstream"]
    assert others["refreshed"].mean() > edits["refreshed"].mean()
    assert (rows[["stored", "refreshed"]].to_numpy() % 2 == 0).all()


def test_queries_that_are_alike_are_harder_to_keep_apart() -> None:
    apart, alike = simulate(replace(SMALL, alike=0.0)), simulate(SMALL)
    mean = {
        name: rows[rows["subset"] == "upstream"]["refreshed"].mean()
        for name, rows in (("apart", apart), ("alike", alike))
    }
    assert mean["alike"] < mean["apart"] - 0.5
    assert simulate.__wrapped__(SMALL).equals(alike)  # the seed decides everything


def test_the_stored_code_is_that_of_the_last_pass() -> None:
    """With one step it is the choice of the untrained routers, whatever the step does."""
    still = simulate(replace(SMALL, steps=1, lr=0.0, edits=4))
    moved = simulate(replace(SMALL, steps=1, lr=1.0, edits=4))
    assert (still.loc[still["subset"] == "edits", "own_stored"] == 0).all()
    assert (moved.loc[moved["subset"] == "edits", "own_stored"] > 0).any()


def test_the_page_simulates_the_run_that_it_shows(tmp_path) -> None:
    study = InventedStudy(tmp_path)
    rows = distances(study, "counterfact").query("editor == 'ELDER' and experts == 16")
    independent, alike = simulations(study, "counterfact", rows).values()
    assert independent == Routers(6, 16, 2, 24, 4, 3, 0.01, 32) and alike.alike == 0.5
    assert by_chance(rows, Rule("stored", 12)) == random_deferred(6, 16, 2, 12, 23)
    assert by_chance(rows, Rule("refreshed", 12)) == random_deferred(6, 16, 2, 12, 22)
