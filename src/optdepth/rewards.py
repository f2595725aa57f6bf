"""Rewards: losses of the other sign, and what is known of them before anything is fitted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from .errors import InputError

Array = np.ndarray
_ROUNDED, _LEAST = 1e-5, float(np.finfo(np.float32).tiny)
"""Numbers no further apart than this share, or this much, are one that float32 has rounded."""


def discounted(
    rewards: Float[Array, "N K"], discount: float | Sequence[float] | Float[Array, " K"]
) -> Float[Array, "N K"]:
    """Rewards at their worth at the start, as `Trace.from_rewards` says."""
    given = np.asarray(discount, dtype=np.float64)
    kept = given ** np.arange(rewards.shape[1]) if given.ndim == 0 else given
    if kept.shape != rewards.shape[1:] or not ((kept > 0) & (kept <= 1)).all():
        raise InputError(f"discount {discount} must be one factor in (0, 1], or one for each of the K exits")
    return kept * rewards


def seen_among(rewards: Float[Array, "N K"], observations: Float[Array, "N K F"], features: Sequence[str]) -> str:
    """The feature that is the reward up to a positive factor at each exit; empty where none is, or one is negative.

    Where such a feature is 0, stopping earns nothing, and going on cannot earn less.
    """
    most = rewards.max(axis=0)
    if rewards.min() < 0 or not most.any():
        return ""
    highest = rewards.argmax(axis=0), np.arange(rewards.shape[1])
    for name, column in zip(features, np.moveaxis(observations, 2, 0), strict=True):
        factor = np.divide(column[highest], most, out=np.zeros_like(most), where=most > 0)
        positive = (factor[most > 0] > 0).all()
        if positive and np.allclose(column, factor * rewards, rtol=_ROUNDED, atol=_LEAST):
            return name
    return ""
