"""Identity: a sample is known again by its own content, however, wherever and whenever it is fed."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import optdepth as od
from checker import unchecked
from conftest import noisy_logits, noisy_trace
from optdepth.batch import identities, token_identities
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.samples import Samples
from optdepth.splits import Batches
from optdepth.stopping.baselines import Threshold, confidence
from optdepth.stopping.bounds import dual
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.placed import placed
from optdepth.stopping.rule import Origin, Rule
from optdepth.trace import Trace

IMAGES = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 10
NETWORK = od.resnet(8, classes=10, channels=1, seed=0)
COSTS = Costs.of(np.arange(1.0, len(NETWORK.exits) + 1))


def sentence(*, length: int, left: bool = False, hole: int | None = None) -> dict[str, Tensor]:
    """The words 1 to 5, padded to a length by what nobody should look at."""
    before = length - 5 if left else 0
    ids, mask = torch.full((1, length), 77), torch.zeros(1, length, dtype=torch.long)
    ids[0, before : before + 5], mask[0, before : before + 5] = torch.arange(1, 6), 1
    if hole is not None:
        mask[0, before + hole] = 0
    kinds = torch.zeros(1, length, 2)
    kinds[0, before : before + 5] = 0.5
    return {"input_ids": ids, "attention_mask": mask, "kinds": kinds}


def recorded(images: Tensor, size: int = 16, **more: object) -> Trace:
    labels = torch.zeros(len(images), dtype=torch.long)
    return od.record(NETWORK, list(zip(images.split(size), labels.split(size), strict=True)), COSTS, **more)


def test_a_sample_has_its_identity_in_any_batch_place_layout_and_process() -> None:
    whole = identities(IMAGES)
    assert (whole.shape, whole.dtype, len(np.unique(whole))) == ((60,), np.int64, 60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(identities(IMAGES[order]), whole[order.numpy()])
    np.testing.assert_array_equal(np.concatenate([identities(part) for part in IMAGES.split(7)]), whole)
    colour = IMAGES.reshape(20, 3, 8, 8)
    last = colour.to(memory_format=torch.channels_last)
    np.testing.assert_array_equal(identities(last), identities(colour))
    np.testing.assert_array_equal(identities(IMAGES[::2]), whole[::2])
    code = "import torch; from optdepth.batch import identities; print(*identities(torch.arange(6.0).reshape(2, 3)))"
    elsewhere = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    known = [1567524642332198426, 87199515164698516]  # the same on any machine, and for ever
    assert [int(word) for word in elsewhere.split()] == identities(torch.arange(6.0).reshape(2, 3)).tolist() == known


def test_whatever_differs_in_content_differs_in_identity() -> None:
    x = torch.arange(6).reshape(1, 6)
    alike = [
        x,
        x.int(),
        x.float(),
        x.reshape(1, 2, 3),
        x.flip(1),
        (x, x),
        (x,),
        {"a": x},
        {"b": x},
        {"a": x, "b": x + 1},
        {"b": x, "a": x + 1},
    ]
    assert len({int(identities(inputs)[0]) for inputs in alike}) == len(alike)
    assert identities({"a": x, "b": x + 1}) == identities({"b": x + 1, "a": x})
    changed = IMAGES.clone()
    changed[3, 0, 7, 7] += 1e-6
    assert np.flatnonzero(identities(changed) != identities(IMAGES)).tolist() == [3]


def test_padding_does_not_change_a_sentence_and_all_else_does() -> None:
    known = identities(sentence(length=5))
    for padded in (sentence(length=8), sentence(length=30), sentence(length=8, left=True)):
        assert identities(padded) == known
    other = sentence(length=8)
    other["input_ids"][0, 2] = 9
    hole, filled = sentence(length=8, hole=2), sentence(length=8, hole=2)
    filled["input_ids"][0, 2] = 9
    # What is masked between two words is no padding: with it left out, "1 2 4 5" would be this sentence.
    found = [identities(inputs)[0] for inputs in (other, hole, filled)]
    assert len({*found, known[0]}) == 4
    unmasked = [{"input_ids": sentence(length=n)["input_ids"]} for n in (5, 8)]
    assert identities(unmasked[0]) != identities(unmasked[1])
    empty = {name: torch.zeros(2, n, dtype=torch.long) for n in (4,) for name in ("input_ids", "attention_mask")}
    assert np.ptp(identities(empty)) == 0


def test_a_token_is_known_by_its_sequence_and_its_place_in_it() -> None:
    all_of = lambda inputs: inputs["attention_mask"].bool()  # noqa: E731
    short, long = sentence(length=5), sentence(length=9, left=True)
    found = token_identities(short, all_of(short))
    np.testing.assert_array_equal(token_identities(long, all_of(long)), found)
    assert len(np.unique(found)) == 5
    some = all_of(short)
    some[0, :3] = False
    np.testing.assert_array_equal(token_identities(short, some), found[3:])


def test_recordings_that_share_20_images_say_so_however_they_were_fed() -> None:
    first, second = recorded(IMAGES[:40]), recorded(IMAGES[20:].flip(0), size=9)
    assert first.overlap(second) == second.overlap(first) == 20
    assert first.overlap(recorded(IMAGES[40:])) == 0
    assert recorded(IMAGES[:40], source="a").overlap(second) == 20
    assert recorded(IMAGES[:40], source="a").overlap(recorded(IMAGES[20:], source="b")) == 20
    named = recorded(IMAGES[20:], source="a", rows=np.arange(20, 60))
    assert recorded(IMAGES[:40], source="a", rows=np.arange(40)).overlap(named) == 20
    pairs = [(IMAGES[:40], LABELS[:40])]
    other_loss = od.record(NETWORK, pairs, COSTS, loss=lambda answer, label: answer[:, 0].sigmoid())
    assert other_loss.overlap(second) == 20


def test_batches_of_a_split_say_where_they_come_from() -> None:
    data = od.TensorData.of(
        "noise", (IMAGES[:50], LABELS[:50]), (IMAGES[50:], LABELS[50:]), fit=0.4, certify=0.2, seed=0
    )
    batches = data.batches("fit", 6)
    assert isinstance(batches, Batches)
    fit = od.record(NETWORK, batches, COSTS)
    np.testing.assert_array_equal(fit.rows, data.splits["fit"].rows)
    rest = data.batches("fit", 6)
    next(rest)
    np.testing.assert_array_equal(od.record(NETWORK, rest, COSTS).rows, data.splits["fit"].rows[6:])
    rows = np.concatenate([split.rows for split in data.splits.values()])
    assert sorted(rows) == list(range(60))
    assert len({split.source for split in data.splits.values()}) == 1
    assert fit.overlap(recorded(IMAGES)) == len(fit)


def test_a_trace_made_by_hand_is_known_by_what_was_given(tmp_path: Path) -> None:
    logits, labels = noisy_logits(30)
    costs = Costs.of(np.arange(1.0, 9.0))
    made = Trace.from_logits(logits, labels, costs)
    assert made.overlap(Trace.from_logits(logits[10:], labels[10:], costs)) == 20
    agreeing = Trace.from_logits(logits[10:], logits[10:, -1].argmax(-1), costs)  # another loss, the same samples
    assert made.overlap(agreeing) == 20
    plain = Trace(made.losses, made.observations, costs)
    assert plain.overlap(Trace(made.losses[5:], made.observations[5:], costs)) == 25
    rewards = Trace.from_rewards(made.losses, made.observations, costs)
    assert rewards.overlap(Trace.from_rewards(made.losses[5:], made.observations[5:], costs)) == 25
    own = replace(plain, identity=np.arange(30), source="")
    assert own.overlap(replace(plain, identity=np.arange(20, 50), source="")) == 10
    parts = made.split(0.5, 0.5, seed=0)
    assert Trace.concat(parts).overlap(agreeing) == 20
    assert parts[0].overlap(agreeing) + parts[1].overlap(agreeing) == 20
    made.save(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(Trace.load(tmp_path / "t.safetensors").identity, made.identity)
    with unchecked(), pytest.raises(InputError, match=r"identity has shape \(5,\) for 30 samples"):
        replace(plain, identity=np.arange(5))


def test_equal_content_in_another_row_of_the_source_is_a_duplicate_not_the_same_sample() -> None:
    twice = torch.cat([IMAGES[:30], IMAGES[:30]])
    first, second = (recorded(twice[i : i + 30], source="album", rows=np.arange(i, i + 30)) for i in (0, 30))
    assert first.overlap(second) == 0
    assert first.samples.fresh().all()
    assert not second.samples.fresh(first.samples).any()
    whole = recorded(twice, source="album")
    assert whole.samples.fresh().sum() == 30
    judged = evaluate(confidence(first, price=0.1), second)
    assert judged.duplicates == 30
    assert "on 30 samples, 30 of them duplicates of what fitted the rule" in str(judged)
    assert evaluate(confidence(first, price=0.1), recorded(IMAGES[30:])).duplicates == 0


@pytest.mark.parametrize("solve", [confidence, placed], ids=["threshold", "placed"])
def test_a_rule_is_judged_by_no_sample_that_fitted_it_not_even_one_and_not_after_loading(solve, tmp_path: Path) -> None:
    fit, test = noisy_trace(1_000).split(0.5, 0.5, seed=0)
    rule = solve(fit, price=0.1)
    rule.save(tmp_path)
    mixed = Trace.concat([test, fit.select(np.array([7]))])
    loaded = Rule.load(tmp_path)
    for one in (rule, loaded):
        evaluate(one, test)
        with pytest.raises(InputError, match=r"1 of these samples fitted the rule, .* by their rows in recording"):
            evaluate(one, mixed)
        again = Trace(mixed.losses, mixed.observations, mixed.costs, mixed.features, identity=mixed.identity)
        with pytest.raises(InputError, match=r"1 of these samples .* by their content; .* give both the source="):
            evaluate(one, again)
        with pytest.raises(InputError, match="1 of these samples fitted the rule"):
            dual(one, test.select(np.arange(400)), fit.select(np.arange(7, 8)), price=0.1)
    np.testing.assert_array_equal(loaded.origin.fitted_on.identity, fit.identity)


def test_rules_made_by_hand_were_fitted_on_nothing(tmp_path: Path) -> None:
    trace = noisy_trace(50)
    rule = Threshold(Origin(trace.costs), "confidence", torch.full((7,), 0.5))
    rule.save(tmp_path)
    assert len(Rule.load(tmp_path).origin.fitted_on) == 0
    assert evaluate(Rule.load(tmp_path), trace).duplicates == 0


def test_samples_are_one_row_and_one_identity_each() -> None:
    with unchecked(), pytest.raises(InputError, match=r"rows have shape \(2,\), identities \(3,\)"):
        Samples("s", np.arange(2), np.arange(3))
    some = Samples("s", np.arange(4), np.array([5, 6, 5, 7]))
    assert some.fresh().tolist() == [True, True, False, True]
    assert some.select(np.array([3, 0])).identity.tolist() == [7, 5]
    assert some.digest == some.select(np.array([2, 3, 1, 0])).digest != some.select(np.arange(3)).digest
