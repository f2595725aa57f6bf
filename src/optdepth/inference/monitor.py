"""Watching an engine at work: exits, cost, margins, and whether the inputs still are those the rule was solved on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import chi2
from torch import Tensor

from ..errors import InputError
from .engine import Answer

_BINS = 10
_EXPECTED = 5.0
"""Pearson's statistic is near its law where every exit is expected so often at least; rarer ones are pooled."""


@dataclass(frozen=True)
class Drift:
    """Whether the exits taken still have the shares they had on calibration data.

    Attributes:
        statistic: Pearson's chi-square of the counts against those shares.
        freedom: its degrees of freedom.
        p_value: chance of a statistic as large where nothing has changed.
    """

    statistic: float
    freedom: int
    p_value: float

    def __str__(self) -> str:
        return f"chi-square {self.statistic:.1f} on {self.freedom} degrees of freedom, p = {self.p_value:.2g}"


class Monitor:
    """Counts what an engine answers: `monitor.add(engine(inputs))`.

    The counts stay on the answers' device until they are read, so watching makes a GPU wait for nothing. Any number of
    threads may add to one monitor.

    Args:
        names: of the exits.
        calibration: (K,) shares of the exits on data like those to come, such as `Evaluation.shares` of the fit split.

    Attributes:
        samples, cost: how many, and the sum of their costs.

    Example:
        >>> rule = od.placed(fit, price=0.05)
        >>> watch = od.Monitor([exit.name for exit in network.exits], od.evaluate(rule, certify).shares)
        >>> watch.add(od.Engine(network, rule)(images))
        >>> watch.samples
        64
    """

    def __init__(self, names: Sequence[str], calibration: Float[np.ndarray, " K"]) -> None:
        shares = np.asarray(calibration, dtype=float)
        if shares.shape != (len(names),) or not np.isclose(shares.sum(), 1.0) or (shares < 0).any():
            raise InputError(f"calibration {shares.tolist()} must be the shares of {len(names)} exits, summing to 1")
        self.names, self.calibration = tuple(names), shares
        self.samples, self.unit = 0, ""
        self._alone = threading.Lock()
        self._counts = torch.zeros(len(names), dtype=torch.int64)
        self._margins = torch.zeros(_BINS, dtype=torch.int64)
        self._cost: Tensor = torch.zeros((), dtype=torch.float64)

    @torch.inference_mode()
    def add(self, answer: Answer) -> None:
        """Counts the answers of one call."""
        device = answer.exit.device
        first, second = answer.logits.float().softmax(-1).topk(2, dim=-1).values.unbind(-1)
        bins = ((first - second) * _BINS).long().clamp(max=_BINS - 1)
        exits, margins = torch.bincount(answer.exit, minlength=len(self.names)), torch.bincount(bins, minlength=_BINS)
        cost = answer.cost.sum()
        with self._alone:
            self._counts = self._counts.to(device) + exits
            self._margins = self._margins.to(device) + margins
            self._cost = self._cost.to(device) + cost
            self.samples += len(answer.exit)
            self.unit = answer.unit

    @property
    def counts(self) -> Int[np.ndarray, " K"]:
        """How often each exit answered."""
        return self._counts.cpu().numpy()

    @property
    def margins(self) -> Int[np.ndarray, " 10"]:
        """Histogram of the margin of the answers, ten bins from 0 to 1."""
        return self._margins.cpu().numpy()

    @property
    def cost(self) -> float:
        """Sum of the costs paid."""
        return float(self._cost)

    def drift(self) -> Drift:
        """Pearson's test of the exits taken against the calibration shares, which it takes for exact.

        Exits expected less than five times are pooled. Where calibration took none of them and samples now do, the
        statistic is infinite.

        Raises:
            InputError: too few samples to expect five at more than one exit.
        """
        found = self.counts.astype(float)
        expected = self.calibration * found.sum()
        rare = expected < _EXPECTED
        if rare.any():
            expected = np.append(expected[~rare], expected[rare].sum())
            found = np.append(found[~rare], found[rare].sum())
        if expected[-1] == 0 and found[-1] == 0:
            expected, found = expected[:-1], found[:-1]
        if len(expected) < 2:
            raise InputError(f"{found.sum():.0f} samples are too few to tell a drift of the exits; add more first")
        with np.errstate(divide="ignore"):
            statistic = float((np.square(found - expected) / expected).sum())
        freedom = len(expected) - 1
        return Drift(statistic, freedom, float(chi2.sf(statistic, freedom)))

    def prometheus(self, prefix: str = "optdepth") -> str:
        """All of it in the text format that Prometheus reads (version 0.0.4)."""
        lines = [f"# HELP {prefix}_answers_total Samples answered, by exit.", f"# TYPE {prefix}_answers_total counter"]
        for name, count in zip(self.names, self.counts.tolist(), strict=True):
            lines.append(f'{prefix}_answers_total{{exit="{_escaped(name)}"}} {count}')
        lines += [f"# HELP {prefix}_cost_total Cost of all answers, in {_plain(self.unit)}."]
        lines += [f"# TYPE {prefix}_cost_total counter", f"{prefix}_cost_total {self.cost!r}"]
        lines += [f"# HELP {prefix}_margin Margin between the two most likely classes."]
        lines += [f"# TYPE {prefix}_margin histogram"]
        summed = np.cumsum(self.margins).tolist()
        for i, count in enumerate(summed[:-1]):
            lines.append(f'{prefix}_margin_bucket{{le="{(i + 1) / _BINS:g}"}} {count}')
        lines += [f'{prefix}_margin_bucket{{le="+Inf"}} {summed[-1]}', f"{prefix}_margin_count {summed[-1]}"]
        return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _plain(text: str) -> str:
    return " ".join(text.split())
