"""Training a staged network, on one process or many, through Accelerate."""

import dataclasses
import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Subset

from ..batch import Inputs
from ..errors import InputError
from ..files import rebuilding, write_json
from ..networks.staged import StagedNetwork
from ..progress import bar
from ..splits import Splits, paired
from ..tasks import TaskLoss, cross_entropy
from ..threads import ThreadChoice, chosen, said
from .checkpoint import Checkpoint
from .depth_loss import DepthLoss
from .objective import Objective
from .rehearsal import rehearsal
from .settings import Backbone, Epoch, Optimizer, Precision, Schedule, Settings

CHECKPOINT, RECORD, NETWORK = "checkpoint.safetensors", "training.json", "network"
RECORD_FORMAT, RECORD_VERSION = "optdepth.training", 1


@dataclass(frozen=True)
class History:
    """What a training did: its settings, and one record an epoch."""

    settings: dict[str, Any]
    epochs: tuple[Epoch, ...]


def train(
    network: StagedNetwork,
    data: Splits,
    *,
    loss: DepthLoss,
    task: TaskLoss = cross_entropy,
    epochs: int,
    seed: int,
    out: str | Path,
    costs: Sequence[float] | None = None,
    batch_size: int = 128,
    lr: float | None = None,
    schedule: Schedule = "one-cycle",
    optimizer: Optimizer = "sgd",
    weight_decay: float = 5e-4,
    precision: Precision = "fp32",
    backbone: Backbone = "joint",
    resume: bool = True,
    progress: bool = True,
) -> History:
    """Train in place, and write checkpoint, record and network to `out`.

    A checkpoint is written after every epoch; a killed run loses the epoch it was in and nothing else, and on
    one process of the same machine ends with the same bits. Started by `torchrun` or `accelerate launch`,
    several processes share every batch.

    It runs on as many threads as pay for a step, tried at the start, or on the user's own number (`threads.py`), and
    each epoch says on how many. Gradients summed by another number differ in the last bits: so a run goes on with the
    number it had, unless the user has set another.

    Args:
        network: ends on the device it was trained on, in evaluation mode. In it all trains, but that norms which are in
            evaluation mode (`norm.eval()`) within a network in training mode keep the statistics that they have.
        data: its train split trains; its fit split (at most 5,000 samples) shows progress, and fits the rule of a loss
            that has one; no other is read.
        loss: what the trunk is asked.
        task: (answer, labels) -> (n,), the loss per sample, where it is not cross-entropy; the price of `loss` is in
            its unit, and no accuracy is reported.
        epochs: passes over the train split; samples that do not fill a batch wait for the next epoch.
        seed: of order and augmentation (images alone: crops padded by an eighth, and flips where `data.flip`).
        out: folder for `checkpoint.safetensors`, `training.json`, and `network/` if the network has a config.
        costs: (K,) cumulative cost of each exit, in any unit; by default its share of the blocks.
        batch_size: over all processes together.
        lr: the highest learning rate; for SGD by default 0.1 for a batch of 128, in proportion for others (Goyal et
            al. 2017, arXiv:1706.02677). AdamW has no default.
        schedule: "one-cycle" rises linearly from lr/25 in the first quarter, then falls to 0 as a cosine
            (Smith and Topin 2018, arXiv:1708.07120, without the cycle in momentum); "cosine" falls from the
            start.
        optimizer: "sgd" with Nesterov momentum 0.9, or "adamw" (Loshchilov and Hutter 2019, arXiv:1711.05101), with
            which transformers are fine-tuned.
        weight_decay: on all trained parameters.
        precision: "fp32", "bf16", "fp16" (GPUs alone), or "auto": bf16 where the hardware has it, else fp32.
        backbone: "frozen" trains the heads before the last alone, and leaves every other bit as it is.
        resume: go on from the checkpoint in `out`, if there is one; else start again.
        progress: a bar on stderr.

    Raises:
        InputError: settings out of range, or other than those of the run to resume; a damaged checkpoint; a
            batch or a loss with NaN or inf.
        KeyboardInterrupt: with a message that says how to go on.

    Example:
        >>> small = od.resnet(8, classes=10, channels=1, width=4, seed=0)
        >>> history = od.train(small, data, loss=od.DepthLoss(), epochs=1, seed=0, out="run")
        >>> len(history.epochs)
        1
    """
    if lr is None and optimizer != "sgd":
        raise InputError(f"optimizer={optimizer!r} needs lr=: 5e-5 is usual to fine-tune a transformer")
    accelerator = _accelerator(precision)
    split, depth = data.splits["train"], network.exits[-1].depth
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        lr=0.1 * batch_size / 128 if lr is None else lr,
        schedule=schedule,
        optimizer=optimizer,
        weight_decay=weight_decay,
        seed=seed,
        precision=precision,
        backbone=backbone,
        loss=repr(loss),
        costs=tuple(map(float, [exit.depth / depth for exit in network.exits] if costs is None else costs)),
        network=network.fingerprint(),
        data=f"{split.source} rows {hashlib.sha256(split.rows.tobytes()).hexdigest()[:12]}",
        processes=accelerator.num_processes,
        task=getattr(task, "__qualname__", type(task).__qualname__),
    )
    trained = [parameter.requires_grad for parameter in network.parameters()]
    try:
        run = _Run(accelerator, settings, network, data, loss, task, Path(out))
        done = run.load() if resume else []
        with run.threads(done), run.bar(shown=progress, done=len(done)) as advance:
            if done:
                run.catch_up(done[-1].price)
            for epoch in range(len(done), epochs):
                done.append(run.epoch(epoch, advance))
                run.save(done)
    except KeyboardInterrupt:
        again = "call train again with the network as it was at first and the same settings"
        raise KeyboardInterrupt(f"training stopped; to go on from {Path(out) / CHECKPOINT}, {again}") from None
    finally:
        for parameter, flag in zip(network.parameters(), trained, strict=True):
            parameter.requires_grad_(flag)
        network.eval()
    return run.finish(done)


class _Run:
    """One training: what Accelerate prepared, and the steps that `train` strings together."""

    def __init__(
        self,
        accelerator: Accelerator,
        settings: Settings,
        network: StagedNetwork,
        data: Splits,
        loss: DepthLoss,
        task: TaskLoss,
        out: Path,
    ) -> None:
        self.accelerator, self.settings, self.network, self.data = accelerator, settings, network, data
        self.loss, self.out, self.checkpoint, self.shown = loss, out, out / CHECKPOINT, ""
        self.classifies = task is cross_entropy
        split = data.splits["train"]
        self.order = torch.Generator()
        workers = 0 if split.in_memory else min(8, os.cpu_count() or 1)
        loader: DataLoader[Any] = DataLoader(
            split,  # type: ignore[arg-type]  # anything with a length and items
            settings.batch_size,
            shuffle=True,
            drop_last=True,
            generator=self.order,
            num_workers=workers,
        )
        self.steps = len(loader)
        if self.steps == 0:
            raise InputError(f"batch_size={settings.batch_size}, but {len(split)} samples: give a smaller one")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)  # for the halting head
            objective = Objective(network, loss, settings.costs, frozen=settings.backbone == "frozen", task=task)
        optimizer = _optimizer(objective, settings)
        self.model, self.optimizer, self.loader = accelerator.prepare(objective, optimizer, loader)

    def threads(self, done: list[Epoch]) -> AbstractContextManager[int]:
        """The threads to train on: those of the epochs done, if there are so many here; else as many as pay."""
        if done and done[-1].threads <= torch.get_num_threads():
            return chosen(done[-1].threads)
        size, device = self.settings.batch_size // self.settings.processes, self.accelerator.device
        part: Subset[Any] = Subset(self.data.splits["train"], range(size))  # type: ignore[arg-type]
        held, labels = tree_map(lambda tensor: tensor.to(device), next(iter(DataLoader(part, size))))
        step = rehearsal(self.accelerator.unwrap_model(self.model), self.loss.price_at(0.0))
        return ThreadChoice().running("training steps", paired(self.data, held, labels), step)

    def epoch(self, epoch: int, advance: Callable[[str], None]) -> Epoch:
        """One pass over the train split. All its randomness comes from (seed, epoch, process)."""
        begin, settings, device = time.monotonic(), self.settings, self.accelerator.device
        order, crops, other = _seeds(settings.seed, epoch, self.accelerator.process_index)
        self.order.manual_seed(order)
        generator = torch.Generator(device).manual_seed(crops)
        total = torch.zeros(len(self.network.exits), device=device)
        self.model.train()
        threads = torch.get_num_threads()
        label = f"epoch {epoch + 1}/{settings.epochs} on {said(threads)}"
        with torch.random.fork_rng():
            torch.manual_seed(other)  # for modules that draw: dropout, stochastic depth
            for step, (held, labels) in enumerate(self.loader):
                inputs, labels = paired(self.data, held, labels, generator)
                where = f"in epoch {epoch + 1}, batch {step + 1}"
                _finite(inputs, f"a sample {where} holds NaN or inf: correct the data")
                done = (epoch * self.steps + step) / (settings.epochs * self.steps)
                losses = self._step(inputs, labels, done)
                _finite(losses, f"the loss {where} is NaN or inf: give a smaller lr than {settings.lr:g}")
                total += losses.mean(0)
                advance(f"{label}, loss {losses[:, -1].mean():.3f}{self.shown}")
        means = self.accelerator.reduce(total / self.steps, "mean")
        price = self.loss.price_at((epoch + 1) / settings.epochs)
        accuracy: tuple[float, ...] = ()
        if self.classifies:
            logits, targets = self._fit_answers()
            self._solve_rule(logits, targets, price)
            accuracy = tuple(float((answer.argmax(1) == targets).float().mean()) for answer in logits)
            self.shown = f", accuracy {accuracy[0]:.1%} at the first exit, {accuracy[-1]:.1%} at the last"
        return Epoch(tuple(means.tolist()), price, accuracy, time.monotonic() - begin, threads)

    def _step(self, inputs: Inputs, labels: Tensor, done: float) -> Float[Tensor, "n K"]:
        """One update; `done` is the share of the training before it. Returns the losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * _share_of_lr(self.settings.schedule, done)
        value, losses = self.model(inputs, labels, self.loss.price_at(done))
        self.optimizer.zero_grad()
        self.accelerator.backward(value)
        self.optimizer.step()
        result: Tensor = losses
        return result

    def _fit_answers(self) -> tuple[list[Float[Tensor, "n ..."]], Tensor]:
        """Logits of each exit, and the targets, on at most 5,000 evenly spaced samples of the fit split."""
        split, device = self.data.splits["fit"], self.accelerator.device
        chosen = np.unique(np.linspace(0, len(split) - 1, 5000, dtype=np.int64)).tolist()
        answers: list[list[Tensor]] = []
        targets: list[Tensor] = []
        self.network.eval()
        with torch.no_grad(), self.accelerator.autocast():
            part: Subset[Any] = Subset(split, chosen)  # type: ignore[arg-type]
            for held, labels in DataLoader(part, batch_size=500):
                inputs, labels = paired(self.data, *tree_map(lambda tensor: tensor.to(device), (held, labels)))
                answers.append(self.network(inputs))
                targets.append(labels)
        return [torch.cat(one) for one in zip(*answers, strict=True)], torch.cat(targets)

    def _solve_rule(self, logits: list[Float[Tensor, "n ..."]], targets: Tensor, price: float) -> None:
        """Solves the rule of the loss anew, if it has one and a price is in force."""
        if "rule" in self.loss.needs and price > 0:
            self.accelerator.unwrap_model(self.model).solve(logits, targets, price)

    @contextmanager
    def bar(self, *, shown: bool, done: int) -> Iterator[Callable[[str], None]]:
        """A progress bar on stderr; yields what moves it one batch on."""
        with bar(shown=shown and self.accelerator.is_main_process, transient=False) as progress:
            total = self.settings.epochs * self.steps
            task = progress.add_task("training", total=total, completed=done * self.steps)
            yield lambda text: progress.update(task, advance=1, description=text)

    def save(self, done: list[Epoch]) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            scaled = None if scaler is None else scaler.state_dict()
            model, remembered = self.accelerator.unwrap_model(self.model), self.optimizer.state_dict()["state"]
            Checkpoint(self.settings, tuple(done), model.state_dict(), remembered, scaled).save(self.checkpoint)
        self.accelerator.wait_for_everyone()

    def load(self) -> list[Epoch]:
        """Take over the checkpoint, if there is one; the epochs done so far."""
        if not self.checkpoint.is_file():
            return []
        again = "delete it to start again"
        there = Checkpoint.load(self.checkpoint, again)
        was, now = dataclasses.asdict(there.settings), dataclasses.asdict(self.settings)
        if different := [name for name in now if was[name] != now[name]]:
            changes = ", ".join(f"{name} was {was[name]}, is {now[name]}" for name in different)
            raise InputError(f"{self.checkpoint} is of another run ({changes}): use its settings or a new out")
        with rebuilding(self.checkpoint, again):
            model = self.accelerator.unwrap_model(self.model)
            _check_weights(there, model.state_dict())
            _check_remembered(there, [one for group in self.optimizer.param_groups for one in group["params"]])
            model.load_state_dict(there.model)
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": there.optimizer})
            if there.scaler is not None:
                self.accelerator.scaler.load_state_dict(there.scaler)
        return list(there.epochs)

    def catch_up(self, price: float) -> None:
        """Solves the rule of the last epoch: it is not in the checkpoint, for it is what the network's answers give."""
        if "rule" in self.loss.needs:
            self._solve_rule(*self._fit_answers(), price)

    def finish(self, done: list[Epoch]) -> History:
        """Write the record and the network."""
        history = History(dataclasses.asdict(self.settings), tuple(done))
        if self.accelerator.is_main_process:
            machine = {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "accelerate": accelerate.__version__,
                "device": str(self.accelerator.device),
            }
            about = {"format": RECORD_FORMAT, "version": RECORD_VERSION, **dataclasses.asdict(history)}
            write_json(self.out / RECORD, {**about, "machine": machine})
            if self.network.config is not None:
                self.network.save(self.out / NETWORK)
        self.accelerator.wait_for_everyone()
        return history


def _optimizer(objective: Objective, settings: Settings) -> torch.optim.Optimizer:
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(trained, settings.lr, momentum=0.9, weight_decay=settings.weight_decay, nesterov=True)


def _check_weights(there: Checkpoint, fresh: dict[str, Tensor]) -> None:
    """Refuses weights of another type, which torch would round, and such as no epoch ends with."""
    if lacking := there.model.keys() ^ fresh.keys():
        raise InputError(f"{min(lacking)} is missing, or is nothing of this network; delete it to start again")
    for name, value in there.model.items():
        if value.dtype != fresh[name].dtype:
            raise InputError(f"{name} is {value.dtype}, not {fresh[name].dtype}; delete it to start again")
    for held in (there.model, *there.optimizer.values()):
        for name, value in held.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise InputError(f"{name} holds NaN or infinity; delete it to start again")


def _check_remembered(there: Checkpoint, parameters: list[Tensor]) -> None:
    """Refuses what an optimizer cannot go on with; torch would take it, and fail at a step or not at all."""
    kept = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}[there.settings.optimizer]
    for number, held in there.optimizer.items():
        shape = parameters[number].shape
        if held.keys() != kept or any(value.shape != shape for name, value in held.items() if name != "step"):
            found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in held.items())
            raise InputError(f"of parameter {number}, {tuple(shape)}, it remembers {found}; delete it to start again")


def _accelerator(precision: Precision) -> Accelerator:
    """Accelerate's view of this process, on an accelerator if there is one."""
    cpu = not torch.accelerator.is_available()
    if precision == "auto":
        precision = "bf16" if (_cpu_has_bf16() if cpu else torch.cuda.is_bf16_supported()) else "fp32"
    if precision not in ("fp32", "bf16", "fp16"):
        raise InputError(f"precision={precision!r}: give fp32, bf16, fp16 or auto")
    if precision == "fp16" and cpu:
        raise InputError("precision='fp16' needs a GPU: give bf16, fp32 or auto")
    AcceleratorState._reset_state()  # its precision is fixed once a process otherwise
    return Accelerator(
        cpu=cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )


def _cpu_has_bf16() -> bool:
    """Whether the processor itself multiplies in bfloat16: with AVX-512 alone oneDNN emulates it, slower than fp32."""
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _seeds(*entropy: int) -> list[int]:
    return [int(word) for word in np.random.SeedSequence(entropy).generate_state(3)]


def _share_of_lr(schedule: Schedule, done: float) -> float:
    """Learning rate over its highest value, once a share `done` of the training is behind."""
    rise = 0.25 if schedule == "one-cycle" else 0.0
    if done < rise:
        return 0.04 + 0.96 * done / rise
    return 0.5 + 0.5 * math.cos(math.pi * (done - rise) / (1 - rise))


def _finite(values: Inputs, message: str) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tree_leaves(values)):
        raise InputError(message)
