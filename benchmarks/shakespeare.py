"""A character model of Shakespeare, token by token: right next characters, mean cost and time of every rule.

    pip install 'optdepth[text]' && python benchmarks/shakespeare.py --data ../shared/data/tinyshakespeare

A small Llama, trained from scratch with equal shares for all exits, or beside heads that ask nothing of its trunk
(`--early 0`). Every rule is solved on tokens of the fit split and judged on the test split, the last tenth of the
text, as it decodes: with the states of tokens that have stopped handed on (`Decoder.follow`). Interrupted, the same
command goes on where it stopped. Writes a table, its figures and a picture to `benchmarks/results/shakespeare/`.
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
from optdepth.errors import InputError
from optdepth.flows import save_figure
from optdepth.inference.clock import times
from optdepth.inference.decoding import token_flops
from optdepth.palette import BLUE, ORANGE
from optdepth.progress import shown_steps
from optdepth.stopping.evaluate import Evaluation
from optdepth.stopping.frontier import Frontier
from optdepth.stopping.methods import method_of
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.tasks import token_cross_entropy
from optdepth.tensors import TensorSplit
from optdepth.threads import on_threads
from optdepth.training.depth_loss import DeepSupervision

sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # transformers would load it for images

HERE = RESULTS / "shakespeare"
LENGTH = 128
"""Characters a window; with the one in front of it, a window's characters are all predicted."""
SHARES = {"train": 0.8, "fit": 0.05, "certify": 0.05, "test": 0.1}
"""Of the text, in this order."""
METHODS = {"placed": BLUE, "confidence": ORANGE, "patience": "#8a6d00"}
"""Rules, and their colours in the picture."""
PRICES = np.geomspace(0.003, 1.0, 9)
DROPS = (0.0, 0.005, 0.01, 0.02)
"""Accuracy given up, in the table of costs."""
JUDGING = 256
"""Windows of the test split that judge, from its beginning on."""


def main() -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with the text as input.txt")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--price", type=float, default=0.1, help="wrong characters that one full pass is worth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--early", default="equal", choices=("equal", "0"), help="share of each early exit in the trunk"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/shakespeare"), help="folder of the weights")
    given = parser.parse_args()
    data, characters = shakespeare(Path(given.data) / "input.txt")
    model, network = trained(data, len(characters), given.early, given.epochs, given.seed, given.runs)
    result = {
        "price": given.price,
        "seed": given.seed,
        "early": given.early,
        "epochs": given.epochs,
        **provenance(__file__, also=("transformers",)),
        "samples": {name: len(split) * LENGTH for name, split in data.splits.items()} | {"test": JUDGING * LENGTH},
        **judged(model, network, data, given.price, characters),
    }
    HERE.mkdir(exist_ok=True)
    save(HERE / f"early-{given.early}.json", result)
    (HERE / f"early-{given.early}.md").write_text(page(result))
    picture(result, HERE / f"early-{given.early}.svg")
    print(page(result))


def shakespeare(path: Path) -> tuple[od.TensorData, str]:
    """Windows of the text, each part of it a split of its own; and the characters there are."""
    if not path.is_file():
        raise InputError(f"no such file: {path}; give the folder that holds the text with --data")
    text = path.read_text()
    characters = "".join(sorted(set(text)))
    tokens = torch.tensor([characters.index(character) for character in text])
    splits, first = {}, 0
    for name, share in SHARES.items():
        part = tokens[first : first + int(share * len(tokens))]
        first += len(part)
        windows = part.unfold(0, LENGTH + 1, LENGTH)
        rows = np.arange(len(windows), dtype=np.int64)
        inputs = {"input_ids": windows[:, :-1].contiguous()}
        splits[name] = TensorSplit(inputs, windows[:, 1:].contiguous(), source=f"shakespeare/{name}", rows=rows)
    return od.TensorData("shakespeare", splits), characters


def trained(
    data: od.TensorData, characters: int, early: str, epochs: int, seed: int, runs: Path
) -> tuple[torch.nn.Module, od.StagedNetwork]:
    """The model and its exits, trained as far as they are not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    model = LlamaForCausalLM(LlamaConfig(vocab_size=characters, max_position_embeddings=1024, **sizes, **special))
    example, out = next(data.batches("train", 4))[0], runs / f"llama-{early}-{seed}"
    if (out / "training.json").is_file():
        return model, od.load_network(out / "network", model=model, example=example)
    network = od.stage(model, example=example, exits="all", head="own")
    od.train(
        network,
        data,
        loss=od.DepthLoss(parts=((1.0, DeepSupervision("equal" if early == "equal" else 0.0)),), distillation=0.0),
        task=token_cross_entropy,
        epochs=epochs,
        seed=seed,
        batch_size=32,
        optimizer="adamw",
        lr=3e-3,
        weight_decay=0.1,
        out=out,
    )
    return model, network


def judged(
    model: torch.nn.Module, network: od.StagedNetwork, data: od.TensorData, price: float, characters: str
) -> dict[str, Any]:
    """Every rule at one price and over all prices, as it decodes the test split; three of them on the clock."""
    prompts = data.splits["test"].inputs["input_ids"]
    costs = token_flops(model, network, prompts[:4]).relative()
    fit = od.record(network, data.batches("fit", 64), costs, each="token")
    targets = data.splits["test"].labels[:JUDGING]
    test = od.record(network, [({"input_ids": prompts[:JUDGING]}, targets)], costs, each="token")
    texts = torch.cat([prompts[:JUDGING], targets[:, -1:]], dim=1)
    families = {name: method_of(name).solve(fit) for name in METHODS}
    deepest = f"exit {len(network.exits)}"
    rules: dict[str, od.Rule] = {f"exit {k + 1}": FixedDepth(Origin.of(fit, price), k) for k in range(fit.n_exits)}
    rules |= {name: family.at(price) for name, family in families.items()}
    decoders = {name: od.Decoder(model, network, rule) for name, rule in rules.items()}
    followed = {name: decoder.follow(texts) for name, decoder in decoders.items()}
    rows = []
    for name, found in followed.items():
        told = od.evaluate(rules[name], test)
        rows.append({"method": name, "accuracy": 1 - found.loss, "error": found.loss_error, "cost": found.cost})
        rows[-1] |= {"told": {"accuracy": 1 - told.loss, "cost": told.cost}, "shares": found.shares.round(4).tolist()}
    sweep = [swept(model, network, name, families[name], texts, followed[deepest]) for name in METHODS]
    clocked = []
    for size in (1, 8):
        chunks = [prompts[i : i + size, :32] for i in range(0, 6 * size, size)]
        serves = [
            lambda chunk: model.generate(
                chunk, attention_mask=torch.ones_like(chunk), max_new_tokens=64, do_sample=False
            ),
            *[lambda chunk, name=name: decoders[name].generate(chunk, 64) for name in (deepest, *METHODS)],
        ]
        with on_threads(torch.get_num_threads()):  # the same for all of them
            spent = times(serves, chunks, 5, said=f"writing with batches of {size}")
        clocked += [
            {"method": name, "batch": size, "ms a token": each / 64, "ratio": spent[0] / each}
            for name, each in zip(("generate", deepest, *METHODS), spent, strict=True)
        ]
    sample = decoders["placed"].generate(prompts[:1, :32], LENGTH - 32)
    said = "".join(characters[token] for token in sample.tokens[0].tolist())
    asked = "".join(characters[token] for token in prompts[0, :32].tolist())
    return {
        "unit": costs.unit,
        "costs": {name: getattr(costs, name).round(4).tolist() for name in ("reach", "look", "answer")},
        "rows": rows,
        "sweep": sweep,
        "clock": clocked,
        "text": {"prompt": asked, "written": said, "exits": sample.exit[0].tolist()},
    }


def swept(
    model: torch.nn.Module,
    network: od.StagedNetwork,
    name: str,
    family: od.Family[od.Rule],
    texts: Tensor,
    full: Evaluation,
) -> dict[str, Any]:
    """Accuracy and cost of a method at every price, and the cost at which it gives up so much accuracy."""
    prices = shown_steps(PRICES, f"following by {name}")
    found = tuple(od.Decoder(model, network, family.at(float(price))).follow(texts) for price in prices)
    swept = Frontier(name, PRICES, found, full)
    costs, losses = swept.curve()
    needed = {str(drop): swept.cost_at(full.loss + drop) for drop in DROPS}
    return {"method": name, "costs": costs.tolist(), "accuracies": (1 - losses).tolist(), "cost at loss": needed}


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    samples, costs = result["samples"], result["costs"]
    lines = [
        f"# Shakespeare, character by character: every rule at price {result['price']:g}",
        "",
        f"{made_by(result)} Seed {result['seed']}. A Llama of eight layers and width 96, {result['epochs']} epochs, "
        + (
            "equal shares of the trunk for all exits"
            if result["early"] == "equal"
            else "the last exit's gradient alone"
        )
        + f"; {samples['train']:,} characters train, "
        f"{samples['fit']:,} fit the rules, {samples['test']:,} judge them. Cost in full passes of one token (FLOPs), "
        f"keys and values of layers not run included: {costs['answer'][0]:.2f} of a pass at the first exit.",
        "",
        "Right: the most likely next character is the text's, with states handed on as in writing; in brackets what "
        "the trace says, recorded at full depth.",
        "",
        table_row(["rule", "right", "mean cost", *(f"clock ratio, batch {size}" for size in (1, 8))]),
        table_row(["---", *["---:"] * 4]),
    ]
    ratios = {(row["method"], row["batch"]): f"{row['ratio']:.2f}" for row in result["clock"]}
    for row in result["rows"]:
        right = f"{row['accuracy']:.2%} ± {row['error']:.2%} ({row['told']['accuracy']:.2%})"
        cost = f"{row['cost']:.3f} ({row['told']['cost']:.3f})"
        lines.append(
            table_row([row["method"], right, cost, *(ratios.get((row["method"], size), "") for size in (1, 8))])
        )
    lines += [
        "",
        "Clock: `model.generate` of transformers over the decoder, 64 characters behind prompts of 32, medians of five "
        "turns side by side.",
        "",
        "Mean cost needed to be right as often as the last exit, or less so by some points:",
        "",
        table_row(["method", "last exit", "-0.5", "-1", "-2"]),
        table_row(["---", *["---:"] * 4]),
    ]
    for row in result["sweep"]:
        needed = [f"{cost:.3f}" if cost == cost else "not reached" for cost in row["cost at loss"].values()]
        lines.append(table_row([row["method"], *needed]))
    text = result["text"]
    lines += [
        "",
        "Written by `placed`, behind the prompt and a bar:",
        "",
        "```",
        f"{text['prompt']}|{text['written']}",
        "```",
    ]
    return "\n".join(lines) + "\n"


def picture(result: dict[str, Any], path: Path) -> None:
    """Right next characters against mean cost; and where each character of the text written stopped."""
    figure, (axes, below) = plt.subplots(2, 1, figsize=(9, 7), height_ratios=(3, 1.3), layout="constrained")
    for row in result["sweep"]:
        costs, right = (100 * np.asarray(row[key]) for key in ("costs", "accuracies"))
        width = 2.5 if row["method"] == "placed" else 1.5
        axes.plot(costs, right, color=METHODS[row["method"]], linewidth=width, label=row["method"], zorder=width)
    fixed = [row for row in result["rows"] if row["method"].startswith("exit")]
    dots = [(100 * row["cost"], 100 * row["accuracy"]) for row in fixed]
    axes.scatter(*zip(*dots, strict=True), color="#555555", s=22, label="every character at one exit", zorder=3)
    axes.set(xlabel="mean cost, % of a full pass", ylabel="right next characters, %")
    axes.legend(frameon=False, loc="lower right")
    text = result["text"]
    for i, (character, exit) in enumerate(zip(text["written"][:96], text["exits"], strict=False)):
        below.bar(i, exit + 1, width=0.9, color=plt.get_cmap("viridis")((exit + 1) / 8))
        below.text(i, -0.5, {"\n": "⏎", " ": "␣"}.get(character, character), ha="center", va="top", fontsize=7)
    below.set(ylabel="layers run", ylim=(0, 8), xlim=(-1, 96))
    below.set_xticks([])
    for each in (axes, below):
        each.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    save_figure(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"shakespeare: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"shakespeare: {error}; pip install 'optdepth[text]'")
