"""The command line: `optdepth demo | train | record | solve | certify | evaluate | report | export | continuous`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import Abort, TyperException

from .errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Run a residual network only as deep as each input is worth.\n\n"
    "The steps share one run folder: **train** a network with exits, **record** what held-out data meet at every "
    "exit, **solve** the stopping problem or **certify** a rule, **evaluate** the rules on the test split, write the "
    "**report**, **export** what serves. "
    "**demo** does all of it on data that come with the package.",
)
_out, _err = Console(), Console(stderr=True)

RunFolder = Annotated[Path, typer.Argument(help="The run folder that `optdepth train --out` made.", metavar="RUN")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, to stdout.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same machine, same number of threads: same result.")]
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
Price = Annotated[
    float | None,
    typer.Option(help="Loss that one full pass of the network is worth: 0.1 spends a pass to save 10 points of error."),
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder to make or go on with.")] = Path("runs/demo"),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Everything at once on handwritten digits: train, record, solve, evaluate, report; under a minute.

    Trains a small residual network with an exit after every block, and writes `report.html` into the run folder.
    """
    try:
        _out.quiet = True  # of the first steps the progress bars say enough
        # Convolutional heads read such images right at the first block; with linear ones there is depth to choose. Of
        # half the width, the operations saved would be lost on the clock to the cost of looking.
        train(out=out, data="digits", width=32, exits="all", heads="linear", seed=seed, epochs=30)
        record(out)
        solve(out, price=0.1)
        _out.quiet = as_json
        evaluate(out, clock="1,32", repeats=3, as_json=as_json)
        report(out)
    finally:
        _out.quiet = False


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
    from .runs import Run
    from .threads import said
    from .workflow import train_run

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
        _err.print("stopped; the same command goes on from the last full epoch")
        raise typer.Exit(130) from None
    Run(out).note(_command())
    *_, full = history["fit accuracy"].values()
    made = f"{history['epochs']} epochs on {said(history['threads'])}"
    _show(as_json, history, f"{made}; accuracy on the fit split {full:.1%} at full depth; next: optdepth record {out}")


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
    from .runs import Run
    from .threads import said
    from .workflow import record_run

    here = Run(run)
    traces, threads = record_run(here, measure=costs, batch=batch, progress=not as_json)
    here.note(_command())
    sizes = {name: len(trace) for name, trace in traces.items()}
    splits = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    result = {"samples": sizes, "exits": traces["fit"].n_exits, "unit": traces["fit"].costs.unit, "threads": threads}
    sentence = f"recorded {splits} samples on {said(threads)}; next: optdepth solve {run} --price 0.05"
    _show(as_json, result, sentence)


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
    from .runs import Run
    from .stopping.methods import METHODS
    from .workflow import solve_run

    here = Run(run)
    methods = list(METHODS) if method == "all" else [method]
    rules = solve_run(here, methods, price=price, budget=budget, progress=not as_json)
    here.note(_command())
    result = {name: {"kind": type(rule).__name__, "price": rule.origin.price} for name, rule in rules.items()}
    _show(as_json, result, f"solved {', '.join(rules)}; next: optdepth evaluate {run}")


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
    from .runs import CERTIFIED, Run
    from .workflow import certify_run

    here = Run(run)
    risks: dict[Literal["loss", "excess", "disagreement"], float] = {measure: risk}
    if disagreement is not None:
        risks["disagreement"] = disagreement
    with _err.status("solving rules at rising prices and testing them"):
        found = certify_run(here, risks=risks, confidence=confidence)
    here.note(_command())
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
    _show(as_json, result, f"{found}; next: optdepth evaluate {run}")


@app.command()
def evaluate(
    run: RunFolder,
    clock: Annotated[
        str, typer.Option(help="Batch sizes at which engines are timed, separated by commas; empty for none.")
    ] = "1,32,256",
    repeats: Annotated[int, typer.Option(min=1, help="Turns timed; figures are medians.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Judges every rule on the test split, from the trace, by running the engine, and on the clock."""
    from .runs import Run
    from .workflow import evaluate_run

    here = Run(run)
    result = evaluate_run(here, clocked=_sizes(clock), repeats=repeats, progress=not as_json)
    here.note(_command())
    if as_json:
        _print_json(result)
    else:
        _out.print(_table(result))
        _out.print(f"next: optdepth report {run}")


@app.command()
def report(
    run: RunFolder,
    price: Annotated[
        float | None, typer.Option(help="Price that the page is about; that of the rules, when not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Writes `report.html`: one page, self-contained, with the pictures that make the result plain to see."""
    from .runs import Run
    from .workflow import report_run

    here = Run(run)
    path = report_run(here, price=price, command=_command())
    here.note(_command())
    _show(as_json, {"report": str(path)}, f"open {path}")


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
    from .flows import draw_continuous

    begin = _numbers("--start", start) or None
    results = draw_continuous(
        problem, out, price=price, start=begin, nodes=nodes, epochs=epochs, seed=seed, progress=not as_json
    )
    if as_json:
        _print_json(results)
        return
    for result in results:
        _out.print(f"{result['problem']}: {result['said']}; see {result['picture']}", highlight=False, soft_wrap=True)


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder of the bundle; an older bundle in it is replaced.")],
    rule: Annotated[str, typer.Option(help="Name of the rule to export.")] = "placed",
    as_json: AsJson = False,
) -> None:
    """Writes network and rule as ONNX graphs that are served without torch, and checks them against the engine."""
    from .runs import Run
    from .workflow import export_run

    here = Run(run)
    bundle = export_run(here, rule=rule, out=out, progress=not as_json)
    here.note(_command())
    said = f"{bundle}; serve it: optdepth.export.runtime.Runtime({str(out)!r})(inputs)"
    _show(as_json, asdict(bundle) | {"folder": str(bundle.folder)}, said)


def main() -> None:
    """The entry point: bad input is one line on stderr and exit status 2."""
    if not sys.stderr.isatty():  # read by `datasets` when it is imported
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        raise SystemExit(app(standalone_mode=False))
    except TyperException as error:
        if len(sys.argv) == 1:  # then the message is the help
            error.show()  # type: ignore[attr-defined]
            raise SystemExit(error.exit_code) from None
        said = " ".join(error.format_message().split()).rstrip(".")
        _refuse(f"{said}, in {_command()}; add --help to see what there is")
    except Abort:
        raise SystemExit(130) from None
    except InputError as error:
        _refuse(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _refuse(f"the system refuses ({place}{error.strerror or error}); free space there, or give another place")


def _refuse(reason: str) -> NoReturn:
    _err.print(f"optdepth: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(2) from None


def _print_json(result: Any) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()  # so that a full disk is found here, and not after the end


def _show(as_json: bool, result: Any, sentence: str) -> None:
    if as_json:
        _print_json(result)
    else:
        _out.print(sentence, highlight=False, soft_wrap=True)


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"--clock {text!r} is not a list of batch sizes such as 1,32,256") from None


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"{option} {text!r} is not a number, or numbers separated by commas") from None


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _table(result: dict[str, Any]) -> Table:
    """Accuracy, mean cost and speed of every rule."""
    from .stopping.methods import SOLVED

    clocked = {(row["method"], row["batch"]): row["speedup"] for row in result["clock"]}
    sizes = sorted({size for _, size in clocked})
    twice = f" ({result['duplicates']:,} with the content of samples that fitted)" if result["duplicates"] else ""
    table = Table(title=f"{result['samples']:,} test samples{twice}; cost in {result['unit']}")
    table.add_column("rule", no_wrap=True)
    for name in ("right, %", "cost", *(f"batch {size}" for size in sizes)):
        table.add_column(name, justify="right", no_wrap=True)
    if sizes:
        threads = {row["batch"]: row["threads"] for row in result["clock"]}
        said = ", ".join(f"{size} on {count}" for size, count in threads.items())
        table.caption = f"batch N: times faster than the network without exits, on the clock; threads: batch {said}"
    for row in result["rows"]:
        cells = [f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_error']:.2f}", f"{row['cost']:.3f}"]
        cells += [f"{clocked[row['method'], size]:.2f}x" for size in sizes]
        table.add_row(row["method"], *cells, style="bold" if row["method"] == SOLVED else "")
    return table
