"""The arms of the study: what is trained, from what, with which loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from optdepth.training import (
    DeepSupervision,
    DepthLoss,
    DiminishingReturns,
    PriceSchedule,
    SoftEnvelope,
    StoppingCost,
)
from optdepth.training.depth_loss import Part


def _share(early: float | Literal["equal"], distillation: float = 0.0) -> DepthLoss:
    return DepthLoss(parts=((1.0, DeepSupervision(early)),), distillation=distillation)


def _balanced(part: Part, distillation: float = 0.0, price: float = 0.0) -> DepthLoss:
    return DepthLoss(price, ((1.0, part),), distillation=distillation, balanced=True)


LAST, DEEP, LIGHT = _share(0.0), _share("equal"), _share(0.02)
TAUGHT = _share(0.0, distillation=0.7)
"""The last exit alone shapes the trunk, and teaches the early heads."""

NOW = PriceSchedule(hold=0.0, ramp=0.0)
PRICE = 0.3
"""Nats that the whole depth costs, in the arms that use a price."""


def _late(part: Part, price: float = 0.0) -> DepthLoss:
    return DepthLoss(price, ((1.0, part),), NOW, TAUGHT.distillation)


def _added(part: Part, price: float = 0.0) -> DepthLoss:
    return DepthLoss(price, ((1.0, DeepSupervision(0.02)), (0.2, part)), NOW, TAUGHT.distillation)


def _with(part: Part, price: float) -> DepthLoss:
    return DepthLoss(price, ((1.0, DeepSupervision(0.0)), (0.2, part)), distillation=TAUGHT.distillation)


EARLY: dict[str, tuple[str, str, DepthLoss]] = {
    "light-1": ("1% of the trunk's gradient to each early exit, linear heads", "linear", _share(0.01)),
    "light-5": ("5% of the trunk's gradient to each early exit, linear heads", "linear", _share(0.05)),
    "even": ("balanced deep supervision, linear heads", "linear", _balanced(DeepSupervision("equal"))),
    "conv-even": ("balanced deep supervision, conv heads", "conv", _balanced(DeepSupervision("equal"))),
    "conv-5": ("balanced, 5% to each early exit, conv heads", "conv", _balanced(DeepSupervision(0.05))),
    "conv-stopping": ("balanced stopping cost, conv heads", "conv", _balanced(StoppingCost(), price=PRICE)),
    "branch-even": ("branch heads, taught, equal shares", "branch", _share("equal", TAUGHT.distillation)),
    **{
        name: (f"conv heads, taught, balanced, {what}", "conv", _balanced(part, TAUGHT.distillation, price))
        for name, what, part, price in (
            ("taught-2", "2% to each early exit", DeepSupervision(0.02), 0.0),
            ("taught-5", "5% to each early exit", DeepSupervision(0.05), 0.0),
            ("taught-even", "equal shares", DeepSupervision("equal"), 0.0),
            ("stopping", "stopping cost", StoppingCost(), PRICE),
            ("envelope", "soft envelope", SoftEnvelope(), PRICE),
            ("matched", "matched gradients, by the rule solved anew each epoch", StoppingCost("rule"), PRICE),
        )
    },
    "matched-unbalanced": (
        "conv heads, taught, matched gradients, by the rule solved anew each epoch",
        "conv",
        DepthLoss(PRICE, ((1.0, StoppingCost("rule")),), distillation=TAUGHT.distillation),
    ),
    "branch-with-stopping": ("branch-0 and a fifth of stopping cost", "branch", _with(StoppingCost(), PRICE)),
    **{
        f"with-{name}": (f"taught-0 and a fifth of {what}", "conv", _with(part, price))
        for name, what, part, price in (
            ("stopping", "stopping cost", StoppingCost(), PRICE),
            ("matched", "matched gradients, by the rule solved anew each epoch", StoppingCost("rule"), PRICE),
            ("envelope", "the soft envelope", SoftEnvelope(), PRICE),
            ("returns", "diminishing returns", DiminishingReturns(), 0.0),
        )
    },
}
"""Further trainings from scratch. A share is that of each early exit in the gradient of the first stage."""

STATIC = (8, 14, 32)
"""Layers of the networks without exits that a user would take instead; `plain` has the study's, static-44 more."""


LATE: dict[str, tuple[str, DepthLoss]] = {
    "last": ("plain+taught trained on, last exit alone", _late(DeepSupervision(0.0))),
    "light": ("plain+taught trained on, 2% to each early exit", _late(DeepSupervision(0.02))),
    "deep": ("plain+taught trained on, equal shares", _late(DeepSupervision("equal"))),
    "stopping": ("late-light, and a fifth of stopping cost", _added(StoppingCost(), PRICE)),
    "matched": (
        "late-light, and a fifth of matched gradients, by the rule solved anew each epoch",
        _added(StoppingCost("rule"), PRICE),
    ),
    "envelope": ("late-light, and a fifth of the soft envelope", _added(SoftEnvelope(), PRICE)),
    "returns": ("late-light, and a fifth of diminishing returns", _added(DiminishingReturns())),
}
"""Fine-tunings of the heads and trunk of plain+taught, by what they ask of the trunk."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        what: it is, in the words of the table.
        kind: "scratch"; "frozen": heads alone, on the trunk of `start`; "long": the same for as many epochs as from
            scratch; "late": a fine-tuning of `start`; "trunk": `start` without its early exits, as it is; "cascade":
            the networks of `members` one after another, the last one with its exits.
        heads: of the early exits; "none" is a network with its last exit alone.
        exits: as for `optdepth.resnet`.
        depth: layers; the study's where it is None.
    """

    what: str
    kind: Literal["scratch", "frozen", "long", "late", "trunk", "cascade"] = "scratch"
    heads: str = "linear"
    loss: DepthLoss = LAST
    start: str = ""
    members: tuple[str, ...] = ()
    exits: Literal["all", "ends"] | tuple[str, ...] = "all"
    depth: int | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Arms that must be there first."""
        return (self.start,) if self.start else self.members


ENDS = "after the first block and each of the last stage"
"""Where the solved rule of plain+tail looks, at most prices."""
FRONT = f"tail heads {ENDS}, taught"
GLANCE = f"conv heads {ENDS}, and a tail head after the first; taught"
LOOKS = (
    *("stage1.block1", "stage1.block1+tail"),
    *(f"stage2.block{block}+tail" for block in (1, 4, 7)),
    *(f"stage3.block{block}" for block in range(1, 8)),
)
"""Exits of a network of 44 layers: the ends, and tail heads between them, where `exits="ends"` leaves 13 blocks."""

ARMS: dict[str, Arm] = {
    "taught-0": Arm("conv heads, taught, from scratch, none of the trunk's gradient", heads="conv", loss=TAUGHT),
    # Heads that ask nothing of the trunk change no bit of it (tested), so one training gives both networks.
    "plain": Arm("no exits: the trunk of taught-0", "trunk", heads="none", start="taught-0"),
    "plain+linear": Arm("linear heads on the frozen trunk of plain", "frozen", start="plain"),
    "plain+conv": Arm("conv heads on the frozen trunk of plain", "frozen", "conv", start="plain"),
    "plain+taught": Arm("conv heads, taught, on the frozen trunk of plain", "frozen", "conv", TAUGHT, "plain"),
    "light": Arm("2% of the trunk's gradient to each early exit, linear heads", loss=LIGHT),
    "plain+taught-long": Arm(
        "conv heads, taught, for as long as the trunk, on it frozen", "long", "conv", TAUGHT, "plain"
    ),
    "plain+branch": Arm("branch heads, taught, on the frozen trunk of plain", "long", "branch", TAUGHT, "plain"),
    "plain+tail": Arm("tail heads, taught, on the frozen trunk of plain", "long", "tail", TAUGHT, "plain"),
    "branch-0": Arm("branch heads, taught, from scratch, none of the trunk's gradient", heads="branch", loss=TAUGHT),
    "plain+front": Arm(f"{FRONT}, on the frozen trunk of plain", "long", "tail", TAUGHT, "plain", exits="ends"),
    "plain+glance": Arm(f"{GLANCE}, on the frozen trunk of plain", "long", "conv+tail", TAUGHT, "plain", exits="ends"),
    "glance-0": Arm(
        f"{GLANCE}, from scratch, none of the trunk's gradient", heads="conv+tail", loss=TAUGHT, exits="ends"
    ),
    "glance-untaught": Arm("glance-0 without a teacher", heads="conv+tail", loss=LAST, exits="ends"),
    "glance-with-stopping": Arm(
        "glance-0 and a fifth of stopping cost", heads="conv+tail", loss=_with(StoppingCost(), PRICE), exits="ends"
    ),
    "glance-with-returns": Arm(
        "glance-0 and a fifth of diminishing returns",
        heads="conv+tail",
        loss=_with(DiminishingReturns(), 0.0),
        exits="ends",
    ),
    "glance-stopping": Arm(
        f"{GLANCE}; balanced stopping cost at 0.3 nats, from scratch",
        heads="conv+tail",
        loss=_balanced(StoppingCost(), TAUGHT.distillation, PRICE),
        exits="ends",
    ),
    "glance-priced": Arm(
        "glance-0 at a training price of 1.2 nats: equal shares in the end",
        heads="conv+tail",
        loss=DepthLoss(1.2),
        exits="ends",
    ),
    "light+taught": Arm("conv heads, taught, on the frozen trunk of light", "frozen", "conv", TAUGHT, "light"),
    "deep": Arm("deep supervision, linear heads", loss=DEEP),
    "deep+taught": Arm("conv heads, taught, on the frozen trunk of deep", "frozen", "conv", TAUGHT, "deep"),
    **{f"late-{name}": Arm(what, "late", "conv", loss, "plain+taught") for name, (what, loss) in LATE.items()},
    "light-deep": Arm("light trained on, equal shares, linear heads", "late", loss=DEEP, start="light"),
    **{name: Arm(what, heads=heads, loss=loss) for name, (what, heads, loss) in EARLY.items()},
    **{f"static-{depth}": Arm(f"{depth} layers, no exits", heads="none", depth=depth) for depth in STATIC},
    "returns": Arm(
        "linear heads, none of the trunk's gradient, and a fifth of diminishing returns",
        loss=_with(DiminishingReturns(), 0.0),
    ),
    "glance-44": Arm("glance-0 of 44 layers", heads="conv+tail", loss=TAUGHT, exits="ends", depth=44),
    "static-44": Arm("44 layers, no exits: the trunk of glance-44", "trunk", heads="none", start="glance-44", depth=44),
    "static-44+looks": Arm(
        "the heads of glance-44, and tail heads in the second stage, on the frozen trunk of static-44",
        "long",
        "conv+tail",
        TAUGHT,
        "static-44",
        exits=LOOKS,
        depth=44,
    ),
    "cascade-8": Arm("static-8, then plain", "cascade", members=("static-8", "plain")),
    "cascade-14": Arm("static-14, then plain", "cascade", members=("static-14", "plain")),
    "cascade-8+branch": Arm("static-8, then plain+branch", "cascade", members=("static-8", "plain+branch")),
}

DEEPER = ("glance-44", "static-44+looks", "static-32", "static-44")
"""Arms of more layers than the study's network: compared with it, and not chosen among its trainings."""
