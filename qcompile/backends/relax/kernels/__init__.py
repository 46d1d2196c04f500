"""Kernels that TVM compiles: products with packed weights, lookups, quantization of activations, scans, matmuls."""
