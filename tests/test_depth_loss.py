"""L_depth: each part's value and weights, and who receives which gradient."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checker import unchecked
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.features import residual_size
from optdepth.networks import resnet
from optdepth.stopping.snell import snell
from optdepth.trace import Trace
from optdepth.training.depth_loss import (
    PARTS,
    DeepSupervision,
    DepthLoss,
    DiminishingReturns,
    PriceSchedule,
    Seen,
    SoftEnvelope,
    StoppingCost,
    depth_loss,
)
from optdepth.training.objective import HaltingHead, Objective, balance

COSTS = torch.tensor([0.25, 0.5, 1.0])


def losses(n: int = 6, exits: int = 3, seed: int = 0) -> Tensor:
    return 2 * torch.rand(n, exits, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(part, seen: Seen) -> Tensor:
    """∂J/∂L."""
    seen.losses.requires_grad_()
    return torch.autograd.grad(part(seen).sum(), seen.losses)[0]


@pytest.mark.parametrize(
    ("early", "price", "expected"),
    [
        (0.0, 0.0, [0, 0, 1]),
        (0.1, 0.0, [0.1, 0.1, 0.8]),
        ("equal", 0.0, [1 / 3] * 3),
        ("priced", 0.0, [0, 0, 1]),
        ("priced", 0.3, [0, 0, 1]),
        ("priced", 0.75, [1 / 6, 1 / 6, 2 / 3]),
        ("priced", 7.0, [1 / 3] * 3),
    ],
)
def test_deep_supervision_weights(early, price: float, expected: list[float]) -> None:
    got = weights(DeepSupervision(early), Seen(losses(), COSTS, price))
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float64).expand(6, 3))


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_stopping_cost_of_a_sure_stop_is_that_exits_total(stop: int) -> None:
    halting = torch.zeros(6, 3)
    halting[:, stop:] = 1
    seen = Seen(losses(), COSTS, 0.3, halting)
    assert torch.allclose(StoppingCost()(seen), seen.losses[:, stop] + 0.3 * COSTS[stop])


def test_stopping_cost_weights_are_stopping_probabilities() -> None:
    halting = torch.tensor([[0.2, 0.5, 1.0]]).expand(6, 3)
    got = weights(StoppingCost(), Seen(losses(), COSTS, 0.3, halting))
    assert torch.allclose(got, torch.tensor([0.2, 0.4, 0.4], dtype=torch.float64).expand(6, 3))


def test_one_exit_is_plain_training() -> None:
    one = Seen(losses(exits=1), torch.ones(1), 0.0, torch.ones(6, 1))
    for part in (DeepSupervision("equal"), DeepSupervision("priced"), StoppingCost(), SoftEnvelope(0.3)):
        assert torch.allclose(part(one), one.losses[:, 0])


def test_soft_envelope_limits() -> None:
    seen = Seen(losses(), COSTS, 0.3)
    assert torch.allclose(SoftEnvelope(1e-4)(seen), seen.totals.amin(1), atol=1e-3)
    mixture = seen.totals @ torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert torch.allclose(SoftEnvelope(1e4)(seen), mixture, atol=1e-3)
    assert torch.isfinite(SoftEnvelope(1e-6)(Seen(1e3 * losses(), COSTS, 0.3))).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 5), st.floats(0, 2), st.floats(0.01, 2), st.integers(0, 1000))
def test_values_rise_with_the_price_and_weights_are_a_distribution(temperature, price, more, seed) -> None:
    halting = torch.tensor([[0.3, 0.6, 1.0]], dtype=torch.float64).expand(6, 3)
    for part in (SoftEnvelope(temperature), StoppingCost()):
        cheap, dear = (Seen(losses(seed=seed), COSTS, value, halting) for value in (price, price + more))
        assert (part(dear) > part(cheap)).all()
        got = weights(part, cheap)
        assert (got >= 0).all()
        assert torch.allclose(got.sum(1), torch.ones(6, dtype=torch.float64))


def test_soft_envelope_prefers_early_exits_at_a_high_price() -> None:
    cheap, dear = (weights(SoftEnvelope(0.5), Seen(losses(), COSTS, price))[:, 0] for price in (0.0, 4.0))
    assert (dear > cheap).all()


def test_diminishing_returns_skips_stages_that_change_shape() -> None:
    sizes = [torch.tensor([0.5, 0.1]), torch.tensor([0.6, 0.05]), None, torch.tensor([9.0, 9.0])]
    seen = Seen(losses(2, 4), torch.ones(4), 0.0, residuals=tuple(sizes))
    assert torch.allclose(DiminishingReturns(0.8)(seen), torch.tensor([0.6 - 0.4, 0.0], dtype=torch.float64))


def test_price_schedule() -> None:
    loss = DepthLoss(0.4, ((1.0, SoftEnvelope()),), PriceSchedule(hold=0.2, ramp=0.5))
    prices = [loss.price_at(progress) for progress in (0.0, 0.2, 0.45, 0.7, 1.0)]
    assert prices == pytest.approx([0, 0, 0.2, 0.4, 0.4])
    assert PriceSchedule(hold=0.3, ramp=0.0).factor(0.29) == 0
    assert PriceSchedule(hold=0.3, ramp=0.0).factor(0.3) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: DepthLoss(-0.1),
        lambda: DepthLoss(math.nan),
        lambda: DepthLoss(0.1, ()),
        lambda: DepthLoss(0.0, ((0.0, StoppingCost()),)),
        lambda: DepthLoss(0.1, ((1.0, DeepSupervision(0.02)),)),
        lambda: PriceSchedule(0.8, 0.3),
        lambda: PriceSchedule(-0.1, 0.3),
        lambda: SoftEnvelope(0.0),
        lambda: DiminishingReturns(0.0),
        lambda: DeepSupervision(-0.1),
        lambda: DeepSupervision("some"),
        lambda: StoppingCost("nobody"),
        lambda: DepthLoss(0.1, ((1.0, StoppingCost("head")), (1.0, StoppingCost("rule")))),
        lambda: DeepSupervision(0.6)(Seen(losses(), COSTS, 0.0)),
        lambda: DepthLoss(distillation=1.0),
        lambda: DepthLoss(distillation=-0.1),
        lambda: depth_loss("nothing", 0.0),
        lambda: depth_loss("light-supervision", 0.1),
    ],
)
def test_bad_input(make) -> None:
    with unchecked(), pytest.raises(InputError):
        make()


@pytest.mark.parametrize("name", [name + end for name in PARTS for end in ("", "+diminishing-returns")])
def test_by_name(name: str) -> None:
    loss = depth_loss(name, 0.0)
    assert len(loss.parts) == (2 if "+" in name else 1)
    assert loss == depth_loss(name, 0.0)
    taught = depth_loss(f"{name}+distillation", 0.0)
    assert taught.parts == loss.parts
    assert (loss.distillation, taught.distillation) == (0.0, 0.7)


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def objective(loss: DepthLoss, *, exits="all", frozen: bool = False) -> Objective:
    network = resnet(14, classes=3, channels=1, width=4, exits=exits, seed=0)
    return Objective(network, loss, [exit.depth for exit in network.exits], frozen=frozen).train()


def gradients(model: Objective, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}


def cross_entropies(model: Objective) -> Tensor:
    answers = model.network(IMAGES)
    return torch.stack([F.cross_entropy(answer, LABELS, reduction="none") for answer in answers], 1)


def taught(model: Objective, share: float) -> Tensor:
    """Losses of which early exits take a share from the last exit's probabilities."""
    *early, last = model.network(IMAGES)
    soft = last.detach().softmax(1)
    mixed = [
        (1 - share) * F.cross_entropy(answer, LABELS, reduction="none")
        + share * F.cross_entropy(answer, soft, reduction="none")
        for answer in early
    ]
    return torch.stack([*mixed, F.cross_entropy(last, LABELS, reduction="none")], 1)


def is_trunk(name: str) -> bool:
    return name.startswith(("stem", "stages"))


@pytest.mark.parametrize(
    "loss",
    [
        depth_loss("deep-supervision", 0.0),
        depth_loss("light-supervision", 0.0),
        DepthLoss(0.5, ((1.0, SoftEnvelope(0.5)),), distillation=0),
        DepthLoss(0.5, ((1.0, StoppingCost()),), distillation=0),
        DepthLoss(
            0.5, ((0.5, StoppingCost()), (0.5, DeepSupervision()), (0.1, DiminishingReturns(0.5))), distillation=0
        ),
    ],
)
def test_trunk_gets_weighted_gradients_and_heads_full_ones(loss: DepthLoss) -> None:
    """The trunk's gradient equals autograd through J itself; a head's equals that of its own cross-entropy."""
    model = objective(loss)
    got = gradients(model, model(IMAGES, LABELS, 0.5)[0])
    state, residuals, answers = model.network.start(IMAGES), [], []
    for k in range(len(model.network.exits)):
        before, state = state, model.network.advance(state, k)
        residuals.append(residual_size(before, state) if before.shape == state.shape else None)
        answers.append(model.network.answer(state, k))
    every = torch.stack([F.cross_entropy(answer, LABELS, reduction="none") for answer in answers], 1)
    halting = model.halting([a.detach() for a in answers]).detach() if model.halting else None
    asked = loss(Seen(every, model.costs, 0.5, halting, tuple(residuals))).mean()
    trunk = gradients(model, asked)
    heads = gradients(model, cross_entropies(model).mean(0).sum())
    for name, gradient in got.items():
        expected = trunk[name] if is_trunk(name) else heads[name]
        assert torch.allclose(gradient, expected, atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize(
    "parts",
    [((1.0, DeepSupervision()),), ((0.7, StoppingCost()), (0.5, DeepSupervision(0.1))), ((1.0, SoftEnvelope(0.5)),)],
)
def test_balanced_raises_every_stage_to_the_weight_of_the_first(parts) -> None:
    """Stage j gets the gradient of J over the share of the weights that the exits from j on hold; heads as before."""
    by_balance = {}
    for balanced in (False, True):
        model = objective(DepthLoss(0.5 if len(parts) > 1 else 0.0, parts, distillation=0, balanced=balanced))
        by_balance[balanced] = gradients(model, model(IMAGES, LABELS, 0.5)[0])
    every = cross_entropies(model).detach()
    halting = model.halting([a.detach() for a in model.network(IMAGES)]).detach() if model.halting else None
    held = weights(model.loss, Seen(every, model.costs, 0.5, halting))
    totals = held.mean(0).flip(0).cumsum(0).flip(0)
    for name, gradient in by_balance[True].items():
        stage = int(name.split(".")[1]) if name.startswith("stages") else 0
        factor = totals[0] / totals[stage] if is_trunk(name) else 1.0
        assert torch.allclose(gradient, factor * by_balance[False][name], atol=1e-6, rtol=1e-4), name


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(0, 1000), st.integers(0, 3))
def test_balance_gives_each_stage_the_same_total(exits: int, seed: int, silent: int) -> None:
    """Followed backwards as autograd does; stages behind the last exit with any weight get nothing."""
    held = torch.rand(5, exits, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    heard = max(exits - silent, 1)
    held[:, heard:] = 0
    raised, handed = balance(held)
    coming = torch.zeros((), dtype=torch.float64)
    for k in reversed(range(exits)):
        coming = coming + (held[:, k] * raised[k]).mean()
        assert coming == pytest.approx(held.sum(1).mean().item() if k < heard else 0.0)
        coming = coming * handed[k]


def test_last_exit_trains_the_network_without_exits() -> None:
    model = objective(depth_loss("last-exit", 0.0))
    plain = objective(depth_loss("last-exit", 0.0), exits="last")
    got = gradients(model, model(IMAGES, LABELS, 0.0)[0])
    expected = F.cross_entropy(plain.network.full(IMAGES), LABELS)
    reference = torch.autograd.grad(expected, list(plain.network.parameters()))
    trunk = [gradient for name, gradient in got.items() if is_trunk(name)]
    assert all(torch.equal(a, b) for a, b in zip(trunk, reference, strict=False))
    assert len(trunk) == len(reference) - 2  # the last head's weight and bias
    assert all(got[f"heads.{k}.linear.weight"].abs().sum() > 0 for k in range(6))


def test_a_stage_without_a_block_has_no_returns_that_could_diminish() -> None:
    asked = DepthLoss(parts=((1.0, DiminishingReturns()),), distillation=0)
    values = []
    for heads in ("conv", "conv+tail"):
        network = resnet(14, classes=3, channels=1, width=4, heads=heads, seed=0)
        model = Objective(network, asked, [exit.depth for exit in network.exits]).eval()
        losses = torch.stack([F.cross_entropy(answer, LABELS) for answer in network(IMAGES)])
        values.append(model(IMAGES, LABELS, 0.0)[0] - losses.sum())
    assert values[0] > 0
    torch.testing.assert_close(*values)


def test_distillation_is_for_the_early_heads_and_asks_nothing_of_the_trunk_or_the_last() -> None:
    """Heads learn the mixed losses, written out with soft labels; trunk and teacher from labels alone."""
    share = 0.7
    model = objective(DepthLoss(parts=((1.0, DeepSupervision(0.1)),), distillation=share))
    value, shown = model(IMAGES, LABELS, 0.0)
    assert torch.allclose(shown, cross_entropies(model).detach())
    got = gradients(model, value)
    trunk = gradients(model, DeepSupervision(0.1)(Seen(cross_entropies(model), model.costs, 0.0)).mean())
    heads = gradients(model, taught(model, share).mean(0).sum())
    for name, gradient in got.items():
        expected = trunk[name] if is_trunk(name) else heads[name]
        assert torch.allclose(gradient, expected, atol=1e-6, rtol=1e-4), name


def test_exits_are_compared_by_the_tasks_losses_whatever_they_learn_from() -> None:
    """A divergence from an unsure teacher is small at any early exit: judged by it, all samples would stop at once."""
    seen: list[Tensor] = []

    class Spy(SoftEnvelope):
        def __call__(self, found: Seen) -> Tensor:
            seen.append(found.losses.detach().clone())
            return super().__call__(found)

    model = objective(DepthLoss(0.3, ((1.0, Spy()),), distillation=0.7))
    _, shown = model(IMAGES, LABELS, 0.3)
    assert torch.equal(seen[0], shown)


def test_distillation_needs_classes_and_a_lone_exit_has_nobody_to_teach() -> None:
    network = resnet(8, classes=3, channels=1, width=4, exits="last", seed=0)
    taught, plain = DepthLoss(), DepthLoss(distillation=0)
    values = [Objective(network, loss, [1.0])(IMAGES, LABELS, 0.0)[0] for loss in (taught, plain)]
    assert torch.equal(*values)
    with pytest.raises(InputError, match="give distillation=0"):
        Objective(network, taught, [1.0], task=lambda answer, target: answer.sum(1))


def test_the_halting_head_learns_and_its_observations_do_not_touch_the_network() -> None:
    model = objective(DepthLoss(0.5, ((1.0, StoppingCost()),), distillation=0))
    value, _ = model(IMAGES, LABELS, 0.5)
    value.backward()
    assert model.halting.out.bias.grad.abs().sum() > 0
    every = cross_entropies(model).detach()
    halting = model.halting([answer.detach() for answer in model.network(IMAGES)])
    model.halting.zero_grad()
    StoppingCost()(Seen(every, model.costs, 0.5, halting)).mean().backward()
    again = model.halting.out.bias.grad.clone()
    model.zero_grad()
    model(IMAGES, LABELS, 0.5)[0].backward()
    assert torch.allclose(model.halting.out.bias.grad, again, atol=1e-6)


def test_matched_gradients_of_a_solved_rule_go_to_where_it_stops() -> None:
    """The last exit alone until a rule is solved; then each sample's weight is at the exit where the rule stops it."""
    model = objective(DepthLoss(0.5, ((1.0, StoppingCost(by="rule")),), distillation=0))
    exits, generator = len(model.costs), torch.Generator().manual_seed(1)
    labels = torch.arange(400) % 3
    hints = 3 * torch.rand(400, 1, generator=generator) * F.one_hot(labels, 3)  # easy ones and hard ones
    answers = [(k + 1) * (hints + torch.randn(400, 3, generator=generator)) / 2 for k in range(exits)]
    every = torch.stack([F.cross_entropy(answer, labels, reduction="none") for answer in answers], 1)
    assert torch.equal(weights(model.loss, seen_by(model, answers, every)), torch.eye(exits)[[exits - 1] * 400])
    model.solve(answers, labels, price=0.5)
    got = weights(model.loss, seen_by(model, answers, every))
    trace = Trace.from_answers(torch.stack(answers, 1), every, Costs.of(model.costs), kind="classes")
    stops = snell(trace, price=0.5).stopped_at(trace)
    assert (got != torch.eye(exits)[stops]).any(1).sum() <= 1  # a score at the edge, rounded otherwise
    assert len(np.unique(stops)) > 1
    # What J then is, is the value of that rule: on what fitted it, below that of every fixed depth.
    assert model.loss(seen_by(model, answers, every)).mean() < (every + 0.5 * model.costs).mean(0).min()


def seen_by(model: Objective, answers: list[Tensor], every: Tensor) -> Seen:
    return Seen(every.clone(), model.costs, 0.5, model._halting(answers, every))


def test_halting_head_starts_even_and_never_saturates() -> None:
    head = HaltingHead([0.25, 0.5, 0.75, 1.0])
    logits = [torch.randn(5, 3, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    assert torch.allclose(head(logits), torch.tensor([1 / 4, 1 / 3, 1 / 2, 1.0]).expand(5, 4))
    with torch.no_grad():
        head.out.bias.fill_(-50.0)
    stays = head(logits)
    assert (stays[:, 0] > 0.005).all()
    stays[:, 0].sum().backward()
    assert head.out.bias.grad.abs() > 1e-6


def test_no_halting_head_unless_needed() -> None:
    assert objective(depth_loss("soft-envelope", 0.0)).halting is None
    assert objective(depth_loss("stopping-cost", 0.0)).halting is not None


def test_frozen_trains_early_heads_alone() -> None:
    model = objective(depth_loss("deep-supervision", 0.0), frozen=True)
    got = gradients(model, model(IMAGES, LABELS, 0.0)[0])
    assert set(got) == {f"heads.{k}.linear.{part}" for k in range(5) for part in ("weight", "bias")}
    assert not model.network.training


@pytest.mark.parametrize(
    "costs", [[1.0], [1, 2, 3, 4, 5, 0], [0, 1, 2, 3, 4, 5], [1, 2, 2, 1, 3, 4], [math.nan] * 6, [math.inf] * 6]
)
def test_bad_costs(costs: list[float]) -> None:
    network = resnet(14, classes=3, channels=1, width=4, seed=0)
    with pytest.raises(InputError, match="6 positive numbers"):
        Objective(network, DepthLoss(), costs)


def test_costs_are_scaled_to_the_whole_depth() -> None:
    network = resnet(8, classes=3, channels=1, width=4, seed=0)
    assert torch.equal(Objective(network, DepthLoss(), [100, 200, 400]).costs, COSTS)


def test_frozen_without_an_early_exit() -> None:
    with pytest.raises(InputError, match="nothing to train"):
        objective(DepthLoss(), exits="last", frozen=True)
