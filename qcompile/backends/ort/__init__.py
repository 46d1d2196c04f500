"""onnxruntime: integer kernels where it has them, and any block format by exact emulation in standard operators."""
