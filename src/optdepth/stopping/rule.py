"""Rule: the contract of a stopping rule; what it was solved on; what it does to a trace."""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from ..exit_costs import Costs
from ..features import with_history
from ..files import damaged, rebuilding
from ..recall import Windows, checked
from ..samples import Samples
from ..tensor_files import read_tensors, write_tensors
from ..threads import light
from ..trace import Trace
from .immutable import Immutable
from .kinds import enrol

FILE = "rule.safetensors"
"""The one file in a rule's folder: numbers, and in its head all else, so that it is replaced whole or not at all."""
_FORMAT, _VERSION = "optdepth.rule", 5
_ROWS, _IDENTITY = "fitted_on.rows", "fitted_on.identity"
"""Names of what fitted the rule, among its tensors."""
_TYPES = (torch.float32, torch.float64, torch.int64, torch.bool)


@dataclass(frozen=True, eq=False)
class Origin:
    """What a rule was solved on: enough to refuse it elsewhere.

    Attributes:
        costs: (K,) of the exits, in whose unit the price is; the mean over samples that were given (N, K).
        network: fingerprint of the network recorded; empty for a trace without one.
        price: loss that one unit of cost is worth; None for a rule that no price was needed for.
        fitted_on: the samples that fitted the rule, and so may not judge it; none for a rule made by hand.
        recall: which exits answer at each exit; see `optdepth.recall`.
    """

    costs: Costs
    network: str = ""
    price: float | None = None
    fitted_on: Samples = field(default_factory=Samples)
    recall: Windows = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", self.costs.mean())
        object.__setattr__(self, "recall", checked(self.recall, len(self.costs)))
        price = self.price
        if price is not None and (isinstance(price, bool) or not 0 <= price < math.inf):
            raise InputError(f"price is {price}; it is loss per unit of cost: finite and >= 0")

    @classmethod
    def of(cls, trace: Trace, price: float | None = None) -> Self:
        """The origin of a rule that this trace fits at this price."""
        return cls(trace.costs, trace.network, price, trace.samples, trace.recall)

    def check_unused(self, trace: Trace) -> None:
        """Refuses to be judged by samples that fitted the rule."""
        if shared := self.fitted_on.overlap(trace.samples):
            raise InputError(
                f"{shared:,} of these samples fitted the rule, so they cannot judge it; judge it on another split "
                f"(they are the same {self.fitted_on.alike(trace.samples)})"
            )


class Rule(Immutable):
    """A stopping rule: at each exit, from what may be seen there, stop or go on.

    A rule is small and immutable, and decides for a batch at a time. Up to `last` it is asked at the exits that it
    looks at; there all stop, and it is not asked. A rule of your own defines `stop` and `arguments`, and what else
    differs from what stands here.

    Example:
        >>> od.placed(fit, price=0.05).save("rule")
        >>> od.Rule.load("rule").origin.price
        0.05
    """

    kinds: ClassVar[dict[str, type[Rule]]] = {}

    features: tuple[str, ...]
    """Names of the observation's columns that `stop` reads, in order."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        enrol(Rule.kinds, cls)

    def __init__(self, origin: Origin, features: Sequence[str]) -> None:
        if isinstance(features, str) or not all(isinstance(name, str) for name in features):
            raise InputError(f"features are {features!r:.100}; give names, such as ('margin',)")
        self.origin = origin
        self.features = tuple(features)

    @abstractmethod
    def stop(self, k: int, observation: Float[Tensor, "n F"]) -> Bool[Tensor, " n"]:
        """Whether each sample stops at exit k (0-based, before the last), given its features there."""

    def decide(self, k: int, observation: Sequence[float]) -> bool:
        """`stop` for a single sample, whose features are Python numbers: quicker than tensors of one element."""
        return bool(self.stop(k, torch.tensor([observation], device=self.device)))

    def score(self, k: int, observation: Float[Tensor, "n F"]) -> Float[Tensor, " n"]:
        """What going on at exit k is worth, continuous in the observation: `stop` where it is not positive.

        Raises:
            InputError: the kind of rule has none; its stop region has no boundary to find.
        """
        raise InputError(f"a rule of kind {type(self).__name__} has no score to find the zero of; use snell")

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What rebuilds the rule besides its origin: tensors, and values that JSON can hold."""

    @classmethod
    def restore(cls, origin: Origin, arguments: dict[str, Any]) -> Self:
        """The rule that `arguments` describes."""
        return cls(origin, **arguments)

    @property
    def last(self) -> int:
        """The exit where all stop."""
        return len(self.origin.costs) - 1

    @property
    def looks(self) -> tuple[bool, ...]:
        """Which exits the rule looks at; it passes the others by, and what looking costs there is not paid."""
        return (True,) * len(self.origin.costs)

    @property
    def decides(self) -> tuple[bool, ...]:
        """Where it looks to decide; at other exits that it looks at, it is for what later answers recall."""
        return self.looks

    @property
    def kept(self) -> tuple[int, ...]:
        """The exits that it was solved between: all of them, or those that were kept."""
        return tuple(range(len(self.origin.costs)))

    @property
    def inner(self) -> Rule:
        """The rule between `kept` alone."""
        return self

    def check(self, network: str, n_exits: int) -> None:
        """Refuses another network, a trace of another number of exits, and a history of exits not looked at."""
        if n_exits != len(self.origin.costs):
            raise InputError(f"the rule decides between {len(self.origin.costs)} exits, but here are {n_exits}")
        if network and self.origin.network and network != self.origin.network:
            raise InputError(
                f"the rule was solved for network {self.origin.network}, this is network {network}; "
                "record this network and solve again"
            )
        if not all(self.looks[: self.last]) and (history := with_history(self.features)):
            raise InputError(f"{history[0]} refers to the exit before, which the rule does not look at; leave it out")

    def stopped_at(self, trace: Trace) -> Int[np.ndarray, " N"]:
        """The exit (0-based) at which each sample of a trace stops."""
        return first_stop(self.stops(trace))

    @light
    def stops(self, trace: Trace) -> Bool[np.ndarray, "N D"]:
        """Where the rule would stop each sample if it came there; nowhere at exits that it does not decide at.

        Where a sample has ended by itself, it has stopped.
        """
        self.check(trace.network, trace.n_exits)
        columns = torch.from_numpy(trace.columns(self.features))
        stops = np.zeros((len(trace), trace.n_exits - 1), dtype=bool)
        for k in np.flatnonzero(self.decides[: self.last]):
            stops[:, k] = self.stop(int(k), columns[:, k].to(self.device)).cpu().numpy()
        stops[:, self.last :] = True
        return stops if trace.costs.horizon is None else stops | trace.ended

    def save(self, folder: str | Path) -> None:
        """Writes `rule.safetensors` into a folder, whole or not at all."""
        arguments = self.arguments()
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in arguments.items() if name not in tensors}
        costs = {name: getattr(self.origin.costs, name).tolist() for name in ("reach", "look", "answer")}
        fitted_on = self.origin.fitted_on
        used = {_ROWS: torch.from_numpy(fitted_on.rows), _IDENTITY: torch.from_numpy(fitted_on.identity)}
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": type(self).__name__,
            "arguments": plain,
            "costs": costs | {"unit": self.origin.costs.unit},
        }
        about |= {name: getattr(self.origin, name) for name in ("network", "price", "recall")}
        write_tensors(Path(folder) / FILE, tensors | used, about | {"source": fitted_on.source})

    @staticmethod
    def load(folder: str | Path) -> Rule:
        """Reads what `save` wrote; anything else is refused."""
        path, again = Path(folder) / FILE, "solve the rule again"
        held, about = read_tensors(path, format=_FORMAT, version=_VERSION, make_it=again)
        kind, source, network = (about.take(name, str) for name in ("kind", "source", "network"))
        if kind not in Rule.kinds:
            raise InputError(f"{path} holds a rule of kind {kind!r:.40}, which this optdepth lacks")
        rows, identity = (held.take(name, torch.int64, 1) for name in (_ROWS, _IDENTITY))
        told = about.inner("costs")
        costs = {name: told.take(name, list[float]) for name in ("reach", "look", "answer")}
        price, recall = about.take("price", float | None, least=0), about.take("recall", Windows)
        tensors = {name: value for name, value in held.held.items() if name not in (_ROWS, _IDENTITY)}
        for name, value in tensors.items():
            if value.dtype not in _TYPES or value.isnan().any():
                raise damaged(path, ValueError(f"{name} holds NaN, or numbers of type {value.dtype}"), again)
        arguments = {**about.take("arguments", dict[str, Any]), **tensors}
        with rebuilding(path, again):
            fitted_on = Samples(source, rows, identity)
            origin = Origin(Costs.of(**costs, unit=told.take("unit", str)), network, price, fitted_on, recall)
            rule = Rule.kinds[kind].restore(origin, dict(arguments))
        if lacking := rule.arguments().keys() ^ arguments.keys():
            raise damaged(path, ValueError(f"{min(lacking)} is missing, or is nothing of such a rule"), again)
        return rule


class FixedDepth(Rule):
    """Every sample stops at the same exit: a shallower network, the least a rule must beat."""

    def __init__(self, origin: Origin, exit: int) -> None:
        super().__init__(origin, ())
        if type(exit) is bool or not 0 <= exit < len(origin.costs):
            raise InputError(f"exit {exit} is outside 0..{len(origin.costs) - 1}")
        self.exit = operator.index(exit)

    @property
    def last(self) -> int:
        return self.exit

    @property
    def looks(self) -> tuple[bool, ...]:
        first, last = self.origin.recall[self.exit] if self.origin.recall else (self.exit, self.exit)
        return tuple(k == self.exit or first <= k <= last for k in range(len(self.origin.costs)))

    @property
    def decides(self) -> tuple[bool, ...]:
        return tuple(k == self.exit for k in range(len(self.origin.costs)))

    def stop(self, k: int, observation: Float[Tensor, "n F"]) -> Bool[Tensor, " n"]:
        return torch.full((len(observation),), k == self.exit, device=observation.device)

    def arguments(self) -> dict[str, Any]:
        return {"exit": self.exit}


def first_stop(stops: Bool[np.ndarray, "N D"]) -> Int[np.ndarray, " N"]:
    """The first exit at which each sample stops; the last exit, K - 1, where none does."""
    exits: Int[np.ndarray, " N"] = np.where(stops.any(axis=1), stops.argmax(axis=1), stops.shape[1])
    return exits
