"""The solved rule against tuned thresholds at equal mean cost, with bootstrap bands over the test samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

Array = np.ndarray
BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Mean costs, in full passes."""
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Swept:
    """The rules of one method over a sweep of prices.

    Attributes:
        losses, costs: (R, N) of N samples under each of R rules.
    """

    losses: Float[Array, "R N"]
    costs: Float[Array, "R N"]

    def curves(self, weights: Float[Array, "B N"], budgets: Float[Array, " G"]) -> Float[Array, "B G"]:
        """Mean losses at the budgets, by the frontier of each weighing of the samples."""
        costs, losses = weights @ self.costs.T, weights @ self.losses.T
        return np.stack([np.interp(budgets, *falling(*pair)) for pair in zip(costs, losses, strict=True)])


def falling(costs: Float[Array, " R"], losses: Float[Array, " R"]) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
    """A frontier: mean costs, ascending, and losses that fall, without the rules that a cheaper one betters."""
    order = np.lexsort((losses, costs))
    costs, losses = costs[order], losses[order]
    kept = losses < np.minimum.accumulate(np.append(np.inf, losses[:-1]))
    return costs[kept], losses[kept]


def ahead(solved: Swept, rivals: Mapping[str, Swept], *, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Accuracy of the solved rule less each rival's at every budget, with the ends of its 95% percentile band.

    The bootstrap is paired: all methods meet the same resamples of the samples. Rules stay as they were fitted, so the
    bands hold for these rules and new samples, not for a new fit.

    Args:
        solved, rivals: on the same samples. A budget that some method does not reach is left out.
        resamples: how many.
        seed: of the resampling.

    Returns:
        A row a budget: "ahead", by rival the difference and the ends of its band; "best", the rival with the least
        loss there on the samples themselves, which is a choice in hindsight and flatters it.
    """
    samples = solved.losses.shape[1]
    methods = (solved, *rivals.values())
    least = max(method.costs.mean(1).min() for method in methods)
    most = min(method.costs.mean(1).max() for method in methods)
    budgets = np.array([budget for budget in BUDGETS if least <= budget <= most])
    counts = np.random.default_rng(seed).multinomial(samples, np.full(samples, 1 / samples), size=resamples)
    weights = np.vstack([np.ones(samples), counts]) / samples  # the samples themselves, then their resamples
    mine = solved.curves(weights, budgets)
    apart = {name: rival.curves(weights, budgets) - mine for name, rival in rivals.items()}
    tail = (1 - CONFIDENCE) / 2
    bands = {name: np.quantile(found[1:], [tail, 1 - tail], axis=0) for name, found in apart.items()}
    return [
        {
            "budget": float(budget),
            "best": min(apart, key=lambda name: apart[name][0, g]),
            "ahead": {name: [round(float(x), 5) for x in (apart[name][0, g], *bands[name][:, g])] for name in apart},
        }
        for g, budget in enumerate(budgets)
    ]
