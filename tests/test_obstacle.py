"""The free boundary: closed forms with the order of convergence measured, published tables, honest failure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from optdepth.continuous.figures import draw
from optdepth.continuous.obstacle import free_boundary
from optdepth.continuous.paths import sample_paths
from optdepth.continuous.problem import StoppingProblem
from optdepth.continuous.problems import (
    EXAMPLES,
    RATE,
    STRIKE,
    american_put,
    deterministic_flow,
    example,
    ornstein_uhlenbeck,
    perpetual_put,
)
from optdepth.continuous.solution import Solution
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.rule import Origin
from optdepth.stopping.snell import snell
from optdepth.stopping.stationary import stationary
from optdepth.trace import Trace
from problems import MAX_CALL_VALUE, PUT_VALUES

SPOT = [[math.log(36.0)]]


def order(errors: Sequence[float], factor: float = 2.0) -> float:
    """The slope of log error against log spacing, by least squares, each error at a grid `factor` times finer."""
    steps = np.arange(len(errors)) * -math.log(factor)
    return float(np.polyfit(steps, np.log(errors), 1)[0])


def edges(solution: Solution, time: float = 0.0) -> np.ndarray:
    return np.sort(np.concatenate([curve[:, 0] for curve in solution.boundary(time)]))


def lattice_put(sigma: float, years: float, steps: int) -> float:
    """The American put on the binomial lattice of Cox, Ross and Rubinstein (1979), spot 36."""
    up = math.exp(sigma * math.sqrt(years / steps))
    rise = (math.exp(RATE * years / steps) - 1 / up) / (up - 1 / up)
    price = lambda n: 36.0 * up ** (2.0 * np.arange(n + 1) - n)  # noqa: E731
    value = np.maximum(STRIKE - price(steps), 0.0)
    for n in range(steps - 1, -1, -1):
        waits = math.exp(-RATE * years / steps) * (rise * value[1:] + (1 - rise) * value[:-1])
        value = np.maximum(waits, STRIKE - price(n))
    return float(value[0])


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_deterministic_flow_meets_its_closed_form_at_first_order(dimensions: int) -> None:
    """Upwind differences: order 1, in the value and in the boundary."""
    known = deterministic_flow(dimensions=dimensions)
    errors, gaps = [], []
    sizes = (101, 201, 401, 801) if dimensions == 1 else (41, 81, 161)
    for nodes in sizes:
        found = free_boundary(known.problem, box=known.box, nodes=nodes)
        errors.append(float(np.abs(found.value[0].ravel() - known.value(found.grid.points)).max()))
        curves = np.concatenate(found.boundary())
        gaps.append(float(np.abs(np.linalg.norm(curves, axis=1) - 0.5).max() / found.grid.spacing[0]))
        assert found.residual < 1e-12
    assert order(errors) == pytest.approx(1.0, abs=0.1)
    assert errors[-1] < (0.002 if dimensions == 1 else 0.01)
    assert max(gaps) < 1.0  # spacings of the grid


def _put_on_aligned_grid(half: int) -> Solution:
    """The perpetual put with its boundary half way between two nodes, whatever the spacing: order is measured so."""
    known = perpetual_put()
    spacing = 1.0 / (half + 0.5)
    low = known.boundary[0] - 1.0
    return free_boundary(known.problem, box=[(low, low + 7 * (half + 1) * spacing)], nodes=7 * (half + 1) + 1)


def test_the_perpetual_put_meets_its_closed_form_at_second_order_with_smooth_fit() -> None:
    known, errors, gaps, kinks = perpetual_put(), [], [], []
    for half in (25, 50, 100, 200, 400):
        found = _put_on_aligned_grid(half)
        errors.append(float(np.abs(found.value[0] - known.value(found.grid.points)).max()))
        (edge,) = edges(found)
        gaps.append(abs(edge - known.boundary[0]) / found.grid.spacing[0])
        slope = np.diff(found.value[0]) / np.diff(np.exp(found.grid.axes[0]))
        at = int(np.searchsorted(found.grid.axes[0], edge))
        kinks.append(abs(slope[at + 1] - slope[at - 2]))
    assert order(errors) == pytest.approx(2.0, abs=0.15)
    assert errors[-1] < 1e-3
    assert max(gaps) < 1.0
    assert order(kinks) == pytest.approx(1.0, abs=0.2)  # the slope does not jump at the boundary
    assert slope[at - 2] == pytest.approx(1.0, abs=1e-3)  # of the loss S - K


@pytest.mark.parametrize(("sigma", "years"), [(sigma, years) for spot, sigma, years in PUT_VALUES if spot == 36])
def test_the_put_of_longstaff_and_schwartz_to_a_thousandth(sigma: float, years: int) -> None:
    """Their finite differences are of the put with 50 dates a year: the put exercised at any time is worth more, by up
    to two thousandths, and a lattice agrees with ours that it is."""
    known = american_put(sigma, years, dates=50)
    found = free_boundary(known.problem, box=known.box, nodes=601, steps=400)
    assert -found.at(SPOT)[0] == pytest.approx(PUT_VALUES[36, sigma, years], rel=1e-3)
    known = american_put(sigma, years)
    found = free_boundary(known.problem, box=known.box, nodes=601, steps=200)
    lattice = (lattice_put(sigma, years, 2000) + lattice_put(sigma, years, 2001)) / 2
    assert -found.at(SPOT)[0] == pytest.approx(lattice, rel=1e-4)
    assert lattice > PUT_VALUES[36, sigma, years] * 1.0006


def test_the_american_put_converges_at_second_order_in_space_and_time() -> None:
    known = american_put()
    best = free_boundary(known.problem, box=known.box, nodes=1601, steps=800).value[0]
    errors = []
    for nodes, steps in ((101, 25), (201, 50), (401, 100)):
        found = free_boundary(known.problem, box=known.box, nodes=nodes, steps=steps)
        errors.append(float(np.square(found.value[0] - best[:: 1600 // (nodes - 1)]).mean() ** 0.5))
    assert order(errors) == pytest.approx(2.0, abs=0.15)
    (curve,) = found.curve()
    assert (np.diff(curve[np.argsort(curve[:, 0]), 1]) > -1e-6).all()  # the boundary rises to the strike
    assert curve[:, 1].max() < math.log(STRIKE)


def test_the_max_call_of_andersen_and_broadie() -> None:
    """Two dimensions, nine dates. The error falls fourfold from grid to grid, and the limit is the table's."""
    problem = StoppingProblem(
        loss=lambda t, x: -np.maximum(np.exp(x).max(axis=1) - 100.0, 0.0),
        drift=0.05 - 0.1 - 0.2**2 / 2,
        diffusion=0.2,
        discount=0.05,
        horizon=3.0,
        dates=np.arange(1, 10) / 3,
    )
    box = [(math.log(100.0) - 1.6, math.log(100.0) + 1.6)] * 2
    coarse, fine = (
        -free_boundary(problem, box=box, nodes=n, steps=72).at([[math.log(100.0)] * 2])[0] for n in (41, 81)
    )
    assert (4 * fine - coarse) / 3 == pytest.approx(MAX_CALL_VALUE, rel=1e-3)


def test_correlated_noise_in_two_dimensions_meets_a_closed_form() -> None:
    """A perpetual put on the geometric mean of two shares is one on one share, whose exponent is known."""
    first, second, correlation = 0.2, 0.3, 0.5
    drift = np.array([RATE - first**2 / 2, RATE - second**2 / 2])
    sigma = np.array([[first, 0.0], [correlation * second, math.sqrt(1 - correlation**2) * second]])
    variance, mean = float((sigma.mean(axis=0) ** 2).sum()), drift.mean()
    gamma = (mean + math.sqrt(mean**2 + 2 * RATE * variance)) / variance
    edge = math.log(STRIKE * gamma / (1 + gamma))
    problem = StoppingProblem(
        loss=lambda t, x: -np.maximum(STRIKE - np.exp(x.mean(axis=1)), 0.0),
        drift=lambda t, x: np.tile(drift, (len(x), 1)),
        diffusion=lambda t, x: np.tile(sigma, (len(x), 1, 1)),
        discount=RATE,
    )
    middle = math.log(STRIKE)
    box = [(middle - 3.0, middle + 3.0), (middle - 4.5, middle + 4.5)]
    points = np.log([[36.0, 36.0], [30.0, 45.0], [50.0, 40.0]])
    shared = points.mean(axis=1)
    exact = -(STRIKE - math.exp(edge)) * np.exp(-gamma * (shared - edge))
    found = free_boundary(problem, box=box, nodes=129)
    np.testing.assert_allclose(found.at(points), exact, rtol=1e-3)
    with pytest.raises(InputError, match=r"no monotone scheme .* ratio is near 0\.2 : 0\.3"):
        free_boundary(problem, box=[(3.0, 4.0), (1.0, 6.0)], nodes=33)


def _walk(start: np.ndarray, dates: np.ndarray, seed: int) -> Trace:
    """Exact paths of dX = -X dt + 0.5 dW at equal dates, stopped at loss x² / 2."""
    random, step = np.random.default_rng(seed), dates[1]
    keep, spread = math.exp(-step), 0.5 * math.sqrt((1 - math.exp(-2 * step)) / 2)
    x = np.empty((len(start), len(dates)))
    x[:, 0] = start
    for k in range(1, len(dates)):
        x[:, k] = keep * x[:, k - 1] + spread * random.normal(size=len(start))
    return Trace(x**2 / 2, np.stack([x, np.abs(x)], axis=2), Costs.of(dates), ("x", "size"))


def test_ornstein_uhlenbeck_agrees_with_the_trace_solver_on_simulated_paths() -> None:
    """Both have 21 dates in two units of time, so both solve the same problem. The solved rule attains the grid's
    value, and the grid's boundary, used as a rule on the same paths, is worth the same."""
    price, known = 0.25, ornstein_uhlenbeck(horizon=2.0, dates=21)
    dates = np.asarray(known.problem.dates)
    found = free_boundary(known.problem, box=known.box, nodes=801, steps=400)
    start = np.random.default_rng(0).uniform(-2, 2, (2, 8_000))
    fit, test = _walk(start[0], dates, seed=1), _walk(start[1], dates, seed=2)
    cuts = torch.tensor([edges(found, date)[1] for date in dates[:-1]])
    drawn = evaluate(Threshold(Origin.of(fit, price), "size", cuts, below=True), test)
    solved = evaluate(snell(fit, price=price, features=["x"]), test)
    exact = found.at(test.observations[:, 0, 0]).mean()
    for result in (drawn, solved):
        assert result.value(price) == pytest.approx(exact, abs=3 * result.value_error(price))
    lead = (solved.losses - drawn.losses) + price * (solved.costs - drawn.costs)
    assert -3 * lead.std() / math.sqrt(len(test)) <= lead.mean() < 0.01 * exact


def test_ornstein_uhlenbeck_without_end_agrees_with_the_stationary_solver() -> None:
    """The trace may stop at dates 0.05 apart, for ever; the grid, too, with an end far away; or at any time."""
    price, start = 0.25, np.random.default_rng(0).uniform(-2, 2, 20_000)
    fit = _walk(start, np.arange(6) * 0.05, seed=1)
    rule = stationary(replace(fit, observations=fit.columns(["x"]), features=("x",)), price=price).rule
    known = ornstein_uhlenbeck(price, horizon=8.0, dates=161)
    found = free_boundary(known.problem, box=known.box, nodes=401, steps=480)
    x = np.linspace(-1.8, 1.8, 37)
    traced = rule.value(torch.tensor(x[:, None], dtype=torch.float32)).numpy()
    np.testing.assert_allclose(traced, found.at(x), atol=0.02)
    endless = ornstein_uhlenbeck(price)
    free = free_boundary(endless.problem, box=endless.box, nodes=401)
    assert (free.at(x) <= found.at(x) + 1e-4).all()
    np.testing.assert_allclose(free.at(x), found.at(x), atol=0.01)


@pytest.mark.parametrize("name", EXAMPLES)
def test_simulated_paths_that_stop_at_the_boundary_cost_the_value(name: str) -> None:
    known = example(name)
    found = free_boundary(known.problem, box=known.box, nodes=known.nodes)
    paths = sample_paths(found, known.start, samples=4_000, seed=0, steps=400, until=known.until)
    error = paths.losses.std() / math.sqrt(4_000)
    assert paths.losses.mean() == pytest.approx(found.at([known.start])[0], abs=3 * error + 0.003)
    assert "mean loss" in str(paths)


@pytest.mark.parametrize("dates", [None, np.arange(1, 6) / 5])
def test_the_inequality_holds_and_the_value_rises_with_the_price(dates: np.ndarray | None) -> None:
    def solve(price: float) -> Solution:
        problem = StoppingProblem(
            lambda t, x: np.cos(3 * x[:, 0]) + t * x[:, 0],
            drift=lambda t, x: np.sin(x) - t,
            diffusion=lambda t, x: 0.3 + 0.1 * x**2,
            price=price,
            discount=0.1,
            horizon=1.0,
            dates=dates,
        )
        return free_boundary(problem, box=[(-2.0, 2.0)], nodes=201, steps=60)

    cheap, dear = solve(0.1), solve(0.4)
    assert (cheap.value <= dear.value + 1e-12).all()
    assert cheap.residual < 1e-10
    for at, time in enumerate(cheap.times):
        loss = cheap.problem.loss(time, cheap.grid.points)
        if dates is None or np.isin(time, [*dates, 1.0]):
            assert (cheap.value[at] <= loss + 1e-12).all()
            assert cheap.value[at][cheap.stop[at]] == pytest.approx(loss[cheap.stop[at]], abs=1e-12)


def test_a_solver_that_did_not_converge_has_no_value() -> None:
    known = ornstein_uhlenbeck()
    found = free_boundary(known.problem, box=known.box, nodes=401, most=1)
    assert found.status == "not converged"
    assert str(found).startswith("not converged on 401 nodes, ")
    for ask in (lambda: found.value, lambda: found.at([[0.0]]), found.boundary, lambda: draw(found)):
        with pytest.raises(InputError, match="there is no value; allow more iterations"):
            ask()
    known = american_put()
    march = free_boundary(known.problem, box=known.box, nodes=201, most=1)
    assert march.status == "not converged"
    with pytest.raises(InputError, match="there is no value"):
        sample_paths(march, [3.6], samples=2, seed=0)


GRID = {"box": [(-1.0, 1.0)], "nodes": 9}
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "start": (
        lambda: free_boundary(deterministic_flow().problem, box=[(-3, 3)], nodes=51).at([[5.0]]),
        r"the grid on \[-3, 3\] does not hold \[5\.\]; solve again on a larger box",
    ),
    "paths": (
        lambda: sample_paths(_solved(), [4.0], samples=2, seed=0, until=1.0),
        "does not hold",
    ),
    "points of another dimension": (lambda: _solved().at([[1.0, 2.0]]), r"points of shape \(1, 2\); give \(m, 1\)"),
    "start of another dimension": (
        lambda: sample_paths(_solved(), [1.0, 2.0], samples=2, seed=0, until=1.0),
        r"start \[1\.0, 2\.0\]: give 1, a coordinate for each axis",
    ),
    "free waiting": (
        lambda: free_boundary(deterministic_flow(price=0.0).problem, box=[(-3, 3)], nodes=51),
        "price is 0 and discount 0 .* infinite: where waiting costs nothing it may never end",
    ),
    "time in an endless problem": (
        lambda: free_boundary(StoppingProblem(lambda t, x: x[:, 0] + t, price=1.0), box=[(0, 1)], nodes=9),
        "loss depends on the time, and the horizon is infinite",
    ),
    "shape": (
        lambda: free_boundary(StoppingProblem(lambda t, x: x, price=1.0), box=[(0, 1)], nodes=9),
        r"loss gives shape \(9, 1\) for states of shape \(9, 1\); it must give \(9,\)",
    ),
    "nan": (
        lambda: free_boundary(StoppingProblem(lambda t, x: x[:, 0] * math.nan, price=1.0), box=[(0, 1)], nodes=9),
        r"loss is not finite at time 0, state \(0\)",
    ),
    "discount": (
        lambda: free_boundary(StoppingProblem(lambda t, x: x[:, 0], discount=-1.0), box=[(0, 1)], nodes=9),
        "discount is -1",
    ),
    "box": (
        lambda: free_boundary(deterministic_flow().problem, box=[(1, -1)], nodes=51),
        r"box side \(1, -1\) must be finite with low < high",
    ),
    "three dimensions": (lambda: free_boundary(deterministic_flow().problem, box=[(0, 1)] * 3, nodes=9), "1 or 2"),
    "nodes": (lambda: free_boundary(deterministic_flow().problem, box=[(0, 1)], nodes=2), "at least 5"),
    "horizon": (lambda: StoppingProblem(lambda t, x: x[:, 0], horizon=0.0), "horizon is 0"),
    "dates": (lambda: StoppingProblem(lambda t, x: x[:, 0], horizon=1.0, dates=[0.5, 2.0]), "not within"),
    "no end": (lambda: sample_paths(_solved(), [1.0], samples=2, seed=0), "until is inf; give a finite time"),
    "time": (lambda: free_boundary(american_put().problem, box=[(2, 5)], nodes=21, steps=4).at([[3.0]], 7.0), "time 7"),
    "negative price": (lambda: example("deterministic-flow", -1.0), "price is -1; it must be >= 0"),
    "price of a put": (lambda: example("american-put", 0.1), "american-put has no price to set"),
    "infinite price": (lambda: free_boundary(example("ornstein-uhlenbeck", math.inf).problem, **GRID), "price is inf"),
    "name": (lambda: example("chess"), "no problem 'chess'; choose from deterministic-flow"),
}


def _solved() -> Solution:
    return free_boundary(deterministic_flow().problem, box=[(-3, 3)], nodes=51)


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_says_what_to_do(case: str) -> None:
    ask, message = BAD[case]
    with pytest.raises(InputError, match=message):
        ask()
