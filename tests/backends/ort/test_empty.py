"""Artifacts take values without elements wherever their source takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

import qcompile as qc

RNG = np.random.default_rng(0)

#: A table and two products; experts that rows choose.
GRAPHS = {
    "table": """g (int64[b,s] i) => (float[b,s,40] y) { h = Gather(table, i)
        u = MatMul(h, up)\n r = Relu(u)\n y = MatMul(r, down) }""",
    "experts": """g (int64[b,s] i) => (float[b,s,40] y) { h = Gather(table, i)\n e = Mod(i, four)
        m = Gather(stack, e)\n r = Unsqueeze(h, two)\n p = MatMul(r, m)\n y = Squeeze(p, two) }""",
}
SHAPES = {"table": (50, 72), "up": (72, 64), "down": (64, 40), "stack": (4, 72, 40)}
INTS = {"four": np.array(4), "two": np.array([2])}


def written(folder: Path, graph: str, version: int) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {version}]> {GRAPHS[graph]}')
    for name, shape in SHAPES.items():
        if name in GRAPHS[graph]:
            array = (RNG.standard_normal(shape) / 8).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for name, array in INTS.items():
        if name in GRAPHS[graph]:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("version", [13, 17])
@pytest.mark.parametrize(
    ("target", "scheme"),
    [("cpu-int4", None), ("cpu-int8", None), ("reference", "int3-g32/int8-channel"), ("reference", "nvfp4/nvfp4")],
)
@pytest.mark.parametrize("graph", GRAPHS)
def test_artifacts_take_nothing(graph: str, target: str, scheme: str | None, version: int, tmp_path: Path) -> None:
    source = written(tmp_path, graph, version)
    wanted = {} if scheme is None else {"formats": [scheme]}
    qc.export(source, target, tmp_path / "out", transforms="hadamard", **wanted)
    runs = [ort.InferenceSession(file, providers=["CPUExecutionProvider"])
            for file in (source, tmp_path / "out" / "model.onnx")]  # fmt: skip
    for shape in ((0, 3), (2, 0), (0, 0), (2, 3)):
        want, have = (run.run(None, {"i": RNG.integers(0, 50, shape)})[0].shape for run in runs)
        assert have == want == (*shape, 40)
