"""Graphs: reading and writing them, and the few things that ONNX has no operator for."""
