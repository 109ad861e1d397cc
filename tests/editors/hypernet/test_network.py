"""The hyper-network alone: parity checks 6 and 7 of the study's notes on MALMEN, and its forward
pass against the slow reference."""

import pytest
import torch
from torch import Tensor

from lib.editors.hypernet import network as hypernetwork
from tests.editors.hypernet.malmen_cases import network_of, randomise
from tests.editors.hypernet.reference_hypernetwork import EPSILON, Standardiser

WIDTHS = (6, 4)  # d, d'


def rows(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys [n, d] far from zero and small gradients [n, d']."""
    generator = torch.Generator().manual_seed(seed)
    keys = 3 * torch.randn(n, WIDTHS[0], generator=generator) + 5
    return keys, 0.01 * torch.randn(n, WIDTHS[1], generator=generator)


def fresh(**options: object) -> hypernetwork.HyperNetwork:
    """A network of two modules as a training starts with it, its statistics filled."""
    torch.manual_seed(0)
    network = hypernetwork.HyperNetwork(*WIDTHS, modules=2, **{"rank": 8} | options)
    network.standardiser.update(torch.cat(rows(50), dim=1))
    return network


# -- 6: identity at the start ----------------------------------------------------------------------


def test_06_a_fresh_network_is_the_identity_on_the_standardised_row() -> None:
    network = fresh()
    K, G = rows(20, seed=1)
    statistics = network.standardiser
    expected = (torch.cat([K, G], dim=1) - statistics.mean) / (statistics.std + EPSILON)
    for module in (0, 1):
        assert torch.equal(torch.cat(network(K, G, module), dim=1), expected)
    assert not torch.equal(expected[:, :6], K)


def test_06_initial_values() -> None:
    network = fresh(rank=400, eta=1e-6)
    for block in network.blocks:
        assert block.down.std().item() == pytest.approx(1.0, rel=0.03)  # no 1 / sqrt scaling
        assert block.up.eq(0).all() and block.bias.eq(0).all()
        assert block.scale.eq(1).all() and block.shift.eq(0).all()
        assert block.scale.shape == block.shift.shape == (2, sum(WIDTHS))
    assert len(network.blocks) == 2
    assert network.eta.tolist() == pytest.approx([1e-6, 1e-6]) and network.alpha.eq(0).all()


def test_06_one_step_of_adam_moves_b_and_bias_but_not_a() -> None:
    """With a ReLU in place of the clamp B and bias would never move."""
    network = fresh()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    pseudo_keys, pseudo_gradients = network(*rows(20, seed=1), 0)
    (pseudo_keys.pow(3).sum() + pseudo_gradients.sum()).backward()
    adam.step()
    after = network.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("up", "bias", "shift")}


def test_06_without_zero_initialisation_it_is_no_identity() -> None:
    network = fresh(zero_init=False)
    assert all(block.up.ne(0).any() for block in network.blocks)
    K, G = rows(20, seed=1)
    assert not torch.allclose(
        network(K, G, 0)[0], network.standardiser(torch.cat([K, G], 1))[:, :6]
    )


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("module", [0, 1])
def test_the_forward_pass_and_its_gradients_equal_the_reference(blocks: int, module: int) -> None:
    network = fresh(blocks=blocks).double()
    randomise(network, seed=1)
    reference = network_of(network, ("first", "second"))
    K, G = (block.double() for block in rows(20, seed=1))
    ours, theirs = network(K, G, module), reference.pseudo(K, G, module)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    torch.stack([side.sin().sum() for side in ours]).sum().backward()
    torch.stack([side.sin().sum() for side in theirs]).sum().backward()
    for name, parameter in reference.parameters().items():
        if name in ("eta", "alpha"):
            continue
        i, letter = name.split(".")[1:]
        own = {"A": "down", "B": "up"}.get(letter, letter)
        mine = getattr(network.blocks[int(i)], own).grad
        assert parameter.grad.abs().max() > 1e-3
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-9, atol=1e-9)


def test_each_weight_shape_has_one_network_and_its_modules_count_in_order() -> None:
    shapes = {"a.in": (4, 6), "a.out": (6, 4), "b.in": (4, 6), "c": (5, 5), "b.out": (6, 4)}
    networks = hypernetwork.HyperNetworks(shapes, rank=3)
    places = {path: networks.of(path) for path in shapes}
    assert [number for _, number in places.values()] == [0, 0, 1, 0, 1]
    assert places["a.in"][0] is places["b.in"][0] and places["a.out"][0] is places["b.out"][0]
    assert len({id(net) for net, _ in places.values()}) == 3
    # 2 blocks of (2 s r + s + 2 M s) and eta, alpha of M modules: section 8 of the notes
    expected = sum(2 * (2 * 10 * 3 + 10 + 2 * m * 10) + 2 * m for m in (2, 2, 1))
    assert sum(p.numel() for p in networks.parameters()) == networks.size() == expected


# -- 7: the standardiser ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["released", "corrected"])
@pytest.mark.parametrize("sizes", [(32,) * 8, (7, 2, 40, 3)])
def test_07_running_statistics_equal_the_reference(mode: str, sizes: tuple[int, ...]) -> None:
    blocks = torch.cat(rows(sum(sizes)), dim=1).double().split(sizes)
    ours = hypernetwork.Standardiser(sum(WIDTHS), mode).double()
    theirs = Standardiser(mode)
    for block in blocks:
        ours.update(block)
        theirs.update(block)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.std, theirs.std)
    torch.testing.assert_close(ours(blocks[0]), theirs(blocks[0]))
    assert int(ours.count) == theirs.n


@pytest.mark.parametrize(("mode", "ratio"), [("released", 32 / 31), ("corrected", 1.0)])
def test_07_equal_blocks_inflate_the_released_variance(mode: str, ratio: float) -> None:
    every = torch.cat(rows(32 * 200), dim=1)
    standardiser = hypernetwork.Standardiser(sum(WIDTHS), mode)
    for block in every.split(32):
        standardiser.update(block)
    exact = every.double()
    torch.testing.assert_close(standardiser.mean.double(), exact.mean(dim=0), rtol=1e-5, atol=1e-6)
    found = standardiser.std.double() ** 2 / exact.var(dim=0)
    assert (found - ratio).abs().max() < 2e-3  # 1.032 against 1


@pytest.mark.parametrize("mode", ["released", "corrected"])
def test_07_a_block_of_one_row_gives_no_nan(mode: str) -> None:
    standardiser = hypernetwork.Standardiser(sum(WIDTHS), mode)
    first, *others = torch.cat(rows(21), dim=1).split([1, 10, 10])
    standardiser.update(first)
    assert standardiser(first).isfinite().all()
    for block in (*others, first):
        standardiser.update(block)
    assert standardiser(first).isfinite().all()
    assert int(standardiser.count) == 22


def test_07_switched_off_it_passes_rows_on() -> None:
    standardiser = hypernetwork.Standardiser(sum(WIDTHS), "off")
    block = torch.cat(rows(20), dim=1)
    standardiser.update(block)
    assert torch.equal(standardiser(block), block)


def test_07_the_statistics_are_part_of_the_saved_state() -> None:
    network, other = fresh(), hypernetwork.HyperNetwork(*WIDTHS, modules=2, rank=8)
    other.load_state_dict(network.state_dict())
    K, G = rows(5, seed=2)
    assert torch.equal(other(K, G, 0)[1], network(K, G, 0)[1])
    other.standardiser.update(torch.cat([K, G], dim=1))
    network.standardiser.update(torch.cat([K, G], dim=1))
    assert torch.equal(other.standardiser.std, network.standardiser.std)
