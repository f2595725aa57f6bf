"""What cannot be run is refused in one line, with what to give instead; and what it says to give, runs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optdepth as od
from checker import unchecked
from optdepth.errors import InputError
from optdepth.inference.stream import stream
from optdepth.networks import Exit, StagedNetwork, resnet
from optdepth.stopping.rule import FixedDepth, Origin
from settings import Setting, anywhere
from zoo import speaking, tokens


def refused(call) -> str:
    """The sentence, which must be one line."""
    with unchecked(), pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    return said


def anything(network: StagedNetwork) -> FixedDepth:
    exits = len(network.exits)
    return FixedDepth(Origin(od.Costs.of(np.arange(1.0, exits + 1)), network.fingerprint()), exits - 1)


class Words(nn.Module):
    """Embeds words and their places."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(60, 8), nn.Embedding(24, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.places(torch.arange(ids.shape[1]))


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(1))


def worded() -> StagedNetwork:
    return StagedNetwork(Words(), [nn.Linear(8, 8), nn.Linear(8, 8)], [Mean(), Mean()], [Exit("a", 1), Exit("b", 2)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x.numpy(), "inputs are a ndarray: give torch.from_numpy(...) of it"),
        (lambda x: x.tolist(), "inputs[0][0][0][0] is a float: give torch.tensor(...) of it"),
        (lambda x: None, "inputs are a NoneType: give a tensor, or a tuple or dict of tensors"),
        (lambda x: 3, "inputs are a int: give torch.tensor(...) of it"),
        (lambda x: {"a": x, "b": x.numpy()}, "inputs['b'] is a ndarray: give torch.from_numpy(...) of it"),
        (lambda x: {}, "rows of the batch: no tensors; give each tensor one row a sample"),
        (lambda x: x.sum(), "inputs are a single number: give a tensor with the samples first"),
        (lambda x: (x, x[:2]), "rows of the batch: inputs[0] 4, inputs[1] 2; give each tensor one row a sample"),
        (lambda x: x.double(), "give floats as torch.float32, the type of its weights"),
        (lambda x: x.half(), "give floats as torch.float32, the type of its weights"),
        (
            lambda x: (255 * x).byte(),
            "give them as torch.float32, the type of its weights, on the scale it was trained on",
        ),
        (lambda x: x[0], "give a batch, with the samples first: inputs[None]"),
        (lambda x: x.expand(-1, 3, -1, -1), "but got 3 channels instead); give inputs as those it was trained on"),
        (lambda x: x.flatten(1), "the network cannot run inputs float32 (4, 64) ("),
    ],
)
def test_inputs_that_are_none_of_a_network_s(setting: Setting, wrong, message: str) -> None:
    engine = od.Engine(setting.network, setting.rules["additive"])
    assert message in refused(lambda: engine(wrong(setting.inputs[:4])))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ids: ids.float(), "give whole numbers, of torch.int64"),
        (lambda ids: ids + 60 * (torch.arange(3) == 1)[:, None], "in sample 1: the network knows 0 to 59; give such"),
        (lambda ids: ids - 60 * (torch.arange(3) == 2)[:, None], "in sample 2: the network knows 0 to 59; give such"),
        (
            lambda ids: torch.full_like(ids, 24).repeat(1, 8),
            "samples of length 40 ask for position 24: the network has 24; give shorter ones",
        ),
    ],
)
def test_words_that_a_network_of_one_s_own_lacks(wrong, message: str) -> None:
    network, ids = worded(), torch.randint(60, (3, 5), generator=torch.Generator().manual_seed(0))
    engine = od.Engine(network, anything(network))
    assert len(engine(ids).exit) == 3
    assert message in refused(lambda: engine(wrong(ids)))


@pytest.mark.parametrize("name", ["transformers bert", "transformers distilbert"])
def test_words_and_masks_that_a_model_of_a_library_lacks(name: str) -> None:
    network, given = speaking(name), tokens()
    engine = od.Engine(network, anything(network))
    ids, mask = given["input_ids"], given["attention_mask"]
    far = ids.clone()
    far[1, 2] = 60
    said = refused(lambda: engine({"input_ids": far, "attention_mask": mask}))
    assert said == "inputs['input_ids'] holds 60 in sample 1: the network knows 0 to 59; give such"
    for rows in (1, 2):
        said = refused(lambda rows=rows: engine({"input_ids": ids, "attention_mask": mask[:rows]}))
        assert f"rows of the batch: inputs['input_ids'] 3, inputs['attention_mask'] {rows}; give each tensor" in said
    assert "it was given a Tensor" in refused(lambda: engine(ids))
    assert "it was given a dict of input_ids" in refused(lambda: engine({"input_ids": ids}))


def test_what_an_engine_cannot_be_warmed_with(setting: Setting) -> None:
    engine = od.Engine(setting.network, setting.rules["additive"], sizes=(1, 4))
    assert "inputs are a ndarray: give torch.from_numpy(...) of it" in refused(
        lambda: engine.warm(setting.inputs[:1].numpy())
    )
    assert "give floats as torch.float32" in refused(lambda: engine.warm(setting.inputs[:1].double()))
    engine.warm(setting.inputs[:1])


class Failing(nn.Module):
    """An error that is nobody's inputs' fault."""

    def forward(self, x: Tensor) -> Tensor:
        raise LookupError("a bug of one's own")


def test_errors_that_are_not_the_inputs_fault_go_on_as_they_are(setting: Setting, monkeypatch) -> None:
    network = resnet(8, classes=4, channels=1, width=8, exits="all", seed=0)
    broken = StagedNetwork(network.stem, [network.stages[0], Failing(), Failing()], list(network.heads), network.exits)
    with pytest.raises(LookupError, match="a bug of one's own"):
        od.Engine(broken, anything(broken))(setting.inputs[:4])
    engine = od.Engine(setting.network, setting.rules["additive"])

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(engine, "_answer", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        engine(setting.inputs[:4])

    def failing(*_: object) -> None:
        raise ValueError("of the rule")

    monkeypatch.setattr(engine, "_answer", failing)
    with pytest.raises(ValueError, match=r"^of the rule$"):
        engine(setting.inputs[:4])


@pytest.mark.parametrize("size", [1, 4])
def test_finite_inputs_that_overflow_are_announced(setting: Setting, size: int) -> None:
    """Values of 3e38 are finite and their sums are not: the answer would be NaN."""
    inputs = setting.inputs[:size].clone()
    inputs[-1] = 3e38
    for rule in (setting.rules["additive"], setting.rules["fixed 0"]):
        engine = od.Engine(setting.network, rule)
        said = refused(lambda engine=engine: engine(inputs))
        assert f"sample {size - 1} of the batch, whose inputs go up to 3e+38, is answered with NaN or infinity" in said
        assert "scale inputs as those it was trained on" in said
        *others, last = stream(engine, inputs, batch=4, ordered=True)
        assert "answered with NaN or infinity" in last.error
        assert [answer.exit for answer in others] == engine(setting.inputs[:size]).exit[:-1].tolist()


def test_an_answer_may_rule_a_class_out() -> None:
    class Ruling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, torch.full_like(x[:, :1], -torch.inf)], dim=1)

    network = StagedNetwork(nn.Linear(3, 3), [nn.Identity()], [Ruling()], [Exit("a", 1)])
    answer = od.Engine(network, anything(network))(torch.randn(4, 3))
    assert (answer.logits[:, 3] == -torch.inf).all()


def test_a_rule_of_wrapped_modules_is_served_too(setting: Setting) -> None:
    """What explains an error watches operators, whatever module calls them."""
    network = StagedNetwork(
        setting.network.stem, list(setting.network.stages), list(setting.network.heads), setting.network.exits
    )
    engine = od.Engine(network, anywhere(setting.rules["additive"]))
    assert "give floats as torch.float32" in refused(lambda: engine(setting.inputs[:1].double()))
