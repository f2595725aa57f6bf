"""Commands that look at what was made, step by step or by `fit`: evaluate, report, export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .app import AsJson, ModelName, RunFolder, app, command, print_json, screen, show, sizes, table_of


@app.command()
def evaluate(
    run: RunFolder,
    clock: Annotated[
        str | None,
        typer.Option(
            help="Of a trained run: batch sizes at which engines are timed, separated by commas; empty for none. "
            "1,32,256 when not given. What `fit` made is timed by `optdepth bench`."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns timed; figures are medians.")] = 5,
    model: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """Judges every rule on the test split, from the trace, by running the engine, and on the clock."""
    from ..fits import is_fit, judged, opened
    from ..runs import Run
    from ..workflow import evaluate_run

    if is_fit(run):
        if clock is not None:
            raise InputError(f"--clock {clock}: {run} was made by fit, and is timed by optdepth bench {run}")
        result = judged(opened(run, model))
    else:
        here = Run(run)
        timed = sizes("--clock", "1,32,256" if clock is None else clock)
        result = evaluate_run(here, clocked=timed, repeats=repeats, progress=not as_json)
        here.note(command())
    if as_json:
        print_json(result)
    else:
        screen.print(table_of(result))
        screen.print(f"next: optdepth report {run}")


@app.command()
def report(
    run: RunFolder,
    price: Annotated[
        float | None,
        typer.Option(help="Of a trained run: price that the page is about; that of the rules, when not given."),
    ] = None,
    model: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """Writes `report.html`: one page, self-contained, with the pictures that make the result plain to see."""
    from ..fits import is_fit, report_fit
    from ..runs import Run
    from ..workflow import report_run

    if is_fit(run):
        if price is not None:
            raise InputError(
                f"--price {price:g}: {run} was made by fit, and its page is about the rule that was fitted"
            )
        path = report_fit(run, model)
    else:
        here = Run(run)
        path = report_run(here, price=price, command=command())
        here.note(command())
    show(as_json, {"report": str(path)}, f"open {path}")


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder of the bundle; an older bundle in it is replaced.")],
    rule: Annotated[str, typer.Option(help="Of a trained run: name of the rule to export.")] = "placed",
    model: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """Writes network and rule as ONNX graphs that are served without torch, and checks them against the engine."""
    from ..fits import is_fit, opened
    from ..runs import Run
    from ..workflow import export_run

    if is_fit(run):
        bundle = opened(run, model).export(out, progress=not as_json)
    else:
        here = Run(run)
        bundle = export_run(here, rule=rule, out=out, progress=not as_json)
        here.note(command())
    said = f"{bundle}; serve it: optdepth.export.runtime.Runtime({str(out)!r})(inputs)"
    show(as_json, asdict(bundle) | {"folder": str(bundle.folder)}, said)
