"""Losses without the label's noise: what the last exit's class distribution expects, calibrated on labels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from sklearn.isotonic import IsotonicRegression

from ..trace import Trace


def expected_losses(trace: Trace) -> Float[np.ndarray, "N K"]:
    """Losses to fit on: (N, K) expected losses where the trace has them, else the realised ones.

    The last exit's class distribution says how likely each exit's answer is to be wrong; a monotone map fitted on the
    labels of the same samples, one for all exits, makes that a calibrated probability. The label's own coin toss, which
    no rule can foresee, is gone; theory, section 10, measured what that is worth.
    """
    if trace.posterior_losses is None:
        return trace.losses
    claimed, realised = trace.posterior_losses.ravel(), trace.losses.ravel()
    # Claims crowd at 0 and 1, where the isotonic fit is decided by single labels: pooling equal-sized groups of
    # neighbours first keeps it stable, and fast on long traces.
    groups = np.array_split(np.argsort(claimed, kind="stable"), min(1000, max(1, len(claimed) // 50)))
    middle = np.array([claimed[group].mean() for group in groups])
    share = np.array([realised[group].mean() for group in groups])
    size = np.array([len(group) for group in groups])
    monotone = IsotonicRegression(out_of_bounds="clip").fit(middle, share, sample_weight=size)
    return monotone.predict(claimed).reshape(trace.losses.shape)
