"""Rotation of graphs whose weights are shared: one layer that runs twice, a table that is also a head."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from runtimes import RUNTIMES

from qcompile.analysis.analyze import analyze
from qcompile.analysis.siblings import siblings_of
from qcompile.api import rotate
from qcompile.choice.placement import Placement
from qcompile.ir.transform_nodes import read_transform
from qcompile.ir.widen import to_double
from qcompile.passes.index import load_pass
from qcompile.passes.state import State
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate, evaluate_double
from qcompile.transforms import BlockDense, Hadamard, Kronecker

SHARED = {
    "a layer that runs twice": """g (float[2,5,8] x) => (float[2,5,8] y) <float[8,8] w>
        { a = MatMul(x, w)\n b = Relu(a)\n c = MatMul(b, w)\n y = Add(c, x) }""",
    "a table that is also a matrix": """g (int64[2,5] ids) => (float[2,5,8] y) <float[8,8] w>
        { a = Gather(w, ids)\n b = Relu(a)\n y = MatMul(b, w) }""",
    "a kernel and a matrix behind one value": """g (float[2,8,5] x) => (float[2,8,5] y, float[2,8,6] z)
        <float[8,8,3] k, float[5,6] w> { a = Relu(x)\n y = Conv<pads=[1,1]>(a, k)\n z = MatMul(a, w) }""",
    "a stack of matrices": """g (float[2,3,8] x) => (float[2,3,4] y) <float[2,8,4] w>
        { a = Relu(x)\n y = MatMul(a, w) }""",
    "a scale on a part of an axis": """g (float[2,5,6] x) => (float[2,5,7] y)
        <float[6,16] w, float[16] b, float[8] c, float[8,7] v, int64[2] halves>
        { h = MatMul(x, w)\n s = Add(h, b)\n p, q = Split<axis=-1, num_outputs=2>(s)\n r = Mul(p, c)\n t = Add(r, q)
          y = MatMul(t, v) }""",
}


@pytest.mark.parametrize("transforms", ["hadamard", "block"])
@pytest.mark.parametrize("name", SHARED)
def test_function_stays(parse, name, transforms):
    wide = to_double(parse(SHARED[name]))
    inputs = example_inputs(wide)
    want = evaluate_double(wide, inputs)
    got = evaluate_double(rotate(wide, transforms=transforms).prepared.model, inputs)
    assert compare(want, dict(zip(want, got.values(), strict=True)))[0] < 1e-12


def test_transforms_of_one_form_but_other_steps_are_functions_of_their_own(parse):
    """Signs and a permutation in front of the same matrices: what is random in the two variants of Hadamard."""
    wide = to_double(
        parse(
            """g (float[2,5,16] x) => (float[2,5,3] y) <float[16,16] w, float[16,3] v>
            { a = Relu(x)\n b = MatMul(a, w)\n c = Relu(b)\n y = MatMul(c, v) }"""
        )
    )
    inputs = example_inputs(wide)
    want = evaluate_double(wide, inputs)
    analysis = analyze(wide)
    online = {"a": Hadamard(16, 0), "c": Hadamard(16, 0, "regular")}
    state = State(wide)
    load_pass("rotate")(analysis, tuple(siblings_of(analysis.sites)), Placement({}, online)).apply(state)
    written = [structure for node in wide.graph if (structure := read_transform(node)) is not None]
    assert [len(structure.steps) for structure in written] == [len(online[name].factors()) for name in ("a", "c")]
    assert compare(want, evaluate_double(wide, inputs))[0] < 1e-12


STACKED = {
    "two factors": Hadamard(24, 0),
    "a stack": BlockDense(torch.eye(8).repeat(3, 1, 1) * 2),
    "a stack along the slow half": Kronecker(BlockDense(torch.eye(3) + torch.arange(2).view(2, 1, 1)), Hadamard(4)),
}


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("chosen", [True, False])
def test_an_expert_without_a_token_runs(parse, name, chosen):
    """onnxruntime refuses products of stacks without rows, or ends the process with them."""
    model = parse(
        """g (float[n,24] x, bool[n] mine) => (float[k,5] y) <float[24,5] w>
        { a = Compress<axis=0>(x, mine)\n b = Relu(a)\n y = MatMul(b, w) }"""
    )
    inputs = {"x": np.ones((3, 24), np.float32), "mine": np.full(3, chosen)}
    want = evaluate(model, inputs)
    analysis = analyze(model)
    state = State(model)
    load_pass("rotate")(analysis, tuple(siblings_of(analysis.sites)), Placement({}, {"b": STACKED[name]})).apply(state)
    got = evaluate(model, inputs)
    assert got["y"].shape == want["y"].shape
    assert compare(want, got)[0] < 1e-6


ZOO = Path(__file__).parents[2] / "examples" / "zoo"


@cache
def rotated(name: str, transforms: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A shipped model with transforms online, small inputs, and what the source computes of them."""
    stage = rotate(ZOO / f"{name}.onnx", transforms=transforms)
    assert any(read_transform(node) is not None for node in stage.model.graph)
    source = stage.prepared.source.model
    inputs = example_inputs(source, sizes={"batch": 1, "length": 4})
    return ir.to_proto(stage.model), inputs, evaluate(source, inputs)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("transforms", ["hadamard", "block"])
@pytest.mark.parametrize("name", ["language_model", "dit"])
def test_every_runtime_runs_a_rotated_model(name, transforms, runtime):
    proto, inputs, want = rotated(name, transforms)
    onnx.checker.check_model(proto, full_check=True)
    assert compare(want, dict(zip(want, RUNTIMES[runtime](proto, inputs), strict=True)))[0] < 1e-5
