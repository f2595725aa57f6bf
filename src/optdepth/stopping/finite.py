"""The depth is finite: three bounds on the optimal stopping depth (theory, section 5), and the depths a rule uses.

(A) bounds the mean cost and needs no assumption; (B) needs diminishing returns, estimated here from a trace; (C)
needs a decay law of the residuals and one linear head shared over depths, and then holds beyond the recorded depths
too. Exits are 0-based, as everywhere; k in a law of decay is the depth, exit + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from ..errors import InputError
from ..threads import light
from ..trace import Trace
from .decay import CONFIDENCE, Decay, decay
from .evaluate import Evaluation, evaluate
from .posterior import expected_losses
from .regression import LEAST, CrossFit, Ramps, shuffled
from .rule import Rule

Array = np.ndarray

_RAMPS, _FOLDS = 8, 5
_ROUNDING = 1e-5
"""Losses come from float32 logits: steps of a state that has come to rest still move them by so much, in nats."""
_ONE_SIDED = float(stats.norm.ppf(CONFIDENCE))


@dataclass(frozen=True)
class ExpectedDepth:
    """Bound (A): the mean cost of the optimal rule is at most C_1 + (E[L_1] - inf L) / price.

    It holds for any rule that is no worse than stopping at once.

    Attributes:
        bound, error: the bound, in the trace's unit of cost, and its standard error.
        cost, cost_error: mean cost of the rule at hand, and its standard error.
        whole: cost of the last exit.
    """

    bound: float
    error: float
    cost: float
    cost_error: float
    whole: float

    @property
    def upper(self) -> float:
        """Upper 95% confidence limit of the bound."""
        return self.bound + _ONE_SIDED * self.error

    @property
    def kept(self) -> bool:
        """Whether the rule keeps within the bound's upper limit; one that does not is worse than stopping at once."""
        return self.cost <= self.upper

    def __str__(self) -> str:
        verdict = "keeps within it" if self.kept else "exceeds it, so stopping at once would be better"
        limit = f"on average the optimal rule costs at most {self.bound:.4g} ± {self.error:.2g}"
        if self.upper >= self.whole:
            return f"(A) With no assumption, {limit}: no news, for the whole depth costs {self.whole:.4g}."
        return f"(A) With no assumption, {limit}; this rule, at {self.cost:.4g} ± {self.cost_error:.2g}, {verdict}."


@dataclass(frozen=True, eq=False)
class ReturnsBound:
    """Bound (B): where E[L_k - L_k+1 | s_k] <= price (C_k+1 - C_k) from exit N on, no optimal rule goes beyond N.

    An estimate: the largest expected gain is that of a fitted regression over the recorded samples, at its upper 95%
    limit, and cannot see what the regression smooths away or no sample showed.

    Attributes:
        gains: (K - 1,) the most that one step from each exit is expected to gain, in units of loss.
        worth: (K - 1,) price x cost of that step; where costs differ by sample, of a step of mean cost, and the gain is
            less what the sample's own costs above it.
        exit: N; the last exit where steps pay up to the end of the trace, and then the bound says nothing.
    """

    gains: Float[Array, " D"]
    worth: Float[Array, " D"]
    exit: int

    @property
    def informative(self) -> bool:
        """Whether N lies before the last exit."""
        return self.exit < len(self.gains)

    def __str__(self) -> str:
        if not self.informative:
            return (
                "(B) Diminishing returns set no limit on this trace: at the last step some samples are still estimated "
                f"to gain more than it costs, {self.gains[-1]:.2g} against {self.worth[-1]:.2g}."
            )
        return (
            f"(B) From exit {self.exit} on, no step is estimated to gain any sample more than it costs (at most "
            f"{self.gains[self.exit :].max():.2g}, at 95% confidence), so no optimal rule goes beyond exit {self.exit}."
        )


@dataclass(frozen=True, eq=False)
class ResidualBound:
    """Bound (C): |L_k+1 - L_k| <= sqrt(2) ||W|| ||F_k+1||, and a decay law says from where that is not worth a step.

    Attributes:
        decay: the law of the residual sizes; None where there are too few.
        exit: no optimal rule goes beyond it, in the network as it is or continued by the same law; None where an
            assumption is not met.
        unmet: what the bound assumes and this trace does not meet, or does not show.
    """

    decay: Decay | None
    exit: int | None
    unmet: tuple[str, ...]

    def __str__(self) -> str:
        found = f" {_capital(str(self.decay))}." if self.decay else ""
        if self.exit is None:
            return f"(C) The bound from the weights does not apply: {'; '.join(self.unmet)}.{found}"
        mind = f" Mind: {'; '.join(self.unmet)}." if self.unmet else ""
        return f"(C) However deep the network, no optimal rule goes beyond exit {self.exit}.{found}{mind}"


@dataclass(frozen=True, eq=False)
class FiniteDepth:
    """The three bounds at one price, and what a rule does.

    Attributes:
        price: loss that one unit of cost is worth.
        expected: bound (A).    diminishing: bound (B).    residual: bound (C).
        shares: (K,) share of the samples that the rule stops at each exit.
    """

    price: float
    expected: ExpectedDepth
    diminishing: ReturnsBound
    residual: ResidualBound
    shares: Float[Array, " K"]

    @property
    def deepest(self) -> int:
        """The deepest exit that the rule really uses."""
        return int(np.flatnonzero(self.shares)[-1])

    @property
    def bound(self) -> int | None:
        """The least exit that (B) or (C) allows; None where neither says anything."""
        exits = [self.diminishing.exit] if self.diminishing.informative else []
        return min(exits + ([] if self.residual.exit is None else [self.residual.exit]), default=None)

    def __str__(self) -> str:
        used = f"The rule's deepest exit is {self.deepest} of 0 to {len(self.shares) - 1}"
        if self.bound is None:
            verdict = "and neither (B) nor (C) limits it."
        elif self.deepest <= self.bound:
            verdict = f"within the limit, exit {self.bound}."
        else:
            beyond = self.shares[self.bound + 1 :].sum()
            verdict = f"beyond the limit, exit {self.bound}, for {beyond:.1%} of the samples: more than is worth it."
        return f"At price {self.price:g}. {self.expected} {self.diminishing} {self.residual} {used}, {verdict}"


@light
def finite_depth(
    trace: Trace,
    rule: Rule,
    *,
    price: float,
    residuals: Float[Array, "N K"] | None = None,
    head_norm: float | None = None,
    shared_head: bool = False,
    least_loss: float = 0.0,
    seed: int = 0,
) -> FiniteDepth:
    """The bounds of theory section 5 on a trace, and the depths that a rule solved elsewhere uses on it.

    Args:
        trace: samples that did not fit the rule. Without `residuals`, its feature "residual" (relative sizes) gives the
            decay law alone.
        rule: solved at the price.
        price: loss that one unit of cost is worth, > 0.
        residuals: (N, K) absolute ||F_k|| of the stage that leads to each exit, for (C).
        head_norm: ||W||_2 of the linear head, for (C).
        shared_head: whether that one head, after a pooling that is 1-Lipschitz, answers at every exit.
        least_loss: inf L, the least the loss can be.
        seed: of the folds that choose how smooth the regressions are.

    Raises:
        InputError: a price that is not positive or not the rule's own, a loss below `least_loss`, or sizes or a norm
            that cannot be.

    Example:
        >>> found = od.finite_depth(test, od.snell(fit, price=0.05), price=0.05)
        >>> found.expected.cost <= found.expected.bound + 3 * found.expected.error
        True
    """
    if not (np.isfinite(price) and price > 0):
        raise InputError(f"price is {price:g}; where depth costs nothing no depth is too deep: give a price > 0")
    if rule.origin.price is not None and not np.isclose(rule.origin.price, price):
        raise InputError(f"the rule was solved at price {rule.origin.price:g}, the bounds are asked for at {price:g}")
    found = evaluate(rule, trace)
    return FiniteDepth(
        price=price,
        expected=expected_depth_bound(trace, found, price=price, least_loss=least_loss),
        diminishing=_diminishing_returns(trace, price, seed),
        residual=_residual_bound(trace, price, residuals, head_norm, shared_head),
        shares=found.shares,
    )


def expected_depth_bound(trace: Trace, found: Evaluation, *, price: float, least_loss: float = 0.0) -> ExpectedDepth:
    """Bound (A), from the losses at the first exit alone.

    Args:
        trace: samples, as in `finite_depth`.
        found: what the rule to compare with does on them.
        price, least_loss: as in `finite_depth`.
    """
    if trace.losses.min() < least_loss:
        raise InputError(
            f"a loss of {trace.losses.min():g} is below the least loss, {least_loss:g}; give least_loss=, the least "
            "that this loss can be (for rewards: minus the largest)"
        )
    paid = trace.costs.paid()
    first = paid[..., 0] + (trace.losses[:, 0] - least_loss) / price
    error = first.std(ddof=1) / np.sqrt(len(first)) if len(first) > 1 else math.inf
    return ExpectedDepth(float(first.mean()), float(error), found.cost, found.cost_error, float(paid[..., -1].mean()))


def _diminishing_returns(trace: Trace, price: float, seed: int) -> ReturnsBound:
    trace = shuffled(trace, seed)
    drop, toll = -np.diff(expected_losses(trace), axis=1), price * np.diff(trace.costs.paid(), axis=-1)
    worth = toll
    if toll.ndim == 2:  # what a sample's own step costs above the mean is taken off its gain
        worth = toll.mean(axis=0)
        drop = drop - (toll - worth)
    going = ~trace.ended
    rows = [np.flatnonzero(going[:, k]) for k in range(trace.n_exits - 1)]
    most = float(np.ptp(trace.losses))  # where too few samples go on to tell, a step may gain as much as there is
    gains = np.array(
        [
            _largest(trace.observations[index, k], drop[index, k]) if len(index) >= LEAST else most
            for k, index in enumerate(rows)
        ]
    )
    pays = np.flatnonzero(gains > worth)
    return ReturnsBound(gains, worth, int(pays[-1]) + 1 if len(pays) else 0)


def _largest(seen: Float[Array, "N F"], drop: Float[Array, " N"]) -> float:
    """The largest upper 95% limit, over the samples, of the regression of a step's drop in loss.

    Each limit is around the prediction of the fit without the sample's fold, by the standard error of least squares;
    the error of prediction in it includes what the basis cannot express.
    """
    ramps = Ramps.of(seen, _RAMPS)
    predicted = CrossFit(ramps, seen).fit(drop).predicted
    basis = ramps(torch.from_numpy(seen).double()).numpy()
    leverage = np.einsum("np,pq,nq->n", basis, np.linalg.pinv(basis.T @ basis), basis, optimize=True)
    spread = np.sqrt(np.square(drop - predicted).mean() * np.maximum(leverage, 0.0))
    return float((predicted + _ONE_SIDED * spread).max())


def _residual_bound(
    trace: Trace, price: float, residuals: Array | None, head_norm: float | None, shared_head: bool
) -> ResidualBound:
    relative = trace.columns(["residual"])[:, :, 0] if "residual" in trace.features else None
    sizes = relative if residuals is None else residuals
    if sizes is None:
        return ResidualBound(None, None, ("no residual sizes: give residuals=, or record the feature 'residual'",))
    if sizes.shape != trace.losses.shape:
        raise InputError(f"residuals must be (N, K) = {trace.losses.shape}; got shape {sizes.shape}")
    if head_norm is not None and not (np.isfinite(head_norm) and head_norm > 0):
        raise InputError(f"head_norm is {head_norm:g}; it is the spectral norm of the head's weight, finite and > 0")
    start, notes = _constant_shape(relative)
    found = decay(sizes[:, start:], np.arange(start + 1, trace.n_exits + 1))
    law = found.law if found else None
    step = float(np.diff(trace.costs.paid(), axis=-1).min())
    unmet = [
        *(["samples end by themselves, and behind that have no residuals"] if trace.costs.horizon is not None else []),
        *_unmet_by_head(trace, residuals, head_norm, shared_head, start),
        *(["a step costs nothing"] if step <= 0 else []),
        *(["fewer than four depths of one shape have a residual"] if found is None else []),
        *(["neither law holds"] if found and law is None else []),
    ]
    if unmet or law is None or head_norm is None:
        return ResidualBound(found, None, (*unmet, *notes))
    depth = law.depth_below(price * step / (math.sqrt(2) * head_norm))
    return ResidualBound(found, max(depth - 1, start), notes)


def _constant_shape(relative: Float[Array, "N K"] | None) -> tuple[int, tuple[str, ...]]:
    """The first exit behind which the state keeps its shape, and what is to be said about it.

    A stage that changes the shape has the relative size 1 on every sample (`features.residual_size`).
    """
    if relative is None:
        return 0, ("a stage that changes the state's shape would not show, for the trace has no feature 'residual'",)
    changes = np.flatnonzero((relative == 1.0).all(axis=0))
    if len(changes) == 0:
        return 0, ()
    last = int(changes[-1])
    return last + 1, (f"the state last changes its shape before exit {last}; the law is of the exits behind it",)


def _unmet_by_head(
    trace: Trace, residuals: Array | None, head_norm: float | None, shared_head: bool, start: int
) -> list[str]:
    """What the step from residual sizes to losses assumes and is not met: (C) without its decay law."""
    unmet = []
    if residuals is None:
        unmet.append("relative residual sizes give no bound, absolute ones do: give residuals=")
    if head_norm is None:
        unmet.append("the norm of the head is not known: give head_norm=")
    if not shared_head:
        unmet.append("each exit has a head of its own")
    if np.isin(trace.losses, (0.0, 1.0)).all():
        unmet.append("the losses are 0-1, and the bound is on cross-entropy")
    elif residuals is not None and head_norm is not None and shared_head:
        allowed = math.sqrt(2) * head_norm * residuals[:, 1:]
        broken = (np.abs(np.diff(trace.losses, axis=1)) > allowed * (1 + 1e-6) + _ROUNDING)[:, start:].mean()
        if broken > 0:
            unmet.append(
                f"{broken:.1%} of the recorded steps change the loss by more than one head of this norm can, so the "
                "heads differ, the pooling is not 1-Lipschitz, or the loss is not the cross-entropy"
            )
    return unmet


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
