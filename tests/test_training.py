"""The training loop: it learns, resumes bit for bit, and says what is wrong."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import optdepth.training.loop as loop
from checker import unchecked
from optdepth.data import Data, load_data
from optdepth.errors import InputError
from optdepth.networks import StagedNetwork, load_network, resnet
from optdepth.training import DepthLoss, History, PriceSchedule, StoppingCost, depth_loss, train

LIGHT = depth_loss("light-supervision", 0.0)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", seed=0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(seed: int = 0, **arguments) -> StagedNetwork:
    return resnet(8, **{"classes": 10, "channels": 1, "width": 8, "seed": seed, **arguments})


def run(network: StagedNetwork, data: Data, out: Path, **changes) -> History:
    return train(network, data, **{"loss": LIGHT, "epochs": 2, "seed": 0, "out": out, "progress": False, **changes})


def test_it_learns_and_writes_what_it_did(digits: Data, tmp_path: Path) -> None:
    network = small()
    history = run(network, digits, tmp_path, epochs=6, batch_size=32, lr=0.1)
    assert history.epochs[-1].accuracy[-1] > 0.9
    assert history.epochs[-1].losses[-1] < history.epochs[0].losses[-1]
    loaded = load_network(tmp_path / "network")
    assert loaded.fingerprint() == network.fingerprint() != small().fingerprint()
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["settings"]["epochs"] == len(record["epochs"]) == 6
    assert record["machine"]["torch"] == torch.__version__
    assert not network.training


@pytest.mark.parametrize("name", ["stopping-cost+diminishing-returns", "soft-envelope", "priced-supervision"])
def test_every_loss_trains_at_a_price(name: str, digits: Data, tmp_path: Path) -> None:
    history = run(small(), digits, tmp_path, loss=depth_loss(name, 0.2), schedule="cosine")
    assert history.epochs[0].losses > history.epochs[1].losses
    assert history.epochs[1].price == 0.2


def kill_after(monkeypatch: pytest.MonkeyPatch, epochs: int, error: type[BaseException]) -> None:
    whole = loop._Run.epoch

    def epoch(self, number, advance):
        def dying(text: str) -> None:
            if number == epochs:
                raise error

        return whole(self, number, dying)

    monkeypatch.setattr(loop._Run, "epoch", epoch)


@pytest.mark.parametrize(
    "loss",
    [LIGHT, depth_loss("stopping-cost", 0.0), DepthLoss(0.5, ((1.0, StoppingCost(by="rule")),), PriceSchedule(0, 0))],
)
def test_a_killed_run_ends_with_the_same_bits(loss: DepthLoss, digits: Data, tmp_path: Path, monkeypatch) -> None:
    whole, first, second = small(), small(), small()
    options = {"epochs": 4, "loss": loss}
    run(whole, digits, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        kill_after(patch, 2, MemoryError)
        with pytest.raises(MemoryError):
            run(first, digits, tmp_path / "cut", **options)
    torch.manual_seed(99)  # nothing may depend on the global generator
    history = run(second, digits, tmp_path / "cut", **options)
    assert len(history.epochs) == 4
    assert whole.fingerprint() == second.fingerprint() != first.fingerprint()


def test_a_finished_run_is_not_repeated(digits: Data, tmp_path: Path) -> None:
    network, again = small(), small()
    history = run(network, digits, tmp_path, epochs=1)
    assert run(again, digits, tmp_path, epochs=1) == history
    assert again.fingerprint() == network.fingerprint()
    assert run(small(), digits, tmp_path, epochs=1, resume=False).epochs[0].seconds != history.epochs[0].seconds


def test_an_interrupt_says_how_to_go_on(digits: Data, tmp_path: Path, monkeypatch) -> None:
    kill_after(monkeypatch, 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt, match=r"go on from .*checkpoint\.safetensors"):
        run(small(), digits, tmp_path)
    assert (tmp_path / "checkpoint.safetensors").is_file()


def test_a_seed_decides_everything(digits: Data, tmp_path: Path) -> None:
    prints = []
    for i, seed in enumerate((0, 0, 1)):
        network = small()
        run(network, digits, tmp_path / str(i), epochs=1, seed=seed)
        prints.append(network.fingerprint())
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.01}, "lr was 0.1, is 0.01"),
        ({"epochs": 3}, "epochs was 1, is 3"),
        ({"loss": depth_loss("deep-supervision", 0.0)}, "loss was"),
        ({"network": small(1)}, "network was"),
    ],
)
def test_other_settings_do_not_resume(changes: dict, named: str, digits: Data, tmp_path: Path) -> None:
    run(small(), digits, tmp_path, epochs=1)
    network = changes.pop("network", None) or small()
    with pytest.raises(InputError, match=named):
        run(network, digits, tmp_path, **{"epochs": 1, **changes})


def test_another_carving_of_the_data_does_not_resume(digits: Data, tmp_path: Path) -> None:
    """Else images that fit or certify a rule might have trained the network."""
    run(small(), digits, tmp_path, epochs=1)
    with pytest.raises(InputError, match="data was digits@"):
        run(small(), load_data("digits", seed=1), tmp_path, epochs=1)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pickle", "flip"])
def test_damaged_checkpoints(damage: str, digits: Data, tmp_path: Path) -> None:
    run(small(), digits, tmp_path, epochs=1)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    if damage == "pickle":
        torch.save({"a": 1}, path)
    else:
        flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello", "flip": flipped}[damage])
    with pytest.raises(InputError, match=r"checkpoint\.safetensors is .*delete it") as caught:
        run(small(), digits, tmp_path, epochs=1)
    assert "\n" not in str(caught.value)


def test_frozen_changes_early_heads_and_nothing_else(digits: Data, tmp_path: Path) -> None:
    network = small()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    history = run(network, digits, tmp_path, backbone="frozen", epochs=3)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"heads.{k}.linear.{part}" for k in (0, 1) for part in ("weight", "bias")}
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert history.epochs[-1].losses[0] < history.epochs[0].losses[0]


def test_frozen_moves_the_batch_statistics_of_early_heads_alone(digits: Data, tmp_path: Path) -> None:
    network = resnet(8, classes=10, channels=1, width=4, heads="tail", seed=0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    run(network, digits, tmp_path, backbone="frozen", epochs=1)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    early = {key for key in before if key.startswith(("heads.0.", "heads.1."))}
    assert changed == early
    assert any(key.endswith("running_var") for key in early)


@pytest.mark.parametrize("backbone", ["joint", "frozen"])
def test_a_norm_that_was_put_into_evaluation_stays_there(digits: Data, tmp_path: Path, backbone: str) -> None:
    """One norm of the trunk and one of a head: their statistics stay, and those of their neighbours move."""
    network = resnet(8, classes=10, channels=1, width=4, heads="tail", seed=0).train()
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    trunk, head = (next(name for name in norms if name.startswith(part)) for part in ("stages.1", "heads.0"))
    norms[trunk].eval()
    norms[head].eval()
    before = {name: norm.running_var.clone() for name, norm in norms.items()}
    run(network, digits, tmp_path, backbone=backbone, epochs=2)
    still = {name for name, norm in norms.items() if torch.equal(norm.running_var, before[name])}
    if backbone == "joint":
        assert still == {trunk, head}
    else:
        assert still == {name for name in norms if not name.startswith(("heads.0", "heads.1"))} | {head}


def test_of_a_network_in_evaluation_as_a_whole_every_norm_learns(digits: Data, tmp_path: Path) -> None:
    network = resnet(8, classes=10, channels=1, width=4, seed=0).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_var.clone() for norm in norms]
    run(network, digits, tmp_path, epochs=1)
    assert not any(torch.equal(norm.running_var, old) for norm, old in zip(norms, before, strict=True))


@pytest.mark.parametrize(("loss", "heads"), [("last-exit", "linear"), ("last-exit+distillation", "conv")])
def test_last_exit_ends_as_the_network_without_exits(digits: Data, tmp_path: Path, loss: str, heads: str) -> None:
    """No harm at price zero, to the bit: heads on detached features do not touch the trunk or the last head."""
    staged, plain = small(heads=heads), small(exits="last")
    for name, network in (("staged", staged), ("plain", plain)):
        run(network, digits, tmp_path / name, loss=depth_loss(loss, 0.0))
    assert staged.keep(["stage3.block1"]).fingerprint() == plain.fingerprint()


def test_diverging_loss_is_named(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"loss in epoch 1, batch \d+ is NaN or inf: give a smaller lr"):
        run(small(), digits, tmp_path, lr=1e30)


def test_nan_in_an_image_is_named(digits: Data, tmp_path: Path) -> None:
    images = [(torch.full((1, 8, 8), torch.nan), 0)] * 300
    broken = SplitOf(images, digits)
    with unchecked():  # a split of images that are held, not read
        data = dataclasses.replace(digits, splits={**digits.splits, "train": broken})
        with pytest.raises(InputError, match="sample in epoch 1, batch 1 holds NaN"):
            run(small(), data, tmp_path)


class SplitOf(list):
    """Items under the attributes of a split."""

    def __init__(self, items: list, data: Data) -> None:
        super().__init__(items)
        train_split = data.splits["train"]
        self.source, self.rows, self.in_memory = train_split.source, train_split.rows, True


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"batch_size": 5000},
        {"lr": 0.0},
        {"weight_decay": -1.0},
        {"seed": -1},
        {"schedule": "step"},
        {"backbone": "half"},
        {"precision": "fp8"},
        {"costs": [1.0]},
    ],
)
def test_bad_settings(changes: dict, digits: Data, tmp_path: Path) -> None:
    with unchecked(), pytest.raises(InputError):
        run(small(), digits, tmp_path, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on GPUs")
def test_fp16_needs_a_gpu(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a GPU"):
        run(small(), digits, tmp_path, precision="fp16")


def test_precisions_can_follow_each_other_in_one_process(digits: Data, tmp_path: Path) -> None:
    for precision in ("bf16", "fp32", "auto"):
        network = small()
        history = run(network, digits, tmp_path / precision, epochs=1, precision=precision)
        assert all(torch.isfinite(torch.tensor(history.epochs[0].losses)))
        assert {value.dtype for value in network.parameters()} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs have their own answer")
@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "no")])
def test_auto_is_bf16_only_where_the_processor_does_not_emulate_it(
    native: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert loop._accelerator("auto").mixed_precision == chosen


def test_learning_rates() -> None:
    assert [loop._share_of_lr("one-cycle", done) for done in (0, 0.25, 1)] == pytest.approx([0.04, 1, 0])
    assert [loop._share_of_lr("cosine", done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


TWO = """
import sys
import torch
from optdepth.data import load_data
from optdepth.networks import resnet
from optdepth.training import depth_loss, train
torch.set_num_threads(1)
network = resnet(8, classes=10, channels=1, width=8, seed=0)
history = train(network, load_data("digits", seed=0), loss=depth_loss("stopping-cost", 0.3), epochs=1, seed=0,
                out=sys.argv[1], progress=False)
weights = torch.cat([p.detach().flatten() for p in network.parameters()])
other = weights.clone()
torch.distributed.broadcast(other, 0)
assert torch.equal(weights, other) and torch.isfinite(weights).all()
assert history.settings["processes"] == 2
print("equal")
"""


def test_two_processes_end_with_equal_weights(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(tmp_path / "two.py"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("equal") == 2, done.stderr[-2000:]
    assert load_network(tmp_path / "run" / "network").fingerprint() != small().fingerprint()
