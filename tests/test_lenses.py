"""Lenses: the logit lens at the start, what least squares finds, words by what is expected; and the one call."""

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optdepth as od
from optdepth.errors import InputError
from optdepth.inference.speculation import Speculator
from optdepth.networks.lens import Lens, Shortlist
from optdepth.training.lenses import TextStates, before, train_lenses
from zoo import build

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEXTS = [f"{word} is the {i}th word" for i, word in enumerate(WORDS)]


def spelled(text: str) -> dict[str, list[int]]:
    return {"input_ids": [ord(letter) % 60 for letter in text][:10]}


def test_a_lens_is_the_logit_lens_at_the_start() -> None:
    x, other = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Lens(8, 4)(x, other), x)


def test_a_token_is_read_with_the_final_state_before_it() -> None:
    final = torch.arange(1.0, 11.0).reshape(5, 2)
    assert before(final, torch.tensor([0, 3]))[:, 0].tolist() == [0, 1, 3, 0, 7]


def test_the_shortlist_has_the_words_that_are_expected_most() -> None:
    expected, own = torch.tensor([0.1, 3.0, 0.0, 2.0, 1.0]), torch.tensor([1, 1, 3, 4])
    shortlist = Shortlist.of(expected, 2, own)
    assert shortlist.words.tolist() == [1, 3]
    assert shortlist.coverage == 0.75
    head = nn.Linear(3, 5)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(shortlist.scores(head)(x), head(x)[:, [1, 3]])
    with pytest.raises(InputError, match="a shortlist of 6 words: the model has 1 to 5"):
        Shortlist.of(expected, 6, own)


def test_a_lens_learns_what_a_line_can_say() -> None:
    """Each of six words has a state half way up and a final one: every draft agrees, on words in an order never met."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(8, 6, bias=False)
    nn.init.orthogonal_(head.weight, gain=4.0, generator=generator)
    half = torch.randn(6, 8, generator=generator)

    def text(words: Tensor) -> TextStates:
        return TextStates(words, words > -1, head.weight.detach()[words], {1: half[words]})

    texts = [text(torch.randint(6, (30,), generator=generator)) for _ in range(8)]
    short = Shortlist(torch.arange(6), 1.0).scores(head)
    lens = train_lenses(texts, short, exits=[1], hidden=4, epochs=2, seed=0)[1]
    met = torch.randint(6, (200,), generator=generator)
    state = text(met)
    drafts = short(lens(state.early[1], before(state.final, torch.tensor([0])))).argmax(-1)
    assert torch.equal(drafts, met)


@functools.cache
def llama() -> nn.Module:
    """In double precision, in which two ways to the same number do not differ where a draft is judged."""
    model = build("transformers llama, per token")[0].double()
    model.config.use_cache = True
    return model


@functools.cache
def fitted() -> tuple[nn.Module, Speculator]:
    model = llama()
    return model, od.fit_decoder(model, spelled, TEXTS, seed=0, tokens=10, exits=[3, 1], words=40, epochs=1)


def test_the_one_call_leaves_the_model_as_it_is() -> None:
    model = llama()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    speculator = fitted()[1]
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert [each.exit for each in speculator.drafters] == [1, 3]
    assert all(weight.requires_grad for weight in model.parameters())


@torch.no_grad()
def test_what_is_recorded_is_how_drafts_agree_with_the_models_own_text() -> None:
    """Against hidden states by transformers, on the texts that trained nothing: the fourth and the eighth."""
    model, speculator = fitted()
    short = speculator.short
    for drafter in speculator.drafters:
        sure, agrees = [], []
        for text in (TEXTS[3], TEXTS[7]):
            start = torch.tensor([spelled(text)["input_ids"]])
            whole = model.generate(
                start, attention_mask=torch.ones_like(start), max_new_tokens=10, do_sample=False, pad_token_id=0
            )
            found = model.model(whole, output_hidden_states=True)
            final = found.last_hidden_state[0].bfloat16().float()
            x = model.model.norm(found.hidden_states[drafter.exit])[0].bfloat16().float()
            first = torch.tensor([0])
            estimate = drafter.lens(x, before(drafter.lens(x, before(final, first)), first))
            best = short(estimate.double()).float().softmax(-1).max(-1)
            own = slice(start.shape[1] - 1, whole.shape[1] - 1)
            sure.append(best.values[own])
            agrees.append(short.words[best.indices[own]] == whole[0, start.shape[1] :])
        assert np.allclose(drafter.greedy.confidence, torch.cat(sure).numpy(), atol=1e-4)
        assert np.array_equal(drafter.greedy.agrees, torch.cat(agrees).double().numpy())
        assert drafter.greedy.first.tolist() == ([True] + [False] * 9) * 2
        assert ((drafter.drawn.agrees > 0) & (drafter.drawn.agrees <= 1)).all()


def test_a_fitted_decoder_writes_the_models_own_text() -> None:
    model, speculator = fitted()
    prompt = torch.tensor([spelled(TEXTS[0])["input_ids"]])
    own = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False, pad_token_id=0
    )
    assert torch.equal(speculator.generate(prompt, 10).tokens, own[:, prompt.shape[1] :])


def test_what_cannot_be_fitted_is_refused() -> None:
    model = llama()
    with pytest.raises(InputError, match="7 texts: give 8 or more"):
        od.fit_decoder(model, spelled, TEXTS[:7], seed=0)
    with pytest.raises(InputError, match=r"exits=\[4\] of 4 layers: give numbers from 1 to 3"):
        od.fit_decoder(model, spelled, TEXTS, seed=0, exits=[4])
    with pytest.raises(InputError, match="holds token 99 in sequence 0: the model has 0 to 59"):
        od.fit_decoder(model, lambda text: {"input_ids": [99]}, TEXTS, seed=0)
