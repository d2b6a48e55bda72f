"""The networks: shapes, names, initialisation, and gradients against the plain form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.errors import InputError
from common.training import networks
from tests.unit.training.plain import PlainNetwork


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _randomised(name: str, channels: int = 6, **options: int) -> networks.Network:
    network = networks.build_network(name, channels=channels, seed=3, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.norms.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def _gradients(
    network: networks.Network, forward: torch.nn.Module, x: torch.Tensor, y: torch.Tensor
) -> list[torch.Tensor]:
    network.zero_grad()
    logits = forward(x)
    F.binary_cross_entropy_with_logits(logits, y).backward()
    return [logits.detach().double(), *(p.grad.double().clone() for p in network.parameters())]


@pytest.mark.parametrize(
    ("name", "batch", "samples", "channels"),
    [("test", 6, 100, 6), ("cnn64", 3, 61, 6), ("test", 5, 13, 1), ("test", 1, 40, 3)],
)
def test_stock_operators_agree_with_the_plain_form(name, batch, samples, channels):
    network = _randomised(name, channels)
    network.set_normalization(
        torch.randn(channels, generator=torch.Generator().manual_seed(5)),
        torch.full((channels,), 2.0),
    )
    generator = torch.Generator().manual_seed(2)
    x, y = (
        torch.randn(batch, channels, samples, generator=generator),
        (torch.rand(batch, generator=generator) > 0.5).float(),
    )
    ours = _gradients(network, network, x, y)
    network.double()
    truth = _gradients(network, PlainNetwork(network), x.double(), y.double())
    for one, other in zip(ours, truth, strict=True):
        assert torch.linalg.norm(one - other) <= 1e-5 * torch.linalg.norm(other) + 1e-9


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_the_shortest_windows_pass(samples):
    network = networks.build_network("cnn64", channels=2, seed=0)
    network(torch.randn(3, 2, samples)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_any_strides_give_the_same_logits():
    network = networks.build_network("test", channels=6, seed=0)
    x = torch.randn(4, 6, 50)
    torch.testing.assert_close(
        network(x.transpose(1, 2).contiguous().transpose(1, 2)), network(x), rtol=0, atol=1e-6
    )


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(InputError, match="did you mean cnn64"):
        networks.build_network("cnn46", channels=6)


def test_equal_seeds_give_equal_weights_and_leave_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    first, second, third = (
        networks.build_network("test", channels=6, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not torch.equal(first.convs[0].weight, third.convs[0].weight)


def test_base_channels_and_num_blocks_vary_the_network():
    assert [b.channels for b in networks.build_network("test", channels=6).blocks] == [8, 8, 8, 16]
    assert [
        b.channels
        for b in networks.build_network("test", channels=6, base_channels=4, num_blocks=3).blocks
    ] == [4, 4, 8]
    assert [b.dilation for b in networks.build_network("cnn64", channels=6).blocks] == [1, 2, 4, 8]


def test_normalisation_is_kept_in_the_state_and_applied():
    network = networks.build_network("test", channels=2, seed=0)
    x = torch.randn(3, 2, 30) * 5 + 10
    network.set_normalization(torch.tensor([10.0, 10.0]), torch.tensor([5.0, 5.0]))
    other = networks.build_network("test", channels=2, seed=1)
    other.load_state_dict(network.state_dict())
    plain = networks.build_network("test", channels=2, seed=0)
    torch.testing.assert_close(other(x), plain((x - 10) / 5))


def test_the_head_is_one_linear_layer_or_two():
    assert [
        tuple(p.shape) for p in networks.build_network("test", channels=6).head_parameters()
    ] == [
        (1, 16),
        (1,),
    ]
    assert [
        tuple(p.shape) for p in networks.build_network("cnn64", channels=6).head_parameters()
    ] == [
        (128, 64),
        (128,),
        (1, 128),
        (1,),
    ]


def test_cnn64_has_about_50_000_parameters():
    assert (
        45_000
        < sum(p.numel() for p in networks.build_network("cnn64", channels=6).parameters())
        < 55_000
    )
