"""The run folder: every step is about one network on one carving of one data set, or is refused in one line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from optdepth import workflow
from optdepth.carving import Carving
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.export import bundle
from optdepth.runs import CERTIFIED, SPLITS, Run
from optdepth.stopping import methods
from optdepth.stopping.baselines import confidence
from optdepth.stopping.methods import SOLVED
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.trace import Trace

PRICE = 0.1


def draw(folder: Path, name: str, kind: str, seed: int) -> Path:
    """A small picture of a kind: cats are dark."""
    path = folder / kind / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    low, high = (0, 160) if kind == "cat" else (90, 255)
    Image.fromarray(np.random.default_rng(seed).integers(low, high, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


def train(run: Run, folder: Path, *, epochs: int = 1, seed: int = 0, **more: Any) -> None:
    network = {"depth": 8, "width": 2, "exits": "all", "heads": "linear"}
    given: dict[str, Any] = {
        "image_size": None,
        "start": None,
        "loss": "deep-supervision",
        "price": 0.0,
        "batch_size": 16,
    }
    workflow.train_run(
        run, data=str(folder), network=network, seed=seed, progress=False, epochs=epochs, **(given | more)
    )


def record(run: Run) -> None:
    workflow.record_run(run, measure="flops", batch=1, progress=False)


def solve(run: Run) -> None:
    workflow.solve_run(run, ["placed", "confidence"], price=PRICE, budget=None, progress=False)


def certify(run: Run) -> None:
    workflow.certify_run(run, risks={"loss": 0.9}, confidence=0.9)


def evaluate(run: Run) -> None:
    workflow.evaluate_run(run, clocked=[], repeats=1, progress=False)


def report(run: Run) -> None:
    workflow.report_run(run, price=PRICE, command="optdepth report")


def export(run: Run) -> None:
    workflow.export_run(run, rule="confidence", out=run.folder / "bundle", progress=False)


STEPS: dict[str, Callable[[Run], None]] = {
    "record": record,
    "solve": solve,
    "certify": certify,
    "evaluate": evaluate,
    "report": report,
    "export": export,
}
READS_DATA = ("record", "evaluate", "report", "export")
READS_TRACES = ("solve", "certify", "evaluate", "report", "export")
READS_RULES = ("evaluate", "export")


def quick(patch: pytest.MonkeyPatch, cache: Path) -> None:
    """What solves, draws and exports takes long, and is not what these tests are about."""
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    for name in (SOLVED, "snell", "lookahead"):
        patch.setitem(methods._METHODS, name, replace(methods.METHODS[name], solve=confidence))
    patch.setattr(workflow, "write_report", lambda *args, **kwargs: None)
    patch.setattr(bundle, "export", lambda *args, **kwargs: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and a run on them that has gone the whole way; tests copy it."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, root / "cache")
        for kind in ("cat", "dog"):
            for i in range(130):
                draw(root / "images", f"{i:03}", kind, seed=i + 100 * (kind == "dog"))
        run = Run(root / "run")
        with patch.context() as inside:
            inside.chdir(root)  # the run names its data `images`, wherever its copy lies
            train(run, Path("images"))
            for step in (record, solve, certify, evaluate):
                step(run)
    return root


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    quick(monkeypatch, tmp_path / "cache")
    for name in ("images", "run"):
        shutil.copytree(finished / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return Run(tmp_path / "run")


def refused(step: Callable[[], None], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        step()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def path_of(run: Run, split: str) -> Path:
    """The file of the split's first image."""
    return Path(run.data().splits[split]._table[0]["image"]["path"])


def latency(run: Run) -> None:
    """Records as `--costs latency` does, with times that no clock has a part in."""
    traces = run.traces()
    times = Costs.of([1.0, 2.0, 2.5], 0.1, unit="ms").relative()
    run.record({split: replace(trace, costs=times) for split, trace in traces.items()})


def test_a_whole_run_goes_on_as_often_as_wanted(run: Run) -> None:
    for step in STEPS.values():
        step(run)
    before = run.traces()
    record(run)
    for split, trace in run.traces().items():
        np.testing.assert_array_equal(trace.losses, before[split].losses)
        np.testing.assert_array_equal(trace.identity, before[split].identity)


@pytest.mark.parametrize("split", ["train", *SPLITS])
def test_one_image_less_is_refused_by_every_step_that_reads_images(run: Run, split: str) -> None:
    path = path_of(run, split)
    content = path.read_bytes()
    path.unlink()
    said = (f"images no longer holds the samples that the network was trained with: 1 of the {split} split missing",)
    for name in READS_DATA if split == "test" else ("record",):
        refused(lambda name=name: STEPS[name](run), *said, "put back", "optdepth train --data images --out NEW")
    refused(lambda: train(run, Path("images")), *said)
    path.write_bytes(content)
    record(run)


def test_images_that_are_new_or_of_another_class_are_refused(run: Run) -> None:
    path = draw(Path("images"), "more", "cat", seed=999)
    refused(lambda: record(run), "trained with: 1 new;")
    path.unlink()
    moved = path_of(run, "fit")
    moved.rename(moved.parent.parent / ("dog" if moved.parent.name == "cat" else "cat") / "moved.png")
    refused(lambda: record(run), "trained with: 1 of the fit split missing, 1 new;")
    new = Run(run.folder.parent / "new")  # the other way out
    train(new, Path("images"))
    record(new)


def test_other_names_and_another_order_are_the_same_samples(run: Run) -> None:
    before, fit = run.traces(), run.data().splits["fit"].labels
    for path in sorted(Path("images").glob("*/*.png")):
        path.rename(path.with_name(f"{999 - int(path.stem)}-again.png"))
    np.testing.assert_array_equal(run.data().splits["fit"].labels, fit)
    for step in STEPS.values():
        step(run)
    for split, trace in run.traces().items():
        np.testing.assert_array_equal(trace.identity, before[split].identity)
        np.testing.assert_array_equal(trace.rows, before[split].rows)


@pytest.mark.slow
def test_a_network_trained_anew_needs_new_traces_and_new_rules(run: Run) -> None:
    for name in ("checkpoint.safetensors", "training.json"):
        (run.folder / name).unlink()
    train(run, Path("images"), epochs=2)
    for name in READS_TRACES:
        refused(lambda name=name: STEPS[name](run), "trace is of network", "now holds", "run optdepth record")
    record(run)
    for name in READS_RULES:
        refused(lambda name=name: STEPS[name](run), "was solved for network")
    refused(lambda: report(run), "evaluation.json has network", "run optdepth evaluate")
    for name in ("solve", "certify", "evaluate", "report", "export"):
        STEPS[name](run)


def test_rules_solved_at_one_unit_are_not_judged_at_another(run: Run) -> None:
    latency(run)
    refused(lambda: report(run), "evaluation.json has unit full passes of", "FLOPs", "ms", "run optdepth evaluate")
    for name in READS_RULES:
        refused(lambda name=name: STEPS[name](run), "was solved at costs in full passes of", "FLOPs", "2.6 ms")
    workflow.solve_run(run, ["placed", "confidence"], price=PRICE, budget=None, progress=False)
    said = "rule 'certified' was solved at costs in full passes of"
    refused(lambda: evaluate(run), said, f"run optdepth certify {run.folder}, or delete")
    certify(run)
    for name in ("evaluate", "report", "export"):
        STEPS[name](run)


def test_a_budget_that_leaves_no_price_to_report_at_is_said_so(run: Run) -> None:
    """As much as any rule takes: the rule is that at price 0, and the page is about a price."""
    most = float(run.traces()["fit"].costs.paid().max())
    workflow.solve_run(run, ["placed"], price=None, budget=most, progress=False)
    refused(
        lambda: workflow.report_run(run, price=None, command=""),
        "the rule 'placed'",
        "keeps within its budget at price 0, which is no price for depth: solve it for a smaller budget or at a price",
    )
    refused(
        lambda: workflow.solve_run(run, ["placed"], price=None, budget=2 * most, progress=False),
        "is more than any rule",
    )


def test_recording_killed_midway_leaves_the_traces_as_they_were(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path.read_bytes() for path in (run.folder / "traces").iterdir()}
    assert set(files) == {f"{split}.safetensors" for split in SPLITS}
    save = Trace.save

    def killed(trace: Trace, path: Path) -> None:
        if path.stem == "certify":
            raise KeyboardInterrupt
        save(trace, path)

    with monkeypatch.context() as patch:
        patch.setattr(Trace, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            latency(run)
    assert {path.name: path.read_bytes() for path in (run.folder / "traces").iterdir()} == files
    evaluate(run)
    latency(run)
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".traces")]
    assert "ms" in run.traces()["test"].costs.unit


def test_traces_that_do_not_belong_together_are_refused(run: Run) -> None:
    traces = run.traces()
    paths = {split: run.folder / "traces" / f"{split}.safetensors" for split in SPLITS}
    replace(traces["certify"], costs=Costs.of([1.0, 2.0, 2.5], unit="ms")).save(paths["certify"])
    for name in READS_TRACES:
        refused(lambda name=name: STEPS[name](run), "costs of the certify trace are in ms", "run optdepth record")
    traces["test"].save(paths["certify"])
    refused(lambda: solve(run), "the certify trace is not of the certify split", "run optdepth record")
    paths["certify"].unlink()
    refused(lambda: solve(run), "no such file", "record")
    record(run)
    solve(run)


def test_rules_fitted_on_other_samples_are_refused(run: Run) -> None:
    test = run.traces()["test"]
    confidence(test, price=PRICE).save(run.folder / "rules" / "confidence")
    said = ("rule 'confidence' was not fitted on the fit split", "optdepth solve", "--price 0.1 --method confidence")
    for name in READS_RULES:
        refused(lambda name=name: STEPS[name](run), *said)
    FixedDepth(Origin(test.costs), 0).save(run.folder / "rules" / "confidence")
    refused(lambda: evaluate(run), "rule 'confidence' names no network", f"holds {test.network}", "optdepth solve")
    FixedDepth(Origin(test.costs, test.network), 0).save(run.folder / "rules" / "confidence")  # fitted on nothing
    evaluate(run)


def test_a_run_from_before_splits_were_written_down_says_how_to_start(run: Run) -> None:
    (run.folder / "splits.safetensors").unlink()
    for name in STEPS:
        refused(lambda name=name: STEPS[name](run), "splits.safetensors", "optdepth train --out NEW")
    settings = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps(settings | {"version": 1}))
    refused(lambda: record(run), "version 1", "optdepth train --out NEW")


def test_images_that_the_folder_holds_twice_are_left_out_of_the_certificate_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, tmp_path / "cache")
    for kind in ("cat", "dog"):
        for i in range(130):
            draw(tmp_path / "images", f"{i:03}", kind, seed=i % 90 + 100 * (kind == "dog"))
    run = Run(tmp_path / "run")
    train(run, tmp_path / "images")
    record(run)
    traces = run.traces()
    assert traces["fit"].overlap(traces["certify"]) == 0
    fresh = traces["certify"].samples.fresh(traces["fit"].samples)
    assert 0 < fresh.sum() < len(fresh)
    found = workflow.certify_run(run, risks={"loss": 0.9}, confidence=0.9)
    assert (found.samples, found.duplicates) == (fresh.sum(), (~fresh).sum())
    assert f"on {found.samples} samples ({found.duplicates} duplicates left out)" in str(found)
    assert (run.folder / "rules" / CERTIFIED).is_dir()
    evaluate(run)


def test_a_carving_finds_its_samples_wherever_they_went(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    digests = random.integers(-(2**63), 2**63 - 1, 20, dtype=np.int64)
    digests[[3, 11, 12]] = digests[5]  # the data hold one sample four times
    rows = dict(zip(("train", *SPLITS), np.split(random.permutation(20), [8, 12, 15]), strict=True))
    carving = Carving("s", rows, {split: digests[at] for split, at in rows.items()}, (0.5,), (0.2,))
    carving.save(tmp_path / "splits.safetensors")
    carving = Carving.load(tmp_path / "splits.safetensors", make_it="")
    for split, at in carving.places(digests, "d").items():
        np.testing.assert_array_equal(at, rows[split])
    order = random.permutation(20)
    found = carving.places(digests[order], "d")
    for split, at in found.items():
        np.testing.assert_array_equal(digests[order][at], digests[rows[split]])
    assert sorted(np.concatenate(list(found.values()))) == list(range(20))
    refused(lambda: carving.places(np.delete(digests, 12), "d") and None, "d no longer holds", "1 of the", "missing;")
    refused(lambda: carving.places(np.append(digests, digests[5]), "d") and None, "with: 1 new;")
