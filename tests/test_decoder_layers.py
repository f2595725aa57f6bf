"""Decoder layers that return more than their states, and what of their arguments has a row a sequence."""

import numpy as np
import pytest
import torch

from optdepth.inference.decoding import Decoder, token_flops
from optdepth.networks.work import counted
from optdepth.stopping.rule import FixedDepth, Origin
from writers import COSTS, halving, prompts, shared_writer
from zoo import TUPLES, some_slow

PROMPT = prompts(4)
"""As many sequences as there are heads, so that one is not taken for the other."""
ALWAYS = ("gptj", "mpt")
"""Of all families these are always run: one with parallel parts, one with a mask of its own kind."""
FAMILIES = [*ALWAYS, *some_slow(*(name for name in TUPLES if name not in ALWAYS))]


@pytest.mark.parametrize("name", FAMILIES)
def test_at_full_depth_the_text_is_the_models_own(name: str) -> None:
    model, network = shared_writer(name)
    text = Decoder(model, network, FixedDepth(Origin(COSTS, network.fingerprint()), 3)).generate(PROMPT, 8)
    own = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=8, do_sample=False)
    assert torch.equal(text.tokens, own[:, 6:])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_what_states_handed_on_say_alone_as_among_others(name: str) -> None:
    model, network = shared_writer(name)
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
@pytest.mark.parametrize("name", ["gptj", *some_slow(*(name for name in TUPLES if name not in ALWAYS))])
def test_padding_on_the_left_changes_nothing_and_the_parts_cost_what_the_model_does(name: str) -> None:
    model, network = shared_writer(name)
    decoder = Decoder(model, network, halving(network))
    mask = torch.ones_like(PROMPT)
    mask[1, :3] = 0
    assert torch.equal(decoder.generate(PROMPT, 6, mask=mask).tokens[1], decoder.generate(PROMPT[1:2, 3:], 6).tokens[0])
    cache = decoder.layers.cache()
    with torch.inference_mode():
        model(PROMPT[:, :-1], past_key_values=cache, use_cache=True)
        work, _ = counted(lambda: model(PROMPT[:, -1:], past_key_values=cache, use_cache=True))
    assert token_flops(model, network, PROMPT).full == pytest.approx(work / 4)
