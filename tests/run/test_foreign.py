"""Operators without a row, control flow and sizes that the data decides: onnxruntime runs them, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from torch_cases import PREAMBLE, graph_of_case

import qcompile as qc
from qcompile.run.compare import compare
from qcompile.run.executor import Executor
from qcompile.run.session import evaluate


def arrays(found: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in found.items()}


H = '<ir_version: 9, opset_import: ["": 18]>'

FOREIGN = {
    "a determinant": "g (float[N,3,3] x) => (float[N] z) { d = Det(x) z = Exp(d) }",
    "the second output alone": "g (float[L,N,4] x, float[1,9,4] w, float[1,9,3] r) => (float[1,N,3] z) "
    "{ , h = GRU<hidden_size: int = 3>(x, w, r) z = Exp(h) }",
    "a number that it reads": "g (float[N,6] x) => (float[N,2] z) { k = Constant<value = int64 {2}>() "
    "i = Constant<value = int64 {1}>() s = SplitToSequence<axis: int = 1>(x, k) e = SequenceAt(s, i) z = Exp(e) }",
    "a sequence that begins empty": "g (float[N,6] x) => (float[N,12] z) { e = SequenceEmpty() "
    "a = SequenceInsert(e, x) t = Tanh(x) b = SequenceInsert(a, t) c = ConcatFromSequence<axis: int = 1>(b) z = "
    "Exp(c) }",
    "an empty sequence of whole numbers": "g (int64[N] i, float[N] x) => (int64[K] z) { "
    "e = SequenceEmpty<dtype: int = 7>() a = SequenceInsert(e, i) z = ConcatFromSequence<axis: int = 0>(a) }",
    "a sequence through a loop": "g (int64 m, float[2] x) => (float[K] z) { t = Constant<value = bool {1}>() "
    "e = SequenceEmpty() s = Loop(m, t, e)<body = b (int64 i, bool k, seq(float[2]) a) => (bool ko, seq(float[2]) o) "
    "{ ko = Identity(k) f = Cast<to: int = 1>(i) p = Mul(x, f) o = SequenceInsert(a, p) }> "
    "z = ConcatFromSequence<axis: int = 0>(s) }",
    "a sequence that is given": "g (seq(float[N]) x) => (float[K] z) { c = ConcatFromSequence<axis: int = 0>(x) "
    "z = Exp(c) }",
    "in the body of a loop": "g (int64 m, float[3,3] x) => (float[S] z, float[3,3] y) { "
    "c = Constant<value = bool {1}>() y, z = Loop(m, c, x)<body = b (int64 i, bool k, float[3,3] a) => (bool ko, "
    "float[3,3] o, float s) "
    "{ ko = Identity(k) o = Sin(a) s = Det(o) }> }",
    "a scan that runs backwards": "g (float[N,2] x, float[2] s) => (float[2] f, float[N,2] z) { f, z = "
    "Scan<num_scan_inputs = 1, scan_input_directions = [1], body = b (float[2] a, float[2] e) => (float[2] o, "
    "float[2] r) "
    "{ o = Add(a, e) r = Sin(o) }>(s, x) }",
    "a rank that the data decides": "g (float[N] x, bool c) => (float z) { v = If(c)<then_branch = a () => (o) "
    "{ o = Exp(x) }, else_branch = b () => (p) { ax = Constant<value = int64[1] {0}>() p = Unsqueeze(x, ax) }> "
    "z = ReduceSum<keepdims: int = 0>(v) }",
    "a size that the data decides": "g (float[N] x) => (float[K] z) { u = Unique<sorted: int = 1>(x) z = Exp(u) }",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_onnxruntime_runs_a_part(name: str) -> None:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(f"{H} {FOREIGN[name]}")))
    rng, inputs = np.random.default_rng(0), {}
    for value in model.graph.inputs:
        if isinstance(value.type, ir.SequenceType):
            inputs[value.name] = [rng.standard_normal(3, np.float32) for _ in range(2)]
        elif value.dtype is ir.DataType.FLOAT:
            shape = [dim if isinstance(dim, int) else 4 for dim in value.shape]
            inputs[value.name] = rng.standard_normal(shape, np.float32)
        else:
            inputs[value.name] = np.full((4,) * len(value.shape), 3 if value.dtype is ir.DataType.INT64 else True)
    engine, want = Executor(model), evaluate(model, inputs)
    assert engine.foreign
    have = arrays(engine(inputs))
    assert {k: (v.shape, v.dtype) for k, v in have.items()} == {k: (v.shape, v.dtype) for k, v in want.items()}
    assert compare(want, have)[0] < 1e-6


def test_a_sequence_is_a_list() -> None:
    text = "g (float[N,6] x) => (seq(float[N,2]) s) { s = SplitToSequence<axis: int = 1>(x, k) }"
    proto = onnx.parser.parse_model(f"{H} {text.replace('{ s', '{ k = Constant<value = int64 {2}>() s')}")
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    found = Executor(ir.from_proto(proto))({"x": x})["s"]
    assert [part.tolist() for part in found] == [x[:, i : i + 2].tolist() for i in (0, 2, 4)]


def test_a_type_that_nothing_states() -> None:
    """ONNX infers no type behind an operator of onnxruntime: it is that of the floats beside."""
    text = """<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]> g (float16[N,4] x) => (float16[N,4] z) {
        s = Constant<value = float16[4] {15360, 16384, 16896, 17408}>()
        a = com.microsoft.SkipLayerNormalization(x, x, s) z = com.microsoft.SkipLayerNormalization(a, x, s) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float16)
    assert compare(evaluate(model, {"x": x}), arrays(Executor(model)({"x": x})))[0] < np.finfo(np.float16).eps


def test_what_trains_is_random() -> None:
    text = "g (float[N,6] x) => (float[N,6] y) { t = Constant<value = bool {1}>() y = Dropout(x, , t) }"
    engine = Executor(ir.from_proto(onnx.parser.parse_model(f"{H} {text}")))
    assert "it is told to train" in engine.foreign["y"]


def test_it_tells_what_onnxruntime_runs() -> None:
    said: list[tuple[str, str, str]] = []
    Executor(graph_of_case("dropout")).tell(lambda *entry: said.append(entry))
    assert said == []
    text = "g (float[N,3,3] x) => (float[N] y) { [det] y = Det(x) }"
    Executor(ir.from_proto(onnx.parser.parse_model(f"{H} {text}"))).tell(lambda *entry: said.append(entry))
    assert said[0][:2] == ("det", "computing it in torch")


def test_a_manifest_says_what_onnxruntime_runs(tmp_path: Path) -> None:
    text = """g (float[N,4,4] x) => (float[N,8] y) {
        c = Constant<value_ints = [1]>() h = ReduceMean<keepdims: int = 0>(x, c) p = MatMul(h, a)
        [det] d = Det(x) u = Unsqueeze(d, c) y = Mul(p, u) }"""
    proto = onnx.parser.parse_model(f"{H} {text}")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, 8, dtype=np.float32), "a"))
    made = qc.export(ir.from_proto(proto), "reference", tmp_path / "out", method="rtn")
    said = [entry for entry in made.manifest["declined"] if entry["site"] == "det"]
    assert [entry["what"] for entry in said] == ["computing it in torch"]


def test_the_shape_of_numbers_of_the_host_is_known() -> None:
    """Shape inference gives up where a domain is not imported, which onnxruntime does not mind: no shape is stated."""
    text = """<ir_version: 7, opset_import: ["": 13]> g (int64[N,3] i) => (float[N,3] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] front = {0}> {
        s = Shape(i) n = Gather(s, one) r = Range(zero, n, one) u = Unsqueeze(r, front) e = Expand(u, s)
        f = Cast<to: int = 1>(e) y = com.microsoft.Trilu(f) }"""
    model, inputs = ir.from_proto(onnx.parser.parse_model(text)), {"i": np.zeros((2, 3), np.int64)}
    assert compare(evaluate(model, inputs), arrays(Executor(model)(inputs)))[0] < 1e-6


def test_onnxruntime_runs_what_has_no_row() -> None:
    text = f"g (float[N,3,3] x) => (float[N] y, float[N,3,3] z) {{ {PREAMBLE} d = Det(x) y = Exp(d) z = Neg(x) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {text}')
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    next(node for node in model.graph if node.op_type == "Det").name = "det"
    engine = Executor(model)
    assert list(engine.foreign) == ["det"]
    assert "no row for this operator" in engine.foreign["det"]
    for batch in (1, 4):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 3), np.float32)
        assert compare(evaluate(model, {"x": x}), arrays(engine({"x": x})))[0] < 1e-6
    given = torch.randn(2, 3, 3, requires_grad=True)
    outputs = engine({"x": given})
    assert not outputs["y"].requires_grad  # it stops gradients there, and nowhere else
    assert outputs["z"].requires_grad


def test_an_operator_knows_the_shape_of_its_weights(tmp_path: Path) -> None:
    """onnxruntime refuses an embedding whose table has open dimensions."""
    text = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (int32[b,s] ids) => (float[b,s,64] y)
        <float[100,64] we, float[32,64] pe, float[64] g1, float[64] b1, float[64,64] w>
        { h, mask = com.microsoft.EmbedLayerNormalization(ids, , we, pe, , g1, b1) y = MatMul(h, w) }"""
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, *shape in (("we", 100, 64), ("pe", 32, 64), ("g1", 64), ("b1", 64), ("w", 64, 64)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.random(shape, np.float32), name))
    del proto.graph.value_info[:]
    model = ir.from_proto(proto)
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    want, have = evaluate(model, {"ids": ids}), Executor(model)({"ids": ids})
    assert compare(want, {name: value.numpy() for name, value in have.items()})[0] < 1e-6
