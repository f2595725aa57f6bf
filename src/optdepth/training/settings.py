"""What decides the outcome of a training, and what is kept of every epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import InputError

Schedule = Literal["one-cycle", "cosine"]
Optimizer = Literal["sgd", "adamw"]
Precision = Literal["fp32", "bf16", "fp16", "auto"]
Backbone = Literal["joint", "frozen"]


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a training; a run goes on only with the settings it began with."""

    epochs: int
    batch_size: int
    lr: float
    schedule: Schedule
    optimizer: Optimizer
    weight_decay: float
    seed: int
    precision: Precision
    backbone: Backbone
    loss: str
    costs: tuple[float, ...]
    network: str
    data: str
    processes: int
    task: str

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("processes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: give at least {least}")
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf):
            raise InputError(f"lr={self.lr}, weight_decay={self.weight_decay}: give lr > 0, weight_decay >= 0")
        if self.batch_size % self.processes:
            raise InputError(f"batch_size={self.batch_size}: give a multiple of {self.processes} processes")
        kinds = (("schedule", Schedule), ("optimizer", Optimizer), ("backbone", Backbone))
        for name, choices in ((name, get_args(kind)) for name, kind in kinds):
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={getattr(self, name)!r}: give one of {', '.join(choices)}")


@dataclass(frozen=True)
class Epoch:
    """One epoch: each exit's mean loss while training, price at its end, each exit's accuracy on the fit split
    (none where the task is not classification), seconds, threads of torch.
    """

    losses: tuple[float, ...]
    price: float
    accuracy: tuple[float, ...]
    seconds: float
    threads: int
