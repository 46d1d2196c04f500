"""Weights that hold infinity are left alone with a reason; no transform spreads it, and the rest is quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import qcompile as qc
from qcompile.run.compare import compare
from qcompile.run.session import evaluate

RNG = np.random.default_rng(0)

#: What reads the first product reads an infinite feature; the last two do not.
PRODUCTS = """g (float[n,64] x) => (float[n,64] y, float[n,32] z) {
    h = MatMul(x, broken)\n r = Relu(h)\n a = MatMul(r, after)\n y = Tanh(a)
    u = MatMul(x, up)\n s = Sigmoid(u)\n z = MatMul(s, down) }"""

#: A table of biases, some of which forbid.
TABLE = """g (int64[n,64] d, float[n,64] x) => (float[n,64] y) {
    b = Gather(table, d)\n m = ReduceMax<axes=[-1], keepdims=0>(b)\n u = MatMul(x, up)\n a = Add(u, m)
    y = Softmax(a) }"""


def given(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    arrays = {name: RNG.standard_normal(shape) / 8 for name, shape in SHAPES.items() if name in text}
    if "broken" in arrays:
        arrays["broken"][3, 3] = np.inf
    if "table" in arrays:
        arrays["table"][0] = -np.inf
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return ir.from_proto(proto)


SHAPES = {"broken": (64, 64), "after": (64, 64), "up": (64, 64), "down": (64, 32), "table": (8, 4)}
CASES = {"products": (PRODUCTS, "broken", ["up", "down"]), "table": (TABLE, "table", ["up"])}


@pytest.mark.parametrize("transforms", ["auto", "hadamard", "block"])
@pytest.mark.parametrize("case", CASES)
def test_infinity_stays_where_it_is(case: str, transforms: str) -> None:
    text, _, _ = CASES[case]
    model = given(text)
    rotated = qc.rotate(model, transforms=transforms)
    x = {"x": RNG.standard_normal((4, 64)).astype(np.float32), "d": RNG.integers(0, 8, (4, 64))}
    x = {value.name: x[value.name] for value in model.graph.inputs}
    assert compare(evaluate(model, x), evaluate(rotated.model, x))[0] < 1e-5


@pytest.mark.parametrize("target", ["cpu-int4", "cpu-int8"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_finite_is_quantized(case: str, target: str, tmp_path: Path) -> None:
    text, weight, others = CASES[case]
    model = given(text)
    manifest = qc.export(model, target, tmp_path / "out").manifest
    assert {site["weight"] for site in manifest["sites"] if site["format"] != "float"} == {*others}
    reasons = {entry["reason"] for entry in manifest["declined"]}
    assert f"'{weight}' holds infinity" in reasons
    assert f"'{weight}' holds infinity" in {entry["reason"] for entry in qc.inspect(model)["declined"]}


@pytest.mark.parametrize(
    "have", [[np.inf, -np.inf, 1], [-np.inf, np.nan, 1], [np.nan, np.inf, 1], [1, np.inf, 1], [-np.inf, np.inf, 1, 1]]
)
def test_infinities_of_other_signs_and_places_are_far_apart(have: list[float]) -> None:
    want = np.array([-np.inf, np.inf, 1])
    assert compare({"y": want}, {"y": want.copy()}) == (0, 0)
    assert compare({"y": want}, {"y": np.array(have)}) == (np.inf, np.inf)
