"""A network that is put into training goes on being served as it is: same answers, and its statistics untouched."""

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optdepth as od
from optdepth.inference.clock import clock
from optdepth.inference.stream import stream
from optdepth.inference.timings import Timings
from optdepth.networks import Exit, StagedNetwork, looped, resnet, served, stage, unrolled
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.rule import FixedDepth, Origin
from settings import Setting
from zoo import build


class Normed(nn.Module):
    """A residual block with what differs between the modes: batch norm and dropout, one of them held in a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear, self.hidden = nn.BatchNorm1d(width), nn.Linear(width, width), (nn.Dropout(0.5),)
        self.dropped = self.drop  # a bound method of this very module

    def drop(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.hidden[0](x), 0.5, self.training)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropped(self.linear(self.norm(x)))


def own() -> StagedNetwork:
    exits = [Exit(f"block{k}", k) for k in (1, 2, 3)]
    return StagedNetwork(nn.Linear(4, 8), [Normed(8) for _ in exits], [nn.Linear(8, 3) for _ in exits], exits).eval()


def halving(network: StagedNetwork, inputs: Tensor) -> Threshold:
    """Stops a sample where its margin is above the middle one."""
    with torch.no_grad():
        tops = [logits.softmax(-1).topk(2).values for logits in network(inputs)[:-1]]
    cuts = torch.tensor([float((top[:, 0] - top[:, 1]).sort().values[15:17].mean()) for top in tops])
    return Threshold(Origin(od.Costs.of([1.0, 2.0, 3.0]), network.fingerprint(), 0.1), "margin", cuts)


NETWORKS = {
    "of one's own": lambda: (own(), torch.randn(32, 4)),
    "resnet": lambda: (resnet(8, classes=4, channels=1, width=8, exits="all", seed=0).eval(), torch.randn(32, 1, 8, 8)),
    "torchvision resnet": lambda: (
        stage(build("torchvision resnet")[0], example=torch.randn(2, 3, 32, 32), exits=3, head="linear"),
        torch.randn(32, 3, 32, 32),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_engine_answers_as_in_evaluation_whatever_becomes_of_the_network(name: str) -> None:
    network, inputs = NETWORKS[name]()
    with torch.no_grad():
        for head in network.heads:
            for parameter in head.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter))
    engine = od.Engine(network, halving(network, inputs))
    expected, before = engine(inputs), {key: value.clone() for key, value in network.state_dict().items()}
    assert len(expected.exit.unique()) > 1
    for where in (network, next(m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))):
        where.train()
        for size in (1, 32):
            found = [engine(part) for part in inputs.split(size)]
            assert torch.equal(torch.cat([answer.exit for answer in found]), expected.exit)
            torch.testing.assert_close(torch.cat([answer.logits for answer in found]), expected.logits)
        streamed = list(stream(engine, inputs, batch=8, ordered=True))
        assert [answer.exit for answer in streamed] == expected.exit.tolist()
        assert where.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_whatever_looks_at_a_network_leaves_every_module_its_mode() -> None:
    network, inputs = own().train(), torch.randn(32, 4)
    still = network.stages[1].norm.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    before = {key: value.clone() for key, value in network.state_dict().items()}
    costs = od.flops(network, inputs)
    od.record(network, [(inputs, torch.arange(32) % 3)], costs)
    Timings.measure(network, inputs, sizes=(1, 4), repeats=1)
    rule = FixedDepth(Origin(costs, network.fingerprint()), 2)
    clock(network, {"full": rule}, inputs, batches=[8], repeats=1)
    od.Engine(network, rule)(inputs)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert not still.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_norm_in_evaluation_stays_so_in_what_is_made_of_a_network() -> None:
    kept = own().train()
    kept.stages[1].norm.eval()
    fewer = kept.keep([kept.exits[k].name for k in (0, 2)])
    assert fewer.training
    assert [m.training for m in fewer.modules() if isinstance(m, nn.BatchNorm1d)] == [True, False, True]
    model, images = build("torchvision resnet")
    model.train().layer1[0].bn1.eval()
    staged = stage(model, example=images, exits=3)
    assert staged.training
    assert not model.layer1[0].bn1.training
    assert model.layer1[0].bn2.training
    loop = looped(2, classes=3, channels=1, width=8, seed=0).train()
    loop.stages[-1].norm1.eval()
    longer = unrolled(loop, 4)
    assert longer.training
    assert not longer.stages[-1].norm1.training


def test_what_is_served_has_the_weights_and_hooks_of_the_network(setting: Setting) -> None:
    network = resnet(8, classes=4, channels=1, width=8, exits="all", seed=0)
    inside, seen = served(network), []
    assert [(name, type(m)) for name, m in inside.named_modules()] == [(n, type(m)) for n, m in network.named_modules()]
    pairs = zip(inside.named_parameters(), network.named_parameters(), strict=True)
    assert all(mine is its for (_, mine), (_, its) in pairs)
    network.stem.register_forward_hook(lambda *_: seen.append(1))
    inside.full(setting.inputs[:2])
    assert seen == [1]
    network.double()
    assert inside.full(setting.inputs[:2].double()).dtype == torch.float64
    assert not inside.training
    assert network.training


def test_modules_that_hold_each_other_are_copied_once() -> None:
    inner = nn.BatchNorm1d(2)
    outer = nn.Sequential(inner, nn.Identity(), inner, nn.Sequential())
    outer.register_module("none", None)
    outer[1].back, outer[1].round = (outer,), []
    outer[1].round.append(outer[1].round)
    inside = served(outer)
    assert inside[0] is inside[2] is not inner
    assert inside[1].back[0] is inside
    assert inside[1].round is outer[1].round
    assert not any(module.training for module in inside.modules())


def test_engines_and_monitors_under_threads_count_and_answer_all(setting: Setting) -> None:
    """Sixteen threads share an engine and a monitor, while another one puts the network into training and back."""
    network = resnet(8, classes=4, channels=1, width=8, exits="all", seed=0)
    network.load_state_dict(setting.network.state_dict())
    engine, watch = od.Engine(network, setting.rules["additive"]), od.Monitor(list("abc"), np.full(3, 1 / 3))
    expected, wrong, ended = engine(setting.inputs[:8]), [], threading.Event()

    def serve() -> None:
        for _ in range(25):
            answer = engine(setting.inputs[:8])
            watch.add(answer)
            if not torch.equal(answer.exit, expected.exit) or not torch.equal(answer.logits, expected.logits):
                wrong.append(answer)

    def disturb() -> None:
        while not ended.is_set():
            network.train()
            network.eval()

    other, workers = threading.Thread(target=disturb), [threading.Thread(target=serve) for _ in range(16)]
    other.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    ended.set()
    other.join()
    assert not wrong
    assert watch.samples == watch.counts.sum() == watch.margins.sum() == 16 * 25 * 8
    assert watch.cost == pytest.approx(16 * 25 * float(expected.cost.sum()))
