"""Decoding token by token: the model's own text at full depth; states handed on, exactly; rows that leave."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optdepth as od
from optdepth.batch import select
from optdepth.errors import InputError
from optdepth.inference import decoding
from optdepth.inference.decoding import Decoder, token_flops
from optdepth.networks.work import counted
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.tasks import token_cross_entropy
from optdepth.tensors import TensorSplit
from optdepth.training.depth_loss import DeepSupervision
from writers import halving, prompts, shared_writer, writer
from zoo import DECODERS, speaking

PROMPT = prompts(3)
LLAMA = "transformers llama, per token"


@pytest.fixture(params=DECODERS)
def told(request: pytest.FixtureRequest) -> tuple[nn.Module, od.StagedNetwork, od.Rule]:
    """A causal language model, exits behind its layers, and a rule that stops about half of the tokens at each."""
    model, network = shared_writer(f"transformers {request.param}, per token")
    return model, network, halving(network)


def test_at_full_depth_the_text_is_the_models_own(told) -> None:
    model, network, rule = told
    whole = FixedDepth(rule.origin, 3)
    text = Decoder(model, network, whole).generate(PROMPT, 8)
    own = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=8, do_sample=False)
    assert torch.equal(text.tokens, own[:, 6:])
    assert (text.exit == 3).all()
    assert not any("forward" in vars(module) for module in model.modules())  # no stand-in is left behind


def test_what_is_written_is_what_states_handed_on_layer_by_layer_say(told) -> None:
    """The cache, filled token by token and row by row, against all tokens at once without one."""
    model, network, rule = told
    decoder = Decoder(model, network, rule)
    text = decoder.generate(PROMPT, 10)
    assert len(text.exit.unique()) > 2
    followed = decoder.follow(torch.cat([PROMPT, text.tokens], dim=1), prompt=6)
    assert followed.loss == 0  # each next token is the one that was written
    assert np.array_equal(followed.stopped_at, text.exit.flatten().numpy())
    assert followed.costs == pytest.approx(text.cost.flatten().numpy())
    assert followed.costs == pytest.approx(rule.origin.costs.paid()[followed.stopped_at])


def test_states_are_handed_on_as_the_definition_says(told) -> None:
    """`follow` against the definition, one token after another: above its exit a token's state is that at its exit."""
    model, network, rule = told
    decoder = Decoder(model, network, rule)
    text = torch.cat([PROMPT, decoder.generate(PROMPT, 6).tokens], dim=1)[:1]
    exits: list[int] = []
    for end in range(1, text.shape[1]):
        state = network.start({"input_ids": text[:, :end]})
        stopped = torch.tensor([*exits, 4])  # the newest token goes on until the rule stops it
        for k in range(4):
            after = network.advance(state, k)
            x, y = (one if isinstance(one, Tensor) else one[0] for one in (state, after))
            new = torch.where((stopped < k)[None, :, None], x, y)
            state = new if isinstance(after, Tensor) else (new, *after[1:])
            logits = network.answer(state, k)[:, -1]
            best = logits.float().softmax(-1).topk(2).values
            if k == 3 or bool(rule.stop(k, best[:, :1] - best[:, 1:])):
                exits.append(k)
                break
    assert decoder.follow(text).stopped_at.tolist() == exits


def test_a_sequence_is_written_alone_as_among_others(told) -> None:
    model, network, rule = told
    decoder = Decoder(model, network, rule)
    text = decoder.generate(PROMPT, 8)
    for row in range(3):
        alone = decoder.generate(PROMPT[row : row + 1], 8)
        assert torch.equal(alone.tokens[0], text.tokens[row])
        assert torch.equal(alone.exit[0], text.exit[row])


def test_a_prompt_of_one_token(told) -> None:
    model, network, rule = told
    decoder = Decoder(model, network, rule)
    text = decoder.generate(PROMPT[:, :1], 6)
    followed = decoder.follow(torch.cat([PROMPT[:, :1], text.tokens], dim=1))
    assert (followed.loss, followed.stopped_at.tolist()) == (0, text.exit.flatten().tolist())


def test_padding_on_the_left_changes_nothing(told) -> None:
    model, network, rule = told
    decoder = Decoder(model, network, rule)
    mask = torch.ones_like(PROMPT)
    mask[1, :3] = 0
    text = decoder.generate(PROMPT, 8, mask=mask)
    short = decoder.generate(PROMPT[1:2, 3:], 8)
    assert torch.equal(text.tokens[1], short.tokens[0])
    assert torch.equal(text.exit[1], short.exit[0])
    assert torch.equal(text.tokens[0], decoder.generate(PROMPT[:1], 8).tokens[0])


def test_an_ended_sequence_leaves_and_the_others_go_on(told) -> None:
    model, network, rule = told
    decoder = Decoder(model, network, rule)
    free = decoder.generate(PROMPT, 8)
    end = int(free.tokens[0, 2])
    text = decoder.generate(PROMPT, 8, end=end)
    for row in range(3):
        ended = (free.tokens[row] == end).nonzero()
        written = int(ended[0]) + 1 if len(ended) else 8
        assert torch.equal(text.tokens[row, :written], free.tokens[row, :written])
        assert torch.equal(text.exit[row, :written], free.exit[row, :written])
        assert (text.tokens[row, written:] == end).all()
        assert (text.exit[row, written:] == -1).all()
        assert (text.cost[row, written:] == 0).all()
    assert int((text.exit[0] >= 0).sum()) <= 3


def test_layers_run_for_the_tokens_that_go_on_and_for_no_other(told) -> None:
    model, network, rule = told
    decoder = Decoder(model, network, rule)
    ran = [0] * 4
    inner = [module for name, module in model.named_modules() if name.endswith("mlp")]
    hooks = [
        module.register_forward_hook(
            lambda module, given, _, i=i: ran.__setitem__(i, ran[i] + given[0][..., 0].numel())
        )
        for i, module in enumerate(inner)
    ]
    text = decoder.generate(PROMPT, 8)
    for hook in hooks:
        hook.remove()
    prompt = PROMPT[:, :-1].numel()
    assert ran == [prompt + int((text.exit >= i).sum()) for i in range(4)]


def test_states_handed_on_wait_until_a_token_gets_to_their_layer(told, monkeypatch) -> None:
    """A layer that no token gets to makes no keys and values; of one that owes too many, all are made in one call."""
    model, network, rule = told
    first, some = Decoder(model, network, FixedDepth(rule.origin, 0)), Decoder(model, network, rule)
    called = [0] * 4
    norms = [module for name, module in model.named_modules() if name.endswith((".ln_1", "input_layernorm"))]
    for i, module in enumerate(norms):
        module.register_forward_hook(lambda *_, i=i: called.__setitem__(i, called[i] + 1))
    text = first.generate(PROMPT, 8)
    assert called == [1 + 8, 1, 1, 1]
    free = some.generate(PROMPT, 8)
    called[:] = [0] * 4
    monkeypatch.setattr(decoding, "WAITING", 3)
    assert torch.equal(first.generate(PROMPT, 8).tokens, text.tokens)
    assert called == [1 + 8, 1 + 2, 1 + 2, 1 + 2]
    again = some.generate(PROMPT, 8)
    assert torch.equal(again.tokens, free.tokens)
    assert torch.equal(again.exit, free.exit)


def test_merged_exits_hand_on_at_every_layer(told) -> None:
    model, network, _ = told
    few = network.keep([network.exits[k].name for k in (1, 3)])
    costs = od.Costs.of([1.0, 2.0], 0.0, [0.5, 0.0])
    rule = Threshold(Origin(costs, few.fingerprint(), 0.1), "margin", torch.tensor([0.2]))
    decoder = Decoder(model, few, rule)
    text = decoder.generate(PROMPT, 10)
    followed = decoder.follow(torch.cat([PROMPT, text.tokens], dim=1), prompt=6)
    assert followed.stopped_at.tolist() == text.exit.flatten().tolist()
    assert followed.loss == 0


def test_sampling_is_the_callers(told) -> None:
    model, network, rule = told
    decoder = Decoder(model, network, rule)

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        pick = lambda logits: torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]  # noqa: E731
        return decoder.generate(PROMPT, 8, pick=pick).tokens

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_what_a_token_costs(told) -> None:
    model, network, _ = told
    costs = token_flops(model, network, PROMPT)
    layer, heads = model.config.hidden_size, model.config.vocab_size
    assert costs.answer[-1] == 0
    # The four layers are alike, and so is what each has to do for a state handed on.
    assert np.diff(costs.reach) == pytest.approx(costs.reach[0])
    handed = -np.diff(costs.answer)
    assert handed == pytest.approx(handed[0])
    made = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("c_attn", "q_proj", "k_proj", "v_proj")
    )
    assert handed[0] == pytest.approx(2 * made / 4)  # queries, keys and values, and nothing behind them
    assert costs.look == pytest.approx(2 * layer * heads)
    # Together they are what the model itself does for one token behind its cache.
    cache = Decoder(model, network, FixedDepth(Origin(costs, network.fingerprint()), 3)).layers.cache()
    with torch.inference_mode():
        model(PROMPT[:, :-1], past_key_values=cache, use_cache=True)
        work, _ = counted(lambda: model(PROMPT[:, -1:], past_key_values=cache, use_cache=True))
    assert costs.full == pytest.approx(work / 3)


def test_a_trace_of_tokens(told) -> None:
    model, network, _ = told
    targets = PROMPT.roll(-1, dims=1)
    targets[1, 2:] = -100
    costs = od.Costs.of(np.arange(1.0, 5.0))
    batches = [({"input_ids": PROMPT[:2]}, targets[:2]), ({"input_ids": PROMPT[2:]}, targets[2:])]
    trace = od.record(network, batches, costs, each="token")
    with torch.inference_mode():
        answers = torch.stack(network({"input_ids": PROMPT}), dim=2)  # (n, t, K, V)
    counts = targets != -100
    assert len(trace) == int(counts.sum()) == 6 + 2 + 6
    wrong = answers[counts].argmax(-1) != targets[counts][:, None]
    assert np.array_equal(trace.losses, wrong.double().numpy())
    likely = answers[counts].float().softmax(-1).amax(-1)
    assert trace.columns(["confidence"])[..., 0] == pytest.approx(likely.numpy(), abs=1e-6)
    assert len(np.unique(trace.rows)) == len(trace)
    # A token that nobody before it has stopped early meets what the trace says.
    rule = Threshold(Origin.of(trace, 0.1), "margin", torch.full((3,), 0.2))
    followed = Decoder(model, network, rule).follow(PROMPT, prompt=5)
    assert followed.stopped_at[2] == rule.stopped_at(trace)[-2]


def test_from_heads_to_text(tmp_path: Path) -> None:
    """Heads alone are trained; the rule that is solved on tokens stops early where the text is plain."""
    model, network = shared_writer(LLAMA)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, start = torch.arange(13), torch.randint(0, 10, (256, 1), generator=torch.Generator().manual_seed(4))
    texts = (start + plain) % 10  # after each token comes the next number: a head needs no layer to know it
    inputs, targets = {"input_ids": texts[:, :-1].contiguous()}, texts[:, 1:].contiguous()
    rows = {"train": range(160), "fit": range(160, 208), "certify": range(208), "test": range(208, 256)}
    splits = {
        name: TensorSplit(select(inputs, torch.tensor(which)), targets[which], source=name, rows=np.array(which))
        for name, which in rows.items()
    }
    data = od.TensorData("numbers", splits)
    od.train(
        network,
        data,
        loss=od.DepthLoss(parts=((1.0, DeepSupervision(0.0)),), distillation=0.0),
        task=token_cross_entropy,
        backbone="frozen",
        optimizer="adamw",
        lr=0.03,
        epochs=6,
        batch_size=32,
        seed=0,
        out=tmp_path,
        progress=False,
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    costs = token_flops(model, network, texts[:4]).relative()
    trace = od.record(network, data.batches("fit"), costs, each="token")
    decoder = Decoder(model, network, od.placed(trace, price=0.1))
    found = decoder.follow(texts[208:])
    assert found.loss < 0.05
    assert found.cost < 0.8
    text = decoder.generate(texts[208:212, :3], 5)
    assert float((text.tokens == texts[208:212, 3:8]).double().mean()) > 0.9
    assert str(text).startswith("20 tokens in 4 sequences, exits 0 to ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda d: d.generate(PROMPT[:, :0], 3), "a prompt of shape"),
        (lambda d: d.generate(PROMPT, 0), "0 tokens to write"),
        (lambda d: d.generate(PROMPT, 3, mask=torch.tensor([[1, 1, 1, 1, 1, 0]] * 3)), "padding \\(0\\) on the left"),
        (lambda d: d.generate(PROMPT, 3, mask=torch.tensor([[1, 0, 1, 1, 1, 1]] * 3)), "padding \\(0\\) on the left"),
        (lambda d: d.follow(PROMPT, prompt=6), "prompt=6 of 6 tokens: give 1 to 5"),
    ],
)
def test_wrong_requests(wrong, message: str) -> None:
    model, network = shared_writer(LLAMA)
    with pytest.raises(InputError, match=message):
        wrong(Decoder(model, network, halving(network)))


def test_models_and_rules_that_do_not_fit() -> None:
    model, network = shared_writer(LLAMA)
    rule = halving(network)
    with pytest.raises(InputError, match="not behind the decoder layers of LlamaForCausalLM"):
        Decoder(writer(LLAMA)[0], network, rule)
    sentences = speaking("transformers bert")
    with pytest.raises(InputError, match="give a causal language model"):
        Decoder(nn.Linear(2, 2), sentences, FixedDepth(Origin(od.Costs.of(np.arange(1.0, 4.0))), 2))
    with pytest.raises(InputError, match="was solved for network"):
        Decoder(model, network, FixedDepth(Origin(rule.origin.costs, "another"), 3))
    recalling = Origin(rule.origin.costs, network.fingerprint(), recall=((0, 0), (0, 0), (0, 0), (3, 3)))
    with pytest.raises(InputError, match="answers by recall"):
        Decoder(model, network, FixedDepth(recalling, 3))
    with pytest.raises(InputError, match="2 or more"):
        token_flops(model, network, PROMPT[:, :1])


def test_tokens_need_a_target_each() -> None:
    _, network = shared_writer("transformers gpt2, per token")
    with pytest.raises(InputError, match=r"answers are \(3, 6, 60\), targets \(3,\)"):
        od.record(network, [({"input_ids": PROMPT}, PROMPT[:, 0])], od.Costs.of(np.ones(4)), each="token")
