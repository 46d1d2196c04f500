"""Graphs that take and give sequences of tensors and optional values: run, compared, exported and saved like others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as helper
import onnx.numpy_helper
import pytest
from commands import done, refused

import qcompile as qc
from qcompile.run.compare import compare
from qcompile.run.sequences import gathered, tensors
from qcompile.run.session import evaluate

FLOAT = onnx.TensorProto.FLOAT
TENSOR = helper.make_tensor_type_proto(FLOAT, ["n", 32])

#: The nodes between ``x`` and ``y``, and the types of the two. Besides, ``w`` and ``v`` are weights and ``i`` is one.
GRAPHS = {
    "a sequence in": (
        [("SequenceAt", "x i", "e", {}), ("ConcatFromSequence", "x", "c", {"axis": 0}), ("Add", "c e", "f", {}),
         ("MatMul", "f w", "h", {}), ("Relu", "h", "r", {}), ("MatMul", "r v", "y", {})],
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [1, 32])), TENSOR,
    ),
    "a sequence out": (
        [("MatMul", "x w", "h", {}), ("Relu", "h", "r", {}), ("MatMul", "r v", "z", {}),
         ("SplitToSequence", "z", "y", {"axis": 0})],
        TENSOR, helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [1, 32])),
    ),
    "an optional value in": (
        [("OptionalGetElement", "x", "g", {}), ("MatMul", "g w", "h", {}), ("Relu", "h", "r", {}),
         ("MatMul", "r v", "y", {})],
        helper.make_optional_type_proto(TENSOR), TENSOR,
    ),
    "an optional value out": (
        [("MatMul", "x w", "h", {}), ("Relu", "h", "r", {}), ("MatMul", "r v", "z", {}), ("Optional", "z", "y", {})],
        TENSOR, helper.make_optional_type_proto(TENSOR),
    ),
}  # fmt: skip


def written(folder: Path, name: str) -> Path:
    rng = np.random.default_rng(0)
    nodes, given, made = GRAPHS[name]
    weights = {"w": rng.standard_normal((32, 64)), "v": rng.standard_normal((64, 32))}
    constants = [onnx.numpy_helper.from_array((v / 6).astype(np.float32), k) for k, v in weights.items()]
    constants.append(onnx.numpy_helper.from_array(np.array(1), "i"))
    made_nodes = [helper.make_node(op, a.split(), [b], **more) for op, a, b, more in nodes]
    ends = [[helper.make_value_info("x", given)], [helper.make_value_info("y", made)]]
    model = helper.make_model(
        helper.make_graph(made_nodes, "g", *ends, constants), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("name", GRAPHS)
def test_from_inputs_to_outputs(tmp_path: Path, name: str) -> None:
    model, start, made = written(tmp_path, name), tmp_path / "start.npz", tmp_path / "out.npz"
    done("inputs", model, "-o", start)
    done("export", model, "--target", "cpu-int8", "-o", tmp_path / "a", "--calibration", start, "--evaluation", start)
    done("run", tmp_path / "a", "--inputs", start, "-o", made)
    done("verify", tmp_path / "a")
    with np.load(start) as inputs, np.load(made) as outputs:
        given = gathered(dict(inputs), ["x"] if name == "a sequence in" else [])
        want = tensors(evaluate(model, given))
        assert list(want) == outputs.files
        assert 0 < compare(want, dict(outputs))[0] < 0.03


@pytest.mark.parametrize("name", GRAPHS)
def test_rotated_graphs_are_compared(tmp_path: Path, name: str) -> None:
    assert 0 < qc.rotate(written(tmp_path, name)).equivalence.rel_l2 < 1e-5


def test_elements_are_compared_one_by_one() -> None:
    ones = np.ones(3, np.float32)
    assert compare({"y": [ones, ones]}, {"y": [ones, 2 * ones]}) == (1.0, 1.0)
    assert compare({"y": [ones, ones]}, {"y": [ones, ones]}) == (0.0, 0.0)
    assert compare({"y": [ones]}, {"y": [ones, ones]}) == (np.inf, np.inf)
    assert compare({"y": None}, {"y": None}) == (0.0, 0.0)
    assert compare({"y": None}, {"y": ones}) == (np.inf, np.inf)


def test_elements_are_gathered_by_their_number() -> None:
    found = gathered({"x[10]": 2, "x[9]": 1, "z": 3, "z[0]": 4}, ["x"])
    assert found == {"x": [1, 2], "z": 3, "z[0]": 4}


def test_maps_are_refused(tmp_path: Path) -> None:
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(onnx.TensorProto.INT64, TENSOR))
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    ends = [[helper.make_tensor_value_info("x", FLOAT, [1, 2])], [helper.make_value_info("y", kind)]]
    model = helper.make_model(
        helper.make_graph([node], "g", *ends), ir_version=8,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)],
    )  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    said = refused(tmp_path, "inspect", tmp_path / "m.onnx")
    assert said.endswith("m.onnx' has values that are maps: cut off what makes them, such as ZipMap")
