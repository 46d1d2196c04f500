"""Sizes that exporters compute: products of dynamic axes, maxima for broadcasting, choices."""

from __future__ import annotations

import numpy as np
import pytest
from changes import basis_change, claimed

from qcompile.analysis.analyze import analyze

#: A batched product as tf2onnx writes ``bthd,bshd->bhts``: batch and heads become one axis of computed length.
EINSUM = """g (float[n,t,6] x) => (float[n,t,7] y)
    <float[6,32] wv, float[6,32] wp, float[32,7] wo, int64[4] heads,
     int64[1] third, int64[1] fourth, int64[2] pair, int64[1] rest>
{
    v0 = MatMul(x, wv)\n v1 = Reshape(v0, heads)\n v = Transpose<perm=[0,2,1,3]>(v1)
    p0 = MatMul(x, wp)\n p1 = Reshape(p0, heads)\n p2 = Transpose<perm=[0,2,1,3]>(p1)
    p3 = Transpose<perm=[0,2,3,1]>(p1)
    scores = MatMul(p2, p3)\n p = Softmax<axis=-1>(scores)
    vs = Shape(v)\n ps = Shape(p)
    vb = Gather(vs, pair)\n pb = Gather(ps, pair)\n vn = ReduceProd(vb)\n pn = ReduceProd(pb)
    vw = Gather(vs, fourth)\n pw = Gather(ps, fourth)
    vt = Concat<axis=0>(vn, rest, vw)\n pt = Concat<axis=0>(pn, rest, pw)
    vr = Reshape(v, vt)\n pr = Reshape(p, pt)
    o = MatMul(pr, vr)
    most = Max(vb, pb)\n length = Gather(ps, third)\n ot = Concat<axis=0>(most, length, vw)
    o1 = Reshape(o, ot)\n o2 = Transpose<perm=[0,2,1,3]>(o1)
    os = Shape(o2)\n ob = Gather(os, pair)\n lead = Concat<axis=0>(ob, rest)
    o3 = Reshape(o2, lead)\n y = MatMul(o3, wo)
}"""
CONSTANTS = {
    "heads": np.array([0, 0, 4, 8]), "third": np.array([2]), "fourth": np.array([3]), "pair": np.array([0, 1]),
    "rest": np.array([-1]),
}  # fmt: skip


def freedoms(model) -> dict[str, str]:
    """By site the freedom of what it reads."""
    analysis = analyze(model)
    return {
        site.weight.name: " ".join(leaf.node.freedom.label for leaf in analysis.axes.leaves(site.ref_in))
        for site in analysis.sites
    }


def sound(model, **sizes: int) -> bool:
    error, _ = basis_change(model, lambda analysis: claimed(analysis, 1), 1, sizes)
    return error < 1e-10


def test_values_are_followed_through_batch_and_heads_in_one_axis(parse):
    model = parse(EINSUM, 18, **CONSTANTS)
    assert freedoms(model)["wo"] == "permutation general"
    assert sound(model, n=2, t=5)


def test_repetition_along_a_product_of_sizes_keeps_the_vector_of_ones(parse):
    text = """g (float[n,6] x) => (float[n,7] y)
    <float[6,32] w, float[1,8] one, float[32,7] wo, int64[3] heads, int64[2] pair, int64[2] back, int64[1] eight,
     int64[2] rows>
    {
        h0 = MatMul(x, w)\n h = Reshape(h0, heads)\n hs = Shape(h)\n hb = Gather(hs, pair)\n count = ReduceProd(hb)
        to = Concat<axis=0>(count, eight)\n many = Expand(one, to)
        flat = Reshape(h, rows)\n sum = Add(flat, many)\n g1 = Reshape(sum, back)\n y = MatMul(g1, wo)
    }"""
    found = {
        "heads": np.array([0, 4, 8]), "pair": np.array([0, 1]), "back": np.array([-1, 32]), "eight": np.array([8]),
        "rows": np.array([-1, 8]),
    }  # fmt: skip
    model = parse(text, 18, **found)
    assert freedoms(model)["wo"] == "orthogonal-ones general"
    assert sound(model, n=3)


@pytest.mark.parametrize("choice", ["Where(same, ones, shape)", "Max(shape, ones)"])
def test_choice_between_sizes_is_made(parse, choice):
    """``expand`` of TorchScript: -1 stands for the size that is there."""
    text = f"""g (float[n,6] x) => (float[n,5,7] y)
    <float[6,8] w, float[8,7] wo, int64[3] shape, int64[3] minus, int64[3] ones, int64[1] middle>
    {{
        h = MatMul(x, w)\n u = Unsqueeze(h, middle)\n same = Equal(shape, minus)
        to = {choice}\n e = Expand(u, to)\n y = MatMul(e, wo)
    }}"""
    found = {"shape": np.array([-1, 5, -1]), "minus": np.full(3, -1), "ones": np.ones(3, int), "middle": np.array([1])}
    model = parse(text, 18, **found)
    assert freedoms(model)["wo"] == "general"
    assert sound(model, n=3)


def test_view_of_unknown_sizes_takes_freedom_but_keeps_its_rank(parse):
    text = """g (float[n,t,6] x, int64[1] k) => (float[a,b,7] y) 
    <float[6,32] w, float[8,7] wo, int64[1] rest, int64[1] eight>
    { h = MatMul(x, w)\n to = Concat<axis=0>(k, rest, eight)\n v = Reshape(h, to)\n y = MatMul(v, wo) }"""
    model = parse(text, 18, rest=np.array([-1]), eight=np.array([8]))
    for node in model.graph:
        node.outputs[0].shape = None
    assert freedoms(model)["wo"] == "general"


def test_tile_that_does_not_fit_is_no_bug(parse):
    text = """g (float[2,6] x) => (float[2,7] y) <float[6,8] w, float[8,7] wo, int64[3] r>
    { h = MatMul(x, w)\n t = Tile(h, r)\n y = MatMul(t, wo) }"""
    analysis = analyze(parse(text, 18, r=np.array([1, 1, 1])))
    assert analysis.free(analysis.sites[0].ref_out).label == "none"


#: Heads as TorchScript writes them once onnxruntime has fused what was between: cut sizes, scalars, products, halves.
SCALARS = """g (float[n,t,6] x) => (float[n,t,7] y)
    <float[6,32] w, float[32,7] wo, int64[4] heads, int64[4] ones, int64[1] zero, int64[1] last, int64[1] most,
     int64 two>
{
    h0 = MatMul(x, w)\n h = Reshape(h0, heads)\n hs = Shape(h)\n n, t, a, d = Split<axis=0>(hs, ones)
    sa = Squeeze(a, zero)\n sd = Squeeze(d, zero)\n half = Div(sd, two)\n at = Unsqueeze(half, zero)
    l = Slice(h, zero, at, last)\n r = Slice(h, at, most, last)\n nr = Neg(r)\n j = Concat<axis=-1>(nr, l)
    width = Mul(sa, sd)\n uw = Unsqueeze(width, zero)\n to = Concat<axis=0>(n, t, uw)
    f = Reshape(j, to)\n y = MatMul(f, wo)
}"""


def test_scalars_and_bounds_that_are_computed_from_sizes(parse):
    found = {
        "heads": np.array([0, 0, 4, 8]), "ones": np.ones(4, int), "zero": np.array([0]), "last": np.array([3]),
        "most": np.array([2**62]), "two": np.array(2),
    }  # fmt: skip
    model = parse(SCALARS, 18, **found)
    for node in model.graph:
        node.outputs[0].shape = None
    assert freedoms(model)["wo"] == "general general general"
    assert sound(model, n=2, t=3)


#: Widths of a padding as torch writes them: pairs in reverse order.
REVERSED = """g (float[n,6,6] x) => (float[n,a,7] y)
    <float[6,8] w, float[8,7] wo, int64[6] widths, int64[2] pairs, int64[1] zero, int64[1] minus, int64[1] least,
     int64[1] rest>
{
    h = MatMul(x, w)\n p = Reshape(widths, pairs)\n f = Slice(p, minus, least, zero, minus)
    q = Transpose<perm=[1,0]>(f)
    r = Reshape(q, rest)\n z = Pad(h, r)\n y = MatMul(z, wo)
}"""


def test_widths_in_a_matrix_keep_their_places(parse):
    found = {
        "widths": np.array([0, 0, 1, 2, 0, 0]), "pairs": np.array([-1, 2]), "zero": np.array([0]),
        "minus": np.array([-1]), "least": np.array([-(2**62)]), "rest": np.array([-1]),
    }  # fmt: skip
    model = parse(REVERSED, 18, **found)
    for node in model.graph:
        node.outputs[0].shape = None
    assert freedoms(model)["wo"] == "general"
    assert sound(model, n=2)
