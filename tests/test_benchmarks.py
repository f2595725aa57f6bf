"""The study of L_depth in its short form: the same code on the digits, and it goes on where it stopped."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from optdepth.costs import flops
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.networks import StagedNetwork, load_network, resnet
from optdepth.record import record
from optdepth.stopping.methods import METHODS, SOLVED
from optdepth.trace import Trace
from optdepth.training.depth_loss import Seen

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import depth_loss

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield depth_loss
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("repeated")
def test_the_study_judges_arms_and_resumes(study, tmp_path: Path) -> None:
    from figures import load

    runs, out = tmp_path / "runs", tmp_path / "out"
    given = ["--short", "--runs", str(runs), "--out", str(out)]
    study.main([*given, "--arms", "plain+taught,cascade-8"])
    folder = out / "digits-short"
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    arms = ("taught-0", "plain", "plain+taught", "static-8", "cascade-8")
    assert set(files) == {f"{arm}-0.json" for arm in arms}
    plain, taught = (load(folder / f"{arm}-0.json") for arm in ("plain", "plain+taught"))
    # A frozen trunk leaves the last exit as it was, to the bit; early exits and costs are there to judge.
    assert taught["accuracy"]["test"][-1] == plain["accuracy"]["test"][-1]
    assert taught["costs"]["reach"][-1] + taught["costs"]["look"][-1] == pytest.approx(1)
    kept = load_network(runs / "digits-short" / "plain+taught-0" / "network")
    assert kept.heads[0].look is not None
    assert len(taught["sweep"]) == 15
    for found in taught["sweep"]:
        test = found["methods"][SOLVED]["test"]
        assert test["value"] == pytest.approx(test["loss"] + found["price"] * test["cost"])
        assert sum(test["shares"]) == pytest.approx(1, abs=1e-3)
        # The bound holds of the same rule: with the control variate its value differs by noise alone.
        assert (
            found["gap"]["bound"] <= found["gap"]["value"] == pytest.approx(test["value"], abs=3 * test["value_error"])
        )
    # A member of a cascade that is not looked at costs nothing: the last one alone is the plain network.
    cascade = load(folder / "cascade-8-0.json")
    assert cascade["costs"]["reach"][-1] + cascade["costs"]["look"][-1] == pytest.approx(1)
    (folder / "plain+taught-0.json").unlink()
    study.main([*given, "--arms", "plain+taught"])
    again = load(folder / "plain+taught-0.json")
    assert again["sweep"] == taught["sweep"]
    assert (folder / "plain-0.json").read_bytes() == files["plain-0.json"]
    trained_again_for_another(study, given, folder, runs / "digits-short")
    judged_again_without_training(study, given, folder, runs / "digits-short")
    tables = (folder / "tables.md").read_text()
    assert "| plain+taught |" in tables
    assert "## Value with recall" in tables
    assert "less the dual bound" in tables
    assert {path.name for path in folder.glob("*.svg")} == {"frontier.svg", "exits.svg"}


def trained_again_for_another(study, given: list[str], folder: Path, runs: Path) -> None:
    """As in a fresh clone: figures are there, weights are not; an arm that starts from them has them trained again."""
    weights = runs / "plain-0" / "network" / "weights.safetensors"
    before, figures = weights.read_bytes(), (folder / "plain-0.json").read_bytes()
    for arm in ("taught-0", "plain", "plain+taught"):
        shutil.rmtree(runs / f"{arm}-0")
    (folder / "plain+taught-0.json").unlink()
    study.main([*given, "--arms", "plain+taught"])
    assert weights.read_bytes() == before
    assert (folder / "plain-0.json").read_bytes() == figures


def judged_again_without_training(study, given: list[str], folder: Path, runs: Path) -> None:
    """Damaged traces are recorded anew, the word on the training stays, figures without weights are left alone."""
    from figures import load, save

    path = folder / "plain+taught-0.json"
    before = load(path)
    save(path, {**before, "commit": "trained", "ahead": []})
    (folder / "static-8-0.json").write_text((folder / "static-8-0.json").read_text() + "\n")
    untouched = (folder / "static-8-0.json").read_bytes()
    (runs / "static-8-0" / "training.json").unlink()
    trace = runs / "plain+taught-0" / "traces" / "fit.safetensors"
    recorded = trace.read_bytes()
    trace.write_bytes(b"of another version")
    trained = (runs / "plain+taught-0" / "network" / "weights.safetensors").stat().st_mtime_ns
    study.main([*given, "--judge"])
    after = load(path)
    assert (after["commit"], after["judged"]["commit"]) == ("trained", before["commit"])
    assert {key: after[key] for key in before} == {**before, "commit": "trained"}
    assert trace.read_bytes() == recorded
    assert (runs / "plain+taught-0" / "network" / "weights.safetensors").stat().st_mtime_ns == trained
    assert (folder / "static-8-0.json").read_bytes() == untouched


def test_a_screening_is_kept_apart(study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(study, "finish", lambda of, arm, seed: begun.append((of, arm, seed)))
    monkeypatch.setattr(study, "write_pages", lambda folder: None)
    study.main(["--screen", "--data", "some/where", "--arms", "light", "--seeds", "3", "--out", str(tmp_path)])
    ((of, arm, seed),) = begun
    assert (arm, seed, of.epochs) == ("light", 3, (4, 1, 1))
    assert of.figures(arm, seed) == tmp_path / "where-screen" / "light-3.json"


def test_a_deeper_and_longer_study_is_kept_apart(study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(study, "finish", lambda of, arm, seed: begun.append(of))
    monkeypatch.setattr(study, "write_pages", lambda folder: None)
    given = ["--data", "some/where", "--arms", "light", "--out", str(tmp_path)]
    study.main([*given, "--layers", "56", "--epochs", "30"])
    study.main([*given, "--layers", "20", "--epochs", "15"])  # what it is without being told
    assert [(of.depth, of.epochs, of.out.name) for of in begun] == [
        (56, (30, 2, 1), "where-56-30"),
        (20, (15, 2, 1), "where"),
    ]


def test_an_unknown_arm(study, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no arm 'best'"):
        study.main(["--short", "--out", str(tmp_path), "--arms", "best"])


@pytest.mark.parametrize(("option", "missing"), [("--pages", "no figures in"), ("--judge", "no weights of light in")])
def test_nothing_to_work_on(study, tmp_path: Path, option: str, missing: str) -> None:
    with pytest.raises(InputError, match=missing):
        study.main(["--short", option, "--arms", "light", "--out", str(tmp_path), "--runs", str(tmp_path)])


def test_a_network_run_before_another_is_one_look(study) -> None:
    small, large = Costs.of([1.0, 2.0], [0.5, 0.25]), Costs.of([3.0, 4.0], [0.1, 0.2])
    costs = study.in_turn([small, large])
    assert costs.full == large.full
    assert costs.paid([False, True, True]).tolist() == [small.full, *large.paid()]
    assert costs.paid() == pytest.approx([small.full, *(small.full + large.paid())])


def test_exits_looked_at_are_recorded_as_by_a_network_with_those_alone(study) -> None:
    network = resnet(14, classes=10, channels=1, width=4, heads="conv", seed=0)
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 1, 8, 8, generator=random), torch.randint(10, (64,), generator=random)
    exits = [0, 3, 5]

    def recorded(one: StagedNetwork) -> Trace:
        return record(one, [(images, labels)], flops(one, images))

    every = torch.stack(network.eval()(images), dim=1).detach()
    found = study.Recording(recorded(network), every, labels.numpy()).looks(exits)
    there = recorded(network.keep([network.exits[k].name for k in exits]))
    assert np.array_equal(found.losses, there.losses)
    # Their history as well: an exit not looked at neither breaks a streak nor makes it longer.
    assert np.allclose(found.observations, there.columns(found.features), atol=1e-6)
    assert found.costs.paid() == pytest.approx(there.costs.paid())


@pytest.mark.parametrize("noise", [(1.0, 0.4, 0.1), (1.0, 1.0, 1.0)])
def test_recall_is_worth_something_where_exits_err_apart(study, noise: tuple[float, ...]) -> None:
    """Two classes; each exit hears the label in noise of its own, so that those before add to it unless it is sure."""
    from depth_loss_judge import at_price, recalled

    random, costs = np.random.default_rng(0), Costs.of([0.2, 0.6, 1.0])
    recorded = {}
    for split in ("fit", "certify", "test"):
        labels = random.integers(0, 2, 3000)
        heard = (2 * labels - 1)[:, None] + noise * random.normal(size=(3000, 3))
        logits = torch.tensor(np.stack([-heard, heard], axis=2))
        recorded[split] = study.Recording(Trace.from_logits(logits, labels, costs, source=split), logits, labels)
    found, _ = at_price(recorded, METHODS[SOLVED].solve(recorded["fit"].trace), 0.02)
    assert found["exits"][-1] == 2
    plain = found["methods"][SOLVED]["test"]["value"]
    if noise[0] == noise[-1]:
        every = recalled(recorded, [0, 1, 2], 0.02, ("margin",))
        assert every["windows"] == ((0, 0), (0, 1), (0, 2))
        assert every["test"]["value"] < plain - 0.03
    else:
        assert found["recalled"]["windows"] == tuple((k, k) for k in range(len(found["exits"])))
        assert found["recalled"]["test"]["value"] == plain


def test_every_arm_starts_from_arms_that_are_there(study) -> None:
    for arm in study.ARMS.values():
        assert set(arm.needs) <= set(study.ARMS)
        assert (arm.kind == "cascade") == bool(arm.members)


def test_every_arm_has_a_loss_for_nine_exits(study) -> None:
    seen = Seen(
        losses=torch.rand(4, 9, generator=torch.Generator().manual_seed(0)),
        costs=torch.linspace(0.1, 1, 9),
        price=0.3,
        halting=torch.full((4, 9), 0.5),
        residuals=(torch.ones(4),) * 9,
    )
    for arm in study.ARMS.values():
        assert torch.isfinite(arm.loss(seen)).all()


@pytest.fixture
def made_up(study):
    """Rules of a sweep on 400 made-up samples: the more they spend, the less they lose."""
    from depth_loss_bands import Swept

    random = np.random.default_rng(0)
    mean = np.array([0.7, 0.5, 0.35, 0.3])
    costs = np.clip(np.array([[0.1], [0.4], [0.7], [1.0]]) + 0.05 * random.standard_normal((4, 400)), 0, 1)
    return Swept((random.random((4, 400)) < mean[:, None]).astype(float), costs)


def test_bands_of_equal_rules_contain_zero_and_of_better_ones_do_not(made_up) -> None:
    from depth_loss_bands import Swept, ahead

    random = np.random.default_rng(1)
    alike = Swept(random.permuted(made_up.losses, axis=1), made_up.costs)
    better = Swept(made_up.losses - 0.1, made_up.costs)
    rivals = {"equal": made_up, "alike": alike, "worse": Swept(made_up.losses + 0.02, made_up.costs)}
    for row in ahead(made_up, rivals):
        assert row["ahead"]["equal"] == [0, 0, 0]
        _, low, high = row["ahead"]["alike"]
        assert low <= 0 <= high
        assert row["best"] in ("equal", "alike")
    for row in ahead(better, rivals):
        lead, low, high = row["ahead"]["equal"]
        assert (lead, low, high) == pytest.approx((0.1, 0.1, 0.1), abs=2e-5)
    for row in ahead(made_up, {"better": better}):
        assert row["ahead"]["better"][2] < 0


def test_bands_are_seeded_and_keep_to_what_is_reached(made_up) -> None:
    from depth_loss_bands import Swept, ahead

    random = np.random.default_rng(2)
    rival = {"rival": Swept(random.permuted(made_up.losses, axis=1), made_up.costs)}
    first = ahead(made_up, rival, seed=5)
    assert first == ahead(made_up, rival, seed=5)
    assert first != ahead(made_up, rival, seed=6)
    # The lead itself is on the samples, whatever is drawn.
    leads = [[row["ahead"]["rival"][0] for row in ahead(made_up, rival, seed=seed)] for seed in (5, 6)]
    assert leads[0] == leads[1]
    dear = Swept(made_up.losses[1:], made_up.costs[1:])
    assert [row["budget"] for row in ahead(dear, rival)] == [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_a_frontier_leaves_out_what_a_cheaper_rule_betters(study) -> None:
    from depth_loss_bands import falling

    costs, losses = falling(np.array([0.9, 0.2, 0.5, 0.5, 0.7]), np.array([0.1, 0.6, 0.4, 0.3, 0.35]))
    assert costs.tolist() == [0.2, 0.5, 0.9]
    assert losses.tolist() == [0.6, 0.3, 0.1]


def test_arms_are_chosen_on_the_seeds_that_most_of_them_have(study) -> None:
    """An arm with another seed alone is left out, however well it does there; an arm's further seed is not read.

    So is a deeper network: it is compared with the trainings of the study's, not chosen among them.
    """
    from depth_loss_rivals import choice

    def run(seed: int, value: float) -> dict[str, object]:
        found = {SOLVED: {split: {"value": value} for split in ("certify", "test")}}
        return {"seed": seed, "sweep": [{"price": 0.1, "methods": found}]}

    found = {"a": [run(0, 0.3), run(1, 0.1)], "b": [run(0, 0.2)], "c": [run(0, 0.4)], "lucky": [run(1, 0.01)]}
    found["glance-44"] = [run(0, 0.01)]
    assert choice(found) == {0.1: "b"}
    assert choice({arm: runs for arm, runs in found.items() if arm in ("a", "lucky")}) == {0.1: "lucky"}


def test_figures_are_kept_as_arrays_and_come_back_as_they_were(study, tmp_path: Path) -> None:
    from figures import load, save

    rows = [{"price": 0.1 * k, "of": {"test": {"cost": k, "shares": [0.5, 0.5]}, "none": {}}} for k in range(3)]
    held = {"sweep": rows, "unlike": [{"a": 1}, {"b": 2}], "nested": {"deep": [[1.5, None], ["x", True]]}, "empty": []}
    save(tmp_path / "figures.json", held)
    assert load(tmp_path / "figures.json") == held
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["sweep"]["columns"]["of > test > cost"] == [0, 1, 2]


def test_a_figure_says_what_made_it(study, monkeypatch: pytest.MonkeyPatch) -> None:
    from figures import made_by, provenance

    monkeypatch.setattr("sys.argv", ["benchmarks/any.py", "--data", "digits"])
    made = provenance("benchmarks/any.py", also=("nothing-of-that-name",))
    assert made["command"] == "python benchmarks/any.py --data digits"
    assert set(made) == {"command", "commit", "machine", "versions"}
    assert f"torch {torch.__version__}" in made_by(made)
    assert "nothing-of-that-name" not in made_by(made)


def test_every_benchmark_has_a_page_that_says_what_it_shows() -> None:
    index = (BENCHMARKS / "README.md").read_text()
    for folder in (path for path in (BENCHMARKS / "results").iterdir() if path.is_dir()):
        page = (folder / "README.md").read_text()
        assert f"(results/{folder.name})" in index
        assert f"python benchmarks/{folder.name}.py" in page
        assert (BENCHMARKS / f"{folder.name}.py").is_file()
        for linked in re.findall(r"\]\(([^)#]+)", page):
            assert (folder / linked).exists(), f"{folder.name}: {linked}"
