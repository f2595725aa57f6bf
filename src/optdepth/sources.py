"""Where a model comes from by name: `timm:`, `torchvision:`, `hf:`, or a function in a file; and how it reads data."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from .errors import InputError
from .interrupts import interrupts
from .libraries import library

FORMS = (
    "give timm:NAME, torchvision:NAME, hf:FOLDER (or its name on the hub), or FILE.py:FUNCTION, such as "
    "timm:efficientnet_b0 or my_code.py:make_model"
)


@dataclass(frozen=True)
class Pixels:
    """How a model takes images, as `load_data` does.

    Attributes:
        image_size: pixels that are cut out of the middle, height and width.
        resize: pixels of the shorter side before that.
        mean, std: per channel, pixels in [0, 1].
    """

    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of_size(self, pixels: int | None) -> Pixels:
        """The same with so many pixels cut out, and the shorter side in proportion; as it is for None."""
        if pixels is None:
            return self
        return replace(self, image_size=pixels, resize=round(pixels * self.resize / self.image_size))


@dataclass(frozen=True)
class Source:
    """A model, and what reads data for it.

    Attributes:
        name: that it was opened by.
        model: in evaluation mode.
        reads: pixels, or a tokenizer of transformers; None where the model does not say.
    """

    name: str
    model: nn.Module
    reads: Pixels | Callable[..., Any] | None


def open_model(name: str, *, weights: bool = True) -> Source:
    """The model of that name, with its weights, and its own way of reading data.

    Args:
        name: "timm:efficientnet_b0", "torchvision:resnet50", "hf:./folder" or "hf:owner/name" for a classifier of
            sentences or images of transformers, or "my_code.py:make_model" for a function that returns a model.
        weights: False for the architecture alone, to be given weights that lie elsewhere.

    Raises:
        InputError: no such model, library or file, weights that cannot be had, or a function that fails.

    Example:
        >>> od.open_model("resnet50")
        Traceback (most recent call last):
        ...
        optdepth.errors.InputError: --model resnet50: give timm:NAME, torchvision:NAME, hf:FOLDER ...
    """
    kind, _, which = name.partition(":")
    if kind.endswith(".py") and which:
        found = called(name)
        if not isinstance(found, nn.Module):
            raise InputError(f"{name} returned a {type(found).__name__}, not a torch module")
        return Source(name, found.eval(), None)
    if kind not in _OPEN or not which:
        raise InputError(f"model {name!r}: {FORMS}")
    try:
        model, reads = _OPEN[kind](which, weights)
    except InputError:
        raise
    except Exception as error:  # of libraries that raise what they like
        if interrupts(error):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"cannot open {name} ({reason:.200}); {FORMS}") from error
    return Source(name, model.eval(), reads)


def called(name: str) -> Any:
    """What a function of a file returns, by "file.py:function".

    Raises:
        InputError: no such file or function, or it fails.
    """
    file, _, function = name.partition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"no such file: {path}; give FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file; give FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # what lies beside it may be imported, as where it is run itself
    try:
        spec.loader.exec_module(module)
        if not callable(made := getattr(module, function, None)):
            there = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
            raise InputError(f"{path} has no function {function!r}; it has {', '.join(there) or 'none'}")
        return made()
    except InputError:
        raise
    except Exception as error:
        if interrupts(error):
            raise
        raise InputError(f"{name} failed: {type(error).__name__}: {' '.join(str(error).split()):.300}") from error
    finally:
        sys.path.remove(str(path.parent))


def _timm(which: str, weights: bool) -> tuple[nn.Module, Pixels]:
    timm = library("timm")
    model = timm.create_model(which, pretrained=weights)
    told = timm.data.resolve_model_data_config(model)
    size = int(told["input_size"][-1])
    return model, Pixels(size, round(size / told["crop_pct"]), tuple(told["mean"]), tuple(told["std"]))


def _torchvision(which: str, weights: bool) -> tuple[nn.Module, Pixels]:
    models = library("torchvision").models
    trained = models.get_model_weights(which).DEFAULT
    told = trained.transforms()
    model = models.get_model(which, weights=trained if weights else None)
    return model, Pixels(told.crop_size[0], told.resize_size[0], tuple(told.mean), tuple(told.std))


def _transformers(which: str, weights: bool) -> tuple[nn.Module, Pixels | Callable[..., Any]]:
    folder = Path(which)
    if which.startswith((".", "/", "~")) and not folder.is_dir():
        raise InputError(f"no such folder: {folder}; give hf:FOLDER or hf:OWNER/NAME")
    transformers: Any = library("transformers")
    transformers.utils.logging.disable_progress_bar()  # which a folder on a disk does not need
    config = transformers.AutoConfig.from_pretrained(which)
    sees = any("ImageClassification" in each for each in config.architectures or ())
    auto = transformers.AutoModelForImageClassification if sees else transformers.AutoModelForSequenceClassification
    if not sees and not any("SequenceClassification" in each for each in config.architectures or ()):
        raise InputError(
            f"hf:{which} is a {', '.join(config.architectures or ['model of no kind that its config names'])}; give a "
            "classifier of sentences or images"
        )
    model = auto.from_pretrained(which) if weights else auto.from_config(config)
    if not sees:
        return model, transformers.AutoTokenizer.from_pretrained(which)
    told = transformers.AutoImageProcessor.from_pretrained(which)
    cut = getattr(told, "crop_size", None) or told.size
    size = int(cut.get("height") or cut["shortest_edge"])
    shorter = int(told.size.get("shortest_edge") or told.size.get("height") or size)
    return model, Pixels(size, max(size, shorter), tuple(told.image_mean), tuple(told.image_std))


_OPEN: dict[str, Callable[[str, bool], tuple[nn.Module, Pixels | Callable[..., Any]]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _transformers,
}
