"""Targets of every kind come out of `TensorData` as they went in, beside the inputs that they belong to."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import optdepth as od
from optdepth.errors import InputError
from optdepth.networks import Exit, StagedNetwork
from optdepth.tasks import token_cross_entropy
from optdepth.tensors import TensorData
from optdepth.training import DeepSupervision, DepthLoss
from zoo import speaking

SHARED_EVENLY = DepthLoss(parts=((1.0, DeepSupervision("equal")),), distillation=0)
MASK = (torch.arange(9) < torch.randint(2, 8, (60, 1), generator=torch.Generator().manual_seed(0))).long()
WORDS = torch.randint(5, 60, (60, 9), generator=torch.Generator().manual_seed(1)) * MASK


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def held(data: TensorData) -> tuple[Tensor, Tensor]:
    """Inputs, each sample its own number, and targets of all splits."""
    pairs = [pair for split in data.splits for pair in data.batches(split, 7)]
    return torch.cat([inputs[:, 0] for inputs, _ in pairs]).long(), torch.cat([targets for _, targets in pairs])


@pytest.mark.parametrize(
    "targets",
    [
        2.87 + torch.arange(80.0),
        (2.87 + torch.arange(80.0)).double(),
        drawn(80, 5),
        (drawn(80, 5) > 0).float(),
        drawn(80, 5) > 0,
        torch.randint(9, (80, 6)),
        (torch.arange(80) % 2).int(),
        (torch.arange(80) % 2).byte(),
        drawn(80, 3, 4, 2),
    ],
)
def test_targets_keep_their_numbers_and_floats_their_type(targets: Tensor) -> None:
    inputs = torch.arange(80.0)[:, None].expand(-1, 3)
    data = TensorData.of("mine", (inputs[:60], targets[:60]), (inputs[60:], targets[60:]), seed=0)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 48,
        "fit": 6,
        "certify": 6,
        "test": 20,
    }
    numbers, found = held(data)
    assert sorted(numbers.tolist()) == list(range(80))
    assert torch.equal(found, targets[numbers].to(found.dtype))
    whole = not targets.is_floating_point() and targets.dtype != torch.bool
    assert found.dtype == (torch.int64 if whole else targets.dtype)


def test_labels_are_carved_in_like_shares() -> None:
    labels = torch.arange(300) % 3
    data = TensorData.of("mine", (drawn(300, 2), labels), (drawn(30, 2), labels[:30]), seed=0)
    for split in ("train", "fit", "certify"):
        assert np.ptp(np.bincount(data.splits[split].targets)) == 0
    with pytest.raises(
        InputError, match=r"label -1 of sample 7: give classes from 0 on, or numbers as floats, \.float\(\)"
    ):
        TensorData.of(
            "mine",
            (drawn(20, 2), torch.arange(20) * (1 - 2 * (torch.arange(20) == 7)) // 7),
            (drawn(2, 2), labels[:2]),
            seed=0,
        )


def test_targets_of_tokens_are_cut_as_the_tokens_are() -> None:
    targets = WORDS.masked_fill(MASK == 0, -100)
    table = {"input_ids": WORDS, "attention_mask": MASK}
    data = TensorData.of("texts", (table, targets), (table, targets), fit=0.2, certify=0.2, seed=0)
    for inputs, found in data.batches("test", 4):
        longest = int(inputs["attention_mask"].sum(1).max())
        assert found.shape == inputs["input_ids"].shape == (4, longest)
        assert torch.equal(found, inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100))
    assert len({found.shape for _, found in data.batches("test", 4)}) > 1


@pytest.mark.parametrize("targets", [drawn(60, 9), (drawn(60, 9) > 0).float(), drawn(60, 4)])
def test_labels_of_samples_are_never_cut(targets: Tensor) -> None:
    """As many labels as there are columns, which are no targets of columns."""
    table = {"input_ids": WORDS, "attention_mask": MASK}
    data = TensorData.of("texts", (table, targets), (table, targets), fit=0.2, certify=0.2, seed=0)
    found = torch.cat([labels for _, labels in data.batches("test", 4)])
    assert torch.equal(found, targets)


def test_whole_numbers_that_may_be_of_padded_tokens_are_asked_about() -> None:
    table = {"input_ids": WORDS, "attention_mask": MASK}
    said = (
        r"table: targets \(60, 9\) are shaped like attention_mask and not -100 where it is 0: of tokens, give "
        r"targets\.masked_fill\(mask == 0, -100\); of labels of the sample, give targets\.float\(\)"
    )
    with pytest.raises(InputError, match=said):
        TensorData.of("texts", (table, WORDS), (table, WORDS), seed=0)
    TensorData.of("texts", (table, WORDS.float()), (table, WORDS.float()), seed=0)


def three(width: int, answers: int) -> StagedNetwork:
    exits = [Exit(f"block{k}", k) for k in (1, 2, 3)]
    stages = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in exits]
    return StagedNetwork(nn.Linear(4, width), stages, [nn.Linear(width, answers) for _ in exits], exits)


def squared(answer: Tensor, target: Tensor) -> Tensor:
    return (answer[:, 0] - target).square()


def each_label(answer: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(answer, target, reduction="none").mean(1)


@pytest.mark.parametrize("task", [squared, each_label])
def test_numbers_and_several_labels_are_trained_on_and_recorded(task, tmp_path: Path) -> None:
    inputs = drawn(120, 4)
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    targets = inputs[:, 0] / 4 if task is squared else (inputs @ weights > 0).float()
    data = TensorData.of("mine", (inputs[:90], targets[:90]), (inputs[90:], targets[90:]), fit=0.2, certify=0.2, seed=0)
    network = three(8, 3)
    costs, about = od.flops(network, inputs[:1]).relative(), {"loss": task, "answers": "numbers"}
    history = od.train(
        network,
        data,
        loss=SHARED_EVENLY,
        task=task,
        epochs=8,
        batch_size=18,
        lr=0.1,
        seed=0,
        out=tmp_path,
        progress=False,
    )
    trace = od.record(network, data.batches("test"), costs, **about)
    with torch.no_grad():
        expected = torch.stack([task(answer, targets[90:]) for answer in network(inputs[90:])], 1)
    np.testing.assert_allclose(trace.losses, expected, rtol=1e-5, atol=1e-6)
    assert (history.settings["task"], history.epochs[-1].accuracy) == (task.__name__, ())


def test_tokens_are_trained_on_and_recorded_in_batches_of_many_lengths(tmp_path: Path) -> None:
    network = speaking("transformers bert, per token")
    targets = (WORDS % 5).masked_fill(MASK == 0, -100)
    table = {"input_ids": WORDS, "attention_mask": MASK}
    data = TensorData.of("texts", (table, targets), (table, targets), fit=0.2, certify=0.2, seed=0)
    loss = {"loss": SHARED_EVENLY, "task": token_cross_entropy, "backbone": "frozen"}
    od.train(network, data, **loss, epochs=1, batch_size=9, lr=0.01, seed=0, out=tmp_path, progress=False)
    costs = od.flops(network, next(data.batches("fit", 1))[0]).relative()
    trace = od.record(network, data.batches("test", 4), costs, loss=token_cross_entropy)
    assert trace.losses.shape == (60, 3)
    one = {name: tensor[:1, : int(MASK[0].sum())] for name, tensor in table.items()}
    with torch.no_grad():
        alone = token_cross_entropy(network(one)[-1], targets[:1, : int(MASK[0].sum())])
    assert trace.losses[0, -1] == pytest.approx(float(alone), rel=1e-4)
