"""The passes that fold scales and shifts and center norms: the function stays, the freedom grows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.analysis.folding import Folded
from qcompile.compiler import prepare
from qcompile.ir.widen import to_double
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate_double
from qcompile.threads import threads
from qcompile.transforms import Hadamard

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


def test_long_chain_of_scales_is_one_scale(parse):
    scales = ", ".join(f"float[8] c{i}" for i in range(60))
    body = "".join(f" h{i + 1} = Mul(h{i}, c{i})\n" for i in range(60))
    text = f"""g (float[2,6] x) => (float[2,7] y) <float[6,8] a, {scales}, float[8,7] b>
    {{ h0 = MatMul(x, a)\n{body} y = MatMul(h60, b) }}"""
    rng = np.random.default_rng(0)
    found, error = prepared_change(
        parse(text, **{f"c{i}": rng.uniform(0.5, 1.5, 8).astype(np.float32) for i in range(60)})
    )
    assert error < 1e-12
    assert [node.op_type for node in found.model.graph] == ["MatMul", "MatMul"]


def test_scale_of_what_a_concatenation_reads_too_stays(parse):
    """As in DenseNet: each block scales all that came before it."""
    model = parse(
        """g (float[2,5,6] x) => (float[2,5,7] y)
        <float[6,8] a, float[8] p, float[8,8] b, float[16] q, float[16,7] head>
        { h = MatMul(x, a)\n u = Mul(h, p)\n r = Relu(u)\n v = MatMul(r, b)\n c = Concat<axis=-1>(h, v)
          w = Mul(c, q)\n s = Relu(w)\n y = MatMul(s, head) }"""
    )
    found, error = prepared_change(model)
    assert error < 1e-12


def test_scale_of_a_part_that_was_scaled_as_a_whole_folds_soundly(parse):
    model = parse(
        """g (float[2,5,6] x) => (float[2,5,7] y) <float[6,16] a, float[16] p, float[8] q, float[8,7] b, float[8,7] c>
        { h = MatMul(x, a)\n u = Mul(h, p)\n l, r = Split<axis=-1, num_outputs=2>(u)\n s = Mul(l, q)\n t = Relu(s)
          v = MatMul(t, b)\n w = MatMul(r, c)\n y = Add(v, w) }"""
    )
    assert prepared_change(model)[1] < 1e-12


def test_equal_biases_that_an_exporter_merged_tie_nothing(parse):
    """tf2onnx keeps one constant for all that are equal."""
    body = "".join(
        f"v{i} = MatMul(x, w{i})\n r{i} = Reshape(v{i}, heads)\n b{i} = Add(r{i}, bias)\n o{i} = Reshape(b{i}, flat)\n"
        f"y{i} = MatMul(o{i}, u{i})\n"
        for i in range(2)
    )
    model = parse(
        f"""g (float[2,6] x) => (float[2,7] y)
        <float[6,8] w0, float[6,8] w1, float[2,4] bias, float[8,7] u0, float[8,7] u1,
        int64[3] heads, int64[2] flat> {{ {body} y = Add(y0, y1) }}""",
        heads=np.array([2, 2, 4]), flat=np.array([2, 8]),
    )  # fmt: skip
    found, error = prepared_change(model)
    assert error < 1e-12
    first, second = (site for site in found.analysis.sites if site.weight.name.startswith("u"))
    assert found.analysis.axes.leaves(first.ref_in) != found.analysis.axes.leaves(second.ref_in)


def test_copy_of_a_constant_takes_no_name_of_a_value(parse):
    model = parse(
        """g (float[2,6] x) => (float[2,7] y) <float[6,8] w, float[8] scale, float[8,7] head>
        { h = MatMul(x, w)\n scale_1 = Mul(h, scale)\n s = Relu(scale_1)\n t = Add(s, scale)
          r = Relu(t)\n y = MatMul(r, head) }"""
    )
    found, error = prepared_change(model)
    assert error < 1e-12
    made = {value.name for node in found.model.graph for value in node.outputs}
    assert made.isdisjoint(found.model.graph.initializers)


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
    "scaled first": (
        "q = Mul(h, h)\n m = ReduceMean<keepdims=1>(q, axes)\n v = Add(m, eps)\n s = Sqrt(v)\n r = Reciprocal(s)\n"
        "f = Mul(r, own)\n z = Mul(h, f)"
    ),
    "distributed": (
        "c = GlobalAveragePool(h)\n d = Sub(h, c)\n q = Mul(d, d)\n m = GlobalAveragePool(q)\n v = Add(m, eps)\n"
        "s = Sqrt(v)\n r = Reciprocal(s)\n f = Mul(r, own)\n k = Neg(c)\n l = Mul(k, f)\n o = Add(l, shift)\n"
        "p = Mul(h, f)\n z = Add(p, o)"
    ),
    "distributed, subtracted": (
        "c = ReduceMean<keepdims=1>(h, axes)\n d = Sub(h, c)\n q = Mul(d, d)\n m = ReduceMean<keepdims=1>(q, axes)\n"
        "v = Add(m, eps)\n s = Sqrt(v)\n r = Reciprocal(s)\n l = Mul(c, r)\n o = Sub(shift, l)\n p = Mul(h, r)\n"
        "z = Add(o, p)"
    ),
}

#: What looks like a norm and is none: a mean of something else, another scale for the mean than for the rest.
OTHERS = {
    "the mean added": SPELLINGS["distributed, subtracted"].replace("l = Mul(c, r)", "e = Neg(c)\n l = Mul(e, r)"),
    "another scale": SPELLINGS["distributed"].replace("l = Mul(k, f)", "l = Mul(k, r)"),
}


@pytest.mark.parametrize("opset", [18, 21, 23])
@pytest.mark.parametrize("name", SPELLINGS)
def test_spelled_out_norms_are_recognized(parse, name, opset):
    model = parse(
        f"""g (float[2,5,6] x) => (float[2,5,7] y)
        <float[6,8] a, float[8] gamma, float[8,7] head, int64[1] axes, float two, float eps, float minus,
         float[1,1,8] own, float[8] shift>
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


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_a_norm_stays(parse, name):
    model = parse(
        f"""g (float[2,5,6] x) => (float[2,5,7] y)
        <float[6,8] a, float[8,7] head, int64[1] axes, float eps, float[1,1,8] own, float[8] shift>
        {{ h = MatMul(x, a)\n {OTHERS[name]}\n y = MatMul(z, head) }}""",
        **FIXED,
    )
    found, error = prepared_change(model)
    assert error < 1e-12
    assert not found.analysis.norms


def test_products_with_one_and_sums_with_zero_vanish(parse):
    model = parse(
        """g (float[2,5,6] x) => (float[2,5,7] y) <float[6,8] a, float[1] one, float nothing, float[8,7] b>
        { h = MatMul(x, a)\n s = Mul(h, one)\n t = Add(nothing, s)\n u = Sub(t, nothing)\n v = Div(u, one)
          y = MatMul(v, b) }""",
        one=np.ones(1, np.float32), nothing=np.zeros((), np.float32),
    )  # fmt: skip
    found, error = prepared_change(model)
    assert error < 1e-12
    assert [node.op_type for node in found.model.graph] == ["MatMul", "MatMul"]


# -- constants that are computed when they are read -------------------------------------------------------------------


def folded(keep: bool, shape: tuple[int, ...] = (24, 16)) -> tuple[np.ndarray, Folded]:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    changes = [(0, np.linspace(1, 2, shape[0])), (0, Hadamard(shape[0], 1))]
    return array, Folded(ir.tensor(array), changes, name="w", keep=keep)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("read_between", [True, False])
def test_folded_constant_takes_further_changes(keep: bool, read_between: bool) -> None:
    array, first = folded(keep)
    if read_between:
        first.numpy()
    both = first.then([(1, Hadamard(16, 2))])
    left, right = (Hadamard(*how).matrix().numpy() for how in ((24, 1), (16, 2)))
    want = left @ (np.linspace(1, 2, 24)[:, None] * array) @ right.T
    assert np.array_equal(both.numpy(), both.numpy())
    np.testing.assert_allclose(both.numpy(), want, rtol=0, atol=1e-6)
    assert np.array_equal(array, folded(keep)[0])  # the source stays


@pytest.mark.parametrize("axis", [0, 1])
def test_lines_of_a_folded_constant_are_those_of_the_whole(axis: int) -> None:
    places = np.array([0, 3, 7])
    want = np.moveaxis(folded(True)[1].numpy(), axis, -1)[places]
    np.testing.assert_allclose(folded(True)[1].lines(axis, places), want, rtol=0, atol=1e-6)


def test_folded_constant_is_computed_once_for_several_threads() -> None:
    _, tensor = folded(True, (480, 160))
    with threads(4) as beside:
        found = list(beside.map(lambda _: tensor.numpy(), range(16)))
    assert all(array is found[0] for array in found)
