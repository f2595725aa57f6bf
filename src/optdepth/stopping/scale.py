"""Numbers of any size. Decisions do not depend on the unit of losses and costs, so what is fitted is brought near 1.

Only powers of two are divided by: that rounds nothing, and no loss of 1e-170 or price of 1e300 leaves the range in
which sums, squares and float32 are at home.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

Array = np.ndarray
_NOTHING = -1100
"""Exponent of 0: below that of every other number."""


def exponent(values: Float[Array, "*shape"]) -> int:
    """The least e with |values| < 2^e."""
    largest = float(np.abs(values).max(initial=0.0))
    return math.frexp(largest)[1] if largest else _NOTHING


def shrunk(values: Float[Array, "*shape"], by: int) -> Float[Array, "*shape"]:
    """values / 2^by."""
    return np.ldexp(values, -by)


def priced(costs: Float[Array, "*shape"], price: float, by: int) -> Float[Array, "*shape"]:
    """price x costs / 2^by, also where price x costs is beyond the largest number there is."""
    share, power = math.frexp(price)
    size = exponent(costs)
    return np.ldexp(share * shrunk(costs, size), power + size - by)


def common_exponent(losses: Float[Array, "*losses"], costs: Float[Array, "*costs"], price: float) -> int:
    """The least e with |losses| and price x costs below 2^e."""
    return max(exponent(losses), math.frexp(price)[1] + exponent(costs) if price else _NOTHING)


def weighed(losses: Float[Array, "N K"], paid: Float[Array, "*N K"], price: float) -> Float[Array, "N K"]:
    """Y_k, loss + price x cost, over the power of two that brings the largest near 1."""
    by = common_exponent(losses, paid, price)
    return shrunk(losses, by) + priced(paid, price, by)
