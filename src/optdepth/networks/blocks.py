"""Where a model can be cut: its residual blocks, found in the graph of its forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import InputError
from .graph import ModelGraph

_ADDITIONS = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
_LAYERS = {
    *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "_int_mm", "_scaled_mm"),
    *("convolution", "conv1d", "conv2d", "conv3d"),
    *("layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm"),
}
_ACTIVATIONS = {"relu", "gelu", "silu", "tanh", "sigmoid", "hardswish", "leaky_relu", "elu", "mish", "dropout"}


def residual_additions(traced: ModelGraph) -> dict[fx.Node, fx.Node]:
    """The additions x + f(x) of a graph, with x: both sides of one shape, and grown from a common activation x.

    A projection of x on the shortcut counts as x (He et al. 2015, arXiv:1512.03385, option B). Sums of embeddings do
    not count: their sides share integers at most. Nor does a sum after which nothing is learned, such as that of two
    heads; nor one between which and x no layer stands, such as x + 0.045 x^3 inside a GELU: that is part of an
    activation.
    """
    graph = traced.graph
    layers = _layers(traced)
    ancestors: dict[fx.Node, set[fx.Node]] = {}
    inputs = {node for node in graph.nodes if node.op == "placeholder"}
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        above: set[fx.Node] = set()
        for argument in node.all_input_nodes:
            above |= {argument, *ancestors[argument]}
        ancestors[node] = above
        if node.target in _ADDITIONS and _same_shape(node):
            left, right = ({side, *ancestors[side]} for side in node.all_input_nodes)
            shared = [side for side in left & right if _is_float(side) and {side, *ancestors[side]} & inputs]
            origin = max(shared, key=order.__getitem__, default=None)
            if origin is not None and any(origin in ancestors[between] for between in layers & above):
                found[node] = origin
    learned = _learned_after(graph)
    return {node: origin for node, origin in found.items() if node in learned}


def blocks_of(model: nn.Module, additions: Iterable[fx.Node]) -> list[str]:
    """The submodules whose output a residual addition makes, and none inside another.

    Of the modules around an addition that is the innermost that has a sibling of its own class (a layer in a list of
    layers); where none has, the innermost that is called again and again.
    """
    additions = list(additions)
    again = {name for node in additions for name, number in _calls_around(node) if number}
    names: dict[str, None] = {}
    for node in additions:
        around = _modules_around(node)[::-1]
        found = next((name for name in around if _has_sibling(model, name)), None)
        if found is None:
            found = next((name for name in around if name in again), None)
        if found is not None:
            names[found] = None
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _has_sibling(model: nn.Module, name: str) -> bool:
    parent, kind = model.get_submodule(name.rpartition(".")[0]), type(model.get_submodule(name))
    return sum(type(child) is kind for child in parent.children()) > 1


def named_blocks(model: nn.Module, blocks: str | Sequence[str]) -> list[str]:
    """The blocks a user named: modules, or one container whose children are the blocks.

    Raises:
        InputError: a name that is no submodule, or a container without children.
    """
    known = dict(model.named_modules())
    for name in [blocks] if isinstance(blocks, str) else blocks:
        if name not in known or name == "":
            near = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2] and other]
            listed = ", ".join((near or [name for name, _ in model.named_children()])[:8])
            raise InputError(f"blocks: {type(model).__name__} has no submodule {name!r}; it has {listed}")
    if not isinstance(blocks, str):
        return list(blocks)
    children = [f"{blocks}.{name}" for name, _ in known[blocks].named_children()]
    if not children:
        raise InputError(f"blocks={blocks!r} has no children; give a container of blocks, or a list of names")
    return children


def outside(model: nn.Module, blocks: Sequence[str]) -> list[str]:
    """Every submodule that holds no block inside it: what is kept whole when the model is cut after its blocks."""
    names = [name for name, _ in model.named_modules() if name]
    return [name for name in names if not any(block.startswith(f"{name}.") for block in blocks)]


def holders(nodes: Iterable[fx.Node]) -> set[str]:
    """Names of the submodules in whose forward the nodes were made."""
    return {name for node in nodes for name in _modules_around(node)}


def rest_of_block(node: fx.Node, owned: Mapping[str, Any]) -> fx.Node:
    """Where a block ends whose tensor a node makes: behind the activations and dropouts that alone read it."""
    while len(node.users) == 1:
        (user,) = node.users
        shaped = isinstance(user.meta.get("val"), Tensor) and user.meta["val"].shape == node.meta["val"].shape
        alone = user.all_input_nodes == [node] and shaped
        if user.op == "call_module":
            simple = not any(True for _ in owned[str(user.target)].parameters())
        else:
            simple = _name(user) in _ACTIVATIONS
        if not (alone and simple):
            break
        node = user
    return node


def _modules_around(node: fx.Node) -> list[str]:
    """Names of the submodules in whose forward the node was made, outermost first."""
    return [name for name, _ in _calls_around(node)]


def _calls_around(node: fx.Node) -> list[tuple[str, int]]:
    """The same with the number of the call, from 0 for the first."""
    stack = node.meta.get("nn_module_stack") or {}
    calls = [(str(path).removeprefix("model").removeprefix("."), str(key)) for key, (path, _) in stack.items()]
    return [(name, int(key.partition("@")[2] or 0)) for name, key in calls if name]


def _layers(traced: ModelGraph) -> set[fx.Node]:
    """The products and norms whose weights do not come from the inputs, and the calls of modules that hold weights."""
    fixed: set[fx.Node] = set()
    found: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            if any(True for _ in traced.owned[str(node.target)].parameters()):
                found.add(node)
        elif node.op == "get_attr" or (node.op == "call_function" and set(node.all_input_nodes) <= fixed):
            fixed.add(node)
        elif fixed.intersection(node.all_input_nodes) and _name(node) in _LAYERS:
            found.add(node)
    return found


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", "")).partition(".")[0]


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _same_shape(node: fx.Node) -> bool:
    values = [side.meta.get("val") for side in node.all_input_nodes]
    shaped = len(values) == 2 and all(isinstance(value, Tensor) and value.dim() > 1 for value in values)
    return shaped and values[0].shape == values[1].shape  # type: ignore[union-attr]


def learned_after(graph: fx.Graph, node: fx.Node) -> bool:
    """Whether anything with parameters reads a node's tensor, at once or later."""
    return node in _learned_after(graph)


def _learned_after(graph: fx.Graph) -> set[fx.Node]:
    """The nodes from which a later operator with a parameter of its own is reached."""
    learned: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for user in node.users:
            parameters = any(side.op in ("get_attr", "call_module") for side in [user, *user.all_input_nodes])
            if user in learned or (parameters and user.op != "output"):
                learned.add(node)
    return learned
