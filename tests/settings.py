"""Networks and rules whose answers are forced: weights and cuts set by hand, and every decision far from a tie.

Nothing is fitted here. What a processor's rounding moves, a millionth of a score, is nowhere near to changing an exit.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from optdepth.costs import flops
from optdepth.networks import StagedNetwork, resnet
from optdepth.record import record
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.gain import GainRule
from optdepth.stopping.regression import Additive, Hinged
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.trace import Trace

_RISE, _FIRST = (2.0, 1.5, 2.5), (2.75, 0.0, 0.0)
"""By exit: how an image's strength raises the logit of its class, and that of class 0 before anything is seen."""
_LADDER = {
    0.005: (torch.inf, torch.inf),
    0.02: (0.954, 0.921),
    0.05: (0.914, 0.889),
    0.1: (0.866, 0.846),
    0.15: (0.866, 0.79),
    0.2: (0.8, 0.72),
    0.3: (0.705, 0.64),
    0.6: (0.705, 0.0),
}
"""By price: cuts in the confidence, each half way between two levels of strength."""


class Setting:
    """A small network of three exits, 400 images, their trace, and rules of every kind that stop at known exits.

    An image is the pattern of its class times its strength, which is near one of eight levels: 1, 1.25, ..., 2.75. The
    trunk has random weights, but no bias and fixed statistics: it makes of an image its strength times what it makes of
    the pattern. The heads read the class off that, so logits are known: strength x `_RISE` at the class, plus `_FIRST`
    at class 0. The first exit takes the two lowest levels for class 0; it is sure of class 0 and of high levels. The
    others are right, and the surer the higher the level.

    Attributes:
        fit, test: the first and the last 200 samples of the trace.
        rules: by name, fitted by nothing; the first half is named as what fitted them.
        stops: by the name of a rule, the exits (400,) that follow from level and class.
        ladder: rules by price; the dearer, the earlier they stop.
    """

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        labels, level = random.integers(0, 4, 400), random.integers(0, 8, 400)
        strength = 1 + level / 4 + random.uniform(-0.03, 0.03, 400)
        patterns = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.labels = torch.from_numpy(labels)
        self.inputs = torch.from_numpy(strength).float()[:, None, None, None] * patterns[self.labels]
        self.network = _reading(patterns)
        with torch.inference_mode():
            self.logits = torch.stack(self.network(self.inputs), dim=1)
        costs = flops(self.network, self.inputs[:1]).relative()
        batches = zip(self.inputs.split(64), self.labels.split(64), strict=True)
        self.trace = record(self.network, batches, costs, source="patterns")
        self.fit, self.test = self.trace.select(np.arange(200)), self.trace.select(np.arange(200, 400))
        origin = Origin.of(self.fit)
        self.rules: dict[str, Rule] = {
            "confidence": Threshold(origin, "confidence", torch.tensor([0.8, 0.72])),
            "entropy": Threshold(origin, "entropy", torch.tensor([0.425, 0.645]), below=True),
            "margin": Threshold(origin, "margin", torch.tensor([0.62, 0.63])),
            "patience": Threshold(origin, "streak", torch.tensor([1.5, 1.5])),
            "additive": _additive(origin),
            "hinged": _hinged(origin),
        }
        known = np.where((level > 4) | (labels == 0), 0, np.where(level > 1, 1, 2))
        self.stops = dict.fromkeys(self.rules, known)
        self.stops["patience"] = np.where((level > 1) | (labels == 0), 1, 2)
        for k in range(3):
            self.rules[f"fixed {k}"], self.stops[f"fixed {k}"] = FixedDepth(origin, k), np.full(400, k)
        self.ladder = {
            price: Threshold(Origin.of(self.fit, price), "confidence", torch.tensor(cuts))
            for price, cuts in _LADDER.items()
        }


def _reading(patterns: Tensor) -> StagedNetwork:
    """A residual network whose heads answer the patterns as `Setting` says."""
    network = resnet(8, classes=4, channels=1, width=8, exits="all", seed=0).eval()
    with torch.no_grad():
        state = network.start(patterns)
        for k, head in enumerate(network.heads):
            state = network.advance(state, k)
            pooled = state.mean((2, 3)).double()  # (classes, channels); the product with its inverse is the identity
            head.linear.weight.copy_(_RISE[k] * torch.linalg.pinv(pooled).T)
            head.linear.bias.copy_(_FIRST[k] * torch.eye(4)[0])
    return network


def _additive(origin: Origin) -> GainRule:
    """Going on gains half a point, or a little more where the entropy is high, until the margin rises over the edge.

    At the second exit a class that stays counts as much as the margin.
    """

    def gain(intercept: float, weight: list[float], low: list[float], high: list[float]) -> Additive:
        start, end, slope = torch.tensor([low, high, weight])[..., None]
        return Additive(low=start, scale=1 / (end - start), weight=slope, intercept=torch.tensor(intercept))

    first = gain(0.5, [-1.0, 0.1, 0.0], low=[0.56, 0.0, 1.0], high=[0.675, 1.0, 2.0])
    second = gain(0.6, [-0.4, 0.0, -0.4], low=[0.593, 0.0, 1.0], high=[0.669, 1.0, 2.0])
    return GainRule(origin, ("margin", "entropy", "streak"), [first, second])


def _hinged(origin: Origin) -> GainRule:
    """The same edges by a hinge on the margin; another lets a high entropy go on."""

    def gain(intercept: float, margin: float, entropy: float) -> Hinged:
        kinks = {"weight": torch.eye(2), "bias": -torch.tensor([margin, entropy]), "last": torch.tensor([-10.0, 1.0])}
        return Hinged(least=torch.zeros(2), most=torch.ones(2), **kinks, intercept=torch.tensor(intercept))

    return GainRule(origin, ("margin", "entropy"), [gain(0.5, 0.56, 0.43), gain(0.3, 0.6, 0.65)])


class Glancing:
    """A network with two exits behind its first block, and a rule that stops a share at each of the three."""

    def __init__(self) -> None:
        self.network = resnet(8, classes=4, channels=1, width=8, exits="ends", heads="conv+tail", seed=0)
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.linspace(0.2, 3, 96)[:, None, None, None] * torch.randn(96, 1, 8, 8, generator=generator)
        self.network.train()(self.inputs)  # moves the statistics of the norms
        for head in self.network.eval().heads:
            head.linear.weight.data *= 10  # random answers are all unsure: these are spread
        costs = flops(self.network, self.inputs[:1]).relative()
        self.trace = record(self.network, [(self.inputs, torch.arange(96) % 4)], costs)
        seen = torch.from_numpy(self.trace.columns(["confidence"])[:, :-1, 0])
        cuts = torch.tensor([widest_gap(scores) for scores in seen.T])
        self.rule = Threshold(Origin.of(self.trace), "confidence", cuts)


def widest_gap(scores: Tensor, *, aside: float = 1 / 3) -> float:
    """The middle of the widest gap among these scores, a share at either end left aside: no score is near it.

    For networks with random weights, whose scores are known up to rounding and not beforehand.
    """
    ranked, few = scores.sort().values, max(1, int(aside * len(scores)))
    middle = ranked[few:-few]
    widest = int(middle.diff().argmax())
    assert middle[widest + 1] - middle[widest] > 2e-4, "a cut that rounding, of a millionth, comes near"
    return float(middle[widest : widest + 2].mean())


def parting(trace: Trace, features: Sequence[str], *, aside: float = 1 / 3) -> GainRule:
    """A rule that reads these features of a trace, stops early and late, and is near a tie for none of its samples.

    At each exit the features, each over its range there and each weighing half of the one before, are added up. A
    sample stops where the sum is beyond its widest gap, see `widest_gap`.
    """
    gains = []
    for k in range(trace.n_exits - 1):
        seen = torch.from_numpy(trace.columns(features)[:, k])
        low, length = seen.amin(0), seen.amax(0) - seen.amin(0)
        scale = torch.where(length > 0, 1 / length, 0.0)
        weight = -(0.5 ** torch.arange(len(features)))
        edge = widest_gap(((seen - low) * scale * weight).sum(1), aside=aside)
        parts = {"low": low, "scale": scale, "weight": weight}
        gains.append(Additive(**{name: part[:, None] for name, part in parts.items()}, intercept=torch.tensor(-edge)))
    return GainRule(Origin.of(trace), features, gains)


def anywhere(rule: Rule) -> Rule:
    """The same rule without the fingerprint, for a network whose modules are wrapped."""
    return type(rule).restore(replace(rule.origin, network=""), rule.arguments())


class Residual(nn.Module):
    """A residual block of width 8."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).relu()


class Counting(nn.Module):
    """A module that remembers the batch sizes it was run on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.sizes = inner, list[int]()

    def forward(self, state: Tensor) -> Tensor:
        self.sizes.append(len(state))
        return self.inner(state)


def counted(network: StagedNetwork) -> tuple[StagedNetwork, list[Counting], list[Counting]]:
    """The network with stages and heads that count."""
    stages = [Counting(stage) for stage in network.stages]
    heads = [Counting(head) for head in network.heads]
    return StagedNetwork(network.stem, stages, heads, network.exits).eval(), stages, heads
