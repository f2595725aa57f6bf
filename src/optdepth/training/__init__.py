"""Training networks that can stop: the loss L_depth, and the loop."""

from .depth_loss import (
    DeepSupervision,
    DepthLoss,
    DiminishingReturns,
    PriceSchedule,
    SoftEnvelope,
    StoppingCost,
    depth_loss,
)
from .loop import History, train

__all__ = [
    "DeepSupervision",
    "DepthLoss",
    "DiminishingReturns",
    "History",
    "PriceSchedule",
    "SoftEnvelope",
    "StoppingCost",
    "depth_loss",
    "train",
]
