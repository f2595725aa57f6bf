"""A solved rule as a boundary in continuous time: its score between exits, from its scores at them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..features import Observer, not_smooth
from ..stopping.rule import Rule

_NEVER = 1e3
"""Scores are cut there, so that an exit at which a rule never stops can be interpolated too."""


class Boundary:
    """The score of going on, at any time: that of the rule at the exits, linear in time between two of them.

    The exit where all stop is never asked: up to it the score of the exit before stands.

    Args:
        rule: solved on a trace of the flow, on features that change continuously.

    Raises:
        InputError: a rule without a score, on other features, that passes exits by, or that stops all at the first.
    """

    def __init__(self, rule: Rule) -> None:
        jumping = not_smooth(rule.features)
        if jumping or not rule.features:
            raise InputError(
                f"the rule reads {', '.join(jumping) or 'nothing'}, which has no boundary that a path could meet; "
                'solve with features=("margin", "entropy")'
            )
        if rule.last == 0 or not all(rule.decides[: rule.last]):
            raise InputError("the rule does not decide at every exit up to its last, so it is no boundary: use snell")
        rule.score(0, torch.zeros(1, len(rule.features), device=rule.device))  # refuses where there is none
        self.rule, self.last = rule, rule.last - 1
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
        score = observation.new_empty(len(observation))
        for exit in k.unique().tolist():
            rows = torch.nonzero(k == exit).squeeze(1)
            score[rows] = self.rule.score(exit, observation[rows]).clamp(-_NEVER, _NEVER)
        return score


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
