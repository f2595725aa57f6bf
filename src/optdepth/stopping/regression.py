"""The regressors that conditional expectations use: bases of one small contract, fitted by ridge and cross-validated.

A basis maps an exit's observation to P columns; a regression is linear in them; the fitted function evaluates on
tensors and is what a rule keeps. All bases are constant beyond the data, so nothing is extrapolated. Several bases may
compete for a target: the one with the least out-of-fold error is taken.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from ..trace import Trace
from .immutable import Immutable
from .kinds import enrol
from .scale import exponent, shrunk

Array = np.ndarray

FOLDS = 5
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties tried, as shares of the basis' mean square; the one with the least out-of-fold error is taken."""
_COARSE, _FINE, _HINGES = 8, 64, 64
"""Ramps a feature; ramps in all, shared out among few features; hinges."""
LEAST = 10 * FOLDS
"""Samples that a regression needs."""
_SHORTEST = float(np.finfo(np.float32).tiny)
"""Lengths whose inverse float32 holds; what differs by less is one value."""
_CHUNK = 8_192
"""Rows at a time where sums are taken in double precision."""


class Function(Immutable):
    """A fitted function of one exit's observation: (n, F) -> (n,). Its arguments alone rebuild it."""

    kinds: ClassVar[dict[str, type[Function]]] = {}

    forms: ClassVar[Mapping[str, str]]
    """What it is made of, by name: the dimensions of each, a letter each; F is the number of features."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        enrol(Function.kinds, cls)

    def __init__(self, **numbers: Tensor) -> None:
        if numbers.keys() != self.forms.keys():
            raise InputError(f"a {type(self).__name__} is made of {', '.join(self.forms)}, not {', '.join(numbers)}")
        self._names = tuple(numbers)
        sizes: dict[str, int] = {}
        for name, value in numbers.items():
            held = value.detach().to(torch.float32, copy=True)
            if not value.is_floating_point() or not held.isfinite().all():
                raise InputError(f"{name} of a fitted function holds NaN, infinity or integers; fit it again")
            setattr(self, f"_{name}", held)
            form, shape = self.forms[name], tuple(held.shape)
            if len(form) != len(shape) or any(sizes.setdefault(d, n) != n for d, n in zip(form, shape, strict=True)):
                raise InputError(f"{name} of a {type(self).__name__} has shape {shape}; it is ({', '.join(form)})")
        self.n_features = sizes["F"]

    def arguments(self) -> dict[str, Tensor]:
        """What it was made of, in single precision."""
        return {name: getattr(self, f"_{name}").clone() for name in self._names}

    @abstractmethod
    def __call__(self, observation: Float[Tensor, "n F"]) -> Float[Tensor, " n"]: ...

    def check(self, features: Sequence[str]) -> None:
        """Refuses to read another number of features than it was fitted to."""
        if len(features) != self.n_features:
            raise InputError(f"a function of {self.n_features} features for {', '.join(features)}; give those it reads")

    def at(self, observation: Sequence[float]) -> float:
        """The function of one observation, given and returned in Python numbers."""
        return float(self(torch.tensor([observation], device=self.device)))


def restored(kind: str, prefix: str, arguments: Mapping[str, Any]) -> Function:
    """The function of a kind whose arguments are among those given, under names that start with the prefix."""
    numbers = {name.removeprefix(prefix): value for name, value in arguments.items() if name.startswith(prefix)}
    return Function.kinds[kind](**numbers)


@runtime_checkable
class Basis(Protocol):
    """What a regression is linear in."""

    def __call__(self, observation: Float[Tensor, "n F"]) -> Float[Tensor, "n P"]:
        """The columns, an intercept of ones first, in the observation's precision."""

    def function(self, coefficients: Float[Array, " P"]) -> Function:
        """The fitted function with these coefficients."""


@dataclass(frozen=True, eq=False)
class Ramps:
    """Additive splines of degree one: ramp j of a feature rises from 0 to 1 between two neighbouring quantiles.

    Attributes:
        low: (F, J) where a ramp starts.    scale: (F, J) 1 / its length; 0 for a ramp of no length.
    """

    low: Float[Tensor, "F J"]
    scale: Float[Tensor, "F J"]

    @classmethod
    def of(cls, observation: Float[Array, "N F"], ramps: int) -> Self:
        """Ramps between the quantiles of a sample; quantiles that are one to float32 give ramps of no length.

        Those start at 0: from the largest number to the least is no number in float32, and 0 times that is none either.
        """
        knots = np.quantile(observation, np.linspace(0, 1, ramps + 1), axis=0, method="nearest").T.astype(np.float64)
        length = np.diff(knots, axis=1)
        rises = length > _SHORTEST
        scale = np.divide(1.0, length, out=np.zeros_like(length), where=rises)
        return cls(torch.from_numpy(np.where(rises, knots[:, :-1], 0.0)), torch.from_numpy(scale))

    def __call__(self, observation: Float[Tensor, "n F"]) -> Float[Tensor, "n P"]:
        """An intercept, then the ramps feature by feature: (n, 1 + F J)."""
        columns = observation.new_empty(len(observation), 1 + self.low.numel())
        columns[:, 0] = 1.0
        rise = columns[:, 1:].view(len(observation), *self.low.shape)
        torch.sub(observation.unsqueeze(-1), self.low.to(observation), out=rise)
        rise.mul_(self.scale.to(observation)).clamp_(0.0, 1.0)
        return columns

    def function(self, coefficients: Float[Array, " P"]) -> Additive:
        weight = torch.from_numpy(coefficients[1:].reshape(self.low.shape).copy())
        return Additive(low=self.low, scale=self.scale, weight=weight, intercept=torch.tensor(coefficients[0]))


class Additive(Function):
    """A fitted sum of one function a feature."""

    forms = MappingProxyType({"low": "FJ", "scale": "FJ", "weight": "FJ", "intercept": ""})

    _low: Tensor
    _scale: Tensor
    _weight: Tensor
    _intercept: Tensor

    def __init__(self, low: Tensor, scale: Tensor, weight: Tensor, intercept: Tensor) -> None:
        super().__init__(low=low, scale=scale, weight=weight, intercept=intercept)
        rows = zip(self._low.tolist(), self._scale.tolist(), self._weight.tolist(), strict=True)
        self._curves = tuple(_curve(*row) for row in rows)
        self._constant = float(self._intercept)

    def __call__(self, observation: Float[Tensor, "n F"]) -> Float[Tensor, " n"]:
        rise = ((observation.unsqueeze(-1) - self._low) * self._scale).clamp(0.0, 1.0)
        return (rise * self._weight).sum((-2, -1)) + self._intercept

    def at(self, observation: Sequence[float]) -> float:
        """The same of one sample, in Python numbers: of each feature's ramps only the one it is on is computed."""
        total = self._constant
        for value, (starts, offsets, slopes) in zip(observation, self._curves, strict=True):
            piece = bisect_right(starts, value) - 1
            if piece >= 0:
                total += offsets[piece] + slopes[piece] * (value - starts[piece])
        return total


def _curve(low: list[float], scale: list[float], weight: list[float]) -> tuple[list[float], list[float], list[float]]:
    """The sum of one feature's ramps as pieces of a line: where each starts, its value there, its slope.

    Ramps follow each other without overlap, and one of no length never rises. Before the first the sum is 0.
    """
    ramps = [(start, s, w) for start, s, w in zip(low, scale, weight, strict=True) if s > 0]
    starts = [start for start, _, _ in ramps] + [start + 1 / s for start, s, _ in ramps[-1:]]
    offsets = [0.0, *accumulate(w for _, _, w in ramps)]
    return starts, offsets[: len(starts)], [w * s for _, s, w in ramps] + [0.0] * bool(ramps)


@dataclass(frozen=True, eq=False)
class Hinges:
    """A hidden layer drawn at random, for features that act together (Herrera, Krach, Ruyssen & Teichmann 2021).

    Hinge j is max(0, w_j·z - b_j) of the standardised observation z, with w_j a random direction and the kink at a
    sample, so that kinks are where the data are. Only the layer behind is fitted, which keeps it a regression.

    Attributes:
        least, most: (F,) range of the sample; observations are clamped to it.
        weight: (F, J) directions over the features' scale.    bias: (J,)
    """

    least: Float[Tensor, " F"]
    most: Float[Tensor, " F"]
    weight: Float[Tensor, "F J"]
    bias: Float[Tensor, " J"]

    @classmethod
    def of(cls, observation: Float[Array, "N F"], hinges: int, seed: int) -> Self:
        """Hinges for a sample; a feature that does not vary takes no part."""
        random = np.random.default_rng(seed)
        spread = observation.std(axis=0, dtype=np.float64)
        direction = random.normal(size=(observation.shape[1], hinges))
        direction /= np.linalg.norm(direction, axis=0)
        weight = np.divide(direction, spread[:, None], out=np.zeros_like(direction), where=spread[:, None] > _SHORTEST)
        kinks = observation[random.integers(0, len(observation), hinges)].astype(np.float64)
        bias = -np.einsum("jf,fj->j", kinks, weight)
        tensor = lambda value: torch.from_numpy(np.asarray(value, dtype=np.float64))  # noqa: E731
        return cls(tensor(observation.min(axis=0)), tensor(observation.max(axis=0)), tensor(weight), tensor(bias))

    def __call__(self, observation: Float[Tensor, "n F"]) -> Float[Tensor, "n P"]:
        """An intercept, then the hinges: (n, 1 + J)."""
        inside = observation.clamp(self.least.to(observation), self.most.to(observation))
        columns = observation.new_empty(len(observation), 1 + len(self.bias))
        columns[:, 0] = 1.0
        torch.addmm(self.bias.to(observation), inside, self.weight.to(observation), out=columns[:, 1:]).relu_()
        return columns

    def function(self, coefficients: Float[Array, " P"]) -> Hinged:
        parts = {"least": self.least, "most": self.most, "weight": self.weight, "bias": self.bias}
        last = torch.from_numpy(coefficients[1:].copy())
        return Hinged(**parts, last=last, intercept=torch.tensor(coefficients[0]))


class Hinged(Function):
    """A fitted network of one hidden layer."""

    forms = MappingProxyType({"least": "F", "most": "F", "weight": "FJ", "bias": "J", "last": "J", "intercept": ""})

    _least: Tensor
    _most: Tensor
    _weight: Tensor
    _bias: Tensor
    _last: Tensor
    _intercept: Tensor

    def __call__(self, observation: Float[Tensor, "n F"]) -> Float[Tensor, " n"]:
        inside = observation.clamp(self._least, self._most)
        return torch.addmm(self._bias, inside, self._weight).relu() @ self._last + self._intercept


def bases(observation: Float[Array, "N F"], seed: int) -> list[Basis]:
    """Those that compete: coarse ramps; fine ones where features are few; hinges where features can act together."""
    features = observation.shape[1]
    chosen: list[Basis] = [Ramps.of(observation, _COARSE)]
    if (fine := min(32, _FINE // features)) >= 2 * _COARSE:
        chosen.append(Ramps.of(observation, fine))
    if features > 1:
        chosen.append(Hinges.of(observation, _HINGES, seed))
    return chosen


@dataclass(frozen=True, eq=False)
class Fit:
    """A regression.

    Attributes:
        basis, coefficients: fitted on all samples.
        predicted: (N,) of every sample by the fit without its fold.
        error: the root of their mean square distance from the target.
    """

    basis: Basis
    coefficients: Float[Array, " P"]
    predicted: Float[Array, " N"]
    error: float

    def function(self, plus: float = 0.0, by: int = 0) -> Function:
        """The fitted function over 2^by, plus a constant: float32 holds it where `by` is the target's exponent."""
        coefficients = shrunk(self.coefficients, by)
        coefficients[0] += plus
        return self.basis.function(coefficients)


class CrossFit:
    """Ridge regressions on one basis, one for each fold left out and one on all samples.

    The Gram matrix of a fold's complement is the whole one minus the fold's, so cross-fitting costs one pass. It is
    factorised once for any number of targets. The basis is computed anew for each: that is fast, and saves memory.

    Args:
        observation: (N, F) of samples in random order: folds are blocks of neighbours.
    """

    def __init__(self, basis: Basis, observation: Float[Array, "N F"], folds: int = FOLDS) -> None:
        self.basis, self.observation = basis, torch.from_numpy(observation)
        edges = np.linspace(0, len(observation), folds + 1).astype(int)
        self.blocks = [slice(a, b) for a, b in pairwise(edges)]
        columns = basis(self.observation)
        grams = torch.stack([_gram(columns[block]) for block in self.blocks])
        total = grams.sum(dim=0)
        penalty = torch.full((len(total),), float(total.trace()) / len(total), dtype=torch.float64)
        penalty[0] = 0.0
        penalties = torch.diag_embed(torch.outer(torch.tensor(RIDGES, dtype=torch.float64), penalty))
        penalties += 1e-9 * float(penalty.max()) * torch.eye(len(total), dtype=torch.float64)
        left_out = torch.cat([total - grams, total[None]])
        self.factors = torch.linalg.cholesky(left_out[:, None] + penalties)  # (folds + 1, ridges, P, P)

    def fit(self, target: Float[Array, " N"]) -> Fit:
        """The regression of a target on the basis, its penalty chosen by the out-of-fold error."""
        columns, by = self.basis(self.observation), exponent(target)
        wanted = torch.from_numpy(shrunk(target, by)).to(columns)
        moments = torch.stack([_moments(columns[block], wanted[block]) for block in self.blocks])
        total = moments.sum(dim=0)
        left_out = torch.cat([total - moments, total[None]])
        right = left_out[:, None, :, None].expand(*self.factors.shape[:3], 1)
        found = torch.cholesky_solve(right, self.factors)[..., 0]  # (folds + 1, ridges, P)
        predicted = columns.new_empty(len(columns), len(RIDGES))
        for f, block in enumerate(self.blocks):
            torch.mm(columns[block], found[f].T.to(columns), out=predicted[block])
        errors = (predicted - wanted[:, None]).square_().mean(dim=0).tolist()
        best = int(np.argmin(errors))
        coefficients, guess = found[-1, best].numpy(), predicted[:, best].double().numpy()
        error = float(np.ldexp(np.sqrt(errors[best]), by))
        return Fit(self.basis, shrunk(coefficients, -by), shrunk(guess, -by), error)


class Regression:
    """Conditional expectations given one exit's observation: cross-fitted on every basis, the best of them taken.

    Args:
        observation: (N, F) of samples in random order, as `shuffled` gives them.
        bases: that compete.
    """

    def __init__(self, observation: Float[Array, "N F"], bases: Sequence[Basis]) -> None:
        self.fits = [CrossFit(basis, observation) for basis in bases]

    def fit(self, target: Float[Array, " N"]) -> Fit:
        """The fit with the least out-of-fold error."""
        return min((fit.fit(target) for fit in self.fits), key=lambda fit: fit.error)


def among(seen: Float[Array, "N F"], going: Bool[Array, " N"], seed: int) -> tuple[Int[Array, " n"], Regression | None]:
    """The samples that may go on or stop at an exit, and the regression on them; None where they are too few."""
    rows = np.flatnonzero(going)
    if len(rows) < LEAST:
        return rows, None
    seen = seen if len(rows) == len(seen) else seen[rows]
    return rows, Regression(seen, bases(seen, seed))


def positive(features: int) -> Function:
    """A gain that is positive whatever is seen: where nothing can be fitted, a rule goes on."""
    flat = torch.zeros(features, 1)
    return Additive(low=flat, scale=flat, weight=flat, intercept=torch.tensor(1.0))


def shuffled(trace: Trace, seed: int) -> Trace:
    """The same samples in random order, so that blocks of neighbours are folds."""
    return trace.select(np.random.default_rng(seed).permutation(len(trace)))


def _gram(columns: Float[Tensor, "n P"]) -> Float[Tensor, "P P"]:
    """columnsᵀ columns, in double precision: columns may coincide, and the smallest penalty must part them."""
    return torch.stack([rows.T @ rows for rows in map(Tensor.double, columns.split(_CHUNK))]).sum(dim=0)


def _moments(columns: Float[Tensor, "n P"], target: Float[Tensor, " n"]) -> Float[Tensor, " P"]:
    """columnsᵀ target."""
    pairs = zip(columns.split(_CHUNK), target.split(_CHUNK), strict=True)
    return torch.stack([(rows.T @ wanted).double() for rows, wanted in pairs]).sum(dim=0)
