"""Stopping problems from finance whose values others published, as traces of discounted rewards; the price is 0.

Every function simulates a trace of its own; seeds apart are samples apart.
"""

import numpy as np

from optdepth.trace import Trace

PUT_VALUES = {(0.2, 1): 4.478, (0.2, 2): 4.840, (0.4, 1): 7.101, (0.4, 2): 8.508}
"""American put, Longstaff and Schwartz (2001), table 1, spot 36: (volatility, years) -> value by finite differences."""

MAX_CALL_VALUE = 13.902
"""Bermudan max-call on two assets, spot 100, by a binomial lattice: Andersen and Broadie (2004), table 2."""


def _growth(paths: int, dates: int, assets: int, seed: int) -> np.ndarray:
    """Brownian motion at whole dates, (paths, dates, assets); the second half mirrors the first (antithetic)."""
    half = np.random.default_rng(seed).normal(size=((paths + 1) // 2, dates, assets))
    return np.concatenate([half, -half])[:paths].cumsum(axis=1)


def american_put(paths: int, *, sigma: float = 0.2, years: int = 1, seed: int) -> Trace:
    """The American put of Longstaff and Schwartz: spot 36, strike 40, rate 6%, 50 exercise dates a year."""
    spot, strike, rate, dates = 36.0, 40.0, 0.06, 50 * years
    time = np.arange(1, dates + 1) / 50
    motion = _growth(paths, dates, 1, seed)[:, :, 0] / np.sqrt(50)
    price = spot * np.exp((rate - sigma**2 / 2) * time + sigma * motion)
    payoff = np.maximum(strike - price, 0.0)
    seen = np.stack([price, payoff], axis=2) / strike
    return Trace.from_rewards(payoff, seen, discount=np.exp(-rate * time), features=("price", "payoff"))


def max_call(paths: int, *, seed: int) -> Trace:
    """The Bermudan call on the dearer of two assets: spot and strike 100, rate 5%, dividend 10%, volatility 20%,
    three years, nine exercise dates."""
    spot, strike, rate, dividend, sigma, dates = 100.0, 100.0, 0.05, 0.1, 0.2, 9
    time = np.arange(1, dates + 1) / 3
    motion = _growth(paths, dates, 2, seed) / np.sqrt(3)
    price = spot * np.exp((rate - dividend - sigma**2 / 2) * time[:, None] + sigma * motion)
    dear, cheap = price.max(axis=2), price.min(axis=2)
    payoff = np.maximum(dear - strike, 0.0)
    seen = [dear / strike, cheap / strike, payoff / strike, np.log(dear / cheap), dear * cheap / strike**2]
    return Trace.from_rewards(
        payoff,
        np.stack(seen, axis=2),
        discount=np.exp(-rate * time),
        features=("dear", "cheap", "payoff", "spread", "product"),
    )
