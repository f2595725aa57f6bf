"""What cannot be staged whatever its blocks: models wrapped, compiled, or quantised into packed weights."""

from __future__ import annotations

from torch import nn

from ..errors import InputError

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_WRAPPERS = ("torch.nn.parallel", "torch.distributed")


def check_bare(model: nn.Module) -> None:
    """A model of modules that run as they are.

    Raises:
        InputError: it, or a part of it, is none, with what to give instead.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}: give a torch module, such as a loaded model")
    for path, module in model.named_modules():
        what, where = (f"its submodule {path}", f"{path}.") if path else ("the model", "model.")
        origin = type(module).__module__
        if hasattr(module, "_orig_mod"):
            raise InputError(
                f"{what} is compiled: give the model inside, {where}_orig_mod; Engine(compile=True) compiles what it "
                "runs"
            )
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(
                f"{what} was compiled in place: stage the model before that; Engine(compile=True) compiles what it runs"
            )
        if origin.startswith(_WRAPPERS) and isinstance(getattr(module, "module", None), nn.Module):
            raise InputError(f"{what} is wrapped in {type(module).__name__}: give the model inside, {where}module")
        if origin.startswith(_QUANTISED):
            raise InputError(
                f"{what} is a quantised {type(module).__name__} of torch.ao, whose packed weights a graph cannot hold: "
                "stage the model as it was before, or quantise it by torchao, whose weights are tensors"
            )
