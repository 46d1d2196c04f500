"""Equivalence in float32, and in float64 where a graph amplifies rounding."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.api import rotate
from qcompile.checks.equivalence import equivalence
from qcompile.errors import InputError, VerificationError

#: A large number is added and taken away again: what is left has few digits in float32.
CANCELLATION = """g (float[2048,8] x) => (float[2048,32] y) <float[8,32] a, float[32,32] b, float[32] large>
    { h = MatMul(x, a)\n u = MatMul(h, b)\n v = Add(u, large)\n y = Sub(v, large) }"""


def turned(parse):
    small = np.random.default_rng(0).normal(0, 0.01, (8, 32)).astype(np.float32)
    rotated = rotate(parse(CANCELLATION, a=small, large=np.full(32, 1e4, np.float32)))
    assert rotated.placement.offline
    return rotated


def test_rounding_that_a_graph_amplifies_is_told_from_a_difference(parse):
    found = turned(parse).equivalence
    assert found.rel_l2 > 1e-5 > 1e-6 > found.in_double


def test_difference_is_one_in_float64_too(parse):
    prepared = turned(parse).prepared
    weight = prepared.model.graph.initializers["b"]
    weight.const_value.numpy()[0] *= 1.001
    with pytest.raises(VerificationError, match="in float64, more than 1e-05"):
        equivalence(prepared.source, prepared.model, prepared.observed)


def test_operators_without_a_kernel_for_float64_compute_in_float32(parse):
    """The norm of a sum stays what it was in the source, and is put apart in the graph that is rotated."""
    norm = "n = com.microsoft.SkipLayerNormalization(x, x, s)\n h = MatMul(n, a)"
    text = CANCELLATION.replace("h = MatMul(x, a)", norm).replace("<float[8,32] a", "<float[8] s, float[8,32] a")
    given = np.random.default_rng(0).normal(0, 0.1, (8, 32)).astype(np.float32)
    found = rotate(parse(text, a=given, large=np.full(32, 1e5, np.float32), s=np.ones(8, np.float32))).equivalence
    assert found.rel_l2 > 1e-5 > found.in_double


RANDOM = {
    "Dropout": "r = Constant<value = float {0.5}>()\n t = Constant<value = bool {1}>()\n d = Dropout(h, r, t)",
    "RandomNormalLike": "e = RandomNormalLike(h)\n d = Add(h, e)",
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_graph_that_differs_from_itself_is_refused(parse, name):
    model = parse(f"""g (float[4,8] x) => (float[4,8] y) <float[8,8] a, float[8,8] b>
        {{ h = MatMul(x, a)\n {RANDOM[name]}\n y = MatMul(d, b) }}""")
    with pytest.raises(InputError, match=rf"two runs of .* on one input differ .*: {name} '\w*' draws random numbers"):
        rotate(model)


def test_what_no_output_shows_may_be_random(parse):
    text = RANDOM["RandomNormalLike"].replace("Add(h, e)", "Mul(e, z)").replace("d =", "m =")
    model = parse(
        f"""g (float[4,8] x) => (float[4,8] y) <float[8,8] a, float[8,8] b, float[1] z>
        {{ h = MatMul(x, a)\n {text}\n d = Add(h, m)\n y = MatMul(d, b) }}""",
        z=np.zeros(1, np.float32),
    )
    assert rotate(model).equivalence.rel_l2 < 1e-5
