"""From a causal language model and some texts to the same model, writing faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .inference.drafter import Drafter
from .inference.prompts import checked_prompt
from .inference.speculation import Plan, Speculator
from .networks.lens import Lens, Shortlist
from .networks.spans import Span, layers_of
from .progress import shown_steps
from .stopping.drafts import DraftRule, DraftTrace
from .training.lenses import TextStates, before, joined, train_lenses

JUDGE = 4
"""Of so many texts one tells how often drafts agree; the others train the lenses."""
_TOGETHER = 16
"""Texts that are continued at once."""

Tokenizer = Callable[[str], Any]
"""Such as one of transformers: its answer has `input_ids`."""


def fit_decoder(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    seed: int,
    tokens: int = 96,
    exits: Sequence[int] | None = None,
    words: int = 4096,
    hidden: int | None = None,
    epochs: int = 8,
    progress: bool = False,
) -> Speculator:
    """A speculator: the model's own text, and no other, in fewer passes.

    The model continues each text; on the texts and what it wrote, lenses behind some of its layers learn to say what
    its last layer will. Every fourth text trains nothing, and tells how often their drafts agree. The model is left as
    it is. What drafting costs is measured when text is first written, where it is written.

    Args:
        model: a causal language model of transformers.
        tokenizer: text -> `input_ids`.
        texts: 8 or more, such as the model will be given: chats through the chat template, up to where it answers.
        seed: of the order of texts, and of the lenses' first weights.
        tokens: that the model writes behind each text.
        exits: layers to draft from: 2 is behind the second. A fifteenth, a sixth and a third of all when not given.
        words: that may be drafted, at most; the commonest by the model's own probabilities.
        hidden: width of a lens's residual map; that of the states when not given.
        epochs: of training.
        progress: bars on stderr.

    Raises:
        InputError: a model of another kind, too few texts, or exits that are none.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=50, eos_token_id=None, **sizes)).eval()
        >>> tokenizer = lambda text: {"input_ids": [ord(letter) % 50 for letter in text]}
        >>> texts = [f"The {i}th text" for i in range(8)]
        >>> speculator = od.fit_decoder(model, tokenizer, texts, seed=0, tokens=12, exits=[1], words=50, epochs=1)
        >>> speculator.generate(torch.tensor([[1, 2, 3]]), 5).tokens.shape
        torch.Size([1, 5])
    """
    _, layers = layers_of(model)
    count = len(layers)
    exits = sorted({max(1, round(count / part)) for part in (15, 6, 3)} if exits is None else set(exits))
    if not exits or not 1 <= exits[0] <= exits[-1] < count:
        raise InputError(f"exits={exits} of {count} layers: give numbers from 1 to {count - 1}")
    if len(texts) < 2 * JUDGE:
        raise InputError(f"{len(texts)} texts: give {2 * JUDGE} or more, of which every fourth is kept to judge")
    plain = Speculator(model, Shortlist(torch.zeros(1, dtype=torch.long), 0.0), ())
    starts = [_tokens(tokenizer, text, plain.vocabulary, plain.short.weight.device) for text in texts]
    written = _continued(plain, model, starts, tokens, progress)
    recorder = _Recorder(model, exits, plain.vocabulary)
    states = []
    for i, (whole, start) in enumerate(shown_steps(written, "recording", total=len(written), shown=progress)):
        states.append(recorder.states(whole, len(start), learn=i % JUDGE != JUDGE - 1))
    judging = states[JUDGE - 1 :: JUDGE]
    learning = [text for i, text in enumerate(states) if i % JUDGE != JUDGE - 1]
    own = torch.cat([text.tokens[1:][text.own[:-1]] for text in judging])
    shortlist = Shortlist.of(recorder.expected, min(words, plain.vocabulary), own)
    width = plain.short.weight.shape[1]
    lenses = train_lenses(
        learning,
        shortlist.scores(recorder.head),
        exits=exits,
        hidden=width if hidden is None else hidden,
        epochs=epochs,
        seed=seed,
        progress=progress,
    )
    drafters = [recorder.drafter(exit, lens, shortlist, judging) for exit, lens in lenses.items()]
    return Speculator(model, shortlist, drafters)


def _tokens(tokenizer: Tokenizer, text: str, vocabulary: int, device: torch.device) -> Tensor:
    """(t,) numbers of one text."""
    numbers = torch.as_tensor(tokenizer(text)["input_ids"], device=device)
    checked_prompt(numbers[None], None, vocabulary, f"the text {text!r:.40}")
    return numbers


def _continued(
    plain: Speculator, model: Any, starts: Sequence[Tensor], tokens: int, progress: bool
) -> list[tuple[Tensor, Tensor]]:
    """Each text with what the model writes behind it, and the text alone."""
    order = sorted(range(len(starts)), key=lambda i: len(starts[i]))
    groups = [order[i : i + _TOGETHER] for i in range(0, len(order), _TOGETHER)]
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    whole: dict[int, Tensor] = {}
    for group in shown_steps(groups, "the model writes", total=len(groups), shown=progress):
        longest = max(len(starts[i]) for i in group)
        prompt = torch.stack([nn.functional.pad(starts[i], (longest - len(starts[i]), 0)) for i in group])
        mask = torch.stack([torch.arange(longest) >= longest - len(starts[i]) for i in group]).to(prompt.device)
        done = plain.generate(prompt, tokens, mask=mask, end=end, plan=Plan(None, DraftRule.fixed(1)))
        for row, i in enumerate(group):
            whole[i] = torch.cat([starts[i], done.tokens[row, : int(done.lengths[row])]])
    return [(whole[i], starts[i]) for i in range(len(starts))]


class _Recorder:
    """Runs texts through a model once, and keeps what lenses are taught with.

    Attributes:
        expected: (V,) how often each word comes along the texts that teach, by the model's own probabilities.
        head: the model's unembedding.
    """

    def __init__(self, model: nn.Module, exits: Sequence[int], vocabulary: int) -> None:
        _, layers = layers_of(model)
        bounds = [0, *exits, len(layers)]
        self.exits, self.spans = tuple(exits), [Span(model, first, last) for first, last in pairwise(bounds)]
        self.head: Any = model.get_output_embeddings()  # type: ignore[operator]
        self.expected = torch.zeros(vocabulary, dtype=torch.float64, device=self.head.weight.device)

    @torch.inference_mode()
    def states(self, text: Tensor, start: int, *, learn: bool) -> TextStates:
        """Of one text, of which the model wrote what is behind the first `start` tokens."""
        entering, early = None, {}
        for exit, span in zip(self.exits, self.spans[:-1], strict=True):
            entering, normed = span.states(text[None], states=entering)
            early[exit] = normed[0].bfloat16()
        logits, final = self.spans[-1].answers(text[None], states=entering)
        if learn:
            self.expected += logits[0].float().softmax(-1).sum(0)
        own = torch.arange(len(text), device=text.device) >= start - 1
        own[-1] = False
        return TextStates(text, own, final[0].bfloat16(), early)

    @torch.no_grad()
    def drafter(self, exit: int, lens: Lens, shortlist: Shortlist, texts: Sequence[TextStates]) -> Drafter:
        """How often the drafts of a lens agree, on texts that taught it nothing.

        The lens reads its own estimate of the state before, as it does behind a draft.
        """
        short, columns = shortlist.scores(self.head), []
        for text in texts:
            x, final, starts = joined([text], exit)
            estimate = lens(x, before(lens(x, before(final, starts)), starts))
            dtype = short.weight.dtype
            chances = short(estimate.to(dtype)).float().softmax(-1)[:-1]
            p = self.head(final.to(dtype)).float().softmax(-1)[:-1, short.words]
            sure, best = chances.max(-1)
            agrees = short.words[best] == text.tokens[1:]
            own = text.own[:-1]
            first = torch.zeros_like(own)
            first[own.nonzero()[:1, 0]] = True
            columns.append(torch.stack([sure, agrees, torch.minimum(p, chances).sum(-1), first])[:, own].double())
        sure, agrees, overlap, first = torch.cat(columns, dim=1).cpu().numpy()
        return Drafter(exit, lens, DraftTrace(sure, agrees, first > 0), DraftTrace(sure, overlap, first > 0))
