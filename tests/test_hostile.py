"""Files with a right checksum and nonsense in them, data that name what is not theirs, and full disks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from checker import unchecked
from optdepth.carving import Carving
from optdepth.cli import main
from optdepth.continuous.problems import american_put
from optdepth.data import load_data
from optdepth.errors import FileError, InputError
from optdepth.inference.engine import Engine
from optdepth.networks import load_network, looped, neural_ode
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.gain import GainRule
from optdepth.stopping.money import InTheMoney
from optdepth.stopping.placed import Placed
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.trace import Trace
from settings import Setting
from stamped import restamp_tensors


def refused(call: Callable[[], object], words: str) -> None:
    """An InputError of one line that says these words."""
    with unchecked(), pytest.raises(InputError) as error:
        call()
    assert words in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


def hostile(rule: Rule, folder: Path, words: str, change: Callable[[dict, dict], object]) -> None:
    rule.save(folder)
    path = folder / "rule.safetensors"
    restamp_tensors(path, change)
    refused(lambda: Rule.load(folder), words)
    refused(lambda: Rule.load(folder), str(path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"price": "x"}, "is damaged (price is 'x', not a finite number"),
        ({"price": -1}, "is damaged (price is -1, not a finite number or null at least 0); solve the rule again"),
        ({"network": ["a"]}, "network is ['a'], not a text"),
        ({"recall": [[0, "1"]]}, "recall[0][1] is '1', not a whole number"),
        ({"recall": [[0, 9]] * 3}, "recall at exit 0 is (0, 9)"),
        ({"source": None}, "source is None, not a text"),
        ({"costs": {"reach": [1, 2], "look": [0], "answer": [0, 0], "unit": "a"}}, "look has shape (1,)"),
        ({"costs": {"reach": [2, 1], "look": [0, 0], "answer": [0, 0], "unit": "a"}}, "reach falls"),
        ({"costs": {"reach": "much"}}, "reach is 'much', not a list"),
        ({"arguments": {"feature": "margin", "below": "no"}}, "below='no': give True"),
        ({"arguments": {"feature": ["margin"], "below": False}}, "give names"),
        ({"arguments": {"feature": "margin"}}, "below is missing, or is nothing of such a rule"),
        ({"arguments": {"feature": "margin", "below": False, "above": True}}, "unexpected keyword argument"),
        ({"arguments": {}}, "is damaged"),
    ],
)
def test_what_a_rule_says_is_checked(changes: dict[str, Any], words: str, setting: Setting, tmp_path: Path) -> None:
    hostile(setting.rules["margin"], tmp_path, words, lambda _, about: about.update(changes))


@pytest.mark.parametrize(
    ("name", "tensor", "made", "words"),
    [
        ("margin", "thresholds", lambda held: held.fill_(torch.nan), "thresholds holds NaN"),
        ("margin", "thresholds", lambda held: held.bfloat16(), "of type torch.bfloat16"),
        ("margin", "thresholds", lambda held: held.long(), "give floating numbers"),
        ("margin", "thresholds", lambda held: held[:-1], "thresholds for 3 exits"),
        ("additive", "0.weight", lambda held: held.fill_(torch.inf), "weight of a fitted function holds NaN, infinity"),
        ("additive", "1.weight", lambda held: held[:1], "weight of a Additive has shape (1, 1); it is (F, J)"),
        ("additive", "1.intercept", lambda held: held[None], "intercept of a Additive has shape (1,)"),
        ("hinged", "0.bias", lambda held: held[:1], "has shape (2,); it is (J)"),
        ("hinged", "fitted_on.rows", lambda held: held[:-1], "rows have shape (199,), identities (200,)"),
        ("hinged", "fitted_on.rows", lambda held: held.int(), "torch.int32 of shape (200,), not torch.int64"),
    ],
)
def test_the_numbers_of_a_rule_are_checked(
    name: str, tensor: str, made: Callable, words: str, setting: Setting, tmp_path: Path
) -> None:
    hostile(setting.rules[name], tmp_path, words, lambda held, _: held.update({tensor: made(held[tensor])}))


def test_rules_made_by_hand_are_checked_as_those_of_files(setting: Setting, tmp_path: Path) -> None:
    origin, cuts = Origin.of(setting.fit), torch.tensor([0.5, 0.5])
    gain = setting.rules["additive"]
    assert isinstance(gain, GainRule)
    few = replace(origin, costs=origin.costs.keep([0, 2]))
    inner = Threshold(few, "margin", cuts[:1])
    placed = Placed(origin, inner, [0, 2])
    for price in (float("nan"), -1.0, float("inf"), True):
        refused(lambda price=price: replace(origin, price=price), f"price is {price}; it is loss per unit of cost")
    for kept in ([-8], [0, 1, 1], [2, 0], [0.0, 2], [], [0, 3]):
        words = "give some of 0..2, rising, the last one among them"
        refused(lambda kept=kept: Placed(origin, inner, kept), words)
        hostile(placed, tmp_path, words, lambda _, about, kept=kept: about["arguments"].update(kept=kept))
    refused(lambda: Threshold(origin, "margin", torch.tensor([0.5, torch.nan])), "give floating numbers")
    refused(lambda: Threshold(origin, "margin", cuts, below="no"), "below='no'")
    refused(lambda: GainRule(origin, gain.features, gain.gains[:1]), "1 gains for 3 exits; one each but the last")
    refused(lambda: GainRule(origin, ("margin",), gain.gains), "a function of 3 features for margin")
    refused(lambda: InTheMoney(origin, Threshold(origin, "margin", cuts), "margin", ["no", True]), "give True or False")
    refused(lambda: FixedDepth(origin, True), "exit True is outside 0..2")


def test_a_trace_is_checked(setting: Setting, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for change, words in (
        (lambda held, _: held.update(losses=held["losses"].bfloat16()), "losses is torch.bfloat16 of shape"),
        (
            lambda held, _: held.update(rows=held["rows"][:-1]),
            "it holds 200 losses, 199 rows, 200 identity: one",
        ),
        (lambda held, _: held.pop("identity"), "lacks 'identity'; record the trace again"),
        (lambda held, _: held["observations"].fill_(torch.inf), "observation of sample 0 at exit 0 is inf"),
        (lambda _, about: about.update(features=7), "features is 7, not a list"),
        (lambda _, about: about.update(features=["a"]), "1 feature names"),
        (lambda _, about: about.update(unit=["a"]), "unit is ['a'], not a text"),
    ):
        setting.fit.save(path)
        restamp_tensors(path, change)
        refused(lambda: Trace.load(path), words)
        refused(lambda: Trace.load(path), str(path))


def test_splits_are_checked(tmp_path: Path) -> None:
    path, rows = tmp_path / "splits", np.arange(3)
    for change, words in (
        (lambda held, _: held.update({"rows.a": held["rows.a"] * 0}), "splits share a row"),
        (lambda held, _: held.update({"rows.a": held["rows.a"][:2]}), "splits need a digest for every row"),
        (lambda _, about: about.update(std=[0.0]), "give one of each a channel, std > 0"),
        (lambda _, about: about.update(splits=["b"]), "lacks 'rows.b'; train anew"),
    ):
        Carving("source", {"a": rows}, {"a": rows}, (0.5,), (0.5,)).save(path)
        restamp_tensors(path, change)
        refused(lambda: Carving.load(path, make_it="train anew"), words)


def test_steps_that_share_their_weights_have_a_limit(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"classes": 3, "channels": 1, "width": 2, "seed": 0}
    for network, size in ((looped(2, **sizes), "steps"), (neural_ode(2, method="euler", **sizes), "intervals")):
        network.save(tmp_path)
        for many in (100_000, 10**12):
            change = lambda _, about, size=size, many=many: about["config"].update({size: many})  # noqa: E731
            restamp_tensors(tmp_path / "weights.safetensors", change)
            refused(lambda: load_network(tmp_path), f"{size} {many}")
            refused(lambda: load_network(tmp_path), f"at most 10,000{' steps' * (size == 'steps')}")
    network = neural_ode(2, method="euler", **sizes)
    network.save(tmp_path)
    restamp_tensors(tmp_path / "weights.safetensors", lambda _, about: about["config"].pop("method"))
    refused(lambda: load_network(tmp_path), "'method' is missing, or is nothing of such a network")


def test_a_time_that_is_no_number_is_refused(setting: Setting) -> None:
    engine = Engine(setting.network, setting.rules["margin"])
    refused(lambda: engine(setting.inputs[:2], deadline=float("nan")), "deadline is NaN; give milliseconds from now")
    problem = american_put().problem
    for dates in ([float("nan")], [0.5, float("nan")]):
        refused(lambda dates=dates: replace(problem, dates=dates), "must be a list of increasing times")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, one folder a class."""
    random = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def table(folder: Path, path: str, image: bytes) -> str:
    """A folder with a table of 39 images and of a cell that names a file."""
    folder.mkdir()
    cells = [{"bytes": image, "path": None}] * 39 + [{"bytes": None, "path": path}]
    labels = [i % 2 for i in range(40)]
    parquet.write_table(pyarrow.table({"image": cells, "label": labels}), folder / "data.parquet")
    return str(folder)


def test_a_table_names_no_file_of_the_machine(images: Path, tmp_path: Path) -> None:
    image = (images / "class0" / "0.png").read_bytes()
    outside = images / "class0" / "0.png"
    back = tmp_path / "t3" / ".." / "images" / "class0" / "0.png"
    for i, path in enumerate((str(outside), "/dev/zero", "images/class0/0.png", str(back))):
        given = table(tmp_path / f"t{i}", path, image)
        refused(
            lambda given=given: load_data(given, seed=0), f"{given} names the file {path!r}, which is not in it; put"
        )
    (inside := tmp_path / "t4" / "a.png").parent.mkdir()
    inside.write_bytes(image)
    given = table(tmp_path / "t4" / "t5", str(inside), image)
    refused(lambda: load_data(given, seed=0), f"{given} names the file {str(inside)!r}")
    assert len(load_data(str(images), seed=0).splits["train"]) > 0  # whose cells name files of the folder itself


def test_a_pipe_is_not_waited_for(images: Path, tmp_path: Path) -> None:
    image = (images / "class0" / "0.png").read_bytes()
    pipe = tmp_path / "set" / "pipe.png"
    given = table(tmp_path / "set", str(pipe), image)
    os.mkfifo(pipe)
    refused(lambda: load_data(given, seed=0), f"({pipe}): unreadable image; replace or remove it")


@pytest.mark.parametrize("data_files", ["../images/*/*.png", "https://example.invalid/x.parquet", "/etc/*"])
def test_a_readme_sends_nobody_elsewhere(data_files: str, images: Path, tmp_path: Path) -> None:
    for told in (data_files, f"\n  - split: train\n    path: ['{data_files}']"):
        (tmp_path / "set").mkdir(exist_ok=True)
        card = tmp_path / "set" / "README.md"
        card.write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {told}\n---\n")
        refused(lambda: load_data(str(tmp_path / "set"), seed=0), f"{card} names {data_files!r}, which is not in")
    card.write_text("---\nconfigs: [a: b: c\n---\n")
    refused(lambda: load_data(str(tmp_path / "set"), seed=0), f"the head of {card} is no YAML")


def test_a_full_disk_ends_a_command_in_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("optdepth.files.os.fsync", full)
    monkeypatch.setattr("sys.argv", ["optdepth", "train", "--data", "digits", "--depth", "8", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err.strip()
    assert end.value.code == 2
    assert said.startswith(f"optdepth: cannot write {tmp_path}")
    assert said.endswith("(No space left on device); free some space there")
    assert not list(tmp_path.iterdir())


def test_what_the_system_refuses_elsewhere_is_one_line_too(monkeypatch, capsys) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere")

    monkeypatch.setattr("optdepth.cli.app", refuse)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.strip() == (
        "optdepth: the system refuses (/elsewhere: Permission denied); free space there, or give another place"
    )


def test_a_rule_that_cannot_be_written_leaves_the_one_before(setting: Setting, tmp_path: Path, monkeypatch) -> None:
    """A rule is one file: of two prices, no mixture can be read."""
    first, second = setting.ladder[0.05], setting.ladder[0.3]
    first.save(tmp_path)

    def killed(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(FileError, match="Input/output error"):
        second.save(tmp_path)
    monkeypatch.undo()
    read = Rule.load(tmp_path)
    assert read.origin.price == 0.05
    assert (read.stopped_at(setting.trace) == first.stopped_at(setting.trace)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["rule.safetensors"]
