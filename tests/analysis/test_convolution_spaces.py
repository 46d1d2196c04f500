"""Channels between convolutions: the freedom that activations, padding and groups leave, shown by changes of basis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from changes import TOLERANCE, change

from qcompile.analysis.analyze import analyze
from qcompile.analysis.spaces import Analysis, Space
from qcompile.compiler import prepare
from qcompile.errors import InputError
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate
from qcompile.transforms import Dense, Diagonal, Permutation, RandomOrthogonal, Transform

HIDDEN = """g (float[2,3,6,6] x) => (float[2,5,6,6] y) <float[8,3,3,3] a, float[8] b, float[5,8,3,3] c> {{
    h = Conv<pads=[1,1,1,1]>(x, a, b)
    {middle}
    y = Conv<pads=[1,1,1,1]>(g, c) }}"""

#: What stands between two convolutions that pad: the freedom of its channels.
MIDDLES = {
    "g = Identity(h)": "general",
    "g = Relu(h)": "positive-monomial",
    "g = LeakyRelu(h)": "positive-monomial",
    "lo = Constant<value_float=0.0>()\n hi = Constant<value_float=6.0>()\n g = Clip(h, lo, hi)": "permutation",
    "s = Sigmoid(h)\n g = Mul(h, s)": "permutation",
    "g = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(h)": "positive-monomial",
    "g = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(h)": "general",
}


def space_of(analysis: Analysis, name: str, axis: int = 1) -> Space:
    return next(space for space in analysis.spaces if f"{name}:{axis}" in space.values)


def members(size: int) -> dict[str, Transform]:
    """A matrix of each of the groups that matter, which lies in none of the smaller ones."""
    rng = np.random.default_rng(0)
    positive = torch.from_numpy(rng.uniform(0.5, 2.0, size))
    order = torch.from_numpy(np.roll(np.arange(size), 1))
    return {
        "permutation": Permutation(order),
        "positive-monomial": Diagonal(positive),
        "monomial": Diagonal(-positive),
        "orthogonal": RandomOrthogonal(size, seed=1),
        "general": Dense(torch.from_numpy(rng.standard_normal((size, size)) + 3 * np.eye(size))),
    }


#: By label, the members of larger groups that a freedom of that name has not.
LACKS = {
    "general": [],
    "positive-monomial": ["monomial", "orthogonal", "general"],
    "permutation": ["positive-monomial", "monomial", "orthogonal", "general"],
}


def error_under(model: ir.Model, name: str, transform: Transform) -> float:
    """How far the graph is from itself once a space has changed basis, allowed or not."""
    return change(model, lambda analysis: {space_of(analysis, name).node: transform})


@pytest.mark.parametrize("middle", MIDDLES)
def test_channels_between_convolutions(parse, middle: str) -> None:
    model = parse(HIDDEN.format(middle=middle))
    label = MIDDLES[middle]
    assert space_of(analyze(model), "h").freedom.label == label
    for group, transform in members(8).items():
        lost = error_under(parse(HIDDEN.format(middle=middle)), "h", transform)
        assert (lost > 1e-3) == (group in LACKS[label]), group
        assert lost > 1e-3 or lost < TOLERANCE[np.dtype(np.float64)]


RESIDUAL = """g (float[2,3,6,6] x) => (float[2,5,6,6] y)
<float[8,3,3,3] a, float[16,8,1,1] u, float[16,1,3,3] d, float[8,16,1,1] v, float[5,8,3,3] c> {
    h = Conv<pads=[1,1,1,1]>(x, a)
    i = Conv(h, u)
    j = Relu(i)
    k = Conv<group=16, pads=[1,1,1,1]>(j, d)
    l = Relu(k)
    m = Conv(l, v)
    o = Add(h, m)
    y = Conv<pads=[1,1,1,1]>(o, c) }"""


def test_a_narrow_stream_turns_and_wide_channels_are_scaled(parse) -> None:
    """Inverted residual blocks: the stream has no activation, depthwise kernels take scales on either side."""
    analysis = analyze(parse(RESIDUAL))
    assert space_of(analysis, "h").freedom.label == "general"
    assert {"h:1", "m:1", "o:1"} <= set(space_of(analysis, "h").values)
    assert space_of(analysis, "i").freedom.label == "positive-monomial"
    for name, size, group in (("h", 8, "general"), ("i", 16, "positive-monomial"), ("i", 16, "permutation")):
        assert error_under(parse(RESIDUAL), name, members(size)[group]) < TOLERANCE[np.dtype(np.float64)]
    with pytest.raises(InputError, match="cannot pass a product of two activations"):  # nor a kernel for each channel
        error_under(parse(RESIDUAL), "i", members(16)["orthogonal"])


def test_zeros_of_padding_stay_zeros_but_a_shift_would_not(parse) -> None:
    """A norm's shift stays in front of a convolution that pads, and its scale folds."""
    model = parse("""g (float[2,6,6,8] x) => (float[2,5,6,6] y) <float[8] s, float[8] b, float[5,8,3,3] c> {
        n = LayerNormalization(x, s, b)
        t = Transpose<perm=[0,3,1,2]>(n)
        [conv] y = Conv<pads=[1,1,1,1]>(t, c) }""")
    inputs, before = example_inputs(model), model.clone()
    prepared = prepare(model)
    (norm,) = (node for node in prepared.model.graph if node.op_type == "LayerNormalization")
    scale, shift = (value.const_value.numpy() for value in norm.inputs[1:3])
    assert np.all(scale == 1)
    assert np.any(shift != 0)
    assert compare(evaluate(before, inputs), evaluate(prepared.model, inputs))[0] < 1e-5
