"""A looped network is one block run again and again, and the stationary rule alone says how often."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import optdepth as od
from optdepth.errors import InputError
from optdepth.inference.looped import looped_engine
from optdepth.networks import looped, unrolled
from optdepth.stopping.regression import Additive
from optdepth.stopping.rule import Origin
from optdepth.stopping.stationary import Stationary, step_cost, with_steps
from optdepth.tasks import cross_entropy
from optdepth.training import depth_loss
from settings import widest_gap

STEPS = 6
PRICE = 0.03


def small(steps: int = STEPS, **changes) -> od.StagedNetwork:
    return looped(steps, **{"classes": 10, "channels": 1, "width": 16, "seed": 0, **changes}).eval()


class ByHand:
    """A looped network with random weights and a stationary rule set by hand, near a tie for none of 40 images.

    They stop at unlike steps, some at the limit alone: 26 steps, the first, and 1 / 0.04 that are worth all there is to
    gain.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        strength = torch.linspace(0.2, 3, 40)[torch.randperm(40, generator=generator)]
        self.images = strength[:, None, None, None] * torch.randn(40, 1, 8, 8, generator=generator)
        self.network = small()
        self.network.heads[-1].linear.weight.data *= 5  # random answers are all unsure: these are spread
        longer, costs = unrolled(self.network, 26), [od.Costs.of(np.arange(1, steps + 1)) for steps in (STEPS, 26)]
        self.trace = od.record(longer, [(self.images, torch.arange(40) % 10)], costs[1])
        margins = torch.from_numpy(self.trace.columns(["margin"])).flatten()
        one = torch.ones(1, 1)
        gain = Additive(low=0 * one, scale=one, weight=-one, intercept=torch.tensor(widest_gap(margins)))
        origin = Origin(costs[0], self.network.fingerprint(), price=0.04)
        self.rule = Stationary(origin, ("margin",), gain, gain, spread=1.0)
        self.engine = looped_engine(self.network, self.rule)
        self.stopped_at = self.engine.rule.stopped_at(self.trace)


@pytest.fixture(scope="module")
def by_hand() -> ByHand:
    return ByHand()


class Trained:
    """A looped network trained on the digits for some seconds, and its trace at four times the depth."""

    def __init__(self, folder: Path) -> None:
        self.data = od.load_data("digits", seed=0)
        self.network = small()
        loss = depth_loss("deep-supervision+diminishing-returns", 0.0)
        options = {"batch_size": 32, "lr": 0.01, "progress": False, "out": folder}
        od.train(self.network, self.data, loss=loss, epochs=14, seed=0, **options)
        counted = od.flops(self.network, next(self.data.batches("fit", 1))[0])
        step = step_cost(counted)
        self.costs = od.Costs(counted.reach / step, counted.look / step, counted.answer / step, "steps")
        self.recorded = unrolled(self.network, 4 * STEPS)
        self.fit = self.record(self.recorded, "fit", with_steps(self.costs, 4 * STEPS))

    def record(self, network: od.StagedNetwork, split: str, costs: od.Costs, **more) -> od.Trace:
        held = self.data.splits[split]
        return od.record(network, self.data.batches(split), costs, source=held.source, rows=held.rows, **more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = Trained(tmp_path_factory.mktemp("looped"))
    torch.set_num_threads(threads)
    return found


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_more_steps_are_no_more_weights(images: torch.Tensor) -> None:
    sizes = {sum(value.numel() for value in small(steps).state_dict().values()) for steps in (1, 3, 40)}
    assert len(sizes) == 1
    network = small()
    longer = unrolled(network, 15)
    assert {id(p) for p in longer.parameters()} == {id(p) for p in network.parameters()}
    with torch.inference_mode():
        for short, long in zip(network(images), longer(images), strict=False):
            assert torch.equal(short, long)


def test_saved_and_loaded_it_is_the_same(images: torch.Tensor, tmp_path: Path) -> None:
    network = small()
    for number, part in enumerate((network, network.keep(["step2", "step6"]), unrolled(network, 9))):
        part.save(tmp_path / str(number))
        back = od.load_network(tmp_path / str(number))
        assert back.fingerprint() == part.fingerprint()
        with torch.inference_mode():
            assert all(torch.equal(a, b) for a, b in zip(part(images), back(images), strict=True))
    assert network.fingerprint() != small(seed=1).fingerprint()


def test_a_copy_is_independent_and_still_tied(images: torch.Tensor) -> None:
    network = small()
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.stages[-1].conv1.weight.zero_()
        before, after = network(images), other(images)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # the first step included


def test_every_step_costs_the_same() -> None:
    costs = od.flops(small(), torch.zeros(2, 1, 8, 8))
    convolution, head = 2 * 64 * 16 * 16 * 9, 2 * 16 * 10
    assert step_cost(costs) == 2 * convolution + head
    assert costs.reach[0] == 2 * 64 * 16 * 9 + 2 * convolution
    longer = od.flops(unrolled(small(), 20), torch.zeros(2, 1, 8, 8))
    for steps in (2, 6, 20):
        more = with_steps(costs, steps)
        for part in ("reach", "look", "answer"):
            np.testing.assert_allclose(getattr(more, part), getattr(longer, part)[:steps])


def test_it_starts_steps_in_when_training_and_never_otherwise(images: torch.Tensor) -> None:
    network = small(2)
    torch.manual_seed(0)
    starts = [network.train().start(images)[0] for _ in range(40)]
    with torch.no_grad():
        first = network.eval().start(images)[0]
        assert all(torch.equal(first, network.start(images)[0]) for _ in range(10))
        state, reachable = network.start(images), [first]
        for _ in range(8):
            state = network.advance(state, 0)
            reachable.append(state[0])
    found = [next(n for n, at in enumerate(reachable) if torch.equal(at, start)) for start in starts]
    assert 10 <= found.count(0) <= 30  # half of them, binomially
    assert max(found) > 4
    assert starts[found.index(0)].requires_grad
    assert not starts[found.index(max(found))].requires_grad


def test_it_learns_to_answer_and_to_go_on(trained: Trained) -> None:
    """Accuracy rises over the first steps, and ten times the trained number of steps does it no harm."""
    longer = unrolled(trained.network, 10 * STEPS)
    right = 1 - trained.record(longer, "test", with_steps(trained.costs, 10 * STEPS)).losses.mean(axis=0)
    assert right[STEPS - 1] > 0.8  # a tenth by chance; the last few points are the processor's
    assert right[STEPS - 1] > right[0] + 0.03
    assert right[-1] > right[STEPS - 1] - 0.03


@pytest.mark.parametrize("size", [1, 7, 40])
def test_without_a_greatest_depth_it_is_the_rule_on_as_long_a_trace(by_hand: ByHand, size: int) -> None:
    """Deeper than the rule was set to, and the last no deeper than its limit."""
    assert len(by_hand.engine.network.exits) == by_hand.rule.limit == 1 + math.ceil(1 / 0.04)
    assert by_hand.stopped_at.min() == 0
    assert np.any((by_hand.stopped_at > STEPS) & (by_hand.stopped_at < 25))
    assert by_hand.stopped_at.max() == 25
    answers = [by_hand.engine(chunk) for chunk in by_hand.images.split(size)]
    np.testing.assert_array_equal(torch.cat([answer.exit for answer in answers]), by_hand.stopped_at)
    np.testing.assert_allclose(torch.cat([answer.cost for answer in answers]), 1.0 + by_hand.stopped_at)


def test_it_is_no_worse_than_the_best_fixed_number_of_steps(trained: Trained) -> None:
    engine = looped_engine(trained.network, od.stationary(trained.fit, price=PRICE).rule)
    test = trained.record(engine.network, "test", engine.rule.origin.costs)
    found, alone = od.evaluate(engine.rule, test), trained.fit.costs.reach + trained.fit.costs.look
    best = int((trained.fit.losses.mean(axis=0) + PRICE * alone).argmin())
    lead = test.losses[:, best] + PRICE * alone[best] - found.losses - PRICE * found.costs
    assert lead.mean() > -3 * lead.std() / np.sqrt(len(lead))


@pytest.mark.slow
def test_the_finite_depth_report_holds_on_cross_entropy(trained: Trained) -> None:
    """One head, shared, after a 1-Lipschitz mean: no recorded step breaks what bound (C) derives from that."""
    nats = trained.record(trained.recorded, "fit", trained.fit.costs, loss=cross_entropy)
    engine = looped_engine(trained.network, od.stationary(nats, price=PRICE).rule)
    test = trained.record(engine.network, "test", engine.rule.origin.costs, loss=cross_entropy)
    sizes = []
    with torch.inference_mode():
        state = engine.network.start(torch.cat([x for x, _ in trained.data.batches("test")]))
        for k in range(len(engine.network.exits)):
            before, state = state, engine.network.advance(state, k)
            sizes.append(torch.linalg.vector_norm((state[0] - before[0]).mean((2, 3)), dim=1))
    norm = float(torch.linalg.matrix_norm(trained.network.heads[-1].linear.weight.detach(), 2))
    about = {"residuals": torch.stack(sizes, 1).double().numpy(), "head_norm": norm, "shared_head": True}
    report = od.finite_depth(test, engine.rule, price=PRICE, **about)
    assert not [reason for reason in report.residual.unmet if "more than one head" in reason]
    assert report.expected.kept
    half = od.finite_depth(test, engine.rule, price=PRICE, **{**about, "head_norm": norm / 20})
    assert any("more than one head" in reason for reason in half.residual.unmet)


def never_stops(network: od.StagedNetwork, price: float) -> Stationary:
    """A rule whose fitted gain is always 1, as a fit gone wrong might have it."""
    zero, one = torch.zeros(1, 1), torch.tensor(1.0)
    costs = od.Costs.of(np.arange(1, len(network.exits) + 1))
    always = Additive(low=zero, scale=zero, weight=zero, intercept=one)
    return Stationary(Origin(costs, network.fingerprint(), price), ("margin",), always, always, spread=1.0)


def test_a_rule_that_never_stops_is_stopped_by_the_bound(images: torch.Tensor) -> None:
    network = small()
    answer = looped_engine(network, never_stops(network, 0.04))(images)
    assert (answer.exit == 25).all()  # 26 steps: the first, and 1 / 0.04 that are worth all there is to gain
    assert (answer.cost == 26).all()


def test_only_steps_that_are_taken_are_run(by_hand: ByHand) -> None:
    stopped_at, network = by_hand.stopped_at, small()
    network.load_state_dict(by_hand.network.state_dict())
    engine, sizes = looped_engine(network, by_hand.rule), list[int]()
    network.stages[-1].register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0][0])))
    for deepest in (0, 2, 25):
        sizes.clear()
        engine(by_hand.images[stopped_at <= deepest])
        assert sizes == [int(((stopped_at <= deepest) & (stopped_at >= k)).sum()) for k in range(deepest + 1)]


def test_a_saved_rule_keeps_its_limit(by_hand: ByHand, tmp_path: Path) -> None:
    by_hand.rule.save(tmp_path)
    back = looped_engine(by_hand.network, od.Rule.load(tmp_path))
    assert back.rule.limit == 26
    np.testing.assert_array_equal(back(by_hand.images).exit, by_hand.stopped_at)


def test_bad_input_says_what_to_do(tmp_path: Path, by_hand: ByHand) -> None:
    for changes, said in (
        ({"steps": 0}, "steps 0"),
        ({"width": 0}, "width 0"),
        ({"exits": "first"}, "exits='first'"),
        ({"exits": ["step1"]}, "add 'step6'"),
    ):
        with pytest.raises(InputError, match=said):
            small(**{"steps": STEPS, **changes})
    with pytest.raises(InputError, match="only a looped network"):
        unrolled(od.resnet(8, classes=10, seed=0), 9)
    with pytest.raises(InputError, match="steps=0"):
        unrolled(small(), 0)
    with pytest.raises(InputError, match="was solved for network"):
        looped_engine(small(seed=3), by_hand.rule)
    frozen = {"epochs": 1, "seed": 0, "out": tmp_path, "backbone": "frozen", "progress": False}
    with pytest.raises(InputError, match="share the last head has nothing to train"):
        od.train(small(), od.load_data("digits", seed=0), loss=depth_loss("deep-supervision", 0.0), **frozen)
    with pytest.raises(InputError, match="the costs of two"):
        with_steps(od.Costs.of([1.0]), 5)
