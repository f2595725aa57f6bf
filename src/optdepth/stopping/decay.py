"""The law by which residual sizes decay with depth: geometric, power, or neither (theory, section 5, bound C).

A line through the logarithms of the largest size at each depth, for bound (C) speaks of almost every sample: against
the depth for A rho^k, against its logarithm for A k^-p. Both have two parameters, so AIC compares their residuals.
The interval of the slope is that of least squares (Student's t): the depths are few, and how far they stray from the
law outweighs the sampling error of a maximum over many samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from ..errors import InputError

Array = np.ndarray

CONFIDENCE = 0.95
_LEAST_POINTS = 4
_GOOD_FIT = 0.9
"""R² on the log scale from which a law is said to hold."""
_CLEAR = 2.0
"""Difference in AIC below which neither law is preferred (Burnham and Anderson 2002)."""


@dataclass(frozen=True)
class Law:
    """One law fitted: size = amplitude x rate^k (geometric) or amplitude x k^-rate (power), k = 1, 2, .. the depth.

    Attributes:
        name: which of the two.
        amplitude, rate: A and rho, or A and p.
        interval: 95% interval of the rate.
        cover: the least amplitude that covers every recorded size at `slowest`.
        r2: share of the variance of the log sizes explained.
        aic: Akaike's criterion, less is better; comes with the same points alone.
    """

    name: Literal["geometric", "power"]
    amplitude: float
    rate: float
    interval: tuple[float, float]
    cover: float
    r2: float
    aic: float

    @property
    def slowest(self) -> float:
        """The end of the interval at which the sizes decay least."""
        return self.interval[1] if self.name == "geometric" else self.interval[0]

    @property
    def holds(self) -> bool:
        """Whether the sizes decay beyond doubt, and by this law."""
        decays = self.slowest < 1 if self.name == "geometric" else self.slowest > 0
        return decays and self.r2 >= _GOOD_FIT

    def depth_below(self, size: float) -> int:
        """N(price) of bound (C): the depth k >= 1 from which the law, at its slowest, is no larger than a size > 0."""
        if self.name == "geometric":
            return max(1, math.ceil(math.log(size / self.cover) / math.log(self.slowest)))
        return max(1, math.ceil((self.cover / size) ** (1 / self.slowest)))

    def __str__(self) -> str:
        form = "{:.3g} x {:.3f}^k" if self.name == "geometric" else "{:.3g} x k^-{:.2f}"
        low, high = self.interval
        symbol = "rho" if self.name == "geometric" else "p"
        return f"{form.format(self.amplitude, self.rate)} ({symbol} in {low:.3f} to {high:.3f}, R² {self.r2:.3f})"


@dataclass(frozen=True, eq=False)
class Decay:
    """How residual sizes decay over the depths given; the arrays are what a figure shows.

    Attributes:
        depths: (n,) 1-based depths of the sizes that both laws are fitted to.
        largest: (n,) largest recorded size at each.
        geometric, power: the two laws.
        low, high: (n,) 95% band of the better law's line.
    """

    depths: Int[Array, " n"]
    largest: Float[Array, " n"]
    geometric: Law
    power: Law
    low: Float[Array, " n"]
    high: Float[Array, " n"]

    @property
    def clear(self) -> bool:
        """Whether one law describes the sizes clearly better than the other."""
        return abs(self.geometric.aic - self.power.aic) >= _CLEAR

    @property
    def better(self) -> Law:
        """The law with the lesser AIC."""
        return min(self.geometric, self.power, key=lambda law: law.aic)

    @property
    def law(self) -> Law | None:
        """The law that holds; None where neither does.

        Where the two describe the sizes alike it is the power law, if that holds: it promises less.
        """
        if not self.clear and self.power.holds:
            return self.power
        return self.better if self.better.holds else None

    def __str__(self) -> str:
        if self.law is None:
            return f"the residual sizes follow neither law; the nearer is {self.better.name}, {self.better}"
        text = f"the residual sizes decay by a {self.law.name} law, {self.law}"
        if self.clear:
            return text
        other = self.geometric if self.law is self.power else self.power
        return f"{text}; a {other.name} law, {other}, describes them as well"


def decay(sizes: Float[Array, "N n"], depths: Int[Array, " n"]) -> Decay | None:
    """Fits both laws to residual sizes; None where fewer than four depths have a size that is not zero.

    Args:
        sizes: (N, n) finite and >= 0, of N samples.
        depths: (n,) the 1-based depth of each column.

    Raises:
        InputError: sizes that are negative or not finite, or not one column for each depth.
    """
    if sizes.ndim != 2 or len(sizes) == 0 or sizes.shape[1:] != np.shape(depths):
        raise InputError(f"sizes must be (N, n) for {np.shape(depths)} depths; got shape {sizes.shape}")
    bad = np.argwhere(~(np.isfinite(sizes) & (sizes >= 0)))
    if len(bad):
        i, k = bad[0]
        raise InputError(
            f"residual size of sample {i} at depth {depths[k]} is {sizes[i, k]}; sizes are finite and >= 0"
        )
    largest = sizes.max(axis=0).astype(np.float64)
    moves = largest > 0  # a stage that adds nothing obeys every law
    depths, largest = np.asarray(depths)[moves], largest[moves]
    if len(depths) < _LEAST_POINTS:
        return None
    geometric, power = _fit("geometric", depths, largest), _fit("power", depths, largest)
    better = min(geometric, power, key=lambda law: law.aic)
    return Decay(depths, largest, geometric, power, *_band(_abscissa(better.name, depths), np.log(largest)))


def _abscissa(name: str, depths: Int[Array, " n"]) -> Float[Array, " n"]:
    return depths.astype(np.float64) if name == "geometric" else np.log(depths)


def _fit(name: Literal["geometric", "power"], depths: Int[Array, " n"], largest: Float[Array, " n"]) -> Law:
    x, y = _abscissa(name, depths), np.log(largest)
    line = stats.linregress(x, y)
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, len(x) - 2) * line.stderr
    slowest = line.slope + reach
    slopes = np.array([line.slope - reach, slowest])
    interval = np.exp(slopes) if name == "geometric" else -slopes[::-1]
    error = max(float(np.square(y - line.intercept - line.slope * x).mean()), 1e-30)  # the logarithm of a perfect fit
    return Law(
        name=name,
        amplitude=math.exp(line.intercept),
        rate=math.exp(line.slope) if name == "geometric" else -float(line.slope),
        interval=(float(interval[0]), float(interval[1])),
        cover=math.exp((y - slowest * x).max()),
        r2=float(line.rvalue**2),
        aic=len(x) * math.log(error) + 4,
    )


def _band(x: Float[Array, " n"], y: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Pointwise 95% band of the fitted line, as sizes."""
    line = stats.linregress(x, y)
    fitted = line.intercept + line.slope * x
    variance = np.square(y - fitted).sum() / (len(x) - 2)
    spread = np.sqrt(variance * (1 / len(x) + np.square(x - x.mean()) / np.square(x - x.mean()).sum()))
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, len(x) - 2) * spread
    return np.exp(fitted - reach), np.exp(fitted + reach)
