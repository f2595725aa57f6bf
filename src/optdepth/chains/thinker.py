"""Thinker: a solved rule at the side of a model that thinks, told of each probe, says stop or go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import InputError
from ..fields import Fields
from ..stopping.rule import Rule
from .records import Probe
from .sight import FEATURES, Sight
from .traces import Schedule, checked

_GIVE = "give what Probe and Thought.state say"


class Thinker:
    """A rule and a schedule, shared by all requests and changed by none: `thinker.start()` is one request's `Thought`.

    Args:
        rule: solved on a `trace` with this schedule; it looks at every probe, or at none, as the full depth does.
        when: the schedule.

    Example:
        >>> chain = od.chains.Probe(48, "12", 0.9, 0.8, 0.1, 8.0)
        >>> recorded = [od.chains.Chain(f"{i}", (chain,), (i % 2, 0.0), 96) for i in range(200)]
        >>> fitted = od.chains.trace(recorded, (48,))
        >>> thought = od.chains.Thinker(od.confidence(fitted, price=0.001), (48,)).start()
        >>> thought.due
        48
        >>> thought({"tokens": 48, "answer": "7", "confidence": 0.2, "least": 0.1, "entropy": 1.2, "cost": 8.0})
        False
    """

    def __init__(self, rule: Rule, when: Schedule) -> None:
        self.rule, self.when = rule, checked(when)
        if len(self.when) + 1 != len(rule.origin.costs):
            raise InputError(
                f"{len(self.when)} probes and an end for a rule between {len(rule.origin.costs)} exits: give the "
                "schedule that its trace was made with"
            )
        if any(rule.looks[:-1]) and not all(rule.looks):
            raise InputError("the rule passes probes by, and what is seen later depends on them: solve with od.snell")
        if unknown := [name for name in rule.features if name not in FEATURES]:
            raise InputError(f"the rule reads {unknown[0]!r}; a chain of thought shows {', '.join(FEATURES)}")
        self.probed = any(rule.looks[:-1])
        self.places = tuple(FEATURES.index(name) for name in rule.features)

    def start(self) -> Thought:
        """For a new request."""
        return Thought(self, Sight())

    def resume(self, state: Mapping[str, Any]) -> Thought:
        """For a request whose `Thought.state` was kept elsewhere.

        Raises:
            InputError: it is no such state, in one line.
        """
        told = Fields(state, "the state of a thought", _GIVE)
        return Thought(self, told.take("seen", Sight, least=0), told.take("stopped", bool))


class Thought:
    """One request: called with each probe as it comes, it says whether to stop thinking and answer.

    Attributes:
        due: tokens at which to probe next; None where no further probe can pay, and the chain thinks to its end.
        stopped: whether it has been told to stop.
    """

    def __init__(self, thinker: Thinker, sight: Sight, stopped: bool = False) -> None:
        self._thinker, self._sight, self.stopped = thinker, sight, stopped

    @property
    def due(self) -> int | None:
        when, k = self._thinker.when, self._sight.probes
        return when[k] if self._thinker.probed and k < len(when) and not self.stopped else None

    @property
    def state(self) -> dict[str, Any]:
        """What `Thinker.resume` takes: JSON, a few hundred bytes."""
        seen = asdict(self._sight) | {"answers": list(self._sight.answers)}
        return {"seen": seen, "stopped": self.stopped}

    def __call__(self, probe: Probe | Mapping[str, Any]) -> bool:
        """Whether to stop at this probe.

        Args:
            probe: a `Probe`, or its fields by name as JSON has them.

        Raises:
            InputError: it is none, comes before it is due or not behind the last, or the thought has stopped.
        """
        given = probe if isinstance(probe, Probe) else _probe(probe)
        k, due = self._sight.probes, self.due
        if due is None:
            raise InputError("no probe is due any more: see `due` before probing")
        if given.tokens < due:
            raise InputError(f"a probe at {given.tokens} tokens, the next is due at {due}: see `due` before probing")
        self._sight = self._sight.after(given)
        seen = self._sight.observation(given)
        self.stopped = self._thinker.rule.decide(k, [seen[place] for place in self._thinker.places])
        return self.stopped


def _probe(given: Mapping[str, Any]) -> Probe:
    told = Fields({"probe": dict(given)}, "what was given", _GIVE)
    found: Probe = told.take("probe", Probe)
    return found
