"""Whether a staged network is the model, on the example and on inputs that differ from it where they may."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, fx

from ..batch import select
from ..errors import InputError
from ..interrupts import interrupts
from .padding import binary
from .signature import Signature
from .staged import StagedNetwork

_ROWS = 4
"""Samples at most of the inputs that are made up."""


def check(
    name: str,
    run: Callable[..., Tensor],
    network: StagedNetwork,
    signature: Signature,
    inputs: Sequence[fx.Node],
    tensors: Sequence[Tensor],
) -> None:
    """The last exit is the model, bit for bit, and a sample alone is answered as it is among others.

    Tried on the example, and on others made of it: other samples in another number and order, shorter sequences, other
    padding. A made-up input that the model itself cannot run says nothing.

    Args:
        name: of the model.
        run: flat tensors -> its answer.
        inputs: the placeholders of its graph, whose shapes say which sizes are free.
        tensors: the example, flat.

    Raises:
        InputError: it is not, with the inputs on which it is not.
    """
    _equal(name, run(*map(torch.clone, tensors)), network, signature, tensors, "")
    for words, made in _others(inputs, tensors):
        try:
            expected = run(*map(torch.clone, made))  # a model may write into what it is given
        except Exception as error:  # whatever a model raises at lengths or padding that it is not made for
            if interrupts(error):
                raise
            continue
        _equal(name, expected, network, signature, made, f" on the example {words}")


def _equal(
    name: str,
    expected: Tensor,
    network: StagedNetwork,
    signature: Signature,
    tensors: Sequence[Tensor],
    where: str,
) -> None:
    given = signature.formed([tensor.clone() for tensor in tensors])
    answer = network.full(given)
    if answer.shape != expected.shape or not _same(answer, expected):
        alike = answer.shape == expected.shape
        gap = float((answer.float() - expected.float()).abs().max()) if alike else float("nan")
        raise InputError(
            f"{name} in parts differs from itself by {gap:.3g}{where}; name other blocks with blocks=[...]"
        )
    last = len(expected) - 1
    if not bool(torch.isfinite(expected[last]).all()):
        return  # a sample that is all padding, say
    state = select(network.start(given), torch.tensor([last], device=expected.device))
    for stage in network.stages:
        state = stage(state)
    alone = network.answer(state, len(network.exits) - 1)[0].float()
    among = expected[last].float()
    gap = float((alone - among).abs().max() / expected.float().abs().max().clamp_min(1e-12))
    rounding = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 5e-2
    if not gap <= rounding:
        raise InputError(
            f"{name} answers sample {last} otherwise when it is alone{where} (by {gap:.2g} of the largest answer): its "
            "samples influence each other, so none may leave the batch"
        )


def _others(inputs: Sequence[fx.Node], tensors: Sequence[Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
    """Inputs like the example's, in words and tensors: what is free of their sizes and contents is another."""
    n = len(tensors[0])
    rows = (torch.arange(min(n, _ROWS - 1) + 1, device=tensors[0].device) + 1) % n
    mixed = [tensor[rows] if tensor.dim() < 2 or binary(tensor) else tensor[rows].flip(1) for tensor in tensors]
    yield "with its samples in another order", mixed
    lengths = [_lengths(node) for node in inputs]
    front = any(binary(tensor) and bool((tensor[:, :1] != tensor[:1, :1]).any()) for tensor in tensors)
    short = [_cut(tensor, free, front) for tensor, free in zip(mixed, lengths, strict=True)]
    if any(one.shape != other.shape for one, other in zip(mixed, short, strict=True)):
        yield "shortened", short
    for words, padding in (("padded", _padded), ("without padding", _filled)):
        made = [padding(tensor) for tensor in tensors]
        if any(one is not tensor for one, tensor in zip(made, tensors, strict=True)):
            yield words, [tensor[rows] for tensor in made]


def _lengths(node: fx.Node) -> list[int]:
    """The dimensions of an input, behind the batch, whose sizes are free."""
    shape = node.meta["val"].shape
    return [d for d, size in enumerate(shape) if d and not isinstance(size, int) and size.node.expr.is_Symbol]


def _cut(tensor: Tensor, free: Sequence[int], front: bool) -> Tensor:
    """Half of each free size, where that leaves two: without its end, or its front where the padding is there."""
    for d in free:
        size = tensor.shape[d]
        kept = max(min(2, size), (size + 1) // 2)
        tensor = tensor.narrow(d, size - kept if front else 0, kept)
    return tensor


def _padded(tensor: Tensor) -> Tensor:
    """What may be a mask says otherwise of the last third of every other sample; the same tensor where it is none."""
    if tensor.dim() < 2 or tensor.is_floating_point() or not (tensor.dtype == torch.bool or bool((tensor == 1).all())):
        return tensor
    made = tensor.clone()
    end = made[::2, tensor.shape[1] - tensor.shape[1] // 3 :]
    end.copy_(~tensor[:1, :1] if tensor.dtype == torch.bool else torch.zeros_like(end))
    return made


def _filled(tensor: Tensor) -> Tensor:
    """A mask of ones and zeros without the zeros."""
    mixed = binary(tensor) and tensor.dtype != torch.bool and bool(tensor.any()) and not bool(tensor.all())
    return torch.ones_like(tensor) if mixed else tensor


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool((torch.isnan(one) & torch.isnan(other) | (one == other)).all())
