"""The colours of every picture, once. After Okabe and Ito (2008): people with any colour vision can tell them apart.

Line styles and labels say the same again.
"""

from __future__ import annotations

from typing import Any

INK, FAINT, GRID = "#1b1e23", "#5c6470", "#d5d9e0"
BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER = "#0072b2", "#d55e00", "#009e73", "#b0568a", "#56b4e9", "#a87500"
COLOURS = {
    "ink": INK,
    "blue": BLUE,
    "orange": ORANGE,
    "green": GREEN,
    "purple": PURPLE,
    "sky": SKY,
    "amber": AMBER,
}
"""What a line may be drawn in, by name."""

STYLE: dict[str, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
"""What matplotlib is told for each of them."""
