"""Whatever runs a network asks how many threads pay, uses that number, and says it."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optdepth.training.loop as loop
from checker import unchecked
from optdepth import threads
from optdepth.costs import flops
from optdepth.data import Data, load_data
from optdepth.inference.clock import clock
from optdepth.inference.engine import Engine
from optdepth.inference.stream import stream
from optdepth.inference.timings import Timings, latency
from optdepth.networks import StagedNetwork, resnet
from optdepth.record import record
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.threads import chosen, on_threads
from optdepth.trace import Trace
from optdepth.training import DepthLoss, History, PriceSchedule, StoppingCost, train
from optdepth.training.checkpoint import Checkpoint
from optdepth.training.objective import Objective
from optdepth.training.rehearsal import rehearsal

IMAGES, LABELS = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10


class Trials(list[int]):
    """Stands for `paying`: finds the number it is told to, and notes on how many samples it was asked."""

    def __init__(self, finds: int) -> None:
        super().__init__()
        self.finds = finds

    def __call__(self, inputs, work, most, clock) -> int:
        self.append(len(inputs[0] if isinstance(inputs, tuple) else inputs))
        work(inputs)
        return self.finds


@pytest.fixture(autouse=True)
def trials(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trials]:
    """A machine of three cores, on one thread in truth, where the user has set nothing and two threads pay."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_all", lambda: frozenset({3}))
    found = Trials(2)
    monkeypatch.setattr(threads, "paying", found)
    count = 3

    def set_count(number: int) -> None:
        nonlocal count
        count = number

    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    monkeypatch.setattr(torch, "set_num_threads", set_count)
    yield found
    assert count == 3


class Noting(nn.Module):
    """A stage that notes the threads it was run on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.ran = inner, []

    def forward(self, state: Tensor) -> Tensor:
        self.ran.append(torch.get_num_threads())
        return self.inner(state)


@pytest.fixture
def noting() -> StagedNetwork:
    """A small network whose first stage is noted."""
    network = small()
    stages = [Noting(network.stages[0]), *network.stages[1:]]
    return StagedNetwork(network.stem, stages, list(network.heads), network.exits).eval()


def small() -> StagedNetwork:
    return resnet(8, classes=10, channels=1, width=4, exits="all", seed=0)


def recorded(network: StagedNetwork) -> Trace:
    return record(network, [(IMAGES[:40], LABELS[:40]), (IMAGES[40:], LABELS[40:])], flops(network, IMAGES[:1]))


def test_record_tries_the_first_batch(noting: StagedNetwork, trials: Trials) -> None:
    trace = recorded(noting)
    assert trials == [40]
    counting, *ran = noting.stages[0].ran
    assert counting == 1  # the operations of one sample are counted, which is small work
    assert ran == [3, 2, 2]  # the trial, as it was called; then both batches
    with on_threads(1):
        again = recorded(noting)
    np.testing.assert_allclose(again.observations, trace.observations, atol=1e-5)


def test_an_engine_tries_a_size_once(noting: StagedNetwork, trials: Trials) -> None:
    engine = Engine(noting, FixedDepth(Origin.of(recorded(noting)), 1))
    trials.clear()
    for rows in (32, 40, 32, 5, 64):
        before = len(noting.stages[0].ran)
        engine(IMAGES[:rows])
        assert noting.stages[0].ran[before:][-1] == 2
    assert trials == [32, 5, 64]  # 32 to 63 are one size
    with chosen(3):
        engine(IMAGES[:1])
    assert noting.stages[0].ran[-1] == 3
    assert trials == [32, 5, 64]


def test_warming_tries_and_a_deadline_leaves_no_time_to(noting: StagedNetwork, trials: Trials) -> None:
    rule = FixedDepth(Origin.of(recorded(noting)), 1)
    trials.clear()
    engine = Engine(noting, rule, sizes=(4, 16))
    engine(IMAGES[:10], deadline=1e6)
    assert (noting.stages[0].ran[-1], trials) == (1, [])
    engine.warm(IMAGES[:1])
    assert trials == [4, 16]
    engine(IMAGES[:10], deadline=1e6)
    assert (noting.stages[0].ran[-1], trials) == (2, [4, 16])


def test_a_stream_runs_on_what_pays_for_its_batches(noting: StagedNetwork, trials: Trials) -> None:
    engine = Engine(noting, FixedDepth(Origin.of(recorded(noting)), 1))
    trials.clear()
    before = len(noting.stages[0].ran)
    assert len(list(stream(engine, IMAGES, batch=16))) == 64
    assert trials == [16]
    assert noting.stages[0].ran[before:] == [3, 2, 2, 2, 2]  # the trial first


def test_timings_say_what_pays_for_each_size_and_the_engine_knows(noting: StagedNetwork, trials: Trials) -> None:
    timings = Timings.measure(noting, IMAGES[:1], sizes=(1, 8, 32), repeats=1)
    assert trials == [1, 8, 32]
    assert timings.threads == (2, 2, 2)
    timings = dataclasses.replace(timings, threads=(1, 3, 2))
    assert [timings.threads_at(rows) for rows in (1, 7, 8, 31, 32, 100)] == [1, 1, 3, 3, 2, 2]
    assert timings.costs(1).unit.endswith("batch 1, 1 thread")
    engine = Engine(noting, FixedDepth(Origin.of(recorded(noting)), 1), timings=timings)
    trials.clear()
    for rows, count in ((1, 1), (8, 3)):
        engine(IMAGES[:rows], deadline=1e6)
        assert noting.stages[0].ran[-1] == count
    assert not trials
    assert latency(noting, IMAGES[:4]).unit.endswith("batch 4, 2 threads")


def test_the_clock_times_both_on_the_same_number(noting: StagedNetwork, trials: Trials) -> None:
    rules = {"first": FixedDepth(Origin.of(recorded(noting)), 0)}
    trials.clear()
    before = len(noting.stages[0].ran)
    rows = clock(noting, rules, IMAGES, batches=[4, 32], repeats=1)
    assert trials == [4, 32]
    assert [row.threads for row in rows] == [2, 2]
    trial, *ran = noting.stages[0].ran[before:]
    assert trial == 3
    assert ran.count(3) == 1  # the other trial
    assert set(ran) == {2, 3}


@pytest.fixture(scope="module")
def few() -> Data:
    """The digits, with 40 images to train on and 60 to look at."""
    data = load_data("digits", seed=0)
    splits = {"train": Some(data, "train", 40), "fit": Some(data, "fit", 60)}
    with unchecked():  # splits are images that are read, here some of them that are held
        return dataclasses.replace(data, splits={**data.splits, **splits})


class Some(list):
    """The first items of a split, under its attributes."""

    def __init__(self, data: Data, name: str, items: int) -> None:
        split = data.splits[name]
        super().__init__(split[i] for i in range(items))
        self.source, self.rows, self.in_memory = split.source, split.rows[:items], True


LOSSES = {
    "supervision": DepthLoss(),
    "rule": DepthLoss(0.5, ((1.0, StoppingCost(by="rule")),), PriceSchedule(0, 0)),
}


def trained(network: StagedNetwork, data: Data, out: Path, loss: str = "supervision") -> History:
    return train(
        network, data, loss=LOSSES[loss], epochs=3, batch_size=20, seed=0, out=out, progress=False, costs=[1, 2, 3]
    )


def counts(history: History) -> list[int]:
    return [epoch.threads for epoch in history.epochs]


def killed(network: StagedNetwork, data: Data, out: Path, loss: str = "supervision") -> None:
    """A training that dies after its first epoch."""
    whole = loop._Run.epoch

    def epoch(self, number, advance):
        if number == 1:
            raise MemoryError
        return whole(self, number, advance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "epoch", epoch)
        with pytest.raises(MemoryError):
            trained(network, data, out, loss)


def test_each_epoch_says_its_threads(few: Data, tmp_path: Path, trials: Trials) -> None:
    history = trained(small(), few, tmp_path)
    assert trials == [20]
    assert counts(history) == [2, 2, 2]
    said = json.loads((tmp_path / "training.json").read_text())
    assert [epoch["threads"] for epoch in said["epochs"]] == [2, 2, 2]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_resumed_training_has_the_same_threads_and_ends_with_the_same_bits(
    loss: str, few: Data, tmp_path: Path, trials: Trials
) -> None:
    whole, first, second = small(), small(), small()
    trained(whole, few, tmp_path / "whole", loss)
    killed(first, few, tmp_path / "cut", loss)
    trials.clear()
    trials.finds = 1  # by now the machine is busy
    history = trained(second, few, tmp_path / "cut", loss)
    assert counts(history) == [2, 2, 2]
    assert not trials
    assert second.fingerprint() == whole.fingerprint() != first.fingerprint()


def test_the_users_own_number_wins_over_that_of_the_epochs_done(few: Data, tmp_path: Path, trials: Trials) -> None:
    killed(small(), few, tmp_path)
    with on_threads(1):
        assert counts(trained(small(), few, tmp_path)) == [2, 1, 1]
    assert trials == [20]


def test_a_machine_with_fewer_cores_than_the_epochs_done_had_tries_anew(
    few: Data, tmp_path: Path, trials: Trials
) -> None:
    killed(small(), few, tmp_path)
    checkpoint = Checkpoint.load(tmp_path / loop.CHECKPOINT, "")
    first = dataclasses.replace(checkpoint.epochs[0], threads=64)
    dataclasses.replace(checkpoint, epochs=(first, *checkpoint.epochs[1:])).save(tmp_path / loop.CHECKPOINT)
    assert counts(trained(small(), few, tmp_path)) == [64, 2, 2]
    assert trials == [20, 20]


def test_a_trial_leaves_no_trace(few: Data, tmp_path: Path, trials: Trials) -> None:
    trials.finds = 1
    tried, plain = small(), small()
    trained(tried, few, tmp_path / "tried")
    with on_threads(1):
        trained(plain, few, tmp_path / "plain")
    assert trials == [20]
    assert tried.fingerprint() == plain.fingerprint()


def test_a_rehearsed_step_changes_nothing() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1))
    objective = Objective(small(), DepthLoss(), [1, 2, 3])
    objective.network.stem = nn.Sequential(network, objective.network.stem)
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    state = torch.random.get_rng_state()
    rehearsal(objective, 0.0)((IMAGES, LABELS))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())
