"""A looped network stopped by the stationary rule, with no number of steps given.

    python benchmarks/looped.py
    python benchmarks/looped.py --data ../shared/data/cifar10 --image-size 16 --width 24 --steps 6 --epochs 4 --seeds 1

Trains one block with its input injected, by deep supervision alone and with diminishing returns added, asks how it does
on more steps than it was trained for, solves the stationary rule on a trace of four times as many, and lets the engine
run for as long as the rule says. The number of steps that the rule is compared with is chosen on the fit split; the
test split judges. Writes figures, a table and a picture to `benchmarks/results/looped/`. Interrupted, it goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import optdepth as od
from figures import RESULTS, made_by, provenance, save, table_row
from optdepth.batch import hidden
from optdepth.errors import InputError
from optdepth.flows import save_figure
from optdepth.inference.looped import looped_engine
from optdepth.networks import looped, unrolled
from optdepth.palette import BLUE, ORANGE
from optdepth.tasks import cross_entropy
from optdepth.training import depth_loss

HERE = RESULTS / "looped"
ARMS = {"deep supervision": "deep-supervision", "and diminishing returns": "deep-supervision+diminishing-returns"}
PRICES = (0.001, 0.003, 0.01, 0.03)
REPORT_PRICE = 0.01
RECORDED = 4
"""Times the trained steps: enough for most states to come to rest."""
DEEPEST = 256
HEAD = ["trained by", "seed", "price", "reads", "wrong", "mean steps", "deepest", "limit", "samples at it"]
HEAD += ["fixed steps", "wrong there", "lead"]
IMAGES = 2_000
"""At most so many test images where the block runs for hundreds of steps on all of them."""


def main() -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="as for `optdepth train`")
    parser.add_argument("--image-size", type=int, help="resize to it")
    parser.add_argument("--steps", type=int, default=8, help="trained and recorded")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--seeds", type=int, default=3, help="of the splits, the weights and the training alike")
    given = parser.parse_args()
    name = Path(given.data).name
    runs = [_run(given, arm, seed) for arm in ARMS for seed in range(given.seeds)]
    result = {
        **provenance(__file__),
        "trained steps": given.steps,
        "recorded steps": RECORDED * given.steps,
        "runs": runs,
    }
    save(HERE / f"{name}.json", result)
    (HERE / f"{name}.md").write_text(_page(name, result))
    _picture(name, result, HERE / f"{name}.svg")
    print(_page(name, result))


def _run(given: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """One arm, one seed: train, solve at every price, judge."""
    data = od.load_data(given.data, seed=seed, image_size=given.image_size)
    folder = Path("runs") / f"looped-{data.name.split('/')[-1]}" / f"{ARMS[arm]}-{seed}"
    network = looped(given.steps, classes=len(data.classes), channels=data.channels, width=given.width, seed=seed)
    options = {"batch_size": given.batch_size, "lr": 0.01 * given.batch_size / 32, "precision": given.precision}
    od.train(network, data, loss=depth_loss(ARMS[arm], 0.0), epochs=given.epochs, seed=seed, out=folder, **options)
    network = unrolled(od.load_network(folder / "network"), RECORDED * given.steps)
    costs = _in_steps(od.flops(network, next(data.batches("fit", 1))[0]))
    fit = _recorded(network, data, "fit", costs)
    rows = []
    for price in PRICES:
        found = od.stationary(fit, price=price)
        rows.append({"price": price, "status": found.status})
        if found.status == "converged":
            rows[-1] |= _judged(data, looped_engine(network, found.rule), fit, price)
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": _accuracy(network, data),
        "rows": rows,
        "finite depth": _report(network, data, fit, costs),
    }


def _in_steps(costs: od.Costs) -> od.Costs:
    """Costs with one step, its look included, as the unit; the stem counts as a share of a step."""
    step = costs.paid()[1] - costs.paid()[0]
    return od.Costs(costs.reach / step, costs.look / step, costs.answer / step, f"steps of {step:.4g} FLOPs")


def _recorded(network: od.StagedNetwork, data: Any, split: str, costs: od.Costs, **more: Any) -> od.Trace:
    return od.record(network, data.batches(split), costs, **more)


@torch.inference_mode()
def _accuracy(network: od.StagedNetwork, data: Any) -> list[float]:
    """After each of 256 steps, on the test split."""
    inputs, labels = _some(data)
    longer = unrolled(network, DEEPEST).eval()
    right = [torch.stack([answer.argmax(1) == y for answer in longer(x)], 1) for x, y in _chunks(inputs, labels)]
    return torch.cat(right).float().mean(0).tolist()


def _judged(data: Any, engine: od.Engine, fit: od.Trace, price: float) -> dict[str, Any]:
    """The engine on the test split, beside the number of steps for all that is best on the fit split."""
    alone = fit.costs.reach + fit.costs.look  # a fixed number of steps looks once
    steps = int((fit.losses.mean(0) + price * alone).argmin())
    fixed = unrolled(engine.network, steps + 1).eval()
    wrong, plain, exits, paid = [], [], [], []
    for x, y in data.batches("test"):
        answer = engine(x)
        wrong.append((answer.logits.argmax(1) != y).double())
        with torch.inference_mode():
            plain.append((fixed.full(x).argmax(1) != y).double())
        exits.append(answer.exit + 1)
        paid.append(answer.cost)
    loss, took, cost = (torch.cat(part).double().numpy() for part in (wrong, exits, paid))
    value = loss + price * cost
    rival = torch.cat(plain).numpy() + price * alone[steps]
    lead = rival - value
    return {
        "features": list(engine.rule.features),
        "limit": engine.rule.limit,
        "loss": loss.mean(),
        "cost": cost.mean(),
        "mean steps": took.mean(),
        "deepest": int(took.max()),
        "at the limit": int((took == engine.rule.limit).sum()),
        "value": value.mean(),
        "fixed steps": steps + 1,
        "fixed loss": float(torch.cat(plain).mean()),
        "fixed value": rival.mean(),
        "lead": lead.mean(),
        "lead error": lead.std(ddof=1) / np.sqrt(len(lead)),
    }


def _report(network: od.StagedNetwork, data: Any, fit: od.Trace, costs: od.Costs) -> dict[str, str]:
    """The finite-depth report on 0-1 loss, and on cross-entropy, where bound (C) speaks too."""
    found = {}
    for name, more in (("0-1 loss", {}), ("cross-entropy", {"loss": cross_entropy})):
        trace = _recorded(network, data, "fit", costs, **more) if more else fit
        solved = od.stationary(trace, price=REPORT_PRICE)
        if solved.status != "converged":
            found[name] = str(solved)
            continue
        engine = looped_engine(network, solved.rule)
        inputs, labels = _some(data)
        test = od.record(engine.network, _chunks(inputs, labels), engine.rule.origin.costs, source="test", **more)
        norm = float(torch.linalg.matrix_norm(network.heads[-1].linear.weight, 2))
        sizes = {"residuals": _sizes(engine.network, inputs), "head_norm": norm, "shared_head": True}
        found[name] = str(od.finite_depth(test, engine.rule, price=REPORT_PRICE, **sizes))
    return found


@torch.inference_mode()
def _sizes(network: od.StagedNetwork, inputs: Tensor) -> np.ndarray:
    """(N, K) absolute size of what each step changes in the pooled state, which is all that the head reads."""
    parts = []
    for (x,) in _chunks(inputs):
        state, sizes = network.start(x), []
        for k in range(len(network.exits)):
            before, state = hidden(state), network.advance(state, k)
            sizes.append(torch.linalg.vector_norm((hidden(state) - before).mean((2, 3)), dim=1))
        parts.append(torch.stack(sizes, 1))
    return torch.cat(parts).double().numpy()


def _some(data: Any) -> tuple[Tensor, Tensor]:
    return next(data.batches("test", IMAGES))


def _chunks(*tensors: Tensor) -> Any:
    return zip(*(tensor.split(256) for tensor in tensors), strict=True)


def _page(name: str, result: dict[str, Any]) -> str:
    """The result as Markdown; means over the seeds, with the least and the largest."""
    lines = [
        f"# {name}: a looped network, stopped by the stationary rule",
        "",
        f"{made_by(result)} Trained at {result['trained steps']} steps, recorded at {result['recorded steps']}.",
        "",
        "Accuracy after so many steps, mean over the seeds:",
        "",
    ]
    shown = [2**j for j in range(9)]
    lines += [table_row(["trained by", *map(str, shown)]), table_row(["---", *["---:"] * len(shown)])]
    for arm in ARMS:
        mean = np.mean([run["accuracy"] for run in result["runs"] if run["arm"] == arm], axis=0)
        lines.append(table_row([arm, *(f"{mean[k - 1]:.1%}" for k in shown)]))
    lines += [
        "",
        "The rule on the test split, per seed. Price: loss that one step is worth. Limit: steps after which bound (A) "
        "stops any sample. Lead: loss + price x steps of the best fixed number of steps (chosen on the fit split) less "
        "that of the rule; positive is better.",
        "",
        table_row(HEAD),
        table_row(["---", *["---:"] * (len(HEAD) - 1)]),
    ]
    for run in result["runs"]:
        for row in run["rows"]:
            head = [run["arm"], str(run["seed"]), f"{row['price']:g}"]
            if row["status"] != "converged":
                lines.append(table_row([*head, row["status"], *[""] * 8]))
                continue
            middle = [
                ", ".join(row["features"]),
                f"{row['loss']:.1%}",
                f"{row['mean steps']:.2f}",
                *(str(row[key]) for key in ("deepest", "limit")),
            ]
            rival = [str(row["at the limit"]), str(row["fixed steps"]), f"{row['fixed loss']:.1%}"]
            lines.append(table_row([*head, *middle, *rival, f"{row['lead']:+.4f} ± {row['lead error']:.4f}"]))
    lines += ["", f"Finite depth at price {REPORT_PRICE:g}, seed 0:", ""]
    for run in result["runs"]:
        if run["seed"] == 0:
            lines += [f"- {run['arm']}, {loss}: {text}" for loss, text in run["finite depth"].items()]
    return "\n".join(lines) + "\n"


def _picture(name: str, result: dict[str, Any], path: Path) -> None:
    """Accuracy by step, beyond those trained; and the steps the rule takes beside its limit."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colours = dict(zip(ARMS, (ORANGE, BLUE), strict=True))
    for run in result["runs"]:
        label = run["arm"] if run["seed"] == 0 else None
        steps = np.arange(1, DEEPEST + 1)
        left.plot(steps, 100 * np.array(run["accuracy"]), color=colours[run["arm"]], alpha=0.7, label=label)
        rows = [row for row in run["rows"] if row["status"] == "converged"]
        prices = [row["price"] for row in rows]
        for key, style in (("mean steps", "o-"), ("deepest", "^--")):
            said = f"{key}, {run['arm']}" if run["seed"] == 0 else None
            right.plot(prices, [row[key] for row in rows], style, color=colours[run["arm"]], alpha=0.7, label=said)
    left.axvline(result["trained steps"], color="#555555", linestyle=":", label="steps trained")
    worst = min(min(run["accuracy"][1:]) for run in result["runs"])
    left.set(
        xscale="log",
        xlabel="steps run",
        ylabel="right answers, % of the test split",
        title=f"{name}: beyond the trained depth",
        ylim=(100 * worst - 2, None),
    )
    right.plot(PRICES, [1 + 1 / price for price in PRICES], color="black", label="limit, bound (A)")
    right.set(
        xscale="log",
        yscale="log",
        xlabel="price: loss that one step is worth",
        ylabel="steps",
        title="How long the stationary rule goes on",
        ylim=(0.9, 40 / min(PRICES)),
    )
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"looped: {error}")
