"""Files say nothing twice, and nothing that readers find again; what they compute stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from qcompile.backends.ort.compact import compact, say_once

GRAPH = """g (float[n,8] x) => (float[n,4] y, float[n,8] seen) <float[8,8] w, float[8] b, float[8,4] v>
    { long_name_of_a_product = MatMul(x, w)
    seen = Add(long_name_of_a_product, b)
    another_long_name = Relu(seen)
    y = MatMul(another_long_name, v) }"""


def saved(model: ir.Model, path: Path) -> onnx.ModelProto:
    ir.save(model, path)
    return onnx.load(path)


def test_a_compact_file_computes_the_same(parse: Callable[..., ir.Model], tmp_path: Path) -> None:
    model = parse(GRAPH)
    for node in model.graph:
        node.name = f"makes {node.outputs[0].name}" if node.op_type == "MatMul" else node.outputs[0].name
    before = saved(model, tmp_path / "before.onnx")
    say_once(model)
    compact(model)
    after = saved(model, tmp_path / "after.onnx")
    assert [value.name for value in (*after.graph.input, *after.graph.output)] == ["x", "y", "seen"]
    assert [node.name for node in after.graph.node] == ["makes long_name_of_a_product", "", "", "makes y"]
    assert not after.graph.value_info
    assert after.ByteSize() < before.ByteSize()
    onnx.checker.check_model(after, full_check=True)
    x = {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}
    have, want = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx").run(None, x) for name in ("after", "before"))
    for one, other in zip(have, want, strict=True):
        np.testing.assert_array_equal(one, other)


def test_short_names_leave_out_those_that_stay(parse: Callable[..., ir.Model], tmp_path: Path) -> None:
    model = parse(GRAPH)
    model.graph.initializers["b"].name = "_0"
    compact(model)
    made = [value.name for node in model.graph for value in node.outputs]
    assert made == ["_1", "seen", "_2", "y"]


def test_what_the_source_shows_keeps_its_names(parse: Callable[..., ir.Model]) -> None:
    model = parse(GRAPH)
    for node in model.graph:
        node.name = node.outputs[0].name
    compact(model, {"another_long_name", "y"})
    made = [(node.name, node.outputs[0].name) for node in model.graph]
    assert made == [(None, "_0"), (None, "seen"), ("another_long_name", "another_long_name"), ("y", "y")]


def test_what_inference_does_not_find_is_said(parse: Callable[..., ir.Model], tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 18, "unknown": 1]> g (float[n,8] x) => (float[n,8] y)
        { a = unknown.Doubled(x)
        b = Relu(a)
        y = Relu(b) }"""
    model = parse(text)
    first = model.graph[0].outputs[0]
    first.type, first.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 8])
    compact(model)
    assert first.shape == ir.Shape(["n", 8])


def test_sizes_without_names_get_one_where_they_appear(parse: Callable[..., ir.Model], tmp_path: Path) -> None:
    """Without names onnxruntime takes minutes to load decoders whose sizes come from ranges or unknown reshapes."""
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[n,8] x, int64[2] form) => (float[p,q] y)
        { a = Reshape(x, form)
        b = Relu(a)
        c = Abs(b)
        d = Mul(c, x)
        e = Neg(d)
        y = Relu(e) }"""
    model = parse(text)
    compact(model, "abcde")
    shapes = {value.name: value.shape for node in model.graph for value in node.outputs}
    named = [name for name, shape in shapes.items() if shape is not None]
    assert named == ["a", "d", "y"]  # Mul may stretch sizes, so that those of what it writes are new
    sizes = [size if isinstance(size, int) else size.value for name in "ad" for size in shapes[name] or ()]
    assert sizes[3] == 8
    assert None not in sizes
    assert len(set(sizes)) == 4
    x = {"x": np.arange(24, dtype=np.float32).reshape(3, 8) - 9, "form": np.array([3, -1])}
    have = onnxruntime.InferenceSession(saved(model, tmp_path / "named.onnx").SerializeToString()).run(None, x)[0]
    np.testing.assert_array_equal(have, np.maximum(-np.abs(np.maximum(x["x"], 0)) * x["x"], 0))


def test_a_name_that_is_known_stands_for_the_one_that_is_found(parse: Callable[..., ir.Model]) -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[n,8] x, int64[2] form) => (float[n,8] y)
        { a = Reshape(x, form)
        b = Relu(a)
        y = Relu(b) }"""
    model = parse(text)
    a, b = (node.outputs[0] for node in list(model.graph)[:2])
    a.shape, b.shape = ir.Shape(["n", 8]), ir.Shape(["n", 8])
    compact(model, "ab")
    assert a.shape == ir.Shape(["n", 8])
    assert b.shape is None
