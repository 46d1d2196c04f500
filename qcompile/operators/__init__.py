"""Operators of ONNX as source of torch: for programs that ship, and for the compiler's own engine."""
