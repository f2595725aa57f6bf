"""Where a figure comes from, and how a table of figures is written."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def output(*command: str) -> str:
    """What a command prints; empty where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def commit() -> str:
    """The commit of the working tree."""
    return output("git", "rev-parse", "--short", "HEAD")


def processor() -> str:
    """The model of the processor."""
    about = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in about.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def table_row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
