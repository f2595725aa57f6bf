"""Writes in place, made new values: which nodes of a traced program share memory, and what each holds after a write.

A part of a model must not write into what it is given, and what one part writes another may read. So a write becomes a
new tensor, read from then on wherever the old one was. A write through a view (`x[:, 1:].masked_fill_(...)`) changes
what the view is of: that is copied, the same view of the copy is written into, and every view there is is taken anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from ..errors import InputError

ATEN = torch.ops.aten


def after(tensor: Tensor, write: Any) -> Tensor:
    """A tensor once the write into it has been made, which a graph knows by what reads what."""
    return tensor


def written(node: fx.Node) -> fx.Node | None:
    """The node that an operator writes into, if there is one.

    Raises:
        InputError: there are several.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return None
    found: list[fx.Node] = []
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(given) if isinstance(leaf, fx.Node)]
    if len(found) > 1:
        raise InputError(f"the model calls {node.target}, which writes into several tensors and cannot be cut around")
    return found[0] if found else None


class Memory:
    """The memory behind a traced program's tensors.

    Args:
        graph: that is being made.
        new: by node of the program the node of that graph which holds its value by now.
    """

    def __init__(self, graph: fx.Graph, new: dict[fx.Node, fx.Node]) -> None:
        self.graph, self.new = graph, new
        self._roots: dict[int, fx.Node] = {}
        self._views: dict[int, list[fx.Node]] = {}
        self._parents: dict[fx.Node, fx.Node] = {}
        self._same: set[fx.Node] = set()  # results of writes: what was written into

    def note(self, node: fx.Node) -> None:
        """A node of the program that was just put into the graph."""
        value = node.meta.get("val")
        held = value[0] if isinstance(value, list | tuple) and value else value
        if not isinstance(held, Tensor):
            return
        storage = _storage(held)
        if storage not in self._roots:
            if isinstance(value, Tensor):  # one of several results is noted where it is taken out
                self._roots[storage] = node
            return
        parents = [side for side in node.all_input_nodes if _shares(side, storage)]
        if parents:
            self._parents[node] = parents[0]
            self._views.setdefault(storage, []).append(node)

    def is_read_later(self, node: fx.Node, than: fx.Node) -> bool:
        """Whether the program reads, behind a node, any tensor that shares memory with another."""
        storage = _storage(node.meta["val"])
        sharing = [self._roots[storage], *self._views.get(storage, [])]
        readers = {user for each in sharing for user in each.users}
        behind = than.next
        while behind.op != "root":
            if behind in readers:
                return True
            behind = behind.next
        return False

    def write(self, node: fx.Node, into: fx.Node, made: Callable[[fx.Node], fx.Node], *, whole: Any = None) -> fx.Node:
        """A write of the program's: the node whose value it is by now.

        Args:
            node: that writes, and into which.
            made: from the node to write into, makes the write.
            whole: where the tensor is no view, makes its new value from the old one, without a copy; if that can be.

        Raises:
            InputError: a parameter or buffer is written into.
        """
        storage = _storage(into.meta["val"])
        root = self._roots[storage]
        if self.new[root].op == "get_attr":
            raise InputError(
                f"between its blocks the model writes into {self.new[root].target}, which belongs to all calls; "
                "keep what a call changes in the call"
            )
        at = into
        while at in self._same:
            at = self._parents[at]
        if at is root and whole is not None:
            self.new[root] = whole(self.new[root])
        else:
            copy = self._call(root, ATEN.clone.default, self.new[root])
            self.new[root] = self._call(root, after, copy, made(self._view(into, root, copy)))
        for view in self._views.get(storage, []):
            parent = self._parents[view]
            self.new[view] = (
                self.new[parent] if view in self._same else self.graph.node_copy(view, self.new.__getitem__)
            )
        if _shares(node, storage):  # it returns what it has written into
            self._parents[node] = into
            self._same.add(node)
            self._views.setdefault(storage, []).append(node)
        return self.new[into]

    def _view(self, node: fx.Node, root: fx.Node, copy: fx.Node) -> fx.Node:
        """The same view of a copy of the root."""
        if node is root:
            return copy
        parent = self._parents[node]
        at = self._view(parent, root, copy)
        if node in self._same:
            return at
        return self.graph.node_copy(node, lambda side: at if side is parent else self.new[side])

    def _call(self, like: fx.Node, target: Any, *args: Any) -> fx.Node:
        made = self.graph.call_function(target, args)
        made.meta = dict(like.meta)
        return made


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _shares(node: fx.Node, storage: int) -> bool:
    value = node.meta.get("val")
    held = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(held, Tensor) and _storage(held) == storage
