"""A trunk taken from one network into another."""

import pytest
import torch

from optdepth.errors import InputError
from optdepth.networks import resnet, transplant

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def small(depth: int = 14, seed: int = 0, **arguments):
    return resnet(depth, **{"classes": 3, "channels": 1, "width": 4, "seed": seed, **arguments}).eval()


@pytest.mark.parametrize("exits", ["last", ["stage2.block1", "stage3.block2"], "all"])
def test_the_whole_network_answers_as_the_source_does_and_the_early_heads_stay(exits) -> None:
    network, source = small(heads="conv"), small(seed=1, exits=exits)
    before = [head.linear.weight.clone() for head in network.heads[:-1]]
    transplant(network, source)
    assert torch.equal(network.full(IMAGES), source.full(IMAGES))
    assert all(torch.equal(head.linear.weight, weight) for head, weight in zip(network.heads, before, strict=False))


def test_heads_that_are_alike_come_too_and_nothing_is_shared() -> None:
    network, source = small(), small(seed=1)
    transplant(network, source)
    assert network.fingerprint() == source.fingerprint()
    torch.nn.init.zeros_(source.heads[0].linear.weight)
    assert network.heads[0].linear.weight.abs().sum() > 0


@pytest.mark.parametrize("other", [{"depth": 20}, {"width": 8}, {"classes": 4}])
def test_another_trunk_is_refused_and_nothing_is_changed(other: dict) -> None:
    network = small()
    before = network.fingerprint()
    with pytest.raises(InputError, match="cannot be taken"):
        transplant(network, small(seed=1, **other))
    assert network.fingerprint() == before
