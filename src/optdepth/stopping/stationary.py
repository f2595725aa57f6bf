"""Infinite horizon: a weight-tied block that could run for ever, one rule for all its steps (theory, section 5).

The value U of a state is the fixed point of U = min(E[L | s], price c + E[U' | s]), with c the cost of a step and U'
the value one step on. Written with the gain of going on, g = E[L | s] - (price c + E[U' | s]), it is

    g = E[L - L' | s] - price c + E[max(g', 0) | s],    U = E[L | s] - max(g, 0),

so that one regression is iterated, and, as in `snell`, it is of an advantage. Iteration n is the problem with n + 1
steps left. Fitted value iteration as in Gordon (1995) and Tsitsiklis & Van Roy (1999), on the pairs (s_k, s_k+1) of
all trajectories and all k. The price of a step makes the problem proper: not to stop costs without end. A
least-squares fit may still undo that, hence the status.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from ..errors import InputError
from ..exit_costs import Costs
from ..threads import light
from ..trace import Trace
from .posterior import expected_losses
from .regression import Function, Ramps, restored
from .rule import Origin, Rule

Array = np.ndarray

_RAMPS = 64
"""Ramps in all, shared out among the features; each has at least 8 and at most 32."""
_PAIRS = 100_000
"""Pairs that are fitted on; more of them make the fit slower, and hardly better."""
_RIDGE = 1e-6
"""Just enough to solve where columns of the basis coincide: a larger one would pile up over the iterations."""
_TOLERANCE, _ITERATIONS = 1e-6, 2_000


class Stationary(Rule):
    """Stops where the fitted gain of going on is not positive, the same function at every step.

    It has no greatest depth but `limit`, which the price sets. `origin.costs` are of the steps at hand; `over` gives
    the rule for more of them, or fewer.

    Args:
        gain: fitted E[L | s] - (price c + E[U' | s]).
        loss: fitted E[L | s].
        spread: largest less least loss, sup L - inf L, recorded.

    Attributes:
        limit: steps after which the rule stops whatever it sees: bound (A) of theory section 5, at its worst. What the
            optimum still spends from a state on is (E[L | s] - inf L) / price on average, or less. A sample that has
            spent (sup L - inf L) / price since the first exit has paid as much as any answer could gain it.
    """

    def __init__(self, origin: Origin, features: Sequence[str], gain: Function, loss: Function, spread: float) -> None:
        super().__init__(origin, features)
        if origin.price is None:
            raise InputError("a stationary rule is of a price, which sets its limit; its origin has none")
        if not 0 <= spread < math.inf:
            raise InputError(f"spread is {spread}; it is the largest less the least loss: finite and >= 0")
        for fitted in (gain, loss):
            fitted.check(self.features)
        self.gain, self.loss, self.spread = gain, loss, spread
        self.limit = 1 + math.ceil(spread / (origin.price * step_cost(origin.costs)))

    @property
    def last(self) -> int:
        return min(self.limit, len(self.origin.costs)) - 1

    def stop(self, k: int, observation: Float[Tensor, "n F"]) -> Bool[Tensor, " n"]:
        return self.gain(observation) <= 0

    def decide(self, k: int, observation: Sequence[float]) -> bool:
        return self.gain.at(observation) <= 0

    def score(self, k: int, observation: Float[Tensor, "n F"]) -> Float[Tensor, " n"]:
        return self.gain(observation)

    def value(self, observation: Float[Tensor, "n F"]) -> Float[Tensor, " n"]:
        """U: the least mean of the loss and price x cost still to come, (n,), in units of loss."""
        return self.loss(observation) - self.gain(observation).clamp(min=0)

    def over(self, costs: Costs, network: str | None = None) -> Stationary:
        """The same rule for another number of steps, each at the cost that it was solved for.

        Args:
            costs: `trace.costs` of the trace, or of the network, to run it on.
            network: fingerprint of the solved network unrolled to so many steps, where there is a network.
        """
        solved, given = step_cost(self.origin.costs), step_cost(costs)
        if not np.isclose(given, solved):
            raise InputError(f"a step costs {given:g} here, the rule was solved for {solved:g}; solve it again")
        origin = replace(self.origin, costs=costs, network=self.origin.network if network is None else network)
        return Stationary(origin, self.features, self.gain, self.loss, self.spread)

    def check(self, network: str, n_exits: int) -> None:
        if n_exits != len(self.origin.costs):
            raise InputError(
                f"the rule is set to {len(self.origin.costs)} steps, but here are {n_exits}; "
                "rule.over(trace.costs) is the same rule for those"
            )
        super().check(network, n_exits)

    def arguments(self) -> dict[str, Any]:
        parts = {"gain": self.gain, "loss": self.loss}
        tensors = {f"{p}.{name}": value for p, part in parts.items() for name, value in part.arguments().items()}
        return {"features": list(self.features), "spread": self.spread, **tensors}

    @classmethod
    def restore(cls, origin: Origin, arguments: dict[str, Any]) -> Self:
        gain, loss = (restored("Additive", f"{part}.", arguments) for part in ("gain", "loss"))
        return cls(origin, arguments["features"], gain, loss, arguments["spread"])


@dataclass(frozen=True, eq=False)
class StationarySolution:
    """How the search for the fixed point ended.

    Attributes:
        status: whether there is a rule.
        iterations: how often the gain was fitted.
        residual: the largest change of a recorded state's gain in the last of them, in units of loss.
        price: that of one unit of cost.
    """

    status: Literal["converged", "not converged", "diverged"]
    iterations: int
    residual: float
    price: float
    _rule: Stationary

    @property
    def rule(self) -> Stationary:
        """The solved rule.

        Raises:
            InputError: the iteration did not converge, so there is none.
        """
        if self.status != "converged":
            raise InputError(str(self))
        return self._rule

    def __str__(self) -> str:
        counted = f"at price {self.price:g}, after {self.iterations:,} iterations of fitted value iteration"
        match self.status:
            case "converged":
                return f"{counted}, the gain of going on no longer moves (last change {self.residual:.1g})"
            case "not converged":
                return (
                    f"{counted}, the gain of going on still moves by {self.residual:.1g} in each: no rule; "
                    "a higher price settles sooner"
                )
            case "diverged":
                return (
                    f"{counted}, the gain of going on exceeds what the recorded losses allow: no rule; the losses "
                    "still fall by more than the price where the trajectories end, or the observations do not show "
                    "how far along they are: record more steps, or raise the price"
                )


@light
def stationary(
    trace: Trace, *, price: float, features: Sequence[str] | None = None, seed: int = 0
) -> StationarySolution:
    """Solves the stopping problem of a block that may run for ever, from trajectories of K of its steps.

    Args:
        trace: the fit split: K exits of one weight-tied block, run to the end on every sample. A step may cost each
            sample its own, as long as each of a sample's steps costs it the same.
        price: loss that one unit of cost is worth, > 0.
        features: observations to decide on. If none are named, those that cross-validation on the trace chooses: at low
            prices few do better than many, for what a fit gets wrong in a state that has come to rest, by more than
            the price of a step, it gets wrong at every step. A sample that would go on at the end of the trace counts
            there as one that never stops, so record steps enough for the states to come to rest.
        seed: of the folds, and of the pairs chosen where there are more than 100,000.

    Raises:
        InputError: steps that cost nothing or not the same, samples that end by themselves, a price that is not
            positive, or too few pairs.

    Example:
        >>> steps = 0.5 ** np.arange(12) * np.random.default_rng(0).uniform(0.5, 1.5, (500, 1))
        >>> walk = od.Trace(steps, steps[:, :, None], od.Costs.of(np.arange(1.0, 13.0)))
        >>> od.stationary(walk, price=0.05).status
        'converged'
    """
    if trace.costs.horizon is not None:
        raise InputError("the samples end by themselves, and this is for a block that may run for ever: use snell")
    step = step_costs(trace.costs)
    if not (np.isfinite(price) and price > 0 and step.min() > 0):
        raise InputError(
            f"price is {price:g} and a step costs {step.min():g}: where going on costs nothing it is never wrong, and "
            "no fixed point is singled out; both must be finite and > 0"
        )
    names = tuple(features) if features else _chosen(trace, price, seed)
    return _solved(trace, names, price, seed)


def _chosen(trace: Trace, price: float, seed: int) -> tuple[str, ...]:
    """Forward selection: the feature that lowers the held-out value most is added, as long as one does."""
    if len(trace.features) == 1:
        return trace.features
    half = np.random.default_rng(seed).permutation(len(trace)) % 2 == 0
    halves = trace.select(np.flatnonzero(half)), trace.select(np.flatnonzero(~half))
    chosen: tuple[str, ...] = ()
    best = np.inf
    while more := [(*chosen, name) for name in trace.features if name not in chosen]:
        values = {names: _held_out(halves, names, price, seed) for names in more}
        names = min(values, key=values.__getitem__)
        if values[names] >= best:
            break
        chosen, best = names, values[names]
    return chosen or trace.features


def _held_out(halves: tuple[Trace, Trace], features: Sequence[str], price: float, seed: int) -> float:
    """Mean of loss + price x cost of each half under the rule of the other; infinite where one has no rule."""
    values = []
    for fit, judge in (halves, halves[::-1]):
        found = _solved(fit, features, price, seed)
        if found.status != "converged":
            return np.inf
        rule, last = found.rule, torch.from_numpy(judge.columns(features)[:, -1])
        stopped_at = rule.stopped_at(judge)
        cost = judge.costs.at(stopped_at)
        goes_on = (stopped_at == judge.n_exits - 1) & ~rule.stop(judge.n_exits - 1, last).numpy()
        cost += goes_on * step_costs(judge.costs) * max(0, rule.limit - judge.n_exits)
        values.append(judge.losses[np.arange(len(judge)), stopped_at] + price * cost)
    return float(np.concatenate(values).mean())


def _solved(trace: Trace, names: Sequence[str], price: float, seed: int) -> StationarySolution:
    """Fitted value iteration on the features named."""
    here, there, before, after, step = _pairs(trace, names, np.random.default_rng(seed))
    ramps = Ramps.of(np.concatenate([here, there]), min(32, max(8, _RAMPS // len(names))))
    basis, ahead = (ramps(torch.from_numpy(states).double()).numpy() for states in (here, there))
    if len(basis) < 5 * basis.shape[1]:
        raise InputError(
            f"{len(basis)} pairs of states for {basis.shape[1]} coefficients; record at least "
            f"{5 * basis.shape[1]}: more samples or more steps"
        )
    gram = basis.T @ basis
    status, weights, iterations, residual = _iterate(
        basis, ahead, gram, before - after - price * step, float(np.ptp(np.append(before, after)))
    )
    loss = _Ridge(gram + ahead.T @ ahead).solve(basis.T @ before + ahead.T @ after)
    parts = ramps.function(weights), ramps.function(loss)
    rule = Stationary(Origin.of(trace, price), names, *parts, float(np.ptp(trace.losses)))
    return StationarySolution(status, iterations, residual, price, rule)


def step_cost(costs: Costs) -> float:
    """What one more step costs a sample on average, as `step_costs`."""
    return float(step_costs(costs.mean()))


def step_costs(costs: Costs) -> Float[Array, "*N"]:
    """What one more step costs each sample, its look included, (N,) or one number; an error where its steps differ."""
    steps = np.diff(costs.paid(), axis=-1)
    unlike = ~np.isclose(steps, steps[..., :1], rtol=1e-6, atol=0)
    if unlike.any():
        far = np.abs(steps - steps[..., :1])
        *row, k = np.unravel_index(int(far.argmax()), far.shape)
        own = steps[tuple(row)]
        raise InputError(
            f"the step to exit 1 costs {own[0]:g}, that to exit {k + 1} {own[k]:g}; one rule for all steps needs "
            "equal ones: Costs.of(cost * np.arange(1, K + 1)) for a block run K times"
        )
    return steps[..., 0]


def with_steps(costs: Costs, steps: int) -> Costs:
    """The costs of a looped block run `steps` times, from those of it run fewer times or more: a step costs the same.

    Raises:
        InputError: fewer than two steps to go by, none wanted, or steps that cost unlike.
    """
    if len(costs) < 2 or steps < 1:
        raise InputError(f"{steps} steps from the costs of {len(costs)}: give at least one, and the costs of two")
    step_cost(costs)
    more = np.arange(1, max(0, steps - len(costs)) + 1)
    reach = np.concatenate([costs.reach, costs.reach[-1] + (costs.reach[-1] - costs.reach[-2]) * more])
    look, answer = (np.pad(part, (0, len(more)), mode="edge") for part in (costs.look, costs.answer))
    return Costs(reach[:steps], look[:steps], answer[:steps], costs.unit)


def _pairs(
    trace: Trace, features: Sequence[str], random: np.random.Generator
) -> tuple[Array, Array, Array, Array, Array]:
    """Pooled over samples and steps: observations (M, F) before and after a step, losses (M,) before and after it, and
    what it costs (M,).
    """
    losses, seen, width = expected_losses(trace), trace.columns(features), len(features)
    pooled = (seen[:, :-1].reshape(-1, width), seen[:, 1:].reshape(-1, width))
    ends = (losses[:, :-1].ravel(), losses[:, 1:].ravel())
    each = np.broadcast_to(step_costs(trace.costs), len(trace))
    step = np.repeat(each, trace.n_exits - 1)
    if len(ends[0]) <= _PAIRS:
        return *pooled, *ends, step
    chosen = random.choice(len(ends[0]), _PAIRS, replace=False)
    return pooled[0][chosen], pooled[1][chosen], ends[0][chosen], ends[1][chosen], step[chosen]


def _iterate(
    basis: Float[Array, "M P"],
    ahead: Float[Array, "M P"],
    gram: Float[Array, "P P"],
    drop: Float[Array, " M"],
    spread: float,
) -> tuple[Literal["converged", "not converged", "diverged"], Float[Array, " P"], int, float]:
    """Iterates gain = fit of drop + max(gain one step on, 0) from the gain of a single step.

    Args:
        basis, ahead: the basis at the states before and after a step.
        drop: loss before less loss after less price of the step.
        spread: largest less least recorded loss, which no true gain exceeds.
    """
    fit = _Ridge(gram)
    fixed = basis.T @ drop
    weights = fit.solve(fixed)
    gain = ahead @ weights
    residual = np.inf
    for iteration in range(1, _ITERATIONS + 1):
        weights = fit.solve(fixed + basis.T @ np.maximum(gain, 0.0))
        previous, gain = gain, ahead @ weights
        residual = float(np.abs(gain - previous).max())
        if gain.max() > 2 * spread:  # twice: an honest fit overshoots a little
            return "diverged", weights, iteration, residual
        if residual <= _TOLERANCE * spread:
            return "converged", weights, iteration, residual
    return "not converged", weights, _ITERATIONS, residual


class _Ridge:
    """Least squares of many targets on one basis, given the Gram matrix."""

    def __init__(self, gram: Float[Array, "P P"]) -> None:
        penalty = _RIDGE * np.trace(gram) / len(gram)
        self.factor = cho_factor(gram + penalty * np.eye(len(gram)))

    def solve(self, moments: Float[Array, " P"]) -> Float[Array, " P"]:
        coefficients: Array = cho_solve(self.factor, moments)
        return coefficients
