"""Certificates: right as often as they say on laws known exactly, not timid, and never on samples that fitted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import binom

from checker import unchecked
from conftest import noisy_trace
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.baselines import Threshold, confidence
from optdepth.stopping.certify import Certificate, certify, percent
from optdepth.stopping.evaluate import applied, evaluate
from optdepth.stopping.family import Family
from optdepth.stopping.risks import Measure, RiskTest, betting_p, measured
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.trace import Trace

COSTS = Costs.of([0.5, 1.0])
FULL_LOSS = 0.05
CUTS = np.linspace(1, 0, 51)
RULES = [Threshold(Origin(COSTS), "score", torch.tensor([cut])) for cut in CUTS]

# A uniform score u; of two answers the first exit gives the wrong one with chance (1 - u) / 2, the last with 0.05. What
# each measure is when stopping at u >= c. Mean cost at c: 0.5 + 0.5 c.
RISKS: dict[Measure, Callable[[float], float]] = {
    "loss": lambda c: (1 - c) ** 2 / 4 + FULL_LOSS * c,
    "excess": lambda c: (1 - c) ** 2 / 4 - FULL_LOSS * (1 - c),
    "disagreement": lambda c: (1 - 2 * FULL_LOSS) * (1 - c) ** 2 / 4 + FULL_LOSS * (1 - c),
}
LAWS: dict[str, tuple[Measure, float]] = {
    "wrong": ("loss", 0.1),
    "fraction": ("loss", 0.1),
    "excess": ("excess", 0.05),
    "differs": ("disagreement", 0.05),
}
"""What is measured under each law, and the bound asked for. A fraction is a loss that is not 0-1, of the same mean."""


def draw(law: str, samples: int, seed: int) -> Trace:
    random = np.random.default_rng(seed)
    score = random.random(samples)
    first = (1 - score) * random.random(samples) if law == "fraction" else random.random(samples) < (1 - score) / 2
    last = random.random(samples) < FULL_LOSS
    losses = np.column_stack([first, last]).astype(float)
    differs = None if law == "fraction" else losses != losses[:, -1:]
    return Trace(losses, np.repeat(score[:, None, None], 2, axis=1), COSTS, ("score",), disagreement=differs)


def cut_of(found: Certificate) -> float:
    return float(found.rule.thresholds[0]) if isinstance(found.rule, Threshold) else 1.0


@pytest.mark.usefixtures("repeated")
@pytest.mark.parametrize("law", LAWS)
def test_of_500_certificates_at_90_percent_few_enough_are_wrong_and_none_needlessly_timid(law: str) -> None:
    measure, bound = LAWS[law]
    risk_at = RISKS[measure]
    known = brentq(lambda c: risk_at(c) - bound, 0.0, 0.8)  # the cheapest cut when the law is known
    cuts = np.array(
        [
            cut_of(certify(RULES, draw(law, 1_000, seed), risk=bound, confidence=0.9, measure=measure))
            for seed in range(500)
        ]
    )
    wrong = int((np.array([risk_at(c) for c in cuts]) > bound).sum())
    assert wrong <= binom.ppf(0.999, 500, 0.1)
    # Mean cost above the known rule's, in full passes; a normal test with known variance would give 0.03 to 0.037.
    assert 0.5 * (cuts.mean() - known) <= 0.045


@pytest.mark.usefixtures("repeated")
def test_30_samples_told_20_times_are_30_samples_and_keep_the_promise() -> None:
    tiled, rules, bound = np.tile(np.arange(30), 20), RULES[::5], 0.15
    risk_at = RISKS["loss"]
    broken = {"told": 0, "selected": 0, "believed": 0}
    for seed in range(300):
        thirty = draw("wrong", 30, seed)
        told = Trace(thirty.losses[tiled], thirty.observations[tiled], COSTS, ("score",))
        believed = replace(told, identity=np.arange(600))  # as if they were 600 samples
        for how, trace in (("told", told), ("selected", thirty.select(tiled)), ("believed", believed)):
            found = certify(rules, trace, risk=bound, confidence=0.9)
            assert (found.samples, found.duplicates) == ((600, 0) if how == "believed" else (30, 570))
            broken[how] += risk_at(cut_of(found)) > bound
    few = binom.ppf(0.999, 300, 0.1)
    assert broken["told"] == broken["selected"] <= few < broken["believed"]


def test_what_is_not_evidence_of_its_own_is_left_out_counted_and_named() -> None:
    half, other = draw("wrong", 400, 0), draw("wrong", 600, 1)
    content = np.concatenate([half.identity, half.identity[:100], other.identity[:300], other.identity[:50]])
    losses = np.concatenate([half.losses, half.losses[:100], other.losses[:300], other.losses[:50]])
    seen = np.concatenate(
        [half.observations, half.observations[:100], other.observations[:300], other.observations[:50]]
    )
    whole = Trace(losses, seen, COSTS, ("score",), source="data", rows=np.arange(850), identity=content)
    fit, hold = whole.select(np.arange(400)), whole.select(np.arange(400, 850))
    assert fit.overlap(hold) == 0
    rules = [Threshold(Origin.of(fit), "score", torch.tensor([cut])) for cut in CUTS]
    found = certify(rules, hold, risk=0.2, confidence=0.9)
    assert (found.samples, found.duplicates) == (300, 150)
    assert "on 300 samples (150 duplicates left out)" in str(found)
    alone = certify(rules, hold.select(np.arange(100, 400)), risk=0.2, confidence=0.9)
    assert (alone.samples, alone.duplicates, alone.digest) == (300, 0, found.digest)
    assert (alone.promises, alone.cost) == (found.promises, found.cost)
    assert "duplicates" not in str(alone)
    failed = certify(rules, hold, risk=0.0, confidence=0.9)
    assert not failed.certified
    assert "nothing is certified: 300 samples (150 duplicates left out) do not show" in str(failed)
    with pytest.raises(InputError, match="all 100 samples have the content of samples that fitted the rules"):
        certify(rules, hold.select(np.arange(100)), risk=0.2, confidence=0.9)
    with pytest.raises(InputError, match="1 of these samples fitted the rule"):
        certify(rules, whole.select(np.arange(399, 850)), risk=0.2, confidence=0.9)


@pytest.mark.usefixtures("repeated")
@pytest.mark.parametrize("broken", ["excess", "disagreement"])
def test_of_two_promises_with_one_confidence_a_rule_that_breaks_either_passes_no_oftener_than_it_may(
    broken: Measure,
) -> None:
    """The rule's law is just above one bound and far below the other: then no other test catches it by chance."""
    harmless, rule = (Threshold(Origin(COSTS), "score", torch.tensor([cut])) for cut in (0.95, 0.6))
    risks: dict[Measure, float] = {"excess": 0.3, "disagreement": 0.3, broken: RISKS[broken](0.6) - 1e-4}
    traces = (draw("wrong", 1_000, seed) for seed in range(600))
    found = [certify([harmless, rule], trace, risk=risks, confidence=0.9) for trace in traces]
    assert all(each.gained for each in found)
    assert 0.03 * 600 <= sum(each.rule is rule for each in found) <= binom.ppf(0.999, 600, 0.1)


@pytest.mark.usefixtures("repeated")
def test_of_300_certificates_on_two_risks_few_enough_break_any_and_none_are_needlessly_timid() -> None:
    risks: dict[Measure, float] = {"excess": 0.05, "disagreement": 0.1}
    known = brentq(lambda c: max(RISKS[measure](c) - bound for measure, bound in risks.items()), 0.0, 0.8)
    cuts = [cut_of(certify(RULES, draw("wrong", 1_000, seed), risk=risks, confidence=0.9)) for seed in range(300)]
    wrong = sum(any(RISKS[measure](c) > bound for measure, bound in risks.items()) for c in cuts)
    assert wrong <= binom.ppf(0.999, 300, 0.1)
    assert 0.5 * (np.mean(cuts) - known) <= 0.045


@pytest.mark.parametrize("law", LAWS)
def test_with_many_samples_the_certified_rule_is_nearly_the_one_a_known_law_gives(law: str) -> None:
    measure, bound = LAWS[law]
    known = brentq(lambda c: RISKS[measure](c) - bound, 0.0, 0.8)
    found = certify(RULES, draw(law, 100_000, 0), risk=bound, confidence=0.95, measure=measure)
    assert found.certified
    assert found.cost == pytest.approx(0.5 + 0.5 * known, abs=0.015)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_betting_rejects_a_true_hypothesis_no_more_often_than_its_level(low: float) -> None:
    random = np.random.default_rng(0)
    mean, chances = (0.1, (0.9, 0.1)) if low == 0 else (0.05, (0.1, 0.75, 0.15))
    values = random.choice(np.array([0.0, 1.0] if low == 0 else [-1.0, 0.0, 1.0]), size=(2_000, 400), p=chances)
    rejected = sum(betting_p(row, mean, 0.1, low) <= 0.1 for row in values)
    assert 0.03 * 2_000 <= rejected <= binom.ppf(0.999, 2_000, 0.1)


def test_where_nothing_can_be_shown_the_full_depth_comes_back_and_says_so() -> None:
    found = certify(RULES, draw("wrong", 200, 0), risk=0.01, confidence=0.95)
    assert not found.certified
    assert isinstance(found.rule, FixedDepth)
    assert found.rule.exit == 1
    assert found.cost == found.full_cost == 1.0
    assert found.tested == 1
    assert str(found).startswith("nothing is certified: 200 samples do not show with 95%")
    none_early = certify(RULES[20:], draw("excess", 200, 0), risk=0.0, confidence=0.95, measure="excess")
    assert none_early.certified
    assert not none_early.gained
    assert "at the full depth, and nothing is gained: no cheaper rule could be shown on 200 samples" in str(none_early)


def test_a_certificate_reads_as_a_sentence() -> None:
    trace = draw("wrong", 5_000, 0)
    found = certify(RULES, trace, risk=0.1, confidence=0.95)
    assert str(found).startswith("with 95% confidence the loss is at most 0.1: 0.09")
    assert "on 5,000 samples, at a mean cost of 0.7" in str(found)
    assert found.gained
    assert [promise.observed for promise in found.promises] == [evaluate(found.rule, trace).loss]


def test_two_promises_read_as_one_sentence() -> None:
    trace = draw("wrong", 5_000, 0)
    found = certify(RULES, trace, risk={"excess": 0.05, "disagreement": 0.1}, confidence=0.995)
    stops = found.rule.stopped_at(trace)
    excess, differs = (measured(measure, stops, trace).mean() for measure in ("excess", "disagreement"))
    assert str(found).startswith(
        "with 99.5% confidence the loss above the full network's is at most 0.05 and the rate of disagreement with the "
        f"full network is at most 0.1: {excess:.4f} and {differs:.4f} on 5,000 samples"
    )


@pytest.mark.parametrize(("share", "said"), [(0.995, "99.5%"), (0.9, "90%"), (0.99999999, "99.999999%"), (0.0, "0%")])
def test_a_confidence_is_never_rounded_up(share: float, said: str) -> None:
    assert percent(share) == percent(np.float64(share)) == said


def flawless(samples: int) -> Trace:
    """Both exits are always right."""
    score = np.random.default_rng(0).random(samples)
    losses, seen = np.zeros((samples, 2)), np.repeat(score[:, None, None], 2, axis=1)
    return Trace(losses, seen, COSTS, ("score",), disagreement=losses.astype(bool))


def test_where_samples_are_too_few_it_says_how_many_would_do() -> None:
    found = certify(RULES, flawless(180), risk=0.01, confidence=0.95, measure="disagreement")
    assert found.certified
    assert not found.gained
    assert str(found).endswith("180 samples can show a risk of 1.7% at the least; 1% takes about 300")
    assert certify(RULES, flawless(300), risk=0.01, confidence=0.95, measure="disagreement").gained
    nothing = certify(RULES, flawless(180), risk=0.01, confidence=0.95)
    assert not nothing.certified
    assert "180 samples can show a risk of 1.7% at the least; 1% takes about 300; the rule" in str(nothing)
    never = certify(RULES, flawless(180), risk=0.0, confidence=0.95, measure="excess")
    assert str(never).endswith("at the least; no number shows 0%")
    both = certify(RULES, flawless(180), risk={"excess": 0.01, "disagreement": 0.05}, confidence=0.95)
    assert [short.measure for short in both.short] == ["excess"]


@pytest.mark.parametrize("measure", ["loss", "excess"])
@pytest.mark.parametrize("tosses", [True, False])
def test_the_number_said_to_do_does_and_one_clearly_lower_does_not(measure: Measure, tosses: bool) -> None:
    test = RiskTest(measure, 0.03, 0.05, tosses and measure == "loss")
    for share in (0.0, 0.01, 0.02):
        values = (np.arange(1_000) % 100 < 100 * share).astype(float)
        values = np.random.default_rng(0).permutation(values)
        takes = test.takes(values)
        assert takes is not None
        assert test.shows(np.resize(values, takes))
        assert not test.shows(np.resize(values, int(0.85 * takes)))
    least = test.least(100)
    assert replace(test, risk=1.01 * least).shows(np.zeros(100))
    assert not replace(test, risk=0.99 * least).shows(np.zeros(100))
    assert test.takes(np.full(100, 0.03)) is None
    assert replace(test, risk=1e-7).takes(np.zeros(10)) is None


def test_where_there_are_enough_samples_it_says_what_they_show_of_the_rule() -> None:
    eager, trace = RULES[-1:], draw("wrong", 5_000, 0)
    lossy = certify(eager, trace, risk=0.1, confidence=0.95, measure="excess")
    assert str(lossy).endswith(f"of {lossy.short[0].observed:.4f}, as on them, is not below 0.1")
    near = certify(eager, trace, risk=lossy.short[0].observed + 0.002, confidence=0.95, measure="excess")
    (short,) = near.short
    assert short.least is None
    assert short.takes is not None
    assert 20_000 < short.takes < 1_000_000
    assert str(near).endswith(f", as on them, {percent(short.risk)} takes about {short.takes:,}")


def test_order_of_the_samples_decides_nothing_but_the_order_of_the_rules_does() -> None:
    trace = draw("wrong", 2_000, 0)
    sorted_by_loss = trace.select(np.argsort(trace.losses[:, 0]))
    for_sorted = certify(RULES, sorted_by_loss, risk=0.1, confidence=0.9)
    assert cut_of(for_sorted) == cut_of(certify(RULES, trace, risk=0.1, confidence=0.9))
    assert cut_of(certify(RULES[::-1], trace, risk=0.1, confidence=0.9)) == 1.0  # the most eager fails, and ends it


@pytest.mark.parametrize("measure", ["loss", "excess", "disagreement"])
def test_a_sweep_of_the_price_certifies_a_rule_close_to_the_best_of_a_known_law(measure: Measure) -> None:
    fit, hold, law = noisy_trace(30_000).split(1 / 6, 1 / 6, 4 / 6, seed=0)
    bound = 0.05 if measure == "loss" else 0.02
    found = confidence(fit).certified(hold, risk=bound, confidence=0.95, measure=measure)
    risk_of = lambda judged: measured(measure, judged.stopped_at, law).mean()  # noqa: E731
    judged = evaluate(found.rule, law)
    assert found.certified
    assert risk_of(judged) <= bound
    thresholds = np.linspace(0.3, 1, 71)
    tried = [applied(Threshold(Origin(law.costs), "confidence", torch.full((7,), t)), law) for t in thresholds]
    known = min(other.cost for other in tried if risk_of(other) <= bound)
    assert judged.cost - known <= 0.05


def test_the_ladder_is_laid_on_the_fit_split_in_even_steps_of_cost() -> None:
    fit = noisy_trace(4_000)
    rules = confidence(fit).ladder(risk=0.1)
    found = [applied(rule, fit) for rule in rules]
    costs = np.array([e.cost for e in found])
    assert (np.diff([rule.origin.price for rule in rules]) > 0).all()
    assert (np.diff(costs) <= 0).all()
    assert found[0].loss <= 0.1 < found[-1].loss
    assert np.abs(np.diff(costs)).max() <= 0.1
    assert len(np.unique(costs)) >= 12


def test_used_samples_and_senseless_requests_are_refused() -> None:
    fit, hold = noisy_trace(2_000).split(0.5, 0.5, seed=0)
    rule = confidence(fit, price=0.1)
    with pytest.raises(InputError, match="these samples fitted the rule"):
        certify([rule], fit, risk=0.9, confidence=0.9)
    with pytest.raises(InputError, match=r"confidence is 95; .* 0\.95 for 95%"):
        certify([rule], hold, risk=0.1, confidence=95)
    with pytest.raises(InputError, match="risk is -1"):
        certify([rule], hold, risk=-1, confidence=0.9)
    with unchecked(), pytest.raises(InputError, match="unknown measure 'lose'"):
        certify([rule], hold, risk=0.1, confidence=0.9, measure="lose")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"risk names its measures, excess: leave measure= out"):
        certify([rule], hold, risk={"excess": 0.1}, confidence=0.9, measure="excess")
    with pytest.raises(InputError, match=r'no risk: give one, such as 0\.01, or several, such as \{"excess"'):
        certify([rule], hold, risk={}, confidence=0.9)
    large = Trace(hold.losses * 2, hold.observations, hold.costs, hold.features)
    with pytest.raises(InputError, match=r"does not say where answers differ .* Trace\.from_logits"):
        certify([rule], large, risk=0.1, confidence=0.9, measure="disagreement")
    with pytest.raises(InputError, match=r"losses run from 0 to 2; .* \[0, 1\]"):
        certify([rule], large, risk=0.1, confidence=0.9)
    free = Trace(fit.losses, fit.observations, Costs.of(np.zeros(8)), fit.features)
    with pytest.raises(InputError, match="the exits cost nothing"):
        Family(free, lambda price: rule).certified(hold, risk=0.1, confidence=0.9)
