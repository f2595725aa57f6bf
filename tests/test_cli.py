"""The command line as a stranger uses it: the whole way on real data, and every mistake one line and status 2."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from optdepth.cli import main
from optdepth.export.runtime import Runtime
from optdepth.networks import load_network
from optdepth.runs import Run
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.evaluate import evaluate as judged
from optdepth.stopping.placed import Placed
from optdepth.stopping.placement import keep
from optdepth.stopping.rule import Origin
from settings import widest_gap
from stamped import restamp_tensors

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `optdepth ARGS`; gives its exit status, stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["optdepth", *map(str, args)])
        try:
            main()
            status = 0
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a small trained network, recorded; tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    patch = pytest.MonkeyPatch()
    for args in (["train", "--depth", "8", "--epochs", "6", "--out", str(folder), "--json"], ["record", str(folder)]):
        patch.setattr(sys, "argv", ["optdepth", *args])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
    patch.undo()
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def refused(outcome: tuple[int, str, str], *words: str) -> None:
    """Exit status 2, nothing on stdout, one line on stderr with the words."""
    status, out, err = outcome
    assert status == 2, (status, out, err)
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


def test_the_steps_share_files_and_end_in_a_report(cli: Cli, run: Path) -> None:
    assert cli("solve", run, "--price", 0.1)[0] == 0
    status, out, _ = cli("evaluate", run, "--clock", "32", "--repeats", 1, "--json")
    assert status == 0
    result = json.loads(out)
    rows = {row["method"]: row for row in result["rows"]}
    assert {"full network", "snell", "placed", "lookahead", "confidence", "patience per exit"} <= set(rows)
    assert rows["full network"]["accuracy"] > 0.6
    assert rows["snell"]["cost"] < 1
    assert all(row.get("engine exits unlike the trace's", 0) <= 1 for row in rows.values())
    assert {row["batch"] for row in result["clock"]} == {32}
    status, out, _ = cli("report", run)
    assert status == 0
    page = (run / "report.html").read_text()
    assert "optdepth solve" in page
    assert json.loads((run / "run.json").read_text())["commands"][-1].startswith("optdepth report")


def test_json_goes_alone_to_stdout(cli: Cli, run: Path) -> None:
    for args in (("record", run), ("solve", run, "--budget", 0.7, "--method", "snell")):
        status, out, _ = cli(*args, "--json")
        assert status == 0
        json.loads(out)


def test_export_writes_a_bundle_that_is_served(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert cli("solve", run, "--price", 0.1, "--method", "confidence")[0] == 0
    bundle = tmp_path / "bundle"
    status, out, err = cli("export", run, "--rule", "confidence", "--out", bundle, "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert result["bytes"] == sum(path.stat().st_size for path in bundle.iterdir())
    assert (result["folder"], result["graphs"], result["samples"]) == (str(bundle), 3, 64)
    assert result["takes"] == "float32 (n, 1, 8, 8)"
    images = np.concatenate([batch.numpy() for batch, _ in Run(run).data().batches("test")])
    found, rule = Runtime(bundle)(images), Run(run).rules()["confidence"]
    unlike = found.exit != rule.stopped_at(Run(run).traces()["test"])
    assert unlike.sum() <= 1  # a score at the threshold, rounded otherwise
    assert json.loads((run / "run.json").read_text())["commands"][-1].startswith("optdepth export")
    refused(cli("export", run, "--rule", "magic", "--out", bundle), "no rule 'magic'", "confidence")
    refused(cli("export", run, "--rule", "confidence", "--out", run), "something else than a bundle")
    assert len(Runtime(bundle).graphs) == 3


def test_the_rule_exported_unless_told_otherwise_looks_only_where_it_pays(cli: Cli, run: Path, tmp_path: Path) -> None:
    refused(cli("export", run, "--out", tmp_path / "bundle"), "no rules in", "optdepth solve")
    rule = beyond_the_first_exit(Run(run))
    rule.save(run / "rules" / "placed")
    assert cli("export", run, "--out", tmp_path / "bundle")[0] == 0
    served = Runtime(tmp_path / "bundle")
    assert [graph.exit for graph in served.graphs] == [1, 2]
    images = np.concatenate([batch.numpy() for batch, _ in Run(run).data().batches("test")])
    assert np.array_equal(served(images).exit, rule.stopped_at(Run(run).traces()["test"]))


def beyond_the_first_exit(run: Run) -> Placed:
    """A rule as `placed` finds them, which passes the first exit by and is near a tie for no image."""
    traces, exits = run.traces(), (1, 2)
    fit = traces["fit"]
    margins = [torch.from_numpy(traces[split].columns(["margin"])[:, 1, 0]) for split in ("certify", "test")]
    inner = Threshold(Origin.of(keep(fit, exits)), "margin", torch.tensor([widest_gap(torch.cat(margins))]))
    return Placed(Origin.of(fit), inner, exits)


def test_a_certified_rule_is_a_rule_of_the_run(cli: Cli, run: Path) -> None:
    status, out, err = cli("certify", run, "--risk", 0.2, "--confidence", 0.9, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["certified"]
    assert found["gained"]
    assert [(each["measure"], each["risk"]) for each in found["promises"]] == [("excess", 0.2)]
    assert found["short"] == []
    assert found["cost"] < found["full cost"]
    here = Run(run)
    assert judged(here.rules()["certified"], here.traces()["certify"]).cost == pytest.approx(found["cost"])
    out = cli("certify", run, "--risk", 0.01, "--confidence", 0.995)[1]
    assert "with 99.5% confidence the loss above" in out
    assert "and nothing is gained" in out
    assert "samples can show a risk of" in out
    found = json.loads(cli("certify", run, "--risk", 0.001, "--disagreement", 0.002, "--json")[1])
    assert found["certified"]
    assert not found["gained"]
    assert [each["measure"] for each in found["promises"]] == ["excess", "disagreement"]
    assert {each["measure"] for each in found["short"]} == {"excess", "disagreement"}
    assert found["short"][1]["takes"] == 1500
    status, out, _ = cli("evaluate", run, "--clock", "", "--json")
    assert status == 0
    assert "certified" in {row["method"] for row in json.loads(out)["rows"]}


def test_the_same_seed_gives_the_same_result(cli: Cli, run: Path) -> None:
    found = []
    for _ in range(2):
        cli("solve", run, "--price", 0.1, "--method", "snell")
        found.append((run / "rules" / "snell" / "rule.safetensors").read_bytes())
    assert found[0] == found[1]


def test_interrupted_training_says_how_to_go_on_and_goes_on(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optdepth.training import loop

    save, args = loop._Run.save, ("train", "--depth", 8, "--epochs", 3, "--out", tmp_path / "run", "--json")

    def interrupted(run: loop._Run, done: list[loop.Epoch]) -> None:
        save(run, done)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "save", interrupted)
        status, _, err = cli(*args)
    assert status == 130
    assert "goes on from the last full epoch" in err
    assert json.loads(cli(*args)[1])["epochs"] == 3


def test_other_heads_on_a_trained_trunk_leave_its_last_exit_as_it_was(cli: Cli, run: Path, tmp_path: Path) -> None:
    given = ["train", "--depth", "8", "--epochs", "2", "--out", tmp_path / "heads", "--start", run, "--json"]
    more = ["--heads", "linear", "--backbone", "frozen", "--loss", "last-exit+distillation"]
    status, _, err = cli(*given, *more)
    assert status == 0, err
    before, after = (load_network(folder / "network") for folder in (run, tmp_path / "heads"))
    assert torch.equal(before(torch.ones(1, 1, 8, 8))[-1], after(torch.ones(1, 1, 8, 8))[-1])
    assert after.heads[0].linear.in_features < before.heads[0].linear.in_features
    given[given.index("8")] = "14"
    refused(cli(*given, *more), "6", "3", "equal depths")
    given[given.index(run)] = tmp_path / "nowhere"
    refused(cli(*given, *more), "nowhere")


def test_help_teaches_every_command(cli: Cli) -> None:
    commands = ("demo", "train", "record", "solve", "certify", "evaluate", "report", "export", "continuous")
    for command in ([], *([name] for name in commands)):
        status, out, _ = cli(*command, "--help")
        assert status == 0
        assert "Usage" in out


def test_a_network_trained_further_refuses_its_old_rules(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert cli("solve", run, "--price", 0.1, "--method", "snell")[0] == 0
    assert cli("train", "--depth", 8, "--epochs", 1, "--seed", 1, "--out", tmp_path / "other", "--json")[0] == 0
    assert cli("record", tmp_path / "other")[0] == 0
    shutil.copytree(run / "rules", tmp_path / "other" / "rules")
    refused(cli("evaluate", tmp_path / "other"), "was solved for network")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["solve", "RUN", "--price", "-1"], ["price is -1"]),
        (["solve", "RUN"], ["price", "budget"]),
        (["solve", "RUN", "--price", "0.1", "--budget", "0.5"], ["price", "budget"]),
        (["solve", "RUN", "--budget", "0.001"], ["no rule meets", "the nearest is"]),
        (["solve", "RUN", "--budget", "5"], ["a budget of 5 full passes", "more than any rule takes", "less than"]),
        (["solve", "RUN", "--price", "0.1", "--method", "magic"], ["magic", "snell"]),
        (["certify", "RUN", "--risk", "2"], ["risk is 2"]),
        (["certify", "RUN", "--confidence", "95"], ["confidence is 95", "0.95 for 95%"]),
        (["certify", "RUN/none"], ["no such file", "optdepth train"]),
        (["evaluate", "RUN"], ["no rules", "optdepth solve"]),
        (["evaluate", "RUN/none"], ["no such file", "optdepth train"]),
        (["export", "RUN", "--out", "NEW"], ["no rules", "optdepth solve"]),
        (["export", "RUN/none", "--out", "NEW"], ["no such file", "optdepth train"]),
        (["record", "nowhere"], ["no such file", "optdepth train"]),
        (["train", "--out", "RUN", "--data", "/none/such"], ["data", "RUN"]),
        (["train", "--out", "NEW", "--data", "/none/such"], ["no such folder: /none/such"]),
        (["train", "--out", "NEW", "--depth", "9"], ["depth 9", "8 and 14"]),
        (["train", "--out", "NEW", "--loss", "none"], ["none", "light-supervision"]),
        (["train", "--out", "NEW", "--exits", "stage9.block1"], ["stage9.block1", "stage1.block1"]),
        (["train", "--out", "NEW", "--loss", "stopping-cost", "--price", "-2"], ["price -2"]),
        (["train", "--out", "RUN/run.json"], ["run.json is a file: give a folder with --out"]),
        (["train", "--out", "NEW", "--seed", "-1"], ["--seed", "-1", "--help"]),
        (["train"], ["Missing option", "--out", "--help"]),
        (["trian"], ["No such command 'trian'", "--help"]),
        (["solve", "RUN", "--price", "much"], ["--price", "much", "--help"]),
        (["continuous", "chess", "--out", "NEW"], ["no problem 'chess'", "digits or all"]),
        (["continuous", "deterministic-flow", "--start", "9", "--out", "NEW"], ["does not hold", "larger box"]),
        (["continuous", "deterministic-flow", "--price", "0", "--out", "NEW"], ["price is 0", "may never end"]),
        (["continuous", "flow-in-the-plane", "--start", "1", "--out", "NEW"], ["give 2, a coordinate for each axis"]),
        (["continuous", "american-put", "--price", "1", "--out", "NEW"], ["no price to set"]),
        (["continuous", "digits", "--start", "1", "--out", "NEW"], ["--start is for one of"]),
        (["continuous", "digits", "--price", "-1", "--out", "NEW"], ["price is -1"]),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    cli: Cli, run: Path, tmp_path: Path, args: list[str], words: list[str]
) -> None:
    filled = [arg.replace("RUN", str(run)).replace("NEW", str(tmp_path / "new")) for arg in args]
    refused(cli(*filled), *(word.replace("RUN", str(run)) for word in words))


def test_a_mistake_leaves_no_trace_in_the_run(cli: Cli, run: Path, tmp_path: Path) -> None:
    refused(cli("solve", run, "--price", -1), "price is -1")
    assert "--price" not in (run / "run.json").read_text()
    for mistake in (("--data", "/none/such"), ("--exits", "nowhere"), ("--depth", 9), ("--loss", "none")):
        refused(cli("train", *mistake, "--out", tmp_path / "new"), str(mistake[1]))
        assert not (tmp_path / "new").exists()


def test_truncated_files_say_which_and_what_to_do(cli: Cli, run: Path) -> None:
    for file, command in (
        ("traces/fit.safetensors", ["solve", run, "--price", 0.1]),
        ("network/weights.safetensors", ["record", run]),
        ("checkpoint.safetensors", ["train", "--depth", 8, "--epochs", 6, "--out", run, "--json"]),
    ):
        whole = (run / file).read_bytes()
        (run / file).write_bytes(whole[: len(whole) // 2])
        refused(cli(*command), file.split("/")[-1])
        (run / file).write_bytes(whole)


def pictures(folder: Path, a_class: int) -> None:
    """So many noisy JPEGs of each of two classes."""
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(a_class):
            pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i:03}.jpg")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_unreadable_image_is_named_before_the_training(cli: Cli, tmp_path: Path, split: str) -> None:
    """Wherever it is: a truncated one still says its size."""
    pictures(tmp_path / "images" / "train", 500)
    pictures(tmp_path / "images" / "test", 10)
    path = tmp_path / "images" / split / "dog" / "007.jpg"
    path.write_bytes(path.read_bytes()[:-80])
    outcome = cli("train", "--data", tmp_path / "images", "--depth", 8, "--epochs", 1, "--out", tmp_path / "run")
    refused(outcome, "007.jpg", "unreadable image")
    assert not (tmp_path / "run").exists()


def test_too_few_images_to_solve_on_are_refused_before_the_training(cli: Cli, tmp_path: Path) -> None:
    pictures(tmp_path / "images", 30)
    outcome = cli("train", "--data", tmp_path / "images", "--depth", 8, "--epochs", 1, "--out", tmp_path / "run")
    refused(outcome, "leaves 12 images to fit a rule on", "50 is the least: give 5 times as many images")
    assert not (tmp_path / "run").exists()


def test_a_trace_with_nan_is_refused(cli: Cli, run: Path) -> None:
    path = run / "traces" / "fit.safetensors"
    restamp_tensors(path, lambda tensors, _: tensors["losses"][5, 1].fill_(torch.nan))
    refused(cli("solve", run, "--price", 0.1), "loss of sample 5 at exit 1 is nan")
