"""``qcompile inputs`` says what a model takes, and writes arrays that it does take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from commands import done, refused

MODEL = """<ir_version: 9, opset_import: ["" : 18]>
g (int64[batch, length] ids, float[batch, 8] scale) => (float[batch, length, 8] y) <float[32, 8] e = {%s}>
{ h = Gather(e, ids)\n z = Constant<value_ints = [1]>()\n s = Unsqueeze(scale, z)\n y = Mul(h, s) }"""


def written(folder: Path) -> Path:
    numbers = ", ".join("1.0" for _ in range(32 * 8))
    onnx.save(onnx.parser.parse_model(MODEL % numbers), folder / "m.onnx")
    return folder / "m.onnx"


def test_names_types_and_shapes_are_listed(tmp_path: Path) -> None:
    listed = done("inputs", written(tmp_path)).stdout
    assert "ids" in listed
    assert "[batch, length]" in listed
    assert "float32" in listed


def test_arrays_to_start_from_are_taken(tmp_path: Path) -> None:
    model, start = written(tmp_path), tmp_path / "start.npz"
    done("inputs", model, "-o", start)
    with np.load(start) as arrays:
        assert arrays["ids"].dtype == np.int64
        assert arrays["ids"].max() < 32
        assert len(arrays["ids"]) == len(arrays["scale"])
    assert "exists already" in refused(tmp_path, "inputs", model, "-o", start)
