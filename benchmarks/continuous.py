"""Free boundaries against what is known of them, and a neural ODE that stops sample by sample on the digits.

    python benchmarks/continuous.py
    python benchmarks/continuous.py --clock

Solves the built-in problems and draws them; trains a neural ODE, solves its boundary on the fit split, judges on the
test split; solves residual networks of smaller and smaller steps with the same field; times one batch. Writes a page,
its figures and its pictures to `benchmarks/results/continuous/`; the trained flow is kept in `runs/continuous/`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchdiffeq import odeint_event

from figures import RESULTS, load, made_by, provenance, save
from optdepth.continuous.boundary import Boundary
from optdepth.continuous.figures import BLUE, INK, ORANGE, STYLE
from optdepth.continuous.flow import FlowEngine
from optdepth.continuous.obstacle import free_boundary
from optdepth.continuous.problem import StoppingProblem
from optdepth.continuous.problems import EXAMPLES, american_put, deterministic_flow, perpetual_put
from optdepth.data import load_data
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.flows import save_figure, solve_example, study_flow, traces
from optdepth.inference.engine import Engine
from optdepth.networks import StagedNetwork
from optdepth.networks.ode import flow_network, flow_pieces, regridded
from optdepth.report.flow import FlowStudy, draw_flow
from optdepth.stopping.baselines import tuned
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.rule import Rule
from optdepth.stopping.snell import snell
from optdepth.threads import on_threads
from optdepth.trace import Trace

HERE = RESULTS / "continuous"
SEED, EPOCHS, PRICES = 0, 20, (0.03, 0.1)
STEPS = (4, 8, 16, 32, 64)
"""Residual blocks over the horizon."""
PUTS = {(0.2, 1): 4.478, (0.2, 2): 4.840, (0.4, 1): 7.101, (0.4, 2): 8.508}
"""(volatility, years) -> Longstaff and Schwartz (2001), table 1, spot 36, by finite differences."""


def main() -> None:
    """Runs all of it, about three minutes; or the clock alone, which wants a machine that does nothing else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", action="store_true", help="time one batch, and put that into the page there is")
    if parser.parse_args().clock:
        study = study_flow(Path("runs/continuous/digits"), price=PRICES[-1], epochs=EPOCHS, seed=SEED, progress=True)
        write(load(HERE / "continuous.json") | {"clock": clock(study)})
        return
    for name in EXAMPLES:
        solve_example(name, HERE, price=None, start=None, nodes=None, seed=SEED)
    studies = [
        study_flow(Path("runs/continuous/digits"), price=p, epochs=EPOCHS, seed=SEED, progress=True) for p in PRICES
    ]
    for study in studies:
        save_figure(draw_flow(study), HERE / f"digits-{study.price:g}.svg")
    result: dict[str, Any] = {
        "seed": SEED,
        **provenance(__file__),
        "orders": orders(),
        "puts": puts(),
        "max call": max_call(),
        "flows": [study.result() for study in studies],
        "limit of a linear flow": linear_limit(),
        "limit on the digits": digits_limit(studies[0]),
        "clock": clock(studies[-1]),
    }
    draw_limit(result, HERE / "limit.svg")
    write(result)


def write(result: dict[str, Any]) -> None:
    """Writes the figures and the page."""
    save(HERE / "continuous.json", result)
    (HERE / "continuous.md").write_text(page(result))
    print(page(result))


def orders() -> list[dict[str, Any]]:
    """The largest error of the value on finer and finer grids, where there is a closed form."""
    flow, rows = deterministic_flow(), []
    for nodes in (101, 201, 401, 801):
        found = free_boundary(flow.problem, box=flow.box, nodes=nodes)
        rows.append(("deterministic flow", nodes, np.abs(found.value[0] - flow.value(found.grid.points)).max()))
    put = perpetual_put()
    for half in (25, 50, 100, 200):  # the boundary half way between two nodes, whatever the spacing
        nodes, spacing = 7 * (half + 1) + 1, 1 / (half + 0.5)
        low = put.boundary[0] - 1
        found = free_boundary(put.problem, box=[(low, low + (nodes - 1) * spacing)], nodes=nodes)
        rows.append(("perpetual put", nodes, np.abs(found.value[0] - put.value(found.grid.points)).max()))
    return [{"problem": name, "nodes": nodes, "error": float(error)} for name, nodes, error in rows]


def puts() -> list[dict[str, float]]:
    """The put of Longstaff and Schwartz, at 50 dates a year, and at any time."""
    rows = []
    for (sigma, years), table in PUTS.items():
        row = {"sigma": sigma, "years": years, "table": table}
        for name, dates in (("at 50 dates a year", 50), ("at any time", None)):
            known = american_put(sigma, years, dates=dates)
            found = free_boundary(known.problem, box=known.box, nodes=601, steps=400)
            row[name] = float(-found.at([[math.log(36)]])[0])
        rows.append(row)
    return rows


def max_call() -> dict[str, float]:
    """The Bermudan call on the dearer of two assets (Andersen and Broadie 2004, table 2), and its extrapolation."""
    problem = StoppingProblem(
        loss=lambda t, x: -np.maximum(np.exp(x).max(axis=1) - 100.0, 0.0),
        drift=0.05 - 0.1 - 0.2**2 / 2,
        diffusion=0.2,
        discount=0.05,
        horizon=3.0,
        dates=np.arange(1, 10) / 3,
    )
    box = [(math.log(100) - 1.6, math.log(100) + 1.6)] * 2
    values = {
        n: float(-free_boundary(problem, box=box, nodes=n, steps=72).at([[math.log(100)] * 2])[0]) for n in (41, 81)
    }
    return {"table": 13.902, "41": values[41], "81": values[81], "extrapolated": (4 * values[81] - values[41]) / 3}


class _Decay(nn.Module):
    """x' = -x."""

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return -state


def linear_limit() -> list[dict[str, float]]:
    """x' = -x, loss x² / 2, price 0.25: the mean |h x optimal depth - t*| over 5,000 starts."""
    rows, horizon, price = [], 2.4, 0.25
    for blocks in (6, 12, 24, 48, 96):
        step = horizon / blocks
        network = flow_network(
            nn.Identity(), _Decay(), nn.Identity(), horizon=horizon, intervals=blocks, method="euler"
        )
        fit, test = (_linear_trace(network, step, samples, seed) for samples, seed in ((20_000, 1), (5_000, 2)))
        depth = tuned(fit, "size", below=True, price=price).stopped_at(test)
        exact = np.log(np.maximum(test.observations[:, 0, 0] / math.sqrt(price), 1.0))
        rows.append({"step": step, "error": float(np.abs(step * depth - exact).mean())})
    return rows


@torch.no_grad()
def _linear_trace(network: StagedNetwork, step: float, samples: int, seed: int) -> Trace:
    start = torch.from_numpy(np.random.default_rng(seed).uniform(-3, 3, (samples, 1)))
    states = torch.stack(network(start), 1).squeeze(2).numpy()
    return Trace(states**2 / 2, np.abs(states)[:, :, None], Costs.of(step * np.arange(states.shape[1])), ("size",))


def digits_limit(study: FlowStudy) -> dict[str, Any]:
    """Residual networks with the field of the trained flow, each with rules of its own, solved on its own trace."""
    data, rows = load_data("digits", seed=SEED), []
    images, _ = next(data.batches("test", len(data.splits["test"])))
    for method, grids in (("euler", STEPS), ("rk4", STEPS[-1:])):
        for blocks in grids:
            network = regridded(study.network, blocks, method=method).eval()
            fit, test = traces(network, data)
            row: dict[str, Any] = {"method": method, "blocks": blocks}
            rules = {
                "solved": snell(fit, price=study.price, features=("margin", "entropy")),
                "one threshold": tuned(fit, "margin", price=study.price),
            }
            for name, rule in rules.items():
                times = _times(network, rule, images) if method == "rk4" else rule.stopped_at(test) / blocks
                row[f"{name}: mean time"] = float(times.mean())
                row[f"{name}: standard error"] = float(times.std() / math.sqrt(len(times)))
                row[f"{name}: value"] = evaluate(rule, test).value(study.price)
            rows.append(row)
    return {"price": study.price, "rows": rows}


@torch.no_grad()
def _times(network: StagedNetwork, rule: Rule, images: Tensor) -> np.ndarray:
    return FlowEngine(network, rule)(images).time.numpy()


def clock(study: FlowStudy) -> dict[str, float]:
    """Milliseconds for 128 test images, medians of seven turns; and of sample by sample, as torchdiffeq has it."""
    images, _ = next(load_data("digits", seed=SEED).batches("test", 128))
    rule, network = study.boundary.rule, study.network
    flow, grid = FlowEngine(network, rule), Engine(network, rule)
    ways: dict[str, Callable[[], Any]] = {
        "whole flow, no exits": lambda: network.full(images),
        "flow, each image to its own time": lambda: flow(images),
        "grid of exits, compacting engine": lambda: grid(images),
        "odeint_event, image by image": lambda: _alone(network, study.boundary, images),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad(), on_threads(torch.get_num_threads()):  # the same for all of them
        for turn in range(8):
            for name, way in ways.items():
                begin = time.perf_counter()
                if turn < 3 or "odeint" not in name:
                    way()
                    times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def _alone(network: StagedNetwork, boundary: Boundary, images: Tensor) -> None:
    """Every image in a call of its own: a batch would stop at the first event of any of them."""
    pieces = flow_pieces(network)
    step = pieces[0].end - pieces[0].begin

    def event(t: Tensor, x: Tensor) -> Tensor:
        k = (t / step).long().clamp(max=len(pieces) - 1)
        score = boundary(k[None], (t / step - k).clamp(0, 1)[None], network.answer(x, len(pieces)))[0]
        return torch.minimum(score, 1.0 - t)

    options = {"step_size": step}
    for state in network.start(images).split(1):
        if event(state.new_tensor(0.0), state) > 0:
            odeint_event(pieces[-1].field, state, state.new_tensor(0.0), event_fn=event, method="rk4", options=options)


def draw_limit(result: dict[str, Any], path: Path) -> None:
    """Left: order one, where the answer is known. Right: the trained flow, each network solved on its own."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        steps, errors = (np.array([row[key] for row in result["limit of a linear flow"]]) for key in ("step", "error"))
        left.loglog(steps, errors, color=BLUE, marker="o", label="residual networks")
        left.loglog(steps, errors[-1] * steps / steps[-1], color=INK, ls=":", label="order 1")
        _steps(left, steps)
        left.set_ylabel("mean |h × optimal depth − stopping time|")
        left.set_title("x' = −x: a known stopping time")
        left.legend()
        limit = result["limit on the digits"]
        *euler, flow = limit["rows"]
        h = np.array([1 / row["blocks"] for row in euler])
        for name, colour in (("solved", BLUE), ("one threshold", ORANGE)):
            mean, error = (
                np.array([row[f"{name}: {what}"] for row in euler]) for what in ("mean time", "standard error")
            )
            right.errorbar(h, mean, yerr=error, color=colour, marker="o", capsize=2, label=f"{name}, at each h")
            right.axhline(flow[f"{name}: mean time"], color=colour, ls="--", lw=1)
        right.set_xscale("log")
        right.set_ylim(bottom=0)
        _steps(right, h)
        right.set_ylabel("mean of h × depth")
        right.set_title(f"digits, price {limit['price']:g}; dashed: the neural ODE")
        right.legend()
        save_figure(figure, path)


def _steps(axes: Axes, steps: np.ndarray) -> None:
    """Names the steps on a logarithmic axis, and nothing between them."""
    axes.set_xticks(steps, [f"{step:.3g}" for step in steps])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set_xlabel("step h")


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# Continuous depth",
        "",
        f"{made_by(result)} Seed {result['seed']}.",
        "",
        "## Grids against closed forms: largest error of the value",
        "",
        *_table(result["orders"]),
        "",
        "## The put of Longstaff and Schwartz (2001), table 1, spot 36; 601 nodes, 400 steps",
        "",
        *_table(result["puts"]),
        "",
        "## The max-call of Andersen and Broadie (2004), table 2: 41 and 81 nodes an axis, and the limit they point to",
        "",
        *_table([result["max call"]]),
        "",
        "## A neural ODE on the digits: 359 test images",
        "",
        "Value is share wrong + price x cost, cost in full runs. Solved on the fit split alone.",
        "",
        *_table(result["flows"]),
        "",
        "## Residual networks of step h: a linear flow",
        "",
        *_table(result["limit of a linear flow"]),
    ]
    limit = result["limit on the digits"]
    lines += ["", f"## Residual networks of step h: digits, price {limit['price']:g}", "", *_table(limit["rows"])]
    lines += ["", f"## Clock: 128 images at price {PRICES[-1]:g}, milliseconds", "", *_table([result["clock"]])]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cell = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)  # noqa: E731
    head = list(rows[0])
    body = [[cell(row[name]) for name in head] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)]


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"continuous: {error}")
