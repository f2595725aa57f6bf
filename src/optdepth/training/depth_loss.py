"""The depth regularizer L_depth (theory section 6): how much each exit's loss shapes the trunk, per sample.

One idea covers every part. Let L (n, K) be the cross-entropies of a batch at the K exits, C (K,) the costs
with C_K = 1, λ the price, h (n, K) halting probabilities. A part is a loss J(L, C, λ, h, ...) -> (n,). Then

- every head is trained in full, on the mean of its own L_k over all samples, or of what it learns from a teacher;
- the trunk receives the gradient of J: w_k = ∂J/∂L_k times that of L_k at head k's features, per sample, whatever the
  head itself learns from. A head that normalises by batch hands a sample what it does to the others through the
  batch's statistics as well; that is weighted by the sample's own w_k too;
- a loss that is `balanced` lets no stage starve: the gradient that comes back through stage k is raised to the
  same total at every depth, that of the first stage. It is then the gradient of J given that stage k is reached;
- the halting head receives ∂J/∂h, with L and its own observations held fixed; a rule solved anew each epoch may
  stand in its place;
- what J asks of the states themselves (residual sizes) reaches the trunk without a head.

So a part that weighs the last exit alone trains the network without exits, with probes on its states.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError

Need = Literal["price", "halting", "rule", "residuals"]

TAUGHT = 0.7
"""Share of the last exit's answer in what the early exits learn. The one tried: see docs/depth_loss.md."""


@dataclass(frozen=True)
class Seen:
    """What a part may use of one batch.

    Attributes:
        losses: (n, K) cross-entropies L in nats; they carry no gradient to the network.
        costs: (K,) cumulative costs C, with C_K = 1.
        price: λ, nats per unit of cost.
        halting: (n, K) probabilities h of stopping at an exit once there, h_K = 1, of the halting head, or 0 and 1 of
            the rule; None unless needed.
        residuals: relative residual sizes (n,), one for each stage that holds a block, None where it changes the
            state's shape; they carry their gradient to the trunk. Empty unless a part needs them.
    """

    losses: Float[Tensor, "n K"]
    costs: Float[Tensor, " K"]
    price: float
    halting: Float[Tensor, "n K"] | None = None
    residuals: tuple[Float[Tensor, " n"] | None, ...] = ()

    @property
    def totals(self) -> Float[Tensor, "n K"]:
        """Y_k = L_k + λ C_k."""
        return self.losses + self.price * self.costs


@runtime_checkable
class Part(Protocol):
    """A loss per sample. Differentiable in `losses`, and in `halting` and `residuals` where it needs them."""

    @property
    def needs(self) -> frozenset[Need]:
        """What it uses beyond the losses."""
        ...

    def __call__(self, seen: Seen) -> Float[Tensor, " n"]: ...


@dataclass(frozen=True)
class DeepSupervision:
    """Σ_k share_k L_k with fixed shares: `early` for each exit before the last, the rest for the last.

    `early` is a share in [0, 1/(K-1)], "equal" for 1/K each (plain deep supervision, Lee et al. 2015,
    arXiv:1409.5185), or "priced": nothing up to a price of 0.3 nats, 1/K from 1.2 on, linear between. What the trunk
    is asked for its early exits the last one pays for, so it is worth asking only where cost is dear. In the
    screening of docs/depth_loss_group_norm.md an untouched trunk was best up to a price of about 0.1 errors a pass, 5%
    each at 0.2, equal shares from 0.4 on. The line, at about three nats an error, is this project's choice.
    """

    early: float | Literal["equal", "priced"] = "equal"

    def __post_init__(self) -> None:
        if isinstance(self.early, str):
            if self.early not in ("equal", "priced"):
                raise InputError(f"early={self.early!r}: give a share, 'equal' or 'priced'")
        elif not 0 <= self.early <= 1:
            raise InputError(f"early={self.early}: give a share from 0 to 1/(K-1) for each of K-1 exits")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"price"}) if self.early == "priced" else frozenset()

    def __call__(self, seen: Seen) -> Float[Tensor, " n"]:
        exits = seen.losses.shape[1]
        share = self._share(exits, seen.price)
        if share * (exits - 1) > 1:
            raise InputError(f"early={share} for each of {exits - 1} exits is more than all: give less")
        return share * seen.losses[:, :-1].sum(1) + (1 - share * (exits - 1)) * seen.losses[:, -1]

    def _share(self, exits: int, price: float) -> float:
        if isinstance(self.early, float | int):
            return self.early
        eager = 1.0 if self.early == "equal" else min(max((price - 0.3) / 0.9, 0.0), 1.0)
        return eager / exits


@dataclass(frozen=True)
class StoppingCost:
    """Σ_k p_k (L_k + λ C_k) with p_k = h_k Π_{i<k} (1 - h_i): the cost of a randomised stopping time.

    Its optimum over h is the optimal stopping value, as h sees no label. As the heads train in full and the trunk
    alone receives w_k = p_k, this is also the "matched gradients" of theory section 6; the form in which heads train on
    p_k alone does not exist here.

    Attributes:
        by: whose h it is: "head", a small network that learns beside the others; or "rule", where the rule stops that
            `snell` solves on the fit split after every epoch, for the network and the price of the moment.
    """

    by: Literal["head", "rule"] = "head"

    def __post_init__(self) -> None:
        if self.by not in ("head", "rule"):
            raise InputError(f"by={self.by!r}: give 'head' or 'rule'")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"price", "halting" if self.by == "head" else "rule"})

    def __call__(self, seen: Seen) -> Float[Tensor, " n"]:
        assert seen.halting is not None
        going = (1 - seen.halting[:, :-1]).cumprod(1)
        reached = torch.cat([torch.ones_like(going[:, :1]), going], dim=1) if going.numel() else 1.0
        return (seen.halting * reached * seen.totals).sum(1)


@dataclass(frozen=True)
class SoftEnvelope:
    """V_1 of V_K = Y_K, V_k = -T log(½ exp(-Y_k / T) + ½ exp(-V_{k+1} / T)), with Y_k = L_k + λ C_k.

    No new parameter. As T -> 0 it becomes the prophet's loss min_k Y_k (it uses the label in hindsight); as T
    grows, the mixture Σ_{k<K} 2^-k Y_k + 2^-(K-1) Y_K. `temperature` T is in nats.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"temperature {self.temperature}: give a positive number of nats")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"price"})

    def __call__(self, seen: Seen) -> Float[Tensor, " n"]:
        scaled = -seen.totals / self.temperature
        value = scaled[:, -1]
        for k in reversed(range(scaled.shape[1] - 1)):
            value = torch.logaddexp(scaled[:, k], value) - math.log(2)
        return -self.temperature * value


@dataclass(frozen=True)
class DiminishingReturns:
    """Σ_k max(0, r_{k+1} - ρ r_k) over neighbouring stages that keep the state's shape; r: residual sizes.

    It trains the assumption of theory section 5, (B) and (C), into the network and touches no label.
    """

    rho: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise InputError(f"rho={self.rho}: give a rate of decay in (0, 1]")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"residuals"})

    def __call__(self, seen: Seen) -> Float[Tensor, " n"]:
        total = torch.zeros_like(seen.losses[:, 0])
        for before, after in itertools.pairwise(seen.residuals):
            if before is not None and after is not None:
                total = total + F.relu(after - self.rho * before)
        return total


@dataclass(frozen=True)
class PriceSchedule:
    """How the price grows: zero for a share `hold` of the training, linear over `ramp`, then constant."""

    hold: float = 0.2
    ramp: float = 0.3

    def __post_init__(self) -> None:
        if not (self.hold >= 0 and self.ramp >= 0 and self.hold + self.ramp <= 1):
            raise InputError(f"hold {self.hold}, ramp {self.ramp}: give shares of the training, at most 1 in all")

    def factor(self, progress: float) -> float:
        """Share of the price in force once a share `progress` in [0, 1] of the training is done."""
        if progress < self.hold + self.ramp:
            return max(progress - self.hold, 0.0) / self.ramp if self.ramp else 0.0
        return 1.0


@dataclass(frozen=True)
class DepthLoss:
    """A weighted sum of parts, at a price that grows while training.

    Attributes:
        price: λ >= 0, in nats of cross-entropy per unit of cost, where the whole depth costs 1.
        parts: (weight, part) pairs. By default supervision that the price moves from the last exit alone, with heads
            that read the trunk and ask nothing of it, to equal shares. So at price 0 the trunk is, to the bit, that of
            the network trained without exits.
        schedule: how the price grows.
        distillation: share, in [0, 1), of the last exit's own answer in what the early exits learn: (1 - share) x
            cross-entropy with the label + share x divergence from the last exit's probabilities, which are held fixed
            (Phuong and Lampert 2019, "Distillation-based training for multi-exit architectures"). It is for the heads
            alone: J compares exits by the L_k, as divergences from an unsure teacher are small at every early exit and
            do not tell where to stop, and the trunk receives the gradient of J, as a trunk that is asked to make early
            exits agree with the last one makes all of them poor. It needs class probabilities: give 0 for other tasks.
        balanced: whether every stage of the trunk receives gradient of the same total weight. The weights w_k = ∂J/∂L_k
            say how much of the first stage's gradient each exit gives; a later stage hears the later exits alone, so
            of J itself it gets less the fewer they are. For equal shares this is the gradient equilibrium of Li et al.
            2019, arXiv:1908.06294; for a stopping cost, the recursion of the envelope: each stage is trained on what
            those who get there have still to pay. It made no difference to deep supervision
            (docs/depth_loss_group_norm.md).

    Raises:
        InputError: a price that is negative or that no part uses, no part, a weight that is not positive, a share
            outside [0, 1), or parts that stop by a head and by a rule.

    Example:
        >>> from optdepth.training import DeepSupervision
        >>> loss = od.DepthLoss(parts=((1.0, DeepSupervision("equal")),), distillation=0.0)
    """

    price: float = 0.0
    parts: tuple[tuple[float, Part], ...] = ((1.0, DeepSupervision("priced")),)
    schedule: PriceSchedule = PriceSchedule()
    distillation: float = TAUGHT
    balanced: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.distillation < 1:
            raise InputError(f"distillation {self.distillation}: give a share, 0 or more and below 1")
        if not (self.price >= 0 and math.isfinite(self.price)):
            raise InputError(f"price {self.price}: give a number of nats per unit of cost, 0 or more")
        if not self.parts or any(not 0 < weight < math.inf for weight, _ in self.parts):
            raise InputError(f"parts {self.parts}: give at least one (weight, part), weights above 0")
        if {"halting", "rule"} <= self.needs:
            raise InputError(f"parts {self.parts} stop by a head and by a rule: give one of them")
        if self.price > 0 and "price" not in self.needs:
            raise InputError(f"price {self.price} has no effect on {self.parts}: give price 0, or another part")

    @property
    def needs(self) -> frozenset[Need]:
        """What the parts use beyond the losses."""
        return frozenset().union(*(part.needs for _, part in self.parts))

    def price_at(self, progress: float) -> float:
        """λ in force once a share `progress` in [0, 1] of the training is done."""
        return self.price * self.schedule.factor(progress)

    def __call__(self, seen: Seen) -> Float[Tensor, " n"]:
        """J per sample."""
        return torch.stack([weight * part(seen) for weight, part in self.parts]).sum(0)


PARTS: dict[str, Part] = {
    "priced-supervision": DeepSupervision("priced"),
    "deep-supervision": DeepSupervision("equal"),
    "light-supervision": DeepSupervision(0.02),
    "last-exit": DeepSupervision(0.0),
    "stopping-cost": StoppingCost(),
    "soft-envelope": SoftEnvelope(),
}
DIMINISHING, DISTILLATION = "+diminishing-returns", "+distillation"


def depth_loss(name: str, price: float) -> DepthLoss:
    """The loss of a name such as "light-supervision", "stopping-cost+diminishing-returns" or "last-exit+distillation".

    Raises:
        InputError: a name that is none of `PARTS`, perhaps with the suffixes in this order; or a price it cannot use.
    """
    rest = name.removesuffix(DISTILLATION)
    base = rest.removesuffix(DIMINISHING)
    if base not in PARTS:
        raise InputError(
            f"no loss {name!r}: give {', '.join(PARTS)}; each may end in {DIMINISHING}, then in {DISTILLATION}"
        )
    extra = ((1.0, DiminishingReturns()),) if base != rest else ()
    return DepthLoss(price, ((1.0, PARTS[base]), *extra), distillation=TAUGHT if rest != name else 0.0)
