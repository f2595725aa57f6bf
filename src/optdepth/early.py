"""EarlyExit: what `fit` returns and a user keeps: a network, the family of its rules, what was promised and seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_type_hints

import huggingface_hub
import torch
from PIL import Image
from torch import Tensor, nn

from .batch import Inputs
from .errors import InputError
from .export.bundle import Bundle, export
from .fields import Fields
from .files import rebuilding
from .inference.clock import Clocked
from .inference.engine import Answer, Engine
from .inference.timings import Timings
from .interrupts import interrupts
from .networks import StagedNetwork, load_network
from .report import Provenance, write_report
from .stopping.certify import Certificate, percent
from .stopping.evaluate import Evaluation, evaluate
from .stopping.family import Family
from .stopping.methods import METHODS, SOLVED
from .stopping.rule import Rule
from .tensor_files import read_tensors, write_tensors
from .trace import Trace

_FORMAT, _VERSION = "optdepth.early", 1
_MAKE_IT = "make it with od.fit(...).save(folder)"
FILE = "early.safetensors"
_WAIT = 10.0
"""Seconds for the hub to answer."""
_TIMED = "timings."
_TIMES = {"sizes": 1, "stages": 2, "looks": 2, "gathers": 2}
"""Arrays of `Timings` and their dimensions."""
_MADE = {
    "commands": list[str],
    "versions": dict[str, str],
    "seeds": dict[str, int],
    "training": dict[str, str | int],
}


Layout = Literal["as given", "channels last"]
"""Of images and their states in memory."""


@dataclass(frozen=True)
class Asked:
    """What was asked of a fit: exactly one of the first three.

    Attributes:
        price: loss that a full pass of the network is worth.
        budget: mean cost a sample, as a share of a full pass.
        lose: accuracy that may be lost to the full network at most, with this confidence.
    """

    price: float | None = None
    budget: float | None = None
    lose: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        given = [name for name in ("price", "budget", "lose") if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(f"{name}={getattr(self, name):g}" for name in given) or "none of them"
            raise InputError(
                f"say one of lose= (accuracy that may be lost, 0.01 is one point), budget= (share of a full pass) and "
                f"price= (loss that a full pass is worth); got {said}"
            )
        for name, least, most in (("budget", 0.0, 1.0), ("lose", 0.0, 1.0), ("confidence", 0.0, 1.0)):
            value = getattr(self, name)
            if value is not None and not least < value < most + (name == "budget") * 1e-12:
                raise InputError(f"{name}={value:g}: give more than {least:g} and less than {most:g}, such as 0.01")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise InputError(f"price={self.price:g}: give a loss >= 0 that one full pass is worth, such as 0.05")


@dataclass(frozen=True, eq=False)
class EarlyExit:
    """A network that stops early by a solved rule: `early(inputs)` answers.

    It adds no mechanism: network, family, rule and traces are what `stage`, `placed` and `record` make, and all that
    can be done with those can be done with these.

    Attributes:
        network: with exits; its last exit is the model that was given.
        family: rules for every price, with the trace that fitted them.
        rule: the one that runs.
        asked: what the rule was chosen by.
        certificate: what is promised of the rule; None where no promise was asked for.
        certify, test: the traces that the promise was shown on, and that judge; None where there were none.
        clock: time on the machine that fitted, by batch size.
        timings: of stages and looks, by batch size, which the engine cuts and gathers batches by.
        heads: by exit, share of held-out training samples that its head answers right.
        layout: of images in memory, in which the network runs.
        example: inputs as the model takes them.
        made: versions, seeds and settings, word for word.

    Example:
        >>> early = od.fit(classifier, data, price=0.2, costs="flops", progress=False)
        >>> early.save("kept")
        >>> bool((od.load("kept", model=classifier)(images).exit == early(images).exit).all())
        True
    """

    network: StagedNetwork
    family: Family[Rule]
    rule: Rule
    asked: Asked
    certificate: Certificate | None
    certify: Trace | None
    test: Trace | None
    clock: tuple[Clocked, ...]
    timings: Timings
    heads: Mapping[str, float]
    layout: Layout
    example: Inputs
    made: Provenance
    _engines: dict[float, Engine] = field(default_factory=dict, repr=False)

    def __call__(self, inputs: Inputs, *, price: float | None = None) -> Answer:
        """Answers a batch; every sample at the exit where the rule stops it.

        Args:
            inputs: as the model takes them, batch first.
            price: loss that a full pass is worth, instead of the rule that was fitted; the rule for it is solved at
                the first call. No certificate covers it.
        """
        if price is None:
            return self.engine(inputs)
        if price not in self._engines:
            self._engines[price] = Engine(self.network, self.family.at(price), timings=self.timings)
        return self._engines[price](inputs)

    @cached_property
    def engine(self) -> Engine:
        """What runs the network by the rule."""
        return Engine(self.network, self.rule, timings=self.timings)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """Of the rule on the test trace."""
        return None if self.test is None else evaluate(self.rule, self.test)

    def __str__(self) -> str:
        return "; ".join(self._said())

    def _said(self) -> list[str]:
        """Sentences: what is promised, what was seen on test, and how fast it is."""
        said = []
        found, full = self.certificate, self.rule.origin.costs.full
        if found is not None:
            (promise,) = found.promises
            if found.gained:
                said.append(
                    f"loses at most {_points(promise.risk)} to the full model ({percent(found.confidence)} sure, "
                    f"{found.samples:,} samples)"
                )
            else:
                said.append(str(found))
        if self.evaluation is not None and self.test is not None:
            lost = self.evaluation.loss - float(self.test.losses[:, -1].mean())
            said.append(
                f"on {len(self.test):,} test samples {1 - self.evaluation.loss:.1%} right, the full model "
                f"{1 - float(self.test.losses[:, -1].mean()):.1%} ({_points(abs(lost))} "
                f"{'fewer' if lost > 0 else 'more'}), at {self.evaluation.cost / full:.2f} of its cost"
            )
        elif found is not None:
            said.append(f"{found.cost / full:.2f} of its cost")
        if self.clock:
            times = [f"{row.speedup:.2f} at batch {row.batch}" for row in self.clock]
            said.append(f"times as fast on this machine: {', '.join(times)}")
        return said or [f"{self.rule.origin.price:g} a full pass"]

    def report(
        self,
        path: str | Path,
        *,
        show: Callable[[int], Image.Image | str] | None = None,
        labels: Sequence[str] | None = None,
    ) -> Path:
        """Writes one self-contained HTML page about it.

        Args:
            show: the picture or the text of the test sample at a position; some are then shown.
            labels: what to call each test sample, its right class for example.

        Raises:
            InputError: there are no test samples to report on, or the rule has no price to compare others at.
        """
        if self.test is None:
            raise InputError("a report needs samples that judge: give od.fit test=")
        price = self.rule.origin.price
        if price is None:
            raise InputError("nothing was gained, so there is no rule to report on; give more samples or another aim")
        write_report(
            path,
            title=f"{self.made.training['model']}, stopping early",
            names=[exit.name for exit in self.network.exits],
            fit=self.family.trace,
            test=self.test,
            rules={name: method.solve(self.family.trace).at(price) for name, method in METHODS.items()},
            price=price,
            certify=self.certify,
            made=self.made,
            show=show,
            labels=labels,
            clock=[replace(row, method=SOLVED) for row in self.clock],
            promise=f"{str(self)[0].upper()}{str(self)[1:]}.",
        )
        return Path(path)

    def export(self, folder: str | Path, *, progress: bool = False) -> Bundle:
        """Writes network and rule as a bundle that is served without torch, checked against the engine."""
        return export(self.network, self.rule, self.example, folder, progress=progress)

    def push_to_hub(self, name: str, *, private: bool = True) -> None:
        """Saves it in a repository of the Hugging Face hub, which is made where it is not there; see `from_hub`.

        Args:
            name: owner/name.

        Raises:
            InputError: the hub cannot be reached, or refuses.
        """
        with TemporaryDirectory() as folder, _hub(name):
            self.save(folder)
            api = huggingface_hub.HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=str(self)[:200])

    def save(self, folder: str | Path) -> None:
        """Writes all of it into a folder: weights, rule, traces, certificate, what was measured. `load` reads it."""
        folder = Path(folder)
        self.network.save(folder / "network")
        self.rule.save(folder / "rule")
        for name, trace in (("fit", self.family.trace), ("certify", self.certify), ("test", self.test)):
            if trace is not None:
                trace.save(folder / "traces" / f"{name}.safetensors")
        tensors, form = _flat(self.example)
        arrays = {f"{_TIMED}{name}": torch.from_numpy(getattr(self.timings, name)) for name in _TIMES}
        promised = None
        if self.certificate is not None:
            promised = {each.name: getattr(self.certificate, each.name) for each in fields(Certificate)}
            del promised["rule"]  # saved beside
            promised |= {name: [asdict(each) for each in promised[name]] for name in ("promises", "short")}
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "network": self.network.fingerprint(),
            "asked": asdict(self.asked),
            "certificate": promised,
            "clock": [asdict(row) for row in self.clock],
            "threads": list(self.timings.threads),
            "heads": dict(self.heads),
            "layout": self.layout,
            "example": form,
            "made": asdict(self.made),
        }
        write_tensors(folder / FILE, {**tensors, **arrays}, about)  # last: without it the folder is none


def load(folder: str | Path, *, model: nn.Module) -> EarlyExit:
    """What `EarlyExit.save` wrote.

    Args:
        model: of the architecture that was fitted; it gets the weights that were saved.

    Raises:
        InputError: no such folder, damaged files, files of several fits, or another model.

    Example:
        >>> od.fit(classifier, data, price=0.2, costs="flops", progress=False).save("again")
        >>> od.load("again", model=classifier).asked.price
        0.2
    """
    folder, again = Path(folder), _MAKE_IT
    held, about = read_tensors(folder / FILE, format=_FORMAT, version=_VERSION, make_it=again)
    times = {name: held.take(f"{_TIMED}{name}", torch.float64, dims) for name, dims in _TIMES.items()}
    tensors = {name: value for name, value in held.held.items() if not name.startswith(_TIMED)}
    example = _unflat(tensors, about.take("example", Literal["tensor", "dict", "tuple"]))
    layout = about.take("layout", Layout)
    network = in_layout(load_network(folder / "network", model=model, example=example), layout)
    traces = {
        name: Trace.load(folder / "traces" / f"{name}.safetensors")
        for name in ("fit", "certify", "test")
        if name == "fit" or (folder / "traces" / f"{name}.safetensors").is_file()
    }
    rule = Rule.load(folder / "rule")
    of = about.take("network", str)
    if {network.fingerprint(), rule.origin.network, *(trace.network for trace in traces.values())} != {of}:
        raise InputError(f"{folder} holds files of two fits; {again}")
    with rebuilding(folder / FILE, again):
        certificate = None
        if about.take("certificate", dict[str, Any] | None) is not None:
            told, of_rule = about.inner("certificate"), get_type_hints(Certificate)
            kept = {name: told.take(name, kind) for name, kind in of_rule.items() if name != "rule"}
            certificate = Certificate(rule=rule, **kept)
        return EarlyExit(
            network=network,
            family=METHODS[SOLVED].solve(traces["fit"]),
            rule=rule,
            asked=about.take("asked", Asked),
            certificate=certificate,
            certify=traces.get("certify"),
            test=traces.get("test"),
            clock=about.take("clock", tuple[Clocked, ...]),
            timings=Timings(network.fingerprint(), threads=about.take("threads", tuple[int, ...], least=1), **times),
            heads=about.take("heads", dict[str, float], least=0, most=1),
            layout=layout,
            example=example,
            made=_made(about),
        )


def from_hub(name: str, *, model: nn.Module) -> EarlyExit:
    """What `EarlyExit.push_to_hub` saved. What comes from there is data and no code: see `load`.

    Args:
        name: owner/name.
        model: of the architecture that was fitted; it gets the weights that were saved.

    Raises:
        InputError: the hub cannot be reached or has no such repository, or as `load` raises.

    Example:
        >>> od.from_hub("nobody/nothing", model=classifier)
        Traceback (most recent call last):
        ...
        optdepth.errors.InputError: the hub refuses nobody/nothing ...
    """
    with _hub(name):
        folder = huggingface_hub.snapshot_download(name, allow_patterns=["*.safetensors"], etag_timeout=_WAIT)
    return load(folder, model=model)


@contextmanager
def _hub(name: str) -> Iterator[None]:
    """Makes one line of what the hub, and what it speaks through, raise."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if interrupts(error):
            raise
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"the hub refuses {name} ({reason:.150}); give OWNER/NAME and a network, and log in with `hf auth login`"
        ) from error


def in_layout(network: StagedNetwork, layout: Layout) -> StagedNetwork:
    """The network, its weights laid out so; states then follow them."""
    if layout == "channels last":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
    return network


def made_of(folder: str | Path) -> Provenance:
    """How what is in a folder was made, with nothing of it loaded but that.

    Raises:
        InputError: no such folder, or a damaged file.
    """
    _, about = read_tensors(Path(folder) / FILE, format=_FORMAT, version=_VERSION, make_it=_MAKE_IT)
    return _made(about)


def _made(about: Fields) -> Provenance:
    return Provenance(**{name: about.inner("made").take(name, kind) for name, kind in _MADE.items()})


def _flat(example: Inputs) -> tuple[dict[str, Tensor], Literal["tensor", "dict", "tuple"]]:
    """The tensors of inputs by name, and the form that puts them together again."""
    if isinstance(example, Tensor):
        return {"0": example}, "tensor"
    if isinstance(example, Mapping):
        return {str(key): value for key, value in example.items()}, "dict"
    return {str(i): value for i, value in enumerate(example)}, "tuple"


def _unflat(tensors: Mapping[str, Tensor], form: Literal["tensor", "dict", "tuple"]) -> Inputs:
    if form == "tensor":
        return tensors["0"]
    return dict(tensors) if form == "dict" else tuple(tensors[str(i)] for i in range(len(tensors)))


def _points(share: float) -> str:
    """A share of accuracy in points."""
    points = round(100 * share, 2)
    return f"{points:g} point{'' if points == 1 else 's'}"
