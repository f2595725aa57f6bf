"""The registry of methods: one line puts a method of one's own everywhere; names are given once."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from checker import unchecked
from conftest import noisy_trace
from optdepth.cli import main
from optdepth.errors import InputError
from optdepth.networks import resnet
from optdepth.report import Provenance, figures, write_report
from optdepth.report.study import Study
from optdepth.stopping import methods
from optdepth.stopping.baselines import tuned
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.frontier import frontier
from optdepth.stopping.methods import METHODS, Method, baselines, method_of, register
from optdepth.stopping.regression import Function
from optdepth.stopping.rule import FixedDepth, Rule
from optdepth.workflow import Run, record_run

ROOT = Path(__file__).resolve().parents[1]
PRICE = 0.1
OWN = Method("margin 2", "baseline", lambda trace: tuned(trace, "margin"), colour="green", dash="dotted", words="mine")


@pytest.fixture
def own() -> Iterator[str]:
    register(OWN)
    yield OWN.name
    del methods._METHODS[OWN.name]


def recorded(folder: Path) -> Run:
    """A run up to its traces, of a network that has learned nothing."""
    run = Run(folder)
    run.begin(run.opened("digits", 0, None), 0, None)
    resnet(8, classes=10, channels=1, width=4, seed=0).save(folder / "network")
    record_run(run, measure="flops", batch=1, progress=False)
    return run


def test_a_method_of_ones_own_is_swept_like_any_other(own: str) -> None:
    fit, test = noisy_trace(1_000, exits=3).split(0.5, 0.5, seed=0)
    assert own in METHODS
    assert own in baselines()
    swept = frontier(own, fit, test, [PRICE])
    assert swept.evaluations[0].value(PRICE) == evaluate(tuned(fit, "margin", price=PRICE), test).value(PRICE)


def test_it_is_solved_on_the_command_line(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded(tmp_path / "run")
    for method in (own, "all"):
        monkeypatch.setattr(sys, "argv", ["optdepth", "solve", str(run.folder), "--price", "0.1", "--method", method])
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
    assert list(run.rules()) == list(METHODS)
    assert run.rules()[own].features == ("margin",)


@pytest.mark.slow
def test_it_is_in_the_pictures_and_the_tables_of_the_report(own: str, tmp_path: Path) -> None:
    fit, test = noisy_trace(1_000, exits=3).split(0.4, 0.6, seed=0)
    rules = {name: method_of(name).solve(fit).at(PRICE) for name in ("placed", own)}
    given: dict[str, Any] = {"names": list("abc"), "fit": fit, "test": test, "rules": rules, "price": PRICE}
    write_report(tmp_path / "page.html", title="t", made=Provenance([], {}, {}), **given)
    page = (tmp_path / "page.html").read_text()
    assert page.count(f"<td>{own}</td>") == 2  # what each method needs, and every rule at the price
    assert f"({own}, chosen on these very inputs" in page  # the only baseline with a rule here
    axes = Figure().subplots()
    figures._draw_frontiers(axes, Study.measure(**given, seed=0))
    (line,) = [line for line in axes.lines if str(line.get_label()).startswith(own)]
    assert line.get_label() == f"{own} (mine; best baseline)"
    assert figures.THEME[line.get_color()] == "--green"


def test_a_name_is_given_once(own: str) -> None:
    before = dict(METHODS)
    for name in (own, "snell", "certified"):
        with pytest.raises(InputError, match=f"the name '{name}' is taken"):
            register(Method(name, "solved", OWN.solve, "green", "dotted"))
    assert dict(METHODS) == before
    with pytest.raises(InputError, match="no method 'magic'; choose from placed, snell"):
        method_of("magic")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"name": "../rule"}, r"method name '\.\./rule' is not words"),
        ({"name": "My-Rule"}, "is not words of small letters"),
        ({"name": ""}, "is not words"),
        ({"kind": "best"}, "kind of method 'mine' is 'best', not solved, baseline"),
        ({"colour": "#ff0000"}, "colour of method 'mine' is '#ff0000', not ink, blue"),
        ({"dash": "-"}, "dash of method 'mine' is '-', not solid, dashed, dotted"),
    ],
)
def test_a_method_that_nothing_could_show_is_refused(changed: dict[str, Any], match: str) -> None:
    given = {"name": "mine", "kind": "solved", "solve": OWN.solve, "colour": "green", "dash": "dotted"}
    with unchecked(), pytest.raises(InputError, match=match):
        Method(**{**given, **changed})


def always(exit: int) -> type[Rule]:
    """A kind of rule defined here, anew at every call."""

    class Always(Rule):
        def stop(self, k: int, observation: torch.Tensor) -> torch.Tensor:
            return torch.full((len(observation),), k == exit)

        def arguments(self) -> dict[str, Any]:
            return {}

    return Always


def test_a_kind_of_rule_may_be_defined_again_but_not_another_under_its_name() -> None:
    first, again = always(0), always(1)
    assert first is not again
    assert Rule.kinds["Always"] is again
    with pytest.raises(InputError, match=r"a FixedDepth already, optdepth\.stopping\.rule\.FixedDepth"):
        type("FixedDepth", (Rule,), {"__module__": __name__})
    with pytest.raises(InputError, match=r"there is a Additive already"):
        type("Additive", (Function,), {"__module__": __name__})
    assert Rule.kinds["FixedDepth"] is FixedDepth
    del Rule.kinds["Always"]


def test_the_rule_of_the_handbook_is_solved_saved_and_reported(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"## A rule of your own\n.*?```python\n(.*?)```", text, flags=re.S)
    (tmp_path / "mine.py").write_text(code)
    run = recorded(tmp_path / "run")
    (command,) = re.findall(r"^python -c '(.*?)' solve RUN (.*)$", text, flags=re.M)
    args = [sys.executable, "-c", command[0], "solve", str(run.folder), *command[1].split(), "--json"]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["agreed"]["kind"] == "Agreed"
    assert (run.folder / "rules" / "agreed" / "rule.safetensors").is_file()
