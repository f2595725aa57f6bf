"""Prompts of four kinds for `decoding.py`: some to fit a drafter on, others to judge it by."""

from __future__ import annotations

import json
from pathlib import Path

_ASKED = (
    "Explain {} to a child.", "Give me five tips about {}.", "What are the advantages and disadvantages of {}?",
    "Write a short email to a colleague about {}.", "Summarize what is known about {} in three sentences.",
    "How do I get started with {}?", "List the most common mistakes people make with {}.",
)  # fmt: skip
_SUBJECTS = (
    "gardening", "the water cycle", "learning a language", "electric cars", "sleep", "public transport", "cooking rice",
    "solar panels", "remote work", "volcanoes", "saving money", "photography", "running a marathon", "bees", "chess",
    "job interviews", "vaccines", "the history of Rome", "recycling", "playing the guitar", "time management",
)  # fmt: skip
_CODED = (
    "Write a Python function that {}.", "Write a JavaScript function that {}.", "Show me Python code that {}.",
    "Write a Python program with comments that {}.",
)  # fmt: skip
_TASKS = (
    "reverses a string", "checks whether a number is prime", "counts the words of a text file", "sorts a list of names",
    "computes the factorial of a number", "finds the largest number in a list", "merges two dictionaries",
    "removes duplicates from a list", "converts Celsius to Fahrenheit", "checks whether a word is a palindrome",
    "prints the first n Fibonacci numbers", "reads a CSV file and sums a column", "computes the average of a list",
    "finds the second largest number in a list", "counts the vowels of a string", "flattens a nested list",
)  # fmt: skip
_TOLD = (
    "Write a short story about {}.", "Tell me a bedtime story about {}.", "Begin a novel about {}.",
    "Write a fairy tale about {}.",
)  # fmt: skip
_HEROES = (
    "a lighthouse keeper and a whale", "a dragon who is afraid of fire", "two brothers lost in a forest",
    "a robot that learns to paint", "a girl who can talk to birds", "an old clockmaker", "a cat who goes to sea",
    "a village without music", "a knight and a talking horse", "the last tree of a city", "a baker and a thief",
    "a boy who finds a map", "a star that fell into a pond", "a library at night", "a fox and a snowman",
    "a train that never stops",
)  # fmt: skip


def prompts(gsm8k: Path | None, each: int, *, judged: bool) -> dict[str, list[str]]:
    """Questions by kind, so many each; those that judge have other subjects than those that fit.

    Args:
        gsm8k: folder with `trajectories.jsonl`; without it there is no mathematics.
    """
    kinds = {
        "instructions": _crossed(_ASKED, _SUBJECTS, judged),
        "code": _crossed(_CODED, _TASKS, judged),
        "stories": _crossed(_TOLD, _HEROES, judged),
    }
    if gsm8k is not None:
        lines = (gsm8k / "trajectories.jsonl").read_text().splitlines()
        questions = list(dict.fromkeys(json.loads(line)["question"] for line in lines))
        kinds["mathematics"] = questions[::4] if judged else [q for i, q in enumerate(questions) if i % 4]
    return {kind: found[:each] for kind, found in kinds.items()}


def _crossed(frames: tuple[str, ...], subjects: tuple[str, ...], judged: bool) -> list[str]:
    """Every frame with every subject of one side, in an order in which neighbours differ in both."""
    side = [subject for i, subject in enumerate(subjects) if (i % 4 == 0) == judged]
    return [
        frames[(i + turn) % len(frames)].format(subject)
        for turn in range(len(frames))
        for i, subject in enumerate(side)
    ]
