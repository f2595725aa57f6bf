"""What all commands share: the application, its options, what is printed and how it is refused."""

from __future__ import annotations

import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from ..errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run a residual network only as deep as each input is worth.\n\n"
    "**fit** gives a model that you have early exits and a rule that says when to stop, in one step; what it saves "
    "is read by **predict**, **evaluate**, **report**, **export** and **bench**.\n\n"
    "The same in single steps, for a small network that is trained here: **train** it with exits, **record** what "
    "held-out data meet at every exit, **solve** the stopping problem or **certify** a rule, **evaluate** the rules, "
    "write the **report**, **export** what serves. **demo** does all of these on data that come with the package.",
)
screen, margin = Console(), Console(stderr=True)


def _version(asked: bool | None) -> None:
    if asked:
        screen.print(f"optdepth {version('optdepth')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = None,
) -> None:
    """What may be said without a command; the help is the application's."""


RunFolder = Annotated[
    Path, typer.Argument(help="The folder that `optdepth fit --out` or `optdepth train --out` made.", metavar="RUN")
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Of what `fit` made on code of your own: that code again, FILE.py:FUNCTION, as no folder may say which "
        "code is run.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, to stdout.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same machine, same number of threads: same result.")]
Price = Annotated[
    float | None,
    typer.Option(help="Loss that one full pass of the network is worth: 0.1 spends a pass to save 10 points of error."),
]


def refuse(reason: str) -> NoReturn:
    margin.print(f"optdepth: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(2) from None


def print_json(result: Any) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()  # so that a full disk is found here, and not after the end


def show(as_json: bool, result: Any, sentence: str) -> None:
    if as_json:
        print_json(result)
    else:
        screen.print(sentence, highlight=False, soft_wrap=True)


def sizes(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"{option} {text!r} is not a list of batch sizes such as 1,32,256") from None


def numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"{option} {text!r} is not a number, or numbers separated by commas") from None


def command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def table_of(result: dict[str, Any]) -> Table:
    """Accuracy, mean cost and speed of every rule."""
    from ..stopping.methods import SOLVED

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
