"""Decoder: a causal language model in which every token is its own stopping problem (theory, section 7).

A token that stops after layer d hands its state on: the keys and values of the layers above are computed from it (state
propagation, Schuster et al. 2022, arXiv:2207.07061, "CALM"), so that later tokens find no hole where it stopped. Of a
layer that is only handed a state, no more runs than what makes its keys and values: they are caught where the layer
gives them to the cache, and the rest of it is called off. And it waits until a later token gets to that layer, which
then makes those of all tokens that it owes in one call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..batch import State, hidden, overflown, select
from ..errors import InputError
from ..exit_costs import Costs
from ..features import Memory
from ..networks import StagedNetwork
from ..networks.modes import served_together
from ..networks.work import counted
from ..stopping.evaluate import Evaluation
from ..stopping.rule import Rule
from ..threads import ThreadChoice, about, light
from .decoder_layers import Call, DecoderLayers, Owed, hand_on
from .ending import Decode, Ending
from .look import Look
from .prompts import checked_pick, checked_prompt, checked_tokens_to_write, vocabulary_of
from .unfit import explained

Pick = Callable[[Tensor], Tensor]
"""Logits (n, V) -> the next token of each sequence, (n,)."""

WAITING = 64
"""Tokens that may wait for a layer at most. Waiting longer would spare no time worth having, and holds their masks."""


@dataclass(frozen=True, eq=False)
class Text:
    """What a decoder wrote.

    Attributes:
        tokens: (n, t) new tokens; behind the one that ends it a sequence repeats it.
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
    Prompts and tokens run on as many threads as pay for them, or on the user's own number (`threads.py`). It writes as
    the model does in evaluation mode, whatever mode that is put into; model and network are left as they are.

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
        # Copies without weights: layers get stand-ins while text is written, of which nobody else must know.
        inner, self.network = served_together(model, network)
        self.layers, device = DecoderLayers(inner, self.network), next(network.parameters()).device
        self.vocabulary = vocabulary_of(inner)
        self.rule = rule.to(device)
        self.look = Look(self.rule)
        self._threads = ThreadChoice()
        self.unit = rule.origin.costs.unit
        self.last = rule.last
        self.paid = torch.from_numpy(rule.origin.costs.paid(rule.looks)).to(device)
        self._alone, self._writer = threading.Lock(), 0

    @torch.inference_mode()
    def generate(
        self,
        prompt: Int[Tensor, "n p"],
        tokens: int,
        *,
        mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
        end: int | Sequence[int] | None = None,
        stop: str | Sequence[str] = (),
        decode: Decode | None = None,
        pick: Pick | None = None,
    ) -> Text:
        """Writes so many tokens behind each prompt. Threads that share a decoder take turns.

        Args:
            prompt: token numbers, at least one a sequence; shorter ones are padded on the left.
            tokens: how many to write, at most.
            mask: 1 where the prompt is no padding; all of it when not given.
            end: the token that ends a sequence, or several of which each does, as a model's
                `generation_config.eos_token_id` has them; the others go on without it, and all stop when all have
                ended.
            stop: strings that end a sequence too: with the token after which one of them is in the text written.
            decode: token numbers to text, such as a tokenizer's `decode`; `stop` needs it.
            pick: logits (n, V) to tokens (n,); the most likely one when not given. Draw with a generator of your own
                to sample.

        Raises:
            InputError: a prompt or mask that is none, no tokens asked for, padding that is not on the left, tokens that
                the model does not know, more than it has positions for, answers with NaN, or what `pick` returns.
        """
        prompt, mask = checked_prompt(prompt, mask, self.vocabulary)
        checked_tokens_to_write(tokens)
        ending = Ending(end, stop, decode, self.vocabulary)
        # The prompt's tokens are known by now: only the length can be more than the model has positions for.
        longest = prompt.new_zeros(len(prompt), prompt.shape[1] + tokens)
        with self._turn(), explained(self.network, self._pass, longest):
            return self._written(prompt, tokens, mask, ending, pick)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One text at a time: the cache and what layers owe are those of one."""
        if self._writer == threading.get_ident():
            raise InputError("pick= or decode= calls the decoder that is waiting for it: give it a decoder of its own")
        with self._alone:
            self._writer = threading.get_ident()
            try:
                yield
            finally:
                self._writer = 0

    def _written(
        self, prompt: Int[Tensor, "n p"], tokens: int, mask: Tensor | None, ending: Ending, pick: Pick | None
    ) -> Text:
        n = len(prompt)
        written = prompt.new_zeros(n, tokens)
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
                newest = self._picked(token.answered(rows), pick)[:, None]
                written[rows, t:], exit[rows, t] = newest, token.exit  # behind its end a sequence repeats it
                mask = None if mask is None else torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
                going = ending.going(written[rows, : t + 1])
                if going is not None:
                    if not len(going):
                        break
                    for waiting in owed:
                        _pay(waiting)
                    rows, newest, mask = rows[going], newest[going], None if mask is None else mask[going]
                    cache.batch_select_indices(going)
        cost = torch.where(exit >= 0, self.paid[exit], 0.0)
        return Text(written, exit, cost, self.unit)

    def _picked(self, logits: Float[Tensor, "n V"], pick: Pick | None) -> Int[Tensor, " n"]:
        """The next token of each sequence, checked where the caller picks it."""
        if pick is None:
            return logits.argmax(-1)
        return checked_pick(pick(logits), len(logits), self.vocabulary)

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
        text, _ = checked_prompt(text, None, self.vocabulary, "the text")
        length = text.shape[1]
        if not 1 <= prompt < length:
            raise InputError(f"prompt={prompt} of {length} tokens: give 1 to {length - 1}")
        with self._turn(), explained(self.network, self._pass, text), self._along(text):
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
    inner, network = served_together(model, network)
    layers = DecoderLayers(inner, network)
    prompt, _ = checked_prompt(prompt, None, vocabulary_of(inner))
    if prompt.shape[1] < 2:
        raise InputError(f"a prompt of shape {tuple(prompt.shape)}: give (n, p) token numbers with p of 2 or more")
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

    for way in (run, skip):
        cache = layers.cache()
        layers.run(prompt[:, :-1], None, cache)
        with layers.standing_in(way):
            layers.run(prompt[:, -1:], None, cache)
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

    def answered(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n V"]:
        """The logits that all stopped with.

        Args:
            rows: their numbers among all sequences.

        Raises:
            InputError: NaN or infinity among them.
        """
        assert self.logits is not None
        if (bad := overflown(self.logits)) is not None:
            raise InputError(
                f"sequence {int(rows[bad])} is answered with NaN or infinity: the model overflows in "
                f"{str(self.logits.dtype).removeprefix('torch.')}; run it in bfloat16 or float32"
            )
        return self.logits

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
