"""Decoder: a causal language model in which every token is its own stopping problem (theory, section 7).

A token that stops after layer d hands its state on: the keys and values of the layers above are computed from it (state
propagation, Schuster et al. 2022, arXiv:2207.07061, "CALM"), so that later tokens find no hole where it stopped. Of a
layer that is only handed a state, no more runs than what makes its keys and values: they are caught where the layer
gives them to the cache, and the rest of it is called off. And it waits until a later token gets to that layer, which
then makes those of all tokens that it owes in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..batch import State, hidden, select
from ..errors import InputError
from ..features import Memory
from ..networks import StagedNetwork
from ..networks.work import counted
from ..stopping.evaluate import Evaluation
from ..stopping.rule import Rule
from ..threads import ThreadChoice, about, light
from ..trace import Costs
from .decoder_layers import Call, DecoderLayers, Owed, hand_on
from .look import Look

Pick = Callable[[Tensor], Tensor]
"""Logits (n, V) -> the next token of each sequence, (n,)."""

WAITING = 64
"""Tokens that may wait for a layer at most. Waiting longer would spare no time worth having, and holds their masks."""


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
    Prompts and tokens run on as many threads as pay for them, or on the user's own number (`threads.py`).

    Args:
        model: a causal language model of transformers, in whose decoder layers keys and values go through a cache.
        network: `stage(model, example=...)`, with exits behind decoder layers.
        rule: solved on tokens, `record(..., each="token")`, at costs such as those of `token_flops`.

    Raises:
        InputError: a network of another model or cut elsewhere than behind its layers, or a rule that was solved for
            another network, or that answers by recall.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).eval()
        >>> prompt = torch.tensor([[1, 2, 3]])
        >>> staged = od.stage(model, example={"input_ids": prompt}, exits="all", head="token")
        >>> tokens = torch.randint(50, (8, 9), generator=torch.Generator().manual_seed(0))
        >>> batches = [({"input_ids": tokens[:, :-1]}, tokens[:, 1:])]
        >>> recorded = od.record(staged, batches, od.Costs.of([0.5, 1.0]), each="token")
        >>> od.Decoder(model, staged, od.snell(recorded, price=0.0)).generate(prompt, 5).tokens.shape
        torch.Size([1, 5])
    """

    def __init__(self, model: nn.Module, network: StagedNetwork, rule: Rule) -> None:
        rule.check(network.fingerprint(), len(network.exits))
        if rule.origin.recall:
            raise InputError("the rule answers by recall, which a decoder does not: solve one on a trace without")
        self.layers = DecoderLayers(model, network)
        self.network, device = network.eval(), next(network.parameters()).device
        self.rule = rule.to(device)
        self.look = Look(self.rule)
        self._threads = ThreadChoice()
        self.unit = rule.origin.costs.unit
        self.last = rule.last
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
            given = f"a prompt of shape {tuple(prompt.shape)} and {tokens} tokens to write"
            raise InputError(f"{given}: give (n, p) token numbers, p and tokens from 1 on")
        if mask is not None and (mask.shape != prompt.shape or not mask[:, -1].all() or (mask.diff(dim=1) < 0).any()):
            raise InputError("mask must have the prompt's shape, with padding (0) on the left and ones behind it")
        n = len(prompt)
        written = prompt.new_full((n, tokens), -1 if end is None else end)
        exit = torch.full((n, tokens), -1, device=prompt.device)
        rows = torch.arange(n, device=prompt.device)
        cache = self.layers.cache()
        owed: list[list[Owed]] = [[] for _ in self.layers.modules]
        if prompt.shape[1] > 1:
            with self._along(prompt):
                self.layers.run(prompt[:, :-1], None if mask is None else mask[:, :-1], cache)
        newest = prompt[:, -1:]
        with (
            self._threads.running(f"a token of {about(n)} sequences", newest, self._pass),
            self.layers.standing_in(lambda i, x, call: self._layer(token, owed[i], i, x, call)),
        ):
            for t in range(tokens):
                token = _Token(len(rows), prompt.device)
                self.layers.run(newest, mask, cache)
                assert token.logits is not None
                newest = (_greedy if pick is None else pick)(token.logits)[:, None]
                written[rows, t], exit[rows, t] = newest[:, 0], token.exit
                mask = None if mask is None else torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
                if end is not None and (newest == end).any():
                    going = (newest[:, 0] != end).nonzero()[:, 0]
                    if not len(going):
                        break
                    for waiting in owed:
                        _pay(waiting)
                    rows, newest, mask = rows[going], newest[going], None if mask is None else mask[going]
                    cache.batch_select_indices(going)
        cost = torch.where(exit >= 0, self.paid[exit], 0.0)
        return Text(written, exit, cost, self.unit)

    def _along(self, text: Int[Tensor, "n t"]) -> AbstractContextManager[int]:
        """Runs a block on as many threads as pay for many tokens at once; few of them are enough to tell."""
        return self._threads.running(f"{about(text.numel())} tokens", text.T, lambda some: self._pass(some.T))

    def _pass(self, tokens: Int[Tensor, "n t"]) -> Tensor:
        """All layers, without a cache: the work that threads are tried on."""
        return self.network.full(self.layers.inputs(tokens))

    def _layer(self, token: _Token, owed: list[Owed], i: int, x: Tensor, call: Call) -> Tensor:
        """One decoder layer: run for the rows that go on; to the others it owes their keys and values."""
        if token.before is None:
            token.before = x
        if len(token.going) or len(owed) == WAITING:
            _pay(owed)
        if len(token.stopped):
            owed.append(Owed(call, token.stopped))
        if not len(token.going):
            return x
        if len(token.stopped):
            ran = call.rows(token.going)
            new = x.index_copy(0, token.going, ran)
        else:
            ran = new = call.whole()
        if (k := self.layers.exit_behind[i]) is not None:
            self._exit(k, token, ran)
            token.before = new
        return new

    def _exit(self, k: int, token: _Token, there: Tensor) -> None:
        """Exit k, for the rows that got there: they stop, or are remembered."""
        if k == self.last:
            token.settle(k, self.layers.head(k, there)[:, -1], torch.ones_like(token.going, dtype=torch.bool))
        elif self.rule.looks[k]:
            assert token.before is not None
            logits = self.layers.head(k, there)[:, -1]
            stops, token.memory = self.look.batch(k, logits, token.before[token.going], there, token.memory)
            token.settle(k, logits, stops)

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
        length = text.shape[1]
        if not 1 <= prompt < length:
            raise InputError(f"prompt={prompt} of {length} tokens: give 1 to {length - 1}")
        with self._along(text):
            return self._followed(text, prompt)

    def _followed(self, text: Int[Tensor, "n t"], prompt: int) -> Evaluation:
        n, length = text.shape
        free = torch.arange(length, device=text.device).expand(n, -1) >= prompt - 1
        going = torch.ones_like(free).flatten()
        exit = torch.full_like(going, len(self.network.exits) - 1, dtype=torch.long)
        best = torch.zeros_like(exit)
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
                stops, memory = self.look.batch(k, logits, came, there, memory)
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
        return Evaluation.of(losses, costs, exits.cpu().numpy(), n_exits=len(self.network.exits))


@light
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
    layers = DecoderLayers(model, network)
    full, handed, heads = [], [], np.zeros(len(network.exits))

    def run(i: int, x: Tensor, call: Call) -> Tensor:
        work, new = counted(call.whole)
        full.append(work / len(prompt))
        if (k := layers.exit_behind[i]) is not None:
            heads[k] = counted(lambda: layers.head(k, new))[0] / len(prompt)
        return new

    def skip(i: int, x: Tensor, call: Call) -> Tensor:
        work, _ = counted(lambda: hand_on([Owed(call, torch.arange(len(x), device=x.device))]))
        handed.append(work / len(prompt))
        return x

    training = network.training
    network.eval()
    for way in (run, skip):
        cache = layers.cache()
        layers.run(prompt[:, :-1], None, cache)
        with layers.standing_in(way):
            layers.run(prompt[:, -1:], None, cache)
    network.train(training)
    behind = [i for i, k in enumerate(layers.exit_behind) if k is not None]
    return Costs.of([sum(full[: i + 1]) for i in behind], heads, [sum(handed[i + 1 :]) for i in behind], "FLOPs")


class _Token:
    """One token of every sequence on its way through the layers.

    Attributes:
        going, stopped: the rows that have not stopped, and those that have.
        exit: (n,) where each stopped.
        logits: (n, V) what each answered there; None before the first.
        before: (n, 1, d) the states at the exit before, or ahead of the first layer.
        memory: of the observer, for the rows that go on.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.going = torch.arange(n, device=device)
        self.stopped = self.going[:0]
        self.exit = torch.zeros_like(self.going)
        self.logits: Tensor | None = None
        self.before: Tensor | None = None
        self.memory: Memory = {}

    def settle(self, k: int, logits: Float[Tensor, "m V"], stops: Bool[Tensor, " m"]) -> None:
        """Of the rows that go on, some stop at exit k."""
        if self.logits is None:
            self.logits = logits.new_zeros(len(self.exit), logits.shape[1])
        leaving = self.going[stops]
        if len(leaving):
            self.exit[leaving], self.logits[leaving] = k, logits[stops]
            self.stopped, self.going = torch.cat([self.stopped, leaving]), self.going[~stops]
            self.memory = select(self.memory, ~stops) if self.memory else self.memory


def _pay(owed: list[Owed]) -> None:
    """A layer makes what it owes, if anything."""
    if owed:
        hand_on(owed)
        owed.clear()


def _handed_on(before: State, after: State, going: Tensor) -> State:
    """The state after a block, with the hidden states of tokens that have stopped as they were."""
    if isinstance(after, Tensor):
        return torch.where(going, after, hidden(before))
    leaves, spec = tree_flatten(after)
    return tree_unflatten([torch.where(going, leaves[0], hidden(before)), *leaves[1:]], spec)


def _greedy(logits: Float[Tensor, "n V"]) -> Int[Tensor, " n"]:
    return logits.argmax(-1)
