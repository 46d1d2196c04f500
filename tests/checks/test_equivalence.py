"""Equivalence in float32, and in float64 where a graph amplifies rounding."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.api import rotate
from qcompile.checks.equivalence import equivalence
from qcompile.errors import VerificationError

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
