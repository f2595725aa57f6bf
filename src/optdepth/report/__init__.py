"""The report: what a solved rule does, drawn and written down in one self-contained HTML page."""

from .lead import Shown
from .page import write_report
from .study import Provenance

__all__ = ["Provenance", "Shown", "write_report"]
