"""What a module costs to run."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops_of(module: nn.Module, given: Any) -> tuple[float, Any]:
    """Floating-point operations of a module on what it is given, by `torch.utils.flop_counter`, and its result."""
    with FlopCounterMode(display=False) as counter:
        result = module(given)
    return float(counter.get_total_flops()), result
