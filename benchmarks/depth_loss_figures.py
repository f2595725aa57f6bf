"""Reading figures: frontiers on the test split, and numbers as cells of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from depth_loss_bands import falling
from figures import table_row
from optdepth.stopping.methods import SOLVED

Figures = dict[str, Any]
Found = dict[str, list[Figures]]
"""Figures by arm, one a seed."""


def solved(found: Found) -> Found:
    """The arms that leave something to stop."""
    return {arm: runs for arm, runs in found.items() if "sweep" in runs[0]}


def by_seed(found: Found, arm: str) -> dict[int, Figures]:
    """The figures of an arm; none where it is not there."""
    return {run["seed"]: run for run in found.get(arm, [])}


def at(run: Figures, price: float) -> Figures:
    """The figures of the price of the sweep that is nearest."""
    return min(run["sweep"], key=lambda found: abs(np.log(found["price"] / price)))


def frontier_of(run: Figures) -> tuple[np.ndarray, np.ndarray]:
    """Mean costs, ascending, and losses that fall: the solved rule over the sweep, on the test split.

    Its ends are the first exit and the whole network, each without a look at any other exit: the rules at the highest
    prices and at price 0.
    """
    costs, losses = exits_of(run)
    if "sweep" not in run:
        return costs, losses
    points = [found["methods"][SOLVED]["test"] for found in run["sweep"]]
    return falling(
        np.array([costs[0], *(point["cost"] for point in points), costs[-1]]),
        np.array([losses[0], *(point["loss"] for point in points), losses[-1]]),
    )


def exits_of(run: Figures) -> tuple[np.ndarray, np.ndarray]:
    """Cost of stopping every sample at one exit, without a look at the others, and its loss on the test split."""
    costs = run["costs"]
    alone = costs["paid"] if "reach" not in costs else np.add(costs["reach"], costs["look"])
    return np.asarray(alone), 1 - np.asarray(run["accuracy"]["test"])


def last_loss(run: Figures) -> float:
    """Loss of the last exit on the test split."""
    return 1 - float(run["accuracy"]["test"][-1])


def cost_at(run: Figures, loss: float) -> float:
    """The least mean cost at which the solved rule loses no more; nan where it always does."""
    costs, losses = frontier_of(run)
    return float(np.interp(loss, losses[::-1], costs[::-1], left=np.nan, right=costs[0]))


def lead(run: Figures, other: Figures) -> float:
    """Accuracy above another's at equal mean cost: the mean over costs from 0.2 to 1."""
    grid = np.linspace(0.2, 1, 81)
    mine, theirs = (np.interp(grid, *frontier_of(one)) for one in (run, other))
    return float((theirs - mine).mean())


def spread(numbers: Any, digits: int) -> str:
    """Mean, and half the range where there are several; a dash where there is none."""
    held = np.asarray(numbers, dtype=float)
    if len(held) == 0:
        return "-"
    if np.isnan(held).any():
        return "not reached"
    text = f"{held.mean():.{digits}f}"
    return text if len(held) == 1 else f"{text} ± {np.ptp(held) / 2:.{digits}f}"


def rule(numbers: int) -> str:
    """The line under a table's head: one column of words, then so many of numbers."""
    return table_row(["---", *["---:"] * numbers])
