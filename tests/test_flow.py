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
from optdepth.continuous.flow import FlowEngine
from optdepth.costs import flops
from optdepth.data import Data, load_data
from optdepth.errors import InputError
from optdepth.inference.engine import Engine
from optdepth.networks import StagedNetwork, load_network, neural_ode
from optdepth.networks.ode import flow_network, flow_pieces, regridded
from optdepth.record import record
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.stopping.snell import snell
from optdepth.stopping.stationary import stationary
from optdepth.trace import Costs, Trace
from optdepth.training.depth_loss import depth_loss
from optdepth.training.loop import train

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


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", seed=0)


@pytest.fixture(scope="module")
def trained(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> StagedNetwork:
    """Trained as a residual network of four Euler steps, run with eight of fourth order: the same field."""
    coarse = neural_ode(4, classes=10, channels=1, width=8, method="euler", seed=0)
    folder = tmp_path_factory.mktemp("flow")
    train(
        coarse,
        digits,
        loss=depth_loss("light-supervision", 0.0),
        epochs=15,
        lr=0.05,
        seed=0,
        out=folder,
        progress=False,
    )
    return regridded(coarse, 8, method="rk4").eval()


@pytest.fixture(scope="module")
def traces(digits: Data, trained: StagedNetwork) -> tuple[Trace, Trace]:
    costs = flops(trained, next(digits.batches("fit", 1))[0]).relative()
    fit, test = (record(trained, digits.batches(split), costs) for split in ("fit", "test"))
    return fit, test


@pytest.fixture(scope="module")
def rule(traces: tuple[Trace, Trace]) -> Rule:
    return snell(traces[0], price=0.1, features=("margin", "entropy"))


def test_it_stops_in_the_interval_before_the_exit_of_the_rule_on_the_grid(
    digits: Data, trained: StagedNetwork, traces: tuple[Trace, Trace], rule: Rule
) -> None:
    images, _ = next(digits.batches("test", 359))
    with torch.no_grad():
        stopped = FlowEngine(trained, rule)(images)
    answer = Engine(trained, rule)(images)
    assert torch.equal(stopped.exit, answer.exit)
    np.testing.assert_array_equal(stopped.exit.numpy(), rule.stopped_at(traces[1]))
    grid = torch.linspace(0, 1, 9)
    assert (stopped.time <= grid[stopped.exit] + 1e-6).all()
    assert (stopped.time >= grid[(stopped.exit - 1).clamp(min=0)] - 1e-6).all()
    assert len(stopped.time.unique()) > 50
    assert "answers at times 0 to" in str(stopped)


def test_the_solved_boundary_is_worth_more_than_any_fixed_time(
    digits: Data, trained: StagedNetwork, traces: tuple[Trace, Trace], rule: Rule
) -> None:
    images, labels = next(digits.batches("test", 359))
    with torch.no_grad():
        stopped = FlowEngine(trained, rule)(images)
    _, test = traces
    paid = torch.as_tensor(test.costs.paid())
    share = stopped.time.double()  # an interval costs its length, as all cost the same
    cost = paid[0] + (paid[-1] - paid[0]) * share
    wrong = (stopped.logits.argmax(1) != labels).double()
    flow = (wrong + 0.1 * cost).numpy()
    for k in range(9):
        fixed = test.losses[:, k] + 0.1 * test.costs.paid()[k]
        margin = flow - fixed
        assert margin.mean() < 0
    assert flow.mean() < evaluate(rule, test).value(0.1)  # nor does it wait for the next grid time


def test_the_compute_of_stopped_samples_is_saved(digits: Data, trained: StagedNetwork, rule: Rule) -> None:
    images, _ = next(digits.batches("test", 128))
    rows: list[int] = []
    field = flow_pieces(trained)[-1].field
    handle = field.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    with torch.no_grad():
        stopped = FlowEngine(trained, rule)(images)
    handle.remove()
    assert sum(rows) == int(stopped.evaluations.sum())
    assert sum(rows) < 0.7 * 128 * 8 * 4
    expected = torch.where(stopped.time == 0, 0, 4 * stopped.exit + 2)
    crossing = stopped.time < 1
    assert torch.equal(stopped.evaluations[crossing], expected[crossing])


def test_nothing_depends_on_who_else_is_in_the_batch(digits: Data, trained: StagedNetwork, rule: Rule) -> None:
    images, _ = next(digits.batches("test", 48))
    engine = FlowEngine(trained, rule)
    with torch.no_grad():
        together = engine(images)
        apart = [engine(images[i : i + 1]) for i in range(48)]
        shuffled = engine(images.flip(0))
    assert torch.equal(together.exit, torch.cat([one.exit for one in apart]))
    torch.testing.assert_close(together.time, torch.cat([one.time for one in apart]), atol=1e-4, rtol=0)
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in apart]), atol=1e-3, rtol=0)
    assert torch.equal(together.exit, shuffled.exit.flip(0))


def test_the_gradient_of_loss_and_time_is_that_of_finite_differences(
    digits: Data, trained: StagedNetwork, rule: Rule
) -> None:
    """Through head, features, rule and time, in the precision that rules have: along the gradient itself."""
    images, labels = next(digits.batches("train", 64))
    engine = FlowEngine(trained, rule)
    parameters = [p for p in trained.parameters() if p.requires_grad]

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
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)  # to the bit: other tests use the network, and rules know it by its bits
    assert (values[0] - values[1]) / 6e-4 == pytest.approx(float(size), rel=0.03)


def test_stationary_rules_and_thresholds_are_boundaries_too(
    digits: Data, trained: StagedNetwork, traces: tuple[Trace, Trace]
) -> None:
    fit, _ = traces
    images, _ = next(digits.batches("test", 64))
    cuts = torch.tensor([torch.inf, 0.9, torch.inf, 0.8, 0.7, 0.7, 0.6, 0.5])
    threshold = Threshold(Origin.of(fit, 0.1), "confidence", cuts)
    narrow = Trace(
        fit.losses, fit.columns(["margin", "entropy"]), fit.costs, ("margin", "entropy"), fit.posterior_losses,
        network=fit.network,
    )  # fmt: skip
    for each in (threshold, stationary(narrow, price=0.1).rule):
        with torch.no_grad():
            stopped = FlowEngine(trained, each)(images)
        assert torch.equal(stopped.exit, Engine(trained, each)(images).exit)
    plane = field_of_scores(
        Boundary(threshold), torch.tensor([0.0, 0.125, 0.5]), torch.linspace(0, 1, 9), torch.tensor([0.75, 0.95])
    )
    assert (plane > 0).tolist() == [[True, True], [True, False], [False, False]]


def test_it_is_a_network_like_any_other(tmp_path: Path) -> None:
    network = neural_ode(4, classes=3, channels=1, width=4, horizon=2.0, seed=5)
    assert [exit.name for exit in network.exits] == ["t=0", "t=0.5", "t=1", "t=1.5", "t=2"]
    network.save(tmp_path)
    again = load_network(tmp_path)
    images = torch.randn(5, 1, 8, 8)
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


def test_bad_input_says_what_to_do(trained: StagedNetwork, traces: tuple[Trace, Trace], rule: Rule) -> None:
    fit, _ = traces
    origin = Origin.of(fit, 0.1)
    with pytest.raises(InputError, match=r"the rule reads streak, .* solve with features="):
        FlowEngine(trained, snell(fit, price=0.1, features=("margin", "streak")))
    with pytest.raises(InputError, match="the rule reads nothing"):
        FlowEngine(trained, FixedDepth(origin, 3))
    with pytest.raises(InputError, match="the rule was solved for network"):
        FlowEngine(neural_ode(8, classes=10, channels=1, width=8, seed=1), rule)
    with pytest.raises(InputError, match="no neural ODE with an exit at every grid time"):
        FlowEngine(trained.keep(["t=0.5", "t=1"]), rule)
    with pytest.raises(InputError, match="an empty batch"):
        FlowEngine(trained, rule)(torch.empty(0, 1, 8, 8))
    with pytest.raises(InputError, match="sample 1 of the batch holds NaN"):
        FlowEngine(trained, rule)(torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), torch.nan)]))
    with (
        unchecked(),
        pytest.raises(InputError, match=r"method 'dopri5': choose from euler, midpoint, rk4; the steps of adaptive"),
    ):
        neural_ode(4, classes=3, method="dopri5", seed=0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="horizon -1"):
        neural_ode(4, classes=3, horizon=-1.0, seed=0)
    with pytest.raises(InputError, match="a plane shows one feature"):
        field_of_scores(Boundary(rule), torch.zeros(1), torch.linspace(0, 1, 9), torch.zeros(1))


def test_without_torchdiffeq_it_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(InputError, match=r"pip install 'optdepth\[ode\]'"):
        neural_ode(4, classes=3, seed=0)


def test_costs_of_equal_intervals_are_equal(digits: Data, trained: StagedNetwork) -> None:
    costs: Costs = flops(trained, next(digits.batches("fit", 1))[0])
    steps = np.diff(costs.reach)
    np.testing.assert_allclose(steps, steps[0])
