"""Decoder layers that return more than their states, and what of their arguments has a row a sequence."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import optdepth as od
from optdepth.inference.decoding import Decoder, token_flops
from optdepth.networks.work import counted
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.rule import FixedDepth, Origin
from zoo import TUPLES, build

PROMPT = torch.randint(0, 60, (4, 6), generator=torch.Generator().manual_seed(2))
"""As many sequences as there are heads, so that one is not taken for the other."""
COSTS = od.Costs.of(np.arange(1.0, 5.0), 0.1, [0.75, 0.5, 0.25, 0.0])


@cache
def told(name: str) -> tuple[nn.Module, od.StagedNetwork]:
    """In double precision, in which two ways to the same number do not differ where a rule decides."""
    model, _ = build(name)
    model = model.double()
    model.config.use_cache = True
    network = od.stage(model, example={"input_ids": PROMPT}, exits="all")
    generator = torch.Generator().manual_seed(0)
    for parameter in network.heads[:-1].parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model, network


@torch.inference_mode()
def halving(network: od.StagedNetwork) -> od.Rule:
    """Stops a token where its margin is above the median of those of other texts."""
    text = torch.randint(0, 60, (40, 12), generator=torch.Generator().manual_seed(3))
    thresholds = []
    for logits in network({"input_ids": text})[:-1]:
        best = logits.softmax(-1).topk(2).values
        thresholds.append(float((best[..., 0] - best[..., 1]).median()))
    return Threshold(Origin(COSTS, network.fingerprint(), 0.1), "margin", torch.tensor(thresholds))


@pytest.mark.parametrize("name", TUPLES)
def test_at_full_depth_the_text_is_the_models_own(name: str) -> None:
    model, network = told(name)
    text = Decoder(model, network, FixedDepth(Origin(COSTS, network.fingerprint()), 3)).generate(PROMPT, 8)
    own = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=8, do_sample=False)
    assert torch.equal(text.tokens, own[:, 6:])


@pytest.mark.parametrize("name", TUPLES)
def test_what_is_written_is_what_states_handed_on_say_alone_as_among_others(name: str) -> None:
    model, network = told(name)
    decoder = Decoder(model, network, halving(network))
    text = decoder.generate(PROMPT, 10)
    assert len(text.exit.unique()) > 2
    followed = decoder.follow(torch.cat([PROMPT, text.tokens], dim=1), prompt=6)
    assert followed.loss == 0
    assert np.array_equal(followed.stopped_at, text.exit.flatten().numpy())
    alone = decoder.generate(PROMPT[2:3], 10)
    assert torch.equal(alone.tokens[0], text.tokens[2])
    assert torch.equal(alone.exit[0], text.exit[2])


# MPT's own mask makes NaN of a row that is all padding, in double precision.
@pytest.mark.parametrize("name", [name for name in TUPLES if name != "mpt"])
def test_padding_on_the_left_changes_nothing_and_the_parts_cost_what_the_model_does(name: str) -> None:
    model, network = told(name)
    decoder = Decoder(model, network, halving(network))
    mask = torch.ones_like(PROMPT)
    mask[1, :3] = 0
    assert torch.equal(decoder.generate(PROMPT, 6, mask=mask).tokens[1], decoder.generate(PROMPT[1:2, 3:], 6).tokens[0])
    cache = decoder.layers.cache()
    with torch.inference_mode():
        model(PROMPT[:, :-1], past_key_values=cache, use_cache=True)
        work, _ = counted(lambda: model(PROMPT[:, -1:], past_key_values=cache, use_cache=True))
    assert token_flops(model, network, PROMPT).full == pytest.approx(work / 4)
