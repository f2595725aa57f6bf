"""Any loss per sample: regression, and a loss per token; recorded, solved and run like classification."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import optdepth as od
from checker import unchecked
from optdepth.errors import InputError
from optdepth.features import Observer, observe
from optdepth.networks import Exit
from optdepth.stopping.baselines import confidence
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.tasks import token_cross_entropy, token_error
from optdepth.training import DeepSupervision, DepthLoss, StoppingCost
from optdepth.training.objective import Objective
from settings import parting

SHARED_EVENLY = DepthLoss(parts=((1.0, DeepSupervision("equal")),), distillation=0)


def squared(answer: Tensor, target: Tensor) -> Tensor:
    """Of one number a sample, in units of the target's variance."""
    return (answer.reshape(-1) - target).square()


def digit_squared(answer: Tensor, label: Tensor) -> Tensor:
    """The digit itself as a number, off by so many standard deviations."""
    return ((answer[:, 0] - (label - 4.5)) / 2.9).square()


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Number(nn.Module):
    """A regression head: (n, width) -> (n,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).squeeze(1)


class Regression:
    """Six exits trained on scikit-learn's diabetes with `Objective`, and traces of the rest."""

    def __init__(self) -> None:
        x, y = load_diabetes(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        inputs = torch.from_numpy((x / x.std(0))[order]).float()
        target = torch.from_numpy(((y - y.mean()) / y.std())[order]).float()
        parts = slice(0, 182), slice(182, 312), slice(312, 442)
        torch.manual_seed(0)
        stages, heads = [Residual(16) for _ in range(6)], [Number(16) for _ in range(6)]
        exits = [Exit(f"block{k}", k) for k in range(1, 7)]
        self.network = od.StagedNetwork(nn.Linear(10, 16), stages, heads, exits)
        objective = Objective(self.network, SHARED_EVENLY, range(1, 7), task=squared)
        optimizer = torch.optim.AdamW(objective.parameters(), 3e-3, weight_decay=0.1)
        for _ in range(60):
            loss, _ = objective(inputs[parts[0]], target[parts[0]], 0.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.network.eval()
        self.costs = od.flops(self.network, inputs[:1]).relative()
        self.fit, self.test = (
            od.record(
                self.network, [(inputs[part], target[part])], self.costs, loss=squared, answers="numbers",
                source="diabetes", rows=order[part],
            )
            for part in parts[1:]
        )  # fmt: skip
        self.inputs, self.target = inputs[parts[2]], target[parts[2]]


class Digits:
    """Six exits that tell the digit as a number, trained by `train`, and traces of the fit and test splits."""

    def __init__(self, folder: Path) -> None:
        self.data = od.load_data("digits", seed=0)
        self.network = od.resnet(14, classes=1, channels=1, width=8, seed=0)
        self.history = od.train(
            self.network, self.data, loss=SHARED_EVENLY, task=digit_squared, epochs=25, batch_size=64, lr=0.02, seed=0,
            out=folder, progress=False,
        )  # fmt: skip
        self.costs = od.flops(self.network, next(self.data.batches("fit", 1))[0]).relative()
        self.fit, self.test = (self.record(split) for split in ("fit", "test"))
        self.inputs = torch.cat([x for x, _ in self.data.batches("test")])

    def record(self, split: str) -> od.Trace:
        held, feed = self.data.splits[split], self.data.batches(split)
        where = {"source": held.source, "rows": held.rows}
        return od.record(self.network, feed, self.costs, loss=digit_squared, answers="numbers", **where)


@pytest.fixture(scope="module")
def regression() -> Regression:
    return Regression()


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Digits:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = Digits(tmp_path_factory.mktemp("numbers"))
    torch.set_num_threads(threads)
    return found


@pytest.fixture(params=["regression", "digits"])
def setting(request) -> Regression | Digits:
    return request.getfixturevalue(request.param)


def test_losses_of_a_regression_are_the_task_s(regression: Regression) -> None:
    with torch.inference_mode():
        expected = torch.stack([squared(answer, regression.target) for answer in regression.network(regression.inputs)])
    np.testing.assert_allclose(regression.test.losses, expected.T, rtol=1e-5, atol=1e-6)
    assert regression.test.features == ("change", "level", "residual")
    assert regression.test.posterior_losses is None


def test_it_learns_a_number(digits: Digits) -> None:
    losses = digits.test.losses.mean(axis=0)
    assert losses[-1] < 0.25  # always answering the mean has loss 1
    assert losses[0] > losses[-1] + 0.1
    assert digits.history.epochs[-1].accuracy == ()
    assert digits.history.settings["task"] == "digit_squared"


@pytest.mark.parametrize("price", [0.02, 0.1, 0.4])
def test_the_solved_rule_is_no_worse_than_the_best_fixed_depth(setting: Regression | Digits, price: float) -> None:
    """Beyond noise, and what the rule pays for the looks on its way, of which a fixed depth has one."""
    fit, test, alone = setting.fit, setting.test, setting.costs.reach + setting.costs.look
    best = int((fit.losses.mean(axis=0) + price * alone).argmin())
    found = od.evaluate(od.snell(fit, price=price), test)
    lead = test.losses[:, best] + price * alone[best] - found.losses - price * found.costs
    assert lead.mean() > -3 * lead.std() / np.sqrt(len(lead)) - price * setting.costs.look.sum()


def converging(samples: int, seed: int) -> od.Trace:
    """Numbers of which half are right at once, and the others off by 1 / 2^k at exit k; the change shows which."""
    random = np.random.default_rng(seed)
    target, off = random.normal(size=(samples, 1)), random.integers(0, 2, (samples, 1)) * random.choice([-1, 1])
    answers = target + off * 0.5 ** np.arange(6)
    costs = od.Costs.of(np.arange(1, 7) / 6)
    return od.Trace.from_answers(answers, (answers - target) ** 2, costs, kind="numbers", source=str(seed))


def test_the_solved_rule_beats_the_best_fixed_depth_where_samples_differ() -> None:
    """The slow half needs three exits or four, the quick one two, to see that it is quick."""
    price, (fit, test) = 0.2, (converging(1_000, seed) for seed in (0, 1))
    fixed = (test.losses + price * test.costs.paid()).mean(axis=0).min()
    assert od.evaluate(od.snell(fit, price=price), test).value(price) < fixed - 0.02


def test_the_engine_stops_where_the_trace_says(setting: Regression | Digits) -> None:
    """Answers (n,) for diabetes, (n, 1) for the digits; whatever the batch size."""
    fixed = [FixedDepth(Origin.of(setting.fit), k) for k in (0, 2)]
    for rule in (parting(setting.test, ("change", "level", "residual")), parting(setting.test, ("change",)), *fixed):
        exits, engine = rule.stopped_at(setting.test), od.Engine(setting.network, rule)
        assert rule in fixed or len(np.unique(exits)) >= 3
        with torch.inference_mode():
            whole = torch.stack(setting.network(setting.inputs))
        for size in (1, 50, len(exits)):
            answers = [engine(chunk) for chunk in setting.inputs[: 20 if size == 1 else None].split(size)]
            found = torch.cat([answer.exit for answer in answers])
            np.testing.assert_array_equal(found, exits[: len(found)])
            logits = torch.cat([answer.logits for answer in answers])
            torch.testing.assert_close(logits, whole[found, torch.arange(len(found))], rtol=1e-4, atol=1e-4)


def test_what_is_observed_of_numbers() -> None:
    answers = torch.tensor([[[3.0, 4.0], [3.0, 1.0], [3.0, 1.0]]])  # one sample, three exits, two numbers
    seen, features = observe(answers, "numbers", {"residual": np.array([[1.0, 0.5, 0.25]])})
    assert features == ("change", "level", "residual")
    torch.testing.assert_close(seen, torch.tensor([[[5.0, 3.5, 1.0], [3.0, 2.0, 0.5], [0.0, 2.0, 0.25]]]))
    single, _ = observe(answers[:, :, 0], "numbers")
    torch.testing.assert_close(single, torch.tensor([[[3.0, 3.0], [0.0, 3.0], [0.0, 3.0]]]))


def test_what_is_observed_of_tokens_is_of_the_least_sure_and_the_mean() -> None:
    logits = torch.randn(4, 3, 7, 5, generator=torch.Generator().manual_seed(0))  # samples, exits, tokens, classes
    seen, features = observe(logits, "classes")
    each = torch.stack([observe(logits[:, :, t], "classes")[0] for t in range(7)], dim=2)
    column = {name: each[..., f] for f, name in enumerate(features)}
    for f, name in enumerate(features):
        if name in ("confidence", "margin"):
            torch.testing.assert_close(seen[..., f], column[name].amin(2))
        elif name in ("entropy", "divergence"):
            torch.testing.assert_close(seen[..., f], column[name].mean(2))
        else:  # a streak lasts while no token changes its class
            kept = (logits.argmax(-1).diff(dim=1) == 0).all(2)
            assert torch.equal(seen[:, 1, f], torch.where(kept[:, 0], 2.0, 1.0))


def test_padding_changes_nothing_that_is_observed() -> None:
    logits = torch.randn(4, 3, 7, 5, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([logits, torch.zeros(4, 3, 6, 5)], dim=2)
    torch.testing.assert_close(observe(padded, "classes")[0], observe(logits, "classes")[0])


def test_losses_of_tokens_leave_padding_out() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    labels = torch.tensor([[1, 2, -100, -100], [0, 1, 2, 3]])
    alone = F.cross_entropy(logits[0, :2], labels[0, :2])
    torch.testing.assert_close(token_cross_entropy(logits, labels)[0], alone)
    wrong = (logits[1].argmax(-1) != labels[1]).float().mean()
    assert token_error(logits, labels)[1] == wrong
    token_cross_entropy(logits, labels).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0, 2:] == 0).all()
    assert torch.isfinite(logits.grad).all()


class Embed(nn.Module):
    """(n, t) token numbers, 0 for padding -> (hidden states, mask)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.table(tokens), tokens != 0


class Mix(nn.Module):
    """Each token and the mean of the sample's real ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)

    def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, mask = state
        mean = (x * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return x + torch.tanh(self.linear(torch.cat([x, mean.expand_as(x)], dim=-1))), mask


class Tag(nn.Module):
    """Logits for each token, zero for padding."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, state: tuple[Tensor, Tensor]) -> Tensor:
        x, mask = state
        return self.linear(x) * mask[..., None]


def test_a_token_task_runs_from_training_to_the_engine() -> None:
    """Tag each token by whether it is above the sample's mean: padded batches and single samples stop alike."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 12, (600, 9), generator=generator)
    lengths = torch.randint(3, 10, (600, 1), generator=generator)
    mask = torch.arange(9) < lengths
    tokens = tokens * mask
    labels = torch.where(mask, (tokens > tokens.sum(1, keepdim=True) / lengths).long(), -100)
    torch.manual_seed(0)
    exits = [Exit(f"mix{k}", k) for k in range(1, 5)]
    network = od.StagedNetwork(Embed(12, 16), [Mix(16) for _ in exits], [Tag(16, 2) for _ in exits], exits)
    objective = Objective(network, SHARED_EVENLY, range(1, 5), task=token_cross_entropy)
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
    for _ in range(60):
        loss, _ = objective(tokens[:300], labels[:300], 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    costs = od.flops(network, tokens[:1]).relative()
    test = od.record(network, [(tokens[450:], labels[450:])], costs, loss=token_error, source="tags")
    assert test.losses[:, -1].mean() < 0.2
    rule = parting(test, ("margin", "entropy"), aside=0.1)  # trained, it is sure of most at the last exits
    exits_there = rule.stopped_at(test)
    assert len(np.unique(exits_there)) > 1
    engine = od.Engine(network, rule)
    together = engine(tokens[450:])
    assert together.logits.shape == (150, 9, 2)
    alone = [engine(row[row != 0][None]) for row in tokens[450:]]
    np.testing.assert_array_equal(together.exit, exits_there)
    np.testing.assert_array_equal(torch.cat([answer.exit for answer in alone]), exits_there)


def test_traces_of_any_loss_are_saved_and_made_by_hand(regression: Regression, tmp_path: Path) -> None:
    regression.test.save(tmp_path / "trace.safetensors")
    back = od.Trace.load(tmp_path / "trace.safetensors")
    rule = od.snell(regression.fit, price=0.1)
    np.testing.assert_array_equal(rule.stopped_at(back), rule.stopped_at(regression.test))
    with torch.inference_mode():
        answers = torch.stack(regression.network(regression.inputs), dim=1)
    made = od.Trace.from_answers(answers, regression.test.losses, regression.costs, kind="numbers")
    np.testing.assert_array_equal(made.observations, regression.test.observations[:, :, :2])


def test_bad_tasks_say_what_to_do(regression: Regression) -> None:
    network, costs = regression.network, regression.costs
    batch = [(regression.inputs, regression.target)]
    with pytest.raises(InputError, match=r"the loss has shape \(\) .* one number a sample, \(130,\)"):
        od.record(network, batch, costs, loss=F.mse_loss, answers="numbers")
    with pytest.raises(InputError, match=r"answers='numbers' have no loss of their own: give loss="):
        od.record(network, batch, costs, answers="numbers")
    with pytest.raises(InputError, match=r"not logits of two classes or more.* for numbers there are change, level"):
        od.record(network, batch, costs, loss=squared)
    with unchecked(), pytest.raises(InputError, match="answers are classes or numbers, not 'ranks'"):
        od.record(network, batch, costs, loss=squared, answers="ranks")
    with pytest.raises(InputError, match="the trace has no feature 'confidence'"):
        confidence(regression.fit, price=0.1)
    target = regression.target.clone()
    target[3] = torch.nan
    with pytest.raises(InputError, match="loss of sample 3 at exit 0 is nan"):
        od.record(network, [(regression.inputs, target)], costs, loss=squared, answers="numbers")
    halting = Objective(network, DepthLoss(0.1, ((1.0, StoppingCost()),), distillation=0), range(1, 7), task=squared)
    with pytest.raises(InputError, match="not logits of two classes"):
        halting(regression.inputs, regression.target, 0.1)
    with pytest.raises(InputError, match="unknown feature 'size'"):
        Observer(("size",))
    with unchecked(), pytest.raises(InputError, match=r"answers must be \(N, K, \.\.\.\) and losses \(N, K\)"):
        od.Trace.from_answers(np.zeros((5, 6)), regression.test.losses, costs, kind="numbers")
