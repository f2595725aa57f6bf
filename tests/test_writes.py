"""Models that write in place between their blocks are still the models they were, on any input."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optdepth.errors import InputError
from optdepth.networks import StagedNetwork, stage
from settings import Residual
from zoo import tokens

Between = Callable[["Model", Tensor, Tensor], Tensor]


class Model(nn.Module):
    """Three blocks, and behind each of them what writes in place."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(60, 8), nn.ModuleList(Residual() for _ in range(3))
        self.last, self.between = nn.Linear(8, 3), between
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.scale = nn.Buffer(torch.ones(8))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = self.between(self, block(x).clone(), attention_mask)
        return self.last(x.mean(1))


def staged(between: Between) -> tuple[Model, StagedNetwork]:
    """The example has no padding, and a length of its own."""
    torch.manual_seed(0)
    model = Model(between).eval()
    return model, stage(model, example=tokens((5, 5, 5)), exits="all", head="linear")


def through_a_slice(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    x[:, 1:].masked_fill_(mask[:, 1:, None] == 0, 0.0)
    return x


def through_one_of_several(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    one, other = x.chunk(2, -1)
    other.mul_(2)
    one.add_(other)
    return x


def through_a_view_of_a_view(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    x.transpose(1, 2)[:, 3].add_(mask)
    x.unflatten(-1, (2, 4))[:, :, 0] *= 2
    return x


def by_item(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    x[mask == 0] = 0.0
    x[:, :, 2] = x[:, :, 1]
    return x


def by_a_module(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    model.relu(x[:, 1:])
    return x


def by_a_module_whose_input_is_read_again(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    return x + model.relu(x)


def into_out(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    torch.add(x, mask[..., None], out=x)
    return x * 2


def one_on_another(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    return x.add_(1).mul_(2)[:, :1] + x


def of_another_type(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    x += mask.double()[..., None]
    return x


def into_a_copy(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    flat = x.transpose(1, 2).reshape(-1)  # no view: the write is not seen
    flat.zero_()
    return x + flat.sum()


def into_an_input(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    real = mask.clone()
    real.masked_fill_(mask == 0, 3)
    return x * real[..., None]


WRITES = (
    *(through_a_slice, through_one_of_several, through_a_view_of_a_view, by_item, by_a_module),
    *(by_a_module_whose_input_is_read_again, into_out, one_on_another, of_another_type, into_a_copy, into_an_input),
)


@pytest.mark.parametrize("between", WRITES)
def test_the_last_exit_is_the_model_on_padding_and_lengths_that_the_example_has_not(between: Between) -> None:
    model, network = staged(between)
    assert [exit.name for exit in network.exits] == ["blocks.0", "blocks.1", "blocks.2"]
    inputs = tokens((9, 4, 6, 2))
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    with torch.no_grad():
        assert torch.equal(network.full(inputs), model(**before))
        state = network.advance(network.start(inputs), 0)
        held = [tensor.clone() for tensor in (state if isinstance(state, tuple) else (state,))]
        network.advance(state, 1)
        assert all(map(torch.equal, held, state if isinstance(state, tuple) else (state,)))


def test_gradients_and_draws_are_the_models_own() -> None:
    def between(model: Model, x: Tensor, mask: Tensor) -> Tensor:
        F.dropout(x, 0.5, model.training, inplace=True)
        x[:, 1:].mul_(mask[:, 1:, None])
        return x

    model, network = staged(between)
    inputs, found = tokens((9, 4, 6, 2)), []
    for run in (lambda: model(**inputs), lambda: network.full(inputs)):
        model.train(), network.train()
        model.zero_grad()
        torch.manual_seed(1)
        answer = run()
        answer.square().sum().backward()
        found.append([answer, *(each.grad.clone() for each in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not torch.equal(network.eval().full(inputs), found[0][0])


def a_buffer(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    model.scale.add_(1)
    return x * model.scale


def what_a_dropout_returns(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    """In evaluation mode a dropout returns what it is given, which is then written into, unseen."""
    model.drop(x).masked_fill_(mask[..., None] == 0, 0.0)
    return x


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (a_buffer, "between its blocks the model writes into scale, which belongs to all calls"),
        (what_a_dropout_returns, "Model in parts differs from itself by .* on the example padded; name other blocks"),
    ],
)
def test_writes_that_cannot_be_cut_around_are_refused(between: Between, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        staged(between)
    assert "\n" not in str(error.value)
