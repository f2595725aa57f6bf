"""StagedNetwork: stages, exits kept, and what is on disk."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from optdepth.batch import hidden, select
from optdepth.errors import InputError
from optdepth.features import residual_size
from optdepth.networks import Exit, StagedNetwork, load_network, resnet
from stamped import restamp_tensors

SAVED = {"depth": 8, "classes": 3, "channels": 1, "width": 4, "seed": 0}


@pytest.fixture
def network() -> StagedNetwork:
    return resnet(14, classes=3, channels=1, width=4, seed=0).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_forward_is_start_advance_answer(network: StagedNetwork, images: Tensor) -> None:
    state = network.start(images)
    for k, logits in enumerate(network(images)):
        state = network.advance(state, k)
        assert logits.shape == (5, 3)
        assert torch.equal(network.answer(state, k), logits)
    assert torch.equal(network.full(images), logits)


def test_keep_shares_modules_and_answers(network: StagedNetwork, images: Tensor) -> None:
    names = ["stage1.block2", "stage3.block1", "stage3.block2"]
    kept = network.keep(names)
    assert [exit.name for exit in kept.exits] == names
    assert [exit.depth for exit in kept.exits] == [2, 5, 6]
    for position, logits in zip((1, 4, 5), kept(images), strict=True):
        assert torch.equal(network(images)[position], logits)
    assert kept.heads[0] is network.heads[1]
    assert not kept.training


def test_keep_twice_equals_keep_once(network: StagedNetwork) -> None:
    twice = network.keep(["stage1.block2", "stage2.block1", "stage3.block2"]).keep(["stage2.block1", "stage3.block2"])
    once = network.keep(["stage2.block1", "stage3.block2"])
    assert twice.state_dict().keys() == once.state_dict().keys()
    assert twice.fingerprint() == once.fingerprint()


def test_keep_rejects_unknown_and_missing_last(network: StagedNetwork) -> None:
    with pytest.raises(InputError, match=r"no exit stage9.*stage1\.block1, "):
        network.keep(["stage9", "stage3.block2"])
    with pytest.raises(InputError, match=r"add 'stage3\.block2'"):
        network.keep(["stage1.block1"])


@pytest.mark.parametrize(
    ("stages", "heads", "exits"),
    [
        (0, 0, []),
        (2, 1, [Exit("a", 1), Exit("b", 2)]),
        (2, 2, [Exit("a", 1), Exit("a", 2)]),
        (2, 2, [Exit("a", 2), Exit("b", 1)]),
    ],
)
def test_lists_that_do_not_fit(stages: int, heads: int, exits: list[Exit]) -> None:
    parts = [nn.Identity() for _ in range(2)]
    with pytest.raises(InputError):
        StagedNetwork(nn.Identity(), parts[:stages], parts[:heads], exits)


def test_fingerprint_sees_every_weight_and_exit(network: StagedNetwork) -> None:
    first = network.fingerprint()
    assert first == resnet(14, classes=3, channels=1, width=4, seed=0).fingerprint()
    assert first != network.keep(["stage3.block2"]).fingerprint()
    with torch.no_grad():
        network.heads[0].linear.bias[0] += 1e-6
    assert network.fingerprint() != first


def test_fingerprint_is_the_same_in_another_process(network: StagedNetwork) -> None:
    code = (
        "from optdepth.networks import resnet; print(resnet(14, classes=3, channels=1, width=4, seed=0).fingerprint())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == network.fingerprint()


def test_save_and_load(network: StagedNetwork, images: Tensor, tmp_path: Path) -> None:
    kept = network.keep(["stage2.block1", "stage3.block2"])
    kept.save(tmp_path / "deep" / "network")
    loaded = load_network(tmp_path / "deep" / "network")
    assert loaded.exits == kept.exits
    assert loaded.fingerprint() == kept.fingerprint()
    assert all(torch.equal(a, b) for a, b in zip(loaded(images), kept(images), strict=True))
    assert sorted(path.name for path in (tmp_path / "deep" / "network").iterdir()) == [
        "weights.safetensors",
    ]


def test_only_a_network_with_a_config_is_saved(tmp_path: Path) -> None:
    bare = StagedNetwork(nn.Identity(), [nn.Identity()], [nn.Identity()], [Exit("only", 1)])
    with pytest.raises(InputError, match="config"):
        bare.save(tmp_path)


def edit_header(folder: Path, **changes: object) -> None:
    restamp_tensors(folder / "weights.safetensors", lambda _, about: about.update(changes))


def resized(folder: Path, **sizes: object) -> None:
    edit_header(folder, config={"family": "resnet", **SAVED, **sizes})


def not_a_number(folder: Path) -> None:
    restamp_tensors(folder / "weights.safetensors", lambda held, _: held["stem.0.weight"].fill_(torch.nan))


def truncate(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "weights.safetensors").write_text("{"), "damaged"),
        (lambda folder: edit_header(folder, format="other"), "not an optdepth.network"),
        (lambda folder: edit_header(folder, version=99), "version 99"),
        (lambda folder: edit_header(folder, fingerprint="0" * 16), "not of the same network"),
        (lambda folder: edit_header(folder, config=None), r"damaged \(config is None, not an object\)"),
        (lambda folder: edit_header(folder, config={"family": "other"}), "none of looped, neural_ode, resnet, staged"),
        (lambda folder: edit_header(folder, config={"family": "resnet"}), "is damaged .*missing"),
        (lambda folder: resized(folder, width=5), "no weight has a side of width 5"),
        (lambda folder: resized(folder, width="4"), "no weight has a side of width '4'"),
        (lambda folder: resized(folder, classes=10**12), "no weight has a side of classes 1000000000000"),
        (lambda folder: resized(folder, depth=600_002), "weights are too few for a depth of 600002"),
        (lambda folder: resized(folder, depth=14), "is damaged .*Missing key"),
        (lambda folder: not_a_number(folder), "a weight is NaN or infinite"),
    ],
)
def test_damaged_files(damage, message: str, tmp_path: Path) -> None:
    resnet(**SAVED).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_network(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_residual_size() -> None:
    before = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    after = torch.tensor([[3.0, 4.5], [0.0, 0.0], [1.0, 0.0]])
    assert torch.allclose(residual_size(before, after), torch.tensor([0.1, 0.0, 1.0]))
    assert residual_size(before.bfloat16(), after.bfloat16()).dtype == torch.float32
    assert torch.equal(residual_size(before, torch.zeros(3, 7)), torch.ones(3))
    assert torch.allclose(residual_size((before, torch.ones(3)), (after, torch.ones(3)))[0], torch.tensor(0.1))


def test_residual_size_has_finite_gradients_at_zero() -> None:
    before = torch.zeros(2, 3, requires_grad=True)
    residual_size(before, before * 1.0).sum().backward()
    assert torch.isfinite(before.grad).all()


def test_pytree_states() -> None:
    state = {"hidden": torch.arange(6.0).reshape(3, 2), "mask": [torch.tensor([True, False, True])]}
    assert hidden(state) is state["hidden"]
    for index in (torch.tensor([0, 2]), torch.tensor([True, False, True])):
        chosen = select(state, index)
        assert torch.equal(chosen["hidden"], state["hidden"][[0, 2]])
        assert torch.equal(chosen["mask"][0], torch.tensor([True, True]))
    with pytest.raises(InputError, match="no tensor"):
        hidden({"a": 1})
