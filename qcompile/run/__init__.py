"""Runs graphs: onnxruntime whole or in parts, on data that is given or drawn."""
