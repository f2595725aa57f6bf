"""Residual networks with step h, h -> 0: h times the optimal depth tends to the continuous stopping time."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optdepth.continuous.crossing import crossed
from optdepth.continuous.obstacle import free_boundary
from optdepth.continuous.problems import deterministic_flow
from optdepth.exit_costs import Costs
from optdepth.networks import StagedNetwork
from optdepth.networks.ode import flow_network, flow_pieces, neural_ode, regridded
from optdepth.stopping.baselines import tuned
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.snell import snell
from optdepth.trace import Trace

RATE, PRICE, HORIZON = 1.0, 0.25, 2.4
STEPS = (0.4, 0.2, 0.1, 0.05, 0.025)


class Decay(nn.Module):
    """x' = -a x."""

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return -RATE * state


def residual_network(step: float) -> StagedNetwork:
    """x_k+1 = x_k + h f(x_k), an exit before every block and after the last."""
    intervals = round(HORIZON / step)
    return flow_network(nn.Identity(), Decay(), nn.Identity(), horizon=HORIZON, intervals=intervals, method="euler")


def recorded(step: float, samples: int, seed: int) -> Trace:
    """What the network's states meet: loss x² / 2 at each exit, h for each block."""
    start = torch.from_numpy(np.random.default_rng(seed).uniform(-3, 3, (samples, 1)))
    with torch.no_grad():
        states = torch.stack(residual_network(step)(start), dim=1).squeeze(2).numpy()
    times = step * np.arange(states.shape[1])
    seen = np.stack([states, np.abs(states)], axis=2)
    return Trace(states**2 / 2, seen, Costs.of(times), ("x", "size"))


def continuous_times(start: np.ndarray) -> np.ndarray:
    edge = np.sqrt(PRICE / RATE)
    return np.log(np.maximum(np.abs(start) / edge, 1.0)) / RATE


def order(errors: list[float]) -> float:
    return float(-np.polyfit(np.log2(1 / np.array(STEPS[: len(errors)])), np.log2(errors), 1)[0])


def test_h_times_the_optimal_depth_tends_to_the_stopping_time_at_first_order() -> None:
    """The discrete problem is solved on a trace, by the best threshold on |x|: in a flow of one dimension there is no
    better rule. Its boundary is (2 c / (a (2 - a h)))^½ -> (c / a)^½."""
    errors = []
    for step in STEPS:
        fit, test = recorded(step, 20_000, seed=1), recorded(step, 5_000, seed=2)
        rule = tuned(fit, "size", below=True, price=PRICE)
        assert float(rule.thresholds[0]) == pytest.approx(np.sqrt(2 * PRICE / (RATE * (2 - RATE * step))), abs=0.02)
        depths = step * rule.stopped_at(test)
        errors.append(float(np.abs(depths - continuous_times(test.observations[:, 0, 0])).mean()))
        assert errors[-1] < step
    assert order(errors) == pytest.approx(1.0, abs=0.15)


def test_the_solver_of_networks_finds_no_better_rule_and_nearly_that_one() -> None:
    fit, test = recorded(0.2, 8_000, seed=1), recorded(0.2, 8_000, seed=2)
    best = evaluate(tuned(fit, "size", below=True, price=PRICE), test)
    solved = evaluate(snell(fit, price=PRICE, features=["x"]), test)
    assert best.value(PRICE) <= solved.value(PRICE) + 1e-4
    assert solved.value(PRICE) == pytest.approx(best.value(PRICE), rel=0.02)


def test_the_grid_the_flow_and_the_network_agree_on_value_and_time() -> None:
    """Three solutions of one problem: finite differences, a path that meets the boundary, a residual network."""
    known = deterministic_flow(PRICE, rate=RATE)
    solution = free_boundary(known.problem, box=known.box, nodes=1601)
    edge = float(solution.boundary()[1][0, 0])
    start = torch.linspace(0.6, 2.9, 24, dtype=torch.float64)[:, None]
    pieces = flow_pieces(
        flow_network(nn.Identity(), Decay(), nn.Identity(), horizon=HORIZON, intervals=24, method="rk4")
    )
    with torch.no_grad():
        found = crossed(pieces, start, lambda k, share, state: state.abs().squeeze(1) - edge)
    paid = found.state.squeeze(1).numpy() ** 2 / 2 + PRICE * found.time.numpy()
    np.testing.assert_allclose(paid, solution.at(start.numpy()), atol=2e-3)
    np.testing.assert_allclose(found.time.numpy(), continuous_times(start.numpy().ravel()), atol=3e-3)


def test_on_images_the_depth_of_residual_networks_tends_to_the_time_of_the_flow() -> None:
    """One field with random weights, one boundary: Euler steps of size h against a fine grid of fourth order."""
    base = neural_ode(8, classes=4, channels=1, width=6, horizon=2.0, seed=3).double().eval()
    images = torch.randn(400, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        start = base.start(images)
        end = base.advance(start, 1)
        for k in range(2, 9):
            end = base.advance(end, k)
        along = (end - start).mean(0)  # where the flow goes, on average: paths cross the plane half way there
        level = float((along * (start + end) / 2).flatten(1).sum(1).mean())
        score = lambda k, share, state: level - (along * state).flatten(1).sum(1)  # noqa: E731
        times = {}
        for intervals, method in ((8, "euler"), (16, "euler"), (32, "euler"), (64, "euler"), (64, "rk4")):
            found = crossed(flow_pieces(regridded(base, intervals, method=method)), start, score)
            depth = (found.interval + 1).clamp(max=intervals)
            times[intervals, method] = found.time if method == "rk4" else 2.0 * depth / intervals
    exact = times[64, "rk4"]
    assert ((exact > 0) & (exact < 2)).double().mean() > 0.5
    errors = [float((times[n, "euler"] - exact).abs().mean()) for n in (8, 16, 32, 64)]
    assert -np.polyfit(np.log2([8, 16, 32, 64]), np.log2(errors), 1)[0] == pytest.approx(1.0, abs=0.15)
    assert errors[-1] < 2.0 / 64
