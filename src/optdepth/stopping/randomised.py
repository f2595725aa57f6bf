"""A randomised stopping time fitted directly: the least mean of Σ_k p_k Y_k, made deterministic at the end.

At exit k a sample stops with probability h_k = sigmoid(z_k(s_k)), so p_k = h_k Π_{i<k} (1 - h_i). The score is
additive in the features, z_k(s) = b(s) + d_k(s): one function for all exits and a small departure of each from it.
Sharing is what makes a few thousand samples enough; regressions exit by exit spend them on noise. Where the score is
not negative the rule stops. As in Becker, Cheridito & Jentzen (2019), but all exits at once, in a class small enough
to need no deep network.

With V_K = Y_K and V_k = h_k Y_k + (1 - h_k) V_{k+1}, the value-to-go of the randomised rule along one sample,

    ∂V_1 / ∂z_k = Π_{i<k} (1 - h_i) · h_k (1 - h_k) · (Y_k - V_{k+1}),

so a gradient costs two passes over the exits and no graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .regression import Function, Ramps

_STEPS, _RATE = 150, 0.1
_BATCH = 2_500
"""Samples a step, about; with more there are enough to take turns, and a step costs the same."""
_SHARED, _OWN = 0.02, 20.0
"""Ridge on the shared function and on an exit's departure from it, over the number of samples: prior precisions."""


@dataclass(frozen=True, eq=False)
class Randomised:
    """The fit.

    Attributes:
        gains: K - 1 functions of an exit's observation, -z_k: stop where not positive. Fitted on all samples.
        scores: (N, K - 1) every sample's score z, by the fit that judges it.
    """

    gains: list[Function]
    scores: Float[np.ndarray, "N D"]


@dataclass(frozen=True, eq=False)
class Start:
    """A common threshold on one feature.

    Attributes:
        feature: its column.
        below: whether it stops at values at most the cut.
        cuts: (G,) one for each fit; infinite where nothing stops.
    """

    feature: int
    below: bool
    cuts: Float[np.ndarray, " G"]


class RandomisedFit:
    """One trace's observations made ready; `fit` finds the stopping time for given values.

    Args:
        observations: (N, K - 1, F) of the exits but the last; samples in random order.
        kept: (G, N) which samples each of the fits may see; the first fit is the one that is wanted, on all.
        judge: (N,) which fit scores each sample.
        ramps: of the basis, between quantiles over all exits together.
        ended: (N, K - 1) where samples have ended by themselves: what stands there is nothing to fit to.
    """

    def __init__(
        self,
        observations: Float[np.ndarray, "N D F"],
        kept: Bool[np.ndarray, "G N"],
        judge: Int[np.ndarray, " N"],
        ramps: int,
        ended: Bool[np.ndarray, "N D"],
    ) -> None:
        _, exits, features = observations.shape
        met = observations[~ended] if ended.any() else observations.reshape(-1, features)
        self.ramps = Ramps.of(met, ramps)
        # (K-1, P, N): with the samples last, products with the few columns of coefficients are four times faster.
        self.basis = torch.stack([self.ramps(torch.from_numpy(observations[:, k])).T for k in range(exits)])
        self.judge = judge
        self.weight = torch.from_numpy(kept / kept.sum(axis=1, keepdims=True)).float()

    def fit(
        self, values: Float[np.ndarray, "N K"], start: Start, barred: Bool[np.ndarray, "N D"] | None = None
    ) -> Randomised:
        """The stopping time for values Y_k (N, K), every fit in one descent.

        Args:
            start: for each fit a threshold to descend from, as `Start` says: from even chances the descent can end
                in the corner where nothing ever stops, and there the gradient is zero.
            barred: where no sample stops whatever its score.
        """
        exits, width, samples = self.basis.shape
        scaled = torch.from_numpy(values / (values.std() or 1.0)).float().T.contiguous()[:, None]  # (K, 1, N)
        never = None if barred is None else torch.from_numpy(barred).T.contiguous()[:, None]  # (K-1, 1, N)
        shared, own = self._start(start)[None], torch.zeros(exits, len(self.weight), width)
        penalised = torch.ones(width)
        penalised[0] = 0.0
        steps = _Adam(shared), _Adam(own)
        turns = max(1, round(samples / _BATCH))
        edges = np.linspace(0, samples, turns + 1).astype(int)
        for step in range(_STEPS):
            turn = slice(edges[step % turns], edges[step % turns + 1])
            basis, weight = self.basis[..., turn], turns * self.weight[:, turn]
            current = torch.bmm(shared + own, basis)
            if never is not None:
                current.masked_fill_(never[..., turn], -torch.inf)
            slope = _slopes(current, scaled[..., turn], weight)
            gradient = torch.bmm(slope, basis.transpose(1, 2))
            rate = _RATE * 0.5 * (1 + np.cos(np.pi * step / _STEPS))
            steps[0].descend(shared, gradient.sum(0, keepdim=True) + 2 * _SHARED / samples * shared * penalised, rate)
            steps[1].descend(own, gradient + 2 * _OWN / samples / exits * own, rate)
        final = shared + own
        scores = torch.bmm(final, self.basis).permute(2, 1, 0).numpy()[np.arange(samples), self.judge]
        gains: list[Function] = [self.ramps.function(-final[k, 0].double().numpy()) for k in range(exits)]
        return Randomised(gains, scores)

    def _start(self, start: Start) -> Float[Tensor, "G P"]:
        """A score that rises by one from quantile to quantile of the feature and is zero at the cut."""
        features, ramps = self.ramps.low.shape
        weight = np.zeros((len(start.cuts), features, ramps))
        weight[:, start.feature] = -1.0 if start.below else 1.0
        at = np.zeros((len(start.cuts), features))
        finite = np.isfinite(start.cuts)
        at[:, start.feature] = np.where(finite, start.cuts, 0.0)
        rise = self.ramps(torch.from_numpy(at))[:, 1:].reshape(-1, features, ramps)
        height = rise[:, start.feature].sum(dim=1).numpy()
        # A cut that stops nothing starts half a step beyond the highest quantile: rarely, but not never.
        level = np.where(finite, height, -0.5 if start.below else ramps + 0.5)
        intercept = level if start.below else -level
        return torch.from_numpy(np.column_stack([intercept, weight.reshape(-1, features * ramps)])).float()


def _slopes(
    scores: Float[Tensor, "D G n"], values: Float[Tensor, "D+1 1 n"], weight: Float[Tensor, "G n"]
) -> Float[Tensor, "D G n"]:
    """∂V_1 / ∂z_k for every fit and sample, times the sample's weight in the fit."""
    stopping = scores.sigmoid()
    going = 1 - stopping
    slopes = stopping * going
    follows = values[-1].expand_as(weight)
    for k in reversed(range(len(scores))):
        ahead = values[k] - follows
        slopes[k] *= ahead
        follows = torch.addcmul(follows, stopping[k], ahead)
    reached = weight
    for k in range(len(scores)):
        slopes[k] *= reached
        reached = reached * going[k]
    return slopes


class _Adam:
    """Kingma & Ba (2015) on one tensor, in place; torch's own takes its gradients from a graph, and here is none."""

    def __init__(self, like: Tensor) -> None:
        self.mean, self.square, self.count = torch.zeros_like(like), torch.zeros_like(like), 0

    def descend(self, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        self.count += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        unbiased = self.mean / (1 - 0.9**self.count)
        spread = (self.square / (1 - 0.999**self.count)).sqrt()
        parameter -= rate * unbiased / (spread + 1e-8)
