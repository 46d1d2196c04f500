"""Graphs of old operator versions become ones that can be lowered, in silence."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

import qcompile as qc
from qcompile.evaluate import evaluate

#: Squeeze, ReduceSum and Pad have attributes where later versions have inputs; Softmax of 11 flattens.
OLD = """<ir_version: 6, opset_import: ["" : %d]> g (float[n,1,32] x) => (float[n,64] y, float[n] z) {
    a = Squeeze<axes=[1]>(x)\n h = MatMul(a, w)\n y = Softmax<axis=1>(h)\n z = ReduceSum<axes=[1], keepdims=0>(h) }"""


@pytest.mark.parametrize("version", [7, 11])
def test_old_operators_are_exported(tmp_path, capfd, version):
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(OLD % version)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal((32, 64)).astype(np.float32), "w"))
    onnx.save(proto, tmp_path / "old.onnx")
    x = {"x": rng.standard_normal((3, 1, 32)).astype(np.float32)}
    artifact = qc.export(tmp_path / "old.onnx", "cpu-int8", tmp_path / "out", transforms="block")
    assert artifact.manifest["equivalence"]["rel_l2"] < 1e-6
    want, have = evaluate(tmp_path / "old.onnx", x), artifact.run(x)
    assert np.abs(want["y"] - have["y"]).max() < 0.02
    assert capfd.readouterr().err == ""
