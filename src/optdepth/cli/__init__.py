"""The command line: `optdepth fit` for a model that is there, `train` and its steps for one that is made here."""

from __future__ import annotations

import os
import sys

from typer.exceptions import Abort, TyperException

from ..errors import InputError
from . import fitting, results, steps
from .app import app, command, refuse

__all__ = ["app", "fitting", "main", "results", "steps"]


def main() -> None:
    """The entry point: bad input is one line on stderr and exit status 2."""
    if not sys.stderr.isatty():  # read by `datasets` when it is imported
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        raise SystemExit(app(standalone_mode=False))
    except TyperException as error:
        if len(sys.argv) == 1:  # then the message is the help
            error.show()  # type: ignore[attr-defined]
            raise SystemExit(error.exit_code) from None
        said = " ".join(error.format_message().split()).rstrip(".")
        refuse(f"{said}, in {command()}; add --help to see what there is")
    except Abort:
        raise SystemExit(130) from None
    except InputError as error:
        refuse(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        refuse(f"the system refuses ({place}{error.strerror or error}); free space there, or give another place")
