"""Where a model can be cut: its residual blocks, found in the graph of its forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import InputError

_ADDITIONS = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
_ACTIVATIONS = {"relu", "gelu", "silu", "tanh", "sigmoid", "hardswish", "leaky_relu", "elu", "mish", "dropout"}


def residual_additions(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The additions x + f(x) of a graph, with x: both sides of one shape, and grown from a common activation x.

    A projection of x on the shortcut counts as x (He et al. 2015, arXiv:1512.03385, option B). Sums of embeddings do
    not count: their sides share integers at most. Nor does a sum after which nothing is learned, such as that of two
    heads.
    """
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
            if shared:
                found[node] = max(shared, key=order.__getitem__)
    learned = _learned_after(graph)
    return {node: origin for node, origin in found.items() if node in learned}


def blocks_of(model: nn.Module, additions: Iterable[fx.Node]) -> list[str]:
    """The submodules whose output a residual addition makes: of those around an addition the innermost that has a
    sibling of its own class (a layer in a list of layers), and none inside another.
    """
    names: dict[str, None] = {}
    for node in additions:
        for name in reversed(_modules_around(node)):
            parent = model.get_submodule(name.rpartition(".")[0])
            same = [child for child in parent.children() if type(child) is type(model.get_submodule(name))]
            if len(same) > 1:
                names[name] = None
                break
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


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
            simple = getattr(user.target, "__name__", "").partition(".")[0] in _ACTIVATIONS
        if not (alone and simple):
            break
        node = user
    return node


def _modules_around(node: fx.Node) -> list[str]:
    """Names of the submodules in whose forward the node was made, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(path).removeprefix("model").removeprefix(".") for path, _ in stack.values()]
    return [name for name in names if name]


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
