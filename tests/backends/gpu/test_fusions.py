"""Which nodes become one, and that the result computes the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
from planning import node_named, plan_site

from qcompile.run.compare import compare
from qcompile.run.session import evaluate

pytest.importorskip("triton", reason="the generated programs import triton")

RNG = np.random.default_rng(0)


def build(graph: str, version: int = 18, **constants: np.ndarray) -> ir.Model:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {version}]> {graph}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    loaded = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    for node in loaded.graph:
        node.name = node.name or node.outputs[0].name
    return loaded


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def plan_product(model: ir.Model, site: str, scheme: str) -> None:
    """Plan a MatMul, its weight rounded to nearest."""
    plan_site(model, site, node_named(model, site).inputs[1].const_value.numpy().T, scheme)


def check(lower: Callable, model: ir.Model, inputs: dict, target: str, most: float) -> str:
    """The program against the reference target's emulation; returns its source."""
    import tempfile
    from pathlib import Path

    from qcompile.backends.ort import lowering as reference
    from qcompile.backends.ort.runner import load
    from qcompile.targets.registry import get_target

    run, source = lower(model.clone(), target)
    with tempfile.TemporaryDirectory() as folder:
        reference.lower(model.clone(), get_target("reference"), Path(folder))
        want = load(Path(folder))(inputs)
    assert compare(want, run(inputs))[0] < most
    return source


BLOCK = """g (float[batch,length,64] x) => (float[batch,length,64] y) {
    n = RMSNormalization<epsilon=0.001>(x, gamma)
    a = MatMul(n, wa)  b = MatMul(n, wb)  c = Add(b, bias)
    s = Sigmoid(a)  t = Mul(a, s)  u = Mul(t, c)
    y = MatMul(u, wd) }"""


def block() -> ir.Model:
    return build(BLOCK, 23, gamma=weight(64), wa=weight(64, 96), wb=weight(64, 96), bias=weight(96), wd=weight(96, 64))


def test_siblings_are_one_product_with_one_bias(lower: Callable) -> None:
    model = block()
    for name in ("a", "b", "y"):
        plan_product(model, name, "int4-g32")
    source = check(lower, model, {"x": weight(2, 3, 64)}, "hopper-int4", 2e-6)
    assert "self.wa_wb = kernels.Linear" in source
    assert "= self.wa_wb.split(self.wa_wb(" in source
    assert 'kernels.gate(a, c, "silu")' in source
    assert source.count("kernels.Linear(") == 2


def test_a_weight_that_two_layers_share_is_stored_once(lower: Callable) -> None:
    model = build(
        "g (float[N,64] x) => (float y) { h = MatMul(x, w) e = Exp(h) y = MatMul(e, w) }", w=weight(64, 64) / 9
    )
    for name in ("h", "y"):
        plan_product(model, name, "int4-g32")
    source = check(lower, model, {"x": weight(5, 64)}, "hopper-int4", 2e-6)
    assert source.count("kernels.Linear(") == 1
    assert source.count("self.w(") == 2


def test_norm_and_gate_take_in_the_quantization_that_follows(lower: Callable) -> None:
    model = block()
    for name in ("a", "b", "y"):
        plan_product(model, name, "mxfp4-even/mxfp4-even")
    source = check(lower, model, {"x": weight(2, 3, 64)}, "mi350-mxfp4", 1e-5)
    assert "quantize_activation" not in source
    assert "n = kernels.rms_norm(x" in source
    assert source.count("activation=self.as_mxfp4_even") == 2


def test_siblings_in_other_formats_stay_apart_but_share_the_quantized_input(lower: Callable) -> None:
    model = build("g (float[N,64] x) => (float y, float z) { h = Exp(x) y = MatMul(h, wa) z = MatMul(h, wb) }",
                  wa=weight(64, 32), wb=weight(64, 32))  # fmt: skip
    plan_product(model, "y", "int4-g32/int8-channel")
    plan_product(model, "z", "mxfp4/int8-channel")
    source = check(lower, model, {"x": weight(5, 64)}, "hopper-w4a8", 2e-6)
    assert source.count("kernels.quantize_activation(") == 1
    assert source.count("kernels.Linear(") == 2


def same(lower: Callable, model: ir.Model, inputs: dict) -> str:
    run, source = lower(model.clone())
    assert compare(evaluate(model, inputs), run(inputs))[0] < 3e-6
    return source


def test_modulation(lower: Callable) -> None:
    text = """g (float[N,5,16] x, float[N,16] shift, float[N,16] scale) => (float y) {
        one = Constant<value_float=1.0>()  ax = Constant<value_ints=[1]>()
        b = Unsqueeze(shift, ax)  a = Unsqueeze(scale, ax)  f = Add(a, one)
        n = LayerNormalization(x, w)  m = Mul(n, f)  y = Add(m, b) }"""
    inputs = {"x": weight(2, 5, 16), "shift": weight(2, 16), "scale": weight(2, 16)}
    assert "y = kernels.modulate(n" in same(lower, build(text, w=weight(16)), inputs)


ATTENTION = """g (float[N,4,L,8] q, float[N,4,L,8] k, float[N,4,L,8] v, float[1,1,L,L] m) => (float y) {{
    t = Transpose<perm=[0,1,3,2]>(k)  c = Constant<value_float=0.25>()  {scores}
    p = Softmax<axis=-1>(s)  {guard}  y = MatMul(w, v) }}"""
SCORES = {
    "plain": "s = MatMul(q, t)",
    "scaled and masked": "r = MatMul(q, t) a = Mul(r, c) s = Add(a, m)",
    "scaled before": "r = Mul(q, c) a = Mul(t, c) s = MatMul(r, a)",
    "divided": "r = MatMul(q, t) s = Div(r, c)",
}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("guard", ["", "z = Constant<value_float=0.0>() i = IsNaN(p) w = Where(i, z, p)"])
def test_attention_that_is_spelled_out(scores: str, guard: str, lower: Callable) -> None:
    text = ATTENTION if guard else ATTENTION.replace("MatMul(w, v)", "MatMul(p, v)")
    inputs = {name: weight(2, 4, 5, 8) for name in "qkv"} | {"m": weight(1, 1, 5, 5)}
    source = same(lower, build(text.format(scores=scores, guard=guard)), inputs)
    assert "softmax" not in source
    assert "attention.attention(" in source


def test_softmax_that_something_else_reads_stays(lower: Callable) -> None:
    text = """g (float[N,4,5,8] q, float[N,4,5,8] k, float[N,4,5,8] v) => (float y, float s) {
        t = Transpose<perm=[0,1,3,2]>(k)  s = MatMul(q, t)  p = Softmax<axis=-1>(s)  y = MatMul(p, v) }"""
    assert "torch.softmax" in same(lower, build(text), {name: weight(2, 4, 5, 8) for name in "qkv"})


def test_heads_are_not_repeated_for_attention(lower: Callable) -> None:
    text = """g (float[N,4,5,8] q, float[N,2,5,8] k, float[N,2,5,8] v) => (float y) {
        two = Constant<value_ints=[2]>()  n = Shape<start=0, end=1>(q)  r = Constant<value_ints=[2,2,5,8]>()
        e = Concat<axis=0>(n, r)  h = Constant<value_ints=[4,5,8]>()  f = Concat<axis=0>(n, h)
        ku = Unsqueeze(k, two)  ke = Expand(ku, e)  kr = Reshape(ke, f)
        vu = Unsqueeze(v, two)  ve = Expand(vu, e)  vr = Reshape(ve, f)
        y = Attention(q, kr, vr) }"""
    inputs = {"q": weight(3, 4, 5, 8), "k": weight(3, 2, 5, 8), "v": weight(3, 2, 5, 8)}
    source = same(lower, build(text, 23), inputs)
    assert "y = attention.attention(q_narrow, k_narrow, v_narrow)" in source
    assert "expand" not in source


ROTARY = """g (float[N,4,L,8] x, float[L,8] c, float[L,8] s) => (float y) {{
    zero = Constant<value_ints=[0]>() half = Constant<value_ints=[4]>() end = Constant<value_ints=[{end}]>()
    last = Constant<value_ints=[3]>() {cut}
    m = Neg(b) t = Concat<axis=-1>(m, a) l = Mul(x, c) r = Mul(t, s) y = Add(l, r) }}"""


@pytest.mark.parametrize("cut", ["a, b = Split<axis=-1, num_outputs=2>(x)",
                                 "a = Slice(x, zero, half, last) b = Slice(x, half, end, last)"])  # fmt: skip
def test_rotary_embedding_that_is_spelled_out(cut: str, lower: Callable) -> None:
    inputs = {"x": weight(2, 4, 5, 8), "c": weight(5, 8), "s": weight(5, 8)}
    source = same(lower, build(ROTARY.format(cut=cut, end=9223372036854775807)), inputs)
    assert "y = kernels.rotary(x_narrow, c, s)" in source


def test_halves_in_the_other_order_are_no_rotary_embedding(lower: Callable) -> None:
    text = ROTARY.format(cut="b, a = Split<axis=-1, num_outputs=2>(x)", end=9)
    inputs = {"x": weight(2, 4, 5, 8), "c": weight(5, 8), "s": weight(5, 8)}
    assert "rotary" not in same(lower, build(text), inputs)
