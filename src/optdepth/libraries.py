"""Libraries of models that are not the library's own: imported where they are there, or what to do, in one line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import version
from types import ModuleType

from .errors import InputError

_EXTRAS = {"torchvision": "vision", "timm": "vision", "transformers": "text"}


def library(name: str) -> ModuleType:
    """torchvision, timm or transformers.

    All three load torchvision where it is installed, and none of their models of images without it. Beside a torch that
    it was not built for it breaks, and each model of transformers with it.

    Raises:
        InputError: it is not installed, or torchvision is of another build than torch.
    """
    if importlib.util.find_spec(name) is None:
        raise InputError(f"{name} is not installed: pip install 'optdepth[{_EXTRAS.get(name, name)}]'")
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            for half in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
                del sys.modules[half]
            if "torchvision::" not in str(error):
                raise
            raise InputError(
                f"torchvision {version('torchvision')} was built for another build of torch than {version('torch')} "
                f"({' '.join(str(error).split())}), and {name} does not load beside it: install both from one index "
                "(pip install --force-reinstall torch torchvision --index-url of either), or pip uninstall torchvision "
                "where there are no images"
            ) from None
    return importlib.import_module(name)
