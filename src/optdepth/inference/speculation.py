"""Speculator: a causal language model that writes its own text faster, and no other text (theory, section 11).

It drafts with its first layers and a lens, and verifies all drafts in one pass of the layers above, which starts from
the states that the drafts were made of: no layer runs twice on a token that is kept. Where to draft and when to stop is
solved (`stopping/drafts.py`) at costs that are measured here and now, and not to draft is among the choices.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..errors import InputError
from ..files import rebuilding
from ..networks.lens import Shortlist
from ..networks.spans import Span, head_of, layers_of
from ..stopping.drafts import DraftCosts, DraftRule, drafts_pay, solve_drafts
from ..tensor_files import read_tensors, write_tensors
from ..threads import ThreadChoice, about
from .acceptance import Warp
from .draft_costs import draft_costs
from .drafter import Drafter, named
from .ending import Decode, Ending
from .prompts import checked_prompt, checked_tokens_to_write, vocabulary_of
from .rounds import Batch, Parts, Round, Sampler, draft_round, plain_round
from .unfit import explained

FILE = "speculator.safetensors"
_FORMAT, _VERSION = "optdepth.speculator", 1


@dataclass(frozen=True, eq=False)
class Plan:
    """Where to draft, and when to stop.

    Attributes:
        exit: layers that draft; None: the model writes token by token.
        rule: who goes on drafting.
        speedup: tokens per time against writing token by token, as solved; 1 where nothing is drafted.
    """

    exit: int | None
    rule: DraftRule
    speedup: float = float("nan")

    @classmethod
    def fixed(cls, exit: int, passes: int) -> Plan:
        """Always so many passes of the first layers, of which each but the last makes a draft."""
        return cls(exit, DraftRule.fixed(passes))

    def __str__(self) -> str:
        if self.exit is None:
            return "no drafts: to verify them costs more here than they save"
        return f"drafts from layer {self.exit}, up to {self.rule.most - 1} at once, {self.speedup:.2f} times as fast"


@dataclass(frozen=True, eq=False)
class Writing:
    """What was written.

    Attributes:
        tokens: (n, t) new tokens; behind the one that ends it a sequence repeats it.
        lengths: (n,) tokens of each up to its end.
        plan: that it was written by.
        rounds: passes of the upper layers.
        drafted, kept: drafts that were verified, and those that were kept, in all sequences.
    """

    tokens: Int[Tensor, "n t"]
    lengths: Int[Tensor, " n"]
    plan: Plan
    rounds: int
    drafted: int
    kept: int

    def __str__(self) -> str:
        return (
            f"{int(self.lengths.sum())} tokens in {len(self.tokens)} sequences and {self.rounds} passes of the upper "
            f"layers; {self.kept} of {self.drafted} drafts kept"
        )


class Speculator:
    """Writes what the model would write: `speculator.generate(prompt, tokens) -> Writing`.

    The most likely tokens are those of `model.generate`, but for what rounding moves: verifying several tokens in one
    pass adds up in another order than one by one. In float32 that decides between words only where two are as likely
    to a millionth; in bfloat16 where they are within a hundredth. Tokens that are drawn have exactly the model's own
    distribution, whatever the drafts are. It writes as the model does in evaluation mode.

    Args:
        model: a causal language model of transformers.
        shortlist: words that are drafted.
        drafters: lenses, see `fit_decoder`.

    Raises:
        InputError: a model of another kind, or lenses of another model.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=50, eos_token_id=None, **sizes)).eval()
        >>> spell = lambda text: {"input_ids": [ord(letter) % 50 for letter in text]}
        >>> texts = [f"The {i}th text" for i in range(8)]
        >>> fitted = od.fit_decoder(model, spell, texts, seed=0, tokens=12, exits=[1], words=50, epochs=1)
        >>> fitted.save("speculator")
        >>> od.Speculator.load("speculator", model).generate(torch.tensor([[1, 2, 3]]), 5).tokens.shape
        torch.Size([1, 5])
    """

    def __init__(self, model: nn.Module, shortlist: Shortlist, drafters: Sequence[Drafter]) -> None:
        _, layers = layers_of(model)
        head = head_of(model)
        assert head is not None
        self.model, self.shortlist, self.drafters = model, shortlist, tuple(drafters)
        self.vocabulary = vocabulary_of(model)
        self.short = shortlist.scores(head)
        self.whole = Span(model, 0, len(layers))
        weight = self.short.weight
        for each in drafters:
            width = each.lens.write.out_features
            if not 1 <= each.exit < len(layers) or width != weight.shape[1]:
                raise InputError(
                    f"a lens of width {width} behind layer {each.exit}, for a model of {len(layers)} layers and width "
                    f"{weight.shape[1]}: give the model that it was fitted to"
                )
        self._parts = {
            each.exit: Parts(
                Span(model, 0, each.exit),
                Span(model, each.exit, len(layers)),
                copy.deepcopy(each.lens).to(weight.device, weight.dtype),
            )
            for each in drafters
        }
        self._plans: dict[tuple[int, int, bool], Plan] = {}
        self._threads = ThreadChoice()
        self._alone = threading.Lock()

    def save(self, folder: str | Path) -> None:
        """Writes `speculator.safetensors` into a folder: lenses, words, and how often drafts agreed.

        The model is not among them, nor is what drafts cost on this machine.
        """
        tensors = {"words": self.shortlist.words}
        for each in self.drafters:
            tensors |= each.tensors()
        about = {"format": _FORMAT, "version": _VERSION, "model": named(self.model)}
        about |= {"coverage": self.shortlist.coverage, "exits": [each.exit for each in self.drafters]}
        write_tensors(Path(folder) / FILE, tensors, about)

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module) -> Speculator:
        """Reads what `save` wrote, for the model that it was fitted to, in any precision.

        Raises:
            InputError: it is missing or damaged, or belongs to another model.
        """
        path, again = Path(folder) / FILE, "fit the decoder again"
        held, about = read_tensors(path, format=_FORMAT, version=_VERSION, make_it=again)
        _, layers = layers_of(model)
        if about.take("model", str) != named(model):
            raise InputError(f"{path} was fitted to another model: give that one, or {again}")
        exits = about.take("exits", list[int], least=1, most=len(layers) - 1)
        coverage = about.take("coverage", float, least=0, most=1)
        words = torch.from_numpy(held.take("words", torch.int64, 1))
        with rebuilding(path, again):
            if not len(words) or int(words.min()) < 0 or int(words.max()) >= vocabulary_of(model):
                raise InputError("it drafts words that the model lacks")
            return cls(model, Shortlist(words, coverage), [Drafter.restore(held, exit) for exit in exits])

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
        warp: Warp | None = None,
        generator: torch.Generator | None = None,
        plan: Plan | None = None,
    ) -> Writing:
        """Writes so many tokens behind each prompt. Threads that share a speculator take turns.

        Args:
            prompt, tokens, mask, end, stop, decode: as of `Decoder.generate`.
            warp: tokens so far (n, t) and logits (n, V) -> logits, such as a `LogitsProcessorList` of transformers. It
                must not remember anything from call to call, for it sees drafts that are not kept.
            generator: tokens are drawn with it; without one the most likely is written.
            plan: the solved one of this machine, when not given (`plan`).

        Raises:
            InputError: a prompt or mask that is none, no tokens asked for, padding that is not on the left, or tokens
                that the model does not know.
        """
        prompt, mask = checked_prompt(prompt, mask, self.vocabulary)
        checked_tokens_to_write(tokens)
        ending = Ending(end, stop, decode, self.vocabulary)
        if plan is None:
            plan = self.plan(*prompt.shape, drawn=generator is not None)
        if plan.exit is not None and plan.exit not in self._parts:
            raise InputError(f"a plan for layer {plan.exit}: there are lenses behind {sorted(self._parts)}")
        longest = prompt.new_zeros(len(prompt), prompt.shape[1] + tokens)
        newest = prompt[:, -1:]
        with (
            self._alone,
            explained(self.whole.model, self._pass, longest),
            self._threads.running(f"a token of {about(len(prompt))} sequences", newest, self._pass),
        ):
            return self._written(prompt, tokens, mask, ending, Sampler(warp, generator), plan)

    def plan(self, n: int, length: int, *, drawn: bool = False) -> Plan:
        """The plan for n sequences of this length, solved at costs that are measured when it is first asked for.

        Args:
            drawn: tokens are drawn with their chances, in place of the most likely.
        """
        key = (n, 1 << max(length - 1, 0).bit_length(), drawn)
        if key not in self._plans:
            self._plans[key] = self.solved(self.costs(n, length), n, drawn=drawn)
        return self._plans[key]

    def costs(self, n: int, length: int) -> dict[int, DraftCosts]:
        """Milliseconds by exit, for n sequences of this length, measured now."""
        prompt = torch.zeros(n, length, dtype=torch.long, device=self.short.weight.device)
        with self._alone, self._threads.running(f"a token of {about(n)} sequences", prompt[:, -1:], self._pass):
            return draft_costs(self._parts, self.whole, self.short, prompt)

    def solved(self, costs: Mapping[int, DraftCosts], n: int = 1, *, drawn: bool = False) -> Plan:
        """Exit and rule with the most tokens per time at these costs; no drafts, where that is not clearly more.

        Args:
            costs: by exit, for n sequences together.
        """
        best = Plan(None, DraftRule.fixed(1), 1.0)
        for each in self.drafters:
            one = costs[each.exit].share(n)
            rule = solve_drafts(each.drawn if drawn else each.greedy, one)
            if drafts_pay(rule, one) and rule.rate * one.full > best.speedup:
                best = Plan(each.exit, rule, rule.rate * one.full)
        return best

    def _pass(self, tokens: Int[Tensor, "n t"]) -> Tensor:
        """All layers, without a cache: the work that threads are tried on."""
        return self.whole.answers(tokens)[0]

    def _written(
        self, prompt: Tensor, tokens: int, mask: Tensor | None, ending: Ending, sampler: Sampler, plan: Plan
    ) -> Writing:
        n = len(prompt)
        page = _Page(n, tokens, ending, prompt)
        batch = Batch(prompt, mask, tokens, plan.rule.most)
        token = sampler.token(batch, batch.begin(self.whole))
        rows = page.write(torch.arange(n, device=prompt.device), token[:, None], torch.ones_like(token))
        batch.first(token)
        if 0 < len(rows) < n:
            batch.select(rows)
        while len(rows):
            done = self._round(batch, tokens - int(page.lengths[rows].min()), sampler, plan)
            page.count(done)
            going = page.write(rows, done.tokens, done.kept + 1)
            if 0 < len(going) < len(rows):
                batch.select(going)
            rows = rows[going]
            if len(rows):
                batch.add(done.tokens[going], done.kept[going] + 1, done.states[going])
        return Writing(page.tokens, page.lengths, plan, page.rounds, page.drafted, page.kept)

    def _round(self, batch: Batch, left: int, sampler: Sampler, plan: Plan) -> Round:
        if plan.exit is None:
            return plain_round(batch, self.whole, sampler)
        return draft_round(batch, self._parts[plan.exit], self.short, plan.rule, left, sampler)


class _Page:
    """What is written of each sequence, up to its end."""

    def __init__(self, n: int, most: int, ending: Ending, like: Tensor) -> None:
        self.tokens, self.lengths = like.new_zeros(n, most), like.new_zeros(n)
        self.ending, self.most = ending, most
        self.rounds = self.drafted = self.kept = 0

    def count(self, done: Round) -> None:
        """Counts a round."""
        self.rounds, self.kept = self.rounds + 1, self.kept + int(done.kept.sum())
        self.drafted += done.drafts * len(done.tokens)

    def write(self, rows: Int[Tensor, " n"], tokens: Int[Tensor, "n m"], count: Int[Tensor, " n"]) -> Int[Tensor, " k"]:
        """Writes the first tokens of each row, so many of each, and says which go on."""
        going = []
        for i, (row, many) in enumerate(zip(rows.tolist(), count.tolist(), strict=True)):
            length = int(self.lengths[row])
            for token in tokens[i, :many].tolist():
                self.tokens[row, length:] = token
                length += 1
                going_on = self.ending.going(self.tokens[row : row + 1, :length]) is None
                if length == self.most or not going_on:
                    break
            else:
                going.append(i)
            self.lengths[row] = length
        return torch.tensor(going, dtype=torch.long, device=rows.device)
