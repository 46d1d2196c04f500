"""Every weight of a model is told: each byte of its constants once, with what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qcompile as qc
from qcompile.inspection import inspect

ZOO = Path(__file__).parents[2] / "examples" / "zoo"
FLOAT, MICROSOFT, OWN = TensorProto.FLOAT, "com.microsoft", "elsewhere"
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 8).astype(np.float32)


def model(nodes: list[Any], stored: dict[str, np.ndarray], x: list[Any], y: list[Any], **more: Any) -> onnx.ModelProto:
    given, made = (helper.make_tensor_value_info(n, FLOAT, shape) for n, shape in (("x", x), ("y", y)))
    arrays = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [given], [made], arrays)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), (MICROSOFT, 1), (OWN, 1))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)


def constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def stored_bytes(proto: onnx.ModelProto) -> int:
    """The bytes of all constants of a file, counted from the file."""
    found = 0
    graphs, lists = [proto.graph], [function.node for function in proto.functions]
    while graphs or lists:
        if graphs:
            graph = graphs.pop()
            found += sum(numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
            lists.append(graph.node)
        for attribute in (attribute for node in lists.pop() for attribute in node.attribute):
            graphs += [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.name == "value":
                found += numpy_helper.to_array(attribute.t).nbytes
    return found


def told(proto: onnx.ModelProto, folder: Path) -> dict[str, Any]:
    """The inspection of a model, whose weights add up to those of the file."""
    onnx.save(proto, folder / "model.onnx")
    found = inspect(folder / "model.onnx")
    check_sums(found, stored_bytes(proto))
    return found


def check_sums(found: dict[str, Any], count: int) -> None:
    summary = found["weights_summary"]
    listed = sum(entry["bytes"] for entry in found["weights"])
    assert listed + summary["small"]["bytes"] == summary["bytes"] == count
    states = {entry["status"] for entry in found["weights"]}
    assert sum(own["bytes"] for state, own in summary.items() if state in states) == listed


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in found["weights"]}


def of_weights(found: dict[str, Any]) -> list[dict[str, str]]:
    return [entry for entry in found["declined"] if entry["what"] == "quantizing its weight"]


# -- what was computed from constants --------------------------------------------------------------------------------


def test_weights_are_followed_through_what_is_computed_from_them(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Transpose", ["turned"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["a"]),
        node("Cast", ["half"], ["h"], to=FLOAT), node("MatMul", ["a", "h"], ["b"]),
        node("Concat", ["left", "right"], ["both"], axis=1), node("MatMul", ["b", "both"], ["c"]),
        constant("held", floats(64, 64)), node("MatMul", ["c", "held"], ["d"]),
        node("Identity", ["shared"], ["same"]), node("MatMul", ["d", "same"], ["e"]),
        node("MatMul", ["e", "shared"], ["f"]), node("MatMul", ["f", "large"], ["g"]),
        node("Transpose", ["wide"], ["w"]), node("MatMul", ["g", "w"], ["y"]),
    ]  # fmt: skip
    stored = {"turned": floats(64, 64), "half": floats(64, 64).astype(np.float16), "left": floats(64, 16),
              "right": floats(64, 48), "shared": floats(64, 64), "large": floats(64, 512),
              "wide": floats(600, 512)}  # fmt: skip
    proto = model(nodes, stored, ["n", 64], ["n", 600])
    weights = by_name(told(proto, tmp_path))
    assert {entry["status"] for entry in weights.values()} == {"quantizable"}
    assert weights.keys() == {*stored, "held"}
    assert weights["left"]["sites"] == weights["right"]["sites"]
    assert len(weights["shared"]["sites"]) == 2
    manifest = qc.export(
        tmp_path / "model.onnx", "cpu-int4", tmp_path / "out", method="rtn", transforms="none"
    ).manifest
    check_sums(manifest, stored_bytes(proto))
    weights = by_name(manifest)
    assert {entry["status"] for entry in weights.values()} == {"quantized"}
    assert weights["left"]["bytes_after"] * 3 == weights["right"]["bytes_after"]  # parts of one packed weight
    assert weights["shared"]["bytes_after"] == weights["held"]["bytes_after"]  # one copy, though two sites read it
    assert manifest["weights_summary"]["share"] == 1


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_recurrent_layers_convolutions_and_operands_say_why_they_are_kept(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "kernel"], ["c"], kernel_shape=[3], pads=[1, 1]),
        node("Conv", ["c", "deep"], ["d"], kernel_shape=[3], pads=[1, 1], group=32),
        node("Transpose", ["d"], ["t"], perm=[2, 0, 1]),
        node("Add", ["t", "places"], ["p"]),
        node("LSTM", ["p", "in", "back"], ["l", "", ""], hidden_size=32, name="memory"),
        node("Squeeze", ["l", "axis"], ["s"]),
        node("GRU", ["s", "gates", "gated"], ["r", ""], hidden_size=16, name="gates"),
        node("Squeeze", ["r", "axis"], ["q"]),
        node("MatMul", ["q", "last"], ["y"]),
    ]
    stored = {"kernel": floats(32, 16, 3), "deep": floats(32, 1, 3), "places": floats(20, 1, 32),
              "in": floats(1, 128, 32), "back": floats(1, 128, 32), "gates": floats(1, 48, 32),
              "gated": floats(1, 48, 16), "last": floats(16, 8), "axis": np.array([1])}  # fmt: skip
    found = told(model(nodes, stored, [2, 16, 20], [20, 2, 8]), tmp_path)
    weights = by_name(found)
    assert weights.keys() == stored.keys() - {"axis"}  # which is small
    kinds = {name: entry["kind"] for name, entry in weights.items()}
    assert kinds == {
        "kernel": "convolution kernel", "deep": "depthwise kernel", "places": "operand", "last": "matrix",
        "in": "LSTM input weights", "back": "LSTM recurrent weights",
        "gates": "GRU input weights", "gated": "GRU recurrent weights",
    }  # fmt: skip
    assert [weights.pop(name)["status"] for name in ("last", "kernel", "deep")] == ["quantizable"] * 3
    assert {entry["status"] for entry in weights.values()} == {"kept"}
    assert weights["in"]["readers"] == ["memory"]
    declined = {
        entry["site"]: entry["reason"] for entry in found["declined"] if entry["what"] == "quantizing its weight"
    }
    assert declined["memory"] == weights["in"]["reason"] == weights["back"]["reason"]
    assert "LSTM weights are no sites" in declined["memory"]
    assert "GRU weights are no sites" in declined["gates"]


def test_a_table_that_something_else_reads_too_is_kept_in_part(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Mul", ["a", "w"], ["y"])]
    found = told(model(nodes, {"w": floats(64, 64)}, [64, 64], [64, 64]), tmp_path)
    (entry,) = found["weights"]
    assert entry["status"] == "kept"
    assert entry["reason"] == "Mul is no linear map"
    manifest = qc.export(tmp_path / "model.onnx", "cpu-int4", tmp_path / "out", method="rtn").manifest
    (entry,) = manifest["weights"]
    assert entry["reason"] == "int8-g32 elsewhere, but Mul is no linear map"
    assert entry["bytes_after"] > entry["bytes"]
    assert manifest["weights_summary"]["share"] == 0


def _branches() -> list[onnx.NodeProto]:
    node = helper.make_node
    out = helper.make_tensor_value_info("b", FLOAT, ["n", 64])
    inner = numpy_helper.from_array(floats(64, 64), "inner")
    bodies = {}
    for number, side in enumerate(("then", "else")):
        name = f"b{number}"
        out = helper.make_tensor_value_info(name, FLOAT, ["n", 64])
        bodies[f"{side}_branch"] = helper.make_graph(
            [node("MatMul", ["h", "inner" if number else "w"], [name])], side, [], [out], [inner] if number else []
        )
    return [
        node("ReduceSum", ["x"], ["sum"], keepdims=0), node("Cast", ["sum"], ["cond"], to=TensorProto.BOOL),
        node("MatMul", ["x", "w"], ["h"]), node("If", ["cond"], ["y"], **bodies),
    ]  # fmt: skip


# -- bodies and functions --------------------------------------------------------------------------------------------


def test_weights_of_bodies_and_functions_are_counted_once(tmp_path: Path) -> None:
    node, w = helper.make_node, floats(64, 64)
    body = [constant("inside", floats(64, 64)), node("Transpose", ["inside"], ["turned"], perm=[1, 0]),
            node("MatMul", ["a", "turned"], ["b"])]  # fmt: skip
    function = helper.make_function(OWN, "Layer", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    calls = [node("Layer", ["y0"], ["y1"], domain=OWN), node("Layer", ["y1"], ["y"], domain=OWN)]
    nodes = _branches()
    nodes[-1].output[0] = "y0"
    proto = model([*nodes, *calls], {"w": w}, ["n", 64], ["n", 64], functions=[function])
    weights = by_name(told(proto, tmp_path))
    assert weights.keys() == {"w", "inner", "inside"}
    assert [len(weights[name]["sites"]) for name in ("w", "inner", "inside")] == [2, 1, 2]


# -- what was quantized before ---------------------------------------------------------------------------------------


def test_what_was_quantized_before_is_told_with_its_format(tmp_path: Path) -> None:
    node = helper.make_node
    bits, blocks = {"K": 64, "N": 64, "bits": 4, "block_size": 32}, [64, 2, 16]
    nodes = [
        node("MatMulNBits", ["x", "codes", "scales"], ["a"], domain=MICROSOFT, **bits),
        node("MatMulNBits", ["a", "codes2", "scales", "zeros"], ["b"], domain=MICROSOFT, **bits),
        node("DequantizeLinear", ["stored", "grid", "zero"], ["w"], axis=1),
        node("MatMul", ["b", "w"], ["c"]),
        node("DynamicQuantizeMatMul", ["c", "dynamic", "one"], ["d"], domain=MICROSOFT),
        node("DynamicQuantizeLinear", ["d"], ["q", "qs", "qz"]),
        node("MatMulInteger", ["q", "whole", "qz"], ["i"]),
        node("Cast", ["i"], ["y"], to=FLOAT),
    ]
    stored = {
        "codes": RNG.integers(0, 255, blocks).astype(np.uint8), "scales": floats(128),
        "codes2": RNG.integers(0, 255, blocks).astype(np.uint8), "zeros": np.full(64, 0x88, np.uint8),
        "stored": RNG.integers(-99, 99, (64, 64)).astype(np.int8), "grid": np.full(64, 0.01, np.float32),
        "zero": np.zeros(64, np.int8), "dynamic": RNG.integers(-99, 99, (64, 64)).astype(np.int8),
        "one": np.array(0.01, np.float32), "whole": RNG.integers(0, 99, (64, 64)).astype(np.uint8),
    }  # fmt: skip
    proto = model(nodes, stored, ["n", 64], ["n", 64])
    found = told(proto, tmp_path)
    weights = by_name(found)
    assert {entry["status"] for entry in weights.values()} == {"already quantized"}
    formats = {name: entry["format"] for name, entry in weights.items() if entry["kind"] == "packed codes"}
    assert formats == {"codes": "int4-g32", "codes2": "uint4-g32", "stored": "int8-channel", "dynamic": "int8",
                       "whole": "uint8"}  # fmt: skip
    reasons = [entry["reason"] for entry in of_weights(found)]
    assert "MatMulNBits reads it quantized already (int4-g32)" in reasons
    with pytest.raises(qc.InputError, match=r"MatMulNBits reads it quantized already \(int4-g32\)"):
        qc.export(tmp_path / "model.onnx", "cpu-int4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["language_model", "dit", "mamba"])
def test_shipped_models_are_told_whole(name: str) -> None:
    path = ZOO / f"{name}.onnx"
    found = inspect(path)
    check_sums(found, stored_bytes(onnx.load(path)))
    assert found["weights_summary"]["share"] > 0.95
