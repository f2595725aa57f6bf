"""Commands that take one step at a time, and the demo, which takes all of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from .app import AsJson, Price, RunFolder, Seed, app, command, margin, numbers, print_json, screen, show
from .results import evaluate, report

DataName = Annotated[
    str,
    typer.Option(
        help="`digits` (comes with the package), a folder of parquet files or of one image folder a class, "
        "or the name of a data set on the hub."
    ),
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the train split.")]
Exits = Annotated[
    str,
    typer.Option(
        help="`ends`: after the first block and each of the last stage; `all`, `last`, or names separated by commas, "
        "such as stage1.block2,stage3.block3."
    ),
]
Heads = Annotated[
    str,
    typer.Option(
        help="Of the early exits: linear, conv, branch, tail; those named later answer better early, and cost more at "
        "each look. conv+tail is both, one after the other, before the last stage."
    ),
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder to make or go on with.")] = Path("runs/demo"),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Everything at once on handwritten digits: train, record, solve, evaluate, report; about two minutes.

    Trains a small residual network with an exit after every block, and writes `report.html` into the run folder.
    """
    try:
        screen.quiet = True  # of the first steps the progress bars say enough
        # Convolutional heads read such images right at the first block; with linear ones there is depth to choose. Of
        # half the width, the operations saved would be lost on the clock to the cost of looking.
        train(out=out, data="digits", width=32, exits="all", heads="linear", seed=seed, epochs=30)
        record(out)
        solve(out, price=0.1)
        screen.quiet = as_json
        evaluate(out, clock="1,32", repeats=3, as_json=as_json)
        report(out)
    finally:
        screen.quiet = False


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder to make, or to go on with after an interruption.")],
    data: DataName = "digits",
    depth: Annotated[int, typer.Option(help="Layers of the residual network: 6n + 2, such as 8, 20, 32, 56.")] = 20,
    width: Annotated[int, typer.Option(min=1, help="Channels of the first stage.")] = 16,
    exits: Exits = "ends",
    heads: Heads = "conv+tail",
    start: Annotated[
        Path | None,
        typer.Option(help="Run folder of a trained network to take the trunk from; early heads too if they are alike."),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(help="How the exits share the trunk's gradient; a wrong name lists all there are."),
    ] = "priced-supervision+distillation",
    price: Annotated[
        float, typer.Option(help="Cross-entropy that the whole depth costs, for the losses that use it.")
    ] = 0.0,
    epochs: Epochs = 30,
    batch: Annotated[int, typer.Option(min=2, help="Batch size.")] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.1,
    schedule: Annotated[Literal["one-cycle", "cosine"], typer.Option(help="Of the learning rate.")] = "one-cycle",
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "auto"], typer.Option(help="`auto` is bf16 where the hardware has it.")
    ] = "fp32",
    backbone: Annotated[
        Literal["joint", "frozen"], typer.Option(help="`frozen`: only the heads of the early exits learn.")
    ] = "joint",
    image_size: Annotated[
        int | None, typer.Option(help="Resize and crop to this many pixels; needed where sizes differ.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Trains a residual network with exits. Interrupted, the same command goes on from the last full epoch."""
    from ..runs import Run
    from ..threads import said
    from ..workflow import train_run

    try:
        history = train_run(
            Run(out),
            data=data,
            image_size=image_size,
            network={"depth": depth, "width": width, "exits": exits, "heads": heads},
            start=start,
            loss=loss,
            price=price,
            seed=seed,
            progress=not as_json,
            epochs=epochs,
            batch_size=batch,
            lr=lr,
            schedule=schedule,
            precision=precision,
            backbone=backbone,
        )
    except KeyboardInterrupt:
        margin.print("stopped; the same command goes on from the last full epoch")
        raise typer.Exit(130) from None
    Run(out).note(command())
    *_, full = history["fit accuracy"].values()
    made = f"{history['epochs']} epochs on {said(history['threads'])}"
    show(as_json, history, f"{made}; accuracy on the fit split {full:.1%} at full depth; next: optdepth record {out}")


@app.command()
def record(
    run: RunFolder,
    costs: Annotated[
        Literal["flops", "latency"], typer.Option(help="Counted, or measured here at the batch size given.")
    ] = "flops",
    batch: Annotated[int, typer.Option(min=1, help="Batch size at which latency is measured.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Records losses, observations and costs at every exit, for the fit, certify and test splits."""
    from ..runs import Run
    from ..threads import said
    from ..workflow import record_run

    here = Run(run)
    traces, threads = record_run(here, measure=costs, batch=batch, progress=not as_json)
    here.note(command())
    sizes = {name: len(trace) for name, trace in traces.items()}
    splits = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    result = {"samples": sizes, "exits": traces["fit"].n_exits, "unit": traces["fit"].costs.unit, "threads": threads}
    sentence = f"recorded {splits} samples on {said(threads)}; next: optdepth solve {run} --price 0.05"
    show(as_json, result, sentence)


@app.command()
def solve(
    run: RunFolder,
    price: Price = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Instead of a price: mean cost a sample, in full passes, such as 0.5."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="One method, or `all`: placed, the solved rule, which looks only at the exits where a look pays; "
            "snell, the same looking at every exit; and what they are compared with."
        ),
    ] = "all",
    as_json: AsJson = False,
) -> None:
    """Solves the stopping rules on the fit split, at a price or for a budget."""
    from ..runs import Run
    from ..stopping.methods import METHODS
    from ..workflow import solve_run

    here = Run(run)
    methods = list(METHODS) if method == "all" else [method]
    rules = solve_run(here, methods, price=price, budget=budget, progress=not as_json)
    here.note(command())
    result = {name: {"kind": type(rule).__name__, "price": rule.origin.price} for name, rule in rules.items()}
    show(as_json, result, f"solved {', '.join(rules)}; next: optdepth evaluate {run}")


@app.command()
def certify(
    run: RunFolder,
    risk: Annotated[float, typer.Option(help="What may be lost at most: 0.01 is one point of accuracy.")] = 0.01,
    confidence: Annotated[
        float, typer.Option(help="Chance that the promise holds, over the draw of the certify split.")
    ] = 0.95,
    measure: Annotated[
        Literal["excess", "loss"],
        typer.Option(help="`excess`: error above the full network's; `loss`: the error itself."),
    ] = "excess",
    disagreement: Annotated[
        float | None,
        typer.Option(help="Promise this as well: how often, at most, the answer is not the full network's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Finds the cheapest solved rule that provably keeps a promise (Learn-then-Test); kept as the rule `certified`.

    Rules are solved on the fit split and tested on the certify split, which fits nothing. Where no rule that stops
    early can be shown to keep the promise, the rule is the full depth, and the sentence says so, and how many samples
    would do. With `--disagreement` both promises hold at once, with the one confidence.
    """
    from ..runs import CERTIFIED, Run
    from ..workflow import certify_run

    here = Run(run)
    risks: dict[Literal["loss", "excess", "disagreement"], float] = {measure: risk}
    if disagreement is not None:
        risks["disagreement"] = disagreement
    with margin.status("solving rules at rising prices and testing them"):
        found = certify_run(here, risks=risks, confidence=confidence)
    here.note(command())
    result = {
        "certified": found.certified,
        "gained": found.gained,
        "promises": [asdict(promise) for promise in found.promises],
        "confidence": found.confidence,
        "cost": found.cost,
        "full cost": found.full_cost,
        "samples": found.samples,
        "duplicates": found.duplicates,
        "short": [asdict(short) for short in found.short],
        "rule": CERTIFIED,
    }
    show(as_json, result, f"{found}; next: optdepth evaluate {run}")


@app.command()
def continuous(
    problem: Annotated[
        str,
        typer.Argument(
            help="`deterministic-flow`, `flow-in-the-plane`, `ornstein-uhlenbeck`, `perpetual-put`, `american-put`; "
            "`digits`: a neural ODE trained here; or `all`."
        ),
    ] = "all",
    out: Annotated[Path, typer.Option(help="Folder for the pictures, and for the trained flow.")] = Path(
        "runs/continuous"
    ),
    price: Annotated[
        float | None,
        typer.Option(help="Loss that a unit of time is worth, or one full run of the flow; the problem's own if left."),
    ] = None,
    start: Annotated[
        str, typer.Option(help="State that paths start from, such as 2.5 or, in the plane, 2.5,1.5.")
    ] = "",
    nodes: Annotated[int | None, typer.Option(help="Nodes of the grid along each axis.")] = None,
    epochs: Epochs = 20,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Depth in continuous time: draws value, free boundary and sample paths; a minute for all.

    Built-in stopping problems are solved on a grid; `digits` trains a neural ODE, solves its boundary, and stops every
    test image where its own path meets it.
    """
    from ..flows import draw_continuous

    begin = numbers("--start", start) or None
    results = draw_continuous(
        problem, out, price=price, start=begin, nodes=nodes, epochs=epochs, seed=seed, progress=not as_json
    )
    if as_json:
        print_json(results)
        return
    for result in results:
        screen.print(f"{result['problem']}: {result['said']}; see {result['picture']}", highlight=False, soft_wrap=True)
