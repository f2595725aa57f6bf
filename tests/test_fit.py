"""`fit`: what a user gets of a model and data in one call, and what is refused before any long step."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import optdepth as od
from checker import unchecked
from optdepth.early import Asked, EarlyExit
from optdepth.stopping.evaluate import applied

CLASSES, WIDTH = 3, 8


class Block(nn.Module):
    """A residual block that adds next to nothing, and costs as much as another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * self.inner(x)


class Classifier(nn.Module):
    """Says which of the first three numbers is the largest; what tells it is there before the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.last = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            self.last.weight.copy_(4 * torch.eye(CLASSES, WIDTH))
            self.last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier().eval()


def table(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples whose class is far from doubtful: 3 above the others."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    x = torch.randn(samples, WIDTH, generator=generator).clamp(-1, 1)
    x[torch.arange(samples), labels] += 4
    return x, labels


TRAIN, CALIBRATION, TEST = table(600, 0), table(1600, 1), table(300, 2)


def fitted(**changed: object) -> EarlyExit:
    given = {
        "train": TRAIN,
        "calibration": CALIBRATION,
        "test": TEST,
        "lose": 0.01,
        "costs": "flops",
        "seed": 0,
        "progress": False,
    }
    return od.fit(classifier(), **{**given, **changed})


@pytest.fixture(scope="module")
def early() -> EarlyExit:
    return fitted()


def test_a_promise_is_shown_and_kept_at_less_cost(early: EarlyExit) -> None:
    found = early.certificate
    assert found is not None
    assert found.gained
    assert found.samples == 800
    inputs, labels = TEST
    answer = early(inputs)
    assert torch.equal(answer.logits.argmax(1), labels)
    assert float(answer.cost.mean()) < 0.9
    assert str(early).startswith("loses at most 1 point to the full model (95% sure, 800 samples); on 300 test samples")


def test_the_last_exit_is_the_model_and_the_model_is_as_it_was(early: EarlyExit) -> None:
    inputs, _ = TEST
    with torch.inference_mode():
        assert torch.equal(early.network.full(inputs), classifier()(inputs))


def test_what_is_saved_is_what_was_there(early: EarlyExit, tmp_path: Path) -> None:
    early.save(tmp_path / "fit")
    again = od.load(tmp_path / "fit", model=classifier())
    inputs, _ = TEST
    before, after = early(inputs), again(inputs)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.exit, after.exit)
    assert str(again) == str(early)
    assert again.family.at(0.1).stopped_at(early.test).tolist() == early.family.at(0.1).stopped_at(early.test).tolist()
    with pytest.raises(od.InputError, match=r"load_state_dict|do not fit|not of the same|no submodule|has no"):
        od.load(tmp_path / "fit", model=nn.Linear(WIDTH, CLASSES))


def test_its_page_is_written_and_says_what_was_promised(early: EarlyExit, tmp_path: Path) -> None:
    page = early.report(tmp_path / "page.html").read_text()
    assert "Classifier, stopping early" in page
    assert "Loses at most 1 point to the full model (95% sure, 800 samples)" in page


def test_a_budget_is_kept_and_prices_are_had_at_run_time() -> None:
    early = fitted(lose=None, budget=0.9)
    assert early.certificate is None
    assert applied(early.rule, early.family.trace).cost <= 0.9
    inputs, _ = TEST
    assert early(inputs, price=100.0).exit.max() == 0


def test_however_samples_are_fed_they_are_the_same() -> None:
    """Whole, by a loader, and as dicts that hold the labels."""
    pairs = DataLoader(TensorDataset(*CALIBRATION), batch_size=100)
    whole, loaded = (
        fitted(calibration=given, lose=None, price=0.1, test=None).family.trace for given in (CALIBRATION, pairs)
    )
    assert whole.identity.tolist() == loaded.identity.tolist()
    train, dicts = (
        [{"x": x, "labels": labels} for x, labels in DataLoader(TensorDataset(*given), batch_size=100)]
        for given in (TRAIN, CALIBRATION)
    )
    named = fitted(train=train, calibration=dicts, lose=None, price=0.1, test=None)
    assert named.family.trace.losses.tolist() == whole.losses.tolist()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lose": None}, "say one of lose="),
        ({"budget": 0.5}, "say one of lose="),
        ({"lose": 1.5}, r"lose=1\.5: give more than 0 and less than 1"),
        ({"calibration": table(200, 5)}, r"100 samples, half of calibration=, can show a loss of .* takes about"),
        ({"train": iter([TRAIN])}, "train= can be gone through only once"),
        ({"test": []}, "test= holds no samples"),
        ({"train": [{"x": TRAIN[0]}]}, "train= has batches without labels: x"),
        ({"train": (TRAIN[0], TRAIN[1] + 1)}, r"has label 3, and the model has 3 classes, 0 to 2"),
        ({"train": (TRAIN[0], TRAIN[1].float())}, "labels are .* whole numbers"),
        ({"heads": "conv"}, "head='conv' needs maps"),
        ({"exits": 1}, "the model has one exit"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_a_line(changed: dict[str, object], said: str) -> None:
    with unchecked(), pytest.raises(od.InputError, match=said) as caught:
        fitted(**changed)
    assert "\n" not in str(caught.value)


def test_samples_that_fitted_the_rule_do_not_judge_it() -> None:
    with pytest.raises(od.InputError, match="fitted the family, so they can neither certify nor judge it"):
        fitted(test=CALIBRATION)


def test_an_aim_is_one() -> None:
    assert Asked(lose=0.01).confidence == 0.95
    with pytest.raises(od.InputError, match=r"got lose=0\.01 and price=0\.1|got price=0\.1 and lose=0\.01"):
        Asked(lose=0.01, price=0.1)
