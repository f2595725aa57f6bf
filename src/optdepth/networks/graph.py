"""One model, one graph: torch.export sees the whole forward, while chosen submodules stay calls to themselves.

Why torch.export: it follows code that torch.fx cannot (the attention masks of transformers), checks that the
batch size stays free, and takes sequence lengths as free too. Why submodules stay whole: a graph of bare operators
is frozen in one mode. Calls to the original's own modules keep dropout, stochastic depth and BatchNorm as they
are in training and in evaluation, share every parameter, and compute the same bits.

A submodule is kept whole by standing in for its `forward` while tracing: the stand-in runs it unseen, on tensors
without content, for the shapes it returns, and leaves one operator, `optdepth::call`, in the graph. That operator is
never run: the graph handed back has a `call_module` node in its place.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..errors import InputError

_ALONE = threading.Lock()  # the stand-ins are set on the model itself, so one trace at a time


@dataclass(frozen=True)
class ModelGraph:
    """A model as a graph.

    Attributes:
        graph: `call_module` nodes for the submodules kept whole, `get_attr` nodes for other parameters and
            buffers, operators between them; `meta["val"]` of a node is a tensor without content, whose shape has
            symbols for what is free.
        inputs: the placeholders, one a tensor of the example.
        output: the node of the logits.
        calls: the name of the submodule, its `call_module` node and the tensors it returned, in order of execution.
        owned: what the targets of `call_module` and `get_attr` nodes are.
    """

    graph: fx.Graph
    inputs: list[fx.Node]
    output: fx.Node
    calls: list[tuple[str, fx.Node, list[fx.Node]]]
    owned: dict[str, Any]


@dataclass(frozen=True)
class _Call:
    """One call of a submodule while tracing: its arguments and results, as leaves of pytrees."""

    name: str
    arguments: list[Any]
    arguments_spec: Any
    results: list[Any]
    single: bool

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in self.arguments if isinstance(leaf, Tensor)]

    @property
    def sizes(self) -> list[Any]:
        return [leaf for leaf in self.arguments if isinstance(leaf, torch.SymInt)]


_calls: list[_Call] = []


@torch.library.custom_op(
    "optdepth::call", mutates_args=(), schema="(Tensor[] tensors, SymInt[] sizes, int call) -> Tensor[]"
)
def _operator(tensors: list[Tensor], sizes: list[int], call: int) -> list[Tensor]:
    raise RuntimeError("optdepth::call stands for a module while tracing and is never run")


@_operator.register_fake
def _(tensors: list[Tensor], sizes: list[int | torch.SymInt], call: int) -> list[Tensor]:
    results = [leaf for leaf in _calls[call].results if isinstance(leaf, Tensor)]
    return [tensor.new_empty_strided(tensor.size(), tensor.stride()) for tensor in results]


class _Whole(nn.Module):
    """Flat tensors -> logits, so that what is exported has the simplest signature there is."""

    def __init__(self, model: nn.Module, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.run(*tensors)


def graph_of(
    model: nn.Module, run: Callable[..., Tensor], tensors: Sequence[Tensor], whole: Sequence[str]
) -> ModelGraph:
    """The graph of `run`, which calls `model`, on tensors whose first dimension is the batch.

    Args:
        model: in the mode to be traced; unchanged afterwards.
        run: flat tensors -> logits.
        tensors: an example; at batch size 1 it is doubled, as a size of one is not told from a constant.
        whole: names of submodules to keep whole, wherever they are called outside of each other.

    Raises:
        InputError: torch.export cannot follow the model, or fixes its batch size.
    """
    if len(tensors[0]) == 1:
        tensors = [torch.cat([tensor, tensor]) for tensor in tensors]
    batch = Dim("batch")
    free = tuple({0: batch, **dict.fromkeys(_lengths(tensor), Dim.AUTO)} for tensor in tensors)
    with _ALONE, _kept_whole(model, whole), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.export about its own workings
        try:
            program = torch.export.export(_Whole(model, run), tuple(tensors), dynamic_shapes=(free,), strict=False)
        except InputError:
            raise
        except Exception as error:  # torch.export raises whatever the model's code and its own passes raise
            reason = " ".join(str(error).split())
            raise InputError(
                f"torch.export cannot follow {type(model).__name__} ({type(error).__name__}: {reason:.240}); "
                "name its blocks with blocks=[...], so that their insides need not be followed"
            ) from error
        return _Graph(model, program, list(_calls)).traced()


def _lengths(tensor: Tensor) -> range:
    """The dimensions that stay free beside the batch: those of token numbers and masks, sequence lengths. The sizes
    of images are fixed: with free ones torch.export takes minutes over the padding of a Swin.
    """
    return range(1, 1 if tensor.is_floating_point() else tensor.dim())


@contextmanager
def _kept_whole(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """While it lasts, each named submodule's `forward` is a stand-in."""
    _calls.clear()
    inside = [False]
    with ExitStack() as undo:
        for name in names:
            module = model.get_submodule(name)
            undo.enter_context(replaced_forward(module, _stand_in(name, module.forward, inside)))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, calling the module calls `forward`."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own


def _stand_in(name: str, forward: Callable[..., Any], inside: list[bool]) -> Callable[..., Any]:
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        if inside[0]:
            return forward(*args, **kwargs)
        inside[0] = True
        try:
            with disable_proxy_modes_tracing():
                result = forward(*args, **kwargs)
        finally:
            inside[0] = False
        arguments, arguments_spec = tree_flatten((args, kwargs))
        results, results_spec = tree_flatten(result)
        for leaf in [*arguments, *results]:
            if not isinstance(leaf, _PLAIN):
                raise InputError(
                    f"{name} takes or returns a {type(leaf).__name__}, which a graph cannot hold; "
                    "name blocks that pass tensors with blocks=[...]"
                )
        call = _Call(name, arguments, arguments_spec, results, isinstance(result, Tensor))
        _calls.append(call)
        fresh = iter(_operator(call.tensors, call.sizes, len(_calls) - 1))
        return tree_unflatten([next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in results], results_spec)

    return stand_in


_PLAIN = (Tensor, torch.SymInt, int, float, bool, str, type(None), torch.dtype, torch.device)


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors among a module's results."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


class _Graph:
    """Turns an exported program into the graph of `ModelGraph`."""

    def __init__(self, model: nn.Module, program: ExportedProgram, calls: list[_Call]) -> None:
        self.model, self.program, self.recorded = model, program, calls
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.returned: dict[fx.Node, list[fx.Node]] = {}
        self.inputs: list[fx.Node] = []
        self.calls: list[tuple[str, fx.Node, list[fx.Node]]] = []
        self.owned: dict[str, Any] = {}

    def traced(self) -> ModelGraph:
        kinds = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        output: Any = None
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.new[node] = self._placeholder(node, kinds[node.name])
            elif node.op == "output":
                output = next(arg for arg in tree_leaves(node.args) if isinstance(arg, fx.Node))
            elif node.target is torch.ops.optdepth.call.default:
                self.returned[node] = self._call(node)
            elif node.target is operator.getitem and node.args[0] in self.returned:
                self.new[node] = self.returned[node.args[0]][node.args[1]]
            else:
                self._operator(node)
        return ModelGraph(self.graph, self.inputs, self.new[output], self.calls, self.owned)

    def _placeholder(self, node: fx.Node, spec: Any) -> fx.Node:
        if spec.kind == InputKind.USER_INPUT:
            made = self.graph.placeholder(node.name)
            self.inputs.append(made)
        else:
            name = str(spec.target).removeprefix("model.")
            made = self.graph.get_attr(name)
            tensor = self.program.constants.get(spec.target)
            self.owned[name] = _attribute(self.model, name) if tensor is None else tensor
        made.meta = dict(node.meta)
        return made

    def _call(self, node: fx.Node) -> list[fx.Node]:
        tensors, sizes, number = node.args
        call = self.recorded[number]  # type: ignore[index]
        given = {torch.Tensor: iter(tensors), torch.SymInt: iter(sizes)}  # type: ignore[arg-type]
        filled = []
        for leaf in call.arguments:
            kind = Tensor if isinstance(leaf, Tensor) else type(leaf)
            value = next(given[kind]) if kind in given else leaf
            filled.append(self.new[value] if isinstance(value, fx.Node) else value)
        args, kwargs = tree_unflatten(filled, call.arguments_spec)
        module = self.graph.call_module(call.name, args, kwargs)
        self.owned[call.name] = self.model.get_submodule(call.name)
        values = [leaf for leaf in call.results if isinstance(leaf, Tensor)]
        if call.single:
            made = [module]
        else:
            flat = self.graph.call_function(tensors_of, (module,))
            made = [self.graph.call_function(operator.getitem, (flat, i)) for i in range(len(values))]
        for one, value in zip(made, values, strict=True):
            one.meta = {"val": value}
        self.calls.append((call.name, module, made))
        return made

    def _operator(self, node: fx.Node) -> None:
        if node.target is torch.ops.aten.dropout.default:
            self.new[node] = self._dropout(node)
            return
        schema = getattr(node.target, "_schema", None)
        made = self.graph.node_copy(node, self.new.__getitem__)
        if schema is not None and schema.is_mutable and schema.name.endswith("_"):
            self._out_of_place(made, node)
        self.new[node] = made

    def _dropout(self, node: fx.Node) -> fx.Node:
        """`F.dropout` was traced in evaluation mode; as a module it is on in training."""
        name = f"dropout_{node.name}"
        self.owned[name] = nn.Dropout(float(node.args[1]))  # type: ignore[arg-type]
        made = self.graph.call_module(name, (self.new[node.args[0]],))  # type: ignore[index]
        made.meta = dict(node.meta)
        return made

    def _out_of_place(self, made: fx.Node, node: fx.Node) -> None:
        """`relu_(x)` becomes `relu(x)`, read wherever x was read afterwards."""
        target: Any = node.target
        packet = getattr(torch.ops.aten, target._schema.name.removeprefix("aten::").rstrip("_"), None)
        if packet is None or target._overloadname not in packet.overloads():
            raise InputError(f"the model calls {target}, which changes a tensor in place and cannot be cut around")
        made.target = getattr(packet, target._overloadname)
        base = self.new[node.args[0]]  # type: ignore[index]
        for old, new in self.new.items():
            if new is base:
                self.new[old] = made


def _attribute(model: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)
