"""The room where graphs run: in onnxruntime, whole or in parts, on data that is given or drawn."""
