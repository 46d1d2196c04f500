"""The passes that fold scales and shifts and center norms: the function stays, the freedom grows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.capture import example_inputs
from qcompile.evaluate import compare, evaluate_double, to_double
from qcompile.preparation import prepare

EMBED = "h0 = Gather(table, ids)\n"
LAYER = """
 n{i} = LayerNormalization<axis=-1>(h{i}, g{i}, b{i})
 u{i} = MatMul(n{i}, w{i})
 a{i} = Relu(u{i})
 d{i} = MatMul(a{i}, v{i})
 h{j} = Add(h{i}, d{i})
"""
FIXED = {"axes": np.array([-1]), "two": np.array(2.0, np.float32), "eps": np.array(1e-5, np.float32)}


def stack(parse, layers: int = 2, **fixed) -> ir.Model:
    """A pre-norm stack of perceptrons over an embedding, with scales and shifts."""
    body = EMBED + "".join(LAYER.format(i=i, j=i + 1) for i in range(layers))
    weights = ", ".join(f"float[8] g{i}, float[8] b{i}, float[8,12] w{i}, float[12,8] v{i}" for i in range(layers))
    weights = f"float[20,8] table, {weights}, float[8] gl, float[8] bl, float[8,7] head"
    text = f"""g (int64[2,5] ids) => (float[2,5,7] y) <{weights}>
    {{ {body} n = LayerNormalization<axis=-1>(h{layers}, gl, bl)
    y = MatMul(n, head) }}"""
    return parse(text, **fixed)


def prepared_change(model: ir.Model):
    """The model after preparation, and how far it is from itself before, both in float64."""
    wide = to_double(model)
    inputs = example_inputs(model)
    want = evaluate_double(wide, inputs)
    found = prepare(wide)
    return found, compare(want, dict(zip(want, evaluate_double(found.model, inputs).values(), strict=True)))[0]


def stream(found) -> str:
    """The freedom of what the embedding table writes."""
    table = next(site for site in found.analysis.sites if site.input is None)
    return found.analysis.free(table.ref_out).label


def test_layer_norms_over_a_centered_stream_become_rms_norms(parse):
    found, error = prepared_change(stack(parse))
    assert error < 1e-12
    assert not any(norm.centered for norm in found.analysis.norms)
    assert stream(found) == "orthogonal"
    assert not found.state.declined


def test_scale_of_zero_and_tiny_scale_fold(parse):
    scale = np.ones(8, np.float32)
    scale[2], scale[3] = 0.0, 1e-20
    found, error = prepared_change(stack(parse, g0=scale))
    assert error < 1e-12
    assert stream(found) == "orthogonal"


def test_tap_of_the_raw_stream_blocks_centering_and_is_said(parse):
    model = parse(
        """g (int64[2,5] ids) => (float[2,5,7] y, float[2,5,8] h0)
        <float[20,8] table, float[8] g0, float[8] b0, float[8,7] head>
        { h0 = Gather(table, ids)\n n = LayerNormalization<axis=-1>(h0, g0, b0)\n y = MatMul(n, head) }"""
    )
    found, error = prepared_change(model)
    assert error < 1e-12
    assert any(norm.centered for norm in found.analysis.norms)
    assert any("output of the graph" in entry.reason for entry in found.state.declined)


def test_layer_scale_folds_backward_into_its_writer(parse):
    model = parse(
        """g (float[2,5,6] x) => (float[2,5,7] y) <float[6,8] a, float[8,8] b, float[8] gamma, float[8,7] head>
        { h = MatMul(x, a)\n t = Tanh(h)\n u = MatMul(t, b)\n s = Mul(u, gamma)\n r = Add(h, s)
          y = MatMul(r, head) }"""
    )
    found, error = prepared_change(model)
    assert error < 1e-12
    assert not any(node.op_type == "Mul" for node in found.model.graph)


def test_chain_of_scales_folds_link_by_link(parse):
    model = parse(
        """g (float[2,5,6] x) => (float[2,5,8] y) <float[6,8] a, float[8] p, float[1,1,8] q>
        { h = MatMul(x, a)\n u = Mul(h, p)\n y = Mul(u, q) }"""
    )
    found, error = prepared_change(model)
    assert error < 1e-12
    assert [node.op_type for node in found.model.graph] == ["MatMul"]


SPELLINGS = {
    "pow, sqrt, div": (
        "q = Pow(h, two)\n m = ReduceMean<keepdims=1>(q, axes)\n v = Add(m, eps)\n s = Sqrt(v)\n z = Div(h, s)"
    ),
    "mul, sqrt, reciprocal": (
        "q = Mul(h, h)\n m = ReduceMean<keepdims=1>(q, axes)\n v = Add(eps, m)\n s = Sqrt(v)\n r = Reciprocal(s)\n"
        "z = Mul(r, h)"
    ),
    "power of minus one half": (
        "q = Mul(h, h)\n m = ReduceMean<keepdims=1>(q, axes)\n v = Add(m, eps)\n r = Pow(v, minus)\n z = Mul(h, r)"
    ),
    "centered": (
        "c = ReduceMean<keepdims=1>(h, axes)\n d = Sub(h, c)\n q = Pow(d, two)\n m = ReduceMean<keepdims=1>(q, axes)\n"
        "v = Add(m, eps)\n s = Sqrt(v)\n z = Div(d, s)"
    ),
}


@pytest.mark.parametrize("opset", [18, 21, 23])
@pytest.mark.parametrize("name", SPELLINGS)
def test_spelled_out_norms_are_recognized(parse, name, opset):
    model = parse(
        f"""g (float[2,5,6] x) => (float[2,5,7] y)
        <float[6,8] a, float[8] gamma, float[8,7] head, int64[1] axes, float two, float eps, float minus>
        {{ h = MatMul(x, a)\n {SPELLINGS[name]}\n n = Mul(z, gamma)\n y = MatMul(n, head) }}""",
        opset, **FIXED, minus=np.array(-0.5, np.float32),
    )  # fmt: skip
    found, error = prepared_change(model)
    assert error < 1e-12
    (norm,) = found.analysis.norms
    assert found.analysis.free(norm.ref_in).label == "orthogonal"


def test_norm_over_a_concatenation_of_the_stream_blocks_centering(parse):
    """Patch merging: a second norm reads the stream in a larger axis, where its mean is not that of each part."""
    model = parse(
        """g (int64[2,6] ids) => (float[2,6,7] y, float[2,3,5] z)
        <float[20,8] table, float[8] g0, float[8] b0, float[8,7] head, float[16] g1, float[16] b1, float[16,5] merge,
         int64[3] shape>
        { h = Gather(table, ids)\n n = LayerNormalization<axis=-1>(h, g0, b0)\n y = MatMul(n, head)
          p = Reshape(h, shape)\n m = LayerNormalization<axis=-1>(p, g1, b1)\n z = MatMul(m, merge) }""",
        shape=np.array([2, 3, 16]),
    )
    assert prepared_change(model)[1] < 1e-12


def test_tiling_by_an_unknown_number_takes_all_freedom(parse):
    model = parse(
        """g (float[2,5,6] x, int64[3] repeats) => (float[A,B,C] y) <float[6,8] a, float[8] scale>
        { h = MatMul(x, a)\n n = LayerNormalization<axis=-1>(h, scale)\n y = Tile(n, repeats) }"""
    )
    found = prepare(to_double(model))
    (norm,) = found.analysis.norms
    assert norm.scale.const_value.numpy().std() > 0  # not folded away: what tiles the result may do anything to it
