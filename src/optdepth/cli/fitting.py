"""Commands for a model that is there: fit, predict, bench, and what can be staged."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from ..errors import InputError
from .app import AsJson, ModelName, RunFolder, Seed, app, command, margin, print_json, screen, show, sizes

Text = Annotated[str | None, typer.Option(help="Column of the sentences, such as sentence.")]


@app.command()
def fit(
    model: Annotated[
        str,
        typer.Option(
            help="timm:NAME or torchvision:NAME with its trained weights, hf:FOLDER or hf:OWNER/NAME for a classifier "
            "of transformers, or my_code.py:make_model for a function that returns a torch module."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="A folder with one folder of images a class, a file or folder of parquet, CSV or JSON lines, a name "
            "on the hub, or my_code.py:make_data for a function that returns an od.TensorData."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    lose: Annotated[
        float | None, typer.Option(help="Accuracy that may be lost to the full model at most; 0.01 is one point.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of --lose: chance that the promise holds.")] = 0.95,
    budget: Annotated[
        float | None, typer.Option(help="Instead of --lose: mean cost an input, as a share of the full model's.")
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(help="Instead of --lose: what a full pass is worth; 0.05 spends one to save 5 points of error."),
    ] = None,
    text: Text = None,
    label: Annotated[str | None, typer.Option(help="Column of the labels; label when not given.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels, instead of what the model was trained with.")] = None,
    exits: Annotated[
        str, typer.Option(help="all: after every block; a number of them, evenly spread; or names, with commas.")
    ] = "all",
    heads: Annotated[
        str, typer.Option(help="linear, mlp, or linear+mlp: both, and what each look is worth is found out.")
    ] = "mlp",
    batch: Annotated[int, typer.Option(min=1, help="Size of the batches that will be served.")] = 32,
    costs: Annotated[
        Literal["clock", "flops"], typer.Option(help="By the clock of this machine, or by operations.")
    ] = "clock",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Gives a trained model early exits and a rule that says when to stop; the model itself stays as it is.

    The heads of the exits learn on the data's train split. What each exit costs is measured. The stopping problem is
    solved on data that the heads did not see; and with `--lose` the rule is shown, on other data again, to lose no more
    than that. Say one of `--lose`, `--budget` and `--price`.
    """
    from ..fits import fit_run

    where: list[str] | int | str = exits if exits in ("all", "auto") else exits.split(",")
    early = fit_run(
        out,
        model=model,
        data=data,
        text=text,
        label=label,
        image_size=image_size,
        seed=seed,
        command=command(),
        progress=not as_json,
        lose=lose,
        confidence=confidence,
        budget=budget,
        price=price,
        exits=int(exits) if exits.isdigit() else where,
        heads=heads,
        batch=batch,
        costs=costs,
    )
    found = early.certificate
    result = {
        "said": str(early),
        "certified": found is not None and found.certified,
        "gained": found is None or found.gained,
        "clock": [asdict(row) for row in early.clock],
        "folder": str(out),
    }
    show(as_json, result, f"{early}; next: optdepth report {out}")


@app.command()
def predict(
    run: RunFolder,
    data: Annotated[str, typer.Option(help="Sentences or images: a file, a folder, or a name on the hub.")],
    out: Annotated[Path | None, typer.Option(help="CSV file to write; without it the lines go to stdout.")] = None,
    text: Text = None,
    batch: Annotated[int, typer.Option(min=1, help="Inputs answered at once.")] = 32,
    model: ModelName = None,
) -> None:
    """Answers inputs, each as early as the rule lets it: the class, how sure it is, the exit and the cost."""
    from ..fits import predict_run

    if out is None:
        predict_run(run, sys.stdout, model=model, data=data, text=text, batch=batch, progress=False)
        return
    with out.open("w", newline="") as file:
        count = predict_run(run, file, model=model, data=data, text=text, batch=batch, progress=True)
    margin.print(f"{count:,} answers in {out}", highlight=False)


@app.command()
def bench(
    run: RunFolder,
    batches: Annotated[str, typer.Option(help="Sizes of batches, separated by commas.")] = "1,8,32",
    repeats: Annotated[int, typer.Option(min=1, help="Turns timed; figures are medians.")] = 5,
    model: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """Times what `fit` made on this machine, beside the model without exits, in one run."""
    from ..fits import bench_run

    timed = sizes("--batches", batches)
    if not timed:
        raise InputError(f"--batches {batches!r} names none: give sizes such as 1,8,32")
    rows = bench_run(run, model=model, batches=timed, repeats=repeats, progress=not as_json)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table = Table(title="milliseconds an input")
    for name in ("batch", "threads", "without exits", "with", "times as fast"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = (f"{row.full:.3f}", f"{row.engine:.3f}", f"{row.speedup:.2f}")
        table.add_row(str(row.batch), str(row.threads), *cells)
    screen.print(table)


@app.command()
def models() -> None:
    """Which models can be given exits, and how to name them."""
    from ..sources import FORMS

    screen.print(FORMS, highlight=False, soft_wrap=True)
