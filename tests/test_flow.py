"""Neural ODEs that stop sample by sample: closed forms, gradients, saved compute, and the rule on the grid of exits."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checker import unchecked
from optdepth.continuous.boundary import Boundary, field_of_scores
from optdepth.continuous.crossing import crossed
from optdepth.continuous.flow import FlowEngine, Stopped
from optdepth.costs import flops
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.inference.engine import Engine
from optdepth.networks import load_network, neural_ode
from optdepth.networks.ode import flow_network, flow_pieces, regridded
from optdepth.record import record
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.regression import Additive
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.stopping.snell import snell
from optdepth.stopping.stationary import Stationary
from settings import parting, widest_gap

RATE, PRICE = 1.3, 0.2


class Decay(nn.Module):
    """x' = -a x."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(RATE, dtype=torch.float64))

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return -self.rate * state


class Turning(nn.Module):
    """A nonlinear field in the plane, driven in time."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[-0.9, 0.6], [-0.5, -0.7]], dtype=torch.float64))

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(state @ self.matrix.T) + 0.2 * torch.sin(3 * time)


def worth_waiting(k: int, share: Tensor, state: Tensor) -> Tensor:
    """Of the deterministic flow (theory, section 8): going on pays while a |x|² > c."""
    return RATE * state.square().sum(1) - PRICE


def pieces(field: nn.Module, intervals: int, horizon: float = 3.0) -> list:
    return flow_pieces(flow_network(nn.Identity(), field, nn.Identity(), horizon=horizon, intervals=intervals))


def test_every_sample_of_a_batch_stops_at_its_own_closed_form_time() -> None:
    start = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    edge = (PRICE / RATE) ** 0.5
    exact = (start.abs().squeeze(1) / edge).clamp(min=1).log() / RATE
    errors = []
    for intervals in (4, 8, 16, 32):
        with torch.no_grad():
            found = crossed(pieces(Decay(), intervals), start, worth_waiting)
        errors.append(float((found.time - exact).abs().max()))
    assert -np.polyfit(np.arange(4) * np.log(2), np.log(errors), 1)[0] == pytest.approx(4, abs=0.4)  # of the method
    assert errors[-1] < 1e-5
    at_once = start.abs().squeeze(1) <= edge
    assert (found.time[at_once] == 0).all()
    assert (found.evaluations[at_once] == 0).all()
    assert found.state[~at_once].abs().squeeze(1) == pytest.approx(edge, abs=1e-5)
    early = crossed(pieces(Decay(), 8, horizon=0.5), start, worth_waiting)
    assert (early.time[exact > 0.6] == 0.5).all()  # the end of time stops the others
    assert (early.interval[exact > 0.6] == 8).all()


def test_torchdiffeq_finds_the_same_time_for_each_sample_alone_and_only_the_first_for_a_batch() -> None:
    from torchdiffeq import odeint_event

    field = Turning()
    start = torch.tensor([[1.5, 0.5], [-1.0, 2.0], [2.0, -2.0]], dtype=torch.float64)
    score = lambda k, share, state: state.square().sum(1) - 0.3  # noqa: E731
    with torch.no_grad():
        found = crossed(pieces(field, 96), start, score)
        event = lambda t, x: x.square().sum(-1).amin() - 0.3  # noqa: E731
        alone = [
            odeint_event(field, x[None], start.new_tensor(0.0), event_fn=event, rtol=1e-10, atol=1e-10)[0]
            for x in start
        ]
        together = odeint_event(field, start, start.new_tensor(0.0), event_fn=event, rtol=1e-10, atol=1e-10)[0]
    torch.testing.assert_close(found.time, torch.stack(alone), atol=1e-6, rtol=0)
    assert float(together) == pytest.approx(float(found.time.min()), abs=1e-6)


def test_gradients_flow_through_the_stopping_time() -> None:
    """torch.autograd.gradcheck: central differences in double precision, of the time and of the state at it."""
    start = torch.tensor([[1.5, 0.5], [-1.0, 2.0], [2.0, -2.0], [0.1, 0.1], [9.0, 9.0]], dtype=torch.float64)
    field = Turning()

    def stopped(matrix: Tensor, level: Tensor, begin: Tensor) -> tuple[Tensor, Tensor]:
        moving = Turning()
        del moving.matrix
        moving.matrix = matrix
        score = lambda k, share, state: state.square().sum(1) - level * (1 + 0.3 * (k + share))  # noqa: E731
        found = crossed(pieces(moving, 8), begin, score)
        return found.time, found.state

    inputs = (field.matrix.detach().clone(), torch.tensor(0.3, dtype=torch.float64), start)
    for value in inputs:
        value.requires_grad_()
    assert torch.autograd.gradcheck(stopped, inputs, eps=1e-6, atol=1e-5)
    time, _ = stopped(*inputs)
    assert time[3:].tolist() == [0, 3]  # at once, and at the end: neither time moves
    (moved,) = torch.autograd.grad(time[3:].sum(), inputs[2])
    assert not moved.any()


def test_the_closed_form_gradient_of_the_stopping_time() -> None:
    """t* = ln(|x| / x*) / a with x* = (c / a)^½: dt*/da = -t*/a + 1 / (2 a²), and dt*/dx = 1 / (a x)."""
    field, start = Decay(), torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    score = lambda k, share, state: field.rate * state.square().sum(1) - PRICE  # noqa: E731
    found = crossed(pieces(field, 64), start, score)
    by_rate, by_start = torch.autograd.grad(found.time.sum(), (field.rate, start))
    assert float(by_rate) == pytest.approx(-found.time.item() / RATE + 1 / (2 * RATE**2), abs=1e-5)
    assert float(by_start) == pytest.approx(1 / (RATE * 2.0), abs=1e-6)


class Growth(nn.Module):
    """x' = x."""

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return state


class Biased(nn.Module):
    """Logits are the state, and 3 more at class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([3.0, 0, 0, 0]))

    def forward(self, state: Tensor) -> Tensor:
        return state + self.bias


class Flowing:
    """Evidence that grows: a sample starts with its strength, 1.3 to 4, at its class, and is x e^t later.

    What is no class 0 is taken for it until its evidence is more than 3, at the latest at time 0.84. Nothing is
    trained; `parted` is near a tie for no sample of the test split.
    """

    def __init__(self) -> None:
        self.network = flow_network(nn.Identity(), Growth(), Biased(), horizon=1.0, intervals=8).eval()
        random, self.costs = np.random.default_rng(0), Costs.of(np.arange(1, 10) / 9)
        drawn = [(random.integers(0, 4, size), random.uniform(1.3, 4, (size, 1))) for size in (400, 100)]
        batches = [(torch.from_numpy(strength * np.eye(4)[label]).float(), label) for label, strength in drawn]
        self.fit, self.test = (
            record(self.network, [(inputs, torch.from_numpy(label))], self.costs, source=source)
            for source, (inputs, label) in zip(("fit", "test"), batches, strict=True)
        )
        self.inputs, self.labels = batches[1][0], torch.from_numpy(batches[1][1])
        self.parted = parting(self.test, ("margin", "entropy"))


@pytest.fixture(scope="module")
def flowing() -> Flowing:
    return Flowing()


@torch.no_grad()
def stopped_by(flowing: Flowing, rule: Rule) -> Stopped:
    return FlowEngine(flowing.network, rule)(flowing.inputs)


def test_it_stops_in_the_interval_before_the_exit_of_the_rule_on_the_grid(flowing: Flowing) -> None:
    stopped = stopped_by(flowing, flowing.parted)
    exits = flowing.parted.stopped_at(flowing.test)
    assert np.count_nonzero(np.bincount(exits)) > 5
    np.testing.assert_array_equal(stopped.exit, exits)
    np.testing.assert_array_equal(Engine(flowing.network, flowing.parted)(flowing.inputs).exit, exits)
    grid = torch.linspace(0, 1, 9)
    assert (stopped.time <= grid[stopped.exit] + 1e-6).all()
    assert (stopped.time >= grid[(stopped.exit - 1).clamp(min=0)] - 1e-6).all()
    assert len(stopped.time.unique()) > 25
    assert "answers at times 0 to" in str(stopped)


def test_the_solved_boundary_is_worth_more_than_any_fixed_time(flowing: Flowing) -> None:
    """Class 0 is known at once and the strongest early: half of the samples need next to no time, others most of it."""
    price, test = 0.3, flowing.test
    rule = snell(flowing.fit, price=price, features=("margin", "entropy"))
    stopped, paid = stopped_by(flowing, rule), test.costs.paid()
    cost = paid[0] + (paid[-1] - paid[0]) * stopped.time.numpy()  # an interval costs its length, as all cost the same
    flow = (stopped.logits.argmax(1) != flowing.labels).numpy() + price * cost
    assert flow.mean() < 0.5 * (test.losses + price * paid).mean(axis=0).min()
    assert flow.mean() < evaluate(rule, test).value(price)  # nor does it wait for the next grid time


def test_the_compute_of_stopped_samples_is_saved(flowing: Flowing) -> None:
    rows: list[int] = []
    field = flow_pieces(flowing.network)[-1].field
    handle = field.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    stopped = stopped_by(flowing, flowing.parted)
    handle.remove()
    assert sum(rows) == int(stopped.evaluations.sum())
    assert sum(rows) < 0.7 * 100 * 8 * 4
    expected = torch.where(stopped.time == 0, 0, 4 * stopped.exit + 2)
    crossing = stopped.time < 1
    assert torch.equal(stopped.evaluations[crossing], expected[crossing])


def test_nothing_depends_on_who_else_is_in_the_batch(flowing: Flowing) -> None:
    engine, inputs = FlowEngine(flowing.network, flowing.parted), flowing.inputs[:48]
    with torch.no_grad():
        together = engine(inputs)
        apart = [engine(inputs[i : i + 1]) for i in range(48)]
        shuffled = engine(inputs.flip(0))
    assert torch.equal(together.exit, torch.cat([one.exit for one in apart]))
    torch.testing.assert_close(together.time, torch.cat([one.time for one in apart]), atol=1e-4, rtol=0)
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in apart]), atol=1e-3, rtol=0)
    assert torch.equal(together.exit, shuffled.exit.flip(0))


def test_the_gradient_of_loss_and_time_is_that_of_finite_differences() -> None:
    """Through head, features, rule and time, in the precision that rules have: along the gradient itself."""
    network = neural_ode(8, classes=4, channels=1, width=8, seed=0).eval()
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 4
    trace = record(network, [(images, labels)], flops(network, images[:1]).relative())
    engine = FlowEngine(network, parting(trace, ("margin", "entropy")))
    assert ((engine(images).time > 0) & (engine(images).time < 1)).sum() > 5
    parameters = [p for p in network.parameters() if p.requires_grad]

    def objective() -> Tensor:
        stopped = engine(images)
        return F.cross_entropy(stopped.logits, labels) + stopped.time.mean()

    gradients = torch.autograd.grad(objective(), parameters)
    size = torch.cat([g.flatten() for g in gradients]).norm()
    values, before = [], [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for step in (3e-4, -3e-4):
            for p, old, g in zip(parameters, before, gradients, strict=True):
                p.copy_(old + step * g / size)
            values.append(float(objective()))
    assert (values[0] - values[1]) / 6e-4 == pytest.approx(float(size), rel=0.03)


def test_stationary_rules_and_thresholds_are_boundaries_too(flowing: Flowing) -> None:
    origin, seen = Origin.of(flowing.fit, 0.1), torch.from_numpy(flowing.test.columns(["confidence"])[:, :-1, 0])
    cuts = torch.tensor([widest_gap(seen[:, k]) if k % 2 else torch.inf for k in range(8)])
    one = torch.ones(1, 1)
    gain = Additive(low=0 * one, scale=one, weight=-one, intercept=torch.tensor(widest_gap(seen.flatten())))
    for rule in (
        Threshold(origin, "confidence", cuts),
        Stationary(origin, ("confidence",), gain, gain, spread=1.0),
    ):
        exits = rule.stopped_at(flowing.test)
        assert len(np.unique(exits)) > 2
        np.testing.assert_array_equal(stopped_by(flowing, rule).exit, exits)
    cuts = torch.tensor([torch.inf, 0.9, torch.inf, 0.8, 0.7, 0.7, 0.6, 0.5])
    plane = field_of_scores(
        Boundary(Threshold(origin, "confidence", cuts)),
        torch.tensor([0.0, 0.125, 0.5]),
        torch.linspace(0, 1, 9),
        torch.tensor([0.75, 0.95]),
    )
    assert (plane > 0).tolist() == [[True, True], [True, False], [False, False]]


def test_it_is_a_network_like_any_other(tmp_path: Path) -> None:
    network = neural_ode(4, classes=3, channels=1, width=4, horizon=2.0, seed=5)
    assert [exit.name for exit in network.exits] == ["t=0", "t=0.5", "t=1", "t=1.5", "t=2"]
    network.save(tmp_path)
    again = load_network(tmp_path)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for here, there in zip(network.eval()(images), again(images), strict=True):
        assert torch.equal(here, there)
    euler = regridded(network, 4, method="euler").eval()
    state = network.start(images)
    piece = flow_pieces(euler)[1]
    torch.testing.assert_close(euler.advance(state, 2), state + 0.5 * piece.slope(state, 0.5))  # x + h f(t, x)
    names = {id(p) for p in network.parameters()}
    assert {id(p) for p in euler.parameters()} == names


def test_steps_of_fourth_order_agree_with_finer_ones() -> None:
    network = neural_ode(2, classes=3, channels=1, width=4, horizon=3.0, seed=5).double().eval()
    images = torch.randn(5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = regridded(network, 256, method="rk4").full(images)
        for method, order in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
            grids = (16, 32, 64)
            errors = [float((regridded(network, n, method=method).full(images) - exact).abs().max()) for n in grids]
            for coarse, fine in itertools.pairwise(errors):
                assert np.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def test_bad_input_says_what_to_do(flowing: Flowing) -> None:
    network, parted, origin = flowing.network, flowing.parted, Origin.of(flowing.fit, 0.1)
    with pytest.raises(InputError, match=r"the rule reads streak, .* solve with features="):
        FlowEngine(network, Threshold(origin, "streak", torch.full((8,), 1.5)))
    with pytest.raises(InputError, match="the rule reads nothing"):
        FlowEngine(network, FixedDepth(origin, 3))
    with pytest.raises(InputError, match="the rule was solved for network"):
        FlowEngine(neural_ode(8, classes=4, channels=1, width=8, seed=1), parted)
    with pytest.raises(InputError, match="no neural ODE with an exit at every grid time"):
        FlowEngine(network.keep(["t=0.5", "t=1"]), parted)
    with pytest.raises(InputError, match="an empty batch"):
        FlowEngine(network, parted)(torch.empty(0, 4))
    with pytest.raises(InputError, match="sample 1 of the batch holds NaN"):
        FlowEngine(network, parted)(torch.tensor([[0.0] * 4, [torch.nan] * 4]))
    with (
        unchecked(),
        pytest.raises(InputError, match=r"method 'dopri5': choose from euler, midpoint, rk4; the steps of adaptive"),
    ):
        neural_ode(4, classes=3, method="dopri5", seed=0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="horizon -1"):
        neural_ode(4, classes=3, horizon=-1.0, seed=0)
    with pytest.raises(InputError, match="a plane shows one feature"):
        field_of_scores(Boundary(parted), torch.zeros(1), torch.linspace(0, 1, 9), torch.zeros(1))


def test_without_torchdiffeq_it_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(InputError, match=r"pip install 'optdepth\[ode\]'"):
        neural_ode(4, classes=3, seed=0)


def test_costs_of_equal_intervals_are_equal() -> None:
    costs: Costs = flops(neural_ode(8, classes=10, channels=1, width=8, seed=0), torch.zeros(1, 1, 8, 8))
    steps = np.diff(costs.reach)
    np.testing.assert_allclose(steps, steps[0])
