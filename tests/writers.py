"""Language models with exits behind their layers, and rules that stop about half of the tokens at each."""

import functools

import numpy as np
import torch
from torch import Tensor, nn

import optdepth as od
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.rule import Origin
from zoo import build

COSTS = od.Costs.of(np.arange(1.0, 5.0), 0.1, [0.75, 0.5, 0.25, 0.0])


def prompts(sequences: int) -> Tensor:
    return torch.randint(0, 60, (sequences, 6), generator=torch.Generator().manual_seed(2))


def writer(name: str) -> tuple[nn.Module, od.StagedNetwork]:
    """In double precision, in which two ways to the same number do not differ where a rule decides."""
    model, _ = build(name)
    model = model.double()
    model.config.use_cache = True  # as it comes: `stage` does without
    network = od.stage(model, example={"input_ids": prompts(3)}, exits="all")
    generator = torch.Generator().manual_seed(0)
    assert model.config.use_cache
    for parameter in network.heads[:-1].parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model, network


shared_writer = functools.cache(writer)
"""For tests that change nothing of it: in random order each would stage one anew."""


@torch.inference_mode()
def halving(network: od.StagedNetwork) -> od.Rule:
    """Stops a token where its margin is above the median of those of other texts."""
    text = torch.randint(0, 60, (40, 12), generator=torch.Generator().manual_seed(3))
    thresholds = []
    for logits in network({"input_ids": text})[:-1]:
        best = logits.softmax(-1).topk(2).values
        thresholds.append(float((best[..., 0] - best[..., 1]).median()))
    return Threshold(Origin(COSTS, network.fingerprint(), 0.1), "margin", torch.tensor(thresholds))
