"""Chains of thought: from records to a trace, a schedule and a rule; and the rule beside a model that thinks."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from checker import unchecked
from optdepth.chains import Chain, Probe, Thinker, growing, read, schedule, split, trace
from optdepth.chains.records import plain, same
from optdepth.chains.sight import FEATURES, Sight
from optdepth.errors import InputError
from optdepth.stopping.baselines import Threshold, patience
from optdepth.stopping.evaluate import applied, evaluate
from optdepth.stopping.placed import Placed
from optdepth.stopping.placement import keep
from optdepth.stopping.rule import Origin, Rule
from optdepth.stopping.snell import snell
from optdepth.trace import Trace


def probe(tokens: int, answer: str | None, confidence: float = 0.5) -> Probe:
    return Probe(tokens, answer, confidence if answer else 0.0, 0.1, 1.0, 8.0)


def chain(name: str, answers: list[str | None], tokens: int, right: str = "7", end: float = 0.0) -> Chain:
    probes = tuple(probe(48 * (k + 1), answer) for k, answer in enumerate(answers))
    return Chain(name, probes, (*(float(answer != right) for answer in answers), end), tokens)


SHORT = chain("a", [None, "7"], 100)
LONG = chain("b", ["3", "7", "7", "5", "7", "7", "7"], 400)


def two_in_a_row(fitted: Trace) -> Rule:
    return Threshold(Origin(fitted.costs), "streak", torch.full((fitted.n_exits - 1,), 1.5))


def drawn(seed: int, chains: int = 300) -> list[Chain]:
    """Chains that know their answer from some probe on, those of even number, or never and go on to 50 probes."""
    random, found = np.random.default_rng(seed), []
    for i in range(chains):
        knows = int(random.geometric(0.3)) if i % 4 else 99
        ends = min(knows + 2 + int(random.integers(0, 6)), 50)
        answers = ["7" if k >= knows else str(random.integers(10, 99)) for k in range(ends)]
        found.append(chain(f"{seed} {i}", answers, 48 * ends + 20, end=float(knows == 99)))
    return found


def test_each_chain_has_its_own_end_at_which_it_has_paid_its_tokens_and_its_probes() -> None:
    made = trace([SHORT, LONG], (48, 96, 192))
    assert made.features == FEATURES
    np.testing.assert_array_equal(made.costs.horizon, [3, 4])
    np.testing.assert_array_equal(made.costs.paid(), [[56, 112, 116, 116], [56, 112, 216, 424]])
    np.testing.assert_array_equal(made.losses, [[1, 0, 0, 0], [1, 0, 1, 0]])
    found = applied(two_in_a_row(made), made)
    assert found.stopped_at.tolist() == [2, 3]  # probed at 48, 96 and 192 the long one answers 3, 7 and 5
    closer = trace([SHORT, LONG], (48, 96, 144))
    assert applied(two_in_a_row(closer), closer).costs.tolist() == [116, 144 + 24]


def test_features_are_of_the_probes_taken_so_far_and_of_nothing_else() -> None:
    made = trace([LONG], tuple(48 * k for k in range(1, 8)))
    column = lambda name: made.columns([name])[0, :-1, 0].tolist()  # noqa: E731
    assert column("streak") == [1, 1, 2, 1, 1, 2, 3]
    assert column("answers") == [1, 2, 2, 3, 3, 3, 3]
    for cut in range(1, 7):
        cut_off = Chain("b", LONG.probes[:cut], (*LONG.losses[:cut], 1.0), LONG.probes[cut - 1].tokens)
        shorter = trace([cut_off], tuple(48 * k for k in range(1, 8)))
        np.testing.assert_array_equal(shorter.observations[0, :cut], made.observations[0, :cut])


def test_the_thinker_says_what_the_rule_says_of_the_trace() -> None:
    chains, when = drawn(0, 60), growing(48, 1.4, 2_000)
    made = trace(chains, when)
    thinker = Thinker(two_in_a_row(made), when)
    found = applied(thinker.rule, made)
    for i, each in enumerate(chains):
        thought, stopped = thinker.start(), None
        for told in each.probes:
            if thought.due is None or told.tokens < thought.due:
                continue
            before = json.loads(json.dumps(thought.state))
            if thought(told):
                stopped = told.tokens
                break
            # A request that moves to another worker goes on as it was.
            again = thinker.resume(before)
            again({**vars(told)})
            assert again.state == thought.state
        at = int(found.stopped_at[i])
        assert stopped == (None if at == made.costs.horizon[i] - 1 else made.costs.reach[i, at])


def test_a_thought_decides_in_microseconds() -> None:
    when = growing(48, 1.4, 2_000)
    made = trace(drawn(0), when)
    thinker = Thinker(snell(made, price=1e-4, features=FEATURES), when)
    told = [probe(each, str(k)) for k, each in enumerate(when)]
    least = np.inf
    with unchecked():
        for _ in range(50):
            thought, begin, asked = thinker.start(), time.perf_counter(), 0
            for each in told:
                asked += 1
                if thought(each):
                    break
            least = min(least, (time.perf_counter() - begin) / asked)
    assert least < 1e-3  # some 30 microseconds; a slow machine is not a broken one


@pytest.mark.usefixtures("repeated")
def test_chains_that_never_know_are_ended_and_no_confidence_does_that() -> None:
    """The solved rule gives up on those that still change their mind; streaks and confidence wait for ever."""
    when = growing(48, 1.0, 2_400)[:20]
    fit, test = trace(drawn(1, 400), when), trace(drawn(2, 400), when)
    price = 5e-4
    rule, rival = snell(fit, price=price, features=FEATURES), patience(fit, price=price)
    ours, theirs = evaluate(rule, test), evaluate(rival, test)
    assert ours.value(price) < theirs.value(price) - 0.1
    never = np.arange(400) % 4 == 0
    assert ours.costs[never].mean() < 0.3 * theirs.costs[never].mean()


@pytest.mark.usefixtures("repeated")
def test_dear_probes_are_made_more_rarely() -> None:
    often, rarely = growing(48, 1.0, 1_000), growing(48, 2.0, 1_000)
    chains = drawn(3, 200)
    at = lambda cost: [  # noqa: E731
        replace(each, probes=tuple(replace(told, cost=cost) for told in each.probes)) for each in chains
    ]
    assert schedule(at(0.0), [often, rarely], price=5e-4) == often
    assert schedule(at(300.0), [often, rarely], price=5e-4) == rarely


def test_splits_are_by_question_and_one_in_two_splits_is_refused() -> None:
    chains = [*drawn(4, 120), *[replace(each, tokens=each.tokens + 1) for each in drawn(4, 120)]]
    parts = split(chains, 0.5, 0.5, seed=0)
    asked = [{each.question for each in part} for part in parts]
    assert not asked[0] & asked[1]
    assert sum(map(len, parts)) == len(chains)
    family = patience(trace(chains[:120], (48, 96)))
    with pytest.raises(InputError, match="fitted the family, so they can neither certify nor judge it"):
        family.certified(trace(chains[120:], (48, 96)), risk=0.5, confidence=0.9)


def test_answers_are_the_same_however_they_are_written() -> None:
    assert same("$1,200.", "1200.0")
    assert same(" x + 1 ", "X + 1")
    assert not same("12", "120")
    assert plain("0.50") == plain(".5")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda: Chain("q", (), (0.0,), 10), "has no probe"),
        (
            lambda: Chain("q", (probe(96, "1"), probe(48, "1")), (0.0,) * 3, 100),
            "out of order: one at 48 tokens follows",
        ),
        (lambda: Chain("q", (probe(96, "1"),), (0.0,) * 2, 90), "a probe at 96 tokens of 90"),
        (lambda: Chain("q", (probe(96, "1"),), (0.0,), 96), "1 losses for 1 probes"),
        (lambda: probe(48, "1", 1.5), "confidence is 1.5; it is a probability"),
        (lambda: trace([], (48,)), "no chains"),
        (lambda: trace([LONG], (96, 48)), "give numbers >= 1 that rise"),
        (lambda: growing(48, 0.5, 100), "factor 0.5, until 100: give first >= 1, factor >= 1"),
        (lambda: schedule(drawn(0), [], price=0.1), "no candidates"),
        (lambda: split(drawn(0), 0.7, 0.7, seed=0), "at most 1"),
        (lambda: Sight(1, 96).after(probe(96, "1")), "a probe at 96 tokens follows one at 96"),
        (
            lambda: Thinker(two_in_a_row(trace([LONG], (48, 96))), (48,)),
            "give the schedule that its trace was made with",
        ),
    ],
)
def test_bad_chains_are_refused(bad: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        bad()


def test_a_thinker_refuses_rules_and_probes_that_are_none_of_its_own() -> None:
    made = trace([SHORT, LONG], (48, 96, 144))
    inner = Threshold(Origin(keep(made, (1, 3)).costs), "best", torch.full((1,), 0.5))
    with pytest.raises(InputError, match="passes probes by"):
        Thinker(Placed(Origin(made.costs), inner, (1, 3)), (48, 96, 144))
    thinker = Thinker(two_in_a_row(made), (48, 96, 144))
    thought = thinker.start()
    with pytest.raises(InputError, match="a probe at 40 tokens, the next is due at 48"):
        thought(probe(40, "1"))
    with pytest.raises(InputError, match="what was given is damaged"):
        thought({"tokens": 48})
    with pytest.raises(InputError, match="lacks 'stopped'"):
        thinker.resume({"seen": {}} | {"seen": thought.state["seen"]})
    assert not thought(probe(48, "1"))
    assert thought(probe(96, "1"))
    assert thought.due is None
    with pytest.raises(InputError, match="no probe is due any more"):
        thought(probe(144, "1"))


def record(chain: Chain, gold: str = "7") -> dict:
    told = [
        {"t": p.tokens, "ans": p.answer, "gm": p.confidence, "minp": p.least, "ent": p.entropy, "ptok": 8}
        for p in chain.probes
    ]
    end = {"full_tokens": chain.tokens, "full_correct": chain.losses[-1] == 0.0}
    return {"question": chain.question, "gold": gold, "probes": told, "more": [1], **end}


def test_recorded_chains_are_read_and_bad_lines_are_named(tmp_path: Path) -> None:
    file = tmp_path / "chains.jsonl"
    file.write_text("\n".join(json.dumps(record(each)) for each in (SHORT, LONG)))
    assert read(file) == [SHORT, LONG]
    for spoilt, says in (
        ("{", "line 2 of .* is no JSON"),
        ("[]", "line 2 of .* is no JSON object"),
        (json.dumps(record(SHORT) | {"probes": []}), "line 2 of .* has no probe"),
        (json.dumps({"question": "a"}), "line 2 of .* lacks 'gold'"),
        (json.dumps(record(SHORT) | {"full_correct": 1}), r"line 2 of .* \(full_correct is 1, not true or false\)"),
    ):
        file.write_text(f"{json.dumps(record(LONG))}\n{spoilt}\n")
        with pytest.raises(InputError, match=says):
            read(file)
    file.write_text("")
    with pytest.raises(InputError, match="holds no chain"):
        read(file)


@pytest.mark.usefixtures("repeated")
def test_the_ten_lines_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "chains.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 11  # ten and the import
    (tmp_path / "chains.jsonl").write_text("\n".join(json.dumps(record(each)) for each in drawn(5, 200)))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "loss" in capsys.readouterr().out


@pytest.mark.usefixtures("repeated")
def test_the_benchmark_runs_in_its_short_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import chains

    chains.main(["--short", "--out", str(tmp_path)])
    figures = json.loads((tmp_path / "chains.json").read_text())
    assert figures["rows"]["rows"] == 2 * len(chains.METHODS) * len(chains.DROPS)
    assert "| solved |" in (tmp_path / "chains.md").read_text()
