"""Features: what may be seen at an exit without the label. A file of theirs registers itself when it is imported here.

The order of the imports is that of a trace's columns.
"""

from . import certainty, consistency, numbers, residual
from .feature import (
    FEATURES,
    Answers,
    Feature,
    features_of,
    frugal_features,
    not_smooth,
    register,
    with_history,
)
from .observer import Memory, Observer, observe
from .residual import residual_size
from .view import View, ViewOfOne

__all__ = [
    "FEATURES",
    "Answers",
    "Feature",
    "Memory",
    "Observer",
    "View",
    "ViewOfOne",
    "certainty",
    "consistency",
    "features_of",
    "frugal_features",
    "not_smooth",
    "numbers",
    "observe",
    "register",
    "residual",
    "residual_size",
    "with_history",
]
