"""The integer-only form of a graph: between quantization and dequantization no floating-point operator stands."""
