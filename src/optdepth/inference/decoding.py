"""Decoder: a causal language model in which every token is its own stopping problem (theory, section 7).

A token that stops after layer d hands its state on: the keys and values of the layers above are computed from it (state
propagation, Schuster et al. 2022, arXiv:2207.07061, "CALM"), so that later tokens find no hole where it stopped. Of a
layer that is only handed a state, no more runs than what makes its keys and values: they are caught where the layer
gives them to the cache, and the rest of it is called off.

The model's own forward runs: its masks, positions and cache are what they are without exits. While a `Decoder`
generates, the forward of each decoder layer has a stand-in, which runs the layer for the rows that go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from ..errors import InputError
from ..networks import StagedNetwork
from ..networks.signature import Stem
from ..networks.staged import Inputs, State, hidden, select
from ..networks.tracing import replaced_forward
from ..observe import Memory
from ..stopping.evaluate import Evaluation
from ..stopping.rule import FixedDepth, Rule
from ..trace import Costs
from .look import Look

Pick = Callable[[Tensor], Tensor]
"""Logits (n, V) -> the next token of each sequence, (n,)."""


@dataclass(frozen=True, eq=False)
class Text:
    """What a decoder wrote.

    Attributes:
        tokens: (n, t) new tokens; behind its `end` token a sequence repeats it.
        exit: (n, t) exit each was decided at, 0-based; -1 behind the end.
        cost: (n, t) what each cost, in `unit`; 0 behind the end.
    """

    tokens: Int[Tensor, "n t"]
    exit: Int[Tensor, "n t"]
    cost: Float[Tensor, "n t"]
    unit: str

    def __str__(self) -> str:
        written = self.exit >= 0
        return (
            f"{int(written.sum())} tokens in {len(self.tokens)} sequences, exits {int(self.exit[written].min())} to "
            f"{int(self.exit.max())}, mean cost {float(self.cost[written].mean()):.4g} {self.unit}"
        )


class Decoder:
    """Generates text by a rule: `decoder.generate(prompt, tokens) -> Text`.

    The prompt but for its last token runs at full depth. Every further token stops where the rule says, each by itself:
    in a batch, sequences whose token has stopped leave the layers above to the others, but for their keys and values.

    Args:
        model: a causal language model of transformers, in whose decoder layers keys and values go through a cache.
        network: `stage(model, example=...)`, with exits behind decoder layers.
        rule: solved on tokens, `record(..., each="token")`, at costs such as those of `token_flops`.

    Raises:
        InputError: a network of another model or cut elsewhere than behind its layers, or a rule that was solved for
            another network, or that answers by recall.
    """

    def __init__(self, model: nn.Module, network: StagedNetwork, rule: Rule) -> None:
        rule.check(network.fingerprint(), len(network.exits))
        if rule.origin.recall:
            raise InputError("the rule answers by recall, which a decoder does not: solve one on a trace without")
        self.layers = _Layers(model, network)
        self.network, device = network.eval(), next(network.parameters()).device
        self.rule = rule.to(device)
        self.unit = rule.origin.costs.unit
        self.last = rule.exit if isinstance(rule, FixedDepth) else len(network.exits) - 1
        self.paid = torch.from_numpy(rule.origin.costs.paid(rule.looks)).to(device)

    @torch.inference_mode()
    def generate(
        self,
        prompt: Int[Tensor, "n p"],
        tokens: int,
        *,
        mask: Int[Tensor, "n p"] | None = None,
        end: int | None = None,
        pick: Pick | None = None,
    ) -> Text:
        """Writes so many tokens behind each prompt.

        Args:
            prompt: token numbers, at least one a sequence; shorter ones are padded on the left.
            tokens: how many to write, at most.
            mask: 1 where the prompt is no padding; all of it when not given.
            end: the token that ends a sequence; the others go on without it, and all stop when all have ended.
            pick: logits (n, V) to tokens (n,); the most likely one when not given. Draw with a generator of your own
                to sample.

        Raises:
            InputError: an empty prompt, no tokens asked for, or padding that is not on the left.
        """
        if prompt.ndim != 2 or 0 in prompt.shape or tokens < 1:
            raise InputError(f"a prompt of shape {tuple(prompt.shape)} and {tokens} tokens to write: give (n, p) and 1")
        if mask is not None and (mask.shape != prompt.shape or not mask[:, -1].all() or (mask.diff(dim=1) < 0).any()):
            raise InputError("mask must have the prompt's shape, with padding (0) on the left and ones behind it")
        n = len(prompt)
        written = prompt.new_full((n, tokens), -1 if end is None else end)
        exit = torch.full((n, tokens), -1, device=prompt.device)
        rows = torch.arange(n, device=prompt.device)
        cache = self.layers.cache()
        with self.layers.standing_in(self._layer):
            if prompt.shape[1] > 1:
                self._token: _Token | None = None
                self.layers.run(prompt[:, :-1], None if mask is None else mask[:, :-1], cache)
            newest = prompt[:, -1:]
            for t in range(tokens):
                self._token = _Token(Look(self.rule), len(rows), prompt.device)
                self.layers.run(newest, mask, cache)
                assert self._token.logits is not None
                newest = (_greedy if pick is None else pick)(self._token.logits)[:, None]
                written[rows, t], exit[rows, t] = newest[:, 0], self._token.exit
                mask = None if mask is None else torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
                if end is not None and (newest == end).any():
                    going = (newest[:, 0] != end).nonzero()[:, 0]
                    if not len(going):
                        break
                    rows, newest, mask = rows[going], newest[going], None if mask is None else mask[going]
                    cache.batch_select_indices(going)
        cost = torch.where(exit >= 0, self.paid[exit], 0.0)
        return Text(written, exit, cost, self.unit)

    def _layer(self, i: int, x: Tensor, call: _Call) -> Tensor:
        """One decoder layer: run for the rows that go on; the others have their keys and values made."""
        token = self._token
        if token is None:  # the prompt
            return call.whole()
        if token.before is None:
            token.before = x
        if token.left < len(x):
            call.keys_and_values(None if not token.left else token.stopped.nonzero()[:, 0])
        if not token.left:
            return x
        rows = None if token.left == len(x) else (~token.stopped).nonzero()[:, 0]
        new = call.whole() if rows is None else x.index_copy(0, rows, call.rows(rows))
        k = self.layers.exit_behind[i]
        if k is not None:
            self._exit(k, token, new, rows)
        return new

    def _exit(self, k: int, token: _Token, x: Tensor, rows: Tensor | None) -> None:
        """Exit k, for the rows that got there: they stop, or are remembered."""
        before, token.before = token.before, x
        if not (self.rule.looks[k] or k == self.last):
            return
        there = x if rows is None else x[rows]
        logits = self.layers.head(k, there)[:, -1]
        rows = torch.arange(len(x), device=x.device) if rows is None else rows
        if k == self.last:
            token.settle(k, rows, logits)
            return
        assert before is not None
        came = before[rows]
        stops, memory = token.look.batch(k, logits, came, there, token.memory)
        token.settle(k, rows[stops], logits[stops])
        token.memory = select(memory, ~stops) if memory and bool(stops.any()) else memory

    @torch.inference_mode()
    def follow(self, text: Int[Tensor, "n t"], *, prompt: int = 1) -> Evaluation:
        """What `generate` would meet if it wrote this text: its exits, and how often its next token is not the text's.

        Layer after layer for all tokens at once, with the states of those that have stopped handed on: a token stops
        at a layer by states of that layer and below, of itself and of tokens before it. So it is exact, and a way to
        judge a rule with all that propagation does to later tokens, which a trace, recorded at full depth, leaves out.

        Args:
            text: token numbers, without padding.
            prompt: tokens in front, of which the last one is the first to stop early.

        Returns:
            One sample a token from the prompt's last to the last but one, sequence after sequence; the loss is 0-1.
        """
        n, length = text.shape
        if not 1 <= prompt < length:
            raise InputError(f"prompt={prompt} of {length} tokens: give 1 to {length - 1}")
        free = torch.arange(length, device=text.device).expand(n, -1) >= prompt - 1
        going = torch.ones_like(free).flatten()
        exit = torch.full_like(going, len(self.network.exits) - 1, dtype=torch.long)
        best = torch.zeros_like(exit)
        look = Look(self.rule)
        memory: Memory = {}
        state = self.network.start(self.layers.inputs(text))
        for k, stage in enumerate(self.network.stages):
            before = state
            for block in stage if isinstance(stage, nn.Sequential) else [stage]:
                state = _handed_on(state, block(state), going.view(n, length, 1))
            if not (self.rule.looks[k] or k >= self.last):
                continue
            logits = self.network.answer(state, k).flatten(0, 1)
            if k < self.last:
                came, there = (hidden(one).flatten(0, 1) for one in (before, state))
                stops, memory = look.batch(k, logits, came, there, memory)
            else:
                stops = torch.ones_like(going)
            stops = stops & going & (free.flatten() | (k == len(self.network.exits) - 1))
            best, exit = torch.where(stops, logits.argmax(-1), best), torch.where(stops, k, exit)
            going = going & ~stops
        inner = slice(prompt - 1, length - 1)
        wrong = best.view(n, length)[:, inner] != text[:, prompt:]
        exits = exit.view(n, length)[:, inner].flatten()
        costs = self.paid[exits].cpu().numpy()
        losses = wrong.flatten().double().cpu().numpy()
        return Evaluation.of(losses, costs, exits.cpu().numpy(), depth=len(self.network.exits))


@torch.inference_mode()
def token_flops(model: nn.Module, network: StagedNetwork, prompt: Int[Tensor, "n p"]) -> Costs:
    """Floating-point operations of one token behind a prompt, counted as `flops` counts them.

    Reaching an exit costs the layers up to it, looking its head; and answering costs what the layers above have to do
    for later tokens: the keys and values of a state that is handed on.

    Args:
        model, network: as for `Decoder`.
        prompt: token numbers, two at least a sequence; attention is to as many tokens.
    """
    if prompt.ndim != 2 or prompt.shape[1] < 2:
        raise InputError(f"a prompt of shape {tuple(prompt.shape)}: give (n, p) token numbers with p of 2 or more")
    layers = _Layers(model, network)
    full, handed, heads = [], [], np.zeros(len(network.exits))

    def counted(work: Callable[[], Any]) -> tuple[float, Any]:
        with FlopCounterMode(display=False) as counter:
            result = work()
        return counter.get_total_flops() / len(prompt), result

    def run(i: int, x: Tensor, call: _Call) -> Tensor:
        work, new = counted(call.whole)
        full.append(work)
        if (k := layers.exit_behind[i]) is not None:
            heads[k] = counted(lambda: layers.head(k, new))[0]
        return new

    def hand_on(i: int, x: Tensor, call: _Call) -> Tensor:
        handed.append(counted(lambda: call.keys_and_values(None))[0])
        return x

    training = network.training
    network.eval()
    for way in (run, hand_on):
        cache = layers.cache()
        with layers.standing_in(lambda i, x, call: call.whole()):
            layers.run(prompt[:, :-1], None, cache)
        with layers.standing_in(way):
            layers.run(prompt[:, -1:], None, cache)
    network.train(training)
    behind = [i for i, k in enumerate(layers.exit_behind) if k is not None]
    return Costs.of([sum(full[: i + 1]) for i in behind], heads, [sum(handed[i + 1 :]) for i in behind], "FLOPs")


class _Token:
    """One token of every sequence on its way through the layers.

    Attributes:
        stopped, left: (n,) who has stopped, and how many have not.
        exit: (n,) where each stopped.
        logits: (n, V) what each answered there; None before the first.
        before: (n, 1, d) the states at the exit before, or ahead of the first layer.
        memory: of the observer, for those that go on.
    """

    def __init__(self, look: Look, n: int, device: torch.device) -> None:
        self.look, self.left = look, n
        self.stopped = torch.zeros(n, dtype=torch.bool, device=device)
        self.exit = torch.zeros(n, dtype=torch.long, device=device)
        self.logits: Tensor | None = None
        self.before: Tensor | None = None
        self.memory: Memory = {}

    def settle(self, k: int, rows: Int[Tensor, " m"], logits: Float[Tensor, "m V"]) -> None:
        """The rows stop at exit k."""
        if self.logits is None:
            self.logits = logits.new_zeros(len(self.exit), logits.shape[1])
        self.stopped[rows], self.exit[rows], self.logits[rows] = True, k, logits
        self.left -= len(rows)


class _Caught(Exception):
    """A layer has given its keys and values to the cache; the rest of it is not wanted."""


class _Slot:
    """Stands for the cache in a call of one layer: the newest column, for some rows or for all.

    Args:
        cache: of transformers; `length` columns were there before this token.
        rows: (m,) out of n sequences; all when None.
        catching: whether the layer is to end here.
    """

    def __init__(self, cache: Any, n: int, length: int, rows: Tensor | None, *, catching: bool) -> None:
        self.cache, self.n, self.length, self.rows, self.catching = cache, n, length, rows, catching

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What a layer calls: stores the rows' keys and values, (m, heads, 1, d), and returns all of those rows."""
        if self.rows is None:
            self.cache.update(keys, values, layer)
        else:
            if self.cache.get_seq_length(layer) == self.length:  # the first rows of this token
                room = keys.new_zeros(self.n, *keys.shape[1:]), values.new_zeros(self.n, *values.shape[1:])
                self.cache.update(*room, layer)
            held = self.cache.layers[layer]
            held.keys[self.rows, :, self.length :], held.values[self.rows, :, self.length :] = keys, values
        if self.catching:
            raise _Caught
        held = self.cache.layers[layer]
        return held.keys[self.rows], held.values[self.rows]


@dataclass(frozen=True)
class _Call:
    """The model's call of one of its layers, to be made for all sequences, for some, or in part."""

    forward: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    cache: Any
    length: int

    def whole(self) -> Tensor:
        """As the model makes it."""
        return self.forward(*self.arguments, **self.keywords)

    def rows(self, rows: Int[Tensor, " m"]) -> Tensor:
        """For some sequences, as if they were the batch."""
        return self._made(rows, catching=False)

    def keys_and_values(self, rows: Int[Tensor, " m"] | None) -> None:
        """No more than to make and store their keys and values; those of all sequences when None."""
        try:
            self._made(rows, catching=True)
        except _Caught:
            return
        raise InputError(f"{self.forward} gave no keys and values to the cache, so its states cannot be handed on")

    def _made(self, rows: Tensor | None, *, catching: bool) -> Tensor:
        n = len(self.arguments[0])

        def narrowed(leaf: Any) -> Any:
            if leaf is self.cache:
                return _Slot(leaf, n, self.length, rows, catching=catching)
            # What has no row a sequence is the same for all, and has one: with several sequences they are told apart.
            return leaf[rows] if rows is not None and isinstance(leaf, Tensor) and len(leaf) == n else leaf

        given = (self.arguments, self.keywords)
        arguments, keywords = tree_map(narrowed, given, is_leaf=lambda leaf: leaf is self.cache)
        return self.forward(*arguments, **keywords)


Way = Callable[[int, Tensor, _Call], Tensor]
"""What stands for layer i: its number, the states (n, t, d) that enter, and the call -> the states that leave."""


class _Layers:
    """The decoder layers of a model, and the exits of a network behind them."""

    def __init__(self, model: nn.Module, network: StagedNetwork) -> None:
        places = [exit.name.rpartition(".") for exit in network.exits]
        container = places[-1][0]
        layers = dict(model.named_modules()).get(container)
        owned = set(network.modules())
        if not isinstance(layers, nn.ModuleList) or not set(layers) <= owned or not hasattr(model, "base_model"):
            raise InputError(
                f"the exits {', '.join(exit.name for exit in network.exits)} are not behind the decoder layers of "
                f"{type(model).__name__}: give a causal language model of transformers and stage(model, example=...)"
            )
        if not isinstance(network.stem, Stem) or set(network.stem.signature.names) - {"input_ids", "attention_mask"}:
            raise InputError("stage the model on a dict of input_ids, with or without an attention_mask")
        self.names, self.network = network.stem.signature.names, network
        self.base: Callable[..., Any] = model.base_model  # type: ignore[assignment]
        self.modules = list(layers)
        exits = {name: k for k, (_, _, name) in enumerate(places)}
        self.exit_behind = [exits.get(str(i)) for i in range(len(layers))]
        self.bare = self._forms()

    def inputs(self, tokens: Int[Tensor, "n t"]) -> Inputs:
        """What the network takes: these tokens, none of them padding."""
        return {name: tokens if name == "input_ids" else torch.ones_like(tokens) for name in self.names}

    @torch.inference_mode()
    def _forms(self) -> list[bool]:
        """Whether the state at each exit is the hidden states alone."""
        device = next(self.network.parameters()).device
        state = self.network.start(self.inputs(torch.zeros(1, 2, dtype=torch.long, device=device)))
        bare = []
        for stage in self.network.stages:
            state = stage(state)
            bare.append(isinstance(state, Tensor))
        return bare

    def head(self, k: int, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t V"]:
        """The logits of exit k. A head reads the hidden states alone, whatever else the state holds."""
        return self.network.answer(x if self.bare[k] else (x,), k)

    @staticmethod
    def cache() -> Any:
        """An empty one, that grows."""
        from transformers.cache_utils import DynamicCache

        return DynamicCache()

    def run(self, tokens: Int[Tensor, "n t"], mask: Int[Tensor, "n all"] | None, cache: Any) -> None:
        """The model without its head on the tokens behind those in the cache."""
        self._cache, self._length = cache, cache.get_seq_length()
        masked = {}
        if mask is not None:
            places = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            masked = {"attention_mask": mask, "position_ids": places}
        self.base(input_ids=tokens, past_key_values=cache, use_cache=True, **masked)

    @contextmanager
    def standing_in(self, way: Way) -> Iterator[None]:
        """While it lasts, calling a layer goes through `way`."""
        with ExitStack() as undo:
            for i, module in enumerate(self.modules):
                undo.enter_context(replaced_forward(module, self._stand_in(i, module.forward, way)))
            yield

    def _stand_in(self, i: int, forward: Callable[..., Tensor], way: Way) -> Callable[..., Tensor]:
        def stand_in(x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
            return way(i, x, _Call(forward, (x, *arguments), keywords, self._cache, self._length))

        return stand_in


def _handed_on(before: State, after: State, going: Tensor) -> State:
    """The state after a block, with the hidden states of tokens that have stopped as they were."""
    if isinstance(after, Tensor):
        return torch.where(going, after, hidden(before))
    leaves, spec = tree_flatten(after)
    return tree_unflatten([torch.where(going, leaves[0], hidden(before)), *leaves[1:]], spec)


def _greedy(logits: Float[Tensor, "n V"]) -> Int[Tensor, " n"]:
    return logits.argmax(-1)
