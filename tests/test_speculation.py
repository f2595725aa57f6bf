"""Speculation: the model's own text whatever the drafts; its own distribution; who goes on; batches of any speed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optdepth.errors import InputError
from optdepth.inference.drafter import Drafter
from optdepth.inference.speculation import Plan, Speculator
from optdepth.networks.lens import Lens, Shortlist
from optdepth.stopping.drafts import DraftRule, DraftTrace
from zoo import DECODERS, DEEP, SIZES, TUPLES, _decoder

GQA = SIZES | DEEP | {"num_key_value_heads": 2, "head_dim": 8}
MODELS: dict[str, Callable[[], nn.Module]] = {
    **DECODERS,
    "gptj": TUPLES["gptj"],
    "falcon": TUPLES["falcon"],
    "gpt_neox": lambda: _decoder("GPTNeoXForCausalLM", "GPTNeoXConfig", **SIZES | DEEP),
    "mistral, window of 5": lambda: _decoder("MistralForCausalLM", "MistralConfig", sliding_window=5, **GQA),
    "gemma": lambda: _decoder("GemmaForCausalLM", "GemmaConfig", **GQA),
    "gemma2, window of 5": lambda: _decoder("Gemma2ForCausalLM", "Gemma2Config", sliding_window=5, **GQA),
    "qwen3": lambda: _decoder("Qwen3ForCausalLM", "Qwen3Config", **GQA),
}
PROMPT = torch.randint(0, 60, (3, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
TRACE = DraftTrace(np.linspace(0, 1, 100), np.arange(100) % 2 * 1.0, np.arange(100) % 10 == 0)


def model_of(name: str) -> nn.Module:
    """With weights large enough that no two words are about as likely, in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval().double()
        for weight in model.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.25)
    model.config.use_cache = True
    return model


def speculator_of(model: nn.Module, words: int = 60) -> Speculator:
    lens = Lens(32, 16)
    nn.init.normal_(lens.write.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return Speculator(model, Shortlist(torch.arange(words), 1.0), [Drafter(2, lens, TRACE, TRACE)])


def own_text(model: nn.Module, prompt: Tensor, mask: Tensor | None, tokens: int, **how: object) -> Tensor:
    mask = torch.ones_like(prompt) if mask is None else mask
    how = {"do_sample": False, "pad_token_id": 0, **how}
    written: Tensor = model.generate(prompt, attention_mask=mask, max_new_tokens=tokens, **how)
    return written[:, prompt.shape[1] :]


NO_DRAFTS = Plan(None, DraftRule.fixed(1))


@pytest.mark.parametrize("name", MODELS)
def test_the_text_is_the_models_own(name: str) -> None:
    model = model_of(name)
    speculator = speculator_of(model)
    padded = own_text(model, PROMPT, MASK, 12)
    for plan in (NO_DRAFTS, Plan.fixed(2, 1), Plan.fixed(2, 4)):
        written = speculator.generate(PROMPT, 12, mask=MASK, plan=plan)
        assert torch.equal(written.tokens, padded)
        assert written.lengths.tolist() == [12] * 3
    for rows, plan in ((1, NO_DRAFTS), (1, Plan.fixed(2, 8)), (2, Plan.fixed(2, 3))):
        written = speculator.generate(PROMPT[:rows], 12, plan=plan)
        assert torch.equal(written.tokens, own_text(model, PROMPT[:rows], None, 12))
    assert not any("forward" in vars(module) for module in model.modules())  # no stand-in is left behind


def test_the_unembedding_is_the_models_own() -> None:
    model = model_of("llama")
    speculator = speculator_of(model)
    own = {weight.data_ptr() for weight in model.parameters()}
    spans = [speculator.whole, *(part for each in speculator._parts.values() for part in (each.lower, each.upper))]
    for span in spans:
        assert {weight.data_ptr() for weight in span.model.parameters()} <= own


class Oracle(Lens):
    """Estimates so that the drafts are those it is told."""

    def __init__(self, head: nn.Module, text: list[int]) -> None:
        super().__init__(32, 1)
        self.text, self.head = text, head

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        weight = self.head.weight.to(x.dtype)
        return 1e3 * weight[self.text.pop(0)].expand_as(x)


def test_drafts_that_agree_are_kept_and_others_are_not() -> None:
    model = model_of("llama")
    with torch.no_grad():  # rows of one length: each is most like itself
        model.lm_head.weight.copy_(nn.functional.normalize(model.lm_head.weight, dim=1) * 3)
    own = own_text(model, PROMPT[:1], None, 13)[0].tolist()
    speculator = speculator_of(model)

    def told(text: list[int], passes: int, tokens: int) -> tuple[int, int, int]:
        speculator._parts[2] = type(speculator._parts[2])(
            speculator._parts[2].lower, speculator._parts[2].upper, Oracle(model.lm_head, text)
        )
        written = speculator.generate(PROMPT[:1], tokens, plan=Plan.fixed(2, passes))
        assert written.tokens[0].tolist() == own[:tokens]
        return written.rounds, written.drafted, written.kept

    # The first token comes of the prompt; a round of 4 passes then gives its 3 drafts and one more.
    right = [own[i] for i in (1, 2, 3, 5, 6, 7, 9, 10, 11)]
    assert told(right, 4, 13) == (3, 9, 9)
    wrong = [(token + 1) % 60 for token in own]
    # Never more passes than tokens are left: one draft of two tokens, and none of the last.
    assert told([wrong[1]], 4, 3) == (2, 1, 0)
    # Behind a draft that is lost the next is lost too, though it is what the model writes there.
    assert told([own[1], wrong[2], own[3], own[3]], 4, 5) == (2, 4, 2)


@pytest.mark.parametrize("plan", [NO_DRAFTS, Plan.fixed(2, 3)])
def test_sequences_end_by_any_of_several_tokens(plan: Plan) -> None:
    model = model_of("llama")
    speculator = speculator_of(model)
    free = own_text(model, PROMPT, MASK, 14)
    ends = [int(free[0, 4]), int(free[1, 9])]
    written = speculator.generate(PROMPT, 14, mask=MASK, end=ends, plan=plan)
    for row in range(3):
        tokens = free[row].tolist()
        length = next((i + 1 for i, token in enumerate(tokens) if token in ends), 14)
        assert written.lengths[row] == length
        assert written.tokens[row].tolist() == tokens[:length] + [tokens[length - 1]] * (14 - length)


def test_sequences_end_by_strings_in_their_text() -> None:
    model = model_of("qwen2")
    free = own_text(model, PROMPT[:1], None, 12)[0].tolist()

    def decode(tokens: list[int]) -> str:
        return "".join(chr(40 + token) for token in tokens)

    stop = decode(free[3:5])
    written = speculator_of(model).generate(PROMPT[:1], 12, stop=stop, decode=decode, plan=Plan.fixed(2, 6))
    assert decode(written.tokens[0, : int(written.lengths[0])].tolist()) == decode(free)[: decode(free).index(stop) + 2]


@pytest.mark.parametrize("plan", [NO_DRAFTS, Plan.fixed(2, 4)])
def test_logits_processors_see_what_generate_shows_them(plan: Plan) -> None:
    from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    model = model_of("llama")
    own = own_text(model, PROMPT, None, 12, repetition_penalty=1.3, no_repeat_ngram_size=2)
    warp = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3), NoRepeatNGramLogitsProcessor(2)])
    assert torch.equal(speculator_of(model, 40).generate(PROMPT, 12, warp=warp, plan=plan).tokens, own)


def test_what_is_drawn_has_the_models_own_distribution(repeated: None) -> None:
    """Three tokens behind one prompt, 20,000 times, against chances worked out word by word: a chi-square test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = _decoder("LlamaForCausalLM", "LlamaConfig", **SIZES | {"num_hidden_layers": 2})
    model = made.eval().double()
    model.resize_token_embeddings(5, mean_resizing=False)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.12, generator=torch.Generator().manual_seed(3))
    lens = Lens(32, 8)
    nn.init.normal_(lens.write.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    # It drafts four of five words, and goes on where it is sure: the look decides, and nothing drawn.
    rule = DraftRule(
        np.array([0.4]), np.array([0.3, 0.9]), np.zeros((3, 3)), np.array([[0.5] * 2] * 2 + [[2.0] * 2]), 1.0
    )
    speculator = Speculator(model, Shortlist(torch.arange(4), 1.0), [Drafter(1, lens, TRACE, TRACE)])
    prompt = torch.tensor([[1, 3, 2]])
    chances = torch.ones(1, dtype=torch.float64)
    texts = prompt
    for _ in range(3):
        p = model(texts).logits[:, -1].softmax(-1)
        chances = (chances[:, None] * p).flatten()
        texts = torch.cat([texts.repeat_interleave(5, 0), torch.arange(5).repeat(len(texts))[:, None]], 1)
    draws, generator = 20_000, torch.Generator().manual_seed(0)
    seen = torch.zeros(125, dtype=torch.float64)
    kept = drafted = 0
    for _ in range(draws // 400):
        written = speculator.generate(prompt.repeat(400, 1), 3, generator=generator, plan=Plan(1, rule))
        kept, drafted = kept + written.kept, drafted + written.drafted
        seen += torch.bincount((written.tokens * torch.tensor([25, 5, 1])).sum(1), minlength=125)
    assert 0 < kept < drafted
    expected = draws * chances.detach()
    statistic = float(((seen - expected) ** 2 / expected).sum())
    assert statistic < 181  # 124 degrees of freedom: one in two thousand is above


def test_a_plan_for_costs_at_which_drafts_cannot_pay_drafts_nothing() -> None:
    from optdepth.stopping.drafts import DraftCosts

    speculator = speculator_of(model_of("llama"))
    dear = DraftCosts(1.0, 0.5, 0.1, np.arange(1.0, 9.0))
    cheap = DraftCosts(1.0, 0.01, 0.001, np.full(8, 1.0))
    assert speculator.solved({2: dear}).exit is None
    plan = speculator.solved({2: cheap})
    assert plan.exit == 2
    assert plan.speedup > 1.2
    assert torch.equal(speculator.generate(PROMPT, 12, plan=plan).tokens, own_text(speculator.model, PROMPT, None, 12))


def test_costs_are_measured_where_text_is_written() -> None:
    speculator = speculator_of(model_of("llama"))
    costs = speculator.costs(2, 5)[2]
    assert min(costs.full, costs.draft, costs.look) > 0
    assert (np.diff(costs.verify) >= 0).all()
    assert speculator.plan(2, 5) is speculator.plan(2, 5)


def test_what_cannot_be_written_is_refused() -> None:
    speculator = speculator_of(model_of("llama"))
    with pytest.raises(InputError, match="0 tokens to write"):
        speculator.generate(PROMPT, 0)
    with pytest.raises(InputError, match="a plan for layer 3: there are lenses behind"):
        speculator.generate(PROMPT, 3, plan=Plan.fixed(3, 2))
    with pytest.raises(InputError, match="no causal language model"):
        Speculator(nn.Linear(2, 2), speculator.shortlist, ())
    with pytest.raises(InputError, match="a lens of width 8 behind layer 2, for a model of 4 layers and width 32"):
        Speculator(speculator.model, speculator.shortlist, [Drafter(2, Lens(8, 4), TRACE, TRACE)])


def test_what_is_saved_writes_the_same(tmp_path: Path) -> None:
    model = model_of("llama")
    speculator = speculator_of(model.float(), 40)
    speculator.save(tmp_path)
    again = Speculator.load(tmp_path, model.bfloat16())
    assert again.shortlist.words.tolist() == list(range(40))
    assert again.shortlist.coverage == 1.0
    for mine, found in zip(speculator.drafters, again.drafters, strict=True):
        assert mine.exit == found.exit
        for name, weight in mine.lens.state_dict().items():
            assert torch.equal(weight, found.lens.state_dict()[name])
        for one, other in ((mine.greedy, found.greedy), (mine.drawn, found.drawn)):
            assert np.array_equal(one.confidence, other.confidence)
            assert np.array_equal(one.agrees, other.agrees)
            assert np.array_equal(one.first, other.first)
    with pytest.raises(InputError, match="was fitted to another model"):
        Speculator.load(tmp_path, model_of("qwen2"))
    with pytest.raises(InputError, match="no such file"):
        Speculator.load(tmp_path / "nowhere", model)
