"""Study: everything that the report shows, measured once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ..errors import InputError
from ..progress import shown_steps
from ..stopping.bounds import Prophet, prophet
from ..stopping.evaluate import Evaluation, evaluate
from ..stopping.frontier import Frontier, fixed_depths, frontier, prices_for
from ..stopping.methods import METHODS, SOLVED, baselines
from ..stopping.rule import Rule
from ..trace import Trace


@dataclass(frozen=True)
class Provenance:
    """How the numbers were made, word for word.

    Attributes:
        commands: in the order they were run.
        versions: of the software and the machine, by name.
        seeds: by what they seed.
        training: how the network was trained, by setting.
    """

    commands: Sequence[str]
    versions: Mapping[str, str]
    seeds: Mapping[str, int]
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Study:
    """Rules at one price and methods over a sweep of prices, all judged on the test trace.

    Attributes:
        names: K, of the exits.
        fit, test: traces; what is reported is measured on `test`.
        rules: by name; `SOLVED` among them.
        price: at which the rules were solved.
        results: of each rule.
        frontiers: of every method in `METHODS`.
        depths: every sample at one exit, for each exit; the last is the full network.
        hindsight: the prophet at each price of the frontiers.
        rival: name of the baseline with the least loss + price x cost on the test trace.
        seed: of the bootstrap.
    """

    names: tuple[str, ...]
    fit: Trace
    test: Trace
    rules: Mapping[str, Rule]
    price: float
    results: Mapping[str, Evaluation]
    frontiers: Mapping[str, Frontier]
    depths: Sequence[Evaluation]
    hindsight: Sequence[Prophet]
    rival: str
    seed: int

    @classmethod
    def measure(
        cls, names: Sequence[str], fit: Trace, test: Trace, rules: Mapping[str, Rule], price: float, seed: int
    ) -> Self:
        """Solves the sweeps and judges everything; arguments as for `write_report`."""
        _check(names, fit, test, rules, price)
        results = {name: evaluate(rule, test) for name, rule in rules.items()}
        prices = prices_for(fit)
        return cls(
            names=tuple(names),
            fit=fit,
            test=test,
            rules=rules,
            price=price,
            results=results,
            frontiers={
                method: frontier(method, fit, test, prices) for method in shown_steps(METHODS, "solving sweeps")
            },
            depths=fixed_depths(test),
            hindsight=[prophet(test, price=float(p)) for p in prices],
            rival=min((name for name in results if name in baselines()), key=lambda n: results[n].value(price)),
            seed=seed,
        )

    @property
    def full(self) -> Evaluation:
        """The network without exits."""
        return self.depths[-1]

    @property
    def solved(self) -> Evaluation:
        """The solved rule."""
        return self.results[SOLVED]

    def advantage(self, other: Evaluation) -> tuple[float, float]:
        """How much more loss + price x cost another rule has than the solved one, and the paired standard error."""
        difference = (other.losses - self.solved.losses) + self.price * (other.costs - self.solved.costs)
        return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def _check(names: Sequence[str], fit: Trace, test: Trace, rules: Mapping[str, Rule], price: float) -> None:
    if not len(names) == fit.n_exits == test.n_exits:
        raise InputError(f"{len(names)} exit names for traces of {fit.n_exits} (fit) and {test.n_exits} (test) exits")
    if len(test) < 2:
        raise InputError("one test sample has no standard error; record more")
    for name, trace in (("fit", fit), ("test", test)):
        if not np.isin(trace.losses, (0.0, 1.0)).all():
            raise InputError(f"the report speaks of accuracy, but the {name} trace has losses other than 0 and 1")
    if SOLVED not in rules or not any(name in baselines() for name in rules):
        raise InputError(
            f"rules are {', '.join(rules) or 'empty'}; the report needs {SOLVED!r} and at least one of "
            + ", ".join(baselines())
        )
    for name, rule in rules.items():
        at = rule.origin.price
        if name in METHODS and at is not None and not np.isclose(at, price, rtol=1e-6, atol=0):
            raise InputError(f"rule {name!r} was solved at price {at:g}, the report is for {price:g}; solve it again")
