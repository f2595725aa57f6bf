"""A solved rule as a boundary in continuous time: its score between exits, from its scores at them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..observe import Observer
from ..stopping.baselines import Threshold
from ..stopping.gain import GainRule
from ..stopping.rule import Rule
from ..stopping.stationary import Stationary

SMOOTH = ("confidence", "margin", "entropy")
"""The features that change continuously along a path; a streak jumps, and what compares with the exit before depends on
how far away that is."""
_NEVER = 1e3
"""Score of an exit at which a threshold never stops: far above any that features in [0, 1] give."""


class Boundary:
    """The score of going on, at any time: that of the rule at the exits, linear in time between two of them.

    The last exit is never asked: up to it the score of the exit before stands.

    Args:
        rule: solved on a trace of the flow, on features that change continuously.

    Raises:
        InputError: a rule without a score, or on other features.
    """

    def __init__(self, rule: Rule) -> None:
        jumping = [name for name in rule.features if name not in SMOOTH]
        if jumping or not rule.features:
            raise InputError(
                f"the rule reads {', '.join(jumping) or 'nothing'}, which has no boundary that a path could meet; "
                'solve with features=("margin", "entropy")'
            )
        if not isinstance(rule, GainRule | Stationary | Threshold):
            raise InputError(f"a rule of kind {type(rule).__name__} has no score to find the zero of; use snell")
        self.rule, self.last = rule, len(rule.origin.costs) - 2
        self.observer = Observer(rule.features)

    def __call__(
        self, k: Int[Tensor, " n"], share: Float[Tensor, " n"], logits: Float[Tensor, "n C"]
    ) -> Float[Tensor, " n"]:
        """The score at a share of each sample's interval, from exit k to k + 1; it stops where that is not positive."""
        return self.on(k, share, self.observer(logits, {})[0])

    def on(
        self, k: Int[Tensor, " n"], share: Float[Tensor, " n"], observation: Float[Tensor, "n F"]
    ) -> Float[Tensor, " n"]:
        """The same, given the features."""
        here = self._at(k.clamp(max=self.last), observation)
        there = self._at((k + 1).clamp(max=self.last), observation)
        return here + share.to(here.dtype) * (there - here)

    def _at(self, k: Int[Tensor, " n"], observation: Tensor) -> Tensor:
        """The rule's score at exit k of each sample."""
        rule = self.rule
        if isinstance(rule, Stationary):
            gained: Tensor = rule.gain(observation)
            # At its limit the rule stops whatever it sees: so little below zero that the path does so at that exit.
            return torch.where(k + 1 < rule.limit, gained, -gained.abs().clamp(max=1.0) / _NEVER)
        if isinstance(rule, GainRule):
            gain = observation.new_empty(len(observation))  # exit by exit, each has a function of its own
            for exit in k.unique().tolist():
                rows = torch.nonzero(k == exit).squeeze(1)
                gain[rows] = rule.gains[exit](observation[rows])
            return gain
        assert isinstance(rule, Threshold)
        room = rule.thresholds[k] - observation[:, 0]
        return torch.clamp(-room if rule.below else room, -_NEVER, _NEVER)


def field_of_scores(
    boundary: Boundary, times: Float[Tensor, " T"], exits: Float[Tensor, " K"], values: Float[Tensor, " V"]
) -> Float[Tensor, "T V"]:
    """The score over the plane of time and one feature, for a rule that reads that one alone.

    Args:
        times: within the exits' times, `exits`.
        values: of the feature.
    """
    if len(boundary.rule.features) != 1:
        raise InputError(f"the rule reads {', '.join(boundary.rule.features)}; a plane shows one feature")
    rows = []
    for time in times:
        k = torch.searchsorted(exits, time, right=True).clamp(1, len(exits) - 1) - 1
        share = (time - exits[k]) / (exits[k + 1] - exits[k])
        rows.append(boundary.on(k.expand(len(values)), share.expand(len(values)), values[:, None].float()))
    return torch.stack(rows)
