"""What a computation costs in floating-point operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Result = TypeVar("Result")

ATEN = torch.ops.aten


def _product(given: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """(..., k) by (k, m), whatever type the weights have: a quantised layer does as many, on smaller numbers."""
    return 2 * given.numel() * out_val.shape[-1]


def _lstm(given: Tensor, to_gates: Tensor, again: Tensor, *_: Any, **__: Any) -> int:
    """Of one layer: every step, of every sequence, goes through both matrices."""
    return 2 * given.shape[0] * given.shape[1] * (to_gates.numel() + again.numel())


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # Kernels of a CPU, which torch's table lacks.
    ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[ATEN._scaled_dot_product_flash_attention],
    ATEN.mkldnn_rnn_layer: _lstm,
    # Products with quantised weights.
    **dict.fromkeys((ATEN.linear, ATEN._int_mm, ATEN._weight_int8pack_mm, ATEN._weight_int4pack_mm), _product),
    ATEN._weight_int4pack_mm_for_cpu: _product,
}


class Flops(TorchDispatchMode):
    """While it lasts, adds up the operations of matrix products, convolutions and attention.

    By the formulas of `torch.utils.flop_counter`, whose own counter also follows modules, and breaks where one is
    called on a parameter.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return NotImplemented
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None and not types:  # tensors of other types, such as quantised ones, know their operators whole
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=made))
        return made


def counted(work: Callable[[], Result]) -> tuple[float, Result]:
    """Floating-point operations of what is done, and its result.

    Attention layers of torch take their long way meanwhile: their short one is a single operator, of unknown work.
    """
    shortcut = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with Flops() as counter:
            result = work()
    finally:
        torch.backends.mha.set_fastpath_enabled(shortcut)
    return float(counter.total), result


def flops_of(module: nn.Module, given: Any) -> tuple[float, Any]:
    """Floating-point operations of a module on what it is given, and its result."""
    return counted(lambda: module(given))
