"""How a model is called and which of its outputs is the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..batch import Inputs
from ..errors import InputError


@dataclass(frozen=True)
class Signature:
    """The form of a model's inputs.

    Attributes:
        form: "tensor", "tuple" or "dict".
        names: of the tensors, for a dict its keys.
        floating: whether each holds floating-point numbers.
    """

    form: str
    names: tuple[str, ...]
    floating: tuple[bool, ...]

    @classmethod
    def of(cls, example: Inputs) -> Signature:
        if isinstance(example, Tensor):
            form, held = "tensor", {"inputs": example}
        elif isinstance(example, Mapping):  # a dict, or what a tokenizer returns
            form, held = "dict", dict(example)
        elif isinstance(example, tuple | list):
            form, held = "tuple", {f"inputs[{i}]": tensor for i, tensor in enumerate(example)}
        else:
            raise InputError(f"example is a {type(example).__name__}: give a tensor, or a tuple or dict of tensors")
        for name, tensor in held.items():
            if not isinstance(tensor, Tensor) or tensor.dim() == 0 or len(tensor) == 0:
                raise InputError(f"example: {name} is no tensor with a batch of at least one sample in front")
        if not held or len({len(tensor) for tensor in held.values()}) != 1:
            sizes = {name: len(tensor) for name, tensor in held.items()}
            raise InputError(f"example holds batches of sizes {sizes}: give at least one tensor, all of one batch")
        return cls(form, tuple(held), tuple(tensor.is_floating_point() for tensor in held.values()))

    def flat(self, inputs: Inputs) -> list[Tensor]:
        """The tensors of inputs of this form, in the example's order.

        Raises:
            InputError: inputs of another form.
        """
        if self.form == "tensor" and isinstance(inputs, Tensor):
            return [inputs]
        if self.form == "dict" and isinstance(inputs, Mapping) and set(inputs) == set(self.names):
            return [inputs[name] for name in self.names]
        if self.form == "tuple" and isinstance(inputs, tuple | list) and len(inputs) == len(self.names):
            return list(inputs)
        given = f" of {', '.join(map(str, inputs))}" if isinstance(inputs, Mapping) else ""
        asked = f"a {self.form}" + ("" if self.form == "tensor" else f" of {', '.join(self.names)}")
        raise InputError(f"the network was staged on {asked}; it was given a {type(inputs).__name__}{given}")

    def formed(self, tensors: Sequence[Tensor]) -> Inputs:
        """Inputs of this form, from their tensors in the example's order."""
        if self.form == "dict":
            return dict(zip(self.names, tensors, strict=True))
        return tensors[0] if self.form == "tensor" else tuple(tensors)

    def call(self, model: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """The model's output."""
        if self.form == "dict":
            return model(**dict(zip(self.names, tensors, strict=True)))
        return model(*tensors)


def answer_of(model: nn.Module, signature: Signature, output: str | int | None) -> Callable[..., Tensor]:
    """A function, flat tensors -> the answer among the model's outputs."""

    def run(*tensors: Tensor) -> Tensor:
        result = signature.call(model, tensors)
        key: Any = output
        if key is None and isinstance(result, Mapping) and "logits" in result:
            key = "logits"
        if key is None and isinstance(result, tuple | list) and len(result) == 1:
            key = 0
        try:
            answer = result if key is None else result[key]
        except (KeyError, IndexError, TypeError):
            answer = None
        if not isinstance(answer, Tensor):
            there = ", ".join(map(repr, result)) if isinstance(result, Mapping) else f"a {type(result).__name__}"
            if isinstance(result, tuple | list):
                there = f"positions 0 to {len(result) - 1}"
            raise InputError(
                f"{type(model).__name__} returns {there}: say with output= which tensor of it is the answer"
                + ("" if output is None else f"; output={output!r} is none")
            )
        return answer

    return run


class Stem(nn.Module):
    """A model's inputs -> the state before its first block, checked against the form the model was staged with."""

    def __init__(self, body: fx.GraphModule, signature: Signature, traced: list[fx.Node]) -> None:
        super().__init__()
        self.body, self.signature = body, signature
        shapes = [node.meta["val"].shape for node in traced]
        self.fixed = [[size if isinstance(size, int) else None for size in shape] for shape in shapes]

    def forward(self, inputs: Inputs) -> Any:
        tensors = self.signature.flat(inputs)
        for name, tensor, fixed in zip(self.signature.names, tensors, self.fixed, strict=True):
            same = tensor.dim() == len(fixed)
            if not same or any(a is not None and a != b for a, b in zip(fixed, tensor.shape, strict=True)):
                asked = " x ".join("any" if size is None else str(size) for size in fixed)
                raise InputError(f"{name} has shape {tuple(tensor.shape)}, the network was staged for {asked}")
        return self.body(*tensors)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """While it lasts every module is in evaluation mode, and afterwards in its own again; no gradients.

    Decoders of transformers make no cache of keys and values meanwhile, which a graph could not hold.
    """
    modes = [(module, module.training) for module in model.modules()]
    caching = [config for config in _configs(model) if getattr(config, "use_cache", None)]
    model.eval()
    for config in caching:
        config.use_cache = False
    try:
        with torch.no_grad():
            yield
    finally:
        for config in caching:
            config.use_cache = True
        for module, mode in modes:
            module.training = mode


def _configs(model: nn.Module) -> list[Any]:
    """The configs of a model of transformers: of it, of its parts, and those that stand in others."""
    found: dict[int, Any] = {}
    waiting = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    while waiting:
        config = waiting.pop()
        if id(config) not in found and hasattr(config, "__dict__"):
            found[id(config)] = config
            waiting += [value for value in vars(config).values() if hasattr(value, "use_cache")]
    return list(found.values())
