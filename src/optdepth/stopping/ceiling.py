"""A ceiling on the mean cost, certified together with risks (theory, section 9).

Risk grows from the rule that never stops early to the most eager one, and cost falls. So risks are tested in a fixed
sequence from the first on, and the ceiling in another from the last on, each at half the level: with the confidence
asked for, all rules that pass both keep both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..trace import Trace
from .risks import betting_p

Array = np.ndarray


@dataclass(frozen=True)
class Ceiling:
    """A test of "the mean cost is above this", on independent samples, by `betting_p`.

    Attributes:
        cost: what is to be shown, a mean cost of at most so much.
        most: no sample of the law costs more; a bound on a mean holds for bounded values only.
        level: chance at most of showing it wrongly.
    """

    cost: float
    most: float
    level: float

    @classmethod
    def of(cls, trace: Trace, cost: float, most: float | None, level: float) -> Self:
        """Of a trace's unit of cost.

        Args:
            most: the most that a sample can cost; None where all samples cost the same, and it is known.

        Raises:
            InputError: it is not known, or a sample of the trace costs more; or the ceiling is none.
        """
        dearest = float(trace.costs.paid().max())
        if most is None:
            if trace.costs.samples is not None:
                raise InputError(
                    f"samples differ in cost, and nothing bounds a mean of what is unbounded: say most=, the most that "
                    f"a sample can cost in {trace.costs.unit}, such as a limit that is enforced; here {dearest:g}"
                )
            most = dearest
        if not dearest <= most < np.inf:
            raise InputError(
                f"most is {most:g}, and a sample costs {dearest:g} {trace.costs.unit}: give what none exceeds"
            )
        if not 0 < cost < most:
            raise InputError(f"cost is {cost:g} {trace.costs.unit}; a ceiling is above 0 and below the most, {most:g}")
        return cls(cost, most, level)

    def shows(self, costs: Float[Array, " n"]) -> bool:
        """Whether these costs, in an order that has nothing to do with them, show that their mean is no more."""
        return betting_p(costs / self.most, self.cost / self.most, self.level, 0.0) <= self.level
