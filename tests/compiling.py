"""What a compiled engine promises, to run in a process of its own: the checker of types cannot be compiled."""

import itertools

import torch
from torch._dynamo.utils import counters

from optdepth.inference.engine import Answer, Engine
from settings import Setting
from zoo import deciding, speaking, tokens


def same(found: Answer, expected: Answer) -> None:
    assert torch.equal(found.exit, expected.exit)
    assert torch.equal(found.cost, expected.cost)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


def graphs() -> int:
    """Compiled since the counters were cleared; none is broken."""
    assert not counters["graph_break"]
    return counters["stats"].get("unique_graphs", 0)


def stages_are_whole_graphs_and_not_compiled_again() -> None:
    setting = Setting()
    rule = setting.rules["additive"]
    engine = Engine(setting.network, rule, sizes=(1, 8, 32), compile=True)
    engine.warm(setting.inputs[:1])
    assert graphs() > 0
    counters.clear()
    plain = Engine(setting.network, rule)
    for size in (1, 2, 5, 8, 13, 32, 70):
        same(engine(setting.inputs[200 : 200 + size]), plain(setting.inputs[200 : 200 + size]))
    assert (engine(setting.inputs[200:232], deadline=0.0).exit == 0).all()
    assert graphs() == 0


def sentences_of_any_length() -> None:
    """Twenty lengths: each part is compiled for the first and for all others, in each kind of batch."""
    network = speaking("transformers bert")
    batches = {length: tokens((length,) * 4) for length in range(2, 22)}
    rule = deciding(network, [batches[length] for length in (5, 9, 13)])
    plain, exits = Engine(network, rule), set()
    kinds = 2 * 2 * 2  # two batch sizes, of a caller or filled up in here, for one length or for any
    for warmed in (False, True):
        engine = Engine(network, rule, sizes=(1, 4), compile=True)
        for length in (5, 9) if warmed else ():
            engine.warm(batches[length])
        counters.clear()
        for batch, rows in itertools.product(batches.values(), (1, 3, 4)):
            given = {name: tensor[:rows] for name, tensor in batch.items()}
            expected = plain(given)
            same(engine(given), expected)
            exits |= set(expected.exit.tolist())
        assert graphs() <= (0 if warmed else kinds * len(plain.plan().legs))
    assert exits == {0, 1, 2}
