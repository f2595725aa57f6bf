"""Heads that say nothing before they have learned: the layer that answers starts at zero.

Which layer answers is read off what feeds the output. A graph of the head's operators is followed back from its answer,
through activations, scalings and averages, until on every way a product with learned weights is met: those weights, and
the biases met before them, become zero. A head that ends in a softmax then says that all classes are as likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.utils._pytree import tree_leaves, tree_map

from ..batch import State
from ..errors import InputError
from ..interrupts import interrupts

ATEN = torch.ops.aten
_PRODUCTS: dict[Any, tuple[int, int, int | None]] = {
    ATEN.mm.default: (0, 1, None),
    ATEN.bmm.default: (0, 1, None),
    ATEN.mv.default: (0, 1, None),
    ATEN.dot.default: (0, 1, None),
    ATEN.addmm.default: (1, 2, 0),
    ATEN.baddbmm.default: (1, 2, 0),
    ATEN.addmv.default: (1, 2, 0),
    ATEN.convolution.default: (0, 1, 2),
    ATEN.linear.default: (0, 1, 2),
}
"""Where a product has its two factors, and where what is added to it."""
_SUMS = (ATEN.add.Tensor, ATEN.add_.Tensor)
_SAME = {
    *(ATEN.t.default, ATEN.transpose.int, ATEN.permute.default, ATEN.view.default, ATEN._unsafe_view.default),
    *(ATEN.detach.default, ATEN.alias.default, ATEN.clone.default, ATEN.expand.default, ATEN.unsqueeze.default),
    *(ATEN.squeeze.dim, ATEN._to_copy.default, ATEN.slice.Tensor),
}
"""Operators that hand on the numbers of a weight."""
_STEEPEST = 1e4
"""Times the gradient that a layer had before it was zeroed; more is a division by the size of its own output."""


def silence(head: nn.Module, state: State) -> None:
    """Puts zeros into the layer that answers: the same answer for every class and every sample, until it has learned.

    A norm of that layer's weights (weight, spectral, orthogonal), which zeros would break, is taken off it.

    Args:
        head: state -> answer, in evaluation mode; the caller's own, to change.
        state: an example of what it reads.

    Raises:
        InputError: there is no such layer, or none that can learn from zero; what is there instead, as a clause.
    """
    for parameter in head.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    probe = tree_map(_stirred, state)
    found = _answering(head, probe)
    if found.computed:
        for module, name in sorted({_normed(name) for name in found.computed}):
            _remove_norm(head.get_submodule(module), name)
        found = _answering(head, probe)
    if found.computed:
        raise InputError(f"the weights of its answering layer are computed from {min(found.computed)}")
    weights = [head.get_parameter(name) for name in found.weights]
    before = _gradients(head, probe, weights)
    with torch.no_grad():
        for name in (*found.weights, *found.biases):
            head.get_parameter(name).zero_()
        answer = head(probe).float()
    spread = answer.amax(-1) - answer.amin(-1) if answer.shape[-1] > 1 else answer.max() - answer.min()
    if not bool((spread <= 1e-6 * (1 + answer.abs().max())).all()):
        raise InputError(f"with zeros in {found.weights[0]} its answers are not alike")
    for name, old, new in zip(found.weights, before, _gradients(head, probe, weights), strict=True):
        if not _learns(old, new):
            raise InputError(f"with zeros in {name} it cannot learn: what stands behind passes on no sound gradient")


@dataclass
class _Found:
    """Parameters by name: of the products that answer, what is added to them, and what weights are computed from."""

    weights: list[str] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)


def _answering(head: nn.Module, state: State) -> _Found:
    """What is met on the ways back from the answer.

    Raises:
        InputError: a way on which no weights are met, or operators that cannot be followed.
    """
    names = [name for name, _ in head.named_parameters()]
    tensors = [parameter for _, parameter in head.named_parameters()]

    def run(parameters: list[Tensor], state: State) -> Tensor:
        made: Tensor = functional_call(head, dict(zip(names, parameters, strict=True)), (state,))
        return made

    try:
        with torch.no_grad():
            graph = make_fx(run)(tensors, state).graph
    except Exception as error:  # whatever the head's own code raises where it is watched
        if interrupts(error):
            raise
        raise InputError(f"its operators cannot be followed ({' '.join(str(error).split()):.100})") from None
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    known = dict(zip(inputs[: len(names)], names, strict=True))
    varying = set(inputs[len(names) :])
    for node in graph.nodes:
        if varying.intersection(node.all_input_nodes):
            varying.add(node)
    (output,) = (node for node in graph.nodes if node.op == "output")
    return _walk(output.all_input_nodes, {node for node in varying if _is_float(node)}, known)


def _walk(ahead: Sequence[fx.Node], varying: set[fx.Node], known: dict[fx.Node, str]) -> _Found:
    """From the answer back, along the tensors that vary with the state."""
    found, seen, waiting = _Found(), set[fx.Node](), list(ahead)
    while waiting:
        node = waiting.pop()
        if node in seen or node not in varying:
            continue
        seen.add(node)
        if node.op == "placeholder":
            raise InputError("its answer is made of the states with no linear layer between")
        if node.target in _PRODUCTS:
            waiting += _product(node, varying, known, found)
            continue
        if node.target in _SUMS:
            found.biases += [name for side in node.all_input_nodes for name in _as_it_is(side, known)]
        waiting += node.all_input_nodes
    if not found.weights and not found.computed:
        raise InputError("it has no linear layer that answers")
    return found


def _product(node: fx.Node, varying: set[fx.Node], known: dict[fx.Node, str], found: _Found) -> list[fx.Node]:
    """Notes the weights and biases of a product; the nodes at which to go on."""
    parts = [node.args[i] if i is not None and i < len(node.args) else None for i in _PRODUCTS[node.target]]
    first, second, added = (part if isinstance(part, fx.Node) else None for part in parts)
    if first in varying and second in varying:
        raise InputError("its answer is a product of two states, with no linear layer behind")
    if added is not None and added not in varying:
        found.biases += _as_it_is(added, known)
    weight = second if first in varying else first
    if weight is not None and (names := _sources(weight, known)):
        (found.weights if _as_it_is(weight, known) else found.computed).extend(names)
        return [] if added is None else [added]
    return node.all_input_nodes  # the other factor is fixed, a mean say


def _as_it_is(node: fx.Node, known: dict[fx.Node, str]) -> list[str]:
    """The parameter whose numbers a node has, if there is one."""
    while node.target in _SAME:
        node = node.all_input_nodes[0]
    return [known[node]] if node in known else []


def _sources(node: fx.Node, known: dict[fx.Node, str]) -> list[str]:
    """The parameters that a node is computed from."""
    above, waiting = {node}, [node]
    while waiting:
        for side in waiting.pop().all_input_nodes:
            if side not in above:
                above.add(side)
                waiting.append(side)
    return [name for parameter, name in known.items() if parameter in above]


def _gradients(head: nn.Module, state: State, weights: Sequence[Tensor]) -> list[float]:
    """Sizes of the gradients of a mixture of the answers."""
    with torch.enable_grad():
        answer = head(state).float()
        mixed = (answer * _stirred(answer.detach())).sum()
        found = torch.autograd.grad(mixed, list(weights), allow_unused=True)
    return [0.0 if gradient is None else float(gradient.float().norm()) for gradient in found]


def _learns(before: float, now: float) -> bool:
    return 0 < now < torch.inf and (before == 0 or now <= _STEEPEST * before)


def _normed(parameter: str) -> tuple[str, str]:
    """The module that a norm stands on, and which of its tensors it makes, from the name of what that is made from.

    Raises:
        InputError: it is none of torch's norms of weights.
    """
    module, parametrized, rest = parameter.partition(".parametrizations.")
    if parametrized:
        return module, rest.partition(".")[0]
    for ending in ("_g", "_v", "_orig"):
        if parameter.endswith(ending):
            module, _, name = parameter.removesuffix(ending).rpartition(".")
            return module, name
    raise InputError(f"the weights of its answering layer are computed from {parameter}")


def _remove_norm(module: nn.Module, name: str) -> None:
    """Leaves the weights as they are, free of the norm."""
    if parametrize.is_parametrized(module, name):
        # torch's own removal takes the property off the class, which a copy shares with the module it was copied from.
        values = {each: getattr(module, each).detach() for each in module.parametrizations}  # type: ignore[union-attr]
        module.__class__ = type(module).__bases__[0]
        del module.parametrizations
        for each, value in values.items():
            module.register_parameter(each, nn.Parameter(value.clone()))
        return
    remove = remove_weight_norm if hasattr(module, f"{name}_g") else remove_spectral_norm
    with suppress(ValueError):  # of another norm than torch's, or taken off by now
        remove(module, name)


def _stirred(tensor: Tensor) -> Tensor:
    """Numbers of no pattern in place of those of a state, which may be all zeros in an example."""
    if not tensor.is_floating_point():
        return tensor
    waves = torch.arange(tensor.numel(), device=tensor.device, dtype=torch.float32).mul(1.7).sin()
    return waves.reshape(tensor.shape).to(tensor.dtype)


def _is_float(node: fx.Node) -> bool:
    values = [value for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
    return any(value.is_floating_point() for value in values)
