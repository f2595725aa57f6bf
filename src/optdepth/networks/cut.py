"""Any model -> StagedNetwork: traced once, cut after its residual blocks, an exit attached at each cut.

One mechanism serves every family. `graph.py` makes a graph of the model in which its blocks stay calls to the
original's own modules; `parts.py` cuts that graph, and whatever crosses a cut (hidden states, an attention mask) is
the state. So the parts run the same modules on the same tensors as the original does, and nothing has to be known
about how a family builds its masks, feeds its blocks, or pools.

The alternatives were tried against the same models. A chain of sibling modules called by hand needs to know every
family's arguments between the blocks; torch.fx's own tracer stops at the masks of transformers; a graph of bare
operators loses dropout and BatchNorm in training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..batch import Inputs, State, hidden
from ..errors import InputError
from .attach import Places, choose
from .bare import check_bare
from .blocks import blocks_of, holders, learned_after, named_blocks, outside, residual_additions, rest_of_block
from .check import check
from .graph import ModelGraph, graph_of
from .heads import HEADS, HeadKind, head_kind
from .modes import in_mode_of
from .padding import Mask, Padding, padding_of
from .parts import Cut, live, part, upstream
from .signature import Signature, Stem, answer_of, evaluation
from .staged import BUILDERS, Exit, StagedNetwork
from .work import flops_of


def stage(
    model: nn.Module,
    *,
    example: Inputs,
    exits: Literal["auto", "all"] | int | Sequence[str] = "auto",
    head: str = "auto",
    blocks: str | Sequence[str] | None = None,
    output: str | int | None = None,
    mask: Mask = "auto",
    seed: int | None = None,
) -> StagedNetwork:
    """The model with exits: it shares the model's modules, and its last exit is the model, bit for bit.

    The model is neither copied nor changed; train the network, and the model has been trained. That the last exit
    equals the model, and that a sample's answer does not depend on the rest of the batch, is checked before the network
    is returned: on the example, and on others of its samples, lengths and padding.

    Args:
        model: torchvision, timm, transformers, or your own: any module that torch.export can follow.
        example: inputs as the model takes them, one tensor, or a tuple or dict of tensors, batch first. Batch size and
            sequence length stay free; dtype is that of the example's run.
        exits: "all" for one after each residual block; "auto" leaves out those whose head costs at least as much as
            the trunk up to the next exit, which is all that stopping there rather than then can save; a number, spread
            evenly over the trunk's cost; or names. The last block is always an exit.
        head: a kind out of `networks.HEADS`: "own", a copy of what the model itself has after its last block (pooler
            included); "linear" and "mlp" on the mean over places, padding left out; "conv", "branch" and "tail", rising
            in what they cost, for convolutional models, whose early maps tell a linear head little; "token", linear at
            every token; "auto" is "own" where a copy fits the state, else "linear". The layer of a new head that
            answers is zero: it says nothing.
        blocks: names of the blocks, or of the container that holds them; found by themselves if not given.
        output: which of several outputs is the answer: a key or a position. By default the only one, or "logits".
        mask: which input says what is padding, by its key or position, and what it is there: `("attention_mask", 0)`,
            `(1, True)`. "auto" finds it by what the model does with it; None: nothing is padding. Padding is left out
            of means, and where every token has an answer, heads answer zero there.
        seed: of the weights of heads that start from random ones: "mlp", "conv", "branch" and "tail".

    Returns:
        A network in the mode of the model; `network.exits` says name, depth, state shape, and FLOPs of trunk and head.

    Raises:
        InputError: the model cannot be staged, with the reason and what would help; an unknown name.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> mean = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((1, 8)), torch.nn.Flatten(), torch.nn.Linear(8, 3))
        >>> model = torch.nn.Sequential(torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), mean).eval()
        >>> len(od.stage(model, example=torch.randn(2, 5, 8), exits="all").exits)
        3
    """
    check_bare(model)
    kind = head_kind(head)
    if kind.draws != (seed is not None):
        drawn = ", ".join(name for name, other in HEADS.items() if other.draws)
        raise InputError(f"head={head!r}, seed={seed}: {drawn} heads draw weights and need a seed, others draw none")
    signature = Signature.of(example)
    run = answer_of(model, signature, output)
    with evaluation(model):
        expected = run(*signature.flat(example))
        traced, before, cuts = _cuts(model, run, signature.flat(example), blocks)
        if blocks is None:
            cuts = _answering(traced, cuts)
        padding = padding_of(run, signature, traced.inputs, signature.flat(example), mask)
        network = _network(model, traced, before, cuts, padding, signature, example, expected, kind, seed)
        network.config = {
            "family": "staged",
            "head": head,
            "blocks": blocks,
            "output": output,
            "mask": mask,
            "seed": seed,
        }
        network = network.eval().keep(choose(network.exits, exits))
        check(type(model).__name__, run, network, signature, traced.inputs, signature.flat(example))
    return in_mode_of(network, model)


def _cuts(
    model: nn.Module, run: Any, tensors: list[Tensor], blocks: str | Sequence[str] | None
) -> tuple[ModelGraph, Cut, list[Cut]]:
    """The model's graph, the cut before its first block, and one after each block."""
    if blocks is not None:
        names = named_blocks(model, blocks)
    else:
        plain = graph_of(model, run, tensors, ())
        additions = residual_additions(plain)
        names = blocks_of(model, additions)
        if not names and additions:
            held = holders(additions)
            inside = [name for name, _ in model.named_modules() if name and name not in held]
            traced = graph_of(model, run, tensors, inside)
            return _after_additions(traced)
        if not names and isinstance(model, nn.Sequential):
            names = [name for name, _ in model.named_children()]
    if not names:
        raise InputError(
            f"{type(model).__name__} has no residual additions to cut at; name its blocks with blocks=[...]"
        )
    traced = graph_of(model, run, tensors, outside(model, names))
    return _after_blocks(model, traced, names, chain=blocks is None and isinstance(model, nn.Sequential))


def _after_blocks(
    model: nn.Module, traced: ModelGraph, names: list[str], *, chain: bool
) -> tuple[ModelGraph, Cut, list[Cut]]:
    """Cuts after every call of the blocks named; in a chain of any modules, activations stay with theirs."""
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    calls = [call for call in traced.calls if call[0] in names and call[2]]
    if missing := [name for name in names if name not in {name for name, *_ in calls}]:
        raise InputError(f"the model does not call its submodule {missing[0]} on the example; name other blocks")
    needed = upstream(traced.output)
    calls = [call for call in calls if call[2][0] in needed]
    if not calls:
        raise InputError(f"the answer does not come from the submodules {', '.join(names)}; name other blocks")
    cuts: list[Cut] = []
    for name, _, made in calls:
        end = rest_of_block(made[0], traced.owned) if chain else made[0]
        if end in {cut.hidden for cut in cuts} or (chain and not learned_after(traced.graph, end)):
            continue
        times = 1 + sum(cut.name.partition("#")[0] == name for cut in cuts)
        place = max(order[node] for node in (end, *made))
        cuts.append(Cut(f"{name}#{times}" if times > 1 else name, end, place))
    first = calls[0][1]
    entering = next(node for node in first.all_input_nodes if isinstance(node.meta.get("val"), Tensor))
    return traced, Cut("", entering, order[first] - 1), cuts


def _after_additions(traced: ModelGraph) -> tuple[ModelGraph, Cut, list[Cut]]:
    """Cuts after every residual addition, and the activation on it, where no module holds a block."""
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    additions = residual_additions(traced)
    ends = [rest_of_block(node, traced.owned) for node in additions]
    origin = next(iter(additions.values()))
    cuts = [Cut(node.name, end, order[end]) for node, end in zip(additions, ends, strict=True)]
    return traced, Cut("", origin, order[origin]), cuts


def _answering(traced: ModelGraph, cuts: list[Cut]) -> list[Cut]:
    """The cuts at which a head could answer as the model does: where it answers otherwise than once a sample, at every
    token or place say, those whose state has the shape of the last one's.

    Raises:
        InputError: only the last has.
    """
    answer, end = traced.output.meta["val"].shape, cuts[-1].hidden.meta["val"].shape
    if len(answer) <= 2:
        return cuts
    found = [cut for cut in cuts if str(cut.hidden.meta["val"].shape) == str(end)]
    if len(found) == 1 < len(cuts):
        raise InputError(
            f"the model answers {tuple(map(str, answer))}, one for each place, and no state before that of its last "
            f"block {cuts[-1].name} has the shape {tuple(map(str, end))} that such answers are made from: it cannot "
            "have early exits"
        )
    return found


def _network(
    model: nn.Module,
    traced: ModelGraph,
    before: Cut,
    cuts: list[Cut],
    padding: Padding,
    signature: Signature,
    example: Inputs,
    answer: Tensor,
    head: HeadKind,
    seed: int | None,
) -> StagedNetwork:
    """A network with an exit at every cut."""
    layouts = [live(traced, cut, [mask for mask, *_ in padding.masks]) for cut in (before, *cuts)]
    stem = Stem(part(traced, traced.inputs, layouts[0], first=True), signature, traced.inputs)
    stages = [part(traced, *pair) for pair in itertools.pairwise(layouts)]
    own = part(traced, layouts[-1], [traced.output], last=True)
    trunk, state = flops_of(stem, example)
    upto, states = [], []
    for k, run in enumerate(stages):
        given, versions = state, _versions(state)
        cost, state = flops_of(run, given)
        if _versions(given) != versions:
            stages[k] = part(traced, layouts[k], layouts[k + 1], fresh=True)
        trunk += cost
        upto.append(trunk)
        states.append(state)
    last, _ = flops_of(own, state)
    places = Places(
        model, traced, cuts, layouts[1:], padding=padding, states=states, answer=answer, work=trunk + last, last=own
    )
    heads, exits = [], []
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for k, (cut, state) in enumerate(zip(cuts, states, strict=True)):
            made = own if k == len(cuts) - 1 else places.head(k, head)
            look = last if made is own else flops_of(made, state)[0]
            n = len(hidden(state))
            exits.append(Exit(cut.name, k + 1, tuple(hidden(state).shape[1:]), upto[k] / n, look / n))
            heads.append(made)
    return StagedNetwork(stem, stages, heads, exits)


def _versions(state: State) -> list[int]:
    """Numbers that change when somebody writes into a state."""
    return [tensor._version for tensor in tree_leaves(state)]


def _again(model: nn.Module | None = None, example: Inputs | None = None, **arguments: Any) -> StagedNetwork:
    if model is None or example is None:
        raise InputError("the network was staged from a model: give load_network that model=, and an example=")
    if (arguments.get("head"), arguments.get("seed")) == ("tail", None):
        raise InputError("the network was saved when head='tail' was what head='own' is now: stage and save it again")
    if isinstance(arguments.get("mask"), list):
        arguments["mask"] = tuple(arguments["mask"])  # as JSON has it
    return stage(model, example=example, **arguments)


BUILDERS["staged"] = _again
