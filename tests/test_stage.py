"""`stage`: real models with exits are still the models they were."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from optdepth import DepthLoss, Engine, TensorData, flops, load_data, record, train
from optdepth.batch import hidden, select
from optdepth.errors import InputError
from optdepth.inference.timings import latency
from optdepth.networks import StagedNetwork, load_network, stage
from zoo import IMAGES, TOKENS, build, deciding, images, tokens


def answer(model: nn.Module, inputs: Any) -> Tensor:
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output if isinstance(output, Tensor) else output.logits


def alone(network: StagedNetwork, inputs: Any, row: int) -> list[Tensor]:
    """Answers of every exit for one sample that was selected after the stem."""
    state, answers = select(network.start(inputs), torch.tensor([row])), []
    for k in range(len(network.exits)):
        state = network.advance(state, k)
        answers.append(network.answer(state, k))
    return answers


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    output.square().sum().backward()
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", [*IMAGES, *TOKENS])
def test_every_family(name: str) -> None:
    model, example = build(name)
    twin = copy.deepcopy(model)
    network = stage(model, example=example, exits="all")
    assert equal(model.state_dict(), twin.state_dict())
    assert not any(module.training or "forward" in vars(module) for module in model.modules())
    assert len(network.exits) >= 3

    expected, answers = answer(twin, example), network(example)
    assert torch.equal(answers[-1], expected)
    assert not any(early.any() for early in answers[:-1])  # harmless while untrained
    for row in range(3):
        torch.testing.assert_close(alone(network, example, row)[-1][0], expected[row], rtol=1e-4, atol=1e-5)
    assert equal(gradients(twin, expected), gradients(model, network.full(example)))

    # In training: the same draws of dropout and stochastic depth, the same BatchNorm statistics.
    torch.manual_seed(3)
    drawn = answer(twin.train(), example)
    torch.manual_seed(3)
    assert torch.equal(network.train().full(example), drawn)
    assert equal(model.state_dict(), twin.state_dict())
    assert not torch.equal(drawn, expected)


@pytest.mark.parametrize("name", [*IMAGES, *TOKENS])
def test_bfloat16(name: str) -> None:
    model, example = build(name)
    model = model.bfloat16()
    example = tree_map(lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor, example)
    answers = stage(model, example=example)(example)
    assert torch.equal(answers[-1], answer(model, example))
    assert {given.dtype for given in answers} == {torch.bfloat16}


@pytest.mark.parametrize("name", IMAGES)
def test_channels_last(name: str) -> None:
    model, example = build(name)
    model, example = model.to(memory_format=torch.channels_last), example.to(memory_format=torch.channels_last)
    network = stage(model, example=example)
    assert torch.equal(network.full(example), answer(model, example))
    state = hidden(network.start(example))
    assert state.dim() < 4 or state.is_contiguous(memory_format=torch.channels_last)


def test_no_device_is_written_into_the_parts() -> None:
    """A staged network may be moved: what the code between blocks makes, it makes where the inputs are."""
    model, example = build("transformers bert")
    network = stage(model, example=example, exits="all")
    graphs = [module.graph for module in network.modules() if isinstance(module, fx.GraphModule)]
    assert len(graphs) == 1 + 3 + 3
    used = [argument for graph in graphs for node in graph.nodes for argument in tree_leaves((node.args, node.kwargs))]
    assert any(isinstance(argument, fx.Node) and argument.target is getattr for argument in used)
    assert not any(isinstance(argument, torch.device) for argument in used)


@pytest.mark.parametrize("head", ["own", "linear", "mlp"])
def test_padding_says_nothing(head: str) -> None:
    """A sentence alone and unpadded is answered as in a padded batch, at every exit, batches of other lengths too."""
    model, example = build("transformers bert")
    network = stage(model, example=example, exits="all", head=head, seed=0 if head == "mlp" else None)
    for parameter in network.heads.parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    batch = tokens((12, 3, 8, 5))
    together = network(batch)
    for row, length in enumerate((12, 3, 8, 5)):
        single = {key: tensor[row : row + 1, :length] for key, tensor in batch.items()}
        for k, logits in enumerate(network(single)):
            torch.testing.assert_close(logits[0], together[k][row], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone(network, batch, row)[k][0], together[k][row], rtol=1e-4, atol=1e-5)
        last = answer(model, single)
        torch.testing.assert_close(together[-1][row], last[0], rtol=1e-4, atol=1e-5)


def test_heads_alone_leave_every_bit_of_the_model(tmp_path: Path) -> None:
    model, _ = build("torchvision resnet")
    before = copy.deepcopy(model.state_dict())
    data = load_data("digits", seed=0)
    network = stage(_grey(model), example=torch.zeros(2, 1, 8, 8), exits="all")
    train(network, data, loss=DepthLoss(), epochs=1, seed=0, out=tmp_path, backbone="frozen", progress=False)
    assert equal(model.state_dict(), before)
    assert all(head.linear.weight.any() for head in network.heads[:-1] if hasattr(head, "linear"))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        *((name, "linear") for name in [*IMAGES, *TOKENS] if "per token" not in name),
        ("torchvision resnext", "branch"),
    ],
)
def test_heads_alone_of_every_family_are_trained_saved_and_loaded(name: str, head: Any, tmp_path: Path) -> None:
    """Not one parameter or buffer of the model changes, BatchNorm statistics included; nor does saving change a bit."""
    model, example = build(name)
    before = copy.deepcopy(model.state_dict())
    inputs = images(64) if name in IMAGES else tokens((9, 5, 7, 6) * 16)
    labels = torch.arange(64) % 2
    data = TensorData.of("made up", (inputs, labels), (example, labels[:3]), fit=0.2, certify=0.2, seed=0)
    network = stage(model, example=example, exits="all", head=head, seed=0 if head == "branch" else None)
    train(
        network,
        data,
        loss=DepthLoss(),
        epochs=1,
        batch_size=16,
        seed=0,
        out=tmp_path,
        backbone="frozen",
        progress=False,
    )
    assert equal(model.state_dict(), before)
    assert all(head.linear.weight.any() for head in list(network.heads)[:-1])
    network.save(tmp_path / "saved")
    other, _ = build(name)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    loaded = load_network(tmp_path / "saved", model=other, example=example)
    assert all(torch.equal(mine, its) for mine, its in zip(network.eval()(example), loaded(example), strict=True))


@pytest.mark.parametrize("name", TOKENS)
def test_a_sentence_alone_is_answered_as_in_a_padded_batch_by_every_family(name: str) -> None:
    model, example = build(name)
    network = stage(model, example=example)
    lengths = (12, 3, 8, 5)
    batch = tokens(lengths)
    together = network.full(batch)
    for row, length in enumerate(lengths):
        single = network.full({key: tensor[row : row + 1, :length] for key, tensor in batch.items()})[0]
        there = together[row, :length] if "per token" in name else together[row]
        torch.testing.assert_close(single, there, rtol=1e-4, atol=1e-5)


def _grey(model: nn.Module) -> nn.Module:
    class Grey(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.model(x.expand(-1, 3, -1, -1))
            return torch.nn.functional.pad(logits, (0, 5))

    return Grey()


def sentences() -> TensorData:
    """Sentences whose label is whether one token is in them."""
    inputs = tokens((9, 5, 7, 8) * 40)
    return TensorData.of("made up", (inputs, has_token(inputs)), (tokens(), has_token(tokens())), seed=0)


def has_token(inputs: dict[str, Tensor]) -> Tensor:
    return (inputs["input_ids"] % 5 == 0).any(1).long()


def test_dicts_from_training_to_the_engine(tmp_path: Path) -> None:
    """Train, save, load, count, time, record, solve and serve a model that takes a dict."""
    model, example = build("transformers distilbert")
    data, network = sentences(), stage(model, example=example, exits=2)
    history = train(
        network, data, loss=DepthLoss(), epochs=2, seed=0, out=tmp_path, batch_size=32, optimizer="adamw", lr=1e-3,
        progress=False,
    )  # fmt: skip
    assert history.epochs[1].losses[-1] < history.epochs[0].losses[-1]
    fresh, _ = build("transformers distilbert")
    loaded = load_network(tmp_path / "network", model=fresh, example=example)
    assert loaded.fingerprint() == network.fingerprint()
    assert loaded.exits == network.exits
    assert torch.equal(answer(fresh, example), network.full(example))

    costs = flops(network, example).relative()
    assert len(latency(network, example, repeats=1)) == 2
    for parameter in network.heads[0].parameters():  # after so little training its answers are all alike
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    trace = record(network, data.batches("train", 32), costs)
    batch, _ = next(data.batches("train", 16))
    rule = deciding(network, [batch])
    engine = Engine(network, rule)
    together = engine(batch)
    assert set(together.exit.tolist()) == {0, 1}
    assert rule.stopped_at(trace)[:16].tolist() == together.exit.tolist()
    for row in range(16):
        single = engine(data.inputs({key: tensor[row : row + 1] for key, tensor in batch.items()}))
        assert single.exit[0] == together.exit[row]
        torch.testing.assert_close(single.logits[0], together.logits[row], rtol=1e-4, atol=1e-5)


def test_load_needs_the_model(tmp_path: Path) -> None:
    model, example = build("transformers distilbert")
    stage(model, example=example).save(tmp_path)
    with pytest.raises(InputError, match="give load_network that model="):
        load_network(tmp_path)
    other, _ = build("transformers bert")
    with pytest.raises(InputError, match="exits are bert"):
        load_network(tmp_path, model=other, example=example)
