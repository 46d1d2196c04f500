"""Running a graph in parts gives what running it whole gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.api import rotate
from qcompile.errors import InputError
from qcompile.run import segments
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.segments import Segments
from qcompile.run.session import Session

ZOO = Path(__file__).parents[2] / "examples" / "zoo"


@pytest.mark.parametrize("size", [1, 300_000, 1 << 30])
def test_parts_compute_what_the_whole_computes(monkeypatch, size):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", size)
    model = rotate(ZOO / "language_model.onnx").prepared.model  # with functions of our own
    inputs = example_inputs(model)
    want = Session(model, optimize=False).run(inputs)
    assert compare(want, Segments(model).run(inputs))[0] < 1e-6


def test_bodies_may_read_from_outside_and_outputs_may_be_constants(monkeypatch, parse):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)
    model = parse("""g (float[2,3] x, bool c) => (float[2,4] y, float[3,4] w) <float[3,4] w, float[3,4] v>
        { a = MatMul(x, w)
          b = MatMul(x, v)
          y = If (c) <then_branch = t () => (float[2,4] p) { p = Add(a, b) },
                      else_branch = e () => (float[2,4] q) { q = Sub(a, b) }> }""")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    w, v = (model.graph.initializers[name].const_value.numpy() for name in "wv")
    for flag in (True, False):
        got = Segments(model).run({"x": x, "c": np.array(flag)})
        np.testing.assert_allclose(got["y"], x @ w + (x @ v if flag else -(x @ v)), rtol=1e-5)
        np.testing.assert_array_equal(got["w"], w)


def test_wrong_inputs_are_named():
    with pytest.raises(InputError, match="lacks input_ids"):
        Segments(ir.load(ZOO / "language_model.onnx")).run({"ids": np.zeros((1, 4), np.int64)})
