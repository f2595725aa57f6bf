"""The steps of `optdepth continuous`: pictures of built-in problems, and of a neural ODE trained and solved here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from .continuous.boundary import Boundary
from .continuous.figures import draw
from .continuous.flow import FlowEngine
from .continuous.obstacle import free_boundary
from .continuous.paths import sample_paths
from .continuous.problems import EXAMPLES, example
from .costs import flops
from .data import Data, load_data
from .errors import InputError
from .networks import StagedNetwork, neural_ode
from .networks.ode import regridded
from .record import record
from .report.flow import FlowStudy, draw_flow
from .stopping.snell import snell
from .trace import Trace
from .training.depth_loss import depth_loss
from .training.loop import train

FLOW = "digits"
"""The trained flow, beside the names of the built-in problems."""
_PRICE = 0.1
"""Of one full run, if none is given."""
_TRAINED, _RUN = 8, 16
"""Intervals when training, by the midpoint method, and when running, by one of fourth order."""


def draw_continuous(
    problem: str,
    out: Path,
    *,
    price: float | None,
    start: Sequence[float] | None,
    nodes: int | None,
    epochs: int,
    seed: int,
    progress: bool,
) -> list[dict[str, Any]]:
    """Draws one problem, the trained flow, or all of them; what was found, and where the picture is.

    Raises:
        InputError: an unknown problem, or a setting that it has not.
    """
    names = [*EXAMPLES, FLOW] if problem == "all" else [problem]
    if problem not in (*EXAMPLES, FLOW, "all"):
        raise InputError(f"no problem {problem!r}; choose from {', '.join(EXAMPLES)}, {FLOW} or all")
    given = {"--price": price, "--start": start, "--nodes": nodes}
    for option in ("--start", "--nodes") if problem == FLOW else tuple(given) if problem == "all" else ():
        if given[option] is not None:
            raise InputError(f"{option} is for one of {', '.join(EXAMPLES)}; {problem!r} cannot use it")
    results = []
    for name in names:
        if name == FLOW:
            results.append(draw_flow_of_digits(out, price=price, epochs=epochs, seed=seed, progress=progress))
        else:
            results.append(solve_example(name, out, price=price, start=start, nodes=nodes, seed=seed))
    return results


def draw_flow_of_digits(out: Path, *, price: float | None, epochs: int, seed: int, progress: bool) -> dict[str, Any]:
    """Trains and solves the flow of the digits, and draws it into `out`/digits.svg."""
    study = study_flow(
        out / FLOW, price=_PRICE if price is None else price, epochs=epochs, seed=seed, progress=progress
    )
    picture = out / f"{FLOW}.svg"
    save_figure(draw_flow(study), picture)
    return {"problem": FLOW, **study.result(), "said": str(study), "picture": str(picture)}


def solve_example(
    name: str, out: Path, *, price: float | None, start: Sequence[float] | None, nodes: int | None, seed: int
) -> dict[str, Any]:
    """Solves a built-in problem, simulates paths that stop at its boundary, and draws both into `out`/NAME.svg.

    Args:
        price, nodes: those of the problem if not given.
        start: (d,) state that paths start from; that of the problem if not given.
    """
    known = example(name, price)
    solution = free_boundary(known.problem, box=known.box, nodes=known.nodes if nodes is None else nodes)
    begin = known.start if start is None else start
    paths = sample_paths(solution, begin, samples=1000, seed=seed, steps=500, until=known.until)
    value = solution.at([begin])[0]
    picture = out / f"{name}.svg"
    save_figure(draw(solution, paths, state=known.state), picture)
    edges = [point for curve in solution.boundary() for point in curve[:: max(1, len(curve) // 8)].tolist()]
    return {
        "problem": name,
        "status": solution.status,
        "said": f"value {value:.4g} at {list(begin)}, {paths}; {solution}",
        "start": list(begin),
        "value": float(value),
        "simulated": float(paths.losses.mean()),
        "boundary": edges,
        "residual": solution.residual,
        "picture": str(picture),
    }


def study_flow(
    out: Path, *, price: float, epochs: int, seed: int, features: Sequence[str] = ("margin",), progress: bool
) -> FlowStudy:
    """Trains a neural ODE on the digits, solves its boundary on the fit split, and runs it on the test split.

    An interrupted training in `out` goes on; a finished one is used as it is.
    """
    if not (math.isfinite(price) and price >= 0):
        raise InputError(f"price is {price:g}; it is loss per full run of the flow: finite and >= 0")
    data = load_data("digits", seed=seed)
    network = trained_flow(data, out, epochs=epochs, seed=seed, progress=progress)
    fit, test = traces(network, data)
    rule = snell(fit, price=price, features=features)
    images, labels = next(data.batches("test", len(data.splits["test"])))
    with torch.no_grad():
        stopped = FlowEngine(network, rule)(images)
    return FlowStudy(network, Boundary(rule), price, test, stopped, labels)


def trained_flow(data: Data, out: Path, *, epochs: int, seed: int, progress: bool) -> StagedNetwork:
    """The neural ODE of the studies, on the grid it is run on."""
    network = neural_ode(_TRAINED, classes=len(data.classes), channels=data.channels, method="midpoint", seed=seed)
    loss = depth_loss("light-supervision", 0.0)  # linear heads read a state that is made to be read early
    train(network, data, loss=loss, epochs=epochs, lr=0.05, seed=seed, out=out, progress=progress)
    return regridded(network, _RUN, method="rk4").eval()


def traces(network: StagedNetwork, data: Data) -> tuple[Trace, Trace]:
    """Of the fit and the test split, costs in full runs."""
    costs = flops(network, next(data.batches("fit", 1))[0]).relative()
    fit, test = (record(network, data.batches(name), costs) for name in ("fit", "test"))
    return fit, test


def save_figure(figure: Figure, path: Path) -> None:
    """Writes an SVG, the same bytes for the same picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "optdepth"}):  # names in the file, which are random otherwise
        figure.savefig(path, metadata={"Date": None})
