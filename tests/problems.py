"""Stopping problems from finance whose values others published, as traces of discounted rewards; the price is 0.

Every function simulates a trace of its own; seeds apart are samples apart.
"""

import numpy as np
import torch
from scipy.stats import norm

from optdepth.stopping.rule import Rule
from optdepth.trace import Trace

PUT_VALUES = {
    (36, 0.2, 1): 4.478,
    (36, 0.2, 2): 4.840,
    (36, 0.4, 1): 7.101,
    (36, 0.4, 2): 8.508,
    (38, 0.2, 1): 3.250,
    (38, 0.2, 2): 3.745,
    (38, 0.4, 1): 6.148,
    (38, 0.4, 2): 7.670,
    (40, 0.2, 1): 2.314,
    (40, 0.2, 2): 2.885,
    (40, 0.4, 1): 5.312,
    (40, 0.4, 2): 6.920,
    (42, 0.2, 1): 1.617,
    (42, 0.2, 2): 2.212,
    (42, 0.4, 1): 4.582,
    (42, 0.4, 2): 6.248,
    (44, 0.2, 1): 1.110,
    (44, 0.2, 2): 1.690,
    (44, 0.4, 1): 3.948,
    (44, 0.4, 2): 5.647,
}
"""American put, Longstaff and Schwartz (2001), table 1: (spot, volatility, years) -> value by finite differences."""

MAX_CALL_VALUE = 13.902
"""Bermudan max-call on two assets, spot 100, by a binomial lattice: Andersen and Broadie (2004), table 2."""

_STRIKE, _RATE, _A_YEAR = 40.0, 0.06, 50


def _growth(paths: int, dates: int, assets: int, seed: int) -> np.ndarray:
    """Brownian motion at whole dates, (paths, dates, assets); the second half mirrors the first (antithetic)."""
    half = np.random.default_rng(seed).normal(size=((paths + 1) // 2, dates, assets))
    return np.concatenate([half, -half])[:paths].cumsum(axis=1)


def _seen(price: np.ndarray) -> np.ndarray:
    """What is seen of a put: price and payoff, as shares of the strike."""
    return np.stack([price, np.maximum(_STRIKE - price, 0.0)], axis=-1) / _STRIKE


def american_put(paths: int, *, spot: float = 36.0, sigma: float = 0.2, years: int = 1, seed: int) -> Trace:
    """The American put of Longstaff and Schwartz: strike 40, rate 6%, 50 exercise dates a year."""
    dates = _A_YEAR * years
    time = np.arange(1, dates + 1) / _A_YEAR
    motion = _growth(paths, dates, 1, seed)[:, :, 0] / np.sqrt(_A_YEAR)
    price = spot * np.exp((_RATE - sigma**2 / 2) * time + sigma * motion)
    payoff = np.maximum(_STRIKE - price, 0.0)
    return Trace.from_rewards(payoff, _seen(price), discount=np.exp(-_RATE * time), features=("price", "payoff"))


def put_earned(rule: Rule | None, *, spot: float = 36.0, sigma: float = 0.2, years: int = 1) -> float:
    """What a rule earns on `american_put` on average, the best one if none is given: backwards through the dates by
    quadrature over the law of a step, so that no path is drawn and there is no standard error."""
    wide, step = 7 * sigma * np.sqrt(years), sigma / np.sqrt(_A_YEAR)
    nodes = np.linspace(-wide, wide, 2501)
    spacing = nodes[1] - nodes[0]
    reach = int(np.ceil(8 * step / spacing))
    weight = norm.pdf((np.arange(-reach, reach + 1) * spacing - (_RATE - sigma**2 / 2) / _A_YEAR) / step)
    weight *= np.exp(-_RATE / _A_YEAR) / weight.sum()
    price = spot * np.exp(nodes)
    beyond = _STRIKE - spot * np.exp(nodes[0] - spacing * np.arange(reach, 0, -1))
    payoff = np.maximum(_STRIKE - price, 0.0)
    before = lambda value: np.convolve(np.r_[beyond, value, np.zeros(reach)], weight[::-1], mode="valid")  # noqa: E731
    seen = torch.from_numpy(_seen(price).astype(np.float32))
    value = payoff
    for k in reversed(range(_A_YEAR * years - 1)):
        waits = before(value)
        stops = payoff >= waits if rule is None else rule.stop(k, seen).numpy()
        value = np.where(stops, payoff, waits)
    return float(np.interp(0.0, nodes, before(value)))


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
