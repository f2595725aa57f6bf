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
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..errors import InputError
from ..interrupts import interrupts
from .follow import cannot_follow
from .writes import Memory, written

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
    """One call of a submodule while tracing: its arguments and results, as leaves of pytrees.

    Attributes:
        writes: which of its tensors it writes into.
    """

    name: str
    arguments: list[Any]
    arguments_spec: Any
    results: list[Any]
    single: bool
    writes: list[int]

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
            if interrupts(error):
                raise
            raise cannot_follow(model, error, whole) from error
        traced = _Graph(model, program, list(_calls)).traced()
    _check_answer(traced)
    return traced


def _check_answer(traced: ModelGraph) -> None:
    """An answer has a row a sample, and nothing of other samples."""
    shape, symbol = traced.output.meta["val"].shape, traced.inputs[0].meta["val"].shape[0].node.expr
    held = [d for d, size in enumerate(shape) if not isinstance(size, int) and symbol in size.node.expr.free_symbols]
    if held != [0] or shape[0].node.expr != symbol:
        raise InputError(
            f"the answer has shape {tuple(map(str, shape))} for a batch of {symbol}, which is not a row a sample: "
            "where it compares the samples of a batch with each other, say with output= which tensor of the model's "
            "output is of each sample alone, or stage one tower of it"
        )


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
        versions = [(tensor, tensor._version) for tensor in tensors_of((args, kwargs))]
        try:
            with disable_proxy_modes_tracing(), _unseen(args, kwargs):
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
        writes = [i for i, (tensor, version) in enumerate(versions) if tensor._version != version]
        call = _Call(name, arguments, arguments_spec, results, isinstance(result, Tensor), writes)
        _calls.append(call)
        fresh = iter(_operator(call.tensors, call.sizes, len(_calls) - 1))
        return tree_unflatten([next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in results], results_spec)

    return stand_in


def _unseen(*given: Any) -> AbstractContextManager[None]:
    """While it lasts, numbers that a computation reads off its tensors are its own affair."""
    mode = detect_fake_mode(given)
    shapes = None if mode is None else mode.shape_env
    return nullcontext() if shapes is None else shapes.ignore_fresh_unbacked_symbols()


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
        self.memory = Memory(self.graph, self.new)
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
                continue  # its tensors are noted where they are taken out
            elif node.target is operator.getitem and node.args[0] in self.returned:
                self.new[node] = self.returned[node.args[0]][node.args[1]]
            elif (into := written(node)) is not None:
                self.new[node] = self._write(node, into)
                continue
            else:
                self._operator(node)
            self.memory.note(node)
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
        module = self._module(node, call, filled)
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

    def _module(self, node: fx.Node, call: _Call, filled: list[Any]) -> fx.Node:
        """The call of a submodule on these leaves; what it writes into and others read afterwards is a copy."""
        tensors: Any = node.args[0]
        places = [i for i, leaf in enumerate(call.arguments) if isinstance(leaf, Tensor)]
        kept = [i for i in call.writes if self.memory.is_read_later(tensors[i], node)]

        def made(at: fx.Node | None = None) -> fx.Node:
            leaves = [at if at is not None and i == places[kept[0]] else leaf for i, leaf in enumerate(filled)]
            args, kwargs = tree_unflatten(leaves, call.arguments_spec)
            return self.graph.call_module(call.name, args, kwargs)

        if not kept:
            return made()
        if len(kept) > 1:
            raise InputError(f"{call.name} writes into several tensors that are read later; name other blocks")
        ran: list[fx.Node] = []

        def write(at: fx.Node) -> fx.Node:
            ran.append(made(at))
            return ran[0]

        self.memory.write(node, tensors[kept[0]], write)
        return ran[0]

    def _operator(self, node: fx.Node) -> None:
        if node.target is torch.ops.aten.dropout.default:
            self.new[node] = self._dropout(node, self.new[node.args[0]])  # type: ignore[index]
        else:
            self.new[node] = self.graph.node_copy(node, self.new.__getitem__)

    def _dropout(self, node: fx.Node, given: fx.Node) -> fx.Node:
        """`F.dropout` was traced in evaluation mode; as a module it is on in training."""
        name = f"dropout_{node.name}"
        self.owned[name] = nn.Dropout(float(node.args[1]))  # type: ignore[arg-type]
        made = self.graph.call_module(name, (given,))
        made.meta = dict(node.meta)
        return made

    def _write(self, node: fx.Node, into: fx.Node) -> fx.Node:
        """`relu_(x)` becomes `relu(x)`, read wherever x was read afterwards; without such a twin, a copy is written."""

        def copied(at: fx.Node) -> fx.Node:
            return self.graph.node_copy(node, lambda side: at if side is into else self.new[side])

        def twin(at: fx.Node) -> fx.Node:
            if node.target is torch.ops.aten.dropout_.default:
                return self._dropout(node, at)
            made = copied(at)
            made.target = _out_of_place(node)
            return made

        whole = twin if _out_of_place(node) is not None or node.target is torch.ops.aten.dropout_.default else None
        return self.memory.write(node, into, copied, whole=whole)


def _out_of_place(node: fx.Node) -> Any:
    """The operator that makes a new tensor of the same numbers; None where there is none."""
    target: Any = node.target
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    types = {side.meta["val"].dtype for side in node.all_input_nodes if isinstance(side.meta.get("val"), Tensor)}
    if packet is None or target._overloadname not in packet.overloads() or len(types) > 1:
        return None  # of mixed types the new tensor might have another than that written into
    return getattr(packet, target._overloadname)


def _attribute(model: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)
