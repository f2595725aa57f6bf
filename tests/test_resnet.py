"""Our residual networks: the architecture, and exits that do not disturb it."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from checker import unchecked
from optdepth.costs import flops
from optdepth.errors import InputError
from optdepth.networks import load_network, resnet
from optdepth.networks.resnet import BasicBlock


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66)])
def test_parameter_counts_of_the_paper(depth: int, millions: float) -> None:
    network = resnet(depth, classes=10, exits="last", seed=0)  # He et al. 2016, table 6
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == pytest.approx(millions, abs=0.011)


def test_exits_after_every_block_by_name() -> None:
    network = resnet(14, classes=4, seed=0)
    expected = [f"stage{stage}.block{block}" for stage in (1, 2, 3) for block in (1, 2)]
    assert [exit.name for exit in network.exits] == expected
    assert [exit.depth for exit in network.exits] == [1, 2, 3, 4, 5, 6]


def test_exits_at_the_ends_and_two_behind_one_block() -> None:
    network = resnet(14, classes=4, exits="ends", heads="conv+tail", seed=0)
    names = ["stage1.block1", "stage1.block1+tail", "stage3.block1", "stage3.block2"]
    assert [exit.name for exit in network.exits] == names
    assert [exit.depth for exit in network.exits] == [1, 1, 5, 6]
    everywhere = resnet(14, classes=4, heads="conv+tail", seed=0)
    assert [exit.depth for exit in everywhere.exits] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 6]
    in_two_steps = everywhere.keep([*names[:2], "stage2.block1", *names[2:]]).keep(names)
    assert network.fingerprint() == in_two_steps.fingerprint()


def test_the_second_exit_of_a_block_costs_its_head_alone() -> None:
    network = resnet(14, classes=4, channels=1, exits="ends", heads="conv+tail", seed=0)
    costs = flops(network, torch.rand(1, 1, 32, 32))
    assert costs.reach[0] == costs.reach[1] < costs.reach[2]
    assert 0 < costs.look[0] < costs.look[1] / 10


@pytest.mark.parametrize("exits", ["all", "ends", ["stage2.block1", "stage3.block3"]])
def test_exits_leave_the_network_as_it_was_bit_for_bit(exits) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain = resnet(20, classes=10, exits="last", seed=0)
    staged = resnet(20, classes=10, exits=exits, heads="conv+tail", seed=0)
    for mode in (True, False):
        plain.train(mode), staged.train(mode)
        assert torch.equal(plain.full(images), staged(images)[-1])


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (resnet(8, classes=2, seed=seed).fingerprint() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert first == again != other


def test_shortcut_is_subsampling_with_zero_channels() -> None:
    block = BasicBlock(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.rand(1, 2, 6, 6)
    out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert torch.equal(out[:, 2:], torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize("size", [8, 9, 28, 32])
def test_small_and_odd_images(size: int) -> None:
    assert resnet(8, classes=5, channels=1, seed=0)(torch.rand(2, 1, size, size))[0].shape == (2, 5)


def test_heads_do_not_mix_samples() -> None:
    network = resnet(8, classes=5, channels=1, seed=0)
    state = torch.rand(6, 16, 8, 8)
    alone = torch.cat([network.heads[0](sample[None]) for sample in state])
    assert torch.allclose(network.heads[0](state), alone, atol=1e-6)
    assert torch.allclose(network.heads[0](state), F.linear(state.mean((2, 3)), *network.heads[0].linear.parameters()))


@pytest.mark.parametrize("size", [8, 9, 28, 32, 70])
@pytest.mark.parametrize("width", [1, 3, 16])
@pytest.mark.parametrize("heads", ["conv", "branch", "tail"])
def test_convolutional_heads_answer_maps_of_any_size_and_once_trained_mix_no_samples(
    heads: str, size: int, width: int
) -> None:
    network = resnet(8, classes=5, channels=1, width=width, heads=heads, seed=0)
    images = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(1))
    network.train()(images)  # moves the statistics
    together = network.eval()(images)
    state = network.start(images)
    for k in range(3):
        state = network.advance(state, k)
        alone = torch.cat([network.answer(sample[None], k) for sample in state])
        assert together[k].shape == (3, 5)
        assert torch.allclose(together[k], alone, atol=1e-4)


@pytest.mark.parametrize("heads", ["conv", "branch", "tail"])
def test_convolutional_heads_leave_the_trunk_as_it_was_and_are_saved(heads: str, tmp_path: Path) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    linear, conv = (resnet(20, classes=10, heads=kind, seed=0).eval() for kind in ("linear", heads))
    assert torch.equal(linear(images)[-1], conv(images)[-1])
    conv.save(tmp_path)
    assert load_network(tmp_path).fingerprint() == conv.fingerprint()


@pytest.mark.parametrize(("heads", "most"), [("conv", 0.022), ("branch", 0.088), ("tail", 0.176)])
def test_convolutional_heads_cost_what_they_say(heads: str, most: float) -> None:
    costs = flops(resnet(20, classes=10, heads=heads, seed=0), torch.rand(1, 3, 32, 32)).relative()
    assert costs.full == pytest.approx(1)
    assert (costs.look[:-1] > 0.009).all()
    assert (costs.look[:-1] < most).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, "20 and 26"),
        ({"depth": 2}, "8 and 14"),
        ({"exits": "some"}, "exits='some'"),
        ({"exits": ["stage4.block1", "stage3.block3"]}, r"no exit stage4\.block1"),
        ({"exits": ["stage1.block1"]}, r"stage3\.block3"),
        ({"classes": 0}, "classes 0"),
        ({"heads": "deep"}, "heads='deep': give one of auto, own, linear"),
        ({"heads": "conv+conv"}, "names a kind twice"),
        ({"heads": "token"}, r"head='token' needs .*at stage1\.block1 the state is"),
        ({"heads": "own"}, r"at stage1\.block1: these networks keep theirs for the last exit; give head='linear'"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with unchecked(), pytest.raises(InputError, match=message):
        resnet(**{"depth": 20, "classes": 10, "seed": 0, **arguments})
