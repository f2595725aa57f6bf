"""Run: one folder about one network on one data set, and what must agree in it before a step goes on.

run.json             what the run is: data, network, seed, and every command that touched it
splits.safetensors   which samples the splits hold, written down before the training
network/             the trained network            training.json    how it was trained
traces/SPLIT.safetensors                            rules/NAME/      one folder a rule
evaluation.json      rules judged on the test split report.html      the page to look at
"""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .carving import Carving
from .data import Data, load_data, reload_data
from .errors import InputError
from .fields import Fields
from .files import read_json, write_json, writing
from .networks import StagedNetwork, load_network
from .stopping.methods import METHODS
from .stopping.regression import LEAST
from .stopping.rule import FILE, Rule
from .trace import Trace

_FORMAT, _VERSION = "optdepth.run", 3
_JUDGED, _JUDGED_VERSION = "optdepth.evaluation", 4
SPLITS = ("fit", "certify", "test")
_LARGEST = 65_536
"""Pixels of a side that a run may say its images are resized to."""
CERTIFIED = "certified"
"""Name of the rule that was certified last."""
_START = "make a run with `optdepth train --out NEW`"


@dataclass(frozen=True)
class Run:
    """A folder that holds everything about one network on one data set.

    What is read from it is compared with the rest: traces with the network and the splits, rules with the network, and
    with the samples and the costs that they were solved on, what was judged with the traces.
    """

    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What `run.json` says."""
        told = read_json(self.folder / "run.json", format=_FORMAT, version=_VERSION, make_it=_START)
        settings = {"data": told.take("data", str), "seed": told.take("seed", int, least=0)}
        settings["image_size"] = told.take("image_size", int | None, least=1, most=_LARGEST)
        return {**settings, "commands": told.take("commands", list[str])}

    def opened(self, data: str, seed: int, image_size: int | None) -> Data:
        """The data of a new run, of which nothing is written yet; or of the one in the folder.

        Raises:
            InputError: it is no folder, or holds a run on other data; the data cannot be read, or are not what they
                were; or they are too few to solve a rule on.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file: give a folder with --out")
        settings = {"data": data, "seed": seed, "image_size": image_size}
        there = self.settings if (self.folder / "run.json").is_file() else settings
        for key, value in settings.items():
            if there[key] != value:
                raise InputError(
                    f"{self.folder} holds a run with {key} {there[key]!r}, not {value!r}; "
                    "give another folder with --out, or delete this one"
                )
        if there is not settings:
            return self.data()
        loaded = load_data(data, seed=seed, image_size=image_size)
        if (fit := len(loaded.splits["fit"])) < LEAST:
            raise InputError(
                f"{data} leaves {fit} images to fit a rule on, a fixed share of the train split, and {LEAST} is the "
                f"least: give {math.ceil(LEAST / fit)} times as many images"
            )
        loaded.check_images()
        return loaded

    def begin(self, loaded: Data, seed: int, image_size: int | None) -> None:
        """Writes down what the run is, and its splits, unless the folder says so already."""
        if not (self.folder / "run.json").is_file():
            loaded.carving().save(self.folder / "splits.safetensors")
            self._write({"data": loaded.name, "seed": seed, "image_size": image_size, "commands": []})

    def note(self, command: str) -> None:
        """Adds a command line, once it has succeeded, to those that made this run."""
        settings = self.settings
        if command not in settings["commands"]:
            settings["commands"].append(command)
            self._write(settings)

    def carving(self) -> Carving:
        """Which samples each split holds."""
        return Carving.load(self.folder / "splits.safetensors", make_it=_START)

    def data(self) -> Data:
        """The data, in the very splits that the training began with.

        Raises:
            InputError: the source no longer holds these samples, or holds more.
        """
        settings = self.settings
        return reload_data(settings["data"], self.carving(), image_size=settings["image_size"])

    def network(self) -> StagedNetwork:
        """The trained network, in evaluation mode."""
        return load_network(self.folder / "network").to(_device())

    def record(self, traces: Mapping[str, Trace]) -> None:
        """Takes the traces of all splits in place of those there, or, if interrupted, of none."""
        beside, there, old = (self.folder / name for name in (".traces.new", "traces", ".traces.old"))
        for left in (beside, old):
            shutil.rmtree(left, ignore_errors=True)
        for split, trace in traces.items():
            trace.save(beside / f"{split}.safetensors")
        with writing(there):
            if there.exists():
                there.rename(old)
            beside.rename(there)
        shutil.rmtree(old, ignore_errors=True)

    def traces(self) -> dict[str, Trace]:
        """The trace of each split.

        Raises:
            InputError: one is missing, or of another network or other samples than the run's, or at other costs than
                the rest.
        """
        carving, network, again = self.carving(), self.network().fingerprint(), self._step("record")
        found: dict[str, Trace] = {}
        for split in SPLITS:
            trace = found[split] = Trace.load(self.folder / "traces" / f"{split}.safetensors")
            if trace.network != network:
                raise InputError(
                    f"the {split} trace is of network {trace.network}, {self.folder} now holds {network}: {again}"
                )
            if trace.source != carving.source or not np.array_equal(trace.rows, carving.rows[split]):
                raise InputError(f"the {split} trace is not of the {split} split that {self.folder} holds: {again}")
            if not trace.costs.alike(found["fit"].costs):
                raise InputError(
                    f"costs of the {split} trace are in {trace.costs.unit}, of the fit trace in "
                    f"{found['fit'].costs.unit}, or differ: {again}"
                )
        return found

    def rules(self) -> dict[str, Rule]:
        """The rules solved so far, by name.

        Raises:
            InputError: there is none, or one was solved for another network, at other costs, or on other samples than
                the fit trace has, or what `traces` raises.
        """
        folders = sorted(path.parent for path in (self.folder / "rules").glob(f"*/{FILE}"))
        if not folders:
            raise InputError(f"no rules in {self.folder / 'rules'}; run `optdepth solve {self.folder}` first")
        found = {folder.name.replace("-", " "): Rule.load(folder) for folder in folders}
        fit = self.traces()["fit"]
        for name, rule in found.items():
            self._check(name, rule, fit)
        return {name: found[name] for name in sorted(found, key=_order)}

    def judge(self, result: Mapping[str, Any], trace: Trace) -> None:
        """Writes `evaluation.json`: what the rules did on the test trace."""
        about = {"format": _JUDGED, "version": _JUDGED_VERSION, "network": trace.network}
        write_json(self.folder / "evaluation.json", {**about, **result})

    def judged(self, trace: Trace) -> Fields | None:
        """What `evaluation.json` says; none where nothing was evaluated.

        Raises:
            InputError: it is of another network, or at other costs, than the test trace.
        """
        path, again = self.folder / "evaluation.json", self._step("evaluate")
        if not path.is_file():
            return None
        judged = read_json(path, format=_JUDGED, version=_JUDGED_VERSION, make_it=again)
        for what, here in (("network", trace.network), ("unit", trace.costs.unit)):
            if (there := judged.take(what, str)) != here:
                raise InputError(f"{path} has {what} {there}, the test trace {here}: {again}")
        return judged

    def _check(self, name: str, rule: Rule, fit: Trace) -> None:
        rule.check(fit.network, fit.n_exits)
        origin, samples = rule.origin, fit.samples
        price = "" if origin.price is None else f" --price {origin.price:.6g}"
        again = self._step("certify" if name == CERTIFIED else "solve")
        again += "" if name == CERTIFIED else f"{price} --method {shlex.quote(name)}"
        again += f", or delete {self.folder / 'rules' / name.replace(' ', '-')}"
        if origin.network != fit.network:
            raise InputError(f"rule {name!r} names no network, {self.folder} holds {fit.network}: {again}")
        if not origin.costs.alike(fit.costs.mean()):
            raise InputError(
                f"rule {name!r} was solved at costs in {origin.costs.unit}, the traces have them in {fit.costs.unit}, "
                f"or they differ: {again}"
            )
        used = origin.fitted_on
        if len(used) and (used.source != samples.source or not np.isin(used.rows, samples.rows).all()):
            raise InputError(f"rule {name!r} was not fitted on the fit split that {self.folder} holds: {again}")

    def _write(self, settings: dict[str, Any]) -> None:
        write_json(self.folder / "run.json", {"format": _FORMAT, "version": _VERSION, **settings})

    def _step(self, command: str) -> str:
        return f"run optdepth {command} {shlex.quote(str(self.folder))}"


def _order(name: str) -> int:
    return list(METHODS).index(name) if name in METHODS else len(METHODS)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
