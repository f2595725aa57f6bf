"""A trained neural ODE on its test split: the boundary, the paths that meet it, and what that is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from ..continuous.boundary import Boundary, field_of_scores
from ..continuous.flow import Stopped
from ..networks import StagedNetwork
from ..networks.ode import flow_pieces
from ..palette import BLUE, INK, ORANGE, SKY, STYLE
from ..stopping.evaluate import evaluate
from ..trace import Trace

_PATHS = 14


@dataclass(frozen=True, eq=False)
class FlowStudy:
    """A trained flow, the rule solved on its fit split, and what it does on the test split.

    Attributes:
        network: the neural ODE.
        boundary: that of the rule.
        price: loss that one full run of the flow is worth.
        stopped: the test images, each at its own time.
        labels: (N,) theirs.
        test: their trace on the grid of exits.
    """

    network: StagedNetwork
    boundary: Boundary
    price: float
    test: Trace
    stopped: Stopped
    labels: Int[Tensor, " N"]

    @property
    def times(self) -> Float[Tensor, " K"]:
        """Of the exits."""
        return torch.tensor([0.0, *(piece.end for piece in flow_pieces(self.network))])

    @property
    def costs(self) -> Float[Tensor, " N"]:
        """What each test image's run costs, in full runs: an interval costs in proportion to its length."""
        paid = torch.as_tensor(self.test.costs.paid())
        return paid[0] + (paid[-1] - paid[0]) * self.stopped.time.double() / self.times[-1]

    def result(self) -> dict[str, Any]:
        """The figures, for people and machines."""
        wrong = (self.stopped.logits.argmax(1) != self.labels).double()
        grid = evaluate(self.boundary.rule, self.test)
        return {
            "price": self.price,
            "samples": len(self.labels),
            "wrong": float(wrong.mean()),
            "wrong in full": float(self.test.losses[:, -1].mean()),
            "mean time": float(self.stopped.time.mean()),
            "mean cost": float(self.costs.mean()),
            "value": float((wrong + self.price * self.costs).mean()),
            "value on the grid of exits": grid.value(self.price),
            "best fixed time": float((self.test.losses.mean(0) + self.price * self.test.costs.paid()).min()),
            "evaluations": float(self.stopped.evaluations.double().mean()),
            "evaluations in full": sum(piece.evaluations for piece in flow_pieces(self.network)),
        }

    def __str__(self) -> str:
        result = self.result()
        return (
            f"{result['wrong']:.1%} of {result['samples']} test images wrong after {result['mean cost']:.0%} of the "
            f"compute, {result['wrong in full']:.1%} after all of it; value {result['value']:.4f} at price "
            f"{self.price:g}, {result['best fixed time']:.4f} at the best time common to all"
        )


def draw_flow(study: FlowStudy) -> Figure:
    """The plane of time and the one feature that the rule reads, with paths; value against time; when samples stop."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        plane, value, stops = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
        _draw_plane(plane, study)
        _draw_value(value, study)
        stops.hist(study.stopped.time.numpy(), bins=np.linspace(0, float(study.times[-1]), 33), color=BLUE)
        stops.set_xlabel("stopping time")
        stops.set_ylabel("test images")
        stops.set_title("when they stop")
        return figure


def _draw_plane(axes: Any, study: FlowStudy) -> None:
    times, (feature,) = study.times, study.boundary.rule.features
    when, seen = torch.linspace(0, float(times[-1]), 300), torch.linspace(0, 1, 300)
    with torch.no_grad():
        scores = field_of_scores(study.boundary, when, times, seen).numpy().T
    axes.contourf(when, seen, scores <= 0, levels=[0.5, 1.5], colors=[SKY], alpha=0.3)
    axes.contour(when, seen, scores, levels=[0.0], colors=[INK], linewidths=1.3)
    path = study.test.columns([feature])[:, :, 0]
    with torch.no_grad():
        ends = study.boundary.observer(study.stopped.logits, {})[0][:, 0].numpy()
    moved = np.flatnonzero(study.stopped.time.numpy() > 0)
    order = moved[study.stopped.time.numpy()[moved].argsort()]
    for i in order[np.linspace(0, len(order) - 1, min(_PATHS, len(order))).round().astype(int)]:
        last = int(study.stopped.exit[i])
        x = [*times[:last].tolist(), float(study.stopped.time[i])]
        axes.plot(x, [*path[i, :last], ends[i]], color=BLUE, lw=0.8)
        axes.plot(x[-1], ends[i], color=ORANGE, marker="o", ms=4)
    axes.set_xlabel("time")
    axes.set_ylabel(feature)
    axes.set_title("stops where shaded; paths of test images")


def _draw_value(axes: Any, study: FlowStudy) -> None:
    fixed = study.test.losses.mean(0) + study.price * study.test.costs.paid()
    axes.plot(study.times, fixed, color=ORANGE, ls="--", marker="o", ms=3, label="one time for all")
    result = study.result()
    axes.axhline(result["value"], color=BLUE, lw=1.8, label="each at its own time")
    axes.plot(result["mean time"], result["value"], color=BLUE, marker="o", ms=6, ls="")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time")
    axes.set_ylabel(f"share wrong + {study.price:g} x cost")
    axes.set_title("value on the test split")
    axes.legend()
