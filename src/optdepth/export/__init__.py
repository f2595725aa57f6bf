"""A network and its rule as files, and what serves them without torch. A new backend is a file and a line here."""

from .backend import BACKENDS, Backend, Graph, register
from .onnx import OnnxBackend

__all__ = ["BACKENDS", "Backend", "Graph", "OnnxBackend", "register"]

register(OnnxBackend())
