"""Frontiers: what a method reaches over a sweep of prices, judged on samples that fitted nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ..errors import InputError
from ..threads import light
from ..trace import Trace
from .evaluate import Evaluation, evaluate
from .methods import method_of
from .rule import FixedDepth, Origin

Array = np.ndarray

_GROUPS = 20
_CONFIDENCE = 0.9


@dataclass(frozen=True, eq=False)
class Frontier:
    """One method over a sweep of prices, on a test trace. Costs are in the trace's unit.

    Between two of its points the frontier is a straight line: a coin that picks one of the two rules for each sample
    attains it.

    Attributes:
        method: display name.
        prices: (P,) prices solved at.
        evaluations: P of them, one for each price.
        full: the network without exits on the same samples.
    """

    method: str
    prices: Float[Array, " P"]
    evaluations: tuple[Evaluation, ...]
    full: Evaluation

    def curve(self) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
        """Mean costs, ascending, and the mean losses at them."""
        costs = np.array([evaluation.cost for evaluation in self.evaluations])
        losses = np.array([evaluation.loss for evaluation in self.evaluations])
        order = np.lexsort((losses, costs))
        return costs[order], losses[order]

    def cost_at(self, loss: float) -> float:
        """The least mean cost at which the mean loss is no more than `loss`; nan where it never is."""
        costs, losses = self.curve()
        reached = np.flatnonzero(losses <= loss)
        if len(reached) == 0:
            return float("nan")
        i = int(reached[0])
        if i == 0:
            return float(costs[0])
        part = (losses[i - 1] - loss) / (losses[i - 1] - losses[i])
        return float(costs[i - 1] + part * (costs[i] - costs[i - 1]))

    def saving(self, drop: float = 0.0) -> float:
        """Share of the full network's cost saved at its own loss plus `drop`; nan where that is not reached."""
        if self.full.cost <= 0:
            raise InputError("the full network costs nothing, so no share of its cost can be saved")
        return 1.0 - self.cost_at(self.full.loss + drop) / self.full.cost

    @light
    def resampled(self, grid: ArrayLike, *, resamples: int = 200, seed: int = 0) -> Float[Array, "resamples G"]:
        """Mean loss at the mean costs of `grid`, on bootstrap resamples of the test samples.

        Two frontiers on the same samples with the same seed meet the same resamples, so that their difference is
        paired. A cost that some resample does not reach, on either side, is nan in all.

        Args:
            grid: (G,) mean costs.
            resamples: how many.
            seed: of the resampling.
        """
        points = np.asarray(grid, dtype=np.float64)
        samples = len(self.full.losses)
        counts = np.random.default_rng(seed).multinomial(samples, np.full(samples, 1 / samples), size=resamples)
        weights = counts / samples
        costs = weights @ np.stack([evaluation.costs for evaluation in self.evaluations], axis=1)
        losses = weights @ np.stack([evaluation.losses for evaluation in self.evaluations], axis=1)
        order = np.argsort(costs, axis=1, kind="stable")
        costs, losses = np.take_along_axis(costs, order, 1), np.take_along_axis(losses, order, 1)
        curves = np.stack([np.interp(points, *pair) for pair in zip(costs, losses, strict=True)])
        rounding = 1e-9 * self.full.cost
        reached = (points >= costs[:, 0].max() - rounding) & (points <= costs[:, -1].min() + rounding)
        curves[:, ~reached] = np.nan
        return curves

    def band(
        self, grid: ArrayLike, *, resamples: int = 200, seed: int = 0
    ) -> tuple[Float[Array, " G"], Float[Array, " G"], Float[Array, " G"]]:
        """Mean loss at equal mean cost: the ends of its 90% bootstrap interval, and its median between them.

        Args:
            grid, resamples, seed: as in `resampled`; nan where that is nan.
        """
        tail = (1 - _CONFIDENCE) / 2
        curves = self.resampled(grid, resamples=resamples, seed=seed)
        low, middle, high = np.quantile(curves, [tail, 0.5, 1 - tail], axis=0)
        return low, middle, high


def frontier(method: str, fit: Trace, test: Trace, prices: Sequence[float] | Float[Array, " P"]) -> Frontier:
    """Solves a method at each price on one trace and judges the rules on another.

    Args:
        method: a name out of `methods.METHODS`.
        fit: the trace that fits.
        test: the trace that judges; the two share no sample.
        prices: (P,) loss that one unit of cost is worth, >= 0; `prices_for(fit)` gives a good sweep.

    Raises:
        InputError: an unknown method, no price, or samples that are in both traces.
    """
    known = method_of(method)
    if len(prices) == 0:
        raise InputError("no prices: give at least one, or prices_for(fit)")
    family = known.solve(fit)
    family.check_unseen(test)
    rules = [family.at(float(price)) for price in prices]
    return Frontier(
        method,
        np.asarray(prices, dtype=np.float64),
        tuple(evaluate(rule, test) for rule in rules),
        fixed_depths(test)[-1],
    )


def prices_for(trace: Trace, *, count: int = 20) -> Float[Array, " count"]:
    """Log-spaced prices from where cost hardly counts to where every sample stops at the first exit.

    At the lowest price the whole way from the first exit to the last is worth one standard error of the last exit's
    mean loss: less than the trace can tell apart. The highest is the one at which going on stops to pay even for the
    samples that gain most: ranked by one feature at the first exit and cut into twentieths, it is the largest mean
    gain in loss per unit of cost, over twentieths, features and deeper exits.

    Args:
        trace: the fit split.
        count: how many prices.

    Raises:
        InputError: fewer than two prices or samples, or costs that do not rise with depth.
    """
    if count < 2 or len(trace) < 2:
        raise InputError(f"{count} prices from {len(trace)} samples; a sweep needs at least two of each")
    paid = trace.costs.paid()
    rise = np.broadcast_to(paid - paid[..., :1], trace.losses.shape)
    deeper = rise.mean(axis=0) > 0
    if not deeper[-1]:
        raise InputError("the last exit costs no more than the first, so no price makes stopping early pay")
    full = fixed_depths(trace)[-1]
    # A last exit that is never wrong on the trace has no spread; one wrong answer is then what can be told apart.
    low = (full.loss_error or 1.0 / len(trace)) / rise[:, -1].mean()
    gain = (trace.losses[:, :1] - trace.losses)[:, deeper]
    best, rise = 0.0, rise[:, deeper]
    for feature in trace.observations[:, 0].T:
        groups = np.array_split(np.argsort(feature, kind="stable"), min(_GROUPS, len(trace)))
        best = max(best, *(_steepest(gain[group].mean(axis=0), rise[group].mean(axis=0)) for group in groups))
    # Where depth gains nothing, a decade of prices still shows that every rule stops at once.
    return np.geomspace(low, max(best, 10 * low), count)


def _steepest(gain: Float[Array, " k"], rise: Float[Array, " k"]) -> float:
    """The largest gain per unit of cost, over the exits that a group goes on to at a cost."""
    return float((gain[rise > 0] / rise[rise > 0]).max(initial=0.0))


def fixed_depths(trace: Trace) -> list[Evaluation]:
    """Every sample at exit k, for every k: K evaluations. Only the exit answered at is looked at and paid for."""
    origin = Origin(trace.costs, trace.network, recall=trace.recall)
    return [evaluate(FixedDepth(origin, k), trace) for k in range(trace.n_exits)]
