"""The regressors that conditional expectations use: small, smooth, fast to fit, and tensors to evaluate.

An additive spline of degree one: every feature runs through ramps between its quantiles, each ramp clamped to [0, 1].
The basis is bounded and constant beyond the data, so nothing is extrapolated and float32 is enough at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Array = np.ndarray

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties tried, as shares of the basis' mean square; the one with the least out-of-fold error is taken."""


@dataclass(frozen=True, eq=False)
class Ramps:
    """The basis: ramp j of feature f rises from 0 to 1 between two neighbouring quantiles.

    Attributes:
        low: (F, J) where a ramp starts.    scale: (F, J) 1 / its length; 0 for a ramp of no length.
    """

    low: Float[Array, "F J"]
    scale: Float[Array, "F J"]

    @classmethod
    def of(cls, observation: Float[Array, "N F"], ramps: int) -> Self:
        """Ramps between the quantiles of a sample; repeated quantiles give ramps of no length."""
        knots = np.quantile(observation, np.linspace(0, 1, ramps + 1), axis=0, method="nearest").T
        length = np.diff(knots, axis=1).astype(np.float64)
        scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
        return cls(knots[:, :-1].astype(np.float64), scale)

    def __call__(self, observation: Float[Array, "N F"]) -> Float[Array, "N P"]:
        """The basis at a sample, an intercept first: (N, 1 + F J)."""
        rise = np.clip((observation[:, :, None] - self.low) * self.scale, 0.0, 1.0)
        return np.concatenate([np.ones((len(rise), 1)), rise.reshape(len(rise), -1)], axis=1)


class Additive(nn.Module):
    """The fitted function of one exit's observation; evaluates on tensors, (n, F) -> (n,)."""

    low: Tensor
    scale: Tensor
    weight: Tensor
    intercept: Tensor

    def __init__(self, low: Tensor, scale: Tensor, weight: Tensor, intercept: Tensor) -> None:
        super().__init__()
        for name, value in (("low", low), ("scale", scale), ("weight", weight), ("intercept", intercept)):
            self.register_buffer(name, value.float())

    @classmethod
    def of(cls, ramps: Ramps, coefficients: Float[Array, " P"]) -> Self:
        tensor = lambda value: torch.from_numpy(np.ascontiguousarray(value))  # noqa: E731
        weight = coefficients[1:].reshape(ramps.low.shape)
        return cls(tensor(ramps.low), tensor(ramps.scale), tensor(weight), torch.tensor(coefficients[0]))

    def forward(self, observation: Float[Tensor, "n F"]) -> Float[Tensor, " n"]:
        rise = ((observation.unsqueeze(-1) - self.low) * self.scale).clamp(0.0, 1.0)
        return (rise * self.weight).sum((-2, -1)) + self.intercept


class CrossFit:
    """Ridge regressions on one basis, one for each fold left out and one on all samples.

    The Gram matrix of a fold's complement is the whole one minus the fold's, so cross-fitting costs one pass.
    """

    def __init__(self, basis: Float[Array, "N P"], fold: Int[Array, " N"], folds: int) -> None:
        self.basis, self.members = basis, [np.flatnonzero(fold == f) for f in range(folds)]
        self.grams = np.stack([basis[rows].T @ basis[rows] for rows in self.members])
        self.total = self.grams.sum(axis=0)
        penalised = np.ones(basis.shape[1])
        penalised[0] = 0.0
        self.unit = penalised * np.trace(self.total) / basis.shape[1]

    def fit(self, target: Float[Array, " N"]) -> tuple[Float[Array, " P"], Float[Array, " N"]]:
        """Coefficients on all samples, and every sample's prediction by the fit without its fold."""
        moments = np.stack([self.basis[rows].T @ target[rows] for rows in self.members])
        whole = moments.sum(axis=0)
        best: tuple[float, float, Array] | None = None
        for ridge in RIDGES:
            predicted = np.empty(len(target))
            for f, rows in enumerate(self.members):
                coefficients = self._solve(self.total - self.grams[f], whole - moments[f], ridge)
                predicted[rows] = self.basis[rows] @ coefficients
            error = float(np.square(predicted - target).mean())
            if best is None or error < best[0]:
                best = (error, ridge, predicted)
        assert best is not None
        return self._solve(self.total, whole, best[1]), best[2]

    def _solve(self, gram: Array, moment: Array, ridge: float) -> Float[Array, " P"]:
        regularised = gram + np.diag(ridge * self.unit + 1e-9 * self.unit.max())
        return np.linalg.solve(regularised, moment)
