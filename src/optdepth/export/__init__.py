"""A network and its rule as ONNX graphs, and what serves them without torch."""
