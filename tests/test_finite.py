"""The depth is finite: the bounds hold where their assumptions do, and say so where they do not."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.finite import expected_depth_bound, finite_depth
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.stopping.snell import snell
from optdepth.trace import Trace

EXITS, HORIZON = 12, 100
"""What is recorded of a residual net, and how far it really runs."""


class Table(Rule):
    """Stops in the states marked, (K, S), of a chain whose state is the one feature seen."""

    def __init__(self, origin: Origin, table: Tensor) -> None:
        super().__init__(origin, ("state",))
        self._table = table

    def stop(self, k: int, observation: Tensor) -> Tensor:
        return self._table[k][observation[:, 0].long()]

    def arguments(self) -> dict[str, Any]:
        return {"table": self._table}


def chain(random: np.random.Generator, samples: int, price: float) -> tuple[Trace, Table]:
    """A random Markov chain, losses in [0, 1], random step costs; and its optimal rule by dynamic programming."""
    states, steps = int(random.integers(2, 8)), int(random.integers(2, 15))
    transition, loss = random.dirichlet(np.full(states, 0.3), states), random.random(states)
    costs = Costs.of(np.cumsum(random.uniform(0.1, 1.0, steps)))
    state = np.empty((samples, steps), dtype=int)
    state[:, 0] = random.integers(0, states, samples)
    for k in range(1, steps):
        passed = random.random(samples)[:, None] > np.cumsum(transition, axis=1)[state[:, k - 1]]
        state[:, k] = np.minimum(passed.sum(axis=1), states - 1)
    trace = Trace(loss[state], state[:, :, None], costs, ("state",))
    value, table = loss + price * costs.reach[-1], np.ones((steps, states), dtype=bool)
    for k in reversed(range(steps - 1)):
        now, ahead = loss + price * costs.reach[k], transition @ value
        table[k], value = now <= ahead, np.minimum(now, ahead)
    return trace, Table(Origin(costs, price=price), torch.from_numpy(table))


def residual_net(
    random: np.random.Generator, law: np.ndarray, samples: int = 60
) -> tuple[np.ndarray, np.ndarray, float]:
    """Cross-entropies and residual norms, (N, HORIZON) each, of a residual net with one linear head; the head's norm.

    Residuals point where they help, more or less, and their sizes are at most the law's.
    """
    width, classes = 6, 4
    head, labels = random.normal(size=(classes, width)), random.integers(0, classes, samples)
    state = random.normal(size=(samples, width))
    losses, sizes = [], []
    scale = random.uniform(0.3, 1.0, samples)
    for k in range(HORIZON):
        direction = head[labels] - head.mean(axis=0) + random.normal(0, 1.0, (samples, width))
        size = scale * random.uniform(0.9, 1.0, samples) * law[k]
        state = state + size[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        logits = state @ head.T
        losses.append(logsumexp(logits, axis=1) - logits[np.arange(samples), labels])
        sizes.append(size)
    return np.stack(losses, axis=1), np.stack(sizes, axis=1), float(np.linalg.norm(head, 2))


def recorded(losses: np.ndarray, residual: np.ndarray | None = None) -> Trace:
    """The first exits of a net at cost 1 a stage, seeing the loss itself and, if given, the feature `residual`."""
    columns = [losses] if residual is None else [losses, residual]
    seen = np.stack([column[:, :EXITS] for column in columns], axis=2)
    features = ("loss", "residual")[: len(columns)]
    return Trace(losses[:, :EXITS], seen, Costs.of(np.arange(1, EXITS + 1)), features)


@pytest.mark.parametrize("name", ["geometric", "power"])
def test_no_sample_is_worth_running_beyond_the_bound_from_weights(name: str) -> None:
    """150 random nets a law: the deepest of all hindsight optima, far beyond what was recorded, keeps within (C)."""
    depths, slack, applies = np.arange(1, HORIZON + 1), [], 0
    for seed in range(150):
        random = np.random.default_rng(seed)
        rate = random.uniform(0.5, 0.95) if name == "geometric" else random.uniform(1.0, 3.0)
        amplitude = 10 ** random.uniform(-1, 1)
        losses, sizes, norm = residual_net(random, amplitude * (rate**depths if name == "geometric" else depths**-rate))
        price = float(10 ** random.uniform(-3, 0))
        trace = recorded(losses)
        rule = FixedDepth(Origin(trace.costs), 0)
        bound = finite_depth(
            trace, rule, price=price, residuals=sizes[:, :EXITS], head_norm=norm, shared_head=True
        ).residual
        if bound.exit is None:
            continue
        assert bound.decay is not None
        assert bound.decay.law is not None
        applies += bound.decay.law.name == name
        truth = (losses + price * depths).argmin(axis=1).max()
        slack.append(bound.exit - truth)
    assert applies >= 140
    assert min(slack) >= 0


def test_no_sample_is_worth_running_beyond_the_estimated_diminishing_returns() -> None:
    """200 problems with E[L_k - L_k+1 | s] = s a rho^k under noise: the true last worthwhile exit keeps within (B)."""
    below, informative = 0, 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        rho, a, noise = random.uniform(0.4, 0.9), random.uniform(0.2, 1.0), random.choice([0.0, 0.05, 0.3])
        s = random.random((1_000, 1))
        mean = s * a * rho ** np.arange(EXITS) / (1 - rho)
        losses = 10 + mean + noise * random.normal(size=(1_000, EXITS))
        trace = Trace(losses, np.repeat(s[:, None], EXITS, axis=1), Costs.of(np.arange(1, EXITS + 1)))
        price = float(10 ** random.uniform(-2, 0))
        found = finite_depth(trace, FixedDepth(Origin(trace.costs), 0), price=price).diminishing
        truth = (mean + price * np.arange(EXITS)).argmin(axis=1).max()
        below += found.exit < truth
        informative += found.informative
    assert below == 0  # 8 without the upper limit on the fitted gains
    assert informative >= 100


def test_the_optimal_rule_costs_no_more_than_the_bound_of_no_assumption() -> None:
    news = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        price = float(10 ** random.uniform(-2, 1))
        trace, rule = chain(random, 400, price)
        bound = expected_depth_bound(trace, evaluate(rule, trace), price=price)
        assert bound.kept
        news += bound.upper < bound.whole
    assert news >= 50


def test_a_rule_worse_than_stopping_at_once_is_told() -> None:
    losses = np.random.default_rng(0).uniform(0, 1, (500, EXITS))
    trace = recorded(losses)
    found = finite_depth(trace, FixedDepth(Origin(trace.costs), EXITS - 1), price=0.5)
    assert not found.expected.kept
    assert "stopping at once would be better" in str(found)


def test_the_solved_rule_is_held_against_the_bounds() -> None:
    depths = np.arange(1, HORIZON + 1)
    losses, sizes, norm = residual_net(np.random.default_rng(0), 2.0 * 0.6**depths, samples=4_000)
    fit, test = recorded(losses).split(0.5, 0.5, seed=0)
    given = {"residuals": sizes[test.rows, :EXITS], "head_norm": norm, "shared_head": True}
    solved = finite_depth(test, snell(fit, price=0.05), price=0.05, **given)
    assert solved.bound is not None
    assert solved.deepest <= solved.bound
    assert f"deepest exit is {solved.deepest} of 0 to 11, within the limit, exit {solved.bound}" in str(solved)
    assert "decay by a geometric law" in str(solved)
    too_deep = finite_depth(test, FixedDepth(Origin(test.costs), 11), price=0.05, **given)
    assert "for 100.0% of the samples: more than is worth it" in str(too_deep)


def test_assumptions_that_are_not_met_are_told() -> None:
    depths = np.arange(1, HORIZON + 1)
    losses, sizes, norm = residual_net(np.random.default_rng(0), 2.0 * 0.6**depths)
    trace, given = recorded(losses), {"residuals": sizes[:, :EXITS], "head_norm": norm, "shared_head": True}
    rule = FixedDepth(Origin(trace.costs), 0)

    def told(trace: Trace = trace, **changed: Any) -> str:
        found = finite_depth(trace, rule, price=0.05, **{**given, **changed}).residual
        assert found.exit is None
        return str(found)

    assert finite_depth(trace, rule, price=0.05, **given).residual.exit is not None
    assert "each exit has a head of its own" in told(shared_head=False)
    assert "give head_norm=" in told(head_norm=None)
    assert "no residual sizes" in told(residuals=None)
    assert "give residuals=" in told(recorded(losses, sizes), residuals=None)
    assert "the losses are 0-1" in told(recorded((losses > 1).astype(float)))
    assert "change the loss by more than one head of this norm can" in told(head_norm=norm / 100)
    assert "neither law holds" in told(residuals=np.random.default_rng(0).uniform(2, 3, (60, EXITS)))
    free = Trace(trace.losses, trace.observations, Costs.of(np.ones(EXITS)))
    assert "a step costs nothing" in told(free)
    reshaped = sizes.copy()
    reshaped[:, 9] = 1.0
    assert "fewer than four depths of one shape" in told(recorded(losses, reshaped))


def test_the_law_is_of_the_exits_behind_the_last_change_of_shape() -> None:
    depths = np.arange(1, HORIZON + 1)
    losses, sizes, norm = residual_net(np.random.default_rng(0), 2.0 * 0.6**depths)
    relative = sizes.copy()
    relative[:, [0, 4]] = 1.0
    trace = recorded(losses, relative)
    found = finite_depth(
        trace,
        FixedDepth(Origin(trace.costs), 0),
        price=0.05,
        residuals=sizes[:, :EXITS],
        head_norm=norm,
        shared_head=True,
    ).residual
    assert found.decay is not None
    assert found.decay.depths.tolist() == list(range(6, 13))
    assert found.exit is not None
    assert found.exit >= 5
    assert "last changes its shape before exit 4" in str(found)


def test_bad_input_says_what_to_do() -> None:
    trace = recorded(np.random.default_rng(0).uniform(0, 1, (100, EXITS)))
    rule = FixedDepth(Origin(trace.costs), 0)
    with pytest.raises(InputError, match=r"price is 0; .* give a price > 0"):
        finite_depth(trace, rule, price=0.0)
    with pytest.raises(InputError, match=r"solved at price 0\.2, the bounds are asked for at 0\.1"):
        finite_depth(trace, FixedDepth(Origin(trace.costs, price=0.2), 0), price=0.1)
    rewards = Trace(-trace.losses, trace.observations, trace.costs)
    with pytest.raises(InputError, match="is below the least loss, 0; give least_loss="):
        finite_depth(rewards, rule, price=0.1)
    assert finite_depth(rewards, rule, price=0.1, least_loss=-1.0).expected.kept
    with pytest.raises(InputError, match=r"residuals must be \(N, K\) = \(100, 12\); got shape \(100, 3\)"):
        finite_depth(trace, rule, price=0.1, residuals=np.ones((100, 3)))
    with pytest.raises(InputError, match="head_norm is -1"):
        finite_depth(trace, rule, price=0.1, residuals=np.ones((100, EXITS)), head_norm=-1.0)
