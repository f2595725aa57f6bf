"""A graph cut into parts: each is a module of its own, and what crosses a cut is the state.

A state is one tensor, or a tuple of tensors, the batch first in each:

- the tensor that was cut (the hidden states) comes first;
- a tensor with the batch in another dimension is handed on with that dimension moved to the front; where a sample has
  several rows of it (one a head of attention), they become a dimension of their own behind it;
- one without the batch (a table of positions, say) is handed on once a sample, as a view;
- sizes are not handed on: a part reads them off its own tensors, so that they are right once samples have left.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..errors import InputError
from .graph import ModelGraph

ATEN = torch.ops.aten


@dataclass(frozen=True)
class Cut:
    """A place between two nodes: `hidden` is the tensor that was just made, `place` the last node before."""

    name: str
    hidden: fx.Node
    place: int


def live(traced: ModelGraph, cut: Cut, also: Sequence[fx.Node] = ()) -> list[fx.Node]:
    """The nodes whose tensors are made up to a cut and read after it, the hidden one first.

    Args:
        also: nodes to hand on whoever reads them, such as an attention mask for the heads.
    """
    nodes = list(traced.graph.nodes)
    needed = upstream(traced.output)
    later = {side for node in nodes[cut.place + 1 :] if node in needed for side in node.all_input_nodes}
    passed = [
        node
        for node in nodes[: cut.place + 1]
        if (node in later or node in also) and node is not cut.hidden and node.op != "get_attr"
    ]
    return [cut.hidden, *(node for node in passed if isinstance(node.meta.get("val"), Tensor))]


def part(
    traced: ModelGraph,
    given: Sequence[fx.Node],
    wanted: Sequence[fx.Node],
    *,
    first: bool = False,
    last: bool = False,
    fresh: bool = False,
    instead: tuple[fx.Node, fx.Node] | None = None,
) -> fx.GraphModule:
    """The module that makes the `wanted` nodes' tensors from the `given` ones'.

    Args:
        first: it takes the model's inputs, flat, in place of a state.
        last: it returns one tensor as it is, in place of a state.
        fresh: it works on a copy of the state, for blocks that write into what they are given.
        instead: (a, b): b is given and read as a.
    """
    return _Part(traced, first, fresh).module(given, wanted, last, instead)


class _Part:
    def __init__(self, traced: ModelGraph, first: bool, fresh: bool) -> None:
        self.traced, self.first, self.fresh = traced, first, fresh
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.batch = traced.inputs[0].meta["val"].shape[0]
        self.device = traced.inputs[0].meta["val"].device
        self.here: fx.Node | None = None

    def module(
        self,
        given: Sequence[fx.Node],
        wanted: Sequence[fx.Node],
        last: bool,
        instead: tuple[fx.Node, fx.Node] | None,
    ) -> fx.GraphModule:
        if self.first:
            for node in given:
                self.new[node] = self.graph.placeholder(node.name)
        else:
            state = self.graph.placeholder("state")
            for i, node in enumerate(given):
                held = state if len(given) == 1 else self._call(operator.getitem, state, i)
                held = self._call(ATEN.clone.default, held) if self.fresh else held
                self.new[node] = self._unpacked(node, held)
        if instead is not None:
            self.new[instead[0]] = self.new[instead[1]]
        self._copy(wanted)
        made = [self.new[node] for node in wanted]
        if not last:
            made = [self._packed(node, self.new[node]) for node in wanted]
        self.graph.output(made[0] if len(made) == 1 else tuple(made))
        # What of the state this part does not read, such as a mask in a head, is not unpacked.
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op != "call_function")
        targets = {str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")}
        return fx.GraphModule({name: self.traced.owned[name] for name in targets}, self.graph)

    def _copy(self, wanted: Sequence[fx.Node]) -> None:
        """Copies what the wanted nodes are made from, in the original's order."""
        needed: set[fx.Node] = set()
        ahead = [node for node in wanted if node not in self.new]
        while ahead:
            node = ahead.pop()
            if node in needed or node in self.new:
                continue
            size = node.meta.get("val")
            read = self._size(size) if isinstance(size, torch.SymInt) else None
            if read is not None:
                self.new[node] = read
                continue
            if node.op == "placeholder":
                raise InputError(f"a part of the model reads {node.name} again, which its state does not hold")
            if node.target is ATEN.batch_norm.default:
                raise InputError("the model calls F.batch_norm between its blocks, which would not learn; use a module")
            needed.add(node)
            ahead += node.all_input_nodes
        for node in self.traced.graph.nodes:
            if node in needed:
                made = self.graph.node_copy(node, self.new.__getitem__)
                with self.graph.inserting_before(made):
                    made.args, made.kwargs = fx.node.map_aggregate((made.args, made.kwargs), self._placed)
                self.new[node] = made

    def _placed(self, argument: Any) -> Any:
        """A device named in the graph is that of the example; a network may be moved to another one."""
        if not isinstance(argument, torch.device) or argument != self.device:
            return argument
        if self.here is None:
            self.here = self._call(getattr, next(iter(self.new.values())), "device")
        return self.here

    def _size(self, size: torch.SymInt) -> fx.Node | None:
        """The size, read off a tensor of this part that has it."""
        for old, new in self.new.items():
            value = old.meta.get("val")
            if isinstance(value, Tensor):
                for d, other in enumerate(value.shape):
                    if isinstance(other, torch.SymInt) and statically_known_true(other == size):
                        return self._call(ATEN.sym_size.int, new, d)
        return None

    def _packed(self, node: fx.Node, made: fx.Node) -> fx.Node:
        found = batch_dimension(self.traced, node)
        if found is None:
            rows = self._size(self.batch)
            alone = self._call(ATEN.unsqueeze.default, made, 0)
            return self._call(ATEN.expand.default, alone, [rows, *[-1] * node.meta["val"].dim()])
        where, each = found
        if each > 1:
            made = self._call(ATEN.unflatten.int, made, where, [-1, each])
            return made if where == 0 else self._call(ATEN.movedim.intlist, made, [where, where + 1], [0, 1])
        return made if where == 0 else self._call(ATEN.movedim.int, made, where, 0)

    def _unpacked(self, node: fx.Node, held: fx.Node) -> fx.Node:
        found = batch_dimension(self.traced, node)
        if found is None:
            return self._call(ATEN.select.int, held, 0, 0)
        where, each = found
        if each > 1:
            held = held if where == 0 else self._call(ATEN.movedim.intlist, held, [0, 1], [where, where + 1])
            return self._call(ATEN.flatten.using_ints, held, where, where + 1)
        return held if where == 0 else self._call(ATEN.movedim.int, held, 0, where)

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)


def batch_dimension(traced: ModelGraph, node: fx.Node) -> tuple[int, int] | None:
    """Where the batch is in a node's tensor, and how many rows of it a sample has there; None where it has none.

    Raises:
        InputError: it is in several dimensions, or in one that is no multiple of it.
    """
    batch = traced.inputs[0].meta["val"].shape[0]
    shape, symbol = node.meta["val"].shape, batch.node.expr
    held = [d for d, size in enumerate(shape) if not isinstance(size, int) and symbol in size.node.expr.free_symbols]
    if not held:
        return None
    each = shape[held[0]].node.expr / symbol
    if len(held) > 1 or not each.is_Integer:
        raise InputError(
            f"between two blocks the model passes a tensor of shape {tuple(shape)}, batch {batch}, whose samples "
            "cannot be told apart; name other blocks with blocks=[...]"
        )
    return held[0], int(each)


def batch_first(traced: ModelGraph, node: fx.Node) -> list[Any]:
    """The sizes of a node's tensor as a state holds it: the batch in front, other sizes as they are."""
    shape, found = list(node.meta["val"].shape), batch_dimension(traced, node)
    if found is None:
        return shape
    where, each = found
    del shape[where]
    return [traced.inputs[0].meta["val"].shape[0], *([each] if each > 1 else []), *shape]


def upstream(output: fx.Node) -> set[fx.Node]:
    """A node and all that it is made from."""
    needed, ahead = {output}, [output]
    while ahead:
        for side in ahead.pop().all_input_nodes:
            if side not in needed:
                needed.add(side)
                ahead.append(side)
    return needed
